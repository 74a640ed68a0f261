package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/emersion/go-sasl"
	"github.com/google/go-cmp/cmp"

	"postern/internal/smtptest"
)

// A rehearsal ends before DATA and is taken back, whatever the server says; each of its replies is
// heard.
func TestRehearse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		mail, rcpt string // "": taken
		heard      string
		stage      Stage
	}{
		{"", "", "mail 250, rcpt 250, reset 250", ""},
		{"", "550 5.1.1 nobody", "mail 250, rcpt 550", StageRcpt},
		{"550 5.7.60 not you", "", "mail 550", StageMail},
		{"", "421 4.3.2 bye", "mail 250, rcpt 421", StageRcpt},
	} {
		server := smtptest.Start(t, smtptest.Config{})
		for phase, said := range map[smtptest.Phase]string{smtptest.PhaseMail: test.mail, smtptest.PhaseRcpt: test.rcpt} {
			if said != "" {
				server.On(phase, smtptest.Always(smtptest.Reply(said)))
			}
		}
		var heard []string
		c := connect(t, server)
		c.cfg.Heard = func(stage Stage, reply Reply) { heard = append(heard, fmt.Sprint(stage, " ", reply.Code)) }
		err := c.Rehearse(t.Context(), Address{"a", "a.test"}, Address{"b", "b.test"})
		var stage *StageError
		if errors.As(err, &stage) != (test.stage != "") || stage != nil && stage.Stage != test.stage || strings.Join(heard, ", ") != test.heard {
			t.Errorf("%+v: %v, heard %q", test, err, heard)
		}
		if !strings.Contains(test.heard, "421") {
			for _, phase := range []smtptest.Phase{smtptest.PhaseMail, smtptest.PhaseRcpt} {
				server.On(phase, smtptest.Always(smtptest.Normal()))
			}
			mustDeliver(t, c, 1)
		}
		if server.Reached(smtptest.PhaseData) > 1 {
			t.Error("a message was sent")
		}
	}
}

// script is what a server answers to one transaction with two recipients.
type script struct {
	mail  int
	rcpts [2]int
	data  int
	dot   int
}

// want says what a client makes of a script: the replies' codes and whether the
// connection lives.
func (s script) want() (codes [2]int, alive bool) {
	if s.mail != 250 {
		return [2]int{s.mail, s.mail}, s.mail != 421
	}
	accepted := 0
	for i, code := range s.rcpts {
		switch {
		case code == 421:
			codes[i] = 421
			for j := range codes { // also those before, that were accepted
				if codes[j] == 0 {
					codes[j] = 421
				}
			}
			return codes, false
		case code == 250:
			accepted++
		default:
			codes[i] = code
		}
	}
	if accepted == 0 {
		return codes, true
	}
	last := s.data
	if s.data == 354 {
		last = s.dot
	}
	for i := range codes {
		if codes[i] == 0 {
			codes[i] = last
		}
	}
	return codes, last != 421
}

// stages says which command each of the codes answered.
func (s script) stages() []Stage {
	last := StageDot
	switch {
	case s.mail != 250:
		return []Stage{StageMail, StageMail}
	case s.rcpts[0] == 421:
		return []Stage{StageRcpt, StageRcpt}
	case s.rcpts[1] == 421:
		last = StageRcpt
	case s.data != 354:
		last = StageData
	}
	stages := []Stage{last, last}
	for i, code := range s.rcpts {
		if code != 250 {
			stages[i] = StageRcpt
		}
	}
	return stages
}

// hooks makes a server play the script at the transactions whose sender is "play".
func (s script) hooks() map[smtptest.Phase]smtptest.Hook {
	say := func(code int) smtptest.Action {
		reply := smtptest.Reply(fmt.Sprintf("%d scripted", code))
		if code == 421 {
			return smtptest.Then(reply, smtptest.Close())
		}
		return reply
	}
	when := func(code func(smtptest.Session) int) smtptest.Hook {
		return func(at smtptest.Session) smtptest.Action {
			if strings.Contains(at.Mail+at.Command, "<play@") {
				return say(code(at))
			}
			return smtptest.Action{}
		}
	}
	return map[smtptest.Phase]smtptest.Hook{
		smtptest.PhaseMail: when(func(smtptest.Session) int { return s.mail }),
		smtptest.PhaseRcpt: when(func(at smtptest.Session) int { return s.rcpts[at.Rcpt] }),
		smtptest.PhaseData: when(func(at smtptest.Session) int {
			if len(at.Rcpts) == 0 {
				return 554
			}
			return s.data
		}),
		smtptest.PhaseDot: when(func(smtptest.Session) int { return s.dot }),
	}
}

