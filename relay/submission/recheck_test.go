package submission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/auth"
	"postern/internal/smtptest"
	"postern/policy/quota"
	"postern/relay/queue"
)

// fakeCurrent answers rechecks, and counts them.
type fakeCurrent struct {
	mu     sync.Mutex
	asked  map[access]int
	now    int // lookups under way
	most   int
	answer func(access) (auth.Identity, error) // nil: the credential works no more
}

func (f *fakeCurrent) Current(_ context.Context, user, credential int64, peer netip.Addr) (auth.Identity, error) {
	a := access{user, credential, peer}
	f.mu.Lock()
	if f.asked == nil {
		f.asked = make(map[access]int)
	}
	f.asked[a]++
	f.now++
	f.most = max(f.most, f.now)
	answer := f.answer
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.now--
		f.mu.Unlock()
	}()
	if answer == nil {
		return auth.Identity{}, fmt.Errorf("user %d: %w", user, auth.ErrCredentials)
	}
	return answer(a)
}

func (f *fakeCurrent) set(answer func(access) (auth.Identity, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func (f *fakeCurrent) calls() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, of := range f.asked {
		n += of
	}
	return n
}

// startRecheck starts a server whose sessions can be checked again.
func startRecheck(t testing.TB, change ...func(*Config)) (*testServer, *fakeCurrent) {
	t.Helper()
	current := &fakeCurrent{}
	return startServer(t, append([]func(*Config){func(cfg *Config) { cfg.Current = current }}, change...)...), current
}

// recheck rechecks users and waits until all lookups have been answered.
func (ts *testServer) recheck(t testing.TB, users ...int64) {
	t.Helper()
	ts.Recheck(users, false)
	ts.rechecked(t)
}

func (ts *testServer) rechecked(t testing.TB) {
	t.Helper()
	waitFor(t, "sessions are rechecked", func() bool {
		ts.logins.mu.Lock()
		defer ts.logins.mu.Unlock()
		return ts.logins.busy == 0 && len(ts.logins.later) == 0
	})
}

// loginClear authenticates on the STARTTLS listener.
func (ts *testServer) loginClear(t testing.TB) *client {
	t.Helper()
	c := ts.dial(t)
	c.cmd(250, "EHLO client.test")
	c.startTLS()
	c.cmd(250, "EHLO client.test")
	c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	return c
}

func (c *client) expectRevoked() {
	c.t.Helper()
	if text := c.expect(421); text != "4.7.0 Your access has been withdrawn, closing connection" {
		c.t.Errorf("421 %s", text)
	}
	c.expectClosed()
}

// TestRecheckIdle: a session whose credential no longer works hears 421 immediately, on both kinds
// of listener; nobody else does.
func TestRecheckIdle(t *testing.T) {
	t.Parallel()
	ts, current := startRecheck(t)
	revoked := []*client{ts.login(t), ts.loginClear(t), ts.login(t)}
	revoked[2].send("NOO") // half a command is no transaction
	stranger := ts.dialTLS(t)
	ts.verifier.verify = func(context.Context, string, string) (auth.Identity, error) {
		return auth.Identity{UserID: 8, CredentialID: 1, Name: "bob"}, nil
	}
	other := ts.login(t)
	ts.recheck(t, 7)
	for _, c := range revoked {
		c.expectRevoked()
	}
	other.cmd(250, "NOOP")
	stranger.cmd(250, "NOOP")
	if n := current.calls(); n != 1 {
		t.Errorf("%d lookups for one user, credential and address", n)
	}
	waitFor(t, "the sessions are gone", func() bool { return ts.Stats().Open == 2 })
	if n := ts.Stats().Revoked; n != 3 || ts.log.Count(`"reason":"revoked"`) != 3 {
		t.Errorf("%d revoked sessions were counted, want 3; log %s", n, ts.log)
	}
	ts.Recheck(nil, true)
	other.expectRevoked()
	stranger.cmd(250, "NOOP")
}

// TestRecheckInTransaction: the next command is answered 421, whichever it is, and the
// transaction is gone.
func TestRecheckInTransaction(t *testing.T) {
	t.Parallel()
	ts, _ := startRecheck(t)
	for _, next := range []string{"RCPT TO:<b2@example.net>", "DATA", "RSET", "NOOP", "QUIT", "FOO", "DATA\r\nRSET"} {
		c := ts.login(t)
		c.cmd(250, "MAIL FROM:<alice@example.com>")
		c.cmd(250, "RCPT TO:<bob@example.net>")
		ts.recheck(t, 7)
		c.send(next + "\r\n")
		c.expectRevoked()
	}
	if n := ts.queue.len(); n != 0 {
		t.Errorf("%d messages are queued", n)
	}
}

// TestRecheckInData: a message whose data is under way is refused after its end, in
// step, and what is pipelined behind it is not run.
func TestRecheckInData(t *testing.T) {
	t.Parallel()
	ts, _ := startRecheck(t)
	ts.handoff.room = 10
	for _, size := range []int{0, 2 << 20} {
		c := ts.login(t)
		c.envelope()
		c.send("From: alice@example.com\r\n\r\n")
		ts.recheck(t, 7)
		c.send(strings.Repeat(strings.Repeat("x", 98)+"\r\n", size/100) + ".\r\nMAIL FROM:<alice@example.com>\r\n")
		c.expectRevoked()
	}
	c := ts.login(t)
	c.envelope()
	ts.recheck(t, 7)
	c.send("From: a bare LF\n\r\n.\r\n") // refused for what it is, as ever
	c.expect(554)
	c.expectRevoked()
	waitFor(t, "the sessions are gone", func() bool { return ts.Stats().Open == 0 })
	st := ts.Stats()
	if ts.queue.len() != 0 || ts.handoff.finish() != 0 || st.Accepted != 0 || st.RefusedMessages != 3 || st.Revoked != 3 {
		t.Errorf("%d messages are queued, %+v", ts.queue.len(), st)
	}
}

// TestRecheckDuringCommit: what the queue has begun to take is answered as the queue
// says, and then the session ends.
func TestRecheckDuringCommit(t *testing.T) {
	t.Parallel()
	ts, _ := startRecheck(t)
	committing, release := make(chan struct{}), make(chan struct{})
	ts.queue.refuse = func(int, queue.Message) error {
		close(committing)
		<-release
		return nil
	}
	c := ts.login(t)
	c.envelope()
	c.send(smallMessage + ".\r\n")
	<-committing
	ts.recheck(t, 7)
	close(release)
	c.expect(250)
	c.expectRevoked()
}

// TestRecheckRenews: other patterns and limits act on the next MAIL, and not within a
// transaction.
func TestRecheckRenews(t *testing.T) {
	t.Parallel()
	ts, current := startRecheck(t)
	c := ts.login(t)
	c.cmd(550, "MAIL FROM:<sales@example.com>")
	c.cmd(250, "MAIL FROM:<alice@example.com>")
	current.set(func(a access) (auth.Identity, error) {
		return auth.Identity{
			UserID: a.user, CredentialID: a.credential, Name: "alice@example.com", Senders: []string{"sales@example.com"},
			Limits: []quota.Limit{{Kind: quota.RecipientsOfMessage, Max: 1, Scope: quota.User}},
		}, nil
	})
	ts.recheck(t, 7)
	c.cmd(250, "RCPT TO:<b1@example.net>")
	c.cmd(250, "RCPT TO:<b2@example.net>")
	c.cmd(354, "DATA")
	c.send(smallMessage + ".\r\n")
	c.expect(250)
	c.cmd(550, "MAIL FROM:<alice@example.com>")
	c.cmd(250, "MAIL FROM:<sales@example.com>")
	c.cmd(250, "RCPT TO:<b1@example.net>")
	c.cmd(452, "RCPT TO:<b2@example.net>")
	current.set(nil)
	ts.recheck(t, 7)
	c.send("RSET\r\n")
	c.expectRevoked()
}

// TestRecheckTrouble: without an answer the session stays, and is looked at again
// within a second; a panic in a lookup is trouble too.
func TestRecheckTrouble(t *testing.T) {
	t.Parallel()
	current := &fakeCurrent{}
	onFakeTime(t, func(cfg *Config) { cfg.Current = current }, func(ts *timed) {
		ts.panics = 1
		begun := make(chan struct{}, 100)
		times := 0
		current.set(func(access) (auth.Identity, error) {
			begun <- struct{}{}
			times++ // one lookup at a time
			switch times {
			case 1:
				panic("injected")
			case 2:
				return auth.Identity{}, fmt.Errorf("no connection: %w", auth.ErrUnavailable)
			}
			return auth.Identity{}, auth.ErrCredentials
		})
		c := ts.login()
		ts.Recheck([]int64{7}, false)
		<-begun
		c.cmd(250, "NOOP")
		started := time.Now()
		<-begun
		if d := time.Since(started); d > time.Second {
			ts.t.Errorf("looked again after %v", d)
		}
		c.cmd(250, "NOOP")
		c.expectRevoked()
		synctest.Wait()
		if ts.log.Count("cannot recheck sessions") != 1 || ts.log.Count("rechecks of sessions work again") != 1 {
			ts.t.Errorf("trouble is not logged once: %s", &ts.log)
		}
	})
}

// TestRecheckTroubleEnds: sessions that are gone are not asked for again, and a lookup
// that hangs does not hold a shutdown up.
func TestRecheckTroubleEnds(t *testing.T) {
	t.Parallel()
	onFakeTime(t, func(cfg *Config) { cfg.Current = hanging{} }, func(ts *timed) {
		c := ts.login()
		ts.Recheck(nil, true)
		c.cmd(250, "NOOP")
		started := time.Now()
		ts.clients.Go(func() { _, _ = io.Copy(io.Discard, c.conn); c.conn.Close() })
		if err := ts.Shutdown(ts.t.Context()); err != nil {
			ts.t.Error(err)
		}
		if d := time.Since(started); d > 0 {
			ts.t.Errorf("a lookup held the shutdown up for %v", d)
		}
	})

	ts, current := startRecheck(t)
	current.set(func(access) (auth.Identity, error) { return auth.Identity{}, errors.New("away") })
	c := ts.login(t)
	ts.Recheck(nil, true)
	c.cmd(221, "QUIT")
	waitFor(t, "the session is gone", func() bool { return ts.Stats().Open == 0 })
	ts.rechecked(t)
}

// hanging answers when it is told to give up.
type hanging struct{}

func (hanging) Current(ctx context.Context, _, _ int64, _ netip.Addr) (auth.Identity, error) {
	<-ctx.Done()
	return auth.Identity{}, ctx.Err()
}

// TestRecheckDuringAuth: an account that is changed between AUTH's look at it and the
// session's entry is looked at again.
func TestRecheckDuringAuth(t *testing.T) {
	t.Parallel()
	ts, current := startRecheck(t)
	verifying, release := make(chan struct{}), make(chan struct{})
	ts.verifier.verify = func(_ context.Context, name, _ string) (auth.Identity, error) {
		close(verifying)
		<-release
		return auth.Identity{UserID: 7, CredentialID: 9, Name: name}, nil
	}
	c := ts.dialTLS(t)
	c.cmd(250, "EHLO client.test")
	c.send("AUTH PLAIN " + plain("alice@example.com", "secret") + "\r\n")
	<-verifying
	ts.recheck(t, 7)
	if n := current.calls(); n != 0 {
		t.Fatalf("%d lookups without a session", n)
	}
	close(release)
	c.expect(235)
	c.expectRevoked()
}

// TestRecheckAgain: a recheck while a lookup is under way is answered by another that
// begins later, and calls meanwhile are one.
func TestRecheckAgain(t *testing.T) {
	t.Parallel()
	ts, current := startRecheck(t)
	begun, release := make(chan struct{}), make(chan struct{})
	current.set(func(a access) (auth.Identity, error) {
		close(begun)
		<-release
		return auth.Identity{UserID: a.user, Name: "alice@example.com"}, nil // as it was
	})
	c := ts.login(t)
	ts.Recheck([]int64{7}, false)
	<-begun
	current.set(nil)
	for range 10 {
		ts.Recheck([]int64{7, 7}, true)
	}
	close(release)
	c.expectRevoked()
	if n := current.calls(); n != 2 {
		t.Errorf("%d lookups, want 2", n)
	}
}

// manySessions logs in users with so many idle sessions each.
func manySessions(t testing.TB, users, each int64) (ts *testServer, current *fakeCurrent, clients []*client) {
	t.Helper()
	ts, current = startRecheck(t, func(cfg *Config) { cfg.Limits.ConnectionsPerAddress = int(users * each) })
	var mu sync.Mutex
	logins := int64(0)
	ts.verifier.verify = func(_ context.Context, name, _ string) (auth.Identity, error) {
		mu.Lock()
		defer mu.Unlock()
		logins++
		return auth.Identity{UserID: logins % users, CredentialID: 1, Name: name}, nil
	}
	clients = make([]*client, users*each)
	for i := range clients {
		if i%2 == 0 {
			clients[i] = ts.login(t)
		} else {
			clients[i] = ts.loginClear(t)
		}
	}
	for _, c := range clients {
		_ = c.conn.SetDeadline(time.Now().Add(patience)) // it took a while to get here
	}
	return ts, current, clients
}

// revokeAll returns when all clients know that their access was withdrawn.
func (ts *testServer) revokeAll(t testing.TB, clients []*client) {
	t.Helper()
	ts.Recheck(nil, true)
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() {
			if code, text, err := c.reply(); code != 421 {
				t.Errorf("%d %q, %v", code, text, err)
			}
		})
	}
	all.Wait()
}

