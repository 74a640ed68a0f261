package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/admin/health"
	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/internal/await"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/migrations"
	"postern/policy"
	"postern/relay/acme"
	"postern/relay/anomaly"
	"postern/relay/bounce"
	"postern/relay/certificate"
	"postern/relay/delivery"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/queue/desk"
	"postern/relay/retention"
	"postern/relay/route"
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

	shared       bool // a pooler lends connections of the database by the transaction
	pools        []namedPool
	listeners    []submission.Listener
	listenerFrom []int // which of cfg.Listeners each is, for one may have several sockets

	certs  *certificate.Set // nil with --only delivery
	keeper *acme.Keeper     // nil without [acme]

	queue     *queue.Queue
	anomaly   *anomaly.Detector
	retention *retention.Retention
	server    *submission.Server // nil with --only delivery
	engine    *delivery.Engine   // nil with --only submission
	bouncer   *bounce.Bouncer    // nil with --only submission

	verifier *auth.Authenticator // nil with --only delivery, as the next two
	watch    *auth.Watch
	sessions *policy.Sessions

	metrics            *metrics // nil without an admin address, as the next
	admin              *adminPages
	supervisor         *supervisor
	reloadCertificates func() error // nil with --only delivery

	stopNotices context.CancelFunc
	notices     sync.WaitGroup
	stopLogins  context.CancelFunc // of what verifier, watch and sessions do in the background
	logins      sync.WaitGroup
}

