package submission

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"postern/policy"
	"postern/policy/quota"
	"postern/relay/dkim"
	"postern/relay/maillog"
	"postern/relay/message"
	"postern/relay/queue"
	"postern/relay/queue/insert"
	"postern/relay/smtp"
)

// data is DATA (RFC 5321 section 4.1.1.4). However it ends, the transaction is over: nothing
// of it is left for the next one.
func (s *session) data(args string) smtp.Reply {
	if r := s.dataRefusal(args); !r.IsZero() {
		return s.refuseData(r)
	}
	defer s.endTransaction()
	id := queue.NewID()
	s.wire.reply(smtp.Intermediate(354, "End data with <CR><LF>.<CR><LF>"))
	now := time.Now()
	in := &input{r: s.reader.Data(smtp.DataOptions{NormalizeBareLF: s.normalize}), max: s.maxSize()}
	s.wire.rate, s.wire.idle = newPace(now, s.limits), false
	s.wire.inData.Store(true)
	body, facts, err := s.receive(in, id, now)
	s.wire.rate = nil
	s.wire.inData.Store(false)
	if in.lost() {
		s.dataLost(id, in.err)
		return smtp.Reply{}
	}
	if err != nil {
		return s.refuseMessage(id, err)
	}
	defer body.Drop()
	return s.commit(id, now, body, facts)
}

// dataRefusal is why DATA is out of order.
func (s *session) dataRefusal(args string) smtp.Reply {
	switch {
	case args != "":
		return smtp.Permanent(501, 5, 4, "DATA takes no arguments")
	case s.tx == nil:
		return s.needMail()
	case len(s.tx.rcpts) == 0 && s.tx.putOff:
		// A client that pipelines sent DATA before it read the refusals. If it gave up here, it
		// would also give up the recipients that may be taken later.
		return smtp.Temporary(451, 5, 1, "No recipient was accepted, some were refused temporarily; try again later")
	case len(s.tx.rcpts) == 0 && s.tx.refused > 0:
		return smtp.Permanent(554, 5, 1, "No valid recipients")
	case len(s.tx.rcpts) == 0:
		return smtp.Permanent(503, 5, 1, "Need RCPT first")
	}
	return smtp.Reply{}
}

// refuseData answers DATA that may not come now. A client that did not wait for
// the reply (RFC 2920 section 3.1: DATA is the last of its group) has sent its message
// already, which must not be run as commands.
func (s *session) refuseData(r smtp.Reply) smtp.Reply {
	if s.reader.Buffered() > 0 {
		s.violation("message data before the reply to DATA")
		s.leave("early data", r)
		return smtp.Reply{}
	}
	if s.wire.reply(r); s.wire.flush() != nil {
		s.end("write failed")
	}
	if isBadCommand(r.Code) {
		s.bad++
	}
	return smtp.Reply{}
}

// receive reads the message to its end, and repairs and spools it on the way: the
// spooled copy is the only one. After an error that is not the connection's the
// rest of the data has been read as well.
func (s *session) receive(in *input, id queue.ID, now time.Time) (*body, *message.Facts, error) {
	b, facts, err := s.spoolMessage(in, id, now)
	if err != nil && in.err == nil {
		in.skip()
	}
	if err == nil || in.err == io.EOF {
		return b, facts, err
	}
	// The reader's own error (bare CR, bare LF, NUL) goes before one about the octets
	// read until then.
	return nil, nil, in.err
}

func (s *session) spoolMessage(in *input, id queue.ID, now time.Time) (*body, *message.Facts, error) {
	opt := message.Options{
		ID: id.String(), Hostname: s.server.cfg.Hostname, Now: now,
		Hello: s.hello, Client: s.peer.addr.Addr(), HideClient: s.hideClient,
		TLS: s.secured, Authenticated: true, UTF8: s.tx.mail.UTF8,
		MaxHeader: s.limits.HeaderSize, Memory: (*headerMemory)(s),
	}
	if len(s.tx.rcpts) == 1 {
		opt.For = s.tx.rcpts[0].Address
	}
	prepared, err := message.Prepare(in, opt)
	if err != nil {
		return nil, nil, err
	}
	f := &prepared.Facts
	v := policy.Header(*s.identity, policy.HeaderIdentity{
		From: f.From, Sender: f.Sender, ResentFrom: f.ResentFrom, ResentSender: f.ResentSender, Redirector: f.Redirector,
	})
	if !v.Allowed {
		return nil, nil, refusedBy(v)
	}
	if v.Rule != policy.RuleHeader {
		s.tx.rule += ", " + v.Rule // why it may be another's
	}
	var bodyHash *dkim.BodyHash
	if dkim.Find(s.server.cfg.Keys, f.From[0].DomainKey()) != nil {
		bodyHash = dkim.NewBodyHash()
		prepared.Body = bodyHash
	}
	var octets hash.Hash
	if f.Key != "" || f.MessageID != "" && !f.IDAdded && s.window() > 0 {
		octets = sha256.New()
		prepared.Client = octets
	}
	b, err := s.server.spool.read(prepared, s.holders)
	if err != nil {
		return nil, nil, err
	}
	if bodyHash != nil {
		b.hash = bodyHash.Sum()
	}
	if octets != nil {
		b.octets = octets.Sum(nil)
	}
	return b, &prepared.Facts, nil
}

