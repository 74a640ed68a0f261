package keyring

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pg"
	"postern/relay/acme"
	"postern/relay/dkim/keys"
	"postern/relay/seal"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
	"postern/relay/webhook"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlCurrent = texts.Bind("current")
	sqlRecord  = texts.Bind("record", "epoch", "node", "keys")
	sqlRings   = texts.Bind("rings")
	sqlLock    = texts.Bind("lock")
	sqlUse     = texts.Bind("use", "id")
	sqlAdded   = texts.Bind("added", "id")
)

const (
	// lookEvery is how often a node reads its file, and asks for the current key.
	lookEvery = 2 * time.Second
	// lookTime bounds what a node does each time.
	lookTime = 10 * time.Second
	// batch is how many values of a column are read in one go, and how many a node seals anew
	// each time.
	batch = 200
)

// columns are all that is sealed.
func columns() []seal.Column {
	return []seal.Column{upstream.Sealed(), oauth.Sealed(), acme.Sealed(), keys.Sealed(), webhook.Sealed()}
}

// Config configures a Ring.
type Config struct {
	Pool   *pgxpool.Pool
	Sealer *seal.Sealer // nil: the node needs no keys
	Node   string
	Epoch  func() int64 // of the node, 0 while it has none
	Log    *slog.Logger
}

// Ring keeps a running node's keys as its file and the database say.
type Ring struct {
	cfg      Config
	every    time.Duration
	said     string // the last error that was logged
	recorded string // the epoch and keys that the database had at recordAt
	recordAt time.Time
	clean    string // the key with which all was sealed at cleanAt
	cleanAt  time.Time
}

// New returns a Ring; Run has to be running.
func New(cfg Config) *Ring { return &Ring{cfg: cfg, every: lookEvery} }

// Run works until the end of ctx.
func (r *Ring) Run(ctx context.Context) {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		err := r.look(ctx)
		switch {
		case err == nil:
			r.said = ""
		case ctx.Err() == nil && err.Error() != r.said:
			r.cfg.Log.Error("the sealing keys are not as they should be", "error", err)
			r.said = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look follows the file and the database once. A file that is not taken keeps the rest from
// nothing: what was read before is used on.
func (r *Ring) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	if r.cfg.Sealer == nil {
		return r.record(ctx)
	}
	reloaded := r.cfg.Sealer.Reload()
	recorded := r.record(ctx)
	followed := Follow(ctx, r.cfg.Pool, r.cfg.Sealer)
	if followed != nil {
		return errors.Join(reloaded, recorded, followed)
	}
	return errors.Join(reloaded, recorded, r.reseal(ctx))
}

// reseal seals a batch. When nothing is left it looks again a minute later.
func (r *Ring) reseal(ctx context.Context) error {
	key := r.cfg.Sealer.Current()
	if key == r.clean && time.Since(r.cleanAt) < time.Minute {
		return nil
	}
	n, err := reseal(ctx, r.cfg.Pool, r.cfg.Sealer)
	if n > 0 {
		r.cfg.Log.Info("secrets are sealed with the current key now", "values", n, "key", key)
	} else if err == nil {
		r.clean, r.cleanAt = key, time.Now()
	}
	return err
}

// record tells the others which keys this node has, none if it needs none. It does so again each
// minute: a standby that takes over may lack what was written last.
func (r *Ring) record(ctx context.Context) error {
	epoch, keys := r.cfg.Epoch(), []string{}
	if r.cfg.Sealer != nil {
		keys = r.cfg.Sealer.Keys()
	}
	now := fmt.Sprint(epoch, keys)
	if epoch == 0 || now == r.recorded && time.Since(r.recordAt) < time.Minute {
		return nil
	}
	if _, err := r.cfg.Pool.Exec(ctx, sqlRecord, epoch, r.cfg.Node, keys); err != nil {
		return fmt.Errorf("record the sealing keys of this node: %w", err)
	}
	r.recorded, r.recordAt = now, time.Now()
	return nil
}

// current is the row of the current key; id is "" if there is none.
func current(ctx context.Context, db pg.DB) (id string, since time.Time, age time.Duration, err error) {
	err = db.QueryRow(ctx, sqlCurrent).Scan(&id, &since, &age)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", since, 0, fmt.Errorf("read which sealing key is current: %w", err)
	}
	return id, since, age, nil
}

// Follow has a Sealer seal with the current key of all nodes. A Sealer that comes from a file seals
// nothing before. The error is seal.ErrSeal if its file lacks the key.
func Follow(ctx context.Context, db pg.DB, sealer *seal.Sealer) error {
	id, _, _, err := current(ctx, db)
	if err != nil {
		return err
	}
	if id == "" {
		id = sealer.Current()
	}
	return sealer.Use(id)
}

// value is a sealed value and the parts of its place.
type value struct {
	parts  []string
	sealed []byte
}

func (v *value) place() string { return strings.Join(v.parts, "\x00") }

// each calls do for the values of a column that do not begin with head, nil for all, while do
// returns true. It reads a batch at a time.
func each(ctx context.Context, db pg.DB, c seal.Column, head []byte, do func(v value) (more bool)) error {
	page := `select parts, value from (` + c.Read + `) v (parts, value) where parts > $2::text[] order by parts limit $3`
	for after := []string{}; ; {
		rows, _ := db.Query(ctx, page, head, after, batch) // CollectRows has its error
		list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v value, err error) {
			return v, row.Scan(&v.parts, &v.sealed)
		})
		if err != nil {
			return fmt.Errorf("read what is sealed: %w", err)
		}
		for _, v := range list {
			if after = v.parts; !do(v) {
				return nil
			}
		}
		if len(list) < batch {
			return nil
		}
	}
}

// reseal seals a batch of each column with the current key. It leaves alone the values that do not
// open, or that were changed since they were read.
func reseal(ctx context.Context, db pg.DB, sealer *seal.Sealer) (n int64, err error) {
	for _, c := range columns() {
		var list []value
		err := each(ctx, db, c, sealer.Head(), func(v value) bool {
			if _, err := sealer.KeyOf(v.place(), v.sealed); err == nil {
				list = append(list, v)
			}
			return len(list) < batch
		})
		if err != nil {
			return n, err
		}
		for _, v := range list {
			secret, err := sealer.Open(v.place(), v.sealed)
			if err != nil {
				continue // its key has gone since
			}
			anew, err := sealer.Seal(v.place(), secret)
			if err != nil {
				return n, err
			}
			tag, err := db.Exec(ctx, c.Write, v.parts, v.sealed, anew)
			if err != nil {
				return n, fmt.Errorf("seal %s with another key: %w", strings.Join(v.parts, " "), err)
			}
			n += tag.RowsAffected()
		}
	}
	return n, nil
}
