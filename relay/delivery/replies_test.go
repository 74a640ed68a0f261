package delivery

import (
	"fmt"
	"testing"
	"time"

	"postern/internal/smtptest"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// spoken has replies of upstreams at a phase, and what becomes of the mail: the result, what is
// at fault, and the wait if the row sets one.
var spoken = []struct {
	preset string
	phase  smtptest.Phase
	reply  string
	result queue.Result
	scope  string
	wait   time.Duration
}{
	{"generic", smtptest.PhaseBanner, "554 5.7.1 no service for you", queue.Deferred, "host", 0},
	{"generic", smtptest.PhaseBanner, "421 4.7.0 too many connections", queue.Deferred, "connection", 0},
	{"google", smtptest.PhaseBanner, "421 4.7.0 Try again later, closing connection.", queue.Deferred, "account", 0},
	{"generic", smtptest.PhaseMail, "550 5.7.1 sender refused", queue.Failed, "", 0},
	{"generic", smtptest.PhaseMail, "550 5.7.1 Authentication required", queue.Deferred, "account", 0},
	{"generic", smtptest.PhaseMail, "530 5.7.0 Must authenticate", queue.Deferred, "account", 0},
	{"generic", smtptest.PhaseMail, "452 4.3.1 Insufficient system storage", queue.Deferred, "host", 0},
	{"generic", smtptest.PhaseMail, "421 4.3.2 closing", queue.Deferred, "connection", 0},
	{"generic", smtptest.PhaseRcpt, "550 5.1.1 no such user", queue.Failed, "", 0},
	{"generic", smtptest.PhaseRcpt, "450 4.2.0 Greylisted", queue.Deferred, "", 0},
	{"generic", smtptest.PhaseRcpt, "550 5.7.1 authentication required", queue.Deferred, "account", 0},
	{"generic", smtptest.PhaseRcpt, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException", queue.Failed, "", 0},
	{"generic", smtptest.PhaseData, "554 5.6.0 no", queue.Failed, "", 0},
	{"generic", smtptest.PhaseData, "451 4.3.0 wait", queue.Deferred, "host", 0},
	{"generic", smtptest.PhaseDot, "550 5.7.1 spam", queue.Failed, "", 0},
	{"generic", smtptest.PhaseDot, "535 5.7.8 your login has ended", queue.Deferred, "account", 0},
	{"generic", smtptest.PhaseDot, "451 4.7.1 wait", queue.Deferred, "", 0},
	{"m365", smtptest.PhaseMail, "432 4.3.2 Concurrent connections limit exceeded", queue.Deferred, "connection", 30 * time.Second},
	{"m365", smtptest.PhaseMail, "550 5.7.60 SMTP; Client does not have permissions to send as this sender", queue.Deferred, "sender", 0},
	{"m365", smtptest.PhaseMail, "550 5.7.705 Access denied, tenant has exceeded threshold", queue.Deferred, "account", time.Hour},
	{"m365", smtptest.PhaseRcpt, "550 5.7.64 TenantAttribution; Relay Access Denied", queue.Deferred, "account", 0},
	{"m365", smtptest.PhaseRcpt, "554 5.2.2 mailbox full", queue.Failed, "", 0},
	{"m365", smtptest.PhaseDot, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed", queue.Deferred, "account", time.Hour},
	{"m365", smtptest.PhaseDot, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException; Failed", queue.Deferred, "sender", 0},
	{"m365", smtptest.PhaseDot, "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException", queue.Deferred, "account", time.Hour},
	{"m365", smtptest.PhaseDot, "554 5.2.0 STOREDRV.Submission.Exception:MessageTooBig", queue.Failed, "", 0},
	{"google", smtptest.PhaseMail, "550 5.4.5 Daily user sending limit exceeded", queue.Deferred, "account", time.Hour},
	{"google", smtptest.PhaseRcpt, "550 5.4.5 Daily sending quota exceeded", queue.Deferred, "account", time.Hour},
	{"google", smtptest.PhaseDot, "550-5.4.5 Daily SMTP relay sending limit exceeded\r\n550 5.4.5 see the page", queue.Deferred, "account", time.Hour},
	{"google", smtptest.PhaseMail, "550 5.7.1 Invalid credentials for relay [192.0.2.1].", queue.Deferred, "account", 0},
	{"ses", smtptest.PhaseDot, "454 Throttling failure: Maximum sending rate exceeded.", queue.Deferred, "account", 10 * time.Second},
	{"ses", smtptest.PhaseDot, "554 Message rejected: Email address is not verified. a@b.test", queue.Deferred, "sender", 0},
	{"ses", smtptest.PhaseDot, "554 Access denied", queue.Deferred, "account", 0},
	{"ses", smtptest.PhaseDot, "554 Message rejected: Address blacklisted.", queue.Failed, "", 0},
}

// TestP15Spoken drives the table through real sockets: with TLS and without, with pipelining
// and without, with one recipient and with fifty.
func TestP15Spoken(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	for i, test := range spoken {
		for variant := range 8 {
			tls, pipelining, rcpts := variant&1 > 0, variant&2 > 0, 1+49*(variant>>2)
			t.Run(fmt.Sprintf("%d %s tls=%v pipelining=%v rcpts=%d", i, test.reply, tls, pipelining, rcpts), func(t *testing.T) {
				t.Parallel()
				cfg := smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{test.phase: smtptest.Always(smtptest.Reply(test.reply))}}
				cfg.Extensions = []string{"8BITMIME", "ENHANCEDSTATUSCODES"}
				if pipelining {
					cfg.Extensions = append(cfg.Extensions, "PIPELINING")
				}
				if tls {
					cfg.TLS = ca.ServerConfig(t, "127.0.0.1")
				}
				server := smtptest.Start(t, cfg)
				up := upstreamAt(server)
				up.Replies = upstream.Table(test.preset)
				if tls {
					up.TLS, up.CA = upstream.TLSRequire, string(ca.PEM())
				}
				wantSpoken(t, up, rcpts, test.result, test.scope, test.wait)
			})
		}
	}
}

// wantSpoken sends one message and wants the same outcome for all of its recipients.
func wantSpoken(t *testing.T, up *upstream.Account, rcpts int, result queue.Result, scope string, wait time.Duration) {
	t.Helper()
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: up}})
	d := message(t, addresses(rcpts)...)
	e.Take(d)
	q.waitEnded(t, rcpts)
	for n := range rcpts {
		o := q.outcome(t, d, n)
		if o.Result != result || o.Scope != scope || o.Ours || o.NotAnAttempt || o.Unknown {
			t.Fatalf("recipient %d: %+v, want %s, %q", n, o, result, scope)
		}
		if wait > 0 && (o.RetryIn < wait-wait/10 || o.RetryIn > wait+wait/10) {
			t.Errorf("recipient %d: the next attempt is in %v, want %v", n, o.RetryIn, wait)
		}
		if (result == queue.Deferred) != (o.RetryIn > 0) {
			t.Errorf("recipient %d: %s with a retry in %v", n, result, o.RetryIn)
		}
	}
}