// TestClientScripts walks through every combination of replies, pipelined and in
// lockstep: the results are those of the oracle, the server keeps exactly what was
// called delivered, and the next message on the same connection is not disturbed.
func TestClientScripts(t *testing.T) {
	t.Parallel()
	first := []int{250, 450, 550, 421}
	for _, mode := range []struct {
		name       string
		extensions []string
	}{{"pipelined", []string{"PIPELINING"}}, {"lockstep", []string{}}} {
		for _, mail := range first {
			t.Run(fmt.Sprint(mode.name, " MAIL ", mail), func(t *testing.T) {
				t.Parallel()
				for _, r0 := range first {
					for _, r1 := range first {
						for _, data := range []int{354, 451, 554, 421} {
							for _, dot := range first {
								play(t, script{mail, [2]int{r0, r1}, data, dot}, mode.extensions)
							}
						}
					}
				}
			})
		}
	}
}

func play(t *testing.T, s script, extensions []string) {
	t.Helper()
	server := smtptest.New(smtptest.Config{Extensions: extensions, Hooks: s.hooks()})
	defer server.Close()
	ours, theirs := net.Pipe()
	go server.ServeConn(theirs)
	c := NewClient(ours, testConfig())
	defer c.Close()
	if err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx := transaction(2)
	tx.Mail.From.Local = "play"
	res := c.Send(t.Context(), tx)

	want, alive := s.want()
	if got := codes(res); !cmp.Equal(got, want[:]) {
		t.Errorf("%+v: codes %v, want %v (err %v)", s, got, want, res.Err)
	}
	if want := s.stages(); !cmp.Equal(res.Stages, want) {
		t.Errorf("%+v: stages %v, want %v", s, res.Stages, want)
	}
	if c.Usable() != alive || (res.Err == nil) != alive {
		t.Errorf("%+v: usable %v, err %v, want alive %v", s, c.Usable(), res.Err, alive)
	}
	kept := 0
	for i := range res.Replies {
		if res.Replies[i].IsPositive() {
			kept = 1
		}
	}
	if n := len(server.Messages()); n != kept {
		t.Errorf("%+v: the server keeps %d, want %d", s, n, kept)
	}
	if alive {
		mustDeliver(t, c, 1)
		if n := len(server.Messages()); n != kept+1 {
			t.Errorf("%+v: the message after it was lost", s)
		}
	}
}

// TestClientLoneDot: a server that pipelines and gives 354 although it refused
// every recipient gets a lone dot, and nothing counts as delivered whatever it says.
func TestClientLoneDot(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		phase smtptest.Phase
		code  int
	}{
		{"recipients refused", smtptest.PhaseRcpt, 450},
		{"MAIL refused", smtptest.PhaseMail, 550},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{})
			s.On(test.phase, smtptest.Times(2, smtptest.Reply(fmt.Sprintf("%d no", test.code))))
			s.On(smtptest.PhaseData, smtptest.Once(smtptest.Reply("354 go")))
			c := connect(t, s)
			tx := transaction(1)
			tx.BeforeDot = func() error { return errors.New("there is nothing to end") }
			res := c.Send(t.Context(), tx)
			if res.Err != nil || res.DotSent || !cmp.Equal(codes(res), []int{test.code}) {
				t.Errorf("got %+v", res)
			}
			if got := s.WaitTransactions(t, 1)[0]; got.Size != 0 {
				t.Errorf("the server got %q", got.Data)
			}
			s.On(test.phase, nil)
			mustDeliver(t, c, 1)
		})
	}
}

