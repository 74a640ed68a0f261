package relay_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"postern/internal/longtest"
	"postern/internal/rig"
	"postern/internal/serve"
	"postern/internal/smtptest"
)

// TestEventsUnderFire kills nodes, PostgreSQL and a reader of the feed while mail fails, is deferred, in
// doubt and held, and a webhook's endpoint fails. What the reader and the endpoint were told is then what
// the tables say, by an SQL statement that follows docs/events.md.
func TestEventsUnderFire(t *testing.T) {
	t.Parallel()
	f := fire{t: t, kills: 2, each: 130, hangs: 1, waits: 3}
	if longtest.Run() {
		f = fire{t: t, kills: 50, each: 400, hangs: 10, waits: 60}
	}
	f.begin()
	for n := range f.kills {
		awaitMore(t, f.load.Ledger, f.each)
		<-moment()
		switch n % 3 {
		case 0, 2:
			node := f.nodes[rand.IntN(len(f.nodes))]
			node.Kill()
			node.Start()
			node.Ready()
		case 1:
			f.rig.KillPostgres(n%2 == 0)
			f.rig.StartPostgres()
		}
		f.reader.kill()
		f.operate(n)
	}
	awaitMore(t, f.load.Ledger, f.each)
	f.calm()
	f.compare()
}

// fire is the installation of TestEventsUnderFire.
type fire struct {
	t            *testing.T
	kills, each  int   // messages before each kill
	hangs, waits int32 // answers of the endpoint

	rig    *rig.Rig
	nodes  []*rig.Node
	load   *rig.Load
	before map[string]int // rows of the time before the webhook
	reader *reader
	hook   *endpoint
	gone   *endpoint // answers 410
}

// begin starts all of it. The two webhooks and the reader begin behind what is there before.
func (f *fire) begin() {
	t := f.t
	f.rig = rig.New(t, true)
	r := f.rig
	sink := rig.NewSink(t, "", 20*time.Millisecond)
	r.RouteTo(sink, 10)
	// What goes to this server fails once.
	var seen sync.Map
	first := func(to string) bool { _, again := seen.LoadOrStore(to, true); return !again }
	unsteady := smtptest.Start(t, smtptest.Config{DiscardBodies: true})
	unsteady.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		if strings.Contains(s.Command, "@later.test") && first(s.Command) {
			return smtptest.Reply("451 4.2.1 not now")
		}
		return smtptest.Normal()
	})
	unsteady.On(smtptest.PhaseDot, func(s smtptest.Session) smtptest.Action {
		if !strings.Contains(s.Rcpts[0], "@later.test") && first(s.Rcpts[0]) {
			return smtptest.Close() // the message is taken
		}
		return smtptest.Normal()
	})
	for name, policy := range map[string]string{"later": "retry", "doubt": "hold", "told": "notice"} {
		r.Postern("", "upstream", "add", name, "--host", unsteady.Addr(), "--tls", "none", "--in-doubt", policy)
		r.Postern("", "route", "add", "--recipient-domain", name+".test", "--via", name)
	}
	r.Postern("", "upstream", "add", "paused", "--host", sink.Addr(), "--tls", "none")
	r.Postern("", "route", "add", "--recipient-domain", "held.test", "--via", "paused")
	r.Postern("", "upstream", "pause", "paused")
	for _, name := range []string{"a", "b"} {
		f.nodes = append(f.nodes, r.Node(rig.NodeConfig{Name: name, Extra: "[webhooks]\nallow = [\"127.0.0.0/8\"]\n"}))
	}

	f.before = f.rows()
	var place string
	for line := range strings.Lines(r.Postern("", "events", "--json")) {
		_, place = newHeard(t, "").note([]byte(line))
	}
	f.hook = newEndpoint(t, &endpoint{hangs: f.hangs, waits: f.waits})
	f.gone = newEndpoint(t, &endpoint{gone: true})
	f.hook.attach(f, "all")
	f.gone.attach(f, "gone")
	await(t, "the end of the endpoint that is gone", func() bool { return count(t, r, `select count(*) from webhook where state = 'disabled'`) == 1 })
	f.reader = newReader(t, r, place)
	ctx, cancel := context.WithCancel(t.Context())
	var hurry sync.WaitGroup
	hurry.Go(func() { f.hurry(ctx) })
	t.Cleanup(func() { cancel(); hurry.Wait() })

	f.load = newLoad(t, r, f.nodes...)
	var sent atomic.Int64
	f.load.Shape = func(random *rand.Rand) rig.Shape {
		shape := rig.Shape{From: fmt.Sprintf("sender%d@%s", random.IntN(50), rig.Domain), Size: 300 + random.IntN(2000)}
		local, domain := fmt.Sprintf("rcpt%d", random.Uint32()), fmt.Sprintf("dest%d.test", random.IntN(10))
		switch sent.Add(1) % 80 {
		case 0:
			local = rig.RefusedLocal + local
		case 1:
			domain = "later.test"
		case 2:
			domain = "doubt.test"
		case 3:
			domain = "told.test"
		case 4:
			domain = "held.test"
		}
		shape.To = []string{local + "@" + domain}
		return shape
	}
	f.load.Start()
}

