package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/receiver"
	"postern/cmd/postern/screen"
	"postern/internal/refusal"
	"postern/policy"
	"postern/policy/quota"
	"postern/relay/connect"
	"postern/relay/dkim"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/smtp"
	"postern/relay/submission"
	"postern/relay/suppression"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
)

// Question is a message that somebody might send.
type Question struct {
	User       auth.User
	Credential int64 // 0: none in particular
	From       smtp.Address
	HeaderFrom smtp.Address   // null: From
	ResentFrom smtp.Address   // null: it is not resent
	To         []smtp.Address // each but once
	Size       int64          // octets
	Hold       string         // why it would be held, "" if it would not
}

// Relay is what judges the message.
type Relay struct {
	Pool   *pgxpool.Pool
	Server config.Submission
	Routes *route.Table

	Receiver receiver.Receiver // that gets it in the end
	Signs    dkim.Mode         // mail to MX
	Connect  connect.Config    // for mail to MX, with Policies
}

// Message says what would become of a message now.
type Message struct {
	Accepted bool          `json:"accepted"`
	Reply    string        `json:"reply,omitempty"` // that would refuse it
	Steps    []messageStep `json:"steps"`
	Limits   []Limit       `json:"limits"` // that are used up by and by, and their use without this message
	Hold     string        `json:"hold,omitempty"`
	Routes   []messageWay  `json:"routes"`

	MailHosts []mailHosts `json:"mail_hosts,omitempty"` // of recipients whose mail goes to MX
	Receivers []reception `json:"receivers,omitempty"`
}

type messageStep struct {
	Step    string `json:"step"`
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule"`
	Reply   string `json:"reply,omitempty"`
}

// messageWay is where a recipient's mail goes.
type messageWay struct {
	Recipient string    `json:"recipient"`
	Route     int64     `json:"route,omitempty"`
	Via       string    `json:"via,omitempty"`      // the first that can be used: an upstream, or mx
	Trouble   string    `json:"trouble,omitempty"`  // why there is no way, or none that can be told here
	InDoubt   string    `json:"in_doubt,omitempty"` // the policy if Via does not confirm it: retry, hold or notice
	Ways      []wayView `json:"ways"`               // of the route, in their order
}

// identity is whose the header would say that the message is; nobody's for a bounce.
func (q Question) identity() (h policy.HeaderIdentity) {
	if from := cmp.Or(q.HeaderFrom, q.From); !from.IsNull() {
		h.From = []smtp.Address{from}
	}
	if !q.ResentFrom.IsNull() {
		h.ResentFrom = []smtp.Address{q.ResentFrom}
		h.Redirector = h.ResentFrom
	}
	return h
}

// Message asks, in the order of a session, everything that judges a message. Errors:
// refusal.ErrInvalid for the credential of another user.
func (r Relay) Message(ctx context.Context, q Question) (*Message, error) {
	users := auth.NewStore(r.Pool)
	e := &Message{Limits: []Limit{}, Hold: q.Hold, Routes: []messageWay{}}
	if err := e.login(ctx, users, q); err != nil {
		return nil, err
	}
	id, err := users.Identity(ctx, q.User.ID, q.Credential)
	if err != nil {
		return nil, err
	}
	id.CredentialID = q.Credential // of one that does not work any more too
	used, err := quota.ReadUsage(ctx, r.Pool, id.Limits)
	if err != nil {
		return nil, err
	}
	if v := policy.OneMore(id, used); v.Rule != "" {
		e.step("sessions", v)
	}
	if err := e.envelope(ctx, r, id, q); err != nil {
		return nil, err
	}
	for _, v := range withUse(id.Limits, used) {
		if v.Used != nil {
			e.Limits = append(e.Limits, v)
		}
	}
	if err := e.limits(ctx, r.Pool, id, q); err != nil {
		return nil, err
	}
	e.Accepted = e.Reply == ""
	if err := e.ways(ctx, r, q); err != nil {
		return nil, err
	}
	e.hosts(ctx, r.Connect, q)
	return e, nil
}

func (e *Message) step(name string, v policy.Verdict) {
	s := messageStep{Step: name, Allowed: v.Allowed, Rule: v.Rule}
	if !v.Allowed {
		s.Reply = v.Reply.String()
		if e.Reply == "" {
			e.Reply = s.Reply
		}
	}
	e.Steps = append(e.Steps, s)
}

// login says whether the user could log in with the right secret.
func (e *Message) login(ctx context.Context, users *auth.Store, q Question) error {
	rule := ""
	switch u := q.User; {
	case !u.Enabled:
		rule = "user disabled" + screen.Colon(u.DisabledReason)
	case q.Credential == 0 && u.Credentials == 0:
		rule = "the user has no credential that works"
	case q.Credential != 0:
		c, err := users.Credential(ctx, q.Credential)
		if err != nil {
			return err
		}
		if c.UserID != u.ID {
			return refusal.Invalid("credential %d belongs to %s, not to %s", c.ID, c.User, u.Name)
		}
		if state := c.State(time.Now()); state != "active" {
			rule = fmt.Sprintf("credential %d is %s", c.ID, state)
		}
	}
	if rule != "" {
		e.step("AUTH", policy.Verdict{Rule: rule, Reply: submission.LoginRefused()})
		return nil
	}
	e.step("AUTH", policy.Verdict{Allowed: true, Rule: "user enabled"})
	return nil
}

