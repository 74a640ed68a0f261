package node

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/await"
	"postern/relay/bounce"
	"postern/relay/connect"
	"postern/relay/delivery"
	"postern/relay/dkim"
	"postern/relay/resolver"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/transport"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
	"postern/relay/upstream/oauth"
	"postern/relay/webhook"
)

// back is the half of a node that sends mail on, and notices about what cannot be sent.
type back struct {
	node     *Node
	engine   *delivery.Engine
	bouncer  *bounce.Bouncer
	dns      *resolver.Resolver
	tokens   *oauth.Tokens
	policies *transport.Finder
	breakers *breaker.Breakers
	budgets  *budget.Budgets
	secrets  readings[upstream.Secret]
	used     readings[budget.Usage]
	hooks    *webhook.Sender
	hookList readings[webhook.Webhook]

	stopNotices, stopBudgets context.CancelFunc
	notices, spending        sync.WaitGroup
}

// newBack makes the engine. It sends nothing to own, where this node listens itself.
func newBack(ctx context.Context, n *Node, own []netip.AddrPort) (*back, error) {
	sealer := n.keys.sealer
	if n.keys.err != nil && sealer == nil {
		// Only upstreams with a password need it; theirs is the mail that waits.
		n.Log.Warn("upstream passwords cannot be opened; repair the key and restart", "error", n.keys.err)
	}
	pool, err := n.pool(ctx, "routes", 1, nil)
	if err != nil {
		return nil, err
	}
	rules, accounts := route.NewStore(pool), upstream.NewStore(pool, sealer)
	if err := n.lookAtRoutes(ctx, rules); err != nil {
		return nil, err
	}
	d := n.Config.Delivery
	dns, err := n.resolver()
	if err != nil {
		return nil, err
	}
	tokens, err := n.tokens(pool, sealer)
	if err != nil {
		return nil, err
	}
	cfg := delivery.Config{
		Queue: n.queue, Routes: route.NewTable(rules, accounts, 0), Log: n.Log, Guard: n.guard, Events: n.mail,
		Connect: connect.Config{
			Tokens: tokens, DNS: dns, Hello: n.hostname, Origin: d.Origin(), Self: own,
			MXPort: d.MXPort, AllowPrivateMX: d.AllowPrivateMX,
		},
		Connections: d.Connections, MXConnections: d.MXConnections, Nodes: n.queue.Nodes, PerConnection: d.MessagesPerConn,
		PerTransaction: d.RecipientsPerTransaction, MaxOpen: n.descriptors().Deliveries, IdleTime: time.Duration(d.IdleTime), Memory: int64(d.Memory),
		RecordWays: n.Config.Queue.Gate == "strict", DKIM: dkim.Mode(d.DKIM), Keys: n.signing.ring,
	}
	hooks, hookPool, err := n.webhooks(ctx)
	if err != nil {
		return nil, err
	}
	policies := transport.New(transport.Config{DB: pool, DNS: dns, Fetch: cfg.Connect.Fetcher(), Node: n.name, Log: n.Log, Guard: n.guard})
	cfg.Connect.Policies = policies
	budgets := budget.New(budget.Config{DB: pool, Epoch: n.queue.Epoch, Log: n.Log})
	cfg.Budgets = budgets
	probing := cfg.Connect
	probing.Sessions = budgets
	breakers := n.breakers(pool, accounts, connect.NewProber(probing))
	cfg.Breakers = breakers
	return &back{
		node: n, dns: dns, tokens: tokens, policies: policies, breakers: breakers, budgets: budgets,
		secrets: readings[upstream.Secret]{node: n, what: "secrets of upstreams", every: time.Minute, read: (&secrets{node: n, store: accounts}).look},
		used:    readings[budget.Usage]{node: n, what: "budgets of upstreams", every: 10 * time.Second, read: accounts.Budgets},
		hooks:   hooks,
		hookList: readings[webhook.Webhook]{node: n, what: "webhooks", every: 10 * time.Second, read: func(ctx context.Context) ([]webhook.Webhook, error) {
			return (&webhook.Store{DB: hookPool}).List(ctx, "")
		}},
		engine:  delivery.New(cfg),
		bouncer: bounce.New(bounce.Config{Queue: n.queue, Hostname: n.hostname, Mail: n.mail, Log: n.Log, Keys: n.signing.ring}),
	}, nil
}

