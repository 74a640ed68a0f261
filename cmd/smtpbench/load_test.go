package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	plain "net/smtp"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"postern/internal/serve"
)

// A relay is a submission server of foreign make that hands each message to the
// sink before it answers, and does wrong where it is told to.
type relay struct {
	caFile string
	port   string
	next   string // the sink
	spoil  func(n int64, m *mail) error
	count  atomic.Int64
}

// mail is a message on its way through the relay.
type mail struct {
	from  string
	to    []string
	text  string
	times int // how often it is passed on
}

func startRelay(t *testing.T, next string, implicit bool, spoil func(int64, *mail) error) *relay {
	t.Helper()
	dir := t.TempDir()
	r := &relay{caFile: filepath.Join(dir, "cert.pem"), next: next, spoil: spoil}
	keyFile := filepath.Join(dir, "key.pem")
	if err := writeCertificate(r.caFile, keyFile); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(r.caFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s := smtp.NewServer(r)
	s.Domain, s.TLSConfig = "relay.test", &tls.Config{Certificates: []tls.Certificate{cert}}
	s.ErrorLog = quiet{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, r.port, _ = net.SplitHostPort(ln.Addr().String())
	if implicit {
		ln = tls.NewListener(ln, s.TLSConfig)
	}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return r
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

func (r *relay) NewSession(*smtp.Conn) (smtp.Session, error) { return &relaySession{relay: r}, nil }

type relaySession struct {
	relay *relay
	mail  mail
}

func (s *relaySession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *relaySession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != benchUser || password != benchPassword {
			return errors.New("wrong password")
		}
		return nil
	}), nil
}

func (s *relaySession) Reset()        { s.mail = mail{times: 1} }
func (s *relaySession) Logout() error { return nil }

func (s *relaySession) Mail(from string, _ *smtp.MailOptions) error {
	s.mail.from = from
	return nil
}

func (s *relaySession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.mail.to = append(s.mail.to, to)
	return nil
}

func (s *relaySession) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	m := s.mail
	m.text, m.times = received+string(text), 1
	var refusal error
	if s.relay.spoil != nil {
		refusal = s.relay.spoil(s.relay.count.Add(1), &m)
	}
	for range m.times {
		if err := plain.SendMail(s.relay.next, nil, m.from, m.to, []byte(m.text)); err != nil {
			return err
		}
	}
	return refusal
}

// bench runs smtpbench load, with its sink, against a relay.
func bench(t *testing.T, implicit bool, spoil func(int64, *mail) error, flags ...string) (r result, status int) {
	t.Helper()
	port, err := serve.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	next := "127.0.0.1:" + itoa(port)
	relay := startRelay(t, next, implicit, spoil)
	args := append([]string{"load", "--to", "127.0.0.1:" + relay.port, "--user", benchUser,
		"--password-stdin", "--ca", relay.caFile, "--sink", next, "--json"}, flags...)
	var stdout, stderr bytes.Buffer
	status = run(t.Context(), args, strings.NewReader(benchPassword+"\n"), &stdout, &stderr)
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("printed %q, %q: %v", &stdout, &stderr, err)
	}
	return r, status
}

func itoa(n int) string { return string(appendDigits(nil, n, 5)) }

func TestLoad(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		implicit bool
		flags    []string
		messages int
	}{
		"many recipients": {false, []string{"--connections", "3", "--messages", "4", "--recipients", "5", "--size", "2KB"}, 12},
		"implicit TLS":    {true, []string{"--tls", "implicit", "--connections", "2", "--messages", "2"}, 4},
		"reconnecting":    {false, []string{"--reconnect", "--connections", "2", "--messages", "3"}, 6},
		"large":           {false, []string{"--connections", "2", "--messages", "1", "--size", "3MB"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, status := bench(t, test.implicit, nil, test.flags...)
			want := tally{Accepted: test.messages, Arrived: test.messages * r.Recipients}
			if status != 0 || !r.Sound || r.Tally != want || len(r.Problems) > 0 {
				t.Errorf("status %d, %+v, want %+v", status, r, want)
			}
			if r.Rate <= 0 || r.AcceptRate <= 0 || r.P50 <= 0 || r.P99 < r.P50 || r.Max < r.P99 {
				t.Errorf("figures: %+v", r)
			}
		})
	}
}

