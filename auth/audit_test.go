package auth

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"postern/policy/quota"
)

// Every change writes one row, with who did it and never a secret.
func TestEveryChangeIsAudited(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t).As("root")
	_, err := s.AddUser(ctx, NewUser{Name: "Alice", Password: "hunter2", Senders: []string{"*@x.example"}})
	must(t, err)
	must(t, s.SetPassword(ctx, "alice", "hunter3"))
	must(t, s.SetEnabled(ctx, "alice", false, "left"))
	must(t, s.SetEnabled(ctx, "alice", true, ""))
	must(t, s.AddSender(ctx, "alice", "a@b"))
	must(t, s.RemoveSender(ctx, "alice", "a@b"))
	must(t, s.SetResend(ctx, "alice", "c@d", true))
	c, secret, err := s.AddCredential(ctx, "alice", NewCredential{Label: "crm", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	must(t, err)
	must(t, s.SetLimits(ctx, LimitTarget{Default: true}, []quota.Limit{{Kind: quota.Size, Max: 5}}))
	must(t, s.SetLimits(ctx, LimitTarget{Credential: c.ID}, []quota.Limit{{Kind: quota.Messages, Window: 60e9, Max: 5}}))
	must(t, s.ResetLimits(ctx, LimitTarget{User: "alice"}, quota.Size))
	must(t, s.SetNoDefaults(ctx, "alice", true))
	_, err = s.RevokeCredential(ctx, c.ID)
	must(t, err)
	_, err = s.RevokeCredential(ctx, c.ID) // changes nothing
	must(t, err)
	_, err = s.Import(ctx, []ImportUser{{Name: "bob", Password: "hunter4"}}, true)
	must(t, err)
	_, err = s.Import(ctx, []ImportUser{{Name: "bob", Password: "hunter4"}}, false)
	must(t, err)
	must(t, s.RemoveUser(ctx, "ALICE"))
	if err := s.SetEnabled(ctx, "alice", true, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("err = %v", err)
	}

	rows, err := s.db.Query(ctx, `select actor || ': ' || action || ' ' || object, detail from audit order by id`)
	must(t, err)
	var got []string
	details := map[string]map[string]any{}
	var what string
	var detail []byte
	_, err = pgx.ForEachRow(rows, []any{&what, &detail}, func() error {
		got = append(got, what)
		for _, secret := range []string{"hunter", secret, strings.Split(secret, "_")[2], "$"} {
			if strings.Contains(string(detail), secret) {
				t.Errorf("%s: %s", what, detail)
			}
		}
		var d map[string]any
		err := json.Unmarshal(detail, &d)
		if details[what] == nil { // the first of its kind
			details[what] = d
		}
		return err
	})
	must(t, err)
	want := []string{
		"root: user add alice", "root: user passwd alice", "root: user disable alice", "root: user enable alice",
		"root: sender allow alice", "root: sender deny alice", "root: sender allow alice", "root: credential add alice", "root: limit set defaults",
		"root: limit set alice", "root: limit reset alice", "root: limit set alice", "root: credential revoke alice",
		"root: user import bob", "root: user remove alice",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if d := details["root: credential add alice"]; d["credential"] != float64(c.ID) || d["label"] != "crm" {
		t.Errorf("detail = %v", d)
	}
	if d := details["root: limit set alice"]; !cmp.Equal(d["limits"], []any{"messages 5/m"}) {
		t.Errorf("detail = %v", d)
	}
}

// In a transaction of the caller nothing is there, and nobody is told, before its commit.
func TestStoreInATransaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := testStore(t)
	_, err := pool.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	heard := listenTo(t, pool)
	undo := errors.New("undo")
	err = pgx.BeginFunc(ctx, pool.pool(), func(tx pgx.Tx) error {
		s := NewStore(tx)
		must(t, s.SetEnabled(ctx, "alice", false, ""))
		if err := s.AddSender(ctx, "nobody", "a@b"); !errors.Is(err, ErrNotFound) {
			t.Errorf("err = %v", err)
		}
		if u, err := s.User(ctx, "alice"); err != nil || u.Enabled { // and the transaction goes on
			t.Errorf("inside: %+v, %v", u, err)
		}
		return undo
	})
	if err != undo {
		t.Fatal(err)
	}
	var audited int
	must(t, pool.db.QueryRow(ctx, `select count(*) from audit where action = 'user disable'`).Scan(&audited))
	if u, err := pool.User(ctx, "alice"); err != nil || !u.Enabled || audited != 0 {
		t.Errorf("undone: %+v, %d rows of audit, %v", u, audited, err)
	}
	must(t, pgx.BeginFunc(ctx, pool.pool(), func(tx pgx.Tx) error {
		return NewStore(tx).SetEnabled(ctx, "alice", false, "")
	}))
	must(t, pool.Announce(ctx, 77))
	if got := heard(); got != "77" {
		t.Errorf("the first notification is %s: the transaction notified", got)
	}
}

// listenTo returns a function that waits for the next notification.
func listenTo(t *testing.T, s *Store) func() string {
	conn, err := s.pool().Acquire(t.Context())
	must(t, err)
	t.Cleanup(func() {
		_ = conn.Conn().Close(context.Background())
		conn.Release()
	})
	_, err = conn.Exec(t.Context(), "listen "+Channel)
	must(t, err)
	return func() string {
		n, err := conn.Conn().WaitForNotification(t.Context())
		must(t, err)
		return n.Payload
	}
}

func TestStoreRemoveUser(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw", Senders: []string{"a@b"}})
	must(t, err)
	c, _, err := s.AddCredential(ctx, "alice", NewCredential{})
	must(t, err)
	must(t, s.SetLimits(ctx, LimitTarget{Credential: c.ID}, []quota.Limit{{Kind: quota.Size, Max: 5}}))
	must(t, s.RemoveUser(ctx, "alice"))
	if err := s.RemoveUser(ctx, "alice"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	for _, table := range []string{"app_user", "credential", "sender_pattern", "limit_rule"} {
		var n int
		must(t, s.db.QueryRow(ctx, "select count(*) from "+table).Scan(&n))
		if n != 0 {
			t.Errorf("%d rows are left in %s", n, table)
		}
	}
}