// commit hands the message to the queue and answers. The answer says 250 only
// after a durable commit, which no disconnect and no shutdown cancels.
func (s *session) commit(id queue.ID, now time.Time, b *body, facts *message.Facts) smtp.Reply {
	m := s.message(id, now, b, facts)
	tx, handoff := s.tx, s.server.cfg.Handoff
	owned := handoff != nil && handoff.Reserve(s.identity.UserID, b.Size())
	if s.wire.isRevoked() { // the last look: a later change comes after the message
		return s.refuseMessage(id, &smtp.Error{Reply: replyRevoked})
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.limits.Commit)
	accepted, err := s.server.cfg.Queue.Enqueue(ctx, m, tx.rcpts, b, owned)
	cancel()
	if over := (*quota.Over)(nil); errors.As(err, &over) {
		s.server.spent.note(over, time.Now())
		return s.refuseMessage(id, refusedBy(policy.OverLimit(over, time.Now())))
	}
	if other := (*insert.OtherContent)(nil); errors.As(err, &other) {
		return s.refuseMessage(id, err)
	}
	if err != nil {
		return s.refuseMessage(id, &smtp.Error{Reply: queueRefusal(err), Err: err})
	}
	s.wire.reply(queuedReply(id, accepted))
	// Committed: it is delivered even if the reply cannot be written.
	switch {
	case accepted.Held:
		s.server.mail.Held(maillog.HeldEvent{ID: id.String(), User: s.user(), Sender: m.Sender, Recipients: accepted.Stored})
	case accepted.Delivery != nil:
		handoff.Take(accepted.Delivery)
	}
	s.messages++
	s.commands = 0
	s.server.counts.accepted.Add(1)
	if accepted.Stored > 0 {
		s.server.mail.Accepted(maillog.Accept{
			ID: id.String(), User: s.user(), Sender: m.Sender, Recipients: accepted.Stored, Size: m.Size,
			MessageID: m.MessageID, Client: s.peer.addr, Hello: s.hello, TLS: s.secured, Rule: tx.rule,
			Removed: removed(facts),
		})
	}
	if accepted.Duplicates > 0 {
		s.server.mail.Duplicate(maillog.DuplicateEvent{ID: id.String(), First: accepted.First.String(), User: s.user(), Sender: m.Sender,
			Recipients: accepted.Duplicates, MessageID: m.MessageID, Client: s.peer.addr})
	}
	return smtp.Reply{}
}

// queuedReply says 250: what is queued, and what had been queued before.
func queuedReply(id queue.ID, a queue.Accepted) smtp.Reply {
	switch {
	case a.Duplicates == 0:
		return smtp.OK(250, 0, 0, "Ok: queued as "+id.String())
	case a.Stored == 0:
		return smtp.OK(250, 0, 0, "Ok: duplicate, queued before as "+a.First.String())
	}
	return smtp.OK(250, 0, 0, fmt.Sprintf("Ok: queued as %s; duplicate for %d of %d recipients, queued before as %s",
		id, a.Duplicates, a.Stored+a.Duplicates, a.First))
}

// window is how long copies of the user's mail are recognised by their content, 0 if they are not.
func (s *session) window() time.Duration {
	if w := s.identity.Duplicates; w != nil {
		return *w
	}
	return s.limits.Duplicates
}

// clientKeyWindow is how long a copy is recognised by a key that the client has given it.
const clientKeyWindow = 24 * time.Hour

// key is by what copies of the message are recognised.
func (s *session) key(b *body, facts *message.Facts) insert.Key {
	switch from := s.tx.mail.From; {
	case facts.Key != "":
		return insert.ClientKey(s.identity.UserID, facts.Key, from, b.octets, clientKeyWindow)
	case b.octets != nil:
		return insert.ContentKey(s.identity.UserID, from, facts.MessageID, b.octets, s.window())
	}
	return insert.Key{}
}