// TestClientReset: what was accepted without data is taken back before the next
// message, in the same group.
func TestClientReset(t *testing.T) {
	t.Parallel()
	for _, extensions := range [][]string{nil, {}} {
		s := smtptest.Start(t, smtptest.Config{Extensions: extensions})
		c := connect(t, s)
		s.On(smtptest.PhaseData, smtptest.Once(smtptest.Reply("451 4.3.0 later")))
		if res := c.Send(t.Context(), transaction(2)); !cmp.Equal(codes(res), []int{451, 451}) {
			t.Fatalf("got %+v", res)
		}
		mustDeliver(t, c, 1)
		mustDeliver(t, c, 1)
		if n := s.Reached(smtptest.PhaseReset); n != 1 {
			t.Errorf("RSET was said %d times, want once", n)
		}
		s.On(smtptest.PhaseRcpt, smtptest.Once(smtptest.Reply("550 5.1.1 no")))
		_ = c.Send(t.Context(), transaction(1))
		s.On(smtptest.PhaseReset, smtptest.Always(smtptest.Reply("500 what?")))
		if res := c.Send(t.Context(), transaction(1)); !errors.Is(res.Err, ErrOutOfStep) || c.Usable() {
			t.Errorf("RSET refused: %+v", res)
		}
	}
}

// TestClientStale: what came on an idle connection is never taken for a reply, and
// nothing is said to a server that spoke or closed.
func TestClientStale(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		action smtptest.Action
		want   string
	}{
		{"late reply", smtptest.Raw("250 2.0.0 late\r\n"), "retry, trouble at mail"},
		{"half a reply", smtptest.Then(smtptest.Raw("25"), smtptest.Close()), "retry, trouble at mail"},
		{"421", smtptest.Raw("421 4.4.2 idle\r\n"), "deferred 421, 421 at mail"},
		{"closed", smtptest.Close(), "retry, trouble at mail"},
		{"reset", smtptest.Reset(), "retry, trouble at mail"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			said := make(chan struct{})
			s := smtptest.Start(t, smtptest.Config{})
			c := connect(t, s)
			heard := make(chan struct{})
			s.On(smtptest.PhaseDot, smtptest.Always(smtptest.Then(
				smtptest.Normal(), smtptest.StallUntil(heard), test.action, smtptest.Do(func() { close(said) }))))
			mustDeliver(t, c, 1)
			close(heard)
			if test.name == "late reply" || test.name == "421" {
				<-said
			} else {
				s.WaitIdle(t)
			}
			mails := s.Reached(smtptest.PhaseMail)
			res := c.Send(t.Context(), transaction(1))
			if how := ending(nil, &res); how != test.want {
				t.Errorf("ended %q, want %q", how, test.want)
			}
			if c.Usable() || s.Reached(smtptest.PhaseMail) != mails {
				t.Error("the connection goes on")
			}
		})
	}
}

// TestClientBeforeDot: its error keeps the dot from being sent; it is asked once,
// after everything else was written.
func TestClientBeforeDot(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 100, 1 << 20} {
		s := smtptest.Start(t, smtptest.Config{})
		c := connect(t, s)
		lost := errors.New("epoch is over")
		asked := 0
		tx := transaction(2)
		body := strings.Repeat("x\r\n", size/3)
		tx.Body, tx.Size = strings.NewReader(body), int64(len(body))
		tx.BeforeDot = func() error {
			asked++
			if n := tx.Body.(*strings.Reader).Len(); n > 0 {
				t.Errorf("asked with %d octets unread", n)
			}
			return lost
		}
		res := c.Send(t.Context(), tx)
		if !errors.Is(res.Err, lost) || res.DotSent || asked != 1 || !cmp.Equal(codes(res), []int{0, 0}) {
			t.Errorf("%d octets: %+v, asked %d times", size, res, asked)
		}
		s.WaitIdle(t)
		if n := len(s.Transactions()); n != 0 || c.Usable() {
			t.Errorf("%d octets: %d transactions", size, n)
		}
	}
}

