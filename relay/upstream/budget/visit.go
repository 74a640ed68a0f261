package budget

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"postern/internal/pg"
)

// Visit makes Budgets that run for a command until it leaves. If it dies, its
// sessions count until most has passed since Visit, so it has to end its connections before. A
// connection waits for patience at most.
func Visit(ctx context.Context, db pg.DB, most, patience time.Duration) (b *Budgets, leave func(), err error) {
	var epoch int64
	if err := db.QueryRow(ctx, sqlVisit, most).Scan(&epoch); err != nil {
		return nil, nil, fmt.Errorf("visit budgets: %w", err)
	}
	b = New(Config{DB: db, Epoch: func() int64 { return epoch }, Log: slog.New(slog.DiscardHandler), Patience: patience})
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // what ends ctx must not keep a session
	ended := make(chan struct{})
	go func() {
		b.Run(running)
		close(ended)
	}()
	return b, func() {
		stop()
		<-ended
	}, nil
}
