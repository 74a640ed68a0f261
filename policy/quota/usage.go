package quota

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

// Usage is what counts at the moment.
type Usage map[counted]int64

// Of is what counts against l; ok is false for a limit of one message.
func (u Usage) Of(l Limit) (used int64, ok bool) { return u[l.counted()], !l.Kind.ofMessage() }

// OneMore returns what one more session of those under limits would exceed, or nil.
func (u Usage) OneMore(limits []Limit) *Over {
	return oneMore(sessionLimits(limits), func(l Limit) int64 { return u[l.counted()] })
}

var sqlUsage = texts.Bind("usage", "scope", "subject")

// ReadUsage returns what counts against limits: messages, recipients and octets in their
// windows, and of sessions those that are counted, which are the ones under a limit.
func ReadUsage(ctx context.Context, db pg.DB, limits []Limit) (Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var scopes, subjects []string
	for _, l := range limits {
		c := l.counted()
		scopes, subjects = append(scopes, string(c.scope)), append(subjects, c.subject)
	}
	rows, err := db.Query(ctx, sqlUsage, scopes, subjects)
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	usage := Usage{}
	var c counted
	var used int64
	_, err = pgx.ForEachRow(rows, []any{&c.scope, &c.subject, &c.kind, &c.window, &used}, func() error {
		usage[c] = used
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return usage, nil
}

var sqlTryCharge = texts.Bind("try_charge", pg.Names(new(Charges).Arguments)...)

// Try says what would refuse a message now: nil for nothing. It charges the message and
// takes that back, in one round trip: nobody waits for its locks longer. db is in no
// transaction; after an error it may be in one.
func Try(ctx context.Context, db pg.DB, message Charge) (over *Over, err error) {
	if len(message.Limits) == 0 {
		return nil, nil
	}
	var c Charges
	c.Fill([]Charge{message})
	var args pg.Args
	c.Arguments(&args)
	batch := &pgx.Batch{}
	batch.Queue("begin")
	batch.Queue(sqlTryCharge, args.Values...).Query(func(rows pgx.Rows) error {
		var charge int32
		var used int64
		var retryAt *time.Time
		_, err := pgx.ForEachRow(rows, []any{&charge, &used, &retryAt}, func() error {
			over = c.over(charge, used, retryAt)
			return nil
		})
		return err
	})
	batch.Queue("rollback")
	if err := db.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("ask the limits: %w", err)
	}
	return over, nil
}