// TestLoadSeesWrongs lets the relay do wrong to the second message.
func TestLoadSeesWrongs(t *testing.T) {
	t.Parallel()
	refused := &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "later"}
	tests := map[string]struct {
		spoil func(*mail) error
		want  tally
	}{
		"doubled":   {func(m *mail) error { m.times = 2; return nil }, tally{Accepted: 4, Arrived: 8, Doubled: 2}},
		"altered":   {func(m *mail) error { m.text += "ad\r\n"; return nil }, tally{Accepted: 4, Arrived: 6, Altered: 1, Lost: 2}},
		"delivered": {func(m *mail) error { return refused }, tally{Accepted: 3, Refused: 1, Arrived: 8, Refuted: 2}},
		"refused":   {func(m *mail) error { m.times = 0; return refused }, tally{Accepted: 3, Refused: 1, Arrived: 6}},
		"sender":    {func(m *mail) error { m.from = "x@example.com"; return nil }, tally{Accepted: 4, Arrived: 8, Envelope: 1}},
		"added":     {func(m *mail) error { m.to = append(m.to, "x@example.com"); return nil }, tally{Accepted: 4, Arrived: 8, Envelope: 1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at, err := newExchange("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(at.sink.Close)
			relay := startRelay(t, at.sink.Addr().String(), false, func(n int64, m *mail) error {
				if n != 2 {
					return nil
				}
				return test.spoil(m)
			})
			got := runPlan(t, relay, at)
			if got.Tally != test.want || got.Sound {
				t.Errorf("%+v, want %+v; sound: %t", got.Tally, test.want, got.Sound)
			}
		})
	}
}

// runPlan sends four messages to two recipients each, and gives up immediately on
// what does not arrive: the relay passes mail on before it answers.
func runPlan(t *testing.T, relay *relay, at *exchange) result {
	t.Helper()
	config, err := tlsConfig("127.0.0.1:"+relay.port, relay.caFile, false)
	if err != nil {
		t.Fatal(err)
	}
	to := &target{address: "127.0.0.1:" + relay.port, tls: config, user: benchUser, password: benchPassword}
	p := plan{connections: 2, patience: 1, corpus: corpusConfig{benchUser, "example.net", 4, 2, 2048}}
	r, err := p.run(t.Context(), to, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestClientWithoutPipelining speaks to a server that answers each command alone,
// and refuses a recipient.
func TestClientWithoutPipelining(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		pipelining bool
		replies    string
		commands   int // in all
		refused    bool
		lost       bool
	}{
		"step by step":      {false, "250 a\r\n250 a\r\n250 a\r\n354 a\r\n250 a\r\n", 4, false, false},
		"in a group":        {true, "250 a\r\n250 a\r\n250 a\r\n354 a\r\n250 a\r\n", 4, false, false},
		"recipient refused": {false, "250 a\r\n250 a\r\n550-a\r\n550 b\r\n250 a\r\n", 4, true, false},
		"group refused":     {true, "550 a\r\n503 a\r\n503 a\r\n503 a\r\n250 a\r\n", 5, true, false},
		"partly refused":    {true, "250 a\r\n250 a\r\n550 a\r\n354 a\r\n", 4, false, true},
		"refused at last":   {true, "250 a\r\n250 a\r\n250 a\r\n354 a\r\n452 a\r\n", 4, true, false},
		"cut off":           {true, "250 a\r\n250 a\r\n", 4, false, true},
		"nonsense":          {true, "250 a\r\n2\r\n", 4, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := &script{in: strings.NewReader(test.replies), Conn: noDeadline{}}
			c := newClient(nil, conn)
			c.pipelining = test.pipelining
			_, err := c.send(testCorpus(t, 1, 2, minSize).message(true), 0)
			var refusal *replyError
			if errors.As(err, &refusal) != test.refused || (err == nil) == (test.refused || test.lost) {
				t.Errorf("ended with %v", err)
			}
			if errors.Is(err, errPartly) != (name == "partly refused") {
				t.Errorf("the connection is of use: %v", err)
			}
			sent, _, _ := strings.Cut(conn.out.String(), mark)
			if got := strings.Count(sent, "\r\n"); got != test.commands {
				t.Errorf("sent %q", sent)
			}
		})
	}
}

