package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
	"postern/policy/quota"
	"postern/relay/connect"
	"postern/relay/keyring"
	"postern/relay/seal"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
	"postern/relay/upstream/oauth"
)

var upstreamKinds = []kind{
	{"upstream.ok", health.OK, "", ""},
	{"upstream.lookup", health.Failed, "The upstream's name cannot be looked up.", "correct its --host with 'postern upstream set', or the resolver of this machine"},
	{"upstream.unreachable", health.Failed, "There is no connection to the upstream.", "check its host and port, and firewalls here and at the hosting company"},
	{"upstream.source", health.Failed, "This machine does not have the address from which it is to connect to the upstream, so its mail waits here.",
		"give the upstream another --source with 'postern upstream set', or this machine the address"},
	{"upstream.tls", health.Failed, "TLS with the upstream is not as configured, so no mail goes there.",
		"correct its --host, --ca-file or --tls with 'postern upstream set'"},
	{"upstream.account", health.Failed, "The upstream rejects the account.",
		"ask its operator; correct the account with 'postern upstream set'"},
	{"upstream.refuses", health.Failed, "The upstream refuses to talk to this server, or cannot be understood.",
		"ask its operator; it may not know this address"},
	{"upstream.self", health.Failed, "The upstream is this server itself, so mail would loop.", "correct its --host, or remove the route to it"},
	{"upstream.open", health.Failed, "The upstream's breaker is open: no node uses it, so its mail waits or takes another way.",
		"correct what its reply names, at the provider or with 'postern upstream set'; then 'postern upstream resume' has it probed"},
	{"upstream.clear", health.Warning, "Mail goes to the upstream without verified TLS, so others on the way may read or intercept it; on loopback that is ok.",
		"set --tls require or implicit with 'postern upstream set'"},
	{"upstream.token", health.Failed, "The upstream's account gets no access token, so its mail waits.", "see docs/oauth.md for what the authority said"},
	{"upstream.login", health.Failed, "A person has to log in for the upstream's account, so its mail waits.", "run 'postern upstream login' with the upstream's name"},
	{"upstream.renewal", health.Warning, "The authority gives no new access token; mail waits when the present one has expired.", "see docs/oauth.md for what the authority said"},
	{"upstream.secret", health.Warning, "The secret of the upstream's account expires within 30 days; then mail waits.",
		"make a new one at the provider, and give it to 'postern upstream set' with its --secret-expires"},
	{"upstream.secret-expired", health.Failed, "The secret of the upstream's account has expired.",
		"make a new one at the provider, and give it to 'postern upstream set' with its --secret-expires"},
	{"upstream.budget", health.Warning, "The upstream's budget is spent, and mail waits for its turn.",
		"raise it with 'postern upstream set NAME --budget' if the provider allows more, or limit the users with 'postern limit set'"},
	{"upstream.reckoned", health.Failed, "The upstream's budget cannot be computed, so its mail waits.",
		"set it again with 'postern upstream set NAME --budget'; the database may no longer know its time zone, or a newer Postern has set it"},
	{"upstream.sessions", health.Warning, "The upstream's budget has fewer sessions than there are nodes, so some have none.",
		"raise it with 'postern upstream set NAME --budget' if the provider allows more, or deliver from fewer nodes"},
	{"upstream.busy", health.Skipped, "All sessions that the upstream's budget allows are in use, so it was not tried.", "check again when less mail goes out"},
	{"upstream.expiring", health.Warning, "The upstream's certificate expires in a few days; then mail waits.", "tell its operator"},
}

// upstreamTime bounds the conversation with one upstream or mail host.
const upstreamTime = 20 * time.Second

// Dialling is how to converse as this machine's deliveries do, but to wait for no step longer than
// patience.
func Dialling(from config.Source, patience time.Duration) (cfg connect.Config, err error) {
	c := newCheckup(from, nil, Options{})
	if c.bad != nil {
		return cfg, c.bad
	}
	return c.dialling(patience), nil
}

