package feed

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// run runs a program of a server's installation.
func run(t *testing.T, server *pgserver.Server, program string, args ...string) {
	t.Helper()
	if out, err := osexec.Command(filepath.Join(programs(server), program), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
}

func programs(server *pgserver.Server) string {
	return filepath.Dir(must1(os.Readlink(fmt.Sprintf("/proc/%d/exe", server.PID()))))
}

// makeStandby makes $1 the folder of a copy of $2 that waits for no primary. pgserver knows a folder of
// its own by the lock.
const makeStandby = `set -e; mkdir -m 700 "$1"; : >"$1/lock"
"$3/pg_basebackup" --dbname="$2" --pgdata="$1/data" --checkpoint=fast --no-sync; : >"$1/data/standby.signal"`

// standby copies a primary to dir, as the user that it runs as.
func standby(t *testing.T, primary *pgserver.Server, dir string) {
	t.Helper()
	cmd := osexec.Command("/bin/sh", "-c", makeStandby, "standby", dir, primary.URL(), programs(primary))
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		info, err := os.Stat(filepath.Join(primary.Dir(), "data"))
		must(t, err)
		owner := info.Sys().(*syscall.Stat_t)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make a standby: %v: %s", err, out)
	}
}

// connect opens a connection of its own, which a server's end breaks without harm to others.
func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// burn uses up numbers of transactions.
const burn = `do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop; end $$`

// behind reads what a reader gets behind a cursor.
func behind(t *testing.T, conn *pgx.Conn, after Cursor) ([]Event, Cursor) {
	t.Helper()
	page, err := Read(t.Context(), conn, after, Filter{})
	must(t, err)
	if page.More {
		t.Fatal("there is more than a page")
	}
	return page.Events, page.Next
}

// mark has the mark of the next minute written now.
func mark(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	exec(t, conn, `update feed_mark set at = at - interval '2 minutes'`)
	must(t, Mark(t.Context(), conn))
}

// missing are the messages of which the lists have not told, as told writes them.
func missing(t *testing.T, want []int, lists ...[]Event) (lost []int) {
	t.Helper()
	seen := map[string]bool{}
	for _, list := range lists {
		for _, e := range list {
			seen[numberOf(e)] = true
		}
	}
	for _, n := range want {
		if !seen[fmt.Sprint(n)] {
			lost = append(lost, n)
		}
	}
	return lost
}

// A dump, restored into another server whose transactions have lower numbers, loses what was written since.
// Its new rows come behind all restored ones, also those that were written before the first mark, by
// transactions that were open then, and by statements that were prepared before.
func TestReadAfterRestoredDump(t *testing.T) {
	t.Parallel()
	old, fresh := pgtest.Server(t, pgserver.Config{Unsafe: true}), pgtest.Server(t, pgserver.Config{Unsafe: true})
	from := marked(t, pgtest.On(t, old))
	before := connect(t, from.URL)
	exec(t, before, burn)
	exec(t, before, insertMessage, 1, 3)
	mark(t, before)
	early, slow := behind(t, before, Cursor{})
	if missing(t, []int{1, 2, 3}, early) != nil {
		t.Fatalf("read %s", told(early))
	}
	dump := filepath.Join(t.TempDir(), "dump")
	exec(t, before, insertHistory, 1, 3, "failed")
	run(t, old, "pg_dump", "--format=custom", "--file="+dump, from.URL)
	exec(t, before, burn)
	exec(t, before, insertMessage, 4, 4) // lost
	_, fast := behind(t, before, slow)

	into := connect(t, fresh.URL())
	run(t, fresh, "pg_restore", "--no-owner", "--dbname="+fresh.URL(), dump)
	prepared, open := connect(t, fresh.URL()), connect(t, fresh.URL())
	exec(t, into, insertMessage, 5, 5)
	exec(t, prepared, `set plan_cache_mode = force_generic_plan`)
	exec(t, prepared, insertMessage, 6, 6)
	tx, err := open.Begin(t.Context())
	must(t, err)
	exec(t, tx, insertMessage, 7, 7)
	if events, _ := behind(t, into, fast); len(events) > 0 {
		t.Errorf("behind its place before the mark: %s", told(events))
	}
	marking := make(chan error, 1)
	go func() { marking <- Mark(context.Background(), into) }()
	waits := connect(t, fresh.URL())
	for waiting := false; !waiting; {
		must(t, waits.QueryRow(t.Context(), `select exists (select from pg_locks where not granted)`).Scan(&waiting))
	}
	must(t, tx.Commit(t.Context()))
	must(t, <-marking)
	exec(t, prepared, insertMessage, 8, 8)
	exec(t, prepared, insertMessage, 9, 9)
	for name, c := range map[string]Cursor{"fast": fast, "slow": slow} {
		events, next := behind(t, into, c)
		if lost := missing(t, []int{5, 6, 7, 8, 9}, events); lost != nil {
			t.Errorf("the %s reader has not heard of %d: %s", name, lost, told(events))
		}
		if name == "slow" && len(events) < 8 {
			t.Errorf("the slow reader has not heard what was dumped: %s", told(events))
		}
		if again, _ := behind(t, into, next); len(again) > 0 {
			t.Errorf("the %s reader hears again of %s", name, told(again))
		}
	}
	var below int
	must(t, into.QueryRow(t.Context(), `select count(*) from message where id > id_of(4) and feed_at <= (select max(feed_at) from history)`).Scan(&below))
	if below > 0 {
		t.Errorf("%d new rows are below restored ones", below)
	}
	if n := moved(t, into); n != 3 {
		t.Errorf("%d rows were moved up, want those that were written before the mark", n)
	}
	exec(t, into, burn) // the numbers of the old server come by
	mark(t, into)
	exec(t, into, insertMessage, 10, 10)
	if events, _ := behind(t, into, fast); missing(t, []int{10}, events) != nil {
		t.Errorf("read %s", told(events))
	}
}