// TestRecheckThousand: 1,000 idle sessions of 100 users are all told, with few lookups
// at a time. BenchmarkRecheckThousand says how soon.
func TestRecheckThousand(t *testing.T) {
	t.Parallel()
	const users, each = 100, 10
	ts, current, clients := manySessions(t, users, each)
	ts.revokeAll(t, clients)
	if n := current.calls(); n != users || current.most > maxLookups {
		t.Errorf("%d lookups, %d concurrently; want %d and at most %d", n, current.most, users, maxLookups)
	}
	for _, c := range clients {
		c.conn.Close()
	}
	waitFor(t, "the sessions are gone", func() bool { return ts.Stats().Open == 0 })
	if n := ts.Stats().Revoked; n != users*each {
		t.Errorf("%d revoked sessions were counted", n)
	}
	if ts.logins.mu.Lock(); len(ts.logins.byUser) != 0 {
		t.Errorf("%d users are left in the registry", len(ts.logins.byUser))
	}
	ts.logins.mu.Unlock()
}

// TestRecheckStress mixes logins, messages, ends and rechecks, for the race detector.
func TestRecheckStress(t *testing.T) {
	t.Parallel()
	ts, current := startRecheck(t)
	var mu sync.Mutex
	n := 0
	current.set(func(a access) (auth.Identity, error) {
		mu.Lock()
		defer mu.Unlock()
		switch n++; n % 10 {
		case 0:
			return auth.Identity{}, auth.ErrCredentials
		case 1:
			return auth.Identity{}, errors.New("away")
		}
		return auth.Identity{UserID: a.user, CredentialID: a.credential, Name: "alice@example.com"}, nil
	})
	done := make(chan struct{})
	var rechecks, clients sync.WaitGroup
	rechecks.Go(func() {
		for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
			select {
			case <-done:
				tick.Stop()
				return
			default:
				ts.Recheck([]int64{7}, false)
			}
		}
	})
	for range 8 {
		clients.Go(func() {
			for range 15 {
				if err := chat(ts); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	close(done)
	rechecks.Wait()
	waitFor(t, "the sessions are gone", func() bool { return ts.Stats().Open == 0 })
	if ts.Stats().Accepted != int64(ts.queue.len()) {
		t.Errorf("%d accepted, %d queued", ts.Stats().Accepted, ts.queue.len())
	}
}

// chat sends messages until it is told 421, or has sent some.
func chat(ts *testServer) error {
	conn, err := tls.Dial("tcp", ts.implicit.Addr().String(), insecure())
	if err != nil {
		return err
	}
	c := newClient(ts.t, conn)
	defer conn.Close()
	steps := []string{"", "EHLO client.test\r\n", "AUTH PLAIN " + plain("alice@example.com", "secret") + "\r\n"}
	for range 5 {
		steps = append(steps, "MAIL FROM:<alice@example.com>\r\n", "RCPT TO:<bob@example.net>\r\n", "DATA\r\n", smallMessage+".\r\n")
	}
	for _, step := range steps {
		if _, err := conn.Write([]byte(step)); err != nil {
			return nil // its 421 was on the way
		}
		switch code, text, err := c.reply(); {
		case code == 421:
			return nil
		case err != nil || code >= 400:
			return fmt.Errorf("%.20q: %d %q, %v", step, code, text, err)
		}
	}
	return nil
}

// TestWireRevoke: a revocation counts whether it comes before the wait or in it, and
// spares waits within a transaction and the one for the client to read its last reply.
func TestWireRevoke(t *testing.T) {
	t.Parallel()
	limits := Limits{}.withDefaults()
	for _, tc := range []struct {
		name             string
		idle, left, ends bool
	}{{"idle", true, false, true}, {"in a transaction", false, false, false}, {"after the last reply", true, true, false}} {
		for _, before := range []bool{true, false} {
			ours, theirs := net.Pipe()
			soon := time.Now().Add(patience)
			w := &wire{raw: ours, conn: ours, limits: &limits, end: soon, until: soon, idle: tc.idle, left: tc.left}
			if before {
				w.revoke()
			}
			started, got := time.Now(), make(chan error, 1)
			go func() {
				_, err := w.Read(make([]byte, 1))
				got <- err
			}()
			if !before {
				waitFor(t, "the wait has begun", func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return w.armed.Equal(soon)
				})
				w.revoke()
			}
			if !tc.ends {
				_, _ = theirs.Write([]byte("x")) // net.Pipe: returns when it was read
			}
			if err := <-got; errors.Is(err, errRevoked) != tc.ends || !tc.ends && err != nil {
				t.Errorf("%s, revoked before: %v: %v", tc.name, before, err)
			}
			if time.Since(started) > patience/2 {
				t.Errorf("%s, revoked before: %v: waited for the deadline", tc.name, before)
			}
			ours.Close()
			theirs.Close()
		}
	}
}

// fakeSessions lets in up to most sessions.
type fakeSessions struct {
	mu           sync.Mutex
	most, open   int
	entered, out int
	err          error
}

func (f *fakeSessions) Enter(context.Context, quota.Session, []quota.Limit) (func(), *quota.Over, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, nil, f.err
	}
	if f.open >= f.most {
		return nil, &quota.Over{Limit: quota.Limit{Kind: quota.Sessions, Max: int64(f.most), Scope: quota.User}, Used: int64(f.open)}, nil
	}
	f.open++
	f.entered++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.open--
		f.out++
	}, nil, nil
}

