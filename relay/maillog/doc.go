// Package maillog writes the mail log: one typed function for each mail event.
// Administrators search it and their scripts parse it, so event names and field
// names are a contract, listed in docs/log.md and held by tests.
//
// It writes through a slog.Logger and decides nothing but the shape of a line.
// Passwords and message content never reach it: no event has a field for them.
//
// Text that a client or a server chose is untrusted. It passes clean before it is
// logged: bounded to 512 octets, with control characters, bidirectional controls,
// line separators and invalid UTF-8 made visible, so that no line can be split,
// forged or used to drive a terminal.
//
// Events that a peer can cause at will are bounded for each network and user; the rest are
// counted (repeats.go). Events about accepted messages are never dropped.
package maillog
