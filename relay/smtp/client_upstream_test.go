package smtp

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"postern/internal/smtptest"
)

// ending says in a few words how a conversation went for two recipients: for each
// "delivered", "failed 550", "deferred 450", "retry" (nothing is known, the dot was
// not sent) or "unknown" (it may have been); then where trouble was.
func ending(err error, res *Result) string {
	var out []string
	if res != nil {
		err = res.Err
		for _, reply := range res.Replies {
			out = append(out, fate(reply, res.DotSent))
		}
		if len(out) == 2 && out[0] == out[1] {
			out = out[:1]
		}
	}
	var stage *StageError
	if errors.As(err, &stage) {
		where := "trouble at " + string(stage.Stage)
		if !stage.Reply.IsZero() {
			where = fmt.Sprintf("%d at %s", stage.Reply.Code, stage.Stage)
		}
		out = append(out, where)
	}
	return strings.Join(out, ", ")
}

func fate(reply Reply, dotSent bool) string {
	switch {
	case reply.IsPositive():
		return "delivered"
	case reply.IsPermanent():
		return fmt.Sprintf("failed %d", reply.Code)
	case reply.IsTemporary():
		return fmt.Sprintf("deferred %d", reply.Code)
	case dotSent:
		return "unknown"
	}
	return "retry"
}

// converse has a whole conversation with a server and says how it ended and whether
// the connection could be used for more. What a server does after its last reply may come
// any time later: where it is to make the connection unusable, converse waits for it.
func converse(t *testing.T, s *smtptest.Server, wantUsable bool) (how string, usable bool) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil { // a server that resets immediately may be faster than our side of connect
		return "trouble at greeting", false
	}
	c := NewClient(conn, testConfig())
	defer c.Close()
	if err := c.Greet(t.Context()); err != nil {
		return ending(err, nil), c.Usable()
	}
	res := c.Send(t.Context(), transaction(2))
	checkStorable(t, res.Replies)
	usable = c.Usable()
	for end := time.Now().Add(time.Minute); usable && !wantUsable && time.Now().Before(end); usable = c.Usable() {
		time.Sleep(time.Millisecond)
	}
	return ending(nil, &res), usable
}

// checkStorable: what a server said must fit into a column of type text.
func checkStorable(t *testing.T, replies []Reply) {
	t.Helper()
	for _, reply := range replies {
		if strings.ToValidUTF8(reply.Text, "") != reply.Text || strings.ContainsAny(reply.Text, "\x00\x1b\r") {
			t.Errorf("reply %q", reply.Text)
		}
	}
}

// words are the phases in which a server answers, with the stage that each is of.
var words = []struct {
	phase smtptest.Phase
	stage string
}{
	{smtptest.PhaseBanner, "greeting"},
	{smtptest.PhaseHello, "ehlo"},
	{smtptest.PhaseMail, "mail"},
	{smtptest.PhaseRcpt, "rcpt"},
	{smtptest.PhaseData, "data"},
	{smtptest.PhaseDot, "dot"},
}

// brokenReplies are what is no complete reply, each followed by something that ends
// the wait for the rest.
func brokenReplies() map[string]smtptest.Action {
	raw, end := smtptest.Raw, smtptest.Close()
	return map[string]smtptest.Action{
		"close":                      end,
		"reset":                      smtptest.Reset(),
		"one digit":                  smtptest.Then(raw("2"), end),
		"code only":                  smtptest.Then(raw("250"), end),
		"no CRLF":                    smtptest.Then(raw("250 ok"), end),
		"CR only":                    smtptest.Then(raw("250 ok\r"), end),
		"LF only":                    raw("250 ok\n"),
		"CR in the text":             raw("250 o\rk\r\n"),
		"LF in the text":             raw("250 o\nk\r\n"),
		"code 000":                   raw("000 ok\r\n"),
		"code 99":                    raw("99 ok\r\n"),
		"code 600":                   raw("600 ok\r\n"),
		"code 2 50":                  raw("2 50 ok\r\n"),
		"code 25":                    raw("25\r\n"),
		"code 25 with text":          raw("25 0ok\r\n"),
		"code 2500":                  raw("2500 ok\r\n"),
		"negative code":              raw("-250 ok\r\n"),
		"signed code":                raw("+25 ok\r\n"),
		"no code":                    raw("ok\r\n"),
		"digits of Arabic":           raw("٢٥٠ ok\r\n"),
		"empty line":                 raw("\r\n"),
		"code changes":               raw("250-ok\r\n550 no\r\n"),
		"multi-line cut":             smtptest.Then(raw("250-ok\r\n"), end),
		"reset after half a reply":   smtptest.Then(raw("250-ok\r\n250"), smtptest.Reset()),
		"continuation without end":   smtptest.Repeat("250-\r\n", 1_000_000),
		"long lines without end":     smtptest.Repeat("250-"+strings.Repeat("x", 500)+"\r\n", 100_000),
		"line without end":           smtptest.Repeat("250 ok", 1_000_000),
		"line without end of 64 KiB": smtptest.Then(raw("250 "+strings.Repeat("x", 64<<10)), end),
		"TLS alert":                  smtptest.Then(raw("\x15\x03\x01\x00\x02\x02\x28"), end),
		"HTTP":                       raw("HTTP/1.1 400 Bad Request\r\n\r\n"),
	}
}

