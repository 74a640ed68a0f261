package relay_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
)

// TestUpstreamBudget: two nodes together send no more than an upstream's budget in any window, as
// the server sees it, over no more connections; all of it arrives, once, and by itself. With
// POSTERN_LONG the window is a minute, and a node is killed.
func TestUpstreamBudget(t *testing.T) {
	t.Parallel()
	window, most, each := 5*time.Second, 30, 9
	if longtest.Run() {
		window, most, each = time.Minute, 600, 250
	}
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	r.Postern("", "upstream", "set", "sink", "--budget", fmt.Sprintf("messages %d/%ds, sessions 3", most, int(window.Seconds())))
	a, b := r.Node(rig.NodeConfig{Name: "a"}), r.Node(rig.NodeConfig{Name: "b"})
	load := newLoad(t, r, a, b)
	load.Each, load.Pace = each, 0
	load.Start()
	load.Wait()
	if longtest.Run() {
		b.Kill()
		b.Start()
		b.Ready()
	}
	settle(t, r, load, sink, a, b)
	var at []time.Time
	for _, m := range sink.Received() {
		at = append(at, m.At)
	}
	slices.SortFunc(at, time.Time.Compare)
	peak := peakIn(at, window)
	t.Logf("%d messages in %v, at most %d in %v", len(at), at[len(at)-1].Sub(at[0]), peak, window)
	if peak > most || len(at) <= most {
		t.Errorf("%d of %d messages in one window, the most are %d", peak, len(at), most)
	}
}

// TestSpentBudget: mail that waits for a spent upstream keeps nobody else's mail to the same
// domains waiting, costs the database little, says why it waits, and goes when the budget is
// raised.
func TestSpentBudget(t *testing.T) {
	t.Parallel()
	each := 125
	if longtest.Run() {
		each = 12_500
	}
	r := rig.New(t, false)
	sink, other := rig.NewSink(t, "", 0), rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	r.Postern("", "upstream", "set", "sink", "--budget", "messages 10/m")
	r.Postern("", "upstream", "add", "other", "--host", other.Addr(), "--tls", "none")
	r.AddUser("other@" + rig.Domain)
	r.Postern("", "route", "add", "--user", "other@"+rig.Domain, "--via", "other")
	node := r.Node(rig.NodeConfig{Name: "a"})
	load := newLoad(t, r, node)
	load.Conns, load.Each, load.Pace, load.Shape = 8, each, 0, ofBudget
	load.Start()
	load.Wait()
	waiting := func() int {
		n, err := r.Count(t.Context(), `select count(*) from recipient where waits_for = 'budget sink'`)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	awaitBudget(t, "all waits", func() bool { return waiting() > 8*each*9/10 })
	writes := func() int {
		n, err := r.Count(t.Context(), `select n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables where relname = 'recipient'`)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const late = 11 * time.Second // the statistics of a connection that is idle
	time.Sleep(late)
	began, before := time.Now(), writes()
	second := newLoad(t, r, node)
	second.Name, second.Conns, second.Each, second.Pace, second.Shape = "other@"+rig.Domain, 1, 10, 0, ofBudget
	second.Start()
	second.Wait()
	awaitBudget(t, "the other user's mail", func() bool { return len(other.Received()) >= 10 })
	time.Sleep(late)
	if n := writes() - before; float64(n) > 100*time.Since(began).Seconds() {
		t.Errorf("%d row writes in %v", n, time.Since(began))
	}
	if shown := r.Postern("", "queue", "list", "--limit", "5"); !strings.Contains(shown, "waits for the budget of upstream sink") {
		t.Errorf("queue list: %s", shown)
	}
	id := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`).FindString(r.Postern("", "queue", "list", "--limit", "1"))
	for _, command := range []string{"show", "trace"} {
		args := map[string][]string{"show": {"queue", "show", id}, "trace": {"trace", id}}[command]
		if shown := r.Postern("", args...); !strings.Contains(shown, "451 4.4.5 waits for the budget of upstream sink: messages 10/m until 20") {
			t.Errorf("%q: %s", args, shown)
		}
	}
	if shown := r.Postern("", "explain", "--user", "load@"+rig.Domain, "--from", "a@"+rig.Domain, "--to", "b@dest1.test"); !strings.Contains(shown, "sink (its budget is spent; messages 10/m: 0 left)") {
		t.Errorf("explain: %s", shown)
	}
	if shown := r.Postern("", "queue", "shape"); !strings.Contains(shown, "recipients waiting for the budget of upstream sink, the last until 20") {
		t.Errorf("queue shape: %s", shown)
	}
	if shown := r.Postern("", "upstream", "show", "sink"); !strings.Contains(shown, "messages 10/m") {
		t.Errorf("upstream show: %s", shown)
	}
	r.Postern("", "upstream", "set", "sink", "--budget", "none")
	awaitBudget(t, "the rest", func() bool { return len(sink.Received()) >= 8*each })
}

// ofBudget is a small message to one of ten domains.
func ofBudget(random *rand.Rand) rig.Shape {
	return rig.Shape{From: "a@" + rig.Domain, Size: 500, To: []string{fmt.Sprintf("rcpt%d@dest%d.test", random.IntN(1000), random.IntN(10))}}
}

func awaitBudget(t *testing.T, what string, done func() bool) {
	t.Helper()
	began := time.Now()
	defer func() { t.Logf("%s: after %v", what, time.Since(began).Round(time.Millisecond)) }()
	for end := time.Now().Add(rig.Patience); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