// Build opens what the node needs, in the order in which a wrong set-up is
// easiest to explain, and starts nothing yet.
func Build(ctx context.Context, s Setup) (*Node, error) {
	n := &Node{Setup: s, guard: panics.New(s.Log), mail: maillog.New(s.Log), stopNotices: func() {}, stopLogins: func() {},
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
		if n.certs, err = n.certificates(); err != nil {
			return nil, err
		}
		n.reloadCertificates = n.certs.Reload
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
		if err := n.buildDelivery(ctx); err != nil {
			return nil, err
		}
	}
	if s.Only != "delivery" {
		if err := n.buildCertificates(ctx); err != nil {
			return nil, err
		}
		if err := n.buildSubmission(ctx); err != nil {
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
		n.Log.Warn("a pooler lends connections of the database by the transaction: notifications do not come through, so the node polls")
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

// certificates reads what is in files.
func (n *Node) certificates() (*certificate.Set, error) {
	cfg := certificate.Config{Hostname: n.hostname, SelfSigned: n.Config.TLS.SelfSigned, Log: n.Log}
	if n.Config.TLS.Certificate != "" {
		cfg.Pairs = append(cfg.Pairs, certificate.Pair{Certificate: n.Config.TLS.Certificate, Key: n.Config.TLS.Key})
	}
	for _, pair := range n.Config.TLS.Pairs {
		cfg.Pairs = append(cfg.Pairs, certificate.Pair(pair))
	}
	return certificate.Open(cfg)
}

// buildCertificates adds those of an ACME authority.
func (n *Node) buildCertificates(ctx context.Context) error {
	if !n.Config.ACME.On() {
		return nil
	}
	var err error
	if n.keeper, err = n.newKeeper(ctx); err != nil {
		return err
	}
	n.certs.Use(n.keeper)
	return nil
}

// listen opens the listeners, but for those that are open or were handed over. Where
// only delivery runs it only looks that none was handed over.
func (n *Node) listen() error {
	handed, err := takeSockets()
	if err != nil {
		return err
	}
	defer handed.close()
	if n.Only == "delivery" {
		return handed.left()
	}
	for i := range n.Config.Listeners {
		l := &n.Config.Listeners[i]
		list, err := openListener(l, n.Opened, handed)
		if err != nil {
			return err
		}
		for _, ln := range list {
			open := submission.Listener{Net: ln, TLS: submission.TLSMode(l.TLS)}
			n.setListener(&open, l)
			n.listeners, n.listenerFrom = append(n.listeners, open), append(n.listenerFrom, i)
		}
	}
	return handed.left()
}

func openListener(l *config.Listener, opened map[string]net.Listener, handed *sockets) ([]net.Listener, error) {
	if name, ok := l.Socket(); ok {
		return handed.take(name)
	}
	ln := opened[l.Address]
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", l.Address); err != nil {
			return nil, fmt.Errorf("cannot listen on %s: %w", l.Address, config.ListenReason(err))
		}
	}
	return []net.Listener{ln}, nil
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
	q := n.Config.Queue
	suspect := func(err error) bool { return n.queue.Suspect(err) }
	n.anomaly = anomaly.New(anomaly.Config{Pool: workPool, Log: n.Log, Guard: n.guard, Trouble: suspect})
	n.retention = retention.New(retention.Config{
		Pool: workPool, Log: n.Log, Guard: n.guard, Trouble: suspect,
		History: time.Duration(q.History), Correspondents: time.Duration(n.Config.Retention.Correspondents),
	})
	n.queue = queue.New(queue.Config{
		EnqueuePool: enqueuePool, WorkPool: workPool, Node: n.name, Log: n.Log, Guard: n.guard,
		Lifetime: time.Duration(q.Lifetime), DelayNotice: time.Duration(q.DelayNotice),
		StrictGate: q.Gate == "strict", NoNotify: !n.notify(),
		Moved:    n.moved,
		Reserve:  int64(q.Reserve),
		DiskFree: n.diskFree(),
		Near:     n.nearLimit(workPool),
		Observer: n.metrics.queueObserver(),
		Watcher:  n.anomaly, LargeStored: n.retention.LargeStored,
		HoldMade: n.held(workPool, n.mail.Hold), HoldEnded: n.held(workPool, n.mail.Released),
	})
	return nil
}

func (n *Node) buildDelivery(ctx context.Context) error {
	sealer, err := n.Source.Sealer(n.Config)
	if err != nil {
		// Only upstreams with a password need it; theirs is the mail that waits.
		n.Log.Warn("upstream passwords cannot be opened", "error", err)
	}
	pool, err := n.pool(ctx, "routes", 1, nil)
	if err != nil {
		return err
	}
	store := route.NewStore(pool, sealer)
	if err := n.lookAtRoutes(ctx, store); err != nil {
		return err
	}
	d := n.Config.Delivery
	n.engine = delivery.New(delivery.Config{
		Queue: n.queue, Routes: route.NewTable(store, 0), DNS: config.Resolver(d.DNSServer),
		Log: n.Log, Guard: n.guard, Events: n.mail, Hello: n.hostname, Self: n.ownAddresses(),
		Connections: d.Connections, MXConnections: d.Connections, PerConnection: d.MessagesPerConn,
		MaxOpen: n.descriptors().Deliveries, IdleTime: time.Duration(d.IdleTime), Memory: int64(d.Memory),
		MXPort: d.MXPort, AllowPrivateMX: d.AllowPrivateMX,
	})
	n.bouncer = bounce.New(bounce.Config{Queue: n.queue, Hostname: n.hostname, Mail: n.mail, Log: n.Log})
	return nil
}

// lookAtRoutes says at the start what will keep mail waiting.
func (n *Node) lookAtRoutes(ctx context.Context, store *route.Store) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	rules, err := store.ListRoutes(ctx)
	if err != nil {
		return err
	}
	if len(rules) == 0 {
		n.Log.Warn("no route: mail waits until one is added with 'postern route add'")
	}
	bad, err := store.Unusable(ctx)
	for _, err := range bad {
		n.Log.Error("mail for an upstream waits; see 'postern check'", "error", err)
	}
	return err
}

func (n *Node) ownAddresses() []netip.AddrPort {
	var own []netip.AddrPort
	for _, l := range n.listeners {
		if addr, ok := l.Net.Addr().(*net.TCPAddr); ok {
			own = append(own, addr.AddrPort())
		}
	}
	return own
}

func (n *Node) addresses() []string {
	var list []string
	for _, l := range n.listeners {
		list = append(list, l.Net.Addr().String()+" "+string(l.TLS))
	}
	return list
}

