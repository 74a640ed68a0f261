package anomaly

import (
	"context"
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

// By is the maker of these holds, in place of an admin's name.
const By = "anomaly"

// Signs says which signs of a stolen account put a user on hold. A zero value turns
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

// Close ends the work.
func (d *Detector) Close() {
	if d.stop != nil {
		d.stop()
		d.loop.Wait()
	}
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
	rows, err := d.cfg.Pool.Query(ctx, sqlActivity, said.users, said.to, said.newNetwork, ended.ids, ended.rejected)
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

// sqlActivity adds to the hour's counts and returns the users it counted for. Two nodes
// that note the same new recipient concurrently may both count it. Further mail to a
// recipient is noted once a month.
const sqlActivity = `
with sent as materialized (select u.user_id, substr(sha256(convert_to(lower(u.recipient), 'UTF8')), 1, 16) as recipient, u.new_net
	from unnest($1::bigint[], $2::text[], $3::boolean[]) u(user_id, recipient, new_net)),
news as (insert into correspondent (user_id, recipient) select distinct user_id, recipient from sent order by user_id, recipient
	on conflict do nothing returning user_id),
again as materialized (select c.user_id, c.recipient from (select distinct user_id, recipient from sent) s
	join correspondent c on c.user_id = s.user_id and c.recipient = s.recipient
	where c.seen_on < current_date - 30 for update of c skip locked),
seen as (update correspondent c set seen_on = current_date from again a where c.user_id = a.user_id and c.recipient = a.recipient),
ends as materialized (select m.user_id, e.rejected from unnest($4::uuid[], $5::boolean[]) e(id, rejected) join message m on m.id = e.id where m.user_id > 0),
sums as (select user_id, sum(recipients) as recipients, sum(first_time) as first_time, sum(new_network) as new_network,
		sum(delivered) as delivered, sum(rejected) as rejected
	from (select user_id, 1 as recipients, 0 as first_time, new_net::int as new_network, 0 as delivered, 0 as rejected from sent
		union all select user_id, 0, 1, 0, 0, 0 from news
		union all select user_id, 0, 0, 0, (not rejected)::int, rejected::int from ends) x
	group by user_id)
insert into activity as a (user_id, hour, recipients, first_time, new_network, delivered, rejected)
select user_id, date_trunc('hour', now()), recipients, first_time, new_network, delivered, rejected from sums order by user_id
on conflict (user_id, hour) do update set recipients = a.recipients + excluded.recipients, first_time = a.first_time + excluded.first_time,
	new_network = a.new_network + excluded.new_network, delivered = a.delivered + excluded.delivered, rejected = a.rejected + excluded.rejected
returning user_id`

// sqlJudge sums up the users who are not on hold.
const sqlJudge = `
select a.user_id, sum(recipients) filter (where recent), coalesce(sum(first_time) filter (where recent), 0),
	coalesce(sum(new_network) filter (where recent), 0), coalesce(sum(delivered) filter (where recent), 0),
	coalesce(sum(rejected) filter (where recent), 0), coalesce(sum(recipients) filter (where not recent), 0)::float8 / (14 * 24)
from (select *, hour >= date_trunc('hour', now()) - interval '1 hour' as recent from activity
	where user_id = any($1::bigint[]) and hour > now() - interval '14 days') a
where not exists (select from hold h where h.user_id = a.user_id and h.credential_id = 0)
group by a.user_id having count(*) filter (where recent) > 0`

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

// sqlSetSigns writes the settings.
const sqlSetSigns = `
update anomaly set min_recipients = $1, first_time_share = nullif($2::float8, 0), rejected_share = nullif($3::float8, 0), new_network_factor = nullif($4::float8, 0)`

// sqlSeedCorrespondents learns the users' correspondents from the history, so that
// turning the sign on does not make everybody a stranger.
const sqlSeedCorrespondents = `
insert into correspondent (user_id, recipient)
select distinct m.user_id, substr(sha256(convert_to(lower(a.local || '@' || a.domain), 'UTF8')), 1, 16)
from history a join message m on m.id = a.message_id where m.user_id > 0
on conflict do nothing`

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
