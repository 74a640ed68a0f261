package node

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/admin"
	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/relay/queue/desk"
)

// namedPool is a pool with the name that it has in the database and in the metrics.
type namedPool struct {
	name string
	*pgxpool.Pool
}

// adminPages is the node's health and metrics over HTTP. A nil one is off.
type adminPages struct {
	server   *admin.Server
	overview *admin.Overview
	draining atomic.Bool
}

// buildAdmin is nil without an address.
func (n *Node) buildAdmin(ctx context.Context) (*adminPages, error) {
	c := n.Config.Admin
	if n.metrics == nil {
		return nil, nil
	}
	token := ""
	if c.TokenFile != "" {
		var err error
		if token, err = admin.ReadToken(c.TokenFile, n.Exposed); err != nil {
			return nil, err
		}
	}
	pool, err := n.pool(ctx, "admin", config.AdminConnections, nil)
	if err != nil {
		return nil, err
	}
	reader := desk.NewReader(pool)
	p := &adminPages{}
	checks := []admin.Check{
		admin.DatabaseCheck(reader.Ping),
		admin.EpochCheck(func() error { return cause(n.queue.Available()) }),
		admin.DiskCheck(n.queue.Available),
		admin.DrainCheck(p.draining.Load),
	}
	if f := n.front; f != nil {
		checks = append(checks, admin.CertificateCheck(f.certificateList, time.Now),
			admin.RoomCheck(n.Config.Submission.TempDir(), func() int64 { return f.server.Stats().MessageSize }))
	}
	n.registerParts()
	n.metrics.registerDraining(&p.draining)
	p.overview = admin.NewOverview(n.metrics.registry, reader.Overview, n.Log)
	p.server = admin.New(admin.Config{
		Address: c.Address, Hosts: append(slices.Clone(c.Hosts), n.hostname), Token: token, Pprof: c.Pprof,
		Registry: n.metrics.registry, Checks: checks, Log: n.Log,
	})
	return p, nil
}

// cause is why the queue refuses, for an admin and not for a client.
func cause(err error) error {
	if cause := errors.Unwrap(err); cause != nil {
		return cause
	}
	return err
}

// certificateList tells of the certificates that the listeners show. One that only
// stands in for what the authority has not issued is none.
func (f *front) certificateList() []health.Certificate {
	all := f.certs.Status()
	list := make([]health.Certificate, len(all))
	for i, s := range all {
		list[i] = health.Certificate{Name: cmp.Or(s.Name, s.Source), FailingSince: s.FailingSince, Error: s.Error}
		if !s.StandIn {
			list[i].NotBefore, list[i].NotAfter = s.NotBefore, s.NotAfter
		}
	}
	return list
}

func (p *adminPages) start(ctx context.Context) error {
	if p == nil {
		return nil
	}
	return p.server.Start(ctx)
}

// addr is where the pages are, "" for nowhere.
func (p *adminPages) addr() string {
	if p == nil {
		return ""
	}
	return p.server.Addr()
}

// drain makes /readyz say that the node is stopping.
func (p *adminPages) drain() {
	if p != nil {
		p.draining.Store(true)
	}
}

// adminTime is what the pages may take to end.
const adminTime = 2 * time.Second

// close ends the pages, the last of all: until then they tell how the drain goes.
func (p *adminPages) close() {
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), adminTime)
	defer cancel()
	_ = p.server.Shutdown(ctx) // a request that was cut off is not trouble of the relay
	p.overview.Close()
}
