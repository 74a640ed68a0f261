package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/relay/route"
)

var accountKinds = []kind{
	{"account.ok", statusOK, "There are users who can log in and send.", ""},
	{"account.none", statusWarning, "There is no user, so nobody can send mail.", "add one with 'postern user add'"},
	{"account.nobody", statusWarning, "No user can log in: all are disabled, or have no credential that works.",
		"see 'postern user list'; 'postern user enable', 'user passwd' and 'credential add' mend it"},
	{"account.no-login", statusWarning, "An enabled user has no credential that works.",
		"give one with 'postern user passwd' or 'credential add', or disable the user"},
	{"account.no-sender", statusWarning, "An enabled user may send as nobody: the name is no address, and there is no sender pattern.",
		"allow one with 'postern sender allow'"},
}

var routeKinds = []kind{
	{"route.ok", statusOK, "Mail has a way; 'postern route list' shows it.", ""},
	{"route.none", statusFailed, "There is no route, so accepted mail waits.", "add one with 'postern route add'"},
	{"route.no-default", statusWarning, "There is no default route, so mail that no rule matches waits.",
		"add one with 'postern route add --via', unless every sender and recipient has a rule"},
	{"route.gone", statusFailed, "A route names an upstream that is not there.", "remove the route, or add the upstream"},
	{"route.user-gone", statusWarning, "A route is for a user who is not there.", "remove it with 'postern route remove'"},
	{"route.unused", statusInfo, "No route names the upstream.", ""},
	{"route.sealed", statusFailed, "This node's key does not open the password of an upstream.",
		"copy the key of the node where the upstream was added, or add the upstream again here"},
}

// mailView is what the database says about who may send and where mail goes.
type mailView struct {
	users     []auth.User
	more      bool // there are more users than were read
	rules     []route.Rule
	accounts  []route.Account
	upstreams []route.Upstream // that can be used
	sealed    []string         // those that cannot
	keyErr    error
}

// Bounds of what is read.
const (
	mostUsers = 20_000
	usersPage = 1000
	viewTime  = 20 * time.Second
)

// view reads what several areas look at, once.
func (c *checkup) view(ctx context.Context) (*mailView, error) {
	return c.mail.get(ctx, func() (*mailView, error) {
		url, err := c.databaseURL(ctx)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, viewTime)
		defer cancel()
		conn, err := connect(ctx, url)
		if err != nil {
			return nil, err
		}
		err = requireSchema(ctx, conn)
		_ = conn.Close(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		pool, err := openPool(ctx, url, "check", 1, nil)
		if err != nil {
			return nil, err
		}
		defer pool.Close()
		return c.readView(ctx, pool)
	})
}

func (c *checkup) readView(ctx context.Context, pool *pgxpool.Pool) (*mailView, error) {
	v := &mailView{}
	var sealer *route.Sealer
	sealer, v.keyErr = c.app.presentSealer(c.cfg)
	store := route.NewStore(pool, sealer)
	var err error
	if v.rules, err = store.ListRoutes(ctx); err != nil {
		return nil, err
	}
	if v.accounts, err = store.ListUpstreams(ctx); err != nil {
		return nil, err
	}
	if v.upstreams, err = store.Upstreams(ctx); err != nil {
		return nil, err
	}
	bad, err := store.Unusable(ctx)
	if err != nil {
		return nil, err
	}
	v.sealed = slices.Sorted(maps.Keys(bad))
	users := auth.NewStore(pool)
	for after := ""; len(v.users) < mostUsers; {
		page, err := users.ListUsers(ctx, after, usersPage)
		if err != nil {
			return nil, err
		}
		v.users = append(v.users, page...)
		if len(page) < usersPage {
			return v, nil
		}
		after = page[len(page)-1].Name
	}
	v.more = true
	return v, nil
}

func (c *checkup) lookAtAccounts(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("accounts", "%v", err)
		return
	}
	var noLogin, noSender []string
	able := 0
	for _, u := range v.users {
		switch {
		case !u.Enabled:
			continue
		case u.Credentials == 0:
			noLogin = append(noLogin, u.Name)
		default:
			able++
		}
		if len(u.Senders) == 0 && !strings.Contains(u.Name, "@") {
			noSender = append(noSender, u.Name)
		}
	}
	switch {
	case len(v.users) == 0:
		r.add("account.none", "accounts", "no user")
	case able == 0 && !v.more:
		r.add("account.nobody", "accounts", "%d users, and none can log in", len(v.users))
	default:
		r.add("account.ok", "accounts", "%d of %d users can log in%s", able, len(v.users), moreThan(v.more))
	}
	if able > 0 && len(noLogin) > 0 {
		r.add("account.no-login", "accounts", "%s", few(noLogin))
	}
	if len(noSender) > 0 {
		r.add("account.no-sender", "accounts", "%s", few(noSender))
	}
}

func moreThan(more bool) string {
	if more {
		return "; others were not looked at"
	}
	return ""
}

func (c *checkup) lookAtRoutes(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("routes", "%v", err)
		return
	}
	if len(v.rules) == 0 {
		r.add("route.none", "routes", "none")
	} else if !slices.ContainsFunc(v.rules, isDefault) {
		r.add("route.no-default", "routes", "%d rules, none of them for all mail", len(v.rules))
	} else {
		r.add("route.ok", "routes", "%d rules", len(v.rules))
	}
	known, used := map[string]bool{}, map[string]bool{}
	for _, a := range v.accounts {
		known[a.Name] = true
	}
	for _, rule := range v.rules {
		for _, name := range rule.Upstreams {
			used[name] = true
			if !known[name] {
				r.add("route.gone", "routes", "route %d names %q", rule.ID, name)
			}
		}
		if rule.UserID != 0 && !v.more && !slices.ContainsFunc(v.users, func(u auth.User) bool { return u.ID == rule.UserID }) {
			r.add("route.user-gone", "routes", "route %d", rule.ID)
		}
	}
	for _, a := range v.accounts {
		if !used[a.Name] {
			r.add("route.unused", "routes", "upstream %s", a.Name)
		}
	}
	for _, name := range v.sealed {
		if v.keyErr != nil {
			r.add("route.sealed", "upstream "+name, "the password cannot be opened: %v", v.keyErr)
			continue
		}
		r.add("route.sealed", "upstream "+name, "the key %s does not open its password", c.app.secretKeyPath(c.cfg))
	}
}

func isDefault(r route.Rule) bool {
	return r.UserID == 0 && r.SenderDomain == "" && r.RecipientDomain == ""
}

// byMX says whether mail of a sender domain may go to the recipients' mail hosts; ""
// asks whether any mail may.
func (v *mailView) byMX(domain string) bool {
	return slices.ContainsFunc(v.rules, func(r route.Rule) bool {
		return r.MX() && (domain == "" || r.SenderDomain == "" || r.SenderDomain == domain)
	})
}
