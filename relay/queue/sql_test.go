package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/pg"
	"postern/internal/pgtest"
)

// Every statement of the package is one that the schema understands.
func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}

// The statements that run for each message or each claim find their rows by the
// primary key, and not by reading all rows of an epoch.
func TestPlansUseKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	all := pgtest.Statements(t, texts.Bound)
	for _, name := range []string{"delivered, again false", "delivered, again true", "undelivered, again false", "undelivered, again true",
		"await_outcomes", "gate", "claim", "lock_keys", "promised", "void_keys", "is_known", "told"} {
		plan := pgtest.GenericPlan(t, db, pg.TuneWork, all[name])
		for _, bad := range []string{"recipient_owner", "Seq Scan on recipient", "Seq Scan on body", "Seq Scan on large_body", "Seq Scan on history",
			"Heap Scan on history", "Seq Scan on message", "Heap Scan on message"} {
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
		{pgError("08006"), "451 4.3.0"}, {pgError("08007"), "451 4.3.0"}, {pgError("57P01"), "451 4.3.0"}, {pgError("57P02"), "451 4.3.0"},
		{pgError("57P03"), "451 4.3.0"}, {pgError("25006"), "451 4.3.0"}, {pgError("40001"), "451 4.3.0"}, {pgError("40P01"), "451 4.3.0"},
		{pgError("23505"), "451 4.3.0"}, {pgError("22021"), "451 4.3.0"}, {pgError("22P05"), "451 4.3.0"}, {pgError("22001"), "451 4.3.0"},
		{pgError("42P01"), "451 4.3.0"}, {pgError("3D000"), "451 4.3.0"}, {pgError("XX001"), "451 4.3.0"}, {pgError("XX002"), "451 4.3.0"}, {pgError("58030"), "451 4.3.0"},
		{pgError("53100"), "452 4.3.1"}, {pgError("53200"), "452 4.3.1"}, {pgError("54000"), "452 4.3.1"},
		{pgError("53300"), "451 4.3.2"}, {pgError("55P03"), "451 4.3.2"}, {pgError("57014"), "451 4.3.2"},
		{errors.New("unexpected EOF"), "451 4.3.0"}, {context.DeadlineExceeded, "451 4.3.0"}, {errEpochLost, "451 4.3.0"},
		{errClosed, "421 4.3.2"}, {fmt.Errorf("wrapped: %w", pgError("53100")), "452 4.3.1"},
	} {
		reply := troubleReply(c.err)
		if got := fmt.Sprintf("%d %s", reply.Code, reply.Enhanced); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
		if reply.IsPermanent() || strings.Contains(reply.Text, "SQLSTATE") {
			t.Errorf("%v: %s", c.err, reply)
		}
	}
	if got := pg.CertaintyOf(fmt.Errorf("insert: %w", errEpochLost)); got != pg.NotSent {
		t.Errorf("an epoch that is lost: %v", got)
	}
}

func pgError(code string) *pgconn.PgError {
	return &pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: "ERROR", Code: code}
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
		if _, err := tx.Exec(ctxOf(t), `select durably()`); err != nil {
			return err
		}
		return tx.QueryRow(ctxOf(t), `show synchronous_commit`).Scan(&setting)
	})
	if err != nil || setting != "on" {
		t.Fatalf("synchronous_commit is %q, %v", setting, err)
	}
	checked := 0
	for name, sql := range pgtest.Statements(t, texts.Bound) {
		switch text, _, _ := strings.Cut(name, ","); text { // before a flag
		case "delivered", "undelivered", "gate", "reap", "hand_back", "set_aside", "told", "notice_exists", "void_message":
			checked++
			if !strings.Contains(sql, "durably()") {
				t.Errorf("%s does not see to its own durability", name)
			}
		}
	}
	if checked != 13 {
		t.Errorf("%d statements were looked at", checked)
	}
}

// What an operator asks for is heard by the nodes that listen.
func TestAskedIsHeard(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	eventually(t, "the node hears it", func() bool {
		Hurry(ctxOf(t), db.Pool)
		return q.Asked() > 0
	})
}
