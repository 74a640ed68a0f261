package maillog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"postern/internal/share"
	"postern/relay/smtp"
)

var (
	client = netip.MustParseAddrPort("192.0.2.7:50000")
	remote = netip.MustParseAddrPort("[2001:db8::1]:25")
	alice  = smtp.Address{Local: "alice", Domain: "example.com"}
	bob    = smtp.Address{Local: "bob", Domain: "example.net"}
	later  = smtp.Temporary(450, 2, 1, "try\nlater")
)

// events has every event with every field, and what it logs.
var events = []struct {
	log  func(*Logger)
	want string // JSON
}{
	{
		func(l *Logger) {
			l.Accepted(Accept{ID: "id1", User: "alice", Sender: alice, Recipients: 2, Size: 100, MessageID: "<m@x>", Client: client, Hello: "laptop", TLS: "TLS1.3", Rule: "sender *@example.com", Removed: "bom mbox"})
		},
		`{"level":"INFO","msg":"accepted","id":"id1","user":"alice","sender":"alice@example.com","recipients":2,"size":100,"message_id":"<m@x>","client":"192.0.2.7:50000","hello":"laptop","tls":"TLS1.3","rule":"sender *@example.com","removed":"bom mbox"}`,
	},
	{
		func(l *Logger) { l.Accepted(Accept{ID: "id1"}) },
		`{"level":"INFO","msg":"accepted","id":"id1","sender":"<>","recipients":0,"size":0}`,
	},
	{
		func(l *Logger) {
			l.Refused(Refusal{ID: "id1", User: "alice", Sender: alice, Recipient: bob, Client: client, Stage: smtp.StageRcpt, Reply: later, Rule: "sender none"})
		},
		`{"level":"INFO","msg":"refused","id":"id1","user":"alice","sender":"alice@example.com","recipient":"bob@example.net","client":"192.0.2.7:50000","stage":"rcpt","code":450,"reply":"450 4.2.1 try later","rule":"sender none"}`,
	},
	{
		func(l *Logger) { l.Refused(Refusal{Stage: smtp.StageDot, Reply: later, Err: errors.New("no disk")}) },
		`{"level":"WARN","msg":"refused","stage":"dot","code":450,"reply":"450 4.2.1 try later","error":"no disk"}`,
	},
	{
		func(l *Logger) {
			l.Attempts(slices.Values([]AttemptEnd{AttemptEnd{ID: "id1", Recipient: bob, Result: "deferred", Reply: later, RemoteMTA: "mx.example", RemoteIP: remote, TLS: "TLS1.2", Upstream: "mx", Attempt: 3, Elapsed: 1500 * time.Millisecond, RetryIn: time.Minute, PossibleDuplicate: true, Err: io.EOF}}))
		},
		`{"level":"INFO","msg":"deferred","id":"id1","recipient":"bob@example.net","code":450,"reply":"450 4.2.1 try later","remote_mta":"mx.example","remote_ip":"[2001:db8::1]:25","tls":"TLS1.2","upstream":"mx","attempt":3,"elapsed_ms":1500,"retry_in_s":60,"possible_duplicate":true,"error":"EOF"}`,
	},
	{
		func(l *Logger) {
			l.Attempts(slices.Values([]AttemptEnd{AttemptEnd{ID: "id1", Recipient: bob, Result: "delivered", Left: "first: 454 later", Attempt: 1}}))
		},
		`{"level":"INFO","msg":"delivered","id":"id1","recipient":"bob@example.net","left":"first: 454 later","attempt":1,"elapsed_ms":0}`,
	},
	{
		func(l *Logger) {
			l.Attempts(slices.Values([]AttemptEnd{AttemptEnd{ID: "id1", Recipient: bob, Result: "failed", Attempt: 1}}))
		},
		`{"level":"INFO","msg":"failed","id":"id1","recipient":"bob@example.net","attempt":1,"elapsed_ms":0}`,
	},
	{
		func(l *Logger) {
			l.Notice(NoticeEvent{ID: "id2", About: "id1", Kind: "failure", To: alice, Recipients: 2})
		},
		`{"level":"INFO","msg":"bounced","id":"id2","about":"id1","kind":"failure","recipient":"alice@example.com","recipients":2}`,
	},
	{
		func(l *Logger) {
			l.Notice(NoticeEvent{About: "id1", Kind: "failure", Recipients: 1, Suppressed: "null sender"})
		},
		`{"level":"INFO","msg":"notice","about":"id1","kind":"failure","recipient":"<>","recipients":1,"suppressed":"null sender"}`,
	},
	{
		func(l *Logger) {
			l.NoticeLost(LostNoticeEvent{ID: "id2", About: "id1", Kind: "failure", To: alice, Reply: later, Reason: "expired"})
		},
		`{"level":"WARN","msg":"notice_lost","id":"id2","about":"id1","kind":"failure","recipient":"alice@example.com","code":450,"reply":"450 4.2.1 try later","reason":"expired"}`,
	},
	{
		func(l *Logger) {
			l.Auth(AuthEvent{User: "alice", Client: client, Listener: "submission", Mechanism: "PLAIN", TLS: "TLS1.3", OK: true})
		},
		`{"level":"INFO","msg":"auth","user":"alice","client":"192.0.2.7:50000","listener":"submission","mechanism":"PLAIN","tls":"TLS1.3","ok":true}`,
	},
	{
		func(l *Logger) { l.Auth(AuthEvent{Reason: "unavailable", Err: io.EOF}) },
		`{"level":"WARN","msg":"auth","ok":false,"reason":"unavailable","error":"EOF"}`,
	},
	{
		func(l *Logger) { l.Auth(AuthEvent{User: "alice", Reason: "sessions", Rule: "sessions user"}) },
		`{"level":"INFO","msg":"auth","user":"alice","ok":false,"reason":"sessions","rule":"sessions user"}`,
	},
	{
		func(l *Logger) {
			l.Held(HeldEvent{ID: "id1", User: "alice", Sender: alice, Recipients: 2})
		},
		`{"level":"INFO","msg":"held","id":"id1","user":"alice","sender":"alice@example.com","recipients":2}`,
	},
	{
		func(l *Logger) { l.Held(HeldEvent{ID: "id1", Recipients: 1}) },
		`{"level":"INFO","msg":"held","id":"id1","sender":"<>","recipients":1}`,
	},
	{
		func(l *Logger) {
			l.LimitNear(LimitEvent{User: "alice", Credential: "12", Limit: "messages 100/m", Used: 80})
		},
		`{"level":"INFO","msg":"limit_near","user":"alice","credential":"12","limit":"messages 100/m","used":80}`,
	},
	{
		func(l *Logger) { l.LimitNear(LimitEvent{User: "alice", Limit: "bytes 1GB/d"}) },
		`{"level":"INFO","msg":"limit_near","user":"alice","limit":"bytes 1GB/d","used":0}`,
	},
	{
		func(l *Logger) { l.LimitNear(LimitEvent{Domain: "example.com", Limit: "messages 100/d", Used: 80}) },
		`{"level":"INFO","msg":"limit_near","domain":"example.com","limit":"messages 100/d","used":80}`,
	},
	{
		func(l *Logger) { l.Hold(HoldEvent{User: "alice", Reason: "first_time_share 0.9"}) },
		`{"level":"INFO","msg":"hold","user":"alice","reason":"first_time_share 0.9"}`,
	},
	{
		func(l *Logger) { l.Released(HoldEvent{User: "alice", Reason: "user removed"}) },
		`{"level":"INFO","msg":"released","user":"alice","reason":"user removed"}`,
	},
	{
		func(l *Logger) { l.SessionOpen(Session{Client: client, Listener: "submission"}) },
		`{"level":"DEBUG","msg":"session_open","client":"192.0.2.7:50000","listener":"submission"}`,
	},
	{
		func(l *Logger) {
			l.SessionClosed(Session{Client: client, Listener: "s", Hello: "h", TLS: "t", User: "u", Messages: 4, Elapsed: time.Second, Reason: "quit"})
		},
		`{"level":"DEBUG","msg":"session_closed","client":"192.0.2.7:50000","listener":"s","hello":"h","tls":"t","user":"u","messages":4,"elapsed_ms":1000,"reason":"quit"}`,
	},
	{
		func(l *Logger) { l.repeats.tell(repeat{kind: "auth busy", network: share.Network(client.Addr())}, 3) },
		`{"level":"INFO","msg":"repeated","what":"auth busy","network":"192.0.2.7/32","more":3}`,
	},
	{
		func(l *Logger) { l.repeats.tell(repeat{kind: "refused rcpt", user: "alice"}, 3) },
		`{"level":"INFO","msg":"repeated","what":"refused rcpt","user":"alice","more":3}`,
	},
}