// envelope asks what a session asks.
func (e *Message) envelope(ctx context.Context, r Relay, id auth.Identity, q Question) error {
	e.step("size", policy.Size(id, q.Size, int64(r.Server.MessageSize)))
	e.step("MAIL FROM", policy.Sender(id, q.From))
	for _, to := range q.To {
		if err := e.recipient(ctx, r, id, to); err != nil {
			return err
		}
	}
	e.step("RCPT TO", policy.Recipients(id, len(q.To), r.Server.Recipients))
	if h := q.identity(); len(h.From)+len(h.ResentFrom) > 0 {
		e.step("header", policy.Header(id, h))
	}
	return nil
}

// recipient says what a pattern or the suppression list has to say about a recipient, if anything.
func (e *Message) recipient(ctx context.Context, r Relay, id auth.Identity, to smtp.Address) error {
	v := policy.Recipient(id, to)
	if v.Rule != "" {
		e.step("RCPT TO:<"+to.String()+">", v)
	}
	user := id.UserID
	if id.Suppressed == auth.IgnoreSuppressed {
		user = 0
	}
	entry, err := suppression.Find(ctx, r.Pool, user, to)
	if err != nil || entry == nil || !v.Allowed {
		return err
	}
	v = policy.Verdict{Rule: entry.Rule(), Reply: entry.Refusal()}
	if id.Suppressed == auth.AcceptSuppressed && !entry.IsPattern() {
		v = policy.Verdict{Allowed: true, Rule: entry.Rule() + ", accepted to fail"}
	}
	e.step("RCPT TO:<"+to.String()+">", v)
	return nil
}

// limits asks the queue whether the message fits.
func (e *Message) limits(ctx context.Context, pool *pgxpool.Pool, id auth.Identity, q Question) error {
	windows := quota.Windows(id.Limits)
	over, err := quota.Try(ctx, pool, quota.Charge{Limits: windows, Recipients: len(q.To), Size: q.Size})
	switch {
	case err != nil:
		return err
	case over != nil:
		e.step("limits", policy.OverLimit(over, time.Now()))
	case len(windows) > 0:
		e.step("limits", policy.Verdict{Allowed: true, Rule: "within all of them"})
	}
	return nil
}

// ways finds where the mail for each recipient goes.
func (e *Message) ways(ctx context.Context, r Relay, q Question) error {
	breakers, err := breaker.List(ctx, r.Pool)
	if err != nil {
		return err
	}
	budgets, err := upstream.NewStore(r.Pool, nil).Budgets(ctx)
	if err != nil {
		return err
	}
	var ways []route.Way // that are taken
	for _, to := range q.To {
		way := messageWay{Recipient: to.String()}
		d, err := r.Routes.Resolve(ctx, q.User.ID, q.From, to)
		var first route.Way
		if err == nil {
			first, err = d.First()
		}
		switch {
		case errors.Is(err, upstream.ErrNoKey), errors.Is(err, seal.ErrSeal):
			way.Trouble = wayTrouble(err)
		case err != nil:
			way.Trouble = "it would wait: " + err.Error()
		default:
			way.Via = first.Name
			if err := r.Pool.QueryRow(ctx, `select doubt_policy($1, $2, 1)`, q.User.ID, first.Name).Scan(&way.InDoubt); err != nil {
				return err
			}
		}
		way.Route, way.Ways = d.Route, wayViews(d, breakers, budgets)
		if i := slices.IndexFunc(way.Ways, wayView.usable); i >= 0 {
			way.Via = way.Ways[i].Via
		}
		e.Routes = append(e.Routes, way)
		named := func(w route.Way) bool { return w.Name == way.Via }
		if i := slices.IndexFunc(d.Ways, named); i >= 0 && !slices.ContainsFunc(ways, named) {
			ways = append(ways, d.Ways[i])
		}
	}
	return e.received(ctx, r, q, ways)
}

// Print prints the explanation for people.
func (e *Message) Print(to io.Writer) error {
	t := screen.Table{Head: []string{"STEP", "", "RULE", "REPLY"}, Wraps: true}
	for _, s := range e.Steps {
		verdict := "ok"
		if !s.Allowed {
			verdict = "refused"
		}
		t.Add(s.Step, verdict, s.Rule, s.Reply)
	}
	if err := t.Print(to); err != nil {
		return err
	}
	if len(e.Limits) > 0 {
		fmt.Fprintln(to)
		if err := PrintLimits(to, e.Limits); err != nil {
			return err
		}
	}
	t = screen.Table{Head: []string{"RECIPIENT", "ROUTE", "VIA"}, Wraps: true}
	for _, w := range e.Routes {
		number := "-"
		if w.Route != 0 {
			number = strconv.FormatInt(w.Route, 10)
		}
		via := w.Trouble
		if via == "" || len(w.Ways) > 1 {
			via = waysText(w.Ways)
		}
		if w.InDoubt != "" && w.InDoubt != auth.DoubtPolicies()[0] {
			via += "; in doubt: " + w.InDoubt
		}
		t.Add(w.Recipient, number, via)
	}
	fmt.Fprintln(to)
	if err := t.Print(to); err != nil {
		return err
	}
	if err := e.printHosts(to); err != nil {
		return err
	}
	if err := e.printReceivers(to); err != nil {
		return err
	}
	switch {
	case !e.Accepted:
		return nil
	case e.Hold != "":
		_, err := fmt.Fprintf(to, "\nThe message would be accepted, and held: %s\n", screen.Printable(e.Hold))
		return err
	}
	_, err := fmt.Fprintln(to, "\nThe message would be accepted.")
	return err
}
