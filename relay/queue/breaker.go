package queue

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

// Breaker says which signs of a stolen account put a user on hold. A zero value
// turns its sign off. Each looks at the current and the last clock hour.
type Breaker struct {
	MinRecipients    int     `json:"min_recipients"`               // of fewer recipients nothing is concluded
	FirstTimeShare   float64 `json:"first_time_share,omitempty"`   // of them, never written to before: 0 to 1
	RejectedShare    float64 `json:"rejected_share,omitempty"`     // of them, refused for good by the next server: 0 to 1
	NewNetworkFactor float64 `json:"new_network_factor,omitempty"` // times the user's hourly mean, from networks new to it
}

func (b Breaker) on() bool {
	return b.FirstTimeShare > 0 || b.RejectedShare > 0 || b.NewNetworkFactor > 0
}

// activity is what a user did in the hours that the breaker looks at.
type activity struct {
	User       int64
	Recipients int
	FirstTime  int
	NewNetwork int
	Delivered  int
	Rejected   int
	Mean       float64 // recipients an hour in the 14 days before
}

// judge returns why a user is to be put on hold, "" if it is not.
func (b Breaker) judge(a activity) string {
	tried := a.Delivered + a.Rejected
	switch {
	case b.FirstTimeShare > 0 && a.Recipients >= b.MinRecipients && float64(a.FirstTime) >= b.FirstTimeShare*float64(a.Recipients):
		return fmt.Sprintf("breaker: %d of %d recipients were never written to before", a.FirstTime, a.Recipients)
	case b.RejectedShare > 0 && tried >= b.MinRecipients && float64(a.Rejected) >= b.RejectedShare*float64(tried):
		return fmt.Sprintf("breaker: %d of %d recipients were refused by the next server", a.Rejected, tried)
	case b.NewNetworkFactor > 0 && a.NewNetwork >= b.MinRecipients && float64(a.NewNetwork) >= b.NewNetworkFactor*a.Mean:
		return fmt.Sprintf("breaker: %d recipients from a new network, %.1f an hour are usual", a.NewNetwork, a.Mean)
	}
	return ""
}

const (
	breakerEvery  = time.Second
	breakerNotes  = 1 << 15 // recipients and endings noted at most; what is beyond is not looked at
	breakerReload = 5 * time.Second
	catchUpFor    = 20 * time.Second // from when this node has seen a hold first
)

// breaker counts what users do while a sign is on, and makes holds. It looks at mail
// after it was accepted: nobody waits for it, and some mail of the second in which it
// trips is sent.
type breaker struct {
	q        *Queue
	settings atomic.Pointer[Breaker]
	holds    map[holder]UserHold  // as last seen; nil before the first look
	young    map[holder]time.Time // of them, those to catch up with, until when

	mu   sync.Mutex
	sent breakerSent
	ends breakerEnds
}

type holder struct{ user, credential int64 }

// breakerSent are accepted recipients.
type breakerSent struct {
	users      []int64
	to         []string
	newNetwork []bool
}

// breakerEnds are the ends of attempts.
type breakerEnds struct {
	ids      [][16]byte
	rejected []bool
}

func newBreaker(q *Queue) *breaker {
	b := &breaker{q: q, young: make(map[holder]time.Time)}
	b.settings.Store(&Breaker{})
	return b
}

// accepted notes the recipients of a message.
func (b *breaker) accepted(j *job) {
	if !b.settings.Load().on() || j.m.UserID == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range j.rcpts {
		if len(b.sent.users) >= breakerNotes {
			return
		}
		b.sent.users = append(b.sent.users, j.m.UserID)
		b.sent.to = append(b.sent.to, pg.Storable(j.rcpts[i].Address.String()))
		b.sent.newNetwork = append(b.sent.newNetwork, j.m.NewNetwork)
	}
}

// ended notes what the next servers said.
func (b *breaker) ended(group []ending) {
	if b.settings.Load().RejectedShare == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range group {
		e := &group[i]
		if len(b.ends.ids) >= breakerNotes {
			return
		}
		if !e.release && !e.expired && (e.Result == Delivered || e.Result == Failed) {
			b.ends.ids, b.ends.rejected = append(b.ends.ids, e.Message), append(b.ends.rejected, e.Result == Failed)
		}
	}
}

func (b *breaker) run(ctx context.Context) {
	reload := time.Time{}
	for {
		if time.Now().After(reload) {
			reload = time.Now().Add(breakerReload)
			b.heard(ctx, b.reload(ctx))
		}
		b.heard(ctx, b.look(ctx))
		select {
		case <-ctx.Done():
			return
		case <-time.After(breakerEvery):
		}
	}
}

// heard says what went wrong, unless it is the database that is away, which others say.
func (b *breaker) heard(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !b.q.epochs.suspectIfDown(err) {
		b.q.log.Warn("queue: the breaker does not work", "error", err)
	}
}

// reload reads what admins have set, and tells of holds that were made or ended by
// whomever. After an error all stays as it is.
func (b *breaker) reload(ctx context.Context) error {
	a := NewAdmin(b.q.cfg.WorkPool)
	settings, err := a.Breaker(ctx)
	if err != nil {
		return err
	}
	b.settings.Store(&settings)
	list, err := a.UserHolds(ctx)
	if err != nil {
		return err
	}
	known := b.holds
	b.holds = make(map[holder]UserHold, len(list))
	for _, h := range list {
		who := holder{h.UserID, h.CredentialID}
		b.holds[who] = h
		if _, old := known[who]; old {
			continue
		}
		b.young[who] = time.Now().Add(catchUpFor)
		if known != nil && b.q.cfg.HoldMade != nil {
			b.q.cfg.HoldMade(h)
		}
	}
	for who, h := range known {
		if _, still := b.holds[who]; !still && b.q.cfg.HoldEnded != nil {
			b.q.cfg.HoldEnded(h)
		}
	}
	return b.catchUp(ctx)
}