// recorder logs JSON lines without the time.
func recorder(level slog.Level) (*Logger, *bytes.Buffer) {
	var out bytes.Buffer
	return New(slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))), &out
}

func TestEvents(t *testing.T) {
	t.Parallel()
	for _, tt := range events {
		l, out := recorder(slog.LevelDebug)
		tt.log(l)
		if diff := cmp.Diff(tt.want+"\n", out.String()); diff != "" {
			t.Error(diff)
		}
	}
}

func TestSessionsAreDebug(t *testing.T) {
	t.Parallel()
	l, out := recorder(slog.LevelInfo)
	l.SessionOpen(Session{Client: client})
	l.SessionClosed(Session{Client: client})
	if out.Len() > 0 {
		t.Errorf("logged at info: %s", out)
	}
	New(nil).Accepted(Accept{}) // goes nowhere
}

// docs/log.md is the contract: it names each event and each field.
func TestDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/log.md")
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	need := func(word string) {
		if !bytes.Contains(doc, []byte("`"+word+"`")) {
			missing = append(missing, word)
		}
	}
	for _, tt := range events {
		l, out := recorder(slog.LevelDebug)
		tt.log(l)
		var line map[string]any
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		need(line["msg"].(string))
		for key := range line {
			need(key)
		}
	}
	slices.Sort(missing)
	if missing = slices.Compact(missing); len(missing) > 0 {
		t.Errorf("docs/log.md lacks %v", missing)
	}
}

