// Package smtp is the wire of both halves of the relay: the address grammar,
// commands and their parameters, replies, the strict reader and writer of lines
// and of message data, and the client that delivers.
//
// It knows nothing of sessions, queues, databases, DNS or logs: it turns bytes
// into values and values into bytes, and refuses what the grammar of RFC 5321,
// RFC 6531, RFC 3461 and RFC 4954 does not allow.
//
// Invariants: only CRLF ends a line and only CRLF.CRLF ends data; every buffer
// is bounded; decoded text is validated after decoding; every reader parses the written
// text back as exactly what was meant.
package smtp
