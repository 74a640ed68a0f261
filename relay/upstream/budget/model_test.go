package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/longtest"
	"postern/internal/pg"
	"postern/internal/pgtest"
)

// world is a database whose clock the test turns, and nodes that share it.
type world struct {
	t    *testing.T
	pool *pgxpool.Pool
	now  time.Duration // since the epoch
	log  *slog.Logger
}

// start of the model's time: not on the edge of a bucket.
const start = 1_800_000_000*time.Second + 123_456*time.Microsecond

func newWorld(t *testing.T, setting string) *world {
	t.Helper()
	db := pgtest.New(t)
	cfg := db.Pool.Config()
	cfg.ConnConfig.RuntimeParams["search_path"] = "public, pg_catalog"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w := &world{t: t, pool: pool, now: start, log: slog.New(slog.DiscardHandler)}
	w.exec(`create table test_clock (at timestamptz not null)`)
	w.exec(`insert into test_clock values ($1)`, time.UnixMicro(w.now.Microseconds()))
	w.exec(`create function public.clock_timestamp() returns timestamptz language sql volatile as 'select at from test_clock'`)
	w.set(setting)
	return w
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) set(setting string) {
	w.t.Helper()
	w.exec(`insert into upstream (name, host, port, tls, budget) values ('out', 'h', 25, 'none', $1) on conflict (name) do update set budget = excluded.budget`, setting)
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	w.now += d.Round(time.Microsecond)
	w.exec(`update test_clock set at = $1`, time.UnixMicro(w.now.Microseconds()))
}

// machine is the clock of a node's machine, which has an origin of its own.
type machine struct {
	w      *world
	origin time.Duration
}

func (m machine) Now() time.Duration { return m.w.now - m.origin }

// site is a node, driven by hand.
type site struct {
	*Budgets
	w     *world
	epoch int64
}

func (w *world) node() *site {
	w.t.Helper()
	s := &site{w: w}
	err := w.pool.QueryRow(w.t.Context(), `insert into node (name, expires_at) values ('n', now() + interval '1 hour') returning epoch`).Scan(&s.epoch)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Budgets = New(Config{DB: w.pool, Epoch: func() int64 { return s.epoch }, Log: w.log, Clock: machine{w, start - time.Duration(s.epoch)*time.Hour}})
	return s
}

// try is what Take does but for waiting, and Turn: done if the message may be sent.
func (s *site) try(a Ask) (done func(), wait *Wait) {
	s.mu.Lock()
	u := s.account(&a)
	done, wait = s.Budgets.try(u, u.limits, &a, true)
	s.mu.Unlock()
	if wait != nil && wait.For != "" {
		turn := s.Turn(wait.For, a.Recipients, a.Again)
		wait = &turn
	}
	return done, wait
}

// turnOver is one turn of Run.
func (s *site) turnOver() {
	s.w.t.Helper()
	if err := s.call(s.w.t.Context(), s.request(false)); err != nil {
		s.w.t.Fatal(err)
	}
}

// lose has the database do what the node asks for, and the answer lost.
func (s *site) lose() {
	was := s.cfg.DB
	s.cfg.DB = mute{was}
	_ = s.call(s.w.t.Context(), s.request(false))
	s.cfg.DB = was
}

// take sends a message if the budget allows it within some turns.
func (s *site) send(a Ask) (done func(), wait *Wait) {
	for range 3 {
		if done, wait = s.try(a); done != nil || wait != nil {
			return done, wait
		}
		s.turnOver()
	}
	return nil, nil
}

// sent is a message at the server, which counts it at a moment of the transaction.
type sent struct {
	at         time.Duration
	recipients int64
}

// most is the most of any window.
func most(list []sent, window time.Duration, of func(sent) int64) (sum int64) {
	slices.SortFunc(list, func(a, b sent) int { return int(a.at - b.at) })
	var now int64
	first := 0
	for _, s := range list {
		now += of(s)
		for list[first].at <= s.at-window {
			now -= of(list[first])
			first++
		}
		sum = max(sum, now)
	}
	return sum
}

