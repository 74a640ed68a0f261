// Package message does header surgery on bytes. It finds fields, counts Received,
// removes what must not be relayed and prepends what RFC 6409 section 8 asks for.
//
// It builds no MIME tree and looks at nothing behind the header section. Apart
// from what it adds and removes, a message leaves as it came, octet for octet: folding,
// 8-bit octets, the order of fields and every oddity of the client that wrote it.
//
//	added    Received (RFC 5321 section 4.4), always, as the first field
//	         Date, when there is none
//	         Message-ID, when there is none
//	         an empty line, when a line that is not a field ends the header section
//	removed  Bcc, Resent-Bcc and Return-Path, with their continuation lines
//
// The header section has to be one that everybody reads in the same way: the policy
// must be asked about the same fields (Facts.From and the like) as the recipient sees. So
// a message is refused when it has no From field, two of what there is one of, a
// field that some would not see, or an address field with two readings. Bare CR, bare
// LF and NUL do not come here: relay/smtp's data reader refuses them.
//
// Rewrite makes a stored message that of another author, for a provider who demands that.
//
// A message is streamed: only the header section is ever held, bounded by
// Options.MaxHeader. Refusals are *smtp.Error.
package message
