package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/migrations"
	"postern/relay/anomaly"
	"postern/relay/feed"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/queue/desk"
	"postern/relay/resolver"
	"postern/relay/retention"
	"postern/relay/submission"
)

// startTime bounds how long each thing may take that the start asks of the database.
const startTime = 30 * time.Second

// Setup is what a node is built from.
type Setup struct {
	Config   config.Config
	Source   config.Source // of the configuration, for a reload and the key
	URL      string        // of the database
	Only     string        // submission or delivery; "": both
	Version  string        // of the program
	Log      *slog.Logger
	Database *database.Connector
	Opened   map[string]net.Listener // what is listened on already, by address
}

// Node is one running relay: everything that serve wires together.
type Node struct {
	Setup
	guard    *panics.Guard
	cuts     string // what the limit of open files has taken
	mail     *maillog.Logger
	hostname string
	name     string

	shared bool // a pooler lends connections of the database by the transaction
	pools  []namedPool
	front  *front // accepts mail; nil with --only delivery
	back   *back  // sends it on; nil with --only submission

	keys        sealing
	signing     signing
	suppressing suppressing
	queue       *queue.Queue
	anomaly     *anomaly.Detector
	retention   *retention.Retention
	marker      *feed.Marker
	alerting    alerting

	metrics    *metrics // nil without an admin address, as the next
	admin      *adminPages
	supervisor *supervisor
}

// Build opens what the node needs, in the order in which a wrong set-up is
// easiest to explain, and starts nothing yet.
func Build(ctx context.Context, s Setup) (*Node, error) {
	n := &Node{Setup: s, guard: panics.New(s.Log), mail: maillog.New(s.Log),
		supervisor: newSupervisor(s.Source.Env["NOTIFY_SOCKET"], s.Log)}
	var err error
	if n.hostname, err = n.Config.ServerName(); err != nil {
		return nil, err
	}
	if n.name = n.Config.Node; n.name == "" {
		n.name = n.hostname
	}
	n.observe()
	if s.Only != "delivery" {
		if n.front, err = newFront(n); err != nil {
			return nil, err
		}
	}
	n.supervisor.status("waiting for the database")
	if err := n.checkDatabase(ctx); err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			n.close()
		}
	}()
	if err := n.listen(); err != nil {
		return nil, err
	}
	if err := n.buildQueue(ctx); err != nil {
		return nil, err
	}
	if s.Only != "submission" {
		if n.back, err = newBack(ctx, n, n.ownAddresses()); err != nil {
			return nil, err
		}
	}
	if n.front != nil {
		if err := n.front.build(ctx, n.back); err != nil {
			return nil, err
		}
	}
	if n.admin, err = n.buildAdmin(ctx); err != nil {
		return nil, err
	}
	ok = true
	return n, nil
}