// removed names, as the log does, the lines removed before the header.
func removed(f *message.Facts) string {
	var words []string
	if f.ByteOrderMark {
		words = append(words, "bom")
	}
	if f.MboxLine {
		words = append(words, "mbox")
	}
	return strings.Join(words, " ")
}

// message is the stored envelope. Many clients declare whatever is offered, so a
// declaration is a need only where the text bears it out (RFC 6531 section 3.4).
func (s *session) message(id queue.ID, now time.Time, b *body, facts *message.Facts) queue.Message {
	mail := &s.tx.mail
	m := queue.Message{
		ID: id, UserID: s.identity.UserID, CredentialID: s.identity.CredentialID,
		Sender: mail.From, Size: b.Size(), EightBit: facts.EightBit, BodyHash: b.hash,
		UTF8: mail.UTF8 && facts.UTF8 || mail.From.NeedsUTF8(),
		Ret:  mail.Ret, EnvID: mail.EnvID, MessageID: facts.MessageID, AcceptedAt: now,
		ClientAddr: s.peer.addr.Addr(), ClientHello: s.hello, Listener: s.listener.Name, TLS: s.secured,
		Rule: s.tx.rule, NewNetwork: s.identity.NewNetwork, Charges: quota.Windows(s.identity.Limits),
		Key: s.key(b, facts), Tags: facts.Tags, Metadata: string(facts.Metadata),
	}
	switch {
	case mail.RequireTLS: // which counts more than the field (RFC 8689 section 4.1)
		m.TLSNeed = smtp.TLSRequired
	case facts.TLSOptional:
		m.TLSNeed = smtp.TLSOptional
	}
	if what := removed(facts); what != "" {
		m.Rule += "; removed " + what // for the trace, as the log has it
	}
	if facts.EightBit && mail.Body == smtp.Body8BitMIME {
		m.BodyType = mail.Body
	}
	return m
}

// ruled is a refusal by the policy, with the rule that made it.
type ruled struct {
	refusal *smtp.Error
	rule    string
}

func refusedBy(v policy.Verdict) error {
	return &ruled{refusal: &smtp.Error{Reply: v.Reply}, rule: v.Rule}
}

func (r *ruled) Error() string { return r.refusal.Error() + " (" + r.rule + ")" }
func (r *ruled) Unwrap() error { return r.refusal }

// refuseMessage is the one reply to a message that was read to its end.
func (s *session) refuseMessage(id queue.ID, err error) smtp.Reply {
	refusal, ok := asRefusal(err)
	if !ok {
		refusal = &smtp.Error{Reply: smtp.Temporary(451, 3, 0, "Internal error, try again later"), Err: err}
	}
	e := maillog.Refusal{
		ID: id.String(), User: s.user(), Sender: s.tx.mail.From, Client: s.peer.addr,
		Stage: smtp.StageDot, Reply: refusal.Reply,
	}
	if refusal.Reply.IsTemporary() {
		e.Err = refusal.Err
	}
	if by := (*ruled)(nil); errors.As(err, &by) {
		e.Rule = by.rule
	}
	s.server.mail.Refused(e)
	s.server.counts.refusedMessages.Add(1)
	if errors.Is(err, smtp.ErrDataOctets) {
		s.server.counts.violations.Add(1)
	}
	return refusal.Reply
}

// dataLost ends a session whose message data was not read to its end: anything that follows
// is the rest of a body, never a command.
func (s *session) dataLost(id queue.ID, err error) {
	r := replyTimeout
	switch {
	case errors.Is(err, errShutdown):
		r = replyShutdown
	case errors.Is(err, errExpelled):
		s.server.counts.expelled.Add(1)
		r = replyBusy
	case errors.Is(err, errTooLarge):
		r = errTooLarge.Reply
	case !isTimeout(err):
		s.end("disconnect in data")
		r = smtp.Reply{}
	}
	s.server.counts.refusedMessages.Add(1)
	s.server.mail.Refused(maillog.Refusal{
		ID: id.String(), User: s.user(), Sender: s.tx.mail.From, Client: s.peer.addr,
		Stage: smtp.StageBody, Reply: r, Err: err,
	})
	if !r.IsZero() {
		s.leave("message data not finished", r)
	}
}

// queueRefusal is the reply to trouble with the queue, which is never permanent.
func queueRefusal(err error) smtp.Reply {
	if refusal, ok := asRefusal(err); ok && refusal.Reply.IsTemporary() {
		return refusal.Reply
	}
	return smtp.Temporary(451, 3, 0, "Cannot store the message now, try again later")
}

func asRefusal(err error) (*smtp.Error, bool) {
	var refusal *smtp.Error
	ok := errors.As(err, &refusal)
	return refusal, ok
}
