package message

import "postern/relay/smtp"

// resentSets numbers the sets of Resent fields (RFC 5322 section 3.6.6) from the top.
// Each resending puts one in front, with its fields together: a set ends at a field of
// another kind, and where it would have a second Resent-From or Resent-Sender.
type resentSets struct {
	n    int    // of the last set, from 1
	open bool   // the last field was in it
	seen uint32 // bits by known, of the last set
}

// of returns the number of the set that the next field is in, 0 for none.
func (r *resentSets) of(name []byte, f known) int {
	const prefix = "Resent-"
	if len(name) < len(prefix) || !is(name[:len(prefix)], prefix) {
		r.open = false
		return 0
	}
	again := (f == fieldResentFrom || f == fieldResentSender) && r.seen&(1<<f) != 0
	if !r.open || again {
		r.n, r.open, r.seen = r.n+1, true, 0
	}
	r.seen |= 1 << f
	return r.n
}

// redirector finds who resent the message last.
type redirector struct {
	from, sender           []smtp.Address // of the first set
	olderFrom, olderSender int            // the first of the other sets with such a field, 0 for none
}

// add takes the mailboxes of a field of a set.
func (r *redirector) add(i identity, mailboxes []smtp.Address) {
	isFrom := i.field == fieldResentFrom
	switch {
	case i.set == 1 && isFrom:
		r.from = mailboxes
	case i.set == 1:
		r.sender = mailboxes
	case isFrom && r.olderFrom == 0:
		r.olderFrom = i.set
	case !isFrom && r.olderSender == 0:
		r.olderSender = i.set
	}
}

// mailboxes are those of Resent-From and Resent-Sender in the first set. There are none
// where it is not clear who it was: without Resent-From; with several mailboxes in it and
// no Resent-Sender; and when a Resent-Sender comes later but belongs to no older
// Resent-From, so that some would take it for the first set's.
func (r *redirector) mailboxes() []smtp.Address {
	switch {
	case len(r.from) == 0, len(r.from) > 1 && len(r.sender) == 0:
		return nil
	case r.olderSender > 0 && (r.olderFrom == 0 || r.olderSender < r.olderFrom):
		return nil
	}
	return append(r.from[:len(r.from):len(r.from)], r.sender...)
}