// TestA28BrokenReplies: whatever is no complete reply is trouble of the connection,
// at every phase: retry before the dot, unknown behind it.
func TestA28BrokenReplies(t *testing.T) {
	t.Parallel()
	for name, action := range brokenReplies() {
		for _, at := range words {
			t.Run(name+" at "+string(at.phase), func(t *testing.T) {
				t.Parallel()
				s := smtptest.Start(t, smtptest.Config{})
				s.On(at.phase, smtptest.Once(action))
				how, usable := converse(t, s, false)
				want := "retry, trouble at " + at.stage
				switch at.phase {
				case smtptest.PhaseBanner, smtptest.PhaseHello:
					want = "trouble at " + at.stage
				case smtptest.PhaseDot:
					want = "unknown, trouble at dot"
				}
				if how != want || usable {
					t.Errorf("ended %q (usable %v), want %q", how, usable, want)
				}
			})
		}
	}
}

// TestA28BrokenSetup: the same for what comes between the greeting and the first
// message.
func TestA28BrokenSetup(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	underTLS := func(a smtptest.Action) smtptest.Hook {
		return func(s smtptest.Session) smtptest.Action {
			if s.TLS {
				return a
			}
			return smtptest.Action{}
		}
	}
	tests := []struct {
		phase smtptest.Phase
		stage Stage
		hook  func(smtptest.Action) smtptest.Hook
	}{
		{smtptest.PhaseStartTLS, StageTLS, smtptest.Always},
		{smtptest.PhaseHello, StageHello, underTLS},
		{smtptest.PhaseAuth, StageAuth, smtptest.Always},
		{smtptest.PhaseAuthNext, StageAuth, smtptest.Always},
	}
	server := ca.ServerConfig(t, "fake.test")
	for name, action := range brokenReplies() {
		for _, test := range tests {
			t.Run(name+" at "+string(test.phase), func(t *testing.T) {
				t.Parallel()
				s := smtptest.Start(t, smtptest.Config{TLS: server, Users: map[string]string{"u": "p"}})
				s.On(test.phase, test.hook(action))
				c := connect(t, s)
				err := c.StartTLS(t.Context(), ca.ClientConfig("fake.test"))
				if err == nil {
					err = c.Auth(t.Context(), lateName{"u", "p"})
				}
				var stage *StageError
				if !errors.As(err, &stage) || stage.Stage != test.stage || !stage.Reply.IsZero() || c.Usable() {
					t.Errorf("err %v (usable %v), want trouble at %s", err, c.Usable(), test.stage)
				}
			})
		}
	}
}

// TestA28LastWords: what a server says before it hangs up on a large message is
// heard, and it is no verdict on the message unless it is 421.
func TestA28LastWords(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("x\r\n", 5<<20)
	tests := []struct{ said, want, inError string }{
		{"552 5.3.4 too big", "retry, trouble at body", "552 5.3.4 too big"},
		{"250 2.0.0 thanks", "retry, trouble at body", "250 2.0.0 thanks"},
		{"421 4.3.2 bye", "deferred 421, 421 at body", "421 4.3.2 bye"},
		{"nonsense", "retry, trouble at body", `no reply code: "nonsense"`},
	}
	for _, test := range tests {
		t.Run(test.said, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{})
			s.On(smtptest.PhaseBody, smtptest.Always(smtptest.Then(smtptest.Reply(test.said), smtptest.Close())))
			tx := transaction(2)
			tx.Body, tx.Size = strings.NewReader(body), int64(len(body))
			res := connect(t, s).Send(t.Context(), tx)
			if how := ending(nil, &res); how != test.want || !strings.Contains(res.Err.Error(), test.inError) {
				t.Errorf("ended %q: %v", how, res.Err)
			}
		})
	}
}