// hurry makes what waits for the webhook's endpoint due, which is otherwise tried again after minutes.
func (f *fire) hurry(ctx context.Context) {
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		// PostgreSQL may be away: the next time will do.
		_, _ = f.rig.Count(ctx, `
with due as (select webhook_id, event_id from webhook_retry where next_at > clock_timestamp() for update skip locked),
hurried as (update webhook_retry r set next_at = clock_timestamp() from due d where r.webhook_id = d.webhook_id and r.event_id = d.event_id),
waits as (update webhook set wait_until = null where wait_until > clock_timestamp() + interval '2 seconds')
select count(*) from due`)
	}
}

// operate is what a person does: holds and releases mail, and decides doubts.
func (f *fire) operate(n int) {
	f.t.Helper()
	r := f.rig
	r.Postern("", "queue", "hold", "--domain", "held.test")
	r.Postern("", "queue", "release", "--domain", "held.test")
	r.Postern("", "queue", "resolve", "--domain", "doubt.test", []string{"--resend", "--delivered"}[n%2])
	r.Postern("", "queue", "retry", "--all")
}

// calm ends the load and returns when the queue is empty.
func (f *fire) calm() {
	t := f.t
	t.Helper()
	f.load.Stop()
	t.Log(f.load.Ledger)
	f.operate(0)
	f.rig.Postern("", "upstream", "resume", "paused")
	for n := 0; count(t, f.rig, `select count(*) from recipient where state <> 'delivered' or held_at is not null`) > 0; n++ {
		f.operate(n)
		time.Sleep(time.Second) // each round takes four commands
	}
	f.rig.Drain()
}

// compare waits until the reader and the endpoint have all that happened, and compares.
func (f *fire) compare() {
	t := f.t
	t.Helper()
	want := f.rows()
	for key := range f.before {
		delete(want, key)
	}
	f.reader.wait(want)
	f.hook.wait(want)
	await(t, "the end of retries", func() bool {
		return count(t, f.rig, `select count(*) from webhook_retry join webhook w on w.id = webhook_id where w.name = 'all'`) == 0
	})
	for _, node := range f.nodes {
		node.Terminate()
	}
	f.reader.stop()
	for _, e := range []*endpoint{f.hook, f.gone} {
		e.close() // no request is under way from here on
	}
	rows := f.rows()
	kinds := map[string]int{}
	for key, n := range want {
		kind, _, _ := strings.Cut(key, "|")
		kinds[kind] += n
	}
	t.Logf("%v; the endpoint had %d requests", kinds, f.hook.requests)
	for _, kind := range []string{"accepted", "delivered", "failed", "deferred", "in_doubt", "held", "released", "resolved", "noticed", "audit"} {
		if kinds[kind] == 0 {
			t.Errorf("nothing was %s: this run proves little", kind)
		}
	}

	again := newHeard(t, "a new reader")
	cmd := f.rig.Command(t.Context(), "events", "--json")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(out) {
		again.note(line)
	}
	again.judge(rows, rows)
	f.reader.judge(want, rows)
	f.hook.judge(want, rows)
	again.equal(&f.reader.heard, want)
	again.equal(&f.hook.heard, want)
	for _, problem := range append(f.hook.problems, f.gone.problems...) {
		t.Error(problem)
	}
	if n := count(t, f.rig, `select count(*) from webhook where given_up > 0 or gone_at is not null`); n != 0 {
		t.Error("a webhook has given up events")
	}
	if f.hook.hangs > 0 || f.hook.waits > 0 {
		t.Errorf("the endpoint was to hang %d times more, and to ask for a wait %d times", f.hook.hangs, f.hook.waits)
	}
	if state, err := f.rig.Text(t.Context(), `select state from webhook where name = 'gone'`); err != nil || state != "disabled" || f.gone.requests != 1 {
		t.Errorf("the endpoint that is gone: %s, %d requests, %v", state, f.gone.requests, err)
	}
}

