package delivery

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/logtest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// TestRewrite sends a large message, whose header section is large too, as the upstream's
// mailbox: the same octets at each of two attempts, in a size that is said rightly.
func TestRewrite(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING", "SIZE 0", "8BITMIME"}})
	up := upstreamAt(server)
	up.SendsAs = address(t, "relay@example.com")
	head, body := strings.Repeat("X-Field: "+strings.Repeat("x", 90)+"\r\n", 500), strings.Repeat(strings.Repeat("y", 76)+"\r\n", 20_000)
	stored := head + "From: A <a@bücher.test>\r\nSender: s@sender.test\r\nSubject: s\r\n\r\n" + body
	want := head + "From: A <relay@example.com>\r\nReply-To: A <a@xn--bcher-kva.test>\r\nSubject: s\r\n\r\n" + body
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: up}})
	for n := range 2 {
		d := message(t, "b@one.test")
		d.Body, d.Message.Size, d.Message.UTF8 = newBody(stored), int64(len(stored)), true
		if n == 1 {
			d.Message.Sender = smtp.Address{}
		}
		e.Take(taken(t, e, d))
		q.waitEnded(t, n+1)
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered || o.SentAs != "relay@example.com" {
			t.Fatalf("%+v", o)
		}
		got := server.WaitMessages(t, n+1)[n]
		if from := []string{"relay@example.com", ""}[n]; got.From() != from {
			t.Errorf("from %q, want %q", got.From(), from)
		}
		if string(got.Data) != want {
			t.Errorf("%d octets, want %d", len(got.Data), len(want))
		}
		// The server has no SMTPUTF8, which is not needed any more.
		if !strings.Contains(got.Mail, "SIZE="+strconv.Itoa(len(want))) || strings.Contains(got.Mail, "SMTPUTF8") {
			t.Errorf("MAIL %q, want SIZE=%d", got.Mail, len(want))
		}
		dropped(t, d)
	}
}

func taken(t *testing.T, e *Engine, d *queue.Delivery) *queue.Delivery {
	t.Helper()
	if !e.Reserve(1, d.Body.Size()) {
		t.Fatal("no room for the message")
	}
	return d
}

// A body that cannot be read is no attempt, also where it is to be rewritten. What fails before
// anything is said costs no connection.
func TestRewriteUnreadable(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	up := upstreamAt(server)
	up.SendsAs = address(t, "relay@example.com")
	q := newFakeQueue()
	var log logtest.Lines
	e := startEngine(t, q, Config{Routes: routes{def: up}, Log: log.Logger()})
	good, failing, next, short := message(t, "b@one.test"), message(t, "b@one.test", "c@one.test"), message(t, "b@one.test"), message(t, "b@one.test", "c@one.test")
	failing.Body.(*fakeBody).ReaderAt = failingReader{}
	short.Body.(*fakeBody).size++
	ended := 0
	for _, d := range []*queue.Delivery{good, failing, next, short} {
		e.Take(taken(t, e, d))
		ended += len(d.Recipients)
		q.waitEnded(t, ended)
		if d != short { // what is cut off in the middle ends its connection
			rested(t, e, queue.Way(up.Name, ""))
		}
		rewritten, read := strings.Contains(log.String(), "stored message cannot be rewritten or signed"), strings.Contains(log.String(), "stored message cannot be read")
		if rewritten != (d != good) || read != (d == short) {
			t.Errorf("%d recipients ended: the log says %s", ended, &log)
		}
	}
	for _, d := range []*queue.Delivery{failing, short} {
		for n := range 2 {
			if waits := q.releases()[rowKey{d.Message.ID, n}]; len(waits) != 1 || waits[0] != bodyWait {
				t.Errorf("recipient %d: released %v", n, waits)
			}
		}
	}
	if messages, conns := len(server.Messages()), server.Conns(); messages != 2 || conns != 1 {
		t.Errorf("%d messages arrived over %d connections, want 2 over one", messages, conns)
	}
}

// decisions has a decision for each recipient's domain.
type decisions map[string]route.Decision

func (d decisions) Resolve(_ context.Context, _ int64, _, rcpt smtp.Address) (route.Decision, error) {
	return d[rcpt.Domain], nil
}

func (d decisions) Named(context.Context, string) (route.Way, error) { return route.Way{}, nil }

// The recipients of one message go by two upstreams, one of which rewrites, and by MX.
func TestSplitByRoute(t *testing.T) {
	t.Parallel()
	one, two, mx := smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{})
	first, second := upstreamAt(one), upstreamAt(two)
	first.Name, second.Name, second.SendsAs = "one", "two", address(t, "relay@example.com")
	refused := route.Way{Name: "no", Upstream: first, Err: &upstream.SenderError{Upstream: "no", Sender: address(t, "sender@sender.test")}}
	var dns dnstest.Zones
	dns.AddMX("mx.test", 10, "host.test.")
	dns.AddHost("host.test", mx.Host())
	cfg := Config{
		Connect: connect.Config{DNS: dns.Resolver(), MXPort: mx.Port(), AllowPrivateMX: true},
		Routes: decisions{
			"one.test": via(first),
			"two.test": {Route: 2, Ways: []route.Way{refused, {Name: "two", Upstream: second}, {Name: route.MX}}},
			"mx.test":  {Route: 3, Ways: []route.Way{refused, {Name: route.MX}}},
			"no.test":  {Route: 4, Ways: []route.Way{refused}},
		},
	}
	q := newFakeQueue()
	e := startEngine(t, q, cfg)
	d := message(t, "a@one.test", "b@mx.test", "c@two.test", "d@one.test", "e@no.test", "f@two.test")
	e.Take(taken(t, e, d))
	q.waitEnded(t, 6)
	for n, want := range []string{"one  ", "mx  no", "two relay@example.com no", "one  ", "no  ", "two relay@example.com no"} {
		o := q.outcome(t, d, n)
		if got := o.Upstream + " " + o.SentAs + " " + leftOf(o); got != want {
			t.Errorf("recipient %d by %q, want %q", n, got, want)
		}
		if n != 4 && o.Result != queue.Delivered || n == 4 && (o.Result != queue.Deferred || o.Scope != "sender" || !o.NotAnAttempt || o.WaitsFor != queue.Route || o.Reply.String() != "451 4.4.4 no route for this sender: upstream no may not send as this sender") {
			t.Fatalf("recipient %d: %+v", n, o)
		}
	}
	for server, want := range map[*smtptest.Server]struct{ to, from, author string }{
		one: {"a@one.test d@one.test", "sender@sender.test", "From: a@sender.test\r\nSubject"},
		two: {"c@two.test f@two.test", "relay@example.com", "From: relay@example.com\r\nReply-To: a@sender.test\r\nSubject"},
		mx:  {"b@mx.test", "sender@sender.test", "From: a@sender.test\r\nSubject"},
	} {
		got := server.WaitMessages(t, 1)[0]
		if strings.Join(got.To(), " ") != want.to || got.From() != want.from || !strings.HasPrefix(string(got.Data), want.author) {
			t.Errorf("to %v from %s: %q, want %+v", got.To(), got.From(), got.Data, want)
		}
	}
	dropped(t, d)
}