// hostile is each octet, each control that moves or hides text, and what Unicode
// counts as a line.
func hostile() []string {
	var all []string
	for c := range 256 {
		all = append(all, "a"+string([]byte{byte(c)})+"b")
	}
	for _, r := range "\u0085\u009b\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff\ufffe\U000e0001" {
		all = append(all, "a"+string(r)+"b")
	}
	return append(all, "\xed\xa0\x80", "\xc0\xaf", `{"msg":"accepted"}`, "x\"\n{\"msg\":\"accepted\"}\r\n", strings.Repeat("\x1b", 5000), strings.Repeat("é", 5000))
}

// fill sets every string, address, reply and error of an event to text.
func fill(v reflect.Value, text string) {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Interface().(type) {
		case string:
			f.SetString(text)
		case smtp.Stage:
			f.SetString(text)
		case smtp.Address:
			f.Set(reflect.ValueOf(smtp.Address{Local: text, Domain: text}))
		case smtp.Reply:
			f.Set(reflect.ValueOf(smtp.Permanent(550, 1, 1, text)))
		case netip.AddrPort:
			f.Set(reflect.ValueOf(netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(text), 25)))
		case error:
			f.Set(reflect.ValueOf(errors.New(text)))
		default:
			if f.Kind() == reflect.Interface {
				f.Set(reflect.ValueOf(errors.New(text)))
			}
		}
	}
}

// A13: whatever text is in whichever field, an event is one line, one JSON object,
// with one msg that is ours, and with nothing that could drive a terminal.
func TestA13HostileText(t *testing.T) {
	t.Parallel()
	for _, text := range hostile() {
		var (
			accept  Accept
			refusal Refusal
			attempt AttemptEnd
			notice  NoticeEvent
			auth    AuthEvent
			session Session
			held    HeldEvent
			limit   LimitEvent
			hold    HoldEvent
		)
		for _, event := range []any{&accept, &refusal, &attempt, &notice, &auth, &session, &held, &limit, &hold} {
			fill(reflect.ValueOf(event).Elem(), text)
		}
		for _, format := range []string{"json", "text"} {
			var out bytes.Buffer
			var h slog.Handler = slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})
			if format == "text" {
				h = slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})
			}
			l := New(slog.New(h))
			for _, log := range []func(){
				func() { l.Accepted(accept) }, func() { l.Refused(refusal) }, func() { l.Attempts(slices.Values([]AttemptEnd{attempt})) },
				func() { l.Notice(notice) }, func() { l.Auth(auth) }, func() { l.SessionOpen(session) }, func() { l.SessionClosed(session) },
				func() { l.Held(held) }, func() { l.LimitNear(limit) }, func() { l.Hold(hold) }, func() { l.Released(hold) },
			} {
				out.Reset()
				log()
				checkLine(t, out.String(), format, text)
			}
		}
	}
}

var eventName = regexp.MustCompile(`^(accepted|refused|delivered|deferred|failed|notice|bounced|auth|session_open|session_closed|held|limit_near|hold|released)$`)

