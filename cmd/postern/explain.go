package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/policy"
	"postern/policy/quota"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/smtp"
	"postern/relay/submission"
	"postern/relay/upstream"
)

// question is a message that somebody might send.
type question struct {
	user       string
	credential int64 // 0: none in particular
	from       smtp.Address
	headerFrom smtp.Address   // null: from
	resentFrom smtp.Address   // null: it is not resent
	to         []smtp.Address // each but once
	size       int64
}

// explanation says what would become of it now.
type explanation struct {
	Accepted bool          `json:"accepted"`
	Reply    string        `json:"reply,omitempty"` // that would refuse it
	Steps    []explainStep `json:"steps"`
	Limits   []limitView   `json:"limits"` // that are used up by and by, and their use without this message
	Hold     string        `json:"hold,omitempty"`
	Routes   []explainWay  `json:"routes"`
	Open     breakerViews  `json:"open,omitempty"` // upstreams of the routes that all nodes leave alone
}

type explainStep struct {
	Step    string `json:"step"`
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule"`
	Reply   string `json:"reply,omitempty"`
}

// explainWay is where a recipient's mail goes.
type explainWay struct {
	Recipient string `json:"recipient"`
	Route     int64  `json:"route,omitempty"`
	Via       string `json:"via,omitempty"`     // an upstream, or mx
	Trouble   string `json:"trouble,omitempty"` // why there is no way, or none that can be told here
}