// dialling is how to converse as this node's deliveries do, but with less patience.
func (c *checkup) dialling(patience time.Duration) connect.Config {
	hostname, _ := c.cfg.ServerName()
	d := c.cfg.Delivery
	return connect.Config{
		DNS: c.dns, Hello: hostname, Origin: d.Origin(), Self: c.listenerAddresses(),
		ConnectTime: patience, LookupTime: patience,
		Timeouts: smtp.Timeouts{Greeting: patience, Command: patience, TLS: patience},
		MXPort:   d.MXPort, AllowPrivateMX: d.AllowPrivateMX,
	}
}

// Sharing is what a command shares with the nodes while it converses with upstreams.
type Sharing struct {
	Pool     *pgxpool.Pool
	Sealer   *seal.Sealer  // nil: there is no key
	Command  string        // in words, for the others
	Most     time.Duration // that it may take
	Patience time.Duration // with which it waits for a session
}

// Share has cfg get access tokens and sessions for upstreams as the nodes do, until end.
func (s Sharing) Share(ctx context.Context, cfg *connect.Config, from *config.OAuth, upstreams []upstream.Account) (end func(), err error) {
	end = func() {}
	if slices.ContainsFunc(upstreams, func(a upstream.Account) bool { return a.Grant.Kind != "" }) {
		by, err := from.Config()
		if err == nil && s.Sealer != nil {
			err = keyring.Follow(ctx, s.Pool, s.Sealer)
		}
		if err != nil {
			return nil, err
		}
		by.DB, by.Sealer, by.Node = s.Pool, s.Sealer, s.Command
		tokens := oauth.New(by)
		cfg.Tokens = tokens
		end = func() { _ = tokens.Close(context.WithoutCancel(ctx)) } // what it asked for is for the nodes as well
	}
	if slices.ContainsFunc(upstreams, func(a upstream.Account) bool { return a.Budget != "" }) {
		sessions, leave, err := budget.Visit(ctx, s.Pool, 2*s.Most, s.Patience)
		if err != nil {
			end()
			return nil, err
		}
		cfg.Sessions = sessions
		tokens := end
		end = func() { leave(); tokens() }
	}
	return end, nil
}

// share is Share for a check, over connections of its own.
func (c *checkup) share(ctx context.Context, cfg *connect.Config, upstreams []upstream.Account) (end func(), err error) {
	if !slices.ContainsFunc(upstreams, func(a upstream.Account) bool { return a.Grant.Kind != "" || a.Budget != "" }) {
		return func() {}, nil
	}
	url, err := c.databaseURL(ctx)
	if err != nil {
		return nil, err
	}
	sealer, err := c.source.PresentSealer(c.cfg)
	if err != nil {
		return nil, err
	}
	pool, err := c.dialer.OpenPool(ctx, url, "check", 1, database.PrepareNothing)
	if err != nil {
		return nil, err
	}
	all := Sharing{pool, sealer, "postern check", upstreamTime, upstreamTime / 4}
	shared, err := all.Share(ctx, cfg, &c.cfg.OAuth, upstreams)
	if err != nil {
		pool.Close()
		return nil, err
	}
	return func() { shared(); pool.Close() }, nil
}

// upstreamSecret looks at what the upstream's account is proved by.
func (c *checkup) upstreamSecret(r *report, s *upstream.Secret) {
	subject := "upstream " + s.Upstream
	if t := s.Token; !t.FailingSince.IsZero() && t.ExpiresAt.After(c.now()) {
		r.add("upstream.renewal", subject, "no new token since %s, and the present one expires at %s: %s", screen.LocalTime(t.FailingSince), screen.LocalTime(t.ExpiresAt), t.LastError)
	}
	if s.Expires.IsZero() {
		return
	}
	switch left := s.DaysLeft(c.now()); {
	case left < 0:
		r.add("upstream.secret-expired", subject, "the last day of its secret was %s", s.Expires.Format(time.DateOnly))
	case left <= 30:
		r.add("upstream.secret", subject, "the last day of its secret is %s, in %s", s.Expires.Format(time.DateOnly), screen.Count(left, "day"))
	}
}