func one(sent) int64            { return 1 }
func recipients(s sent) int64   { return s.recipients }
func out(setting string) Ask    { return Ask{Upstream: "out", Setting: setting, Recipients: 1} }
func again(setting string) Ask  { a := out(setting); a.Again = true; return a }
func times(short, many int) int { return map[bool]int{false: short, true: many}[longtest.Run()] }

// TestModel has nodes send as much as they may, and be killed, lose answers and be cut off from
// the database: in no window the server sees more than the limits, in whichever moment of a
// transaction it counts; and most of them is used.
func TestModel(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"messages 30/m", "messages 40/m, recipients 100/2m", "messages 20/s", "messages 600/m, recipients 90/15s"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			model(t, setting, rand.Uint64(), times(400, 5000))
		})
	}
}

func model(t *testing.T, setting string, seed uint64, steps int) {
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	limits, err := Parse(setting)
	if err != nil {
		t.Fatal(err)
	}
	shortest := limits[0].Window
	for _, l := range limits {
		shortest = min(shortest, l.Window)
	}
	w := newWorld(t, setting)
	nodes := []*site{w.node(), w.node(), w.node()}
	type transaction struct {
		node  *site
		began time.Duration
		n     int64
		done  func()
	}
	var open []transaction
	var server []sent
	end := func(i int) {
		at := open[i].began + time.Duration(random.Int64N(int64(w.now-open[i].began)+1))
		server = append(server, sent{at, open[i].n})
		open[i].done()
		open = slices.Delete(open, i, i+1)
	}
	for range steps {
		i := random.IntN(len(nodes))
		n := nodes[i]
		switch random.IntN(40) {
		case 0: // killed, with what it sends
			for k := len(open) - 1; k >= 0; k-- {
				if open[k].node == n {
					end(k)
				}
			}
			nodes[i] = w.node()
		case 1:
			n.lose()
		case 2, 3, 4:
			w.pass(time.Duration(random.Int64N(int64(shortest / 4))))
		case 5:
			if random.IntN(10) == 0 {
				w.pass(time.Duration(random.Int64N(int64(2 * shortest))))
			}
		default:
			a := Ask{Upstream: "out", Setting: setting, Recipients: 1 + random.IntN(4), Again: true}
			if random.IntN(3) > 0 {
				n.turnOver()
			}
			if done, _ := n.try(a); done != nil {
				open = append(open, transaction{n, w.now, int64(a.Recipients), done})
			}
			if random.IntN(3) > 0 {
				n.turnOver()
			}
			w.pass(time.Duration(random.Int64N(int64(shortest / 100))))
		}
		for len(open) > random.IntN(6) {
			end(random.IntN(len(open)))
		}
	}
	for len(open) > 0 {
		end(0)
	}
	for _, l := range limits {
		of := one
		if l.Kind == "recipients" {
			of = recipients
		}
		if got := most(server, l.Window, of); got > l.Max {
			t.Errorf("%s: %d in a window", l, got)
		}
	}
	if len(server) < steps/20 {
		t.Errorf("only %d messages in %d steps, %v", len(server), steps, w.now-start)
	}
}

// TestRates: two nodes with more to send than they may use up nearly all of a budget, in few
// statements, and a portion is at most a tenth of what is left.
func TestRates(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		setting string
		most    int64
		window  time.Duration
		calls   int64 // in a window, at most
	}{{"messages 30/m", 30, time.Minute, 120}, {"messages 10000/s", 10_000, time.Second, 200}} {
		t.Run(test.setting, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, test.setting)
			counting := &counter{DB: w.pool}
			nodes := []*site{w.node(), w.node()}
			var server []sent
			for _, n := range nodes {
				n.cfg.DB = counting
			}
			turns, windows := 100, 4
			for range turns * windows {
				for _, n := range nodes {
					n.turnOver()
					for {
						done, _ := n.try(again(test.setting))
						if done == nil {
							break
						}
						server = append(server, sent{w.now, 1})
						done()
					}
				}
				w.pass(test.window / time.Duration(turns))
			}
			if got := most(server, test.window, one); got > test.most {
				t.Errorf("%d in a window", got)
			}
			if got, want := int64(len(server)), test.most*int64(windows); got < want/2 {
				t.Errorf("%d were sent in %d windows, of %d", got, windows, want)
			}
			t.Logf("%d of %d, %d calls in each window", len(server), test.most*int64(windows), counting.n/int64(windows))
			if counting.n/int64(windows) > test.calls {
				t.Errorf("%d calls in a window", counting.n/int64(windows))
			}
		})
	}
}