func (a *app) explainCmd() *cobra.Command {
	var (
		user, credential, from, octets string
		headerFrom, resentFrom         string
		to                             []string
		asJSON                         bool
	)
	cmd := &cobra.Command{
		Use:   "explain --user U --from A --to B",
		Short: "show whether a message would be accepted, why, and where it would go",
		Long: `Shows how the server would treat a message if it came now: whether the user may log in
and send as that address, what is left of each limit, whether the message would be held,
and its route. Nothing is sent and nothing is counted. The exit status is 0 when the message
would be accepted and 1 when it would not.

The header's From field is --from unless --header-from names another address;
--resent-from asks about redirected mail. '<>' is the null sender of bounces. With
--credential the limits of that credential count too. The server's own limits are those
of the configuration on this machine.`,
		Example: `  postern explain --user alice@example.com --from sales@example.com --to bob@example.net
  postern explain --user app@example.com --credential 12 --from app@example.com --to bob@example.net --size 30MB`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := parseQuestion(user, credential, from, octets, to)
			if err != nil {
				return err
			}
			if err := q.header(headerFrom, resentFrom); err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				e, err := a.explain(ctx, users, q)
				if err != nil {
					return err
				}
				if asJSON {
					err = printJSON(a.stdout, e)
				} else {
					err = a.printExplanation(e)
				}
				if err == nil && !e.Accepted {
					err = errors.New("the message would be refused")
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&user, "user", "", "`name` of the user who sends")
	f.StringVar(&credential, "credential", "", "`ID` of the credential used to log in")
	f.StringVar(&from, "from", "", "`address` of the sender")
	f.StringVar(&headerFrom, "header-from", "", "`address` in the From field, when it is not --from")
	f.StringVar(&resentFrom, "resent-from", "", "`address` in the Resent-From field of a redirected message")
	f.StringArrayVar(&to, "to", nil, "`address` of a recipient; may be repeated")
	f.StringVar(&octets, "size", "10KB", "`size` of the message")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	for _, name := range []string{"user", "from", "to"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

func parseQuestion(user, credential, from, octets string, to []string) (q question, err error) {
	if q.user, err = auth.CanonicalName(user); err != nil {
		return q, usageError{err.Error()}
	}
	if credential != "" {
		if q.credential, err = parseCredential(credential); err != nil {
			return q, err
		}
	}
	if from != "<>" {
		if q.from, err = smtp.ParseAddress(from); err != nil {
			return q, usagef("--from: %q is not an address: %v", from, err)
		}
	}
	known := map[smtp.Address]bool{}
	for _, s := range to {
		address, err := smtp.ParseRecipient(s)
		if err != nil {
			return q, usagef("--to: %q is not an address: %v", s, err)
		}
		if key := (smtp.Address{Local: address.Local, Domain: address.DomainKey()}); !known[key] {
			known[key], q.to = true, append(q.to, address)
		}
	}
	n, err := config.ParseSize(octets)
	if err != nil {
		return q, usagef("--size: %v", err)
	}
	q.size = int64(n)
	return q, nil
}

// header takes over the addresses in the fields of the header, "" for none.
func (q *question) header(from, resentFrom string) error {
	for _, f := range []struct {
		flag, text string
		to         *smtp.Address
	}{{"header-from", from, &q.headerFrom}, {"resent-from", resentFrom, &q.resentFrom}} {
		if f.text == "" {
			continue
		}
		var err error
		if *f.to, err = smtp.ParseAddress(f.text); err != nil {
			return usagef("--%s: %q is not an address: %v", f.flag, f.text, err)
		}
	}
	return nil
}

// identity is whose the header would say that the message is; nobody's for a bounce.
func (q question) identity() (h policy.HeaderIdentity) {
	if from := cmp.Or(q.headerFrom, q.from); !from.IsNull() {
		h.From = []smtp.Address{from}
	}
	if !q.resentFrom.IsNull() {
		h.ResentFrom = []smtp.Address{q.resentFrom}
		h.Redirector = h.ResentFrom
	}
	return h
}

// explain asks, in the order of a session, everything that judges a message.
func (a *app) explain(ctx context.Context, users *accounts, q question) (*explanation, error) {
	cfg, _, err := a.source.Load()
	if err != nil {
		return nil, err
	}
	u, err := users.User(ctx, q.user)
	if err != nil {
		return nil, err
	}
	e := &explanation{Limits: []limitView{}, Routes: []explainWay{}}
	if err := e.login(ctx, users, u, q.credential); err != nil {
		return nil, err
	}
	id, err := users.Identity(ctx, u.ID, q.credential)
	if err != nil {
		return nil, err
	}
	id.CredentialID = q.credential // of one that does not work any more too
	used, err := quota.ReadUsage(ctx, users.pool, id.Limits)
	if err != nil {
		return nil, err
	}
	if v := policy.OneMore(id, used); v.Rule != "" {
		e.step("sessions", v)
	}
	e.envelope(id, q, cfg.Submission)
	if err := e.limits(ctx, users, id, q, used); err != nil {
		return nil, err
	}
	if err := e.holds(ctx, users, id); err != nil {
		return nil, err
	}
	e.Accepted = e.Reply == ""
	return e, a.explainWays(ctx, users, cfg, e, id, q)
}

func (e *explanation) step(name string, v policy.Verdict) {
	s := explainStep{Step: name, Allowed: v.Allowed, Rule: v.Rule}
	if !v.Allowed {
		s.Reply = v.Reply.String()
		if e.Reply == "" {
			e.Reply = s.Reply
		}
	}
	e.Steps = append(e.Steps, s)
}

// login says whether the user could log in with the right secret.
func (e *explanation) login(ctx context.Context, users *accounts, u auth.User, credential int64) error {
	rule := ""
	switch {
	case !u.Enabled:
		rule = "user " + userState(u.Enabled, u.DisabledReason)
	case credential == 0 && u.Credentials == 0:
		rule = "the user has no credential that works"
	case credential != 0:
		c, err := users.Credential(ctx, credential)
		if err != nil {
			return err
		}
		if c.UserID != u.ID {
			return usagef("credential %d is of %s, not of %s", c.ID, c.User, u.Name)
		}
		if state := credentialState(c, time.Now()); state != "active" {
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

// envelope asks the policy what a session asks it.
func (e *explanation) envelope(id auth.Identity, q question, server config.Submission) {
	e.step("size", policy.Size(id, q.size, int64(server.MessageSize)))
	e.step("MAIL FROM", policy.Sender(id, q.from))
	e.step("RCPT TO", policy.Recipients(id, len(q.to), server.Recipients))
	if h := q.identity(); len(h.From)+len(h.ResentFrom) > 0 {
		e.step("header", policy.Header(id, h))
	}
}

// limits asks the queue whether the message fits.
func (e *explanation) limits(ctx context.Context, users *accounts, id auth.Identity, q question, used quota.Usage) error {
	for _, v := range limitViews(id.Limits, used) {
		if v.Used != nil {
			e.Limits = append(e.Limits, v)
		}
	}
	windows := quota.Windows(id.Limits)
	over, err := quota.Try(ctx, users.pool, quota.Charge{Limits: windows, Recipients: len(q.to), Size: q.size})
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

func (e *explanation) holds(ctx context.Context, users *accounts, id auth.Identity) error {
	holds, err := holdsOf(ctx, users.queue(), id.UserID)
	i := slices.IndexFunc(holds, func(h queue.UserHold) bool { return h.CredentialID == 0 || h.CredentialID == id.CredentialID })
	if err == nil && i >= 0 {
		e.Hold = screen.OrDash(holds[i].Reason)
	}
	return err
}

func (a *app) explainWays(ctx context.Context, users *accounts, cfg config.Config, e *explanation, id auth.Identity, q question) error {
	sealer, err := a.source.PresentSealer(cfg)
	if err != nil {
		return err
	}
	breakers, err := readBreakers(ctx, users.pool)
	if err != nil {
		return err
	}
	routes := route.NewTable(route.NewStore(users.pool), upstream.NewStore(users.pool, sealer), time.Minute)
	for _, to := range q.to {
		way := explainWay{Recipient: to.String()}
		d, err := routes.Resolve(ctx, id.UserID, q.from, to)
		var first route.Way
		if err == nil {
			first, err = d.First()
		}
		switch {
		case errors.Is(err, upstream.ErrNoKey): // an error of the key itself has ended this before
			way.Trouble = "this machine has no key that opens the upstream's password"
		case errors.Is(err, seal.ErrSeal):
			way.Trouble = "the key of this machine does not open the upstream's password: " + err.Error()
		case err != nil:
			way.Trouble = "it would wait: " + err.Error()
		default:
			way.Via = first.Name
		}
		way.Route = d.Route
		for _, w := range d.Ways {
			if b := breakers.of(w.Name); b.open() && e.Open.of(w.Name) == nil {
				e.Open = append(e.Open, *b)
			}
		}
		e.Routes = append(e.Routes, way)
	}
	return nil
}

func (a *app) printExplanation(e *explanation) error {
	t := table{head: []string{"STEP", "", "RULE", "REPLY"}}
	for _, s := range e.Steps {
		verdict := "ok"
		if !s.Allowed {
			verdict = "refused"
		}
		t.add(s.Step, verdict, s.Rule, s.Reply)
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if len(e.Limits) > 0 {
		fmt.Fprintln(a.stdout)
		if err := a.printLimits(e.Limits); err != nil {
			return err
		}
	}
	t = table{head: []string{"RECIPIENT", "ROUTE", "VIA"}}
	for _, w := range e.Routes {
		number := "-"
		if w.Route != 0 {
			number = strconv.FormatInt(w.Route, 10)
		}
		via := w.Via
		if w.Trouble != "" {
			via = w.Trouble
		}
		t.add(w.Recipient, number, via)
	}
	fmt.Fprintln(a.stdout)
	if err := t.print(a.stdout); err != nil {
		return err
	}
	e.Open.printOpen(a)
	switch {
	case !e.Accepted:
		return nil
	case e.Hold != "":
		_, err := fmt.Fprintf(a.stdout, "\nIt would be accepted, and held: %s\n", screen.Printable(e.Hold))
		return err
	}
	_, err := fmt.Fprintln(a.stdout, "\nIt would be accepted.")
	return err
}