func (n *Node) buildSubmission(ctx context.Context) error {
	_, login := n.shares()
	pool, err := n.pool(ctx, "auth", login, nil)
	if err != nil {
		return err
	}
	background, err := n.pool(ctx, "logins", 3, nil)
	if err != nil {
		return err
	}
	store := auth.NewStore(pool)
	n.verifier = auth.NewAuthenticator(store, auth.Config{Permits: n.Config.Auth.Permits, Audit: time.Duration(n.Config.Retention.Audit), Log: n.Log, Guard: n.guard})
	n.watch = auth.NewWatch(background, n.Log, n.notify())
	n.sessions = policy.NewSessions(background, n.queue.Epoch, n.Log)
	s := n.Config.Submission
	cfg := submission.Config{
		Hostname: n.hostname, Listeners: n.listeners, Certificates: n.certs,
		Verifier: n.verifier, Current: n.verifier, Sessions: n.sessions,
		Queue: n.queue, Log: n.mail, System: n.Log, Guard: n.guard, TempDir: s.SpoolDir, HideClient: !s.ShowClientAddress,
		Limits: n.submissionLimits(),
	}
	limited, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if cfg.Known, err = store.RecentAddresses(limited, submission.KnownNetworks); err != nil {
		return err
	}
	if n.engine != nil {
		cfg.Handoff = n.engine
	}
	n.server, err = submission.New(cfg)
	return err
}

func (n *Node) submissionLimits() submission.Limits {
	s, open := n.Config.Submission, n.descriptors()
	return submission.Limits{
		Connections: open.Connections, Files: open.Files, ConnectionsPerAddress: s.ConnectionsPerAddress,
		Commands: s.Commands, BadCommands: s.BadCommands, FailedAuths: s.AuthFailures,
		Recipients: s.Recipients, MessageSize: int64(s.MessageSize), HeaderSize: int(s.HeaderSize),
		Session: time.Duration(s.SessionTime), Idle: time.Duration(s.IdleTime),
		DataRate: int64(s.MinDataRate), Memory: int64(s.Memory), TempFiles: int64(s.Spool),
	}
}

// start begins the work of all parts but the listeners.
func (n *Node) start(ctx context.Context) error {
	startCtx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := n.admin.start(startCtx); err != nil {
		return err
	}
	if n.keeper != nil { // before there is an epoch: with another secret key it goes no further
		if err := n.keeper.Start(startCtx); err != nil {
			return err
		}
	}
	if err := n.queue.Start(startCtx); err != nil {
		return fmt.Errorf("start the queue: %w", err)
	}
	n.anomaly.Start()
	n.retention.Start()
	if n.verifier != nil {
		n.startLogins()
	}
	if n.engine != nil {
		n.engine.Start()
		noticeCtx, stop := context.WithCancel(context.Background())
		n.stopNotices = stop
		n.notices.Go(func() { n.guard.Keep(noticeCtx, "notices", func() { n.bouncer.Run(noticeCtx) }) })
	}
	return nil
}

// startLogins lets what an admin changes act at once: what was remembered of the user
// is forgotten before the sessions ask what it may do now.
func (n *Node) startLogins() {
	ctx, stop := context.WithCancel(context.Background())
	n.stopLogins = stop
	n.logins.Go(func() { n.verifier.Run(ctx) })
	n.logins.Go(func() { n.guard.Keep(ctx, "limits of sessions", func() { n.sessions.Run(ctx) }) })
	n.logins.Go(func() {
		n.guard.Keep(ctx, "changes of users", func() {
			n.watch.Run(ctx, func(users []int64, all bool) {
				n.verifier.Forget(users, all)
				n.server.Recheck(users, all)
			})
		})
	})
}

func (n *Node) stopBouncer(ctx context.Context) error {
	n.stopNotices()
	return await.All(ctx, n.notices.Wait)
}

// endLogins comes after the sessions' end: what they did is written down.
func (n *Node) endLogins(ctx context.Context) error {
	n.stopLogins()
	return await.All(ctx, n.logins.Wait)
}

// closeQueue comes last: what became of mail is written down.
func (n *Node) closeQueue(ctx context.Context) error {
	n.anomaly.Close()
	n.retention.Close()
	return n.queue.Close(ctx)
}

// close lets go of what Build opened.
func (n *Node) close() {
	n.admin.close()
	for _, l := range n.listeners {
		_ = l.Net.Close()
	}
	if n.keeper != nil { // again after its end, or before its start: no wait
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = n.keeper.Close(ctx)
		cancel()
	}
	for _, p := range n.pools {
		p.Close()
	}
}

// Exposed logs that everybody may read a secret of this node.
func (n *Node) Exposed(err error) {
	n.Log.Warn("a secret is open to others", "error", err)
}