// wrongs of the command line.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args   string
		status int
		want   string
	}{
		{"load", 2, "--to and --user"},
		{"load --to x --user a --size 5GB", 2, "a size is"},
		{"load --to x:1 --user a --tls none", 2, "starttls or implicit"},
		{"load --to 127.0.0.1:1 --user a --recipients 0", 2, "1 to 999"},
		{"load --to 127.0.0.1:1 --user a --ca /dev/null", 1, "no certificate"},
		{"nonsense", 2, "unknown command"},
		{"compare --workload nonsense", 2, "no workload"},
		{"compare --rounds 0", 2, "at least 1"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), strings.Fields(test.args), strings.NewReader(""), &stdout, &stderr)
		if status != test.status || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%s: status %d, %q", test.args, status, &stderr)
		}
	}
}

func TestOctets(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]octets{"0": 0, "1500": 1500, "5KB": 5 << 10, "5k": 5 << 10, "10MB": 10 << 20, "1m": 1 << 20} {
		var got octets
		if err := got.Set(text); err != nil || got != want {
			t.Errorf("%q is %d: %v", text, got, err)
		}
	}
	for _, text := range []string{"", "KB", "-1", "1.5MB", "5G", "5KBB", "5KM"} {
		if got := octets(7); got.Set(text) == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}

// TestSinkAlone takes what a load without a sink sends.
func TestSinkAlone(t *testing.T) {
	t.Parallel()
	seen := &census{copies: make(map[string]int)}
	s, err := startSink("127.0.0.1:0", seen.arrive)
	if err != nil {
		t.Fatal(err)
	}
	relay := startRelay(t, s.Addr().String(), false, nil)
	var stdout, stderr bytes.Buffer
	args := strings.Fields("load --no-sink --connections 2 --messages 2 --recipients 2 --user " + benchUser + " --ca " + relay.caFile + " --to 127.0.0.1:" + relay.port)
	if status := run(t.Context(), append(args, "--password", benchPassword), nil, &stdout, &stderr); status != 0 {
		t.Fatalf("status %d: %s", status, &stderr)
	}
	s.Close()
	if err := seen.print(&stdout); err != nil || !strings.Contains(stdout.String(), "4 messages to 8 recipients, 0 doubled, 0 messages altered") {
		t.Errorf("%s: %v", &stdout, err)
	}
	c := testCorpus(t, 1, 1, minSize)
	again := c.copyOf(0, 0)
	seen.arrive(again)
	seen.arrive(again)
	again.intact = false
	seen.arrive(again)
	if err := seen.print(&stdout); !errors.Is(err, errUnsound) || seen.doubled != 1 || seen.altered != 1 {
		t.Errorf("%+v: %v", seen, err)
	}
}

func TestSinkCommandEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &notice{text: "listens on", heard: cancel}
	if status := run(ctx, []string{"sink", "--listen", "127.0.0.1:0"}, nil, out, out); status != 0 {
		t.Errorf("status %d: %s", status, out.all)
	}
}

// notice calls heard when the text is written.
type notice struct {
	text  string
	heard func()
	mu    sync.Mutex
	all   []byte
}

func (n *notice) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, b...)
	if bytes.Contains(n.all, []byte(n.text)) {
		n.heard()
	}
	return len(b), nil
}

func TestWorkloadsHaveNames(t *testing.T) {
	t.Parallel()
	usual, err := choose(nil)
	if err != nil || len(usual) != 4 {
		t.Errorf("the usual workloads are %v: %v", usual, err)
	}
	chosen, err := choose([]string{"huge", "burst"})
	if err != nil || !slices.EqualFunc(chosen, []string{"huge", "burst"}, func(w workload, name string) bool { return w.name == name }) {
		t.Errorf("chose %v: %v", chosen, err)
	}
}