func (f *fakeSessions) state() (open, entered, out int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open, f.entered, f.out
}

// TestSessionsAtOnce: one too many is refused with the policy's words and is nobody,
// trouble is 454, and neither is a failed login; every end of a session counts it out.
func TestSessionsAtOnce(t *testing.T) {
	t.Parallel()
	sessions := &fakeSessions{most: 1}
	ts, current := startRecheck(t, func(cfg *Config) { cfg.Sessions = sessions })
	ts.panics = 1
	login := "AUTH PLAIN " + plain("alice@example.com", "secret")
	first := ts.login(t)
	second := ts.dialTLS(t)
	second.cmd(250, "EHLO client.test")
	for range 5 {
		if text := second.cmd(454, login); !strings.HasPrefix(text, "4.7.0 Too many sessions for you: 1 are open, at most 1 are allowed") {
			t.Errorf("454 %s", text)
		}
	}
	second.cmd(530, "MAIL FROM:<alice@example.com>")
	ts.recheck(t, 7) // ends the first, and not who was refused
	first.expectRevoked()
	ts.gone(t, sessions, 1)
	sessions.mu.Lock()
	sessions.err = errors.New("internal detail")
	sessions.mu.Unlock()
	if text := second.cmd(454, login); text != "4.7.0 Temporary authentication failure" {
		t.Errorf("454 %s", text)
	}
	sessions.mu.Lock()
	sessions.err = nil
	sessions.mu.Unlock()
	second.cmd(235, login)
	second.cmd(221, "QUIT")
	ts.gone(t, sessions, 2)
	if st := ts.Stats(); st.RefusedSessions != 5 || st.AuthFailed != 0 || st.AuthSucceeded != 2 ||
		ts.log.Count(`"reason":"sessions","rule":"sessions user"`) != 5 || ts.log.Count("internal detail") != 1 {
		t.Errorf("%+v, log %s", st, ts.log)
	}

	current.set(func(access) (auth.Identity, error) { return auth.Identity{}, errors.New("away") })
	c := ts.login(t)
	c.envelope()
	c.send("half a message")
	ts.Recheck([]int64{7}, false)
	c.conn.Close()
	ts.gone(t, sessions, 3)
	ts.queue.refuse = func(int, queue.Message) error { panic("injected") }
	c = ts.login(t)
	c.envelope()
	c.send(smallMessage + ".\r\n")
	c.expect(421)
	ts.gone(t, sessions, 4)
	c = ts.login(t)
	c.envelope()
	<-ts.shutdownIn(time.Millisecond) // says that it had to cut
	ts.gone(t, sessions, 5)
}

