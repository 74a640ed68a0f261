package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// drainTime is how long a server that was asked to stop may take: sessions end,
// deliveries finish or are handed back, and the lease is given up.
const drainTime = 30 * time.Second

// serveHalves are the values of --only.
var serveHalves = []string{"submission", "delivery"}

func (a *app) serveCmd() *cobra.Command {
	var only, profile string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run the relay",
		Long: `Runs the relay until SIGTERM or SIGINT, then drains: sessions hear 421, mail in
work is finished or handed back to the queue, and the process ends within 30 s.

--only submission accepts mail and leaves it to other nodes to deliver;
--only delivery delivers and listens on nothing. Several nodes, each with a name
of its own, share one database.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if only != "" && !slices.Contains(serveHalves, only) {
				return usagef("--only is submission or delivery, not %q", only)
			}
			stop, err := startProfile(profile)
			if err != nil {
				return err
			}
			defer stop()
			return a.serve(cmd.Context(), only)
		},
	}
	cmd.Flags().StringVar(&only, "only", "", "run one half: `submission` or delivery")
	cmd.Flags().StringVar(&profile, "cpuprofile", "", "write a CPU profile to `file` until the end")
	_ = cmd.Flags().MarkHidden("cpuprofile")
	return cmd
}

func startProfile(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("--cpuprofile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("--cpuprofile: %w", err)
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}

func (a *app) serve(ctx context.Context, only string) error {
	cfg, found, err := a.loadConfig()
	if err != nil {
		return err
	}
	if !found {
		return usagef("no configuration: give --config FILE, or put postern.toml here or into /etc/postern")
	}
	if only != "delivery" && len(cfg.Listeners) == 0 {
		return usagef("the configuration has no [[listener]]; 'serve --only delivery' needs none")
	}
	log := newLogger(a.stderr, cfg.Log)
	if cfg.Database.Private != "" {
		return a.serveWithPrivate(ctx, cfg, only, log)
	}
	return a.withDatabaseOf(ctx, cfg, func(ctx context.Context, url string) error {
		return a.serveOn(ctx, cfg, url, only, log)
	})
}

func (a *app) serveOn(ctx context.Context, cfg config, url, only string, log *slog.Logger) error {
	n, err := a.buildNode(ctx, cfg, url, only, log)
	if err != nil {
		return err
	}
	return n.run(ctx)
}

// serveWithPrivate runs the database server as well. When that ends by itself, so
// does the relay, for whoever runs it to start both again.
func (a *app) serveWithPrivate(ctx context.Context, cfg config, only string, log *slog.Logger) error {
	server, err := awaitPrivate(ctx, cfg.Database.Private)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := errors.New("the private database server ended; see " + filepath.Join(cfg.Database.Private, "postgres.log"))
	go func() {
		select {
		case <-server.Done():
			cancel(ended)
		case <-ctx.Done():
		}
	}()
	err = a.serveOn(ctx, cfg, server.URL(), only, log)
	if context.Cause(ctx) == ended {
		return ended
	}
	return err
}

// newLogger makes the one logger of the process.
func newLogger(w io.Writer, cfg logConfig) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // validated with the configuration
	opt := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opt))
	}
	return slog.New(slog.NewTextHandler(w, opt))
}

// run starts the parts, waits for the end of ctx and stops them in the order in
// which mail flows: what is accepted is delivered or handed back.
func (n *node) run(ctx context.Context) error {
	if err := n.start(ctx); err != nil {
		n.close()
		return err
	}
	n.log.Info("postern is ready", "version", versionString(), "hostname", n.hostname, "node", n.name, "listeners", n.addresses(), "admin", n.admin.addr())

	serveErr := make(chan error, 1)
	if n.server != nil {
		go func() { serveErr <- n.server.Serve() }()
	}
	var err error
	select {
	case <-ctx.Done():
		n.log.Info("postern is stopping")
	case err = <-serveErr:
	}
	return errors.Join(err, n.stop())
}

func (n *node) stop() error {
	n.admin.drain()
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	defer n.close()
	var errs []error
	part := func(name string, share time.Duration, stop func(context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, share)
		defer cancel()
		if err := stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", name, err))
		}
	}
	if n.server != nil {
		part("submission", drainTime/3, n.server.Shutdown)
	}
	if n.keeper != nil {
		part("certificates", drainTime/6, n.keeper.Close)
	}
	part("notices", drainTime/6, n.stopBouncer)
	part("logins", drainTime/6, n.endLogins)
	if n.engine != nil {
		part("delivery", drainTime/3, n.engine.Shutdown)
	}
	part("queue", drainTime/3, n.queue.Close)
	for _, err := range errs {
		// What was cut off is in the queue and goes out later: no failure of this process.
		n.log.Warn("not all work ended in time", "error", err)
	}
	n.log.Info("postern has stopped")
	return nil
}