// mute does what it is asked for, and does not answer.
type mute struct{ pg.DB }

func (m mute) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := m.DB.Query(ctx, sql, args...)
	if err == nil {
		rows.Close()
		err = errors.New("the answer is lost")
	}
	return nil, err
}

// counter counts queries.
type counter struct {
	pg.DB
	n int64
}

func (c *counter) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	c.n++
	return c.DB.Query(ctx, sql, args...)
}

// TestPortions: a portion is a tenth at most; what a node did not use it gives back; what a dead
// one had counts until its window has passed after the end of its lease.
func TestPortions(t *testing.T) {
	t.Parallel()
	const setting = "messages 100/m"
	w := newWorld(t, setting)
	a, b := w.node(), w.node()
	for range 100 { // many want many
		a.try(again(setting))
	}
	a.turnOver()
	if p := a.upstreams["out"].limits[0]; p.held != 10 {
		t.Fatalf("a portion of %d of 100", p.held)
	}
	done, _ := a.try(again(setting))
	done()
	a.turnOver()
	for range 2 {
		w.pass(4 * time.Second) // past the half of its lease
		a.turnOver()
	}
	if got := w.used(setting); got != 1 {
		t.Errorf("%d are used after a node gave the rest back, want 1", got)
	}
	for range 100 {
		b.try(again(setting))
	}
	b.turnOver()
	held := b.upstreams["out"].limits[0].held // b dies
	w.pass(62 * time.Second)
	a.try(again(setting))
	a.turnOver()
	if got := w.used(setting); got < held {
		t.Errorf("%d are used: the dead node may have sent %d", got, held)
	}
	w.pass(68 * time.Second)
	a.turnOver()
	a.try(again(setting))
	a.turnOver()
	if got := w.used(setting); got > 1 {
		t.Errorf("%d are used after the window", got)
	}
}

func (w *world) used(setting string) int64 {
	w.t.Helper()
	list, err := Read(w.t.Context(), w.pool, map[string]string{"out": setting})
	if err != nil || len(list) != 1 {
		w.t.Fatalf("%v, %v", list, err)
	}
	return list[0].Limits[0].Used
}

// TestStopIsNoTrouble: a node that cuts its own call off says nothing of the database.
func TestStopIsNoTrouble(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	b := &Budgets{cfg: Config{Log: slog.New(slog.NewTextHandler(&text, nil))}}
	b.tell(fmt.Errorf("ask: %w", context.Canceled))
	if text.Len() != 0 {
		t.Errorf("logged %s", &text)
	}
	if b.tell(fmt.Errorf("ask: %w", context.DeadlineExceeded)); text.Len() == 0 {
		t.Error("a database that does not answer is not told")
	}
}

// TestSilence: without a database a node spends what it has leased, until the lease ends.
func TestSilence(t *testing.T) {
	t.Parallel()
	const setting = "messages 100/m"
	w := newWorld(t, setting)
	n := w.node()
	for range 50 {
		n.try(again(setting))
	}
	n.turnOver()
	for range 5 {
		if done, _ := n.try(again(setting)); done == nil {
			t.Fatal("what is leased is not spent")
		}
	}
	w.pass(6 * time.Second) // the lease
	if done, _ := n.try(again(setting)); done != nil {
		t.Error("spent after the end of the lease")
	}
}