// upstreamBudget looks at what is used of a budget.
func (c *checkup) upstreamBudget(r *report, u *budget.Usage) {
	subject := "upstream " + u.Upstream
	if u.Err != nil {
		r.add("upstream.reckoned", subject, "%v", u.Err)
	}
	for _, l := range u.Limits {
		if l.Kind == quota.Sessions && l.Max < int64(u.Nodes) {
			r.add("upstream.sessions", subject, "%s for %s", l.Text, screen.Count(u.Nodes, "node"))
		}
	}
	if u.Waiting > 0 {
		r.add("upstream.budget", subject, "%s waiting, the last until %s: %s", screen.Count(u.Waiting, "recipient"), screen.Moment(u.LastTurn), u.Headroom())
	}
}

// listenerAddresses are those of the configuration that say an address.
func (c *checkup) listenerAddresses() (list []netip.AddrPort) {
	for _, l := range c.cfg.Listeners {
		host, port, err := net.SplitHostPort(l.Address)
		if err != nil {
			continue
		}
		if host == "" {
			host = "0.0.0.0"
		}
		if at, err := netip.ParseAddrPort(net.JoinHostPort(host, port)); err == nil && at.Port() != 0 {
			list = append(list, at)
		}
	}
	return list
}

func (c *checkup) lookAtUpstreams(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("upstreams", "%v", err)
		return
	}
	for i := range v.secrets {
		c.upstreamSecret(r, &v.secrets[i])
	}
	for i := range v.breakers {
		if b := &v.breakers[i]; b.Open {
			r.add("upstream.open", "upstream "+b.Upstream, "breaker open since %s, by node %s: %s; next probe at %s",
				screen.LocalTime(b.Since), b.Node, b.Why(), screen.LocalTime(b.NextProbe))
		}
	}
	for i := range v.budgets {
		c.upstreamBudget(r, &v.budgets[i])
	}
	if c.running { // its breakers know
		return
	}
	cfg := c.dialling(upstreamTime / 2)
	end, err := c.share(ctx, &cfg, v.upstreams)
	if err != nil {
		r.skip("upstreams", "%v", err)
		return
	}
	defer end()
	prober := connect.NewProber(cfg)
	r.each(ctx, len(v.upstreams), func(ctx context.Context, i int, r *report) {
		ctx, cancel := context.WithTimeout(ctx, upstreamTime)
		defer cancel()
		up := v.upstreams[i]
		c.upstream(r, up, prober.Upstream(ctx, &up, connect.Trial{}))
	})
}

func (c *checkup) upstream(r *report, up upstream.Account, p connect.Probe) {
	subject := "upstream " + up.Name
	at := net.JoinHostPort(up.Host, strconv.Itoa(up.Port))
	if p.Err != nil {
		id := "upstream.refuses"
		switch p.Stage {
		case connect.StageBudget:
			id = "upstream.busy"
		case connect.StageLookup:
			id = "upstream.lookup"
		case connect.StageLoop:
			id = "upstream.self"
		case smtp.StageConnect:
			id = "upstream.unreachable"
			if source := (*connect.SourceError)(nil); errors.As(p.Err, &source) {
				id = "upstream.source"
			}
		case smtp.StageTLS:
			id = "upstream.tls"
		case smtp.StageAuth:
			id = "upstream.account"
		case connect.StageToken:
			id = "upstream.token"
			if fault := (*oauth.Fault)(nil); errors.As(p.Err, &fault) && fault.Login {
				id = "upstream.login"
			}
		}
		f := health.Kind(kinds()[id]).Found(subject, "%s: %v", at, p.Err)
		if hint := Hint(&up, p.Step); !strings.Contains(f.Text, hint) {
			f.Todo = hint
		}
		r.take(f)
		return
	}
	account := "without an account"
	if up.Username != "" {
		account = "it accepts the account " + up.Username
	}
	r.add("upstream.ok", subject, "%s (%s) answers, %s, %s", at, p.Addr.Addr(), orClear(p.TLS), account)
	if !up.Verified() && !p.Addr.Addr().IsLoopback() {
		r.add("upstream.clear", subject, "--tls %s", up.TLS)
	}
	if left := p.Expires.Sub(c.now()); up.Verified() && up.TLSPins == "" && left < 7*24*time.Hour {
		r.add("upstream.expiring", subject, "its certificate expires at %s", screen.LocalTime(p.Expires))
	}
}

func orClear(tls string) string {
	if tls == "" {
		return "in clear"
	}
	return tls
}
