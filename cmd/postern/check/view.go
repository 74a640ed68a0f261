package check

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/cmd/postern/database"
	"postern/relay/acme"
	"postern/relay/dkim/keys"
	"postern/relay/keyring"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/transport"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
)

// mailView is what the database says about who may send and where mail goes.
type mailView struct {
	users     []auth.User
	more      bool // there are more users than were read
	rules     []route.Rule
	accounts  []upstream.Listed
	upstreams []upstream.Account // that can be used
	secrets   []upstream.Secret
	breakers  breaker.States
	budgets   []budget.Usage
	dkim      []keys.Key
	keys      *keyring.View
	keyErr    error // of the key file; then keys has what it has not opened
	overrides []transport.Override
	ending    []transport.Kept // cannot be renewed
	// certificates is what nodes have told of those by ACME
	certificates []acme.Record
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
		conn, err := c.dialer.Connect(ctx, url)
		if err != nil {
			return nil, err
		}
		err = database.RequireSchema(ctx, conn)
		_ = conn.Close(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		pool, err := c.dialer.OpenPool(ctx, url, "check", 1, database.PrepareNothing)
		if err != nil {
			return nil, err
		}
		defer pool.Close()
		return c.readView(ctx, pool)
	})
}

func (c *checkup) readView(ctx context.Context, pool *pgxpool.Pool) (*mailView, error) {
	v := &mailView{}
	var sealer *seal.Sealer
	sealer, v.keyErr = c.source.PresentSealer(c.cfg)
	accounts := upstream.NewStore(pool, sealer)
	var err error
	if v.rules, err = route.NewStore(pool).List(ctx); err != nil {
		return nil, err
	}
	if v.accounts, err = accounts.List(ctx); err != nil {
		return nil, err
	}
	if v.upstreams, _, err = accounts.Usable(ctx); err != nil {
		return nil, err
	}
	if v.secrets, err = accounts.Secrets(ctx, v.upstreams); err != nil {
		return nil, err
	}
	if v.breakers, err = breaker.List(ctx, pool); err != nil {
		return nil, err
	}
	if v.budgets, err = accounts.Budgets(ctx); err != nil {
		return nil, err
	}
	if v.dkim, err = keys.List(ctx, pool, ""); err != nil {
		return nil, err
	}
	if v.overrides, err = transport.Overrides(ctx, pool, "", mostPolicies+1); err != nil {
		return nil, err
	}
	if v.ending, err = transport.Ending(ctx, pool, endsSoon, mostPolicies+1); err != nil {
		return nil, err
	}
	if v.certificates, err = acme.List(ctx, pool); err != nil {
		return nil, err
	}
	if sealer == nil {
		if sealer, err = seal.New(); err != nil {
			return nil, err
		}
	}
	if v.keys, err = keyring.Read(ctx, pool, sealer); err != nil {
		return nil, err
	}
	if c.running { // none of its areas asks for them
		return v, nil
	}
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

// byMX says whether mail of a sender domain may go to the recipients' mail hosts; ""
// asks whether any mail may.
func (v *mailView) byMX(domain string) bool { return slices.Contains(v.ways(domain), route.MX) }

// ways are those that mail of a sender domain may take, "" for any mail's.
func (v *mailView) ways(domain string) (list []string) {
	for _, r := range v.rules {
		if domain == "" || r.SenderDomain == "" || route.Within(domain, r.SenderDomain) {
			list = append(list, r.Via...)
		}
	}
	return list
}

// senderDomains are the domains that enabled users may send as, those of most users
// first. The names below a domain (*@*.b) cannot be known.
func (v *mailView) senderDomains() []string {
	count := map[string]int{}
	for _, u := range v.users {
		if !u.Enabled {
			continue
		}
		patterns := u.Senders
		if len(patterns) == 0 {
			patterns = []string{u.Name}
		}
		seen := map[string]bool{}
		for _, p := range patterns {
			_, domain, has := strings.Cut(p, "@")
			if has && !strings.HasPrefix(domain, "*") && !strings.HasPrefix(domain, "[") && !seen[domain] {
				seen[domain] = true
				count[domain]++
			}
		}
	}
	return slices.SortedFunc(maps.Keys(count), func(a, b string) int {
		return cmp.Or(count[b]-count[a], strings.Compare(a, b))
	})
}