func addresses(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("r%d@one.test", i))
	}
	return list
}

// Refusals of the login are the account's.
func TestP15Login(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	for _, reply := range []string{"535 5.7.139 SmtpClientAuthentication is disabled for the Tenant", "534 5.7.9 Application-specific password required", "454 4.7.0 Too many login attempts", "550 5.7.30 Basic authentication is not supported"} {
		t.Run(reply, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), Users: map[string]string{"relay": "right"},
				Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseAuth: smtptest.Always(smtptest.Reply(reply))}})
			up := upstreamAt(server)
			up.TLS, up.CA, up.Username, up.Password = upstream.TLSRequire, string(ca.PEM()), "relay", "right"
			wantSpoken(t, up, 2, queue.Deferred, "account", 0)
		})
	}
}

// A table that changes counts for the next message, over the connection that is there.
func TestRepliesChange(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: smtptest.Always(smtptest.Reply("550 5.4.5 Daily user sending limit exceeded"))}})
	up := upstreamAt(server)
	ways := routes{to: map[string]*upstream.Account{}, def: up}
	mended := *up
	mended.Replies = upstream.Table("google")
	ways.to["mended.test"] = &mended
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: ways, Connections: 1, IdleTime: patience})
	for i, test := range []struct {
		to    string
		want  queue.Result
		scope string
	}{{"a@one.test", queue.Failed, ""}, {"a@mended.test", queue.Deferred, "account"}, {"b@one.test", queue.Failed, ""}} {
		d := message(t, test.to)
		e.Take(d)
		q.waitEnded(t, i+1)
		if o := q.outcome(t, d, 0); o.Result != test.want || o.Scope != test.scope {
			t.Errorf("%s: %+v, want %s, %q", test.to, o, test.want, test.scope)
		}
	}
	if n := server.Conns(); n != 1 {
		t.Errorf("%d connections, want one", n)
	}
}

// Limits of an upstream are its own.
func TestLimitsOfAnUpstream(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	up := upstreamAt(server)
	up.MaxRecipients, up.MaxMessages, up.MaxConnections = 2, 1, 1
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: up}})
	d := message(t, addresses(6)...)
	e.Take(d)
	q.waitEnded(t, 6)
	for _, m := range server.WaitMessages(t, 3) {
		if len(m.To()) != 2 {
			t.Errorf("%d recipients in one transaction, want 2", len(m.To()))
		}
	}
	if n := server.Conns(); n != 3 {
		t.Errorf("%d connections for three transactions, want 3", n)
	}
}

// The mail of a paused upstream waits without an attempt, and says why.
func TestPausedUpstream(t *testing.T) {
	t.Parallel()
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{err: &upstream.PausedError{Upstream: "out"}}})
	d := message(t, "a@one.test")
	e.Take(d)
	q.waitEnded(t, 1)
	if o := q.outcome(t, d, 0); !o.NotAnAttempt || o.Reply.String() != "451 4.3.2 upstream out is paused" || o.WaitsFor != "upstream out" || o.Upstream != "out" || o.Scope != "host" || o.RetryIn != pausedWait {
		t.Errorf("%+v", o)
	}
}
