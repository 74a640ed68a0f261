package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/logtest"
	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/relay/seal"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t *testing.T, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	_, err := db.Pool.Exec(t.Context(), sql, args...)
	must(t, err)
}

// machine is a node's machine with its key file.
type machine struct {
	path  string
	log   logtest.Lines
	node  *Ring
	admin *Admin
}

func load(t *testing.T, path string) *seal.Sealer {
	t.Helper()
	s, err := seal.LoadOrCreate(path)
	must(t, err)
	return s
}

func sealed(t *testing.T, s *seal.Sealer, place, secret string) []byte {
	t.Helper()
	value, err := s.Seal(place, []byte(secret))
	if err != nil {
		t.Error(err) // of any goroutine
	}
	return value
}

// newMachine has the key file of another, or makes one.
func newMachine(t *testing.T, db *pgtest.DB, name, keys string) *machine {
	t.Helper()
	m := &machine{path: filepath.Join(t.TempDir(), "secret.key")}
	if keys != "" {
		copyFile(t, keys, m.path)
	}
	var epoch int64
	must(t, db.Pool.QueryRow(t.Context(), `insert into node (name, expires_at) values ($1, now()) returning epoch`, name).Scan(&epoch))
	m.node = New(Config{Pool: db.Pool, Sealer: load(t, m.path), Node: name, Epoch: func() int64 { return epoch }, Log: m.log.Logger()})
	m.admin = &Admin{Pool: db.Pool, Sealer: load(t, m.path), Actor: "admin"}
	must(t, m.node.look(t.Context()))
	return m
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, text, 0o600))
}

const grant = `{"kind":"service-account","authority":"google"}`

// fill stores values of each kind, and returns what is in them, by place.
func fill(t *testing.T, db *pgtest.DB, s *seal.Sealer, n int) map[string]string {
	t.Helper()
	want := map[string]string{}
	put := func(secret string, parts ...string) []byte {
		place := strings.Join(parts, "\x00")
		want[place] = secret
		return sealed(t, s, place, secret)
	}
	for i := range n {
		name := fmt.Sprintf("up%d", i)
		exec(t, db, `insert into upstream (name, host, port, tls, username, password) values ($1, 'h.test', 25, 'require', 'u', $2)`,
			name, put("password "+name, "upstream", name, "u"))
		exec(t, db, `insert into upstream (name, host, port, tls, username, password, oauth) values ($1, 'h.test', 25, 'require', 'u', $2, 'service-account')`,
			"g"+name, put(grant, "upstream", "g"+name, "u", "oauth"))
		exec(t, db, `insert into upstream_token (upstream, credential, sealed, serial, refreshed_at, expires_at) values ($1, 'c', $2, 1, now(), now())`,
			name, put("token", "upstream_token", name, "c"))
		exec(t, db, `insert into certificate_store (key, value, size) values ($1, $2, 1)`, name+"/key", put("key", "certificate", name+"/key"))
		exec(t, db, `insert into dkim_domain (domain, next_look_at) values ($1, now())`, name+".test")
		exec(t, db, `insert into dkim_key (domain, selector, algorithm, public, sealed, state, created_at, since) values ($1, 's', 'rsa', '', $2, 'pending', now(), now())`,
			name+".test", put("private half", "dkim", name+".test", "s"))
	}
	return want
}