// TestTurns: each that waits has a turn of its own, in order; the newer come behind the older,
// also after a restart; who comes at its turn is served; and all wake about once.
func TestTurns(t *testing.T) {
	t.Parallel()
	const setting = "messages 30/m"
	w := newWorld(t, setting)
	n := w.node()
	var turns []time.Duration
	served := 0
	for range 150 {
		done, wait := n.send(out(setting))
		if done != nil {
			done()
			served++
			continue
		}
		if wait == nil {
			t.Fatal("neither sent nor a turn")
		}
		turns = append(turns, w.now+wait.In)
	}
	if served != 30 || !slices.IsSorted(turns) {
		t.Fatalf("%d were served, turns %v", served, turns)
	}
	if last := turns[len(turns)-1] - w.now; last < 3*time.Minute || last > 5*time.Minute {
		t.Errorf("the last of 120 has its turn in %v", last)
	}
	if _, wait := n.send(out(setting)); wait == nil || w.now+wait.In < turns[len(turns)-1] {
		t.Errorf("a newcomer overtakes: %v", wait)
	}
	if wait := n.Behind(out(setting), 0); wait == nil || !strings.HasPrefix(wait.Why, "out: messages 30/m until 20") {
		t.Errorf("a way that is left is spent: %+v", wait)
	}
	want := fmt.Sprintf("out: messages 30/m until %s UTC", time.UnixMicro(turns[0].Microseconds()).UTC().Format(time.DateTime))
	if done, wait := n.try(again(setting)); wait == nil || wait.Why != want {
		t.Fatalf("%v, %v, want %q: %+v", done != nil, wait, want, *n.upstreams["out"].limits[0])
	}
	wakes := 0
	for i := 0; i < len(turns) && wakes < 1000; {
		if turns[i] > w.now {
			w.pass(turns[i] - w.now + time.Millisecond)
		}
		wakes++
		if done, wait := n.send(again(setting)); done != nil {
			done()
			i++
		} else {
			turns[i] = w.now + wait.In
			slices.Sort(turns[i:])
		}
	}
	if wakes > len(turns)*3/2 {
		t.Errorf("%d wakes of %d that waited", wakes, len(turns))
	}
	w.exec(`insert into recipient (message_id, n, user_id, expires_at, next_attempt_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt, waits_for)
		values (gen_random_uuid(), 0, 1, '2100-01-01', $1, 0, 0, 'd', 'l', 'd', '', '', 'budget out')`, time.UnixMicro((w.now + time.Hour).Microseconds()))
	if _, wait := w.node().send(out(setting)); wait == nil || wait.In < time.Hour-2*time.Second {
		t.Errorf("a restarted node lets a newcomer overtake what waits: %v", wait)
	}
}

// TestChange: a node with a former setting gets nothing.
func TestChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "messages 1/m")
	n := w.node()
	done, _ := n.send(out("messages 1/m"))
	done()
	if _, wait := n.send(out("messages 1/m")); wait == nil {
		t.Fatal("a second message in a minute")
	}
	w.set("messages 2/m")
	w.pass(3 * time.Second)
	n.turnOver()
	if _, wait := n.try(again("messages 1/m")); wait == nil || wait.In != changeWait {
		t.Errorf("with the former setting: %v", wait)
	}
	if done, wait := n.send(again("messages 2/m")); done == nil {
		t.Fatalf("the second of two: %v", wait)
	}
	if done, wait := n.send(again("messages 2/m")); done != nil || wait == nil {
		t.Error("the third of two")
	}
}