// TestA28Verdicts: complete replies mean what their first digit says.
func TestA28Verdicts(t *testing.T) {
	t.Parallel()
	const (
		banner = smtptest.PhaseBanner
		hello  = smtptest.PhaseHello
		mail   = smtptest.PhaseMail
		rcpt   = smtptest.PhaseRcpt
		data   = smtptest.PhaseData
		body   = smtptest.PhaseBody
		dot    = smtptest.PhaseDot
	)
	raw, then, normal, end := smtptest.Raw, smtptest.Then, smtptest.Normal(), smtptest.Close()
	always, once := smtptest.Always, smtptest.Once
	multi := func(code string) string { return code + "-one\r\n" + code + "-\r\n" + code + "\r\n" }
	tests := []struct {
		name   string
		phase  smtptest.Phase
		hook   smtptest.Hook
		want   string
		usable bool
	}{
		// Greeting and EHLO.
		{"554 banner", banner, always(raw("554 5.3.2 no service\r\n")), "554 at greeting", false},
		{"450 banner", banner, always(raw("450 4.3.2 later\r\n")), "450 at greeting", false},
		{"421 banner", banner, always(then(raw("421 4.3.2 full\r\n"), end)), "421 at greeting", false},
		{"354 banner", banner, always(raw("354 x\r\n")), "trouble at greeting", false},
		{"multi-line banner", banner, always(raw(multi("220"))), "delivered", true},
		{"two banners", banner, always(raw("220 x\r\n220 x\r\n")), "trouble at ehlo", false},
		{"banner and 421", banner, always(raw("220 x\r\n421 4.3.2 full\r\n")), "421 at ehlo", false},
		{"550 EHLO and HELO", hello, always(raw("550 5.7.1 no\r\n")), "550 at ehlo", false},
		{"450 EHLO", hello, always(raw("450 4.7.1 later\r\n")), "450 at ehlo", false},
		{"421 EHLO", hello, always(then(raw("421 4.3.2 bye\r\n"), end)), "421 at ehlo", false},
		{"354 EHLO", hello, always(raw("354 x\r\n")), "trouble at ehlo", false},
		{"two EHLO replies", hello, always(raw("250 x\r\n250 y\r\n")), "retry, trouble at mail", false},
		{"EHLO in drops", hello, always(smtptest.DripNormal(0)), "delivered", true},

		// MAIL.
		{"450 MAIL", mail, always(raw("450 4.7.1 greylisted\r\n")), "deferred 450", true},
		{"550 MAIL", mail, always(raw("550 5.7.1 no\r\n")), "failed 550", true},
		{"multi-line 550 MAIL", mail, always(raw(multi("550"))), "failed 550", true},
		{"421 MAIL", mail, always(then(raw("421 4.7.0 slow down\r\n"), end)), "deferred 421, 421 at mail", false},
		{"354 MAIL", mail, always(raw("354 go\r\n")), "retry, trouble at mail", false},
		{"251 MAIL", mail, always(raw("251 ok\r\n")), "delivered", true},
		{"two MAIL replies", mail, always(raw("250 ok\r\n250 ok\r\n")), "retry, trouble at data", false},
		{"MAIL refused twice", mail, always(raw("550 no\r\n550 no\r\n")), "failed 550", false},
		{"MAIL reply in drops", mail, always(smtptest.DripNormal(0)), "delivered", true},
		{"5xx with an enhanced 2.0.0", mail, always(raw("550 2.0.0 ok\r\n")), "failed 550", true},
		{"2xx with an enhanced 5.1.1", mail, always(raw("250 5.1.1 no\r\n")), "delivered", true},
		{"NUL, ESC and 8-bit", mail, always(raw("550 5.7.1 \x00\x1b[2J\xff\xc3\xb6\r\n")), "failed 550", true},
		{"text of 5,000", mail, always(raw("550 5.7.1 " + strings.Repeat("x", 5000) + "\r\n")), "failed 550", true},
		{"many lines", mail, always(raw(strings.Repeat("450-x\r\n", 100) + "450 x\r\n")), "deferred 450", true},

		// RCPT.
		{"450 RCPT", rcpt, always(raw("450 4.2.1 busy\r\n")), "deferred 450", true},
		{"550 RCPT", rcpt, always(raw("550 5.1.1 unknown\r\n")), "failed 550", true},
		{"550 first RCPT", rcpt, once(raw("550 5.1.1 unknown\r\n")), "failed 550, delivered", true},
		{"550 second RCPT", rcpt, smtptest.Nth(2, raw("550 5.1.1 unknown\r\n")), "delivered, failed 550", true},
		{"452 after one", rcpt, smtptest.Nth(2, raw("452 4.5.3 too many\r\n")), "delivered, deferred 452", true},
		{"550 and 450", rcpt, func(s smtptest.Session) smtptest.Action {
			return raw([]string{"550 5.1.1 no\r\n", "450 4.2.1 no\r\n"}[s.Rcpt])
		}, "failed 550, deferred 450", true},
		{"251 RCPT", rcpt, always(raw("251 2.1.5 will forward\r\n")), "delivered", true},
		{"252 RCPT", rcpt, always(raw("252 2.1.5 will try\r\n")), "delivered", true},
		{"354 RCPT", rcpt, always(raw("354 go\r\n")), "retry, trouble at rcpt", false},
		{"421 first RCPT", rcpt, once(then(raw("421 4.7.0 bye\r\n"), end)), "deferred 421, 421 at rcpt", false},
		{"550, then 421", rcpt, func(s smtptest.Session) smtptest.Action {
			return []smtptest.Action{raw("550 5.1.1 no\r\n"), then(raw("421 4.7.0 bye\r\n"), end)}[s.Rcpt]
		}, "failed 550, deferred 421, 421 at rcpt", false},
		{"250, then 421", rcpt, smtptest.Nth(2, then(raw("421 4.7.0 bye\r\n"), end)), "deferred 421, 421 at rcpt", false},
		{"550, then close", rcpt, func(s smtptest.Session) smtptest.Action {
			return []smtptest.Action{raw("550 5.1.1 no\r\n"), end}[s.Rcpt]
		}, "failed 550, retry, trouble at rcpt", false},
		{"two replies, one 550", rcpt, once(raw("250 ok\r\n550 5.1.1 no\r\n")), "retry, trouble at data", false},

		// DATA.
		{"450 DATA", data, always(raw("451 4.3.0 later\r\n")), "deferred 451", true},
		{"554 DATA", data, always(raw("554 5.7.1 no\r\n")), "failed 554", true},
		{"421 DATA", data, always(then(raw("421 4.3.2 bye\r\n"), end)), "deferred 421, 421 at data", false},
		{"250 DATA", data, always(raw("250 ok\r\n")), "retry, trouble at data", false},
		{"350 DATA", data, always(raw("350 ok\r\n")), "retry, trouble at data", false},
		{"multi-line 354", data, always(raw(multi("354"))), "delivered", true},
		{"354 and 250 together", data, always(raw("354 go\r\n250 ok\r\n")), "retry, trouble at body", false},
		{"354 and 550 together", data, always(raw("354 go\r\n550 5.7.1 no\r\n")), "retry, trouble at body", false},
		{"354 and 421 together", data, always(then(raw("354 go\r\n421 4.3.2 bye\r\n"), end)), "deferred 421, 421 at body", false},
		{"354 and half a reply", data, always(then(raw("354 go\r\n25"), end)), "retry, trouble at body", false},
		{"451 and 421 together", data, always(then(raw("451 4.3.0 later\r\n421 4.3.2 bye\r\n"), end)), "deferred 451", false},

		// The final dot.
		{"250 dot", dot, always(raw("250 2.0.0 ok\r\n")), "delivered", true},
		{"250 without text", dot, always(raw("250\r\n")), "delivered", true},
		{"251 dot", dot, always(raw("251 ok\r\n")), "delivered", true},
		{"dot in drops", dot, always(smtptest.DripNormal(0)), "delivered", true},
		{"450 dot", dot, always(raw("450 4.7.1 greylisted\r\n")), "deferred 450", true},
		{"554 dot", dot, always(raw("554 5.7.1 spam\r\n")), "failed 554", true},
		{"421 dot", dot, always(then(raw("421 4.3.2 bye\r\n"), end)), "deferred 421, 421 at dot", false},
		{"354 dot", dot, always(raw("354 more\r\n")), "unknown, trouble at dot", false},
		{"two replies to the dot", dot, always(raw("250 ok\r\n250 ok\r\n")), "delivered", false},
		{"250 and 421", dot, always(then(raw("250 ok\r\n421 4.3.2 bye\r\n"), end)), "delivered", false},
		{"250 and close", dot, always(then(raw("250 ok\r\n"), end)), "delivered", false},
		{"kept, then close", dot, always(then(smtptest.Keep(), end)), "unknown, trouble at dot", false},
		{"kept, then reset", dot, always(then(smtptest.Keep(), smtptest.Reset())), "unknown, trouble at dot", false},
		{"kept, 250 without CRLF", dot, always(then(smtptest.Keep(), raw("250 ok"), end)), "unknown, trouble at dot", false},

		// The body.
		{"421 in the body", body, always(then(raw("421 4.3.2 bye\r\n"), end)), "", false},
		{"normal after all", body, always(normal), "delivered", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{})
			s.On(test.phase, test.hook)
			how, usable := converse(t, s, test.usable)
			if test.want == "" {
				// What a server says while the message is written may come before or
				// behind the dot; either way it is 421 or trouble, never a delivery.
				if strings.Contains(how, "delivered") || strings.Contains(how, "failed") || usable {
					t.Errorf("ended %q (usable %v)", how, usable)
				}
				return
			}
			if how != test.want || usable != test.usable {
				t.Errorf("ended %q (usable %v), want %q (%v)", how, usable, test.want, test.usable)
			}
			if delivered := strings.Contains(how, "delivered"); delivered != (len(s.Messages()) == 1) && !strings.Contains(how, "unknown") {
				t.Errorf("ended %q, the server keeps %d", how, len(s.Messages()))
			}
		})
	}
}