// TestClientBadBody: a message that cannot be read whole, or that is none, is never
// ended by a dot.
func TestClientBadBody(t *testing.T) {
	t.Parallel()
	torn := errors.New("torn page")
	tests := []struct {
		name string
		body io.Reader
		size int64
		want error
	}{
		{"read fails", io.MultiReader(strings.NewReader("a\r\n"), iotest.ErrReader(torn)), 10, torn},
		{"too short", strings.NewReader("a\r\n"), 4, nil},
		{"too long", strings.NewReader("a\r\nb\r\n"), 4, nil},
		{"bare LF", strings.NewReader("a\n.\nb\r\n"), 7, ErrDataWrite},
		{"bare CR", strings.NewReader("a\r.\rb\r\n"), 7, ErrDataWrite},
		{"CR at the end", strings.NewReader("a\r"), 2, ErrDataWrite},
		{"NUL", strings.NewReader("a\x00\r\n"), 4, ErrDataWrite},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{})
			c := connect(t, s)
			tx := transaction(1)
			tx.Body, tx.Size = test.body, test.size
			res := c.Send(t.Context(), tx)
			if how := ending(nil, &res); how != "retry, trouble at body" || test.want != nil && !errors.Is(res.Err, test.want) {
				t.Errorf("ended %q: %v", how, res.Err)
			}
			s.WaitIdle(t)
			if n := len(s.Transactions()); n != 0 {
				t.Errorf("%d transactions", n)
			}
		})
	}
}

// TestClientBodies: what arrives is what was given, for sizes and dots around every
// buffer's boundary and however the body is read.
func TestClientBodies(t *testing.T) {
	t.Parallel()
	bodies := map[string]string{
		"empty":         "",
		"one dot":       ".\r\n",
		"dots":          "..\r\n.\r\n...\r\n",
		"no end":        "no line end",
		"only CRLF":     "\r\n",
		"blank lines":   "\r\n\r\n\r\n",
		"8-bit":         "\xff\xfe\r\n",
		"end in a dot.": "x\r\n.",
	}
	for _, around := range []int{32 << 10, 64 << 10} {
		for off := -4; off <= 4; off++ {
			name := fmt.Sprintf("dot at %d%+d", around, off)
			bodies[name] = strings.Repeat("y", around+off-2) + "\r\n.z\r\n"
		}
	}
	bodies["300 KB of dots"] = strings.Repeat(".\r\n", 100<<10)
	s := smtptest.Start(t, smtptest.Config{})
	c := connect(t, s)
	sent := 0
	for name, body := range bodies {
		for _, reader := range []io.Reader{strings.NewReader(body), iotest.HalfReader(strings.NewReader(body)), iotest.DataErrReader(strings.NewReader(body))} {
			tx := transaction(1)
			tx.Body, tx.Size = reader, int64(len(body))
			res := c.Send(t.Context(), tx)
			if res.Err != nil || !res.Replies[0].IsPositive() {
				t.Fatalf("%s: %+v", name, res)
			}
			sent++
			want := body
			if body != "" && !strings.HasSuffix(body, "\r\n") {
				want += "\r\n"
			}
			if got := s.WaitMessages(t, sent)[sent-1]; string(got.Data) != want {
				t.Errorf("%s: %d octets differ", name, len(got.Data))
			}
		}
	}
}

// TestClientManyRecipients: more than may be unanswered at a time.
func TestClientManyRecipients(t *testing.T) {
	t.Parallel()
	for _, n := range []int{maxUnanswered - 3, maxUnanswered - 2, maxUnanswered - 1, maxUnanswered, 3*maxUnanswered + 7} {
		s := smtptest.Start(t, smtptest.Config{})
		s.On(smtptest.PhaseRcpt, func(at smtptest.Session) smtptest.Action {
			if at.Rcpt%3 == 1 {
				return smtptest.Reply("450-4.2.1 "+strings.Repeat("x", 400), "450 4.2.1 busy")
			}
			return smtptest.Action{}
		})
		c := connect(t, s)
		res := c.Send(t.Context(), transaction(n))
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		for i, reply := range res.Replies {
			if want := []int{250, 450, 250}[i%3]; reply.Code != want {
				t.Fatalf("recipient %d: %v, want %d", i, reply, want)
			}
		}
		if got, want := len(s.WaitMessages(t, 1)[0].Rcpts), n-(n+1)/3; got != want {
			t.Errorf("%d recipients, want %d", got, want)
		}
	}
}