// wantValues looks that all is there, and sealed with one key.
func wantValues(t *testing.T, db *pgtest.DB, s *seal.Sealer, want map[string]string, key string) {
	t.Helper()
	got := map[string]string{}
	for _, c := range columns() {
		must(t, each(t.Context(), db.Pool, c, nil, func(v value) bool {
			secret, err := s.Open(v.place(), v.sealed)
			if err != nil {
				t.Errorf("%q: %v", v.parts, err)
			}
			got[v.place()] = string(secret)
			if id, _ := s.KeyOf(v.place(), v.sealed); id != key {
				t.Errorf("%q is sealed with %s, want %s", v.parts, id, key)
			}
			return true
		}))
	}
	for place, secret := range want {
		if got[place] != secret {
			t.Errorf("%q holds %q, want %q", place, got[place], secret)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d values, want %d", len(got), len(want))
	}
}

// refused looks at a refusal.
func refused(t *testing.T, err error, says ...string) {
	t.Helper()
	if !refusal.Is(err) {
		t.Fatalf("%v is no refusal", err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%v: does not say %q", err, s)
		}
	}
}

// TestRotationOverTwoNodes is the life of a key: no node meets a value that it cannot open.
func TestRotationOverTwoNodes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	b := newMachine(t, db, "b", a.path)
	old := a.node.cfg.Sealer.Current()
	want := fill(t, db, a.node.cfg.Sealer, 3)
	look := func() {
		t.Helper()
		must(t, errors.Join(a.node.look(t.Context()), b.node.look(t.Context())))
		for _, m := range []*machine{a, b} { // what one has sealed, each can open
			place := "upstream\x00x"
			for _, by := range []*machine{a, b} {
				if _, err := m.node.cfg.Sealer.Open(place, sealed(t, by.node.cfg.Sealer, place, "secret")); err != nil {
					t.Error(err)
				}
			}
		}
	}
	id, added, err := a.admin.Rotate(t.Context())
	if must(t, err); !added || id == old {
		t.Fatalf("%s, %v", id, added)
	}
	if again, added, err := a.admin.Rotate(t.Context()); err != nil || added || again != id {
		t.Errorf("rotated again: %s, %v, %v; want %s", again, added, err, id)
	}
	refused(t, a.admin.Use(t.Context(), id, false), "nodes without this key: a, b") // none has read it yet
	look()
	refused(t, a.admin.Use(t.Context(), id, false), "nodes without this key: b")
	refused(t, b.admin.Use(t.Context(), id, true), "has no key", id)
	refused(t, a.admin.Remove(t.Context(), old), "in use")
	wantValues(t, db, b.node.cfg.Sealer, want, old)

	copyFile(t, a.path, b.path)
	look()
	must(t, a.admin.Use(t.Context(), id, false))
	refused(t, a.admin.Use(t.Context(), id, false), "already")
	for _, one := range []bool{true, false} {
		if _, err := db.Pool.Exec(t.Context(), `insert into sealing_key (one, id) values ($1, $2)`, one, old); err == nil {
			t.Error("two keys are current")
		}
	}
	// The slower node still seals with the old key.
	exec(t, db, `insert into certificate_store (key, value, size) values ('late', $1, 1)`, sealed(t, b.node.cfg.Sealer, "certificate\x00late", "late"))
	want["certificate\x00late"] = "late"
	must(t, a.node.look(t.Context()))
	look()
	wantValues(t, db, b.node.cfg.Sealer, want, id)

	refused(t, a.admin.Remove(t.Context(), old), "less than 1h ago")
	exec(t, db, `update sealing_key set since = since - interval '61 minutes'`)
	exec(t, db, `insert into certificate_store (key, value, size) values ('later', $1, 1)`, a.sealedWith(t, old, "certificate\x00later"))
	refused(t, a.admin.Remove(t.Context(), old), "key "+old+" still seals values: 1;")
	exec(t, db, `delete from certificate_store where key = 'later'`)
	must(t, a.admin.Remove(t.Context(), old))
	refused(t, a.admin.Remove(t.Context(), old), "has no key")
	look()
	wantValues(t, db, a.node.cfg.Sealer, want, id)
	var deeds []string
	rows, err := db.Pool.Query(t.Context(), `select action || ' ' || object from audit order by id`)
	must(t, err)
	for rows.Next() {
		var deed string
		must(t, rows.Scan(&deed))
		deeds = append(deeds, deed)
	}
	if want := []string{"key rotate " + id, "key use " + id, "key remove " + old}; !slices.Equal(deeds, want) {
		t.Errorf("audit %q, want %q", deeds, want)
	}
}

// sealedWith seals with a key of the file, whichever is current.
func (m *machine) sealedWith(t *testing.T, id, place string) []byte {
	t.Helper()
	s := load(t, m.path)
	must(t, s.Use(id))
	return sealed(t, s, place, "secret")
}