// rows are the events that the tables tell of, by docs/events.md. "accepted?" is of a message that was
// voided, which may have been told before.
func (f *fire) rows() map[string]int {
	f.t.Helper()
	list, err := f.rig.Texts(f.t.Context(), `
select kind || '|' || about || '|' || (extract(epoch from at) * 1000000)::bigint from (
	select case when voided_at is null then 'accepted' else 'accepted?' end as kind, id::text as about, accepted_at as at from message
	union all
	select case when result in ('deferred', 'unknown') and outcome_unknown then 'in_doubt'
			when result = 'void' then 'voided' when result = 'hold' then 'held' when result = 'release' then 'released'
			when result = 'cancel' then 'cancelled' when result in ('resolve', 'resend') then 'resolved' else result end,
		message_id || ' ' || local || '@' || domain, at
	from history where not fenced and result <> 'retry' and (result <> 'unknown' or outcome_unknown)
	union all
	select 'audit', action || ' ' || object, at from audit
	union all
	select kind, object, at from event) r`)
	if err != nil {
		f.t.Fatal(err)
	}
	rows := map[string]int{}
	for _, key := range list {
		rows[key]++
	}
	return rows
}

// heard are the events that one side was told. It is safe for concurrent use.
type heard struct {
	t    testing.TB
	name string

	mu       sync.Mutex
	bodies   map[string]string   // by id
	ids      map[string][]string // by row
	times    int
	problems []string
}

func newHeard(t testing.TB, name string) *heard {
	return &heard{t: t, name: name, bodies: map[string]string{}, ids: map[string][]string{}}
}

// note writes down an event, and returns its id and cursor. The same id is always the same event; the place
// moves with the incarnation, and the next attempt with the queue.
func (h *heard) note(body []byte) (id, cursor string) {
	var e struct {
		ID, Cursor, Kind, Recipient, Action, Object string
		At                                          time.Time
		Message                                     *struct{ ID string }
	}
	var all map[string]any
	err := errors.Join(json.Unmarshal(body, &e), json.Unmarshal(body, &all))
	delete(all, "cursor")
	delete(all, "next_attempt")
	rest, more := json.Marshal(all)
	about := e.Object
	switch {
	case e.Message != nil:
		about = strings.TrimSpace(e.Message.ID + " " + e.Recipient)
	case e.Kind == "audit":
		about = e.Action + " " + e.Object
	}
	key := fmt.Sprintf("%s|%s|%d", e.Kind, about, e.At.UnixMicro())

	h.mu.Lock()
	defer h.mu.Unlock()
	h.times++
	before, known := h.bodies[e.ID]
	switch {
	case errors.Join(err, more) != nil || e.ID == "":
		h.problems = append(h.problems, fmt.Sprintf("%s: not an event: %v: %s", h.name, errors.Join(err, more), body))
	case known && before != string(rest):
		h.problems = append(h.problems, fmt.Sprintf("%s: two events of one id:\n%s\n%s", h.name, before, rest))
	case !known:
		h.bodies[e.ID] = string(rest)
		h.ids[key] = append(h.ids[key], e.ID)
	}
	return e.ID, e.Cursor
}

// missing are some of the rows that were not told.
func (h *heard) missing(want map[string]int, most int) (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, n := range want {
		if !strings.HasPrefix(key, "accepted?") && len(h.ids[key]) < n {
			list = append(list, key)
			if len(list) == most {
				break
			}
		}
	}
	return list
}

// wait returns when all rows of want were told, or none of them for rig.Patience.
func (h *heard) wait(want map[string]int) {
	h.t.Helper()
	left := len(want) + 1
	for until := time.Now().Add(rig.Patience); left > 0 && time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if n := len(h.missing(want, len(want))); n < left {
			left, until = n, time.Now().Add(rig.Patience)
		}
	}
}

// judge wants an event for each row of want, and none that is not of rows.
func (h *heard) judge(want, rows map[string]int) {
	h.t.Helper()
	for _, key := range h.missing(want, 20) {
		h.t.Errorf("%s was not told of %s", h.name, key)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.t.Logf("%s was told of %d events %d times", h.name, len(h.bodies), h.times)
	for key, ids := range h.ids {
		if len(ids) > rows[key]+rows[strings.Replace(key, "accepted|", "accepted?|", 1)] {
			h.t.Errorf("%s was told of %s, which is no row: %s", h.name, key, h.bodies[ids[0]])
		}
	}
	for _, problem := range h.problems[:min(len(h.problems), 20)] {
		h.t.Error(problem)
	}
}

// equal wants the same ids and bodies of the rows of want on both sides.
func (h *heard) equal(other *heard, want map[string]int) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	other.mu.Lock()
	defer other.mu.Unlock()
	wrong := 0
	for key := range want {
		for _, id := range h.ids[key] {
			if h.bodies[id] == other.bodies[id] {
				continue
			}
			if wrong++; wrong < 20 {
				h.t.Errorf("event %s of %s:\n%s: %s\n%s: %s", id, key, h.name, h.bodies[id], other.name, other.bodies[id])
			}
		}
	}
}

