package anomaly

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlNote               = texts.Bind("note", "user_id", "recipient", "new_network", "message_id", "rejected")
	sqlJudge              = texts.Bind("judge", "user_id")
	sqlSetSigns           = texts.Bind("set_signs", "min_recipients", "first_time_share", "rejected_share", "new_network_factor")
	sqlSeedCorrespondents = texts.Bind("seed_correspondents")
)

// By is the maker of these holds, in place of an admin's name.
const By = "anomaly"

// Signs says which signs of a compromised account put a user on hold. A zero value turns
// its sign off. Each looks at the current and the last clock hour.
type Signs struct {
	MinRecipients    int     `json:"min_recipients"`               // no sign trips on fewer
	FirstTimeShare   float64 `json:"first_time_share,omitempty"`   // of them, never written to before: 0 to 1
	RejectedShare    float64 `json:"rejected_share,omitempty"`     // of them, refused for good by the next server: 0 to 1
	NewNetworkFactor float64 `json:"new_network_factor,omitempty"` // times the user's hourly mean, from networks new to it
}

func (s Signs) on() bool {
	return s.FirstTimeShare > 0 || s.RejectedShare > 0 || s.NewNetworkFactor > 0
}

// activity is a user's mail in the hours that a sign looks at.
type activity struct {
	User       int64
	Recipients int
	FirstTime  int
	NewNetwork int
	Delivered  int
	Rejected   int
	Mean       float64 // recipients an hour in the 14 days before
}

// judge returns the reason to put a user on hold, "" if there is none.
func (s Signs) judge(a activity) string {
	tried := a.Delivered + a.Rejected
	switch {
	case s.FirstTimeShare > 0 && a.Recipients >= s.MinRecipients && float64(a.FirstTime) >= s.FirstTimeShare*float64(a.Recipients):
		return fmt.Sprintf("anomaly: %d of %d recipients were never written to before", a.FirstTime, a.Recipients)
	case s.RejectedShare > 0 && tried >= s.MinRecipients && float64(a.Rejected) >= s.RejectedShare*float64(tried):
		return fmt.Sprintf("anomaly: %d of %d recipients were refused by the next server", a.Rejected, tried)
	case s.NewNetworkFactor > 0 && a.NewNetwork >= s.MinRecipients && float64(a.NewNetwork) >= s.NewNetworkFactor*a.Mean:
		return fmt.Sprintf("anomaly: %d recipients from a new network, %.1f an hour are usual", a.NewNetwork, a.Mean)
	}
	return ""
}

const (
	lookEvery   = time.Second
	mostNotes   = 1 << 15 // recipients and endings noted at most; the rest is not counted
	reloadEvery = 5 * time.Second
	closeTime   = 500 * time.Millisecond // the queue still has outcomes to write
)

// Config configures a Detector.
type Config struct {
	Pool  *pgxpool.Pool
	Log   *slog.Logger
	Guard *panics.Guard // keeps what panics from ending the process; may be nil

	// Trouble, if not nil, receives each error and reports whether it is the database's,
	// which others log.
	Trouble func(error) bool
}

// Detector counts what users do while a sign is on, and makes holds. It looks at mail
// after acceptance: nobody waits for it, and some mail of the second in which a sign trips
// is still sent. It is the queue's Watcher.
type Detector struct {
	cfg   Config
	signs atomic.Pointer[Signs]

	mu   sync.Mutex
	sent sent
	ends ends

	stop context.CancelFunc
	loop sync.WaitGroup
}

// sent are accepted recipients.
type sent struct {
	users      []int64
	to         []string
	newNetwork []bool
}

// ends are the ends of attempts.
type ends struct {
	ids      [][16]byte
	rejected []bool
}

// New makes a Detector; Start begins its work.
func New(cfg Config) *Detector {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Trouble == nil {
		cfg.Trouble = func(error) bool { return false }
	}
	d := &Detector{cfg: cfg}
	d.signs.Store(&Signs{})
	return d
}

// Start begins the work.
func (d *Detector) Start() {
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	d.loop.Go(func() { d.cfg.Guard.Keep(ctx, "anomaly", func() { d.run(ctx) }) })
}

// Close ends the work, and writes the notes of the last second within closeTime.
func (d *Detector) Close() {
	if d.stop == nil {
		return
	}
	d.stop()
	d.loop.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	d.heard(ctx, d.cfg.Guard.Try("anomaly: the last notes", func() error { return d.look(ctx) }))
}

// Accepted notes the recipients of a message.
func (d *Detector) Accepted(m *queue.Message, rcpts []queue.Recipient) {
	if !d.signs.Load().on() || m.UserID == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range rcpts {
		if len(d.sent.users) >= mostNotes {
			return
		}
		d.sent.users = append(d.sent.users, m.UserID)
		d.sent.to = append(d.sent.to, pg.Storable(rcpts[i].Address.String()))
		d.sent.newNetwork = append(d.sent.newNetwork, m.NewNetwork)
	}
}