// checkDatabase makes sure that the database answers, has this binary's schema and
// keeps what it commits. A private database is migrated on the way.
func (n *Node) checkDatabase(ctx context.Context) error {
	private := n.Config.Database.Private != ""
	conn, err := n.Database.Connect(ctx, n.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if private {
		if err := migrations.Apply(ctx, conn, func(line string) { n.Log.Info(line) }); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := database.RequireSchema(ctx, conn); err != nil {
		return err
	}
	if !private {
		if err := database.RequirePrivileges(ctx, conn); err != nil {
			return err
		}
		if err := n.checkPooler(ctx); err != nil {
			return err
		}
	}
	return n.warnDurability(ctx, conn)
}

// checkPooler refuses what would accept mail and get stuck with it.
func (n *Node) checkPooler(ctx context.Context) error {
	p, err := n.Database.LookForPooler(ctx, n.URL)
	if err != nil {
		return err
	}
	if n.shared = p.Shares; n.shared && n.Config.Queue.Notify {
		n.Log.Warn("a pooler lends database connections by transaction: notifications do not arrive, so the node polls")
	}
	return p.Refusal()
}

// notify says whether notifications of the database can be heard.
func (n *Node) notify() bool { return n.Config.Queue.Notify && !n.shared }

func (n *Node) warnDurability(ctx context.Context, conn *pgx.Conn) error {
	findings, err := desk.CheckServer(ctx, conn)
	if err != nil {
		return fmt.Errorf("read the database's settings: %w", err)
	}
	for _, f := range findings {
		n.Log.Error("the database may lose accepted mail", "setting", f.Setting, "value", f.Value, "advice", f.Advice)
	}
	return nil
}

// listen opens the front's listeners, or looks that none was handed over to a node without
// a front.
func (n *Node) listen() error {
	handed, err := takeSockets()
	if err != nil {
		return err
	}
	defer handed.close()
	if n.front != nil {
		if err := n.front.listen(handed); err != nil {
			return err
		}
	}
	return handed.left()
}

// pool opens a pool that the node closes at its end.
func (n *Node) pool(ctx context.Context, name string, maxConns int, change func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	p, err := n.Database.OpenPool(ctx, n.URL, name, maxConns, change)
	if err == nil {
		n.pools = append(n.pools, namedPool{name, p})
	}
	return p, err
}

// shares splits the pooled connections: checking passwords must go on while
// deliveries storm. The queue's commits and settles have connections of their own.
func (n *Node) shares() (work, login int) {
	all := n.descriptors().Database
	login = max(1, all/2)
	return max(1, all-login), login
}

// moved lets go of the connections that were begun before another database server
// answered: nothing comes over them any more.
func (n *Node) moved(before time.Time) {
	for _, p := range n.pools {
		p.Reset()
	}
	n.Database.Abandon(before)
}

// diskFree asks the disk of a private database, nil for others: a path that another server
// names may be another one here.
func (n *Node) diskFree() func() (int64, error) {
	dir := n.Config.Database.Private
	if dir == "" {
		return nil
	}
	return func() (int64, error) { return health.FreeSpace(dir) }
}

func (n *Node) buildQueue(ctx context.Context) error {
	work, _ := n.shares()
	enqueuePool, err := n.pool(ctx, "enqueue", 1, pg.WithoutCancel)
	if err != nil {
		return err
	}
	workPool, err := n.pool(ctx, "work", work, nil)
	if err != nil {
		return err
	}
	if err := n.buildSuppression(ctx); err != nil {
		return err
	}
	q := n.Config.Queue
	suspect := func(err error) bool { return n.queue.Suspect(err) }
	n.anomaly = anomaly.New(anomaly.Config{Pool: workPool, Log: n.Log, Guard: n.guard, Trouble: suspect})
	n.retention = retention.New(retention.Config{
		Pool: workPool, Log: n.Log, Guard: n.guard, Trouble: suspect,
		History: time.Duration(q.History), Correspondents: time.Duration(n.Config.Retention.Correspondents),
	})
	n.marker = feed.NewMarker(workPool, n.Log, n.guard)
	n.queue = queue.New(queue.Config{
		EnqueuePool: enqueuePool, WorkPool: workPool, Node: n.name, Log: n.Log, Guard: n.guard,
		Lifetime: time.Duration(q.Lifetime), DelayNotice: time.Duration(q.DelayNotice),
		StrictGate: q.Gate == "strict", NoNotify: !n.notify(),
		Moved:    n.moved,
		Reserve:  int64(q.Reserve),
		DiskFree: n.diskFree(),
		Near:     n.nearLimit(workPool),
		Observer: n.metrics.queueObserver(),
		Watcher:  n.anomaly, LargeStored: n.retention.LargeStored, Suppressed: n.suppressing.list,
		HoldMade: n.held(workPool, n.mail.Hold), HoldEnded: n.held(workPool, n.mail.Released),
	})
	if err := n.openKeys(ctx, workPool); err != nil {
		return err
	}
	n.buildSigning(workPool)
	n.buildAlerts(workPool)
	return nil
}

// resolver makes the node's one.
func (n *Node) resolver() (*resolver.Resolver, error) {
	cfg, err := n.Config.DNS.Config()
	if err != nil {
		return nil, err
	}
	cfg.Log, cfg.Guard = n.Log, n.guard
	return resolver.New(cfg), nil
}

// listeners are those of the front.
func (n *Node) listeners() []submission.Listener {
	if n.front == nil {
		return nil
	}
	return n.front.listeners
}

// ownAddresses are where the node listens, so that its delivery sends nothing there.
func (n *Node) ownAddresses() []netip.AddrPort {
	var own []netip.AddrPort
	for _, l := range n.listeners() {
		if addr, ok := l.Net.Addr().(*net.TCPAddr); ok {
			own = append(own, addr.AddrPort())
		}
	}
	return own
}

func (n *Node) addresses() []string {
	var list []string
	for _, l := range n.listeners() {
		list = append(list, l.Net.Addr().String()+" "+string(l.TLS))
	}
	return list
}

// start begins the work of all parts but the listeners.
func (n *Node) start(ctx context.Context) error {
	startCtx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := n.admin.start(startCtx); err != nil {
		return err
	}
	if n.front != nil {
		if err := n.front.startKeeper(startCtx); err != nil {
			return err
		}
	}
	if err := n.queue.Start(startCtx); err != nil {
		return fmt.Errorf("start the queue: %w", err)
	}
	n.anomaly.Start()
	n.retention.Start()
	n.startSuppression()
	n.marker.Start(startCtx)
	n.startKeys()
	if err := n.startSigning(startCtx); err != nil {
		return err
	}
	if n.front != nil {
		n.front.startLogins()
	}
	if n.back != nil {
		n.back.start()
	}
	n.alerting.start(n)
	return nil
}

// closeQueue comes last: what became of mail is written down.
func (n *Node) closeQueue(ctx context.Context) error {
	n.alerting.close()
	n.anomaly.Close()
	n.retention.Close()
	n.suppressing.close()
	n.marker.Close()
	n.signing.close()
	n.keys.close()
	return n.queue.Close(ctx)
}

// close lets go of what Build opened.
func (n *Node) close() {
	n.admin.close()
	if n.front != nil {
		n.front.close()
	}
	for _, p := range n.pools {
		p.Close()
	}
}

// Exposed logs that everybody may read a secret of this node.
func (n *Node) Exposed(err error) {
	n.Log.Warn("other users can access a secret", "error", err)
}
