package transport

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlRead  = texts.Bind("read", "domain")
	sqlUse   = texts.Bind("use", "domain")
	sqlTake  = texts.Bind("take", "domain", "node", "span", "now", "id")
	sqlStore = texts.Bind("store", "domain", "lease", "id", "mode", "mx", "age", "wait")
	sqlFail  = texts.Bind("fail", "domain", "lease", "id", "error", "held", "none")
	sqlDue   = texts.Bind("due", "most")
	sqlPrune = texts.Bind("prune")
)

const (
	callTime  = 5 * time.Second            // bounds one statement
	leaseTime = fetchTime + 10*time.Second // of one fetch, and the write of what it gave
	renewTime = 24 * time.Hour             // a policy in use is got anew after that, if it does not end before
	heldPause = time.Hour                  // after a fetch that failed, while a policy is held
	nonePause = 5 * time.Minute            // and while none is (RFC 8461 section 3.3)
)

// row is what the nodes know of a domain, with spans as of when it was read.
type row struct {
	id       string
	sts      STS           // its Mode is "" where there was none
	left     time.Duration // until it ends
	forgot   bool          // that it is in use
	tried    string        // the id of the last try
	failure  string        // of the last try
	wait     time.Duration // before any node tries again, if the id stays
	leased   bool
	holder   string
	override *Override
	lifts    time.Duration // until the override ends

	at time.Time // when it was read
}

// policy is the one that holds at a moment, nil if none does.
func (r *row) policy(now time.Time) *STS {
	if r.sts.Mode == "" || now.Sub(r.at) >= r.left {
		return nil
	}
	return &r.sts
}

// table is the table sts_policy.
type table struct {
	db   pg.DB
	node string
}

func (t *table) read(ctx context.Context, domain string) (r row, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var o Override
	var level string
	err = t.db.QueryRow(ctx, sqlRead, domain).Scan(&r.id, &r.sts.Mode, &r.sts.MX, &r.left, &r.forgot, &r.tried, &r.failure,
		&r.wait, &r.leased, &r.holder, &level, &o.Reason, &o.SetBy, &o.SetAt, &o.ExpiresAt, &r.lifts)
	if err != nil {
		return r, fmt.Errorf("read the transport policy of %s: %w", domain, err)
	}
	if level != "" {
		o.Domain = domain
		if o.Level, err = ParseLevel(level); err != nil {
			return r, fmt.Errorf("read the override of %s: %w", domain, err)
		}
		r.override = &o
	}
	r.at = time.Now()
	return r, nil
}

// use notes that a policy is in use.
func (t *table) use(ctx context.Context, domain string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return pg.Relaxed(ctx, t.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sqlUse, domain)
		return err
	})
}

// take takes the lease to get a domain's policy; now says: though it is not due. 0 is no lease.
func (t *table) take(ctx context.Context, domain, id string, now bool) (lease int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := t.db.Query(ctx, sqlTake, domain, t.node, leaseTime, now, id)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&lease}, func() error { return nil })
	}
	if err != nil {
		return 0, fmt.Errorf("take the policy of %s: %w", domain, err)
	}
	return lease, nil
}

// settle writes down how a fetch under a lease ended.
func (t *table) settle(ctx context.Context, domain, id string, lease int64, p STS, failure error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var err error
	if failure != nil {
		_, err = t.db.Exec(ctx, sqlFail, domain, lease, pg.Storable(id), pg.Storable(failure.Error()), heldPause, nonePause)
	} else {
		_, err = t.db.Exec(ctx, sqlStore, domain, lease, id, p.Mode, append([]string{}, p.MX...), p.MaxAge, min(renewTime, p.MaxAge*4/5))
	}
	if err != nil {
		return fmt.Errorf("record the policy of %s: %w", domain, err)
	}
	return nil
}

// due lists domains whose policies are to be renewed.
func (t *table) due(ctx context.Context, most int) (domains []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := t.db.Query(ctx, sqlDue, most)
	if err == nil {
		domains, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return nil, fmt.Errorf("list the policies that are due: %w", err)
	}
	return domains, nil
}

func (t *table) prune(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := t.db.Exec(ctx, sqlPrune); err != nil {
		return fmt.Errorf("prune policies: %w", err)
	}
	return nil
}