// TestForce: an admin may leave a node behind; with only old keys it keeps the old one, until it
// has the new one.
func TestForce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	b := newMachine(t, db, "b", a.path)
	old := a.node.cfg.Sealer.Current()
	want := fill(t, db, a.node.cfg.Sealer, 1)
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	must(t, a.node.look(t.Context()))
	must(t, a.admin.Use(t.Context(), id, true))
	must(t, a.node.look(t.Context()))
	if err := b.node.look(t.Context()); !errors.Is(err, seal.ErrSeal) || !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), b.path) {
		t.Errorf("a node without the current key: %v", err)
	}
	wantValues(t, db, a.node.cfg.Sealer, want, id) // it has sealed nothing back
	exec(t, db, `update sealing_key set since = since - interval '61 minutes'`)
	refused(t, a.admin.Remove(t.Context(), old), "nodes without the current key: b")
	exec(t, db, `update node set reaped_at = now() where name = 'b'`) // the dead need nothing
	must(t, a.admin.Remove(t.Context(), old))
	copyFile(t, a.path, b.path)
	if err := b.node.look(t.Context()); err == nil {
		t.Error("a node that seals with a key which is gone says nothing")
	}
}

// TestOldValues: values without a key's name, as former versions have left them, get one.
func TestOldValues(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	s := a.node.cfg.Sealer
	want := fill(t, db, s, 2)
	for _, column := range []string{"upstream set password = substr(password, 14)", "upstream_token set sealed = substr(sealed, 14)", "certificate_store set value = substr(value, 14)"} {
		exec(t, db, "update "+column+" where true")
	}
	exec(t, db, `update upstream set password = 'damaged' where name = 'up1'`)
	delete(want, "upstream\x00up1\x00u")
	v, err := Read(t.Context(), db.Pool, s)
	must(t, err)
	if len(v.Keys) != 1 || v.Keys[0].Values != 9 || !slices.Equal(v.Unopened, []string{"upstream up1 u"}) || v.Keys[0].State != "current" {
		t.Errorf("%+v", v)
	}
	a.node.clean = ""
	must(t, a.node.look(t.Context()))
	exec(t, db, `delete from upstream where name = 'up1'`)
	delete(want, "upstream_token\x00up1\x00c")
	wantValues(t, db, s, want, s.Current())
	var left int
	must(t, db.Pool.QueryRow(t.Context(), `select count(*) from certificate_store where substr(value, 1, 13) <> $1`, s.Head()).Scan(&left))
	if left != 0 {
		t.Errorf("%d values have no key's name", left)
	}
}

