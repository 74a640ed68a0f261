package delivery

import (
	"slices"
	"sync"
	"sync/atomic"

	"postern/relay/dkim"
	surgery "postern/relay/message"
	"postern/relay/smtp"
)

// sign puts the signatures that the way wants in front of the text of body, and returns the octets of
// both. A message whose domain has no key, or had none when it was accepted, goes unsigned: it waits
// for none. The error is about the stored text. w.count counts it, by the domain of from if it goes
// unsigned, once the server hears of it.
func (w *worker) sign(j *job, from smtp.Address, size int64) (int64, error) {
	w.count = nil
	e, mode := w.d.e, w.signing()
	if mode == dkim.Off || mode == "" {
		return size, nil
	}
	var field []byte
	if j.Message.BodyHash != nil {
		var err error
		if field, err = w.signatures(j, mode); err != nil {
			return size, err
		}
	}
	if field == nil {
		if j.Message.UserID != 0 {
			w.count = func() { e.unsigned.add(from.DomainKey()) }
		}
		return size, nil
	}
	w.count = func() { e.signed.Add(1) }
	w.body.edits = append([]surgery.Edit{{Put: field}}, w.body.edits...)
	return size + int64(len(field)), nil
}

// signing says with which keys the connection's mail is to be signed.
func (w *worker) signing() dkim.Mode {
	if up := w.conn.Walk.Upstream; up != nil {
		return up.DKIM
	}
	return w.d.e.bounds.Load().DKIM
}

// signed keeps the signatures of a delivery for its next job, with all that they depend on while it is
// in hand: most messages of many destinations are signed once.
type signed struct {
	mu    sync.Mutex
	mode  dkim.Mode
	as    smtp.Address // the mailbox in the author's place
	field []byte
}

// signatures are the fields for a job's text as it is edited now, nil for none.
func (w *worker) signatures(j *job, mode dkim.Mode) (field []byte, err error) {
	s, as := &j.signed, w.conn.sendsAs()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.field != nil && s.mode == mode && s.as == as {
		return s.field, nil
	}
	text := bodyReader{from: j.Body, size: j.size, edits: w.body.edits, begun: new(atomic.Bool)}
	header, from, err := surgery.Header(&text)
	if err != nil {
		return nil, err
	}
	keys := mode.Of(dkim.Find(w.d.e.cfg.Keys, from.DomainKey()))
	keys = slices.DeleteFunc(keys, func(k dkim.Key) bool { return k.Signer == nil })
	if len(keys) == 0 {
		return nil, nil
	}
	field, err = dkim.Sign(header, keys, j.Message.BodyHash, j.Message.AcceptedAt)
	if err != nil {
		w.d.e.cfg.Log.Error("a message goes unsigned: its key fails", "id", j.Message.ID, "error", err)
		return nil, nil
	}
	s.mode, s.as, s.field = mode, as, field
	return field, nil
}

// mostUnsigned is the number of domains whose unsigned mail is counted by domain. Users who may send
// as any domain could name more.
const mostUnsigned = 100

// otherDomains counts for the domains beyond mostUnsigned, and for names that are not valid.
const otherDomains = "other"

// tally counts by domain.
type tally struct {
	mu sync.Mutex
	by map[string]int64
}

func (t *tally) add(domain string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string]int64{}
	}
	if _, known := t.by[domain]; !known && len(t.by) >= mostUnsigned || !smtp.ValidDomain(domain) {
		domain = otherDomains
	}
	t.by[domain]++
}

// Unsigned counts the transactions of users' mail that went unsigned over ways whose mail is to be
// signed, by the domain of the envelope's sender, "other" for those beyond a hundred.
func (e *Engine) Unsigned() (list []Unsigned) {
	e.unsigned.mu.Lock()
	defer e.unsigned.mu.Unlock()
	list = append(list, Unsigned{otherDomains, e.unsigned.by[otherDomains]})
	for domain, n := range e.unsigned.by {
		if domain != otherDomains {
			list = append(list, Unsigned{domain, n})
		}
	}
	return list
}