// moved counts the messages that the first mark after a restore has moved up.
func moved(t *testing.T, conn *pgx.Conn) (n int) {
	t.Helper()
	must(t, conn.QueryRow(t.Context(), `select count(*) from message where feed_at = (select max(feed_at) from feed_mark)`).Scan(&n))
	return n
}

// A standby that was behind is promoted, and gives numbers again that the reader has seen.
func TestReadAfterPromotion(t *testing.T) {
	t.Parallel()
	primary := pgtest.Server(t, pgserver.Config{})
	db := marked(t, pgtest.On(t, primary))
	before := connect(t, db.URL)
	exec(t, before, insertMessage, 1, 3)
	dir := pgtest.Dir(t)
	standby(t, primary, dir)
	exec(t, before, burn)
	exec(t, before, insertMessage, 4, 6) // lost
	_, at := behind(t, before, Cursor{})

	promoted := pgtest.Server(t, pgserver.Config{Dir: dir})
	after := connect(t, promoted.DatabaseURL(must1(pgx.ParseConfig(db.URL)).Database))
	exec(t, after, `select pg_promote()`)
	exec(t, after, insertMessage, 7, 8)
	exec(t, after, burn)
	exec(t, after, burn) // beyond the reader's place
	exec(t, after, insertMessage, 9, 9)
	first, at := behind(t, after, at)
	mark(t, after)
	exec(t, after, insertMessage, 10, 10)
	second, _ := behind(t, after, at)
	if lost := missing(t, []int{7, 8, 9, 10}, first, second); lost != nil {
		t.Errorf("lost %d: read %s, then %s", lost, told(first), told(second))
	}
}

// A volume is set back: the same server, on the same timeline, gives its numbers again.
func TestReadAfterVolumeSetBack(t *testing.T) {
	t.Parallel()
	dir := pgtest.Dir(t)
	server := pgtest.Server(t, pgserver.Config{Dir: dir, Unsafe: true})
	db := marked(t, pgtest.On(t, server))
	name := must1(pgx.ParseConfig(db.URL)).Database
	conn := connect(t, db.URL)
	exec(t, conn, insertMessage, 1, 3)
	exec(t, conn, `checkpoint`)
	saved := dir + "-saved"
	defer os.RemoveAll(saved)
	must(t, server.Kill())
	must(t, osexec.Command("cp", "-a", dir, saved).Run())

	server = pgtest.Server(t, pgserver.Config{Dir: dir, Unsafe: true})
	conn = connect(t, server.DatabaseURL(name))
	must(t, Mark(t.Context(), conn))
	exec(t, conn, burn)
	exec(t, conn, insertMessage, 4, 6) // lost
	read, at := behind(t, conn, Cursor{})
	must(t, server.Kill())
	must(t, os.RemoveAll(dir))
	must(t, os.Rename(saved, dir))

	server = pgtest.Server(t, pgserver.Config{Dir: dir, Unsafe: true})
	conn = connect(t, server.DatabaseURL(name))
	exec(t, conn, insertMessage, 7, 8)
	must(t, Mark(t.Context(), conn))
	exec(t, conn, burn)
	exec(t, conn, burn)
	exec(t, conn, insertMessage, 9, 9)
	// The incarnation of the cursor is not known here.
	again, _ := behind(t, conn, at)
	if lost := missing(t, []int{1, 2, 3, 7, 8, 9}, read, again); lost != nil {
		t.Errorf("lost %d: read %s, then %s", lost, told(read), told(again))
	}
}