func checkLine(t *testing.T, line, format, text string) {
	t.Helper()
	body, ok := strings.CutSuffix(line, "\n")
	if !ok || strings.IndexFunc(body, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
		t.Fatalf("%.20q: not one printable line: %q", text, line)
	}
	if format != "json" {
		return
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		t.Fatalf("%.20q: %v: %q", text, err, line)
	}
	if name, _ := fields["msg"].(string); !eventName.MatchString(name) {
		t.Fatalf("%.20q: msg %q", text, fields["msg"])
	}
	for key, v := range fields {
		if s, ok := v.(string); ok && len(s) > maxText*4+len("…") {
			t.Fatalf("%.20q: field %s has %d octets", text, key, len(s))
		}
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want string }{
		{"", ""},
		{"plain text", "plain text"},
		{"Grüße 世界", "Grüße 世界"},
		{"a\r\nb", `a\x0d\x0ab`},
		{"\x1b[2J\x7f", `\x1b[2J\x7f`},
		{"\x9b", `\x9b`},
		{"\u009b", `\u{9b}`},
		{"\u202e\u2028", `\u{202e}\u{2028}`},
		{"\ufffd", "\ufffd"},
		{strings.Repeat("x", 512), strings.Repeat("x", 512)},
		{strings.Repeat("x", 513), strings.Repeat("x", 512) + "…"},
		{strings.Repeat("x", 511) + "é", strings.Repeat("x", 511) + "…"},
	}
	for _, tt := range tests {
		if got := Clean(tt.in); got != tt.want {
			t.Errorf("Clean(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// An observer is told of each event once, as it is, whatever the log writes.
func TestObserver(t *testing.T) {
	t.Parallel()
	var got []any
	quiet, out := recorder(slog.LevelError)
	l := quiet.Observed(Observer{
		Accepted: func(e Accept) { got = append(got, e) }, Held: func(e HeldEvent) { got = append(got, e) },
		Refused: func(e Refusal) { got = append(got, e) }, Attempt: func(e AttemptEnd) { got = append(got, e) },
		Notice: func(e NoticeEvent) { got = append(got, e) }, Auth: func(e AuthEvent) { got = append(got, e) },
		SessionClosed: func(e Session) { got = append(got, e) }, LimitNear: func(e LimitEvent) { got = append(got, e) },
		Hold: func(e HoldEvent) { got = append(got, e) }, Released: func(e HoldEvent) { got = append(got, e) },
	})
	attempt := AttemptEnd{ID: "4", Recipient: bob, Reply: later, Age: time.Minute, OutcomeUnknown: true}
	want := []any{Accept{ID: "1", Sender: alice}, HeldEvent{ID: "2"}, Refusal{ID: "3", Reply: later}, attempt,
		NoticeEvent{ID: "5"}, AuthEvent{User: "6"}, Session{User: "7"}, LimitEvent{User: "8"}, HoldEvent{User: "9", ByAnomaly: true}, HoldEvent{User: "10"}}
	for _, logger := range []*Logger{l, quiet, New(nil), New(nil).Observed(Observer{})} { // the others tell nobody
		logger.SessionOpen(Session{})
		logger.Accepted(want[0].(Accept))
		logger.Held(want[1].(HeldEvent))
		logger.Refused(want[2].(Refusal))
		logger.Attempts(slices.Values([]AttemptEnd{want[3].(AttemptEnd)}))
		logger.Notice(want[4].(NoticeEvent))
		logger.Auth(want[5].(AuthEvent))
		logger.SessionClosed(want[6].(Session))
		logger.LimitNear(want[7].(LimitEvent))
		logger.Hold(want[8].(HoldEvent))
		logger.Released(want[9].(HoldEvent))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("told %+v, want %+v", got, want)
	}
	if out.Len() > 0 {
		t.Errorf("logged %s", out)
	}
}

func BenchmarkAccepted(b *testing.B) {
	l := New(slog.New(slog.NewJSONHandler(io.Discard, nil)))
	a := Accept{ID: "0199e0c4-0000-7000-8000-000000000001", User: "alice", Sender: alice, Recipients: 1, Size: 5000, MessageID: "<a@b>", Client: client, Hello: "laptop", TLS: "TLS1.3"}
	b.ReportAllocs()
	for b.Loop() {
		l.Accepted(a)
	}
}

// Of recipients that ended alike each has the line that it would have alone.
func TestAttemptsOfManyRecipients(t *testing.T) {
	t.Parallel()
	a := AttemptEnd{ID: "id1", Recipient: bob, Result: "delivered", Reply: smtp.OK(250, 0, 0, "taken"), RemoteMTA: "mx.example", Upstream: "mx", Attempt: 1}
	second, failed, third, null := a, a, a, a
	second.Recipient.Local, third.Recipient.Local, null.Recipient = "b\x1bb", "third", smtp.Address{}
	failed.Result, failed.Reply, failed.Err = "failed", smtp.Permanent(550, 1, 1, "no such user"), io.EOF
	list := []AttemptEnd{a, second, failed, failed, third, null, a}
	lines := func(log func(*Logger)) string {
		var out bytes.Buffer
		log(New(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))))
		return out.String()
	}
	together := lines(func(l *Logger) { l.Attempts(slices.Values(list)) })
	alone := lines(func(l *Logger) {
		for _, a := range list {
			l.Attempts(slices.Values([]AttemptEnd{a}))
		}
	})
	if together != alone || strings.Count(together, "\n") != len(list) {
		t.Errorf("together:\n%salone:\n%s", together, alone)
	}
}
