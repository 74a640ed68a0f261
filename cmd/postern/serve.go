package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/cmd/postern/node"
)

// serveHalves are the values of --only.
var serveHalves = []string{"submission", "delivery"}

func (a *app) serveCmd() *cobra.Command {
	var only, profile string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run the relay",
		Long: `Runs the relay until SIGTERM or SIGINT, then drains: sessions get 421, mail in
progress is finished or handed back to the queue, and the process ends within
drain_time (30 s). A second signal cuts that short. SIGHUP reloads the configuration.

--only submission accepts mail and leaves it to other nodes to deliver; --only delivery
delivers and has no listeners. Several nodes, each with a name of its own, can share
one database.`,
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
	cmd.Flags().StringVar(&only, "only", "", "run only one `HALF`: submission or delivery")
	cmd.Flags().StringVar(&profile, "cpuprofile", "", "write a CPU profile to `FILE` until the end")
	_ = cmd.Flags().MarkHidden("cpuprofile")
	return cmd
}

func startProfile(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--cpuprofile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("--cpuprofile: %w", err)
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}

func (a *app) serve(ctx context.Context, only string) error {
	cfg, found, err := a.source.Load()
	if err != nil {
		return err
	}
	if !found {
		return usagef("no configuration: give --config FILE, or put postern.toml here or into /etc/postern")
	}
	if only != "delivery" {
		if err := cfg.Submits(); err != nil {
			return usageError{err.Error()}
		}
	}
	s := a.setup(cfg)
	s.Only = only
	asked, stop := node.ListenSignals()
	defer stop()
	if cfg.Database.Private != "" {
		return a.serveWithPrivate(ctx, s, asked)
	}
	return a.withDatabaseOf(ctx, cfg, func(ctx context.Context, url string) error {
		s.URL = url
		return a.serveOn(ctx, s, asked)
	})
}

// setup is that of a node in this process; it lacks the URL of the database.
func (a *app) setup(cfg config.Config) node.Setup {
	return node.Setup{Config: cfg, Source: a.source, Version: versionString(), Log: node.NewLogger(a.stderr, cfg.Log), Database: &a.database}
}

func (a *app) serveOn(ctx context.Context, s node.Setup, asked node.Signals) error {
	n, err := node.Build(ctx, s)
	if err != nil && ctx.Err() != nil {
		return nil // it was asked to stop before it was ready
	}
	if err != nil {
		return err
	}
	for _, err := range a.source.Exposed(s.URL) {
		n.Exposed(err)
	}
	return n.Run(ctx, asked)
}

// serveWithPrivate runs the database server as well. When that ends by itself, so
// does the relay, for whoever runs it to start both again.
func (a *app) serveWithPrivate(ctx context.Context, s node.Setup, asked node.Signals) error {
	folder := s.Config.Database.Private
	server, err := database.AwaitPrivate(ctx, folder)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := errors.New("the private database server ended; see " + filepath.Join(folder, "postgres.log"))
	go func() {
		select {
		case <-server.Done():
			cancel(ended)
		case <-ctx.Done():
		}
	}()
	s.URL = server.URL()
	err = a.serveOn(ctx, s, asked)
	if context.Cause(ctx) == ended {
		return ended
	}
	return err
}
