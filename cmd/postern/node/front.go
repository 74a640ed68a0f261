package node

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/internal/await"
	"postern/policy/quota"
	"postern/relay/acme"
	"postern/relay/certificate"
	"postern/relay/submission"
)

// front is the half of a node that accepts mail: the listeners with their certificates,
// and the logins.
type front struct {
	node   *Node
	certs  *certificate.Set
	keeper *acme.Keeper // nil without [acme]

	listeners    []submission.Listener
	listenerFrom []int // which of the configuration's each is, for one may have several sockets

	server   *submission.Server
	verifier *auth.Authenticator
	watch    *auth.Watch
	sessions *quota.Counter

	stopLogins context.CancelFunc // of what verifier, watch and sessions do in the background
	logins     sync.WaitGroup
}

// newFront reads the certificates that are in files.
func newFront(n *Node) (*front, error) {
	cfg := certificate.Config{Hostname: n.hostname, SelfSigned: n.Config.TLS.SelfSigned, Log: n.Log}
	if n.Config.TLS.Certificate != "" {
		cfg.Pairs = append(cfg.Pairs, certificate.Pair{Certificate: n.Config.TLS.Certificate, Key: n.Config.TLS.Key})
	}
	for _, pair := range n.Config.TLS.Pairs {
		cfg.Pairs = append(cfg.Pairs, certificate.Pair(pair))
	}
	certs, err := certificate.Open(cfg)
	if err != nil {
		return nil, err
	}
	return &front{node: n, certs: certs}, nil
}

// listen opens the listeners, but for those that are open or were handed over.
func (f *front) listen(handed *sockets) error {
	for i := range f.node.Config.Listeners {
		l := &f.node.Config.Listeners[i]
		list, err := openListener(l, f.node.Opened, handed)
		if err != nil {
			return err
		}
		for _, ln := range list {
			open := submission.Listener{Net: ln, TLS: submission.TLSMode(l.TLS)}
			setListener(&open, l)
			f.listeners, f.listenerFrom = append(f.listeners, open), append(f.listenerFrom, i)
		}
	}
	return nil
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

// build makes the server and what it asks. Accepted mail is handed to next, if there is one.
func (f *front) build(ctx context.Context, next *back) error {
	if f.node.Config.ACME.On() {
		var err error
		if f.keeper, err = f.newKeeper(ctx); err != nil {
			return err
		}
		f.certs.Use(f.keeper)
	}
	_, login := f.node.shares()
	pool, err := f.node.pool(ctx, "auth", login, nil)
	if err != nil {
		return err
	}
	background, err := f.node.pool(ctx, "logins", 3, nil)
	if err != nil {
		return err
	}
	store := auth.NewStore(pool)
	f.verifier = auth.NewAuthenticator(store, auth.Config{Permits: f.node.Config.Auth.Permits, Audit: time.Duration(f.node.Config.Retention.Audit), Log: f.node.Log, Guard: f.node.guard})
	f.watch = auth.NewWatch(background, f.node.Log, f.node.notify())
	f.sessions = quota.NewCounter(background, f.node.queue.Epoch, f.node.Log)
	s := f.node.Config.Submission
	cfg := submission.Config{
		Hostname: f.node.hostname, Listeners: f.listeners, Certificates: f.certs,
		Verifier: f.verifier, Current: f.verifier, Sessions: f.sessions, Suppression: f.node.suppressing.list,
		Refused: f.node.suppressing.refused.Add,
		Queue:   f.node.queue, Log: f.node.mail, System: f.node.Log, Guard: f.node.guard, TempDir: s.SpoolDir, HideClient: !s.ShowClientAddress,
		Limits: f.limits(), Keys: f.node.signing.ring,
	}
	limited, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if cfg.Known, err = store.RecentAddresses(limited, submission.KnownNetworks); err != nil {
		return err
	}
	if next != nil {
		cfg.Handoff = next.engine
	}
	f.server, err = submission.New(cfg)
	return err
}

func (f *front) limits() submission.Limits {
	s, open := f.node.Config.Submission, f.node.descriptors()
	return submission.Limits{
		Connections: open.Connections, Files: open.Files, ConnectionsPerAddress: s.ConnectionsPerAddress,
		Commands: s.Commands, BadCommands: s.BadCommands, FailedAuths: s.AuthFailures,
		Recipients: s.Recipients, MessageSize: int64(s.MessageSize), HeaderSize: int(s.HeaderSize),
		Session: time.Duration(s.SessionTime), Idle: time.Duration(s.IdleTime),
		Duplicates: time.Duration(f.node.Config.Queue.Duplicates),
		DataRate:   int64(s.MinDataRate), Memory: int64(s.Memory), TempFiles: int64(s.Spool),
	}
}

// startKeeper comes before there is an epoch: with another secret key than the other
// nodes' the start ends here.
func (f *front) startKeeper(ctx context.Context) error {
	if f.keeper == nil {
		return nil
	}
	return f.keeper.Start(ctx)
}

// startLogins makes an admin's changes act immediately: what was remembered of the user
// is forgotten before the sessions ask what it may do now.
func (f *front) startLogins() {
	ctx, stop := context.WithCancel(context.Background())
	f.stopLogins = stop
	f.logins.Go(func() { f.verifier.Run(ctx) })
	f.logins.Go(func() { f.node.guard.Keep(ctx, "limits of sessions", func() { f.sessions.Run(ctx) }) })
	f.logins.Go(func() {
		f.node.guard.Keep(ctx, "changes of users", func() {
			f.watch.Run(ctx, func(users []int64, all bool) {
				f.verifier.Forget(users, all)
				f.server.Recheck(users, all)
			})
		})
	})
}

// endLogins comes after the sessions' end: what they did is written down.
func (f *front) endLogins(ctx context.Context) error {
	f.stopLogins()
	return await.All(ctx, f.logins.Wait)
}

// closeKeeper ends what gets certificates, if anything does.
func (f *front) closeKeeper(ctx context.Context) error {
	if f.keeper == nil {
		return nil
	}
	return f.keeper.Close(ctx)
}

// close lets go of what was opened. The keeper has ended before, or never started: it
// takes no wait.
func (f *front) close() {
	for _, l := range f.listeners {
		_ = l.Net.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = f.closeKeeper(ctx)
}
