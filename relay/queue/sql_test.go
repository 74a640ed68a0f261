package queue

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/relay/smtp"
)

// partial statements are parts of others.
var partial = map[string]bool{"sqlInsertMessages": true, "sqlInsertRecipients": true, "sqlOutcomes": true, "sqlEndings": true, "sqlEndingsAgain": true,
	"sqlDeliver": true, "sqlUndeliver": true, "sqlEnd": true, "sqlEntries": true,
	"sqlState": true, "sqlMatches": true, "sqlReply": true, "sqlChosen": true, "sqlLocked": true, "sqlNoted": true, "sqlCounted": true, "sqlCharges": true, "sqlNotOver": true, "sqlVerdict": true, "sqlInsertBodies": true,
	"sqlFence": true, "sqlTouch": true, "sqlPlain": true, "sqlCharged": true, "sqlFromMessages": true, "sqlCommitted": true,
	"sqlLost": true, "sqlTakeBack": true, "sqlUnknown": true, "sqlBack": true, "sqlGone": true}

// statements finds the text of every constant sql… of this package.
func statements(t *testing.T) map[string]string {
	t.Helper()
	set := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	config := types.Config{Importer: importer.ForCompiler(set, "source", nil)}
	pkg, err := config.Check("postern/relay/queue", set, files, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	for _, name := range pkg.Scope().Names() {
		c, ok := pkg.Scope().Lookup(name).(*types.Const)
		if ok && strings.HasPrefix(name, "sql") && !partial[name] {
			found[name] = constant.StringVal(c.Val())
		}
	}
	return found
}

// Every statement of the package is one that the schema understands.
func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := pgx.Connect(ctxOf(t), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	all := statements(t)
	if len(all) < 30 {
		t.Fatalf("found only %d statements", len(all))
	}
	for name, sql := range all {
		if _, err := conn.Prepare(ctxOf(t), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The statements that run for each message or each claim find their rows by the
// primary key, and not by reading all rows of an epoch.
func TestPlansUseKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := pgx.Connect(ctxOf(t), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(ctxOf(t), tuneWork, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	all := statements(t)
	for _, name := range []string{"sqlDelivered", "sqlUndelivered", "sqlDeliveredAgain", "sqlUndeliveredAgain", "sqlAwaitEndings", "sqlGate", "sqlClaim", "sqlEnqueueAgain", "sqlEnqueueLimitedAgain", "sqlTold",
		"sqlTurnWaits", "sqlMoveBody", "sqlChunks"} {
		description, err := conn.Prepare(ctxOf(t), name, all[name])
		if err != nil {
			t.Fatal(err)
		}
		nulls := strings.TrimSuffix(strings.Repeat("null,", len(description.ParamOIDs)), ",")
		rows, err := conn.Query(ctxOf(t), `explain execute "`+name+`"(`+nulls+`)`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		plan := strings.Join(lines, "\n")
		for _, bad := range []string{"recipient_owner", "Seq Scan on recipient", "Seq Scan on body", "Seq Scan on large_body", "Seq Scan on attempt"} {
			if strings.Contains(plan, bad) {
				t.Errorf("%s uses %s:\n%s", name, bad, plan)
			}
		}
	}
}

// The table of replies for Postgres trouble, row by row.
func TestTrouble(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want string
	}{
		{pg("08006"), "451 4.3.0"}, {pg("08007"), "451 4.3.0"}, {pg("57P01"), "451 4.3.0"}, {pg("57P02"), "451 4.3.0"},
		{pg("57P03"), "451 4.3.0"}, {pg("25006"), "451 4.3.0"}, {pg("40001"), "451 4.3.0"}, {pg("40P01"), "451 4.3.0"},
		{pg("23505"), "451 4.3.0"}, {pg("22021"), "451 4.3.0"}, {pg("22P05"), "451 4.3.0"}, {pg("22001"), "451 4.3.0"},
		{pg("42P01"), "451 4.3.0"}, {pg("3D000"), "451 4.3.0"}, {pg("XX001"), "451 4.3.0"}, {pg("XX002"), "451 4.3.0"}, {pg("58030"), "451 4.3.0"},
		{pg("53100"), "452 4.3.1"}, {pg("53200"), "452 4.3.1"}, {pg("54000"), "452 4.3.1"},
		{pg("53300"), "451 4.3.2"}, {pg("55P03"), "451 4.3.2"}, {pg("57014"), "451 4.3.2"},
		{errors.New("unexpected EOF"), "451 4.3.0"}, {context.DeadlineExceeded, "451 4.3.0"}, {errEpochLost, "451 4.3.0"},
		{errClosed, "421 4.3.2"}, {fmt.Errorf("wrapped: %w", pg("53100")), "452 4.3.1"},
	} {
		reply := Trouble(c.err)
		if got := fmt.Sprintf("%d %s", reply.Code, reply.Enhanced); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
		if reply.IsPermanent() || strings.Contains(reply.Text, "SQLSTATE") {
			t.Errorf("%v: %s", c.err, reply)
		}
	}
}

func pg(code string) *pgconn.PgError {
	return &pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: "ERROR", Code: code}
}

// What an error says about the commit: in doubt, uncertain.
func TestCertainty(t *testing.T) {
	t.Parallel()
	fatal := pg("57P01")
	fatal.SeverityUnlocalized = "FATAL"
	for _, c := range []struct {
		err  error
		want certainty
	}{
		{pg("23505"), rejected}, {pg("53100"), rejected}, {pg("40001"), rejected}, {pgx.ErrTxCommitRollback, rejected},
		{pg("57014"), uncertain}, {pg("08007"), uncertain}, {pg("40003"), uncertain}, {fatal, uncertain},
		{errNotReplicated, uncertain}, {errors.New("read: connection reset"), uncertain}, {context.DeadlineExceeded, uncertain},
		{&connectError{errors.New("refused")}, notSent}, {&connectError{fatal}, notSent}, {errEpochLost, notSent},
		{&bodyError{errors.New("disk")}, rejected}, {&unsentError{&bodyError{errors.New("disk")}}, rejected},
		{&unsentError{errors.New("failed to encode args[3]")}, notSent},
	} {
		if got := certaintyOf(fmt.Errorf("insert: %w", c.err)); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestStorable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "plain": "plain", "é": "é", "a\x00b": "a\uFFFDb", "\xff": "\uFFFD", "\xed\xa0\x80": "\uFFFD"} {
		if got := storable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := storable(strings.Repeat("é", maxStoredText)); len(got) > maxStoredText+3 {
		t.Errorf("%d octets", len(got))
	}
}

func TestCheckServer(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, pgserver.Config{})
	conn, err := pgx.Connect(ctxOf(t), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if found, err := CheckServer(ctxOf(t), conn); err != nil || len(found) != 0 {
		t.Fatalf("a durable server: %v, %v", found, err)
	}
	if _, err := conn.Exec(ctxOf(t), `set synchronous_commit = off; set default_transaction_read_only = on`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if found, err := CheckServer(ctxOf(t), conn); err != nil || len(found) != 2 {
		t.Fatalf("a server that is not durable: %v, %v", found, err)
	}
	good := map[string]string{"fsync": "off", "full_page_writes": "off", "synchronous_commit": "local", "data_sync_retry": "on",
		"server_encoding": "LATIN1", "default_transaction_read_only": "on", "default_transaction_isolation": "serializable"}
	if got := judgeSettings(good, true); len(got) != 8 {
		t.Fatalf("%d findings: %v", len(got), got)
	}
}

// A database or role that defaults to synchronous_commit=off does not weaken a commit.
func TestCommitIsDurableByItself(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var setting string
	err := pgx.BeginFunc(ctxOf(t), db.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctxOf(t), `set local synchronous_commit = off`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctxOf(t), `select `+durably); err != nil {
			return err
		}
		return tx.QueryRow(ctxOf(t), `show synchronous_commit`).Scan(&setting)
	})
	if err != nil || setting != "on" {
		t.Fatalf("synchronous_commit is %q, %v", setting, err)
	}
	for name, sql := range statements(t) {
		switch name {
		case "sqlEnqueue", "sqlEnqueueAgain", "sqlEnqueueLimited", "sqlEnqueueLimitedAgain", "sqlDelivered", "sqlUndelivered", "sqlGate", "sqlReap", "sqlTold":
			if !strings.Contains(sql, durably) {
				t.Errorf("%s does not see to its own durability", name)
			}
		}
	}
}

func TestAdmin(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	a := NewAdmin(db.Pool)
	m, d := put(t, q, true, "a@example.net", "b@example.org")
	o := outcome(d, 0, Deferred)
	o.RetryIn = time.Hour
	q.Settle(o)
	becomes(t, db, m.ID, "0 queued;1 queued owned")
	for _, c := range []struct {
		f    Filter
		want int
	}{{Filter{}, 2}, {Filter{Limit: 1}, 1}, {Filter{State: StateWaiting}, 1}, {Filter{State: StateOwned}, 1}, {Filter{State: StateHeld}, 0},
		{Filter{Domain: "example.org"}, 1}, {Filter{State: StateFailed}, 0}} {
		if got, err := a.List(ctxOf(t), c.f); err != nil || len(got) != c.want {
			t.Errorf("%+v: %d entries, %v", c.f, len(got), err)
		}
	}
	h, err := a.Trace(ctxOf(t), m.ID)
	if err != nil || h.Done() || len(h.Live) != 2 || len(h.Attempts) != 1 {
		t.Fatalf("trace %+v, %v", h, err)
	}
	e := h.Live[0]
	if e.LastReply != "450 4.2.1 later" || e.Recipient != "a@example.net" || e.Sender != "alice@example.com" || e.State != StateWaiting || e.Attempts != 1 {
		t.Fatalf("entry %+v", e)
	}
	if h.Live[1].Node != "a" || h.Message.Node != "a" || h.Message.Recipients != 2 {
		t.Fatalf("trace %+v", h)
	}
	if got := h.Attempts[0]; got.Reply != "450 4.2.1 later" || got.RemoteMTA != "mx.example.net" || got.Node != "a" {
		t.Fatalf("attempt %+v", got)
	}
	if _, err := a.Trace(ctxOf(t), NewID()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("trace of nothing: %v", err)
	}
	if ids, err := a.Find(ctxOf(t), "<m@example.com>", 5); err != nil || len(ids) != 1 || ids[0] != m.ID {
		t.Fatalf("find: %v, %v", ids, err)
	}
	if n, err := a.Retry(ctxOf(t), Filter{}, false); err != nil || n != 1 {
		t.Fatalf("retry all: %d, %v", n, err)
	}
	if got := history(t, db, m.ID); got != "0 deferred;0 retry" {
		t.Fatalf("history %q", got)
	}
	claimAll(t, q, all)
}

// What kept mail from being tried at all is no attempt and stands in no history, but
// whoever lists the queue reads it.
func TestReasonOfNoAttempt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net")
	o := outcome(d, 0, Deferred)
	o.NotAnAttempt, o.RetryIn, o.Reply = true, time.Hour, smtp.Temporary(451, 4, 4, "no route")
	q.Settle(o)
	becomes(t, db, m.ID, "0 queued")
	h, err := NewAdmin(db.Pool).Trace(ctxOf(t), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if e := h.Live[0]; e.LastReply != "451 4.4.4 no route" || e.Attempts != 0 || len(h.Attempts) != 0 {
		t.Fatalf("entry %+v, history %+v", e, h.Attempts)
	}
	if _, err := NewAdmin(db.Pool).Retry(ctxOf(t), Filter{IDs: []ID{m.ID}}, false); err != nil {
		t.Fatal(err)
	}
	q.Release(claimAll(t, q, all)[0], []int{0}, time.Hour) // without a word
	becomes(t, db, m.ID, "0 queued")
	if list, err := NewAdmin(db.Pool).List(ctxOf(t), Filter{}); err != nil || list[0].LastReply != "451 4.4.4 no route" {
		t.Fatalf("after a release: %+v, %v", list, err)
	}
}

// What an operator asks for is heard by the nodes that listen.
func TestAskedIsHeard(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	eventually(t, "the node hears it", func() bool {
		if _, err := NewAdmin(db.Pool).Retry(ctxOf(t), Filter{}, false); err != nil {
			t.Fatal(err)
		}
		return q.Asked() > 0
	})
}

// The sweep deletes bodies without rows, and nothing else.
func TestSweepDeletesOrphans(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	live, _ := put(t, q, true, "a@example.net")
	orphan, _ := put(t, q, true, "b@example.net")
	exec(t, db, `delete from recipient where message_id = $1`, orphan.ID)
	conn := working(t, db)
	s := newSweeps(q)
	for range 2 {
		if err := s.orphans(ctxOf(t), conn); err != nil {
			t.Fatal(err)
		}
	}
	if n, m := count(t, db, `select count(*) from body`), count(t, db, `select count(*) from body where message_id = $1`, live.ID); n != 1 || m != 1 {
		t.Errorf("%d bodies, %d of the live message", n, m)
	}
}

func TestParseEnhanced(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]smtp.EnhancedCode{"5.1.1": {Class: 5, Subject: 1, Detail: 1}, "": {}, "x": {}} {
		if got := parseEnhanced(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// Trouble with one message is not taken for trouble with the database.
func TestIsDown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&connectError{errors.New("refused")}, true}, {errors.New("unexpected EOF"), true}, {pg("25006"), true}, {pg("53100"), true}, {pg("57P01"), true},
		{&bodyError{errors.New("disk")}, false}, {pg("22021"), false}, {pg("23505"), false}, {pg("40001"), false}, {pg("55P03"), false},
	} {
		if got := isDown(fmt.Errorf("insert: %w", c.err)); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
