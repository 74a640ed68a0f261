package submission

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"postern/internal/longtest"
	"postern/relay/queue"
)

// modelServer is a server whose limits are out of the way and whose queue refuses
// messages that say so.
func modelServer(t testing.TB) *testServer {
	ts := startServer(t, func(cfg *Config) {
		const many = 1 << 30
		cfg.Limits = Limits{
			Commands: many, BadCommands: many, FailedAuths: many, RefusedRecipients: many,
			Recipients: maxOracleRcpts, MessageSize: 5000,
		}
		cfg.Handoff, cfg.Log, cfg.System = nil, nil, slog.New(slog.DiscardHandler)
	})
	ts.queue.refuse = func(_ int, m queue.Message) error {
		if strings.Contains(m.MessageID, "refuse") {
			return errors.New("the database has gone")
		}
		return nil
	}
	return ts
}

// player runs a sequence of steps against a server and holds it to the oracle.
type player struct {
	*client
	oracle oracle
	helo   bool
	octets bool   // 1-octet framing; otherwise whole groups in one write
	out    []byte // what the group under way has to send
	wanted []wanted
	run    int // number of the run, and of the message within it
	serial int
	trace  []string
}

type wanted struct {
	op    op
	codes []int
}

// play runs steps to their end or to the close of the connection.
func play(t testing.TB, ts *testServer, run int, octets bool, steps []op) {
	conn, err := net.Dial("tcp", ts.clear.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := &player{client: newClient(t, conn), octets: octets, run: run}
	defer func() { p.conn.Close() }()
	p.expect(220)
	ts.queue.forget()
	for _, s := range steps {
		if p.oracle.at == closed {
			break
		}
		p.step(s)
	}
	p.flush()
	if p.oracle.at == closed {
		p.closed()
	}
	p.compare(ts.queue.all())
}

func (p *player) failf(format string, args ...any) {
	p.t.Helper()
	p.t.Fatalf("%s\nafter %s", fmt.Sprintf(format, args...), strings.Join(p.trace, ", "))
}

// step adds one step to the group, and ends the group where RFC 2920 does.
func (p *player) step(s op) {
	marker := p.marker(s)
	line, more := p.text(s, marker)
	want := wanted{s, p.oracle.step(s, p.helo, marker)}
	p.trace = append(p.trace, fmt.Sprintf("%v=%v", s, want.codes))
	p.out = append(p.out, line...)
	p.wanted = append(p.wanted, want)
	switch {
	case s == opHelo:
		p.helo = true
	case s == opEhlo:
		p.helo = false
	}
	group := s == opMail || s >= opMailSyntax && s <= opRcptUTF8 || s == opRset || s == opNoop || s == opVrfy || s == opJunk || s == opBdat
	if group && !p.octets {
		return
	}
	p.flush()
	first := want.codes[0]
	switch {
	case first == 220 && s == opStartTLS:
		p.secure()
	case first == 334 || first == 354:
		p.write(more)
		if s == opDataCut {
			return
		}
		p.reply(wanted{s, want.codes[1:]})
	}
}

// marker names a message. The Message-ID carries it to the queue.
func (p *player) marker(s op) string {
	p.serial++
	name := "m"
	if s == opDataRefused {
		name = "refuse"
	}
	return fmt.Sprintf("<%s.%d.%d@client.test>", name, p.run, p.serial)
}

// text returns what a step sends, and what it sends after 334 or 354.
func (p *player) text(s op, marker string) (line, more string) {
	message := "From: alice@example.com\r\nMessage-ID: " + marker + "\r\n\r\ntext\r\nMAIL FROM:<eve@example.com>\r\n"
	line = [...]string{
		opEhlo: "EHLO client.test", opHelo: "HELO client.test", opStartTLS: "STARTTLS",
		opAuthOK:     "AUTH PLAIN " + plain("alice@example.com", "secret"),
		opAuthBad:    "AUTH PLAIN " + plain("alice@example.com", "wrong"),
		opAuthCancel: "AUTH LOGIN", opAuthGarbage: "AUTH PLAIN !",
		opMail: "MAIL FROM:<alice@example.com>", opMailSyntax: "MAIL FROM:<alice@example.com",
		opMailForbidden: "MAIL FROM:<eve@example.org>", opMailUTF8: "MAIL FROM:<älice@example.com>",
		opMailTooLarge: "MAIL FROM:<alice@example.com> SIZE=6000",
		opRcpt:         "RCPT TO:<bob@example.net>",
		opRcptOther:    fmt.Sprintf("RCPT TO:<r%d@example.net>", len(p.oracle.rcpts)),
		opRcptSyntax:   "RCPT TO:<bob@example.net", opRcptUTF8: "RCPT TO:<böb@example.net>",
		opData: "DATA", opDataRefused: "DATA", opDataBareLF: "DATA", opDataOversize: "DATA", opDataCut: "DATA",
		opBdat: "BDAT 5 LAST", opRset: "RSET", opNoop: "NOOP", opVrfy: "VRFY x", opJunk: "FOO bar", opQuit: "QUIT",
	}[s] + "\r\n"
	switch s {
	case opAuthCancel:
		more = "*\r\n"
	case opData, opDataRefused:
		more = message + ".\r\n"
	case opDataBareLF:
		more = message + "\n.\nRSET\r\n.\r\n"
	case opDataOversize:
		more = message + strings.Repeat(strings.Repeat("x", 98)+"\r\n", 60) + ".\r\n"
	case opDataCut:
		more = message + ".\r"
	}
	return line, more
}

// flush sends the group and reads the first reply to each of its steps.
func (p *player) flush() {
	p.write(string(p.out))
	p.out = p.out[:0]
	for _, w := range p.wanted {
		p.reply(wanted{w.op, w.codes[:1]})
	}
	p.wanted = p.wanted[:0]
}

func (p *player) write(s string) {
	pieces := []string{s}
	if p.octets && len(s) < 600 {
		pieces = strings.Split(s, "")
	}
	for _, piece := range pieces {
		if _, err := io.WriteString(p.conn, piece); err != nil {
			p.failf("write %q: %v", piece, err)
		}
	}
}

func (p *player) reply(w wanted) {
	for _, code := range w.codes {
		got, text, err := p.client.reply()
		if err != nil || got != code {
			p.failf("%v: want %d, got %d %q, %v", w.op, code, got, text, err)
		}
	}
}

func (p *player) secure() {
	conn := tls.Client(p.conn, insecure())
	if err := conn.Handshake(); err != nil {
		p.failf("handshake: %v", err)
	}
	p.conn, p.r = conn, bufio.NewReader(conn)
	p.helo = false
}

// closed ends the client's side: after QUIT the server has closed already.
func (p *player) closed() {
	if len(p.trace) > 0 && strings.HasPrefix(p.trace[len(p.trace)-1], "QUIT") {
		if rest, _ := io.ReadAll(p.r); len(rest) > 0 {
			p.failf("after QUIT: %q", rest)
		}
	}
	p.conn.Close()
}

// compare wants in the queue exactly what the oracle says, each by its envelope.
func (p *player) compare(got []stored) {
	var have []string
	for _, m := range got {
		var rcpts []string
		for _, r := range m.Rcpts {
			rcpts = append(rcpts, r.Address.String())
		}
		have = append(have, envelopeOf(m.Sender.String(), rcpts, m.MessageID))
	}
	if !slices.Equal(have, p.oracle.queued) {
		p.failf("queued %q\nwant   %q", have, p.oracle.queued)
	}
}

// randomSteps makes a sequence that mostly goes forward, so that deep states are
// reached, and goes astray at random.
func randomSteps(r *rand.Rand) []op {
	forward := []op{opEhlo, opStartTLS, opEhlo, opAuthOK, opMail, opRcpt, opData, opMail, opRcptOther, opRcpt, opData}
	var steps []op
	next, astray := 0, r.IntN(8)
	for range 4 + r.IntN(36) {
		if r.IntN(8) < astray {
			steps = append(steps, op(r.IntN(int(ops))))
			continue
		}
		steps = append(steps, forward[next])
		if next++; next == len(forward) {
			next = 4
		}
	}
	return steps
}

// TestA22Model plays random sessions in both framings. POSTERN_LONG=1 plays 10^5.
func TestA22Model(t *testing.T) {
	t.Parallel()
	sequences := 600
	if longtest.Run() {
		sequences = 100_000
	} else if testing.Short() {
		sequences = 100
	}
	const workers = 4
	for w := range workers {
		t.Run(fmt.Sprint(w), func(t *testing.T) {
			t.Parallel()
			ts := modelServer(t)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for run := range sequences / workers {
				play(t, ts, run, run%4 == 0, randomSteps(r))
			}
		})
	}
}

// TestA22Desync holds the sequences that were defects of others: every end of the
// data forgets the transaction; a refused command leaves it as it was.
func TestA22Desync(t *testing.T) {
	t.Parallel()
	ts := modelServer(t)
	login := []op{opEhlo, opStartTLS, opEhlo, opAuthOK}
	for name, steps := range map[string][]op{
		"refused at the end":      {opMail, opRcpt, opDataRefused, opData, opRcpt, opMail, opRcptOther, opData},
		"bare LF":                 {opMail, opRcpt, opDataBareLF, opData, opMail, opRcptOther, opData},
		"oversize":                {opMail, opRcpt, opDataOversize, opData, opMail, opRcptOther, opData},
		"UTF-8 without SMTPUTF8":  {opMailUTF8, opRcpt, opMail, opRcptUTF8, opRcpt, opData},
		"second MAIL":             {opMail, opRcpt, opMailForbidden, opMail, opData},
		"only refused recipients": {opMail, opRcptSyntax, opData, opRcpt, opData},
		"AUTH in a transaction":   {opMail, opRcpt, opAuthOK, opAuthBad, opData},
		"EHLO in a transaction":   {opMail, opRcpt, opEhlo, opData, opMail, opRcpt, opData},
		"BDAT in a transaction":   {opMail, opRcpt, opBdat, opData, opBdat},
		"too many recipients":     {opMail, opRcptOther, opRcptOther, opRcptOther, opRcptOther, opRcpt, opData},
		"cut in the data":         {opMail, opRcpt, opDataCut},
	} {
		t.Run(name, func(t *testing.T) {
			for i, octets := range []bool{false, true} {
				play(t, ts, i, octets, append(slices.Clone(login), steps...))
			}
		})
	}
}

// FuzzA22Model takes a sequence of steps from the fuzzer.
func FuzzA22Model(f *testing.F) {
	f.Add([]byte{0, 2, 0, 3, 7, 12, 16, 26}, true)
	f.Add([]byte{0, 2, 0, 3, 7, 12, 19, 16, 7, 13, 13, 13, 13, 17, 7, 12, 20}, false)
	f.Add([]byte{1, 0, 2, 2, 4, 5, 6, 3, 8, 9, 10, 11, 14, 15, 18, 21, 22, 23, 24, 25}, false)
	ts := modelServer(f)
	run := 0
	f.Fuzz(func(t *testing.T, steps []byte, octets bool) {
		run++
		seq := make([]op, 0, len(steps))
		for _, s := range steps[:min(len(steps), 60)] {
			seq = append(seq, op(int(s)%int(ops)))
		}
		play(t, ts, run, octets, seq)
	})
}