// writes counts the writes of a connection.
type writes struct {
	net.Conn
	n int
}

func (w *writes) Write(p []byte) (int, error) {
	w.n++
	return w.Conn.Write(p)
}

// TestClientWrites: an envelope leaves in one write, and a small message with its
// dot in another.
func TestClientWrites(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	conn := &writes{Conn: dialServer(t, s)}
	c := NewClient(conn, testConfig())
	if err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn.n = 0
	mustDeliver(t, c, 50)
	if conn.n != 2 {
		t.Errorf("%d writes, want 2", conn.n)
	}
}

func TestClientParameters(t *testing.T) {
	t.Parallel()
	mail := MailCommand{
		From: Address{"a", "a.test"}, Body: Body8BitMIME, Ret: ReturnHeaders, EnvID: "id+1", Auth: "<>",
	}
	rcpt := RcptCommand{
		To: Address{"b c", "b.test"}, Notify: NotifySuccess | NotifyFailure, ORcptType: "rfc822", ORcpt: "o+r@c.test",
	}
	tests := []struct {
		name       string
		extensions []string
		change     func(*Transaction)
		mail, rcpt string
	}{
		{"everything offered", []string{"SIZE 1000", "8BITMIME", "DSN", "SMTPUTF8"}, nil,
			"FROM:<a@a.test> SIZE=44 BODY=8BITMIME RET=HDRS ENVID=id+2B1",
			`TO:<"b c"@b.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;o+2Br@c.test`},
		{"nothing offered", []string{}, func(tx *Transaction) { tx.Mail.Body = Body7Bit },
			"FROM:<a@a.test>", `TO:<"b c"@b.test>`},
		{"SIZE only", []string{"SIZE"}, func(tx *Transaction) { tx.Mail.Body = "" },
			"FROM:<a@a.test> SIZE=44", `TO:<"b c"@b.test>`},
		{"null path", []string{}, func(tx *Transaction) { tx.Mail = MailCommand{} }, "FROM:<>", `TO:<"b c"@b.test>`},
		{"UTF-8 recipient", []string{"SMTPUTF8"}, func(tx *Transaction) {
			tx.Mail = MailCommand{}
			tx.Rcpts[0] = RcptCommand{To: Address{"ü", "b.test"}}
		}, "FROM:<> SMTPUTF8", "TO:<ü@b.test>"},
		{"UTF-8 domain", []string{}, func(tx *Transaction) {
			tx.Mail = MailCommand{From: Address{"a", "ä.test"}}
			tx.Rcpts[0] = RcptCommand{To: Address{"b", "ü.test"}}
		}, "FROM:<a@xn--4ca.test>", "TO:<b@xn--tda.test>"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Extensions: test.extensions})
			tx := transaction(1)
			tx.Mail, tx.Rcpts[0] = mail, rcpt
			if test.change != nil {
				test.change(&tx)
			}
			before := tx.Rcpts[0]
			res := connect(t, s).Send(t.Context(), tx)
			if res.Err != nil || !res.Replies[0].IsPositive() {
				t.Fatalf("got %+v", res)
			}
			got := s.WaitMessages(t, 1)[0]
			if got.Mail != test.mail || got.Rcpts[0] != test.rcpt {
				t.Errorf("MAIL %s\nRCPT %s, want\nMAIL %s\nRCPT %s", got.Mail, got.Rcpts[0], test.mail, test.rcpt)
			}
			if res.DSN != strings.Contains(strings.Join(test.extensions, " "), "DSN") {
				t.Errorf("DSN %v", res.DSN)
			}
			if tx.Rcpts[0] != before {
				t.Error("the caller's recipients were changed")
			}
		})
	}
}