// Ended notes how the next server answered.
func (d *Detector) Ended(o *queue.Outcome) {
	if d.signs.Load().RejectedShare == 0 || o.Result != queue.Delivered && o.Result != queue.Failed {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ends.ids) < mostNotes {
		d.ends.ids, d.ends.rejected = append(d.ends.ids, o.Message), append(d.ends.rejected, o.Result == queue.Failed)
	}
}

func (d *Detector) run(ctx context.Context) {
	reload := time.Time{}
	for {
		if time.Now().After(reload) {
			reload = time.Now().Add(reloadEvery)
			d.heard(ctx, d.reload(ctx))
		}
		d.heard(ctx, d.look(ctx))
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

// heard logs err, unless the database is away: others log that.
func (d *Detector) heard(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !d.cfg.Trouble(err) {
		d.cfg.Log.Warn("anomaly detection failed, will retry", "error", err)
	}
}

// look writes the notes and judges the users they are about.
func (d *Detector) look(ctx context.Context) error {
	d.mu.Lock()
	said, ended := d.sent, d.ends
	d.sent, d.ends = sent{}, ends{}
	d.mu.Unlock()
	if len(said.users) == 0 && len(ended.ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	rows, err := d.cfg.Pool.Query(ctx, sqlNote, said.users, said.to, said.newNetwork, ended.ids, ended.rejected)
	var users []int64
	if err == nil {
		users, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil {
		d.keep(said, ended)
		return fmt.Errorf("anomaly: %w", err)
	}
	return d.judge(ctx, users)
}

// keep puts back notes that could not be written, if there is room.
func (d *Detector) keep(said sent, ended ends) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.sent.users)+len(said.users) <= mostNotes {
		d.sent.users, d.sent.to = append(said.users, d.sent.users...), append(said.to, d.sent.to...)
		d.sent.newNetwork = append(said.newNetwork, d.sent.newNetwork...)
	}
	if len(d.ends.ids)+len(ended.ids) <= mostNotes {
		d.ends.ids, d.ends.rejected = append(ended.ids, d.ends.ids...), append(ended.rejected, d.ends.rejected...)
	}
}

func (d *Detector) judge(ctx context.Context, users []int64) error {
	rows, err := d.cfg.Pool.Query(ctx, sqlJudge, users)
	if err != nil {
		return fmt.Errorf("anomaly: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[activity])
	if err != nil {
		return fmt.Errorf("anomaly: %w", err)
	}
	signs := d.signs.Load()
	for _, a := range list {
		reason := signs.judge(a)
		if reason == "" {
			continue
		}
		if _, err := desk.NewAdmin(d.cfg.Pool).As(By).HoldUser(ctx, a.User, 0, reason); err != nil {
			return fmt.Errorf("anomaly: %w", err)
		}
	}
	return nil
}

// reload reads the signs that admins have set. After an error they stay as they are.
func (d *Detector) reload(ctx context.Context) error {
	signs, err := Read(ctx, d.cfg.Pool)
	if err == nil {
		d.signs.Store(&signs)
	}
	return err
}

// sqlSigns reads the settings.
const sqlSigns = `select min_recipients, coalesce(first_time_share, 0), coalesce(rejected_share, 0), coalesce(new_network_factor, 0) from anomaly`

// Read returns which signs are on.
func Read(ctx context.Context, db pg.DB) (Signs, error) {
	var s Signs
	if err := db.QueryRow(ctx, sqlSigns).Scan(&s.MinRecipients, &s.FirstTimeShare, &s.RejectedShare, &s.NewNetworkFactor); err != nil {
		return s, fmt.Errorf("read the signs of anomaly: %w", err)
	}
	return s, nil
}

// Set changes which signs are on, on behalf of actor; nodes follow within seconds. Turning
// the share of first-time recipients on reads the whole history once.
func Set(ctx context.Context, db pg.DB, actor string, s Signs) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		was, err := Read(ctx, tx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlSetSigns, s.MinRecipients, s.FirstTimeShare, s.RejectedShare, s.NewNetworkFactor); err != nil {
			return fmt.Errorf("set the signs of anomaly: %w", err)
		}
		if was.FirstTimeShare == 0 && s.FirstTimeShare > 0 {
			if _, err := tx.Exec(ctx, sqlSeedCorrespondents); err != nil {
				return fmt.Errorf("learn the users' correspondents: %w", err)
			}
		}
		return audit.Record(ctx, tx, actor, audit.Deed{Action: "anomaly set", Object: "anomaly", Detail: map[string]any{"was": was, "is": s}})
	})
}