// gone waits until all who entered, n, have left.
func (ts *testServer) gone(t *testing.T, sessions *fakeSessions, n int) {
	t.Helper()
	waitFor(t, "a session is counted out", func() bool { open, _, out := sessions.state(); return open == 0 && out >= n })
	if _, entered, out := sessions.state(); entered != n || out != n {
		t.Fatalf("%d entered and %d left, want %d", entered, out, n)
	}
}

// TestRecheckDialogs plays the files testdata/*.txt: alice may have one session, and her
// credential stops working when the server judges her second MAIL.
func TestRecheckDialogs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 3 {
		t.Fatalf("found only %d dialogs, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sessions := &fakeSessions{most: 1}
			if strings.HasPrefix(name, "sessions-") {
				sessions.open = 1
			}
			q := &revokingQueue{fakeQueue: &fakeQueue{}}
			ts, _ := startRecheck(t, func(cfg *Config) { cfg.Sessions, cfg.Queue = sessions, q })
			q.revoke = func() { ts.recheck(t, 7) }
			smtptest.Dialog{Vars: map[string]string{"plain": plain("alice@example.com", "secret")}}.Run(t, dialFor(t, ts, "implicit"), file)
			if want, got := queuedIn(t, file), q.len(); got != want {
				t.Errorf("%d messages are queued, want %d", got, want)
			}
		})
	}
}