// TestP01SaysOnlyWhatIsNeeded: BODY and SMTPUTF8 follow from the text and the addresses of
// this transaction, and what has no need of them goes anywhere.
func TestP01SaysOnlyWhatIsNeeded(t *testing.T) {
	t.Parallel()
	none, all := []string{}, []string{"8BITMIME", "SMTPUTF8", "DSN"}
	eight := func(tx *Transaction) { tx.EightBit = true }
	declared := func(tx *Transaction) { tx.EightBit, tx.Mail.Body = true, Body8BitMIME }
	orcpt := func(tx *Transaction) { tx.Rcpts[0].ORcptType, tx.Rcpts[0].ORcpt = "utf-8", "ü@b.test" }
	idn := func(tx *Transaction) { tx.Rcpts[0].To.Domain = "bücher.test" }
	tests := []struct {
		name       string
		extensions []string
		change     func(*Transaction)
		mail, rcpt string // of the first recipient
	}{
		{"ASCII, all offered", all, func(*Transaction) {}, "FROM:<a@a.test>", "TO:<r0@b.test>"},
		{"ASCII declared 7BIT", all, func(tx *Transaction) { tx.Mail.Body = Body7Bit }, "FROM:<a@a.test>", "TO:<r0@b.test>"},
		{"8-bit, all offered", all, eight, "FROM:<a@a.test> BODY=8BITMIME", "TO:<r0@b.test>"},
		{"8-bit declared 7BIT", all, func(tx *Transaction) { tx.EightBit, tx.Mail.Body = true, Body7Bit }, "FROM:<a@a.test> BODY=8BITMIME", "TO:<r0@b.test>"},
		{"8-bit declared", all, declared, "FROM:<a@a.test> BODY=8BITMIME", "TO:<r0@b.test>"},
		{"8-bit, nothing offered", none, eight, "FROM:<a@a.test>", "TO:<r0@b.test>"},
		{"original recipient in UTF-8", all, orcpt, "FROM:<a@a.test>", `TO:<r0@b.test> ORCPT=utf-8;\x{FC}@b.test`},
		{"original recipient in UTF-8, DSN only", []string{"DSN"}, orcpt, "FROM:<a@a.test>", `TO:<r0@b.test> ORCPT=utf-8;\x{FC}@b.test`},
		{"IDN, all offered", all, idn, "FROM:<a@a.test>", "TO:<r0@xn--bcher-kva.test>"},
		{"IDN, nothing offered", none, idn, "FROM:<a@a.test>", "TO:<r0@xn--bcher-kva.test>"},
		{"IDN beside a UTF-8 local part", all, func(tx *Transaction) { idn(tx); tx.Rcpts[1].To.Local = "ü" }, "FROM:<a@a.test> SMTPUTF8", "TO:<r0@xn--bcher-kva.test>"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Extensions: test.extensions})
			tx := transaction(2)
			test.change(&tx)
			tx.Size = 0
			res := connect(t, s).Send(t.Context(), tx)
			if res.Err != nil || !res.Replies[0].IsPositive() || !res.Replies[1].IsPositive() {
				t.Fatalf("got %+v", res)
			}
			got := s.WaitMessages(t, 1)[0]
			if got.Mail != test.mail || got.Rcpts[0] != test.rcpt {
				t.Errorf("MAIL %s\nRCPT %s, want\nMAIL %s\nRCPT %s", got.Mail, got.Rcpts[0], test.mail, test.rcpt)
			}
		})
	}
}

// TestP13OnlyWhoNeedsItFails: a UTF-8 local part beside an IDN and an ASCII recipient.
func TestP13OnlyWhoNeedsItFails(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{Extensions: []string{}})
	tx := transaction(3)
	tx.Rcpts[0].To.Local, tx.Rcpts[1].To.Domain = "ü", "bücher.test"
	res := connect(t, s).Send(t.Context(), tx)
	if got := codes(res); res.Err != nil || !cmp.Equal(got, []int{553, 250, 250}) {
		t.Fatalf("got %v (%v)", got, res.Err)
	}
	if got := s.WaitMessages(t, 1)[0]; got.Mail != "FROM:<a@a.test>" || !cmp.Equal(got.To(), []string{"r1@xn--bcher-kva.test", "r2@b.test"}) {
		t.Errorf("arrived as MAIL %s to %q", got.Mail, got.To())
	}
}