// TestMidnight: a day in a zone begins at its midnight, also where clocks are changed on that
// day, and nothing is sent around it.
func TestMidnight(t *testing.T) {
	t.Parallel()
	const setting = "messages 2/d@Europe/Berlin"
	w := newWorld(t, setting)
	n := w.node()
	for _, day := range []struct {
		noon, midnight string
		left           int
	}{
		{"2027-03-27T12:00:00Z", "2027-03-27T23:00:00Z", 2}, // winter time ends in that night
		{"2027-03-28T12:00:00Z", "2027-03-28T22:00:00Z", 1},
		{"2027-10-30T12:00:00Z", "2027-10-30T22:00:00Z", 2},
		{"2027-10-31T12:00:00Z", "2027-10-31T23:00:00Z", 1},
	} {
		noon, _ := time.Parse(time.RFC3339, day.noon)
		midnight, _ := time.Parse(time.RFC3339, day.midnight)
		w.pass(time.Duration(noon.UnixMicro())*time.Microsecond - w.now)
		n.turnOver() // the lease ended in the morning
		for range day.left {
			done, wait := n.send(again(setting))
			if done == nil {
				t.Fatalf("%s: %v", day.noon, wait)
			}
			done()
		}
		_, wait := n.send(again(setting))
		if want := midnight.Add(5 * time.Second).Sub(noon); wait == nil || wait.In.Round(time.Second) != want {
			t.Fatalf("%s: %v, want a wait of %v", day.noon, wait, want)
		}
		w.pass(15 * time.Second)
		n.turnOver() // reports
		w.pass(midnight.Sub(noon) - 14*time.Second)
		if done, _ := n.send(again(setting)); done != nil {
			t.Errorf("%s: sent a second after it", day.midnight)
		}
		w.pass(5 * time.Second)
		done, wait := n.send(again(setting))
		if done == nil {
			t.Fatalf("%s: %v", day.midnight, wait)
		}
		done()
		w.pass(15 * time.Second)
		n.turnOver()
	}
}

