package refused

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"postern/internal/pg"
	"postern/relay/smtp"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var sqlWrite = texts.Bind("write", "user_id", "address", "count", "reply", "since")

const (
	writeEvery = time.Minute
	callTime   = 5 * time.Second
	addresses  = 1000 // with events of their own in a minute; further ones are summed up for each user
	most       = 2 * addresses
)

// Counter counts refusals on a node. Its methods may be called concurrently.
type Counter struct {
	db  pg.DB
	log *slog.Logger

	mu      sync.Mutex
	counts  map[key]count
	failing bool // of Run alone
}

type key struct {
	user    int64
	address string // "": of those beyond addresses
}

type count struct {
	n     int64
	reply string
	since time.Time
}

// NewCounter returns a Counter of a node.
func NewCounter(db pg.DB, log *slog.Logger) *Counter {
	return &Counter{db: db, log: log, counts: make(map[key]count)}
}

// Add counts a recipient that was refused with a reply.
func (c *Counter) Add(user int64, to smtp.Address, r smtp.Reply) {
	c.add(key{user, pg.Storable(to.String())}, count{1, pg.Storable(r.String()), time.Now()})
}

func (c *Counter) add(k key, more count) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, there := c.counts[k]
	if !there && len(c.counts) >= addresses {
		k.address = ""
		if old, there = c.counts[k]; !there && len(c.counts) >= most {
			return
		}
	}
	if there {
		more.n += old.n
		if old.since.Before(more.since) {
			more.since = old.since
		}
	}
	c.counts[k] = more
}

// Run writes events until ctx ends, and then the last ones.
func (c *Counter) Run(ctx context.Context) {
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			c.write(context.WithoutCancel(ctx))
			return
		case <-tick.C:
			c.write(ctx)
		}
	}
}

// write writes what was counted. After an error the counts go into the next event, and so twice into the
// feed if only the answer was lost.
func (c *Counter) write(ctx context.Context) {
	c.mu.Lock()
	counts := c.counts
	c.counts = make(map[key]count)
	c.mu.Unlock()
	if len(counts) == 0 {
		return
	}
	err := c.insert(ctx, counts)
	if err != nil {
		for k, n := range counts {
			c.add(k, n)
		}
	}
	if err != nil && !c.failing {
		c.log.Warn("cannot write events of refused recipients, will retry", "error", err)
	}
	c.failing = err != nil
}

func (c *Counter) insert(ctx context.Context, counts map[key]count) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var users, ns []int64
	var tos, replies []string
	var since []time.Time
	for k, n := range counts {
		users, tos, ns = append(users, k.user), append(tos, k.address), append(ns, n.n)
		replies, since = append(replies, n.reply), append(since, n.since)
	}
	if _, err := c.db.Exec(ctx, sqlWrite, users, tos, ns, replies, since); err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}