// TestClientAuthParameter: AUTH= is said only where we have authenticated.
func TestClientAuthParameter(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{Users: map[string]string{"u": "p"}, Extensions: []string{}})
	c := connect(t, s)
	if err := c.Auth(t.Context(), sasl.NewPlainClient("", "u", "p")); err != nil {
		t.Fatal(err)
	}
	tx := transaction(1)
	tx.Mail.Auth = "<>"
	if res := c.Send(t.Context(), tx); res.Err != nil {
		t.Fatal(res.Err)
	}
	if got := s.WaitMessages(t, 1)[0].Mail; got != "FROM:<a@a.test> AUTH=<>" {
		t.Errorf("MAIL %s", got)
	}
}

// TestClientUnfit: what a server cannot take is answered without a word on the wire.
func TestClientUnfit(t *testing.T) {
	t.Parallel()
	all := []string{"PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8"}
	tests := []struct {
		name       string
		extensions []string
		change     func(*Transaction)
		want       []string
	}{
		{"too large", all, func(tx *Transaction) { tx.Size = 1001 }, []string{"552 5.3.4", "552 5.3.4"}},
		{"8BITMIME", []string{}, func(tx *Transaction) { tx.Mail.Body = Body8BitMIME }, []string{"554 5.6.3", "554 5.6.3"}},
		{"SMTPUTF8 of the message", []string{}, func(tx *Transaction) { tx.Mail.UTF8 = true }, []string{"553 5.6.7", "553 5.6.7"}},
		{"SMTPUTF8 of the sender", []string{}, func(tx *Transaction) { tx.Mail.From.Local = "ä" }, []string{"553 5.6.7", "553 5.6.7"}},
		{"SMTPUTF8 of one recipient", []string{}, func(tx *Transaction) { tx.Rcpts[0].To.Local = "ä" }, []string{"553 5.6.7", "250 2.0.0"}},
		{"all fits", all, func(tx *Transaction) {
			tx.Mail.UTF8, tx.Mail.Body = true, Body8BitMIME
			tx.Mail.From.Local, tx.Rcpts[1].To.Local = "ä", "ö"
		}, []string{"250 2.0.0", "250 2.0.0"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Extensions: test.extensions})
			c := connect(t, s)
			tx := transaction(2)
			test.change(&tx)
			res := c.Send(t.Context(), tx)
			var got []string
			for _, reply := range res.Replies {
				got = append(got, fmt.Sprint(reply.Code, " ", reply.Enhanced))
			}
			if res.Err != nil || !cmp.Equal(got, test.want) {
				t.Errorf("got %v, want %v (%v)", got, test.want, res.Err)
			}
			if said := s.Reached(smtptest.PhaseMail) > 0; said != res.DotSent {
				t.Errorf("MAIL was said: %v", said)
			}
			mustDeliver(t, c, 1)
		})
	}
}

// TestClientCommandInjection: an address that no parser has seen cannot become a
// second command.
func TestClientCommandInjection(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"a\r\nRCPT TO:<x@y>", "a\nb", "a\rb", "a\x00b"} {
		s := smtptest.Start(t, smtptest.Config{})
		for _, change := range []func(*Transaction){
			func(tx *Transaction) { tx.Mail.From.Local = bad },
			func(tx *Transaction) { tx.Rcpts[0].To.Local = bad },
			func(tx *Transaction) { tx.Rcpts[0].To.Domain = bad },
			func(tx *Transaction) { tx.Mail.EnvID = bad },
		} {
			tx := transaction(1)
			change(&tx)
			_ = connect(t, s).Send(t.Context(), tx)
		}
		for _, m := range s.Transactions() {
			if all := m.Mail + strings.Join(m.Rcpts, ""); bytes.ContainsAny([]byte(all), "\r\n\x00") || len(m.Rcpts) != 1 {
				t.Errorf("%q: %+v", bad, m)
			}
		}
	}
}