// TestSessions: connections over all nodes, those of a dead node until it is reaped.
func TestSessions(t *testing.T) {
	t.Parallel()
	const setting = "sessions 3"
	w := newWorld(t, setting)
	enter := func(s *site) (leave func()) {
		a := out(setting)
		for range 2 {
			s.mu.Lock()
			u := s.account(&a)
			leave, _ = s.Budgets.try(u, u.sessions, &a, true)
			s.mu.Unlock()
			if leave != nil {
				return leave
			}
			w.pass(sessionsAgain)
			s.turnOver()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		u := s.account(&a)
		leave, _ = s.Budgets.try(u, u.sessions, &a, true)
		return leave
	}
	a, b := w.node(), w.node()
	var leaves []func()
	for range 3 {
		leaves = append(leaves, enter(a))
	}
	if slices.ContainsFunc(leaves, func(l func()) bool { return l == nil }) || enter(a) != nil || enter(b) != nil {
		t.Fatal("a node alone has all three, and no more")
	}
	leaves[0]()
	w.pass(2 * time.Second)
	a.turnOver()
	if enter(b) == nil {
		t.Fatal("what was returned is not given to the other")
	}
	leaves[1]()
	w.pass(2 * time.Second)
	a.turnOver()
	if enter(b) == nil || enter(b) != nil {
		t.Fatal("two of three for b, and one is a's")
	}
	c := w.node() // b is dead, and not reaped
	if enter(c) != nil {
		t.Fatal("a dead node's connections may be open")
	}
	w.exec(`update node set reaped_at = now() where epoch = $1`, b.epoch)
	if enter(c) == nil {
		t.Fatal("a reaped node's slots are not free")
	}
}

// TestVisit: a command takes a session as a node does, and gives it back; if it dies, its time ends.
func TestVisit(t *testing.T) {
	t.Parallel()
	const setting = "sessions 1"
	w := newWorld(t, setting)
	session := func(visitor *Budgets) (leave func(), wait *Wait) {
		return visitor.Session(t.Context(), out(setting))
	}
	visit := func() (*Budgets, func()) {
		t.Helper()
		w.pass(time.Millisecond)
		visitor, leave, err := Visit(t.Context(), w.pool, time.Minute, 500*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		return visitor, leave
	}
	first, leave := visit()
	done, wait := session(first)
	if done == nil {
		t.Fatalf("no session, though none is in use: %+v", wait)
	}
	second, leaveSecond := visit()
	if _, wait := session(second); wait == nil || wait.Why != "out: sessions 1 over all nodes" {
		t.Fatalf("two sessions of one: %+v", wait)
	}
	w.pass(59 * time.Second)
	if _, wait := session(second); wait == nil {
		t.Fatal("the session is lost before its time")
	}
	leaveSecond()
	done()
	leave()
	third, _ := visit() // which dies
	if done, wait := session(third); done == nil {
		t.Fatalf("what was returned is not free: %+v", wait)
	}
	w.pass(61 * time.Second)
	fourth, leave := visit()
	defer leave()
	if done, wait := session(fourth); done == nil {
		t.Fatalf("a dead command keeps its session: %+v", wait)
	}
}

func TestStatements(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}

// An upstream whose budget the database cannot reckon, as after a move to one that knows other time
// zones, is alone with that: the others are leased and read as ever.
func TestOneIsBad(t *testing.T) {
	t.Parallel()
	const setting, bad, good = "messages 10/m", "recipients 5/d@Nowhere/Else", "recipients 5/d@UTC"
	w := newWorld(t, setting)
	w.exec(`insert into upstream (name, host, port, tls, budget) values ('bad', 'h', 25, 'none', $1)`, bad)
	s := w.node()
	sends := func(a Ask) bool {
		done, _ := s.send(a)
		if done != nil {
			done()
		}
		return done != nil
	}
	wrong := Ask{Upstream: "bad", Setting: bad, Recipients: 1}
	for i := range 10 {
		if sends(wrong) {
			t.Fatal("what cannot be counted was sent")
		}
		if !sends(out(setting)) {
			t.Fatalf("%d of 10 were sent", i)
		}
		w.pass(2 * time.Second)
	}
	settings := map[string]string{"out": setting, "bad": bad, "newer": "messages 5/fortnight"}
	if list, err := Read(t.Context(), w.pool, settings); err != nil || len(list) != 3 || list[0].Err == nil || list[1].Err == nil || list[2].Limits[0].Left != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := Read(t.Context(), w.pool, map[string]string{"bad": bad}); err != nil || list[0].Err == nil {
		t.Error("asked about it alone, nothing is said of it")
	}
	newer := Ask{Upstream: "newer", Setting: "messages 5/fortnight", Recipients: 1}
	if _, wait := s.try(newer); wait == nil || s.Behind(newer, 0) == nil {
		t.Error("what a newer program has set is no limit")
	}
	w.exec(`update upstream set budget = $1 where name = 'bad'`, good)
	wrong.Setting = good
	w.pass(2 * time.Second)
	if !sends(wrong) {
		t.Error("the corrected one is not sent to")
	}
}

// Mail that an admin holds waits for no budget. However much there is, a lease does not read it; and
// what waits for an upstream is counted once, however many limits it has.
func TestHeldMail(t *testing.T) {
	t.Parallel()
	const setting = "messages 10/m, recipients 1000/d, sessions 3"
	w := newWorld(t, setting)
	w.exec(pgtest.LoadBacklog, 1, 5000, 10)
	w.exec(`update recipient set waits_for = 'budget out', held_at = case when user_id > 1 then now() end`)
	w.exec(`analyze recipient`)
	list, err := Read(t.Context(), w.pool, map[string]string{"out": setting})
	if err != nil || len(list) != 1 || list[0].Waiting != 500 {
		t.Errorf("%+v, %v; want 500 that wait", list, err)
	}
	limits, _ := Parse(setting)
	var kinds, zones []string
	var windows []int32
	for _, l := range limits {
		kinds, zones, windows = append(kinds, string(l.Kind)), append(zones, ""), append(windows, int32(l.Window/time.Second))
	}
	for _, n := range pgtest.Explain(t, w.pool, sqlUsage, []string{"out", "out", "out"}, kinds, windows, zones) {
		if n.Relation == "recipient" && n.Loops > 1 {
			t.Errorf("what waits is counted %v times", n.Loops)
		}
	}
	w.exec(`update recipient set held_at = now()`)
	w.exec(`vacuum analyze recipient`)
	conn, err := w.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	pgtest.Cost(t, conn.Conn(), "the last turn", 100, `select max(next_attempt_at) from recipient
		where waits_for is not null and waits_for = 'budget out' and owner is null and held_at is null`)
}