// sqlCatchUpHolds holds what came back to waiting while a hold was made: neither of the
// two transactions saw the other. What an admin has released since stays so.
const sqlCatchUpHolds = `
update recipient r set held_at = now()
from hold h
where h.user_id = any($1::bigint[]) and r.user_id = any(array[h.user_id, -1]) and r.owner is null and r.held_at is null and r.state = 'queued'
	and exists (select from message m where m.id = r.message_id and m.user_id = h.user_id and h.credential_id in (0, m.credential_id) offset 0)
	and not exists (select from attempt a where a.message_id = r.message_id and a.n = r.n and a.result = 'release' and a.at > h.made_at)`

// catchUp looks after young holds for longer than an outcome can be under way.
func (b *breaker) catchUp(ctx context.Context) error {
	if len(b.young) == 0 {
		return nil
	}
	var users []int64
	now := time.Now()
	for who, until := range b.young {
		users = append(users, who.user)
		if now.After(until) {
			delete(b.young, who)
		}
	}
	if _, err := b.q.cfg.WorkPool.Exec(ctx, sqlCatchUpHolds, users); err != nil {
		return fmt.Errorf("catch up with holds: %w", err)
	}
	return nil
}

// look writes what was noted and judges the users whom it concerns.
func (b *breaker) look(ctx context.Context) error {
	b.mu.Lock()
	sent, ends := b.sent, b.ends
	b.sent, b.ends = breakerSent{}, breakerEnds{}
	b.mu.Unlock()
	if len(sent.users) == 0 && len(ends.ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	rows, err := b.q.cfg.WorkPool.Query(ctx, sqlActivity, sent.users, sent.to, sent.newNetwork, ends.ids, ends.rejected)
	var users []int64
	if err == nil {
		users, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil {
		b.keep(sent, ends)
		return fmt.Errorf("breaker: %w", err)
	}
	return b.judge(ctx, users)
}

// keep puts back what could not be written, if there is room.
func (b *breaker) keep(sent breakerSent, ends breakerEnds) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.sent.users)+len(sent.users) <= breakerNotes {
		b.sent.users, b.sent.to = append(sent.users, b.sent.users...), append(sent.to, b.sent.to...)
		b.sent.newNetwork = append(sent.newNetwork, b.sent.newNetwork...)
	}
	if len(b.ends.ids)+len(ends.ids) <= breakerNotes {
		b.ends.ids, b.ends.rejected = append(ends.ids, b.ends.ids...), append(ends.rejected, b.ends.rejected...)
	}
}

// sqlActivity adds to the hour's counts and returns the users that have some. Two
// nodes that note the same new recipient concurrently may both count it. That a recipient was
// written to again is noted once a month.
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

func (b *breaker) judge(ctx context.Context, users []int64) error {
	rows, err := b.q.cfg.WorkPool.Query(ctx, sqlJudge, users)
	if err != nil {
		return fmt.Errorf("breaker: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[activity])
	if err != nil {
		return fmt.Errorf("breaker: %w", err)
	}
	settings := *b.settings.Load()
	for _, a := range list {
		reason := settings.judge(a)
		if reason == "" {
			continue
		}
		if _, err := NewAdmin(b.q.cfg.WorkPool).As(ByBreaker).HoldUser(ctx, a.User, 0, reason); err != nil {
			return fmt.Errorf("breaker: %w", err)
		}
	}
	return nil
}

// sqlBreaker reads the settings.
const sqlBreaker = `select min_recipients, coalesce(first_time_share, 0), coalesce(rejected_share, 0), coalesce(new_network_factor, 0) from breaker`

// Breaker returns the settings of the breaker.
func (a *Admin) Breaker(ctx context.Context) (Breaker, error) {
	var b Breaker
	if err := a.db.QueryRow(ctx, sqlBreaker).Scan(&b.MinRecipients, &b.FirstTimeShare, &b.RejectedShare, &b.NewNetworkFactor); err != nil {
		return b, fmt.Errorf("read the breaker: %w", err)
	}
	return b, nil
}

// sqlSetBreaker writes the settings.
const sqlSetBreaker = `
update breaker set min_recipients = $1, first_time_share = nullif($2::float8, 0), rejected_share = nullif($3::float8, 0), new_network_factor = nullif($4::float8, 0)`

// sqlSeedCorrespondents learns from the history whom users have written to, so that
// turning the sign on does not make everybody a stranger.
const sqlSeedCorrespondents = `
insert into correspondent (user_id, recipient)
select distinct m.user_id, substr(sha256(convert_to(lower(a.local || '@' || a.domain), 'UTF8')), 1, 16)
from attempt a join message m on m.id = a.message_id where m.user_id > 0
on conflict do nothing`

// SetBreaker changes the settings; nodes follow within seconds. Turning the share of
// first-time recipients on reads the whole history once.
func (a *Admin) SetBreaker(ctx context.Context, b Breaker) error {
	return pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		within := &Admin{tx, a.actor}
		was, err := within.Breaker(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlSetBreaker, b.MinRecipients, b.FirstTimeShare, b.RejectedShare, b.NewNetworkFactor); err != nil {
			return fmt.Errorf("set the breaker: %w", err)
		}
		if was.FirstTimeShare == 0 && b.FirstTimeShare > 0 {
			if _, err := tx.Exec(ctx, sqlSeedCorrespondents); err != nil {
				return fmt.Errorf("learn whom users write to: %w", err)
			}
		}
		return within.audit(ctx, tx, "breaker set", "breaker", map[string]any{"was": was, "is": b})
	})
}
