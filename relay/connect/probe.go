package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"time"

	"postern/internal/panics"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
)

// Stages of a Probe beside those of the conversation.
const (
	StageLookup smtp.Stage = "lookup" // DNS
	StageLoop   smtp.Stage = "loop"   // it is this server itself
	StageToken  smtp.Stage = "token"  // of an upstream account that has a grant
	StageBudget smtp.Stage = "budget" // the upstream's sessions are in use
)

// Prober begins conversations as deliveries do, up to where mail would be sent, and
// ends them with QUIT. It sends no mail. It is safe for concurrent use.
type Prober struct{ d *Dialer }

// Probe is how far a conversation came. Its Err is why no mail could be sent, nil when it could.
type Probe struct {
	Step
	Host    string    // that was talked to, as far as one was
	TLS     string    // facts, as of Conn
	Expires time.Time // of the certificate that was shown; zero in clear
	// Permanent says that mail would fail and not wait.
	Permanent bool
}

// NewProber makes a Prober.
func NewProber(cfg Config) *Prober {
	return &Prober{New(cfg)}
}

// Trial is what a Probe of an upstream does beside a conversation.
type Trial struct {
	Rehearse bool         // MAIL, RCPT unless To is null, and RSET with
	From, To smtp.Address // these, as a message of From would be sent
	// Tell is given each step when it is over, and has the addresses connected to that were not
	// needed; nil: nobody is told.
	Tell func(Step)
}

// Step is one step of a Probe.
type Step struct {
	Stage smtp.Stage
	Addr  netip.AddrPort // that it was tried with; zero before an address was known
	Took  time.Duration
	Err   error                // nil: it went well
	Reply smtp.Reply           // of the server, as far as it said one
	Row   *upstream.Row        // of the upstream's table, that knows the reply; nil for none
	State *tls.ConnectionState // of StageTLS
	Text  string               // the addresses of StageLookup, the mechanism of StageAuth, at StageMail who sends in place of From
}

// trace tells the steps of a Probe. It is nil where nobody is to be told.
type trace struct {
	tell    func(Step)
	replies *upstream.Replies
	begun   time.Time // the step that is not over
	heard   smtp.Reply
	as      smtp.Address // that sends in place of From; null for none
}

// step is the end of a step.
func (t *trace) step(s Step) {
	if t == nil {
		return
	}
	now := time.Now()
	s.Took, t.begun = now.Sub(t.begun), now
	ended := s.Err == nil || !t.heard.IsPositive() // 220 to STARTTLS is no reason for what came after it
	if (s.Stage == smtp.StageTLS || s.Stage == smtp.StageAuth) && s.Reply.IsZero() && ended {
		s.Reply = t.heard
	}
	if s.Stage == smtp.StageMail && !t.as.IsNull() {
		s.Text = "as " + t.as.String()
	}
	t.heard = smtp.Reply{}
	t.tell(s)
}

// trouble is the end of a step that failed.
func (t *trace) trouble(addr netip.AddrPort, why *Trouble) {
	if t == nil {
		return
	}
	s := why.step(t.replies)
	s.Addr = addr
	t.step(s)
}

// step is the step that failed.
func (t *Trouble) step(replies *upstream.Replies) Step {
	s := Step{Stage: t.Stage(), Addr: t.Addr, Err: t.Err}
	if s.Err == nil {
		s.Err = errors.New(t.Reply.Text)
	}
	var stage *smtp.StageError
	if errors.As(t.Err, &stage) {
		s.Reply = stage.Reply
		s.Row = replies.Classify(TableStage(s.Stage), s.Reply).Row
	}
	return s
}

// hears is what a conversation gives its replies. Refusals come as trouble, and of TLS and AUTH
// the reply alone does not say how they ended.
func (t *trace) hears() func(smtp.Stage, smtp.Reply) {
	if t == nil {
		return nil
	}
	return func(stage smtp.Stage, reply smtp.Reply) {
		t.heard = reply
		if stage != smtp.StageTLS && stage != smtp.StageAuth && reply.IsPositive() {
			t.step(Step{Stage: stage, Reply: reply})
		}
	}
}

// secures has a session with that configuration told as a step, once its certificate is accepted.
func (t *trace) secures(cfg *tls.Config) {
	if t == nil {
		return
	}
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if verify != nil {
			if err := verify(state); err != nil {
				return err
			}
		}
		t.step(Step{Stage: smtp.StageTLS, State: &state})
		return nil
	}
}

func textOf(addrs []netip.Addr) string {
	var list []string
	for _, addr := range addrs {
		list = append(list, addr.String())
	}
	return strings.Join(list, ", ")
}

// Upstream converses with an upstream: TLS as configured, and its account.
func (p *Prober) Upstream(ctx context.Context, up *upstream.Account, trial Trial) Probe {
	w, c, t := p.converse(ctx, up, trial)
	probe := p.finish(ctx, up.Replies, c, t)
	if w.trace != nil && c != nil {
		p.tryOthers(ctx, c.Walk)
	}
	return probe
}