func must1[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// A start of the server alone begins an incarnation as well: nobody can say what it has lost.
func TestIncarnations(t *testing.T) {
	t.Parallel()
	db := newFeed(t)
	conn := connect(t, db.URL)
	count := func(sql string) (n int64) {
		t.Helper()
		must(t, conn.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}
	first := count(`select incarnation from feed_state`)
	if since := time.Since(time.UnixMicro(first)); since < 0 || since > time.Hour {
		t.Errorf("it began %v ago", since)
	}
	must(t, Mark(t.Context(), conn))
	if n := count(`select count(*) from feed_mark`); n != 1 {
		t.Errorf("%d marks in a minute", n)
	}
	mark(t, conn)
	if n := count(`select count(*) from feed_mark`); n != 2 {
		t.Errorf("%d marks in two minutes", n)
	}
	exec(t, conn, `update feed_state set identity = 'another'`)
	must(t, Mark(t.Context(), conn))
	if count(`select incarnation from feed_state`) <= first || count(`select count(*) from feed_mark`) != 3 ||
		count(`select feed_now() - pg_current_xact_id()::text::bigint`) != 0 {
		t.Error("another start has not begun an incarnation, or has raised the offset")
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	at := func(n int64) *int64 { return &n }
	for name, tt := range map[string]struct {
		c    Cursor
		s    state
		want int64 // the place; -1: gone
		key  string
	}{
		"the first":                   {Cursor{}, state{incarnation: 9, gone: 50}, 0, ""},
		"as it was":                   {Cursor{incarnation: 9, feedAt: 80, key: "k"}, state{incarnation: 9, ended: at(70), gone: 50}, 80, "k"},
		"behind the end":              {Cursor{incarnation: 8, feedAt: 80, key: "k"}, state{incarnation: 9, ended: at(70)}, 70, ""},
		"in front of the end":         {Cursor{incarnation: 8, feedAt: 60, key: "k"}, state{incarnation: 9, ended: at(70)}, 60, "k"},
		"lost":                        {Cursor{incarnation: 7, feedAt: 80, key: "k"}, state{incarnation: 9, before: at(40)}, 40, ""},
		"lost, and nothing is before": {Cursor{incarnation: 7, feedAt: 80, key: "k"}, state{incarnation: 9}, 0, ""},
		"gone":                        {Cursor{incarnation: 9, feedAt: 49}, state{incarnation: 9, gone: 50}, -1, ""},
		"just not gone":               {Cursor{incarnation: 9, feedAt: 50}, state{incarnation: 9, gone: 50}, 50, ""},
		"gone by going back":          {Cursor{incarnation: 8, feedAt: 80}, state{incarnation: 9, ended: at(40), gone: 50}, -1, ""},
		"what is left was asked for":  {Cursor{incarnation: 9, feedAt: 20, lenient: true}, state{incarnation: 9, gone: 50}, 20, ""},
	} {
		got, err := tt.s.resume(tt.c)
		var gone *GoneError
		switch {
		case errors.As(err, &gone) != (tt.want < 0):
			t.Errorf("%s: %v", name, err)
		case err == nil && (got.feedAt != tt.want || got.key != tt.key || got.incarnation != tt.s.incarnation || got.lenient != (tt.want < tt.s.gone)):
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The offset is raised where places lie above this server's numbers. Rows that this database has written
// itself move up; those that were restored stay, whatever their number.
func TestOffsetIsRaised(t *testing.T) {
	t.Parallel()
	db := marked(t, pgtest.New(t))
	conn := connect(t, db.URL)
	exec(t, conn, insertMessage, 1, 2)
	exec(t, conn, `insert into audit (actor, action, object) values ('root', 'x', 'y')`)
	exec(t, conn, insertMessage, 3, 5)
	exec(t, conn, `update message set feed_at = 1000000000000 where id = id_of(3)`)
	exec(t, conn, `update message set feed_at = 3 where id = id_of(4)`)                                        // an early one of the old server
	exec(t, conn, `update message set feed_at = (select min(feed_at) + 1 from feed_mark) where id = id_of(5)`) // a number that this server has given too
	exec(t, conn, `update feed_state set identity = 'another'`)
	must(t, Mark(t.Context(), conn))
	exec(t, conn, insertMessage, 6, 6)
	var order, audit string
	must(t, conn.QueryRow(t.Context(), `select string_agg(right(id::text, 1), ' ' order by feed_at, id) from message`).Scan(&order))
	must(t, conn.QueryRow(t.Context(), `select (feed_at > 1000000000000)::text from audit`).Scan(&audit))
	if order != "4 5 3 1 2 6" || audit != "true" {
		t.Errorf("the messages are in the order %s; the deed is behind them: %s", order, audit)
	}
	var above bool
	must(t, conn.QueryRow(t.Context(), `select feed_horizon() > 1000000000000 and (select max(feed_at) from feed_mark) > 1000000000000`).Scan(&above))
	if !above {
		t.Error("the horizon or the mark is below")
	}
}