// revokingQueue revokes at the second MAIL: Available is asked at AUTH and at MAIL.
type revokingQueue struct {
	*fakeQueue
	asked  int
	revoke func()
}

func (q *revokingQueue) Available() error {
	if q.asked++; q.asked == 3 {
		q.revoke()
	}
	return q.fakeQueue.Available()
}

// TestRecheckAtExpiry: a credential that ends by itself takes its sessions with it, and
// nobody has to say so.
func TestRecheckAtExpiry(t *testing.T) {
	current, verifier := &fakeCurrent{}, &fakeVerifier{}
	onFakeTime(t, func(cfg *Config) { cfg.Current, cfg.Verifier = current, verifier }, func(ts *timed) {
		lasting := ts.login()
		verifier.verify = func(context.Context, string, string) (auth.Identity, error) {
			return auth.Identity{UserID: 8, CredentialID: 1, Name: "bob", Expires: time.Now().Add(time.Minute)}, nil
		}
		ending := ts.login()
		time.Sleep(time.Minute - time.Second)
		ending.cmd(250, "NOOP")
		ending.expectRevoked()
		lasting.cmd(250, "NOOP")
		lasting.conn.Close()
		if n := current.calls(); n != 1 {
			ts.t.Errorf("%d lookups", n)
		}
	})
}