// converse begins a conversation, and leaves it open.
func (p *Prober) converse(ctx context.Context, up *upstream.Account, trial Trial) (w Walk, c *Conn, t *Trouble) {
	w, t = p.d.walkTo(ctx, "", up)
	if trial.Tell != nil {
		w.trace = &trace{tell: trial.Tell, replies: up.Replies, begun: time.Now()}
	}
	from := trial.From
	switch {
	case t != nil || !trial.Rehearse || from.IsNull(): // which nobody sends in place of
	case !up.MaySend(from):
		t = &Trouble{Err: &upstream.SenderError{Upstream: up.Name, Sender: from}}
	case !up.SendsAs.IsNull():
		from = up.SendsAs
		if w.trace != nil {
			w.trace.as = from
		}
	}
	if t == nil {
		c, t = w.Next(ctx)
	} else {
		w.trace.trouble(netip.AddrPort{}, t)
	}
	if t == nil && trial.Rehearse {
		if err := c.Client.Rehearse(ctx, from, trial.To); err != nil {
			t = conversationTrouble(c, Target{Host: c.Host, Addr: c.Addr, Upstream: up}, err)
			w.trace.trouble(c.Addr, t)
		}
	}
	return w, c, t
}

// Through converses with an upstream up to MAIL with a sender ("" for none) and RSET. It returns why
// no mail can be sent, nil when it can. The error is this machine's own trouble.
func (p *Prober) Through(ctx context.Context, up *upstream.Account, sender string) (*breaker.Cause, error) {
	var trial Trial
	if from, err := smtp.ParseAddress(sender); err == nil && smtp.IsASCII(sender) && up.MaySend(from) {
		trial = Trial{Rehearse: true, From: from}
	}
	_, c, t := p.converse(ctx, up, trial)
	p.finish(ctx, up.Replies, c, t)
	switch {
	case t == nil:
		return nil, nil
	case t.OfMachine():
		return nil, t.Err
	case t.Said && t.Stage() == smtp.StageMail: // a refusal of the sender opens nothing
		if scope := up.Replies.Classify(upstream.StageMail, t.Reply).Scope; scope.OfMail() || scope == upstream.ScopeSender {
			return nil, nil
		}
	}
	cause := t.Cause(up.Replies)
	return &cause, nil
}

// tryOthers connects to the addresses that were not needed.
func (p *Prober) tryOthers(ctx context.Context, w Walk) {
	for _, addr := range w.addrs {
		to := Target{Host: w.host.host, Addr: netip.AddrPortFrom(addr, uint16(w.port())), Upstream: w.Upstream}
		w.trace.begun = time.Now()
		leave, crowd := p.d.enter(ctx, to)
		if crowd != nil {
			w.trace.trouble(to.Addr, crowd)
			continue
		}
		if c, err := p.d.Dial(ctx, to); err != nil {
			w.trace.trouble(to.Addr, connectTrouble(to, err))
		} else {
			w.trace.step(Step{Stage: smtp.StageConnect, Addr: to.Addr})
			_ = c.Close() // nothing was said
		}
		leave()
	}
}

// MX converses with each mail host of a domain; if there is none, it returns one Probe that
// says why. The hosts are in the order of their preference, up to this server itself if it
// is one of them: deliveries go no further.
func (p *Prober) MX(ctx context.Context, domain string) []Probe {
	all, t := p.d.walkTo(ctx, domain, nil)
	if t != nil {
		return []Probe{p.finish(ctx, nil, nil, t)}
	}
	hosts := all.hosts
	probes := make([]Probe, len(hosts))
	var talks panics.Group
	for i := range hosts {
		talks.Go(func() {
			one := all.only(i)
			c, t := one.Next(ctx)
			probes[i] = p.finish(ctx, nil, c, t)
			if probes[i].Host == "" {
				probes[i].Host = hosts[i].host
			}
		})
	}
	talks.Wait()
	for i := 1; i < len(probes); i++ {
		if probes[i].Stage == StageLoop {
			return probes[:i]
		}
	}
	return probes
}

// finish ends a conversation and describes it.
func (p *Prober) finish(ctx context.Context, replies *upstream.Replies, c *Conn, t *Trouble) Probe {
	if c != nil {
		defer c.Close()
	}
	if t != nil {
		if c != nil {
			_ = c.Client.Quit(ctx) // the refusal is what counts
		}
		return Probe{Step: t.step(replies), Host: t.Host, TLS: t.TLS, Permanent: t.Permanent}
	}
	probe := Probe{Step: Step{Addr: c.Addr}, Host: c.Host, TLS: c.TLS}
	if state := c.Client.TLS(); state != nil {
		probe.Expires = state.PeerCertificates[0].NotAfter
	}
	_ = c.Client.Quit(ctx) // mail could have been sent
	return probe
}
