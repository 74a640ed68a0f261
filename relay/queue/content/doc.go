// Package content holds the octets of messages: in memory, and in the tables body and
// large_body, in pieces. It writes a large body by COPY, finds and reads bodies again, a window
// at a time, and notices when octets are missing.
//
// It decides nothing: relay/queue says in which transaction octets are written and deleted, and
// what becomes of a message that is damaged.
package content
