package oauth

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/logtest"
	"postern/internal/oauthtest"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/seal"
)

// cluster is a database, an authority, and nodes.
type cluster struct {
	*oauthtest.Authority
	t   *testing.T
	db  *pgtest.DB
	log *logtest.Lines
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{authority(t), t, pgtest.New(t), &logtest.Lines{}}
	c.exec(`insert into upstream (name, host, port, tls, username, password) values ('m365', 'smtp.example', 587, 'require', 'relay@example.com', 'x')`)
	t.Cleanup(func() {
		if text := c.log.String(); strings.Contains(text, "access-") || strings.Contains(text, "renewal-") || strings.Contains(text, secretText) {
			t.Errorf("the log has a secret: %s", text)
		}
	})
	return c
}

func (c *cluster) exec(sql string, args ...any) {
	c.t.Helper()
	if _, err := c.db.Pool.Exec(c.t.Context(), sql, args...); err != nil {
		c.t.Fatal(err)
	}
}

func sealer(t testing.TB) *seal.Sealer {
	t.Helper()
	s, err := seal.New(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *cluster) node(name string, db pg.DB) *Tokens {
	tokens := New(Config{DB: db, Sealer: sealer(c.t), Node: name, Log: c.log.Logger(), Guard: panics.New(c.log.Logger()),
		Authorities: at(c.Authority), Roots: c.Roots})
	c.t.Cleanup(func() {
		if err := tokens.Close(context.Background()); err != nil {
			c.t.Error(err)
		}
	})
	return tokens
}

// nodes are as many as are to share the tokens.
func (c *cluster) nodes(n int) (list []*Tokens) {
	for i := range n {
		list = append(list, c.node(string(rune('a'+i)), c.db.Pool))
	}
	return list
}

func credentials(t testing.TB) Account {
	return Account{Upstream: "m365", Username: "relay@example.com", Grant: byCredentials(t)}
}

// refreshing is an account that a person has logged in for.
func (c *cluster) refreshing() Account {
	c.t.Helper()
	a := Account{Upstream: "m365", Username: "relay@example.com", Grant: byPerson(c.t)}
	t := table{c.db.Pool, sealer(c.t), "login"}
	sealed, err := t.seal(a.Upstream, a.credential(), pair{Access: "old", Refresh: c.Refresh()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.exec(sqlLogin, a.Upstream, a.credential(), sealed, time.Hour)
	c.expire()
	return a
}

// expire makes all stored tokens old.
func (c *cluster) expire() {
	c.exec(`update upstream_token set refreshed_at = refreshed_at - interval '2 hours', expires_at = expires_at - interval '2 hours'`)
}

func must(t *testing.T, tokens *Tokens, a Account) Token {
	t.Helper()
	token, err := tokens.Token(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// together calls f n times for each node concurrently, and returns the different tokens.
func together(nodes []*Tokens, n int, f func(*Tokens) (Token, error)) (map[Token]int, []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	got, errs := map[Token]int{}, []error(nil)
	for _, node := range nodes {
		for range n {
			wg.Go(func() {
				token, err := f(node)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, err)
					return
				}
				got[token]++
			})
		}
	}
	wg.Wait()
	return got, errs
}

func TestStatements(t *testing.T) {
	t.Parallel()
	bound, unused := texts.Bound()
	if len(unused) > 0 {
		t.Errorf("nobody runs %q", unused)
	}
	pgtest.Prepare(t, bound)
}

// Of 200 sends that meet an expired token on four nodes, one asks the authority. No connection
// is held meanwhile.
func TestOneRequest(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	first := must(t, c.node("first", c.db.Pool), a)
	c.expire()
	cfg, err := pgxpool.ParseConfig(c.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 1
	only, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(only.Close)
	c.Set(func(s *oauthtest.Settings) {
		s.Fault = func(http.ResponseWriter, *http.Request) bool {
			time.Sleep(3 * pollEvery) // others look meanwhile
			if err := only.Ping(t.Context()); err != nil {
				t.Error(err)
			}
			return false
		}
	})
	got, errs := together([]*Tokens{c.node("a", only), c.node("b", only), c.node("c", only), c.node("d", only)}, 50,
		func(n *Tokens) (Token, error) { return n.Token(t.Context(), a) })
	if len(errs) > 0 || len(got) != 1 || got[first] != 0 {
		t.Errorf("%v, %v", got, errs)
	}
	if n := len(c.Requests()); n != 2 {
		t.Errorf("%d requests in all, want the first and one more", n)
	}
}

// A token that is about to expire is used while one node gets the next.
func TestRenewedBeforeItExpires(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	first := must(t, c.node("first", c.db.Pool), a)
	c.exec(`update upstream_token set refreshed_at = refreshed_at - interval '50 minutes', expires_at = expires_at - interval '50 minutes'`)
	release := make(chan struct{})
	c.Set(func(s *oauthtest.Settings) {
		s.Fault = func(http.ResponseWriter, *http.Request) bool { <-release; return false }
	})
	nodes := c.nodes(2)
	got, errs := together(nodes, 20, func(n *Tokens) (Token, error) {
		if token, err := n.Token(t.Context(), a); token != first || err != nil { // by a read of its own
			return token, err
		}
		return n.Token(t.Context(), a)
	})
	if len(errs) > 0 || len(got) != 1 || got[first] != 40 {
		t.Errorf("%v, %v", got, errs)
	}
	close(release)
	for _, n := range nodes {
		n.flights.Wait()
	}
	for _, n := range nodes {
		for token := first; token == first; token = must(t, n, a) {
			time.Sleep(dbPause / 10)
		}
	}
	if n := len(c.Requests()); n != 2 {
		t.Errorf("%d requests in all, want 2", n)
	}
}

// While the authority is away, a valid token is used and the authority is left alone; without
// one, all nodes hear why.
func TestAuthorityAway(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	first := must(t, c.node("first", c.db.Pool), a)
	c.exec(`update upstream_token set refreshed_at = refreshed_at - interval '50 minutes', expires_at = expires_at - interval '50 minutes'`)
	c.Set(func(s *oauthtest.Settings) {
		s.Fault = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }
	})
	nodes := c.nodes(2)
	for range 3 {
		for _, n := range nodes {
			if must(t, n, a) != first {
				t.Error("another token")
			}
			n.flights.Wait()
		}
	}
	if n := len(c.Requests()); n != 2 {
		t.Errorf("%d requests in all, want 2", n)
	}
	list, err := States(t.Context(), c.db.Pool, []Account{a})
	if err != nil || len(list) != 1 || list[0].FailingSince.IsZero() || list[0].Login || !strings.Contains(list[0].LastError, "answered 500") ||
		time.Until(list[0].NextTry) > CoolDown+time.Minute || list[0].ExpiresAt.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	c.expire()
	for _, n := range c.nodes(2) {
		_, err := n.Token(t.Context(), a)
		if fault := (*Fault)(nil); !errors.As(err, &fault) || fault.Again <= 0 || !strings.Contains(err.Error(), "answered 500") {
			t.Errorf("%v, or it does not say that this was heard before", err)
		}
	}
	if n := len(c.Requests()); n != 2 {
		t.Errorf("%d requests in all, want 2", n)
	}
	if n := c.log.Count("the upstream's authority gives no token"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
	c.Set(func(s *oauthtest.Settings) { s.Fault = nil })
	c.exec(`update upstream_token set next_try_at = clock_timestamp()`)
	must(t, c.node("last", c.db.Pool), a)
	if n := c.log.Count("the upstream has a token again"); n != 1 {
		t.Errorf("the log says %d times that it is over", n)
	}
}

// A refused token gets one successor for all nodes, and the successor none while it is new.
func TestRenew(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	nodes := c.nodes(2)
	first := must(t, nodes[0], a)
	must(t, nodes[1], a)
	if _, err := nodes[0].Renew(t.Context(), a, first); !errors.Is(err, ErrNew) {
		t.Errorf("a new token was refused: %v", err)
	}
	nodes = c.nodes(2)
	c.exec(`update upstream_token set refreshed_at = refreshed_at - interval '1 minute'`)
	for _, n := range nodes {
		must(t, n, a)
	}
	got, errs := together(nodes, 20, func(n *Tokens) (Token, error) { return n.Renew(t.Context(), a, first) })
	if len(errs) > 0 || len(got) != 1 || got[first] > 0 {
		t.Fatalf("%v, %v", got, errs)
	}
	for second := range got {
		if c.Valid(second.Access) == "" {
			t.Error("it is not valid")
		}
		for _, n := range nodes {
			if token := must(t, n, a); token != second {
				t.Error("and then another one")
			}
			if _, err := n.Renew(t.Context(), a, second); !errors.Is(err, ErrNew) {
				t.Errorf("the new token was refused as well: %v", err)
			}
		}
	}
	if n := len(c.Requests()); n != 2 {
		t.Errorf("%d requests in all, want 2", n)
	}
}

// A token is refused while a flight that has found it good has not ended: the next one gets another.
func TestRefusedInFlight(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	n := c.nodes(1)[0]
	first := must(t, n, a)
	n.mu.Lock()
	k := n.keep(a)
	k.born = k.born.Add(-CoolDown)
	k.flying = true
	n.mu.Unlock()
	other := make(chan error, 1)
	go func() {
		second, err := n.Renew(t.Context(), a, first)
		if err == nil && second == first {
			err = errors.New("it is the same")
		}
		other <- err
	}()
	for told := false; !told; time.Sleep(time.Millisecond) {
		n.mu.Lock()
		told = k.refused == first.Serial
		n.mu.Unlock()
	}
	n.landed(k, 0, nil)
	if err := <-other; err != nil {
		t.Errorf("another token: %v", err)
	}
}

// An account whose settings changed never uses the token of the former ones.
func TestChangedAccount(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	node := c.node("a", c.db.Pool)
	first := must(t, node, a)
	changed := a
	changed.Grant.Secret = "wrong"
	if _, err := node.Token(t.Context(), changed); err == nil || !strings.Contains(err.Error(), "AADSTS7000215") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("%v", err)
	}
	if must(t, c.node("late", c.db.Pool), a) != first { // one that has not heard of it yet
		t.Error("the former account lost its token")
	}
	list, err := States(t.Context(), c.db.Pool, []Account{changed})
	if err != nil || len(list) != 1 || list[0].FailingSince.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	tx, err := c.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Forget(t.Context(), tx, a.Upstream); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err = States(t.Context(), c.db.Pool, []Account{a, changed})
	if err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// A refresh token is good for one use: the next one is stored with the access token, before
// anybody has it.
func TestRotation(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.Set(func(s *oauthtest.Settings) { s.Rotate = true })
	a := c.refreshing()
	for range 3 {
		got, errs := together(c.nodes(3), 5, func(n *Tokens) (Token, error) { return n.Token(t.Context(), a) })
		if len(errs) > 0 || len(got) != 1 {
			t.Fatalf("%v, %v", got, errs)
		}
		c.expire()
	}
	if n := len(c.Requests()); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// faulty is a database whose writes of tokens fail, before or after they are done.
type faulty struct {
	pg.DB
	before, after int
	tried         chan struct{}
}

func (f *faulty) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	away := &pg.ConnectError{Err: errors.New("away")}
	if sql == sqlStore && f.before > 0 {
		f.before--
		f.tried <- struct{}{}
		return tag, away
	}
	tag, err = f.DB.Exec(ctx, sql, args...)
	if sql == sqlStore && f.after > 0 {
		f.after--
		return pgconn.CommandTag{}, away
	}
	return tag, err
}

// While the database is away, what the authority gave is kept and not used.
func TestStoredBeforeUse(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.Set(func(s *oauthtest.Settings) { s.Rotate = true })
	a := c.refreshing()
	db := &faulty{c.db.Pool, 1, 1, make(chan struct{})}
	node := c.node("a", db)
	got := make(chan error)
	go func() {
		_, err := node.Token(t.Context(), a)
		got <- err
	}()
	select {
	case <-db.tried:
	case err := <-got:
		t.Fatalf("used before it was stored: %v", err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	c.expire()
	must(t, c.node("b", c.db.Pool), a)
	if n := len(c.Requests()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// TestMain's child gets a token as a node would.
func child() {
	pool, err := pgxpool.New(context.Background(), os.Getenv("ORPHAN_DATABASE"))
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(os.Getenv("ORPHAN_ROOTS")))
	key, _ := seal.New(bytes.Repeat([]byte{7}, seal.KeySize))
	a := &oauthtest.Authority{URL: os.Getenv("ORPHAN_AUTHORITY")}
	account := Account{Upstream: "m365", Username: "relay@example.com", Grant: Grant{Kind: RefreshToken, Authority: "microsoft",
		Tenant: "contoso.example", ClientID: "app-1", Salt: os.Getenv("ORPHAN_SALT")}}
	_, err = New(Config{DB: pool, Sealer: key, Node: "killed", Authorities: at(a), Roots: roots}).Token(context.Background(), account)
	panic(err) // it was to be killed
}

// A node is killed between the authority's answer and its write: if the authority still takes
// the old refresh token nothing is lost, else a person hears of it with the next use.
func TestKilledBetweenAnswerAndStore(t *testing.T) {
	t.Parallel()
	for _, rotates := range []bool{false, true} {
		c := newCluster(t)
		c.Set(func(s *oauthtest.Settings) { s.Rotate = rotates })
		a := c.refreshing()
		c.kill(a)
		c.exec(`update upstream_token set lease_until = lease_until - interval '1 hour' where holder = 'killed'`)
		_, err := c.node("a", c.db.Pool).Token(t.Context(), a)
		if !rotates {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		var f *Fault
		if !errors.As(err, &f) || !f.Login || !strings.Contains(f.Error(), "postern upstream login") {
			t.Errorf("%v", err)
		}
		if _, err := c.node("b", c.db.Pool).Token(t.Context(), a); err == nil || !strings.Contains(err.Error(), "postern upstream login") {
			t.Errorf("another node: %v", err)
		}
		if n := len(c.Requests()); n != 2 {
			t.Errorf("%d requests, want that of the killed node and one more", n)
		}
		list, err := States(t.Context(), c.db.Pool, []Account{a})
		if err != nil || len(list) != 1 || !list[0].Login || c.log.Count(`"login":true`) != 1 {
			t.Errorf("%+v, %v; log: %s", list, err, c.log)
		}
	}
}

// kill has a process ask for a token, and kills it when the authority has given one.
func (c *cluster) kill(a Account) {
	c.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ORPHAN_DATABASE="+c.db.URL, "ORPHAN_AUTHORITY="+c.URL, "ORPHAN_ROOTS="+string(c.PEM), "ORPHAN_SALT="+a.Grant.Salt)
	var said bytes.Buffer
	cmd.Stderr = &said
	given, started := make(chan struct{}), make(chan *os.Process, 1)
	c.Set(func(s *oauthtest.Settings) {
		s.Given = func(map[string][]string) {
			close(given)
			_ = (<-started).Kill()
		}
	})
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	started <- cmd.Process
	err := cmd.Wait()
	select {
	case <-given:
	default:
		c.t.Fatalf("it ended by itself: %v: %s", err, &said)
	}
	c.Set(func(s *oauthtest.Settings) { s.Given = nil })
}

// A node that died while it asked holds the others up for the rest of its lease.
func TestDeadHolder(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	dead := table{c.db.Pool, sealer(t), "dead"}
	if lease, _, err := dead.take(t.Context(), a.Upstream, a.credential(), 0); lease != 1 || err != nil {
		t.Fatal(lease, err)
	}
	c.exec(`update upstream_token set lease_until = clock_timestamp() + interval '1 second'`)
	must(t, c.node("a", c.db.Pool), a)
	if stored, err := dead.store(t.Context(), a.Upstream, a.credential(), 1, 0, pair{Access: "late", Life: time.Hour}); stored || err != nil {
		t.Errorf("the dead node's write counts: %v, %v", stored, err)
	}
}

// A node that stops waits for what the authority gives, begins nothing new, and goes on using
// what it has.
func TestClose(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	c.Set(func(s *oauthtest.Settings) {
		s.Fault = func(http.ResponseWriter, *http.Request) bool {
			close(arrived)
			<-release
			return false
		}
	})
	node := c.node("a", c.db.Pool)
	got := make(chan error)
	go func() {
		_, err := node.Token(t.Context(), a)
		got <- err
	}()
	<-arrived
	closed := make(chan error)
	go func() { closed <- node.Close(t.Context()) }()
	close(release)
	if err := <-got; err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	must(t, node, a)
	node.kept[a.Upstream].renewAt = time.Now().Add(-time.Minute)
	must(t, node, a)
	if n := len(c.Requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
	other := a
	other.Username = "other@example.com"
	if _, err := node.Token(t.Context(), other); err == nil {
		t.Error("it asked for another token")
	}
}

// A node that cannot seal asks for nothing: the authority would end the refresh token that all have.
func TestNothingIsAskedThatCannotBeSealed(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.refreshing()
	path := filepath.Join(t.TempDir(), "secret.key")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, seal.KeySize), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := seal.LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	node := New(Config{DB: c.db.Pool, Sealer: key, Node: "b", Authorities: at(c.Authority), Roots: c.Roots})
	defer node.Close(context.Background())
	if _, err := node.Token(t.Context(), a); err == nil || !strings.Contains(err.Error(), "nothing can be sealed") || len(c.Requests()) != 0 {
		t.Errorf("%v, %d requests", err, len(c.Requests()))
	}
	if err := key.Use(key.Current()); err != nil {
		t.Fatal(err)
	}
	must(t, c.node("a", c.db.Pool), a) // no lease is left behind
}

// A node without the key of the others neither uses nor replaces what they have.
func TestAnotherKey(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	first := must(t, c.node("a", c.db.Pool), a)
	key, err := seal.New(bytes.Repeat([]byte{8}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	node := New(Config{DB: c.db.Pool, Sealer: key, Node: "b", Authorities: at(c.Authority), Roots: c.Roots})
	defer node.Close(context.Background())
	if _, err := node.Token(t.Context(), a); !errors.Is(err, seal.ErrSeal) {
		t.Errorf("%v", err)
	}
	if must(t, c.node("c", c.db.Pool), a) != first || len(c.Requests()) != 1 {
		t.Error("the token was replaced")
	}
}

// The database was away until the new token had ended: nobody used it, and another is got.
func TestEndedBeforeItWasStored(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), credentials(t)
	late := table{c.db.Pool, sealer(t), "late"}
	lease, _, err := late.take(t.Context(), a.Upstream, a.credential(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if stored, err := late.store(t.Context(), a.Upstream, a.credential(), lease, 0, pair{Access: "access-x", Life: -30 * time.Second}); !stored || err != nil {
		t.Fatal(stored, err)
	}
	got, err := c.node("a", c.db.Pool).Token(t.Context(), a)
	if err != nil || got.Access == "access-x" || len(c.Requests()) != 1 {
		t.Errorf("%+v, %v after %d requests", got, err, len(c.Requests()))
	}
}

// A node's database was away until after its lease, while it held the rotated refresh token:
// the other one's was spent, and this is stored.
func TestLateStore(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.refreshing()
	c.Set(func(s *oauthtest.Settings) { s.Rotate = true })
	slow := table{c.db.Pool, sealer(t), "slow"}
	r, err := slow.read(t.Context(), a.Upstream, a.credential())
	if err != nil {
		t.Fatal(err)
	}
	lease, refresh, err := slow.take(t.Context(), a.Upstream, a.credential(), r.serial)
	if err != nil || lease == 0 {
		t.Fatal(lease, err)
	}
	got, err := newAsker(at(c.Authority), c.Roots).ask(t.Context(), &a.Grant, refresh)
	if err != nil {
		t.Fatal(err)
	}
	c.exec(`update upstream_token set lease_until = now() - interval '1 second'`)
	if _, err := c.node("b", c.db.Pool).Token(t.Context(), a); err == nil {
		t.Fatal("the spent refresh token was taken")
	}
	for _, want := range []bool{true, false} { // of two answers only one is stored
		if stored, err := slow.store(t.Context(), a.Upstream, a.credential(), lease, r.serial, got); stored != want || err != nil {
			t.Errorf("stored %t, %v, want %t", stored, err, want)
		}
	}
	if token, err := c.node("c", c.db.Pool).Token(t.Context(), a); err != nil || token.Access != got.Access {
		t.Errorf("%+v, %v", token, err)
	}
}