// reader is postern events --follow, which goes on where it was whenever it ended.
type reader struct {
	heard
	rig  *rig.Rig
	stop func()

	mu  sync.Mutex
	cut context.CancelFunc // ends the present process
}

func newReader(t testing.TB, r *rig.Rig, place string) *reader {
	a := &reader{heard: *newHeard(t, "the reader"), rig: r, cut: func() {}}
	ctx, cancel := context.WithCancel(context.Background())
	var life sync.WaitGroup
	life.Go(func() {
		for ctx.Err() == nil {
			place = a.live(ctx, place)
			time.Sleep(20 * time.Millisecond) // a process that ends immediately must not keep the machine busy
		}
	})
	a.stop = func() { cancel(); life.Wait() }
	t.Cleanup(a.stop)
	return a
}

// kill ends the present process by SIGKILL.
func (a *reader) kill() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cut()
}

// live is one process, from a place on; it returns the place of the last event that was read.
func (a *reader) live(ctx context.Context, place string) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	a.cut = cancel
	a.mu.Unlock()
	cmd := a.rig.Command(ctx, "events", "--follow", "--json", "--after", place)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return place
	}
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadBytes('\n') // a part of a line is none
		if err != nil {
			break
		}
		_, place = a.note(line)
	}
	_ = cmd.Wait()
	return place
}

// endpoint is a webhook's. It fails one time in five.
type endpoint struct {
	heard
	gone  bool
	url   string
	close func()

	library *standard.Webhook

	mu           sync.Mutex
	hangs, waits int32          // times that it is still to hang, and to answer 429
	tries        map[string]int // by id
	requests     int
}

func newEndpoint(t testing.TB, e *endpoint) *endpoint {
	t.Helper()
	listener, err := serve.Listen("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	e.heard.t, e.name, e.tries = t, "the endpoint", map[string]int{}
	e.bodies, e.ids = map[string]string{}, map[string][]string{}
	s := httptest.NewUnstartedServer(e)
	_ = s.Listener.Close()
	s.Listener = listener
	s.Start()
	t.Cleanup(s.Close)
	e.close = s.Close
	e.url = s.URL
	return e
}

// attach adds the webhook.
func (e *endpoint) attach(f *fire, name string) {
	f.t.Helper()
	e.mu.Lock() // requests wait
	defer e.mu.Unlock()
	said := f.rig.Postern("", "webhook", "add", e.url+"/"+name, "--all", "--name", name, "--concurrency", e.concurrency(), "--config", f.nodes[0].ConfigFile())
	_, secret, _ := strings.Cut(said, "whsec_")
	secret, _, _ = strings.Cut(secret, "\n")
	library, err := standard.NewWebhook("whsec_" + secret)
	if err != nil {
		f.t.Fatalf("%v: %s", err, said)
	}
	e.library = library
}

// concurrency is how many requests it is sent at the same time: one, if it is to have no more than one.
func (e *endpoint) concurrency() string {
	if e.gone {
		return "1"
	}
	return "8"
}

// answer says what a request is answered: 0 for nothing, -1 for the end of the connection. Nothing fails so
// often that it is given up.
func (e *endpoint) answer(id string) (status int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests++
	e.tries[id]++
	switch n := rand.IntN(100); {
	case e.gone:
		return http.StatusGone
	case n >= 20 || e.tries[id] > 6:
		return http.StatusNoContent
	case e.waits > 0 && e.requests > 100 && n < 4:
		e.waits--
		return http.StatusTooManyRequests
	case e.hangs > 0 && e.requests > 100 && n < 6:
		e.hangs--
		return 0
	case n < 12:
		return -1
	}
	return http.StatusInternalServerError
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // its sender was killed
	}
	id := r.Header.Get("webhook-id")
	status := e.answer(id)
	e.mu.Lock()
	err = e.library.Verify(body, r.Header)
	e.mu.Unlock()
	if err != nil {
		e.blame("%v: %s", err, body)
	}
	if status == http.StatusNoContent || status == -1 && rand.IntN(2) == 0 { // taken, but the answer is lost
		if had, _ := e.note(body); had != id {
			e.blame("webhook-id is %s: %s", id, body)
		}
	}
	switch status {
	case 0:
		<-r.Context().Done() // its sender has waited for long enough, or was killed
		fallthrough
	case -1:
		panic(http.ErrAbortHandler)
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
}

func (e *endpoint) blame(format string, args ...any) {
	e.heard.mu.Lock()
	defer e.heard.mu.Unlock()
	e.problems = append(e.problems, fmt.Sprintf(format, args...))
}
