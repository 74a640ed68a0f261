// Package smtp is the wire of both halves of the relay: the address grammar,
// commands and their parameters, replies, the strict reader and writer of lines
// and of message data, and the client that delivers.
//
// It knows nothing of sessions, queues, databases, DNS or logs: it turns bytes
// into values and values into bytes, and refuses what the grammar of RFC 5321,
// RFC 6531, RFC 3461 and RFC 4954 does not allow.
//
// Invariants: only CRLF ends a line and only CRLF.CRLF ends data; every buffer
// is bounded; what was decoded is validated after decoding; what is written
// parses back, by any reader, as exactly what was meant.
package smtp