// TestResealBesideWriters: two nodes seal anew, while others write the same rows: the last write
// stands, and all is sealed with the new key in the end.
func TestResealBesideWriters(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	want := fill(t, db, a.node.cfg.Sealer, 20)
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	b := newMachine(t, db, "b", a.path)
	must(t, a.node.look(t.Context()))
	writer := load(t, a.path)
	must(t, Follow(t.Context(), db.Pool, writer)) // seals with the old key to the end
	must(t, a.admin.Use(t.Context(), id, false))
	accounts := upstream.NewStore(db.Pool, writer)

	ctx, stop := context.WithCancel(t.Context())
	var nodes, writers sync.WaitGroup
	for _, m := range []*machine{a, b} {
		must(t, m.node.look(t.Context()))
		nodes.Go(func() {
			for ctx.Err() == nil {
				if _, err := reseal(t.Context(), db.Pool, m.node.cfg.Sealer); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 10 {
		name := fmt.Sprintf("up%d", i)
		writers.Go(func() {
			for round := range 10 {
				password, token := fmt.Sprintf("password %d", round), fmt.Sprintf("token %d", round)
				_, err := accounts.Change(t.Context(), name, func(u *upstream.Account) error {
					u.Password, u.MaxMessages = password, round
					return nil
				})
				if err == nil { // what a change keeps, it keeps
					_, err = accounts.Change(t.Context(), "g"+name, func(u *upstream.Account) error { u.MaxMessages = round; return nil })
				}
				if err == nil { // as a node stores what it has got
					_, err = db.Pool.Exec(t.Context(), `update upstream_token set sealed = $2, serial = serial + 1 where upstream = $1`,
						name, sealed(t, writer, "upstream_token\x00"+name+"\x00c", token))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	stop()
	nodes.Wait()
	for i := range 10 {
		name := fmt.Sprintf("up%d", i)
		want["upstream\x00"+name+"\x00u"], want["upstream_token\x00"+name+"\x00c"] = "password 9", "token 9"
	}
	_, err = reseal(t.Context(), db.Pool, b.node.cfg.Sealer)
	must(t, err)
	wantValues(t, db, a.node.cfg.Sealer, want, id)
	_, bad, err := upstream.NewStore(db.Pool, b.node.cfg.Sealer).Usable(t.Context())
	if err != nil || len(bad) > 0 {
		t.Errorf("%v, %v", bad, err)
	}
}

// TestColumnsOfTheirOwners: what the owners of the columns have stored, a reseal finds by the
// same places.
func TestColumnsOfTheirOwners(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	accounts := upstream.NewStore(db.Pool, a.node.cfg.Sealer)
	up := upstream.Account{Name: "out", Host: "h.test", Port: 25, TLS: upstream.TLSRequire, Username: "relay", Password: "secret"}
	must(t, accounts.Add(t.Context(), up))
	up.Name, up.Password = "m365", ""
	up.Grant = oauth.Grant{Kind: oauth.ClientCredentials, Authority: "microsoft", Tenant: "t.test", ClientID: "id", Secret: "client secret"}
	must(t, accounts.Add(t.Context(), up))
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	must(t, a.node.look(t.Context()))
	must(t, a.admin.Use(t.Context(), id, false))
	must(t, a.node.look(t.Context()))
	v, err := Read(t.Context(), db.Pool, a.node.cfg.Sealer)
	must(t, err)
	if v.Current != id || v.Keys[1].Values != 2 || v.Keys[1].Since == nil || v.Keys[0].State != "old" || v.Keys[0].Values != 0 || !slices.Equal(v.Keys[1].Nodes, []string{"a"}) {
		t.Errorf("%+v", v)
	}
	list, _, err := accounts.Usable(t.Context())
	if must(t, err); len(list) != 2 || list[0].Grant.Secret != "client secret" || list[1].Password != "secret" {
		t.Errorf("%+v", list)
	}
}

// TestRunFollows: a running node sees a changed file and the current key by itself, and a file
// that it cannot take costs it nothing.
func TestRunFollows(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	a.node.every = 10 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	var loop sync.WaitGroup
	loop.Go(func() { a.node.Run(ctx) })
	defer loop.Wait()
	defer stop()
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	await(t, func() bool { return a.admin.Use(t.Context(), id, false) == nil })
	await(t, func() bool { return a.node.cfg.Sealer.Current() == id })
	must(t, os.WriteFile(a.path, bytes.Repeat([]byte("x"), seal.KeySize), 0o600))
	await(t, func() bool { return strings.Contains(a.log.String(), "it lacks key "+id) })
	if keys := a.node.cfg.Sealer.Keys(); len(keys) != 2 || a.node.cfg.Sealer.Current() != id {
		t.Errorf("keys %q, current %s", keys, a.node.cfg.Sealer.Current())
	}
}

func await(t *testing.T, yes func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !yes(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never true")
		}
	}
}

// TestLostFile: after a rotation the file is lost everywhere; a key that is made anew takes its
// place only by force.
func TestLostFile(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	must(t, a.node.look(t.Context()))
	must(t, a.admin.Use(t.Context(), id, false))
	exec(t, db, `update node set reaped_at = now()`)
	must(t, os.Remove(a.path))
	b := &Admin{Pool: db.Pool, Sealer: load(t, a.path), Actor: "admin"}
	fresh := b.Sealer.Keys()[0]
	for name, do := range map[string]func() error{
		"use":    func() error { return b.Use(t.Context(), fresh, false) },
		"rotate": func() error { _, _, err := b.Rotate(t.Context()); return err },
	} {
		if err := do(); !errors.Is(err, seal.ErrSeal) || !strings.Contains(err.Error(), "'postern key use "+fresh+" --force'") {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused(t, b.Use(t.Context(), id, true), "has no key")
	must(t, b.Use(t.Context(), fresh, true))
	must(t, Follow(t.Context(), db.Pool, b.Sealer))
	if _, err := b.Sealer.Seal("place", nil); err != nil || b.Sealer.Current() != fresh {
		t.Errorf("%v, current is %s, want %s", err, b.Sealer.Current(), fresh)
	}
	_, _, err = b.Rotate(t.Context())
	must(t, err)
}

// TestStartedWithAnOldFile: such a node is seen, seals nothing, and follows when its file comes.
func TestStartedWithAnOldFile(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	b := &machine{path: filepath.Join(t.TempDir(), "secret.key")}
	copyFile(t, a.path, b.path)
	old := a.node.cfg.Sealer.Current()
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	must(t, a.node.look(t.Context()))
	must(t, a.admin.Use(t.Context(), id, false))
	must(t, a.node.look(t.Context()))
	exec(t, db, `update sealing_key set since = since - interval '61 minutes'`)

	var epoch int64
	must(t, db.Pool.QueryRow(t.Context(), `insert into node (name, expires_at) values ('b', now()) returning epoch`).Scan(&epoch))
	refused(t, a.admin.Remove(t.Context(), old), "nodes without the current key: b") // it has not recorded any
	b.node = New(Config{Pool: db.Pool, Sealer: load(t, b.path), Node: "b", Epoch: func() int64 { return epoch }, Log: b.log.Logger()})
	for range 2 {
		if err := b.node.look(t.Context()); !errors.Is(err, seal.ErrSeal) {
			t.Errorf("%v", err)
		}
		if _, err := b.node.cfg.Sealer.Seal("place", nil); err == nil {
			t.Error("it seals with an old key")
		}
	}
	v, err := Read(t.Context(), db.Pool, a.admin.Sealer)
	must(t, err)
	if got := v.known(old).Nodes; !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%s: nodes %q", old, got)
	}
	refused(t, a.admin.Remove(t.Context(), old), "nodes without the current key: b")
	copyFile(t, a.path, b.path)
	must(t, b.node.look(t.Context()))
	if _, err := b.node.cfg.Sealer.Seal("place", nil); err != nil || b.node.cfg.Sealer.Current() != id {
		t.Errorf("%v, current is %s, want %s", err, b.node.cfg.Sealer.Current(), id)
	}
	must(t, a.admin.Remove(t.Context(), old))
}

// TestRecord: a node that needs no keys says so, and what a standby has lost is written again.
func TestRecord(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	var epoch int64
	must(t, db.Pool.QueryRow(t.Context(), `insert into node (name, expires_at) values ('front', now()) returning epoch`).Scan(&epoch))
	front := New(Config{Pool: db.Pool, Node: "front", Epoch: func() int64 { return epoch }, Log: a.log.Logger()})
	nodes := func() []string {
		t.Helper()
		must(t, errors.Join(front.look(t.Context()), a.node.look(t.Context())))
		v, err := Read(t.Context(), db.Pool, a.admin.Sealer)
		must(t, err)
		return append(v.Nodes, v.Lacking(v.Current)...)
	}
	if got := nodes(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("nodes %q", got)
	}
	exec(t, db, `delete from sealing_ring`)
	if got := nodes(); !slices.Equal(got, []string{"a", "front", "a", "front"}) {
		t.Errorf("nodes %q", got)
	}
	for _, r := range []*Ring{a.node, front} {
		r.recordAt = r.recordAt.Add(-time.Minute)
	}
	if got := nodes(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("a minute later: nodes %q", got)
	}
}

// TestClockSetBack: a key that is in use since a later time is not in use from the beginning.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	old := a.node.cfg.Sealer.Current()
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	must(t, a.node.look(t.Context()))
	must(t, a.admin.Use(t.Context(), id, false))
	exec(t, db, `update sealing_key set since = since + interval '1 hour'`)
	refused(t, a.admin.Remove(t.Context(), old), "less than 1h ago")
}

// TestActsInTheAudit: each commit fails in its turn, as in a crash behind the change of the file.
func TestActsInTheAudit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	old := a.node.cfg.Sealer.Current()
	exec(t, db, `create function crash() returns trigger language plpgsql as $$ begin raise exception 'crash'; end $$`)
	crash := func(do func() error) {
		t.Helper()
		exec(t, db, `create constraint trigger crash after insert on audit deferrable initially deferred for each row execute function crash()`)
		if err := do(); err == nil || !strings.Contains(err.Error(), "crash") {
			t.Errorf("%v, want a crash", err)
		}
		exec(t, db, `drop trigger crash on audit`)
	}
	audited := func(want ...string) {
		t.Helper()
		var got []string
		must(t, db.Pool.QueryRow(t.Context(), `select coalesce(array_agg(action || ' ' || object order by id), '{}') from audit`).Scan(&got))
		if !slices.Equal(got, want) {
			t.Errorf("audit %q, want %q", got, want)
		}
	}
	inFile := func(want ...string) {
		t.Helper()
		if got := load(t, a.path).Keys(); !slices.Equal(got, want) {
			t.Errorf("the file has %q, want %q", got, want)
		}
	}
	crash(func() error { _, _, err := a.admin.Rotate(t.Context()); return err })
	audited()
	id := load(t, a.path).Keys()[1]
	for range 2 {
		if again, added, err := a.admin.Rotate(t.Context()); err != nil || added || again != id {
			t.Errorf("%s, %v, %v; want %s, which is there", again, added, err, id)
		}
		audited("key rotate " + id)
	}
	exec(t, db, `delete from audit where true`)
	must(t, a.node.look(t.Context()))
	crash(func() error { return a.admin.Use(t.Context(), id, false) })
	must(t, a.admin.Use(t.Context(), id, false))
	audited("key rotate "+id, "key use "+id)

	exec(t, db, `update sealing_key set since = since - interval '61 minutes'`)
	exec(t, db, `delete from audit where true`)
	crash(func() error { return a.admin.Remove(t.Context(), old) })
	inFile(old, id)
	must(t, os.MkdirAll(filepath.Join(a.path+".new", "full"), 0o700)) // nothing can be written there
	if err := a.admin.Remove(t.Context(), old); err == nil || refusal.Is(err) {
		t.Errorf("a key is removed from a file that cannot be written: %v", err)
	}
	inFile(old, id)
	must(t, os.RemoveAll(a.path+".new"))
	must(t, a.admin.Remove(t.Context(), old))
	inFile(id)
	audited("key remove "+old, "key remove "+old)
}

// counting counts the rows that are read.
type counting struct {
	pg.DB
	rows int
}

func (c *counting) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := c.DB.Query(ctx, sql, args...)
	return &countedRows{rows, c}, err
}

type countedRows struct {
	pgx.Rows
	by *counting
}

func (r *countedRows) Next() bool {
	next := r.Rows.Next()
	if next {
		r.by.rows++
	}
	return next
}

// TestResealReadsABatch: what a node reads each time is bounded, and values that do not open do
// not keep it from the others.
func TestResealReadsABatch(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := newMachine(t, db, "a", "")
	const more = 30
	exec(t, db, `insert into certificate_store (key, value, size) select 'a' || n, 'damaged', 1 from generate_series(1, $1) n`, batch+more)
	s := a.node.cfg.Sealer
	var keys []string
	var values [][]byte
	for n := range 3 * batch {
		keys = append(keys, fmt.Sprintf("b%05d", n))
		values = append(values, sealed(t, s, "certificate\x00"+keys[n], "secret"))
	}
	exec(t, db, `insert into certificate_store (key, value, size) select k, v, 1 from unnest($1::text[], $2::bytea[]) u(k, v)`, keys, values)
	id, _, err := a.admin.Rotate(t.Context())
	must(t, err)
	must(t, s.Reload())
	must(t, s.Use(id))
	for round := range 4 {
		db := &counting{DB: db.Pool}
		n, err := reseal(t.Context(), db, s)
		if must(t, err); round < 3 && (n != batch || db.rows > 3*batch) || round == 3 && n != 0 {
			t.Errorf("round %d: %d sealed anew, %d read", round, n, db.rows)
		}
	}
}
