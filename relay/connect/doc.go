// Package connect begins the conversations by which mail goes out: it finds the hosts of an
// upstream or a domain, connects to one address after the other, and sets up TLS and
// authentication. It returns a connection that is ready for MAIL, or says why there is none.
//
// Invariants: credentials are sent only over verified TLS; a connection to an MX is never made
// to a private or special address (unless a test setting allows it); one attempt uses at most
// MaxTries addresses, maxSessions conversations and attemptTime.
//
// It sends no mail and knows nothing of messages.
package connect
