package node

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"postern/admin"
	"postern/admin/health"
	"postern/cmd/postern/check"
	"postern/cmd/postern/config"
	"postern/relay/alert"
)

// alerting mails what is wrong, as 'postern check' finds it.
type alerting struct {
	alerts *alert.Alerts
	cfg    atomic.Pointer[config.Config] // as last reloaded
	stop   context.CancelFunc
	loop   sync.WaitGroup
}

// buildAlerts comes after the keys that sign the mails.
func (n *Node) buildAlerts(pool *pgxpool.Pool) {
	a := &n.alerting
	a.alerts = alert.New(alert.Config{
		DB: pool, Queue: n.queue, Node: n.name, Hostname: n.hostname, Keys: n.signing.ring, Log: n.Log,
		Find: func(ctx context.Context) []health.Finding {
			return check.Running(ctx, *a.cfg.Load(), n.Source, n.Database, n.URL)
		},
	})
	a.use(n.Config)
}

// use takes over what a reload has changed.
func (a *alerting) use(cfg config.Config) {
	a.cfg.Store(&cfg)
	to, _ := cfg.Alerts.Addresses() // validated with the configuration
	a.alerts.SendTo(to)
}

func (a *alerting) start(n *Node) {
	loop, stop := context.WithCancel(context.Background())
	a.stop = stop
	a.loop.Go(func() { n.guard.Keep(loop, "alerts by mail", func() { a.alerts.Run(loop) }) })
}

func (a *alerting) close() {
	if a.stop != nil {
		a.stop()
		a.loop.Wait()
	}
}

func (a *alerting) register(r *prometheus.Registry) {
	admin.Register(r, nil, a.alerts.Status, []admin.Reading[alert.Status]{
		{Name: "postern_alert_failures", Help: "Failures that the nodes with [alerts] mail have found.", Value: func(s alert.Status) float64 { return float64(s.Failed) }},
		{Name: "postern_alert_warnings", Help: "Warnings that the nodes with [alerts] mail have found.", Value: func(s alert.Status) float64 { return float64(s.Warnings) }},
		{Name: "postern_alert_mail_timestamp_seconds", Help: "When some node last sent a mail about what is wrong, in seconds since 1970; 0: never.", Value: func(s alert.Status) float64 {
			if s.MailedAt.IsZero() {
				return 0
			}
			return float64(s.MailedAt.Unix())
		}},
	})
}