// tokens makes what gets the access tokens of upstream accounts.
func (n *Node) tokens(pool *pgxpool.Pool, sealer *seal.Sealer) (*oauth.Tokens, error) {
	cfg, err := n.Config.OAuth.Config()
	if err != nil {
		return nil, err
	}
	cfg.DB, cfg.Sealer, cfg.Node, cfg.Log, cfg.Guard = pool, sealer, n.name, n.Log, n.guard
	return oauth.New(cfg), nil
}

// breakers makes those of the upstreams, which are probed as mail is delivered.
func (n *Node) breakers(pool *pgxpool.Pool, accounts *upstream.Store, prober *connect.Prober) *breaker.Breakers {
	return breaker.New(breaker.Config{
		DB: pool, Node: n.name, Log: n.Log, Guard: n.guard, Backoff: delivery.Defaults().Backoff,
		Probe: func(ctx context.Context, name, sender string) (*breaker.Cause, error) {
			up, err := accounts.Open(ctx, name)
			if err != nil {
				return nil, err
			}
			return prober.Through(ctx, &up, sender)
		},
	})
}

// lookAtRoutes says at the start what will keep mail waiting.
func (n *Node) lookAtRoutes(ctx context.Context, rules *route.Store) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	list, err := rules.List(ctx)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		n.Log.Warn("no route: mail waits until one is added with 'postern route add'")
	}
	return nil
}

func (b *back) start() {
	spending, stop := context.WithCancel(context.Background())
	b.stopBudgets = stop
	b.spending.Go(func() { b.node.guard.Keep(spending, "budgets of upstreams", func() { b.budgets.Run(spending) }) })
	b.engine.Start()
	ctx, stop := context.WithCancel(context.Background())
	b.stopNotices = stop
	b.notices.Go(func() { b.node.guard.Keep(ctx, "notices", func() { b.bouncer.Run(ctx) }) })
	b.notices.Go(func() { b.node.guard.Keep(ctx, "breakers", func() { b.breakers.Run(ctx, b.engine) }) })
	b.notices.Go(func() { b.node.guard.Keep(ctx, "proofs of DNSSEC", func() { b.dns.Watch(ctx) }) })
	b.notices.Go(func() { b.node.guard.Keep(ctx, "secrets of upstreams", func() { b.secrets.run(ctx) }) })
	b.notices.Go(func() { b.node.guard.Keep(ctx, "transport policies", func() { b.policies.Run(ctx) }) })
	b.notices.Go(func() { b.node.guard.Keep(ctx, "webhooks", func() { b.hooks.Run(ctx) }) })
	if b.node.metrics != nil {
		b.notices.Go(func() { b.node.guard.Keep(ctx, "states of webhooks", func() { b.hookList.run(ctx) }) })
		b.notices.Go(func() { b.node.guard.Keep(ctx, "use of budgets", func() { b.used.run(ctx) }) })
	}
}

// rebound takes over what a reload can change of the delivery.
func (b *back) rebound() {
	d := b.node.Config.Delivery
	b.engine.Rebound(delivery.Bounds{
		Connections: d.Connections, MXConnections: d.MXConnections, PerConnection: d.MessagesPerConn,
		PerTransaction: d.RecipientsPerTransaction, IdleTime: time.Duration(d.IdleTime), Memory: int64(d.Memory), DKIM: dkim.Mode(d.DKIM),
	})
}

func (b *back) endNotices(ctx context.Context) error {
	b.stopNotices()
	return await.All(ctx, b.notices.Wait)
}

// endDelivery ends the conversations, and then waits for tokens that were asked for: what an
// authority gives may be the last refresh token. The rest of the budgets is given back.
func (b *back) endDelivery(ctx context.Context) error {
	err := b.engine.Shutdown(ctx)
	b.stopBudgets()
	return errors.Join(err, b.tokens.Close(ctx), b.policies.Close(ctx), await.All(ctx, b.spending.Wait))
}
