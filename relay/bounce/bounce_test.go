package bounce

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// fakeQueue gives out notices once and keeps what comes back.
type fakeQueue struct {
	due      []*queue.Notice
	enqueued []committed
	released []*queue.Notice
	lost     []queue.LostNotice
	err      error
	panics   bool
}

type committed struct {
	about *queue.Notice
	msg   queue.Message
	rcpt  queue.Recipient
	body  []byte
}

func (f *fakeQueue) ClaimNotices(context.Context, int) ([]*queue.Notice, error) {
	due := f.due
	f.due = nil
	return due, nil
}

func (f *fakeQueue) EnqueueNotice(_ context.Context, n *queue.Notice, m queue.Message, rcpt queue.Recipient, body []byte) error {
	if f.panics {
		panic("injected")
	}
	if f.err != nil {
		return f.err
	}
	f.enqueued = append(f.enqueued, committed{n, m, rcpt, body})
	return nil
}

func (f *fakeQueue) ReleaseNotice(n *queue.Notice, _ time.Duration) {
	f.released = append(f.released, n)
}

func (f *fakeQueue) TellLost(_ context.Context, tell func(queue.LostNotice)) error {
	for _, n := range f.lost {
		tell(n)
	}
	f.lost = nil
	return nil
}

// memory is a Body in memory that counts its Drops.
type memory struct {
	*bytes.Reader
	drops int
}

func (m *memory) Size() int64 { return m.Reader.Size() }
func (m *memory) Retain()     {}
func (m *memory) Drop()       { m.drops++ }

var clock = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	originalHeader = "From: alice@example.com\r\nSubject: hello\r\nMessage-ID: <m1@example.com>\r\n"
	originalBody   = "the text of it\r\n"
)

func notice(kind queue.NoticeKind, change func(*queue.Notice)) *queue.Notice {
	n := &queue.Notice{
		Message: queue.Message{
			ID: queue.NewID(), Sender: smtp.Address{Local: "alice", Domain: "example.com"},
			MessageID: "<m1@example.com>", AcceptedAt: clock.Add(-time.Hour), EnvID: "env 1",
		},
		Kind: kind,
		Recipients: []queue.NoticeRecipient{{
			Address:   smtp.Address{Local: "bob", Domain: "example.net"},
			ORcptType: "rfc822", ORcpt: "bobby@example.net",
			Reply:     smtp.Permanent(550, 1, 1, "no such user here"),
			RemoteMTA: "mx.example.net", LastAttempt: clock.Add(-time.Minute),
			WillRetryTo: clock.Add(96 * time.Hour),
		}},
		Headers: []byte(originalHeader),
		Body:    &memory{Reader: bytes.NewReader([]byte(originalHeader + "\r\n" + originalBody))},
	}
	if change != nil {
		change(n)
	}
	return n
}

// parsed is a notice taken apart by the standard library, a reader of its own.
type parsed struct {
	header    mail.Header
	types     []string
	parts     []string
	message   textproto.MIMEHeader
	recipient []textproto.MIMEHeader
}

func parse(t *testing.T, body []byte) parsed {
	t.Helper()
	if bytes.Contains(bytes.ReplaceAll(body, []byte("\r\n"), nil), []byte("\n")) {
		t.Fatalf("bare LF in the notice:\n%q", body)
	}
	for _, l := range strings.Split(string(body), "\r\n") {
		if len(l) > 998 {
			t.Fatalf("a line of %d octets", len(l))
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("read the notice: %v\n%s", err, body)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" {
		t.Fatalf("Content-Type %q: %v", m.Header.Get("Content-Type"), err)
	}
	p := parsed{header: m.Header}
	mr := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := mr.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("next part: %v\n%s", err, body)
		}
		var octets io.Reader = part
		if part.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
			octets = quotedprintable.NewReader(part)
		}
		b, err := io.ReadAll(octets)
		if err != nil {
			t.Fatal(err)
		}
		p.types = append(p.types, part.Header.Get("Content-Type"))
		p.parts = append(p.parts, string(b))
	}
	if want := "message/" + params["report-type"]; len(p.types) < 2 || p.types[1] != want {
		t.Fatalf("parts %v, want %s second", p.types, want)
	}
	r := textproto.NewReader(bufio.NewReader(strings.NewReader(p.parts[1] + "\r\n\r\n")))
	if p.message, err = r.ReadMIMEHeader(); err != nil {
		t.Fatalf("per-message fields: %v\n%s", err, p.parts[1])
	}
	for {
		h, err := r.ReadMIMEHeader()
		if len(h) == 0 || err != nil {
			break
		}
		p.recipient = append(p.recipient, h)
	}
	return p
}

// tellOne runs one round over n and returns the notice that was committed.
func tellOne(t *testing.T, n *queue.Notice) committed {
	t.Helper()
	q := &fakeQueue{due: []*queue.Notice{n}}
	b := New(Config{Queue: q, Hostname: "relay.test", Now: func() time.Time { return clock }})
	if _, err := b.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(q.enqueued) != 1 || len(q.released) != 0 {
		t.Fatalf("%d committed, %d released", len(q.enqueued), len(q.released))
	}
	if m, ok := n.Body.(*memory); ok && m.drops != 1 {
		t.Errorf("the body was dropped %d times", m.drops)
	}
	c := q.enqueued[0]
	needs := n.Message.Sender.NeedsUTF8() // and nothing else does
	if c.msg.BodyType != "" || c.msg.UTF8 != needs || c.msg.EightBit != needs || !smtp.IsASCII(c.body) != needs {
		t.Errorf("a notice to %s needs %+v", n.Message.Sender, c.msg)
	}
	return c
}

func TestNoticeFields(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind           queue.NoticeKind
		reply          smtp.Reply
		action, status string
	}{
		{queue.NoticeFailure, smtp.Permanent(550, 1, 1, "no such user"), "failed", "5.1.1"},
		{queue.NoticeFailure, smtp.Reply{Code: 554, Text: "no"}, "failed", "5.0.0"},
		{queue.NoticeFailure, smtp.Temporary(451, 4, 7, "delivery time expired"), "failed", "4.4.7"},
		{queue.NoticeFailure, smtp.Temporary(450, 2, 1, "busy for ever"), "failed", "5.0.0"},
		{queue.NoticeDoubt, smtp.Temporary(451, 4, 2, "conversation lost"), "failed", "4.4.2"},
		{queue.NoticeDelay, smtp.Temporary(450, 2, 1, "greylisted"), "delayed", "4.2.1"},
		{queue.NoticeDelay, smtp.Reply{Code: 421, Text: "later"}, "delayed", "4.0.0"},
		{queue.NoticeSuccess, smtp.OK(250, 0, 0, "queued"), "relayed", "2.0.0"},
	} {
		t.Run(string(tc.kind)+" "+tc.reply.String(), func(t *testing.T) {
			t.Parallel()
			c := tellOne(t, notice(tc.kind, func(n *queue.Notice) { n.Recipients[0].Reply = tc.reply }))
			p := parse(t, c.body)
			if len(p.recipient) != 1 {
				t.Fatalf("%d recipient groups", len(p.recipient))
			}
			r := p.recipient[0]
			for field, want := range map[string]string{
				"Action": tc.action, "Status": tc.status,
				"Final-Recipient": "rfc822; bob@example.net", "Original-Recipient": "rfc822; bobby@example.net",
				"Remote-Mta": "dns; mx.example.net", "Diagnostic-Code": "smtp; " + tc.reply.String(),
			} {
				if tc.status == "4.4.7" && (field == "Remote-Mta" || field == "Diagnostic-Code") {
					want = "" // the relay says it
				}
				if got := r.Get(field); got != want {
					t.Errorf("%s: %q, want %q", field, got, want)
				}
			}
			if got := p.message.Get("Reporting-Mta"); got != "dns; relay.test" {
				t.Errorf("Reporting-MTA %q", got)
			}
			if got := p.message.Get("Original-Envelope-Id"); got != "env 1" {
				t.Errorf("Original-Envelope-Id %q", got)
			}
			if (r.Get("Will-Retry-Until") != "") != (tc.kind == queue.NoticeDelay) {
				t.Errorf("Will-Retry-Until %q in a %s notice", r.Get("Will-Retry-Until"), tc.kind)
			}
			if p.header.Get("Auto-Submitted") != "auto-replied" || p.header.Get("To") != "<alice@example.com>" {
				t.Errorf("header %v", p.header)
			}
			if !c.msg.Sender.IsNull() || c.rcpt.Notify != smtp.NotifyNever || c.rcpt.Address != c.about.Message.Sender {
				t.Errorf("envelope %v -> %+v", c.msg.Sender, c.rcpt)
			}
		})
	}
}

// Whoever sent mail in doubt reads that it may have arrived, and what to do.
func TestNoticeOfDoubt(t *testing.T) {
	t.Parallel()
	p := parse(t, tellOne(t, notice(queue.NoticeDoubt, func(n *queue.Notice) {
		n.Recipients[0].Reply, n.Recipients[0].RemoteMTA = smtp.Temporary(451, 4, 2, "conversation lost"), ""
	})).body)
	for _, want := range []string{"may have arrived", "not be sent again", "ask the recipients", "<bob@example.net>", "the relay says: 451 4.4.2"} {
		if !strings.Contains(strings.ReplaceAll(p.parts[0], "\r\n", " "), want) {
			t.Errorf("the notice lacks %q:\n%s", want, p.parts[0])
		}
	}
	if got := p.header.Get("Subject"); !strings.Contains(got, "may have arrived") {
		t.Errorf("subject %q", got)
	}
	if p.recipient[0].Get("Diagnostic-Code") != "" {
		t.Error("words of ours are a server's")
	}
}

// A local part that is no Dot-string is quoted where the grammar wants it, and what the
// sender wrote in ORCPT stays.
func TestNoticeOfDottedRecipient(t *testing.T) {
	t.Parallel()
	c := tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) {
		n.Recipients[0].Address.Local, n.Recipients[0].ORcpt = "foo..bar", "foo..bar@example.net"
	}))
	r := parse(t, c.body).recipient[0]
	if r.Get("Final-Recipient") != `rfc822; "foo..bar"@example.net` || r.Get("Original-Recipient") != "rfc822; foo..bar@example.net" {
		t.Errorf("%v", r)
	}
}

func TestNoticeReturnsMessageOrHeaders(t *testing.T) {
	t.Parallel()
	big := &memory{Reader: bytes.NewReader(make([]byte, 50<<20))}
	for _, tc := range []struct {
		name   string
		kind   queue.NoticeKind
		change func(*queue.Notice)
		part   string
		text   bool // the text of the message is returned
	}{
		{"failure, nothing asked", queue.NoticeFailure, nil, "message/rfc822", true},
		{"failure, RET=FULL", queue.NoticeFailure, func(n *queue.Notice) { n.Message.Ret = smtp.ReturnFull }, "message/rfc822", true},
		{"failure, RET=HDRS", queue.NoticeFailure, func(n *queue.Notice) { n.Message.Ret = smtp.ReturnHeaders }, "text/rfc822-headers", false},
		{"failure, 50 MiB", queue.NoticeFailure, func(n *queue.Notice) { n.Body = big }, "text/rfc822-headers", false},
		{"failure, body gone", queue.NoticeFailure, func(n *queue.Notice) { n.Body = nil }, "text/rfc822-headers", false},
		{"doubt, nothing asked", queue.NoticeDoubt, nil, "message/rfc822", true},
		{"delay, RET=FULL", queue.NoticeDelay, func(n *queue.Notice) { n.Message.Ret = smtp.ReturnFull }, "text/rfc822-headers", false},
		{"success", queue.NoticeSuccess, nil, "text/rfc822-headers", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := parse(t, tellOne(t, notice(tc.kind, tc.change)).body)
			if len(p.types) != 3 || p.types[2] != tc.part {
				t.Fatalf("parts %v, want %s third", p.types, tc.part)
			}
			if !strings.Contains(p.parts[2], "Subject: hello\r\n") {
				t.Errorf("the header section lacks:\n%s", p.parts[2])
			}
			if strings.Contains(p.parts[2], strings.TrimSpace(originalBody)) != tc.text {
				t.Errorf("text returned: %v, want %v", !tc.text, tc.text)
			}
		})
	}
}

// A notice about a message with REQUIRETLS may go without it: it has nothing of the message, whatever
// RET says (RFC 8689 section 5).
func TestNoticeReturnsNothingThatNeedsTLS(t *testing.T) {
	t.Parallel()
	for _, kind := range []queue.NoticeKind{queue.NoticeFailure, queue.NoticeDoubt, queue.NoticeDelay, queue.NoticeSuccess} {
		c := tellOne(t, notice(kind, func(n *queue.Notice) { n.Message.TLSNeed, n.Message.Ret = smtp.TLSRequired, smtp.ReturnFull }))
		if p := parse(t, c.body); len(p.types) != 2 || strings.Contains(string(c.body), "hello") {
			t.Errorf("%s: %s", kind, c.body)
		}
	}
}

// A notice needs of TLS what its message did (RFC 8689 section 5).
func TestNoticesKeepTheNeedOfTLS(t *testing.T) {
	t.Parallel()
	for _, need := range []smtp.TLSNeed{"", smtp.TLSRequired, smtp.TLSOptional} {
		if c := tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) { n.Message.TLSNeed = need })); c.msg.TLSNeed != need {
			t.Errorf("%q became %q", need, c.msg.TLSNeed)
		}
	}
}

func TestNoticeWithoutAnyOriginal(t *testing.T) {
	t.Parallel()
	p := parse(t, tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) { n.Headers, n.Body = nil, nil })).body)
	if len(p.types) != 2 {
		t.Fatalf("parts %v", p.types)
	}
}

// A18: what a hostile server said stays one field and one line of text.
func TestA18HostileDiagnostic(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"x\r\nAction: delivered\r\n\r\nFinal-Recipient: rfc822; eve@example.org",
		"x\nBcc: eve@example.org",
		"\x00\x1b[2J\x7f\u009b\u202e",
		strings.Repeat("a", 100_000),
		strings.Repeat("word ", 50_000),
		"--=_report_",
		"\xff\xfe\xed\xa0\x80",
	} {
		n := notice(queue.NoticeFailure, func(n *queue.Notice) {
			n.Recipients[0].Reply = smtp.Reply{Code: 550, Text: text}
			n.Recipients[0].RemoteMTA = "mx\r\nX: y"
		})
		p := parse(t, tellOne(t, n).body)
		if len(p.recipient) != 1 || p.recipient[0].Get("Action") != "failed" || p.recipient[0].Get("X") != "" {
			t.Errorf("%.40q made groups %v", text, p.recipient)
		}
		if len(p.types) != 3 {
			t.Errorf("%.40q made parts %v", text, p.types)
		}
	}
}

// P02: a notice is ASCII, whoever it is about: RFC 6533 section 3 has a form of UTF-8
// addresses for that.
func TestP02NoticeAboutUTF8(t *testing.T) {
	t.Parallel()
	for _, sender := range []string{"alice", "älice"} {
		c := tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) {
			n.Message.Sender.Local, n.Message.UTF8 = sender, true
			n.Recipients[0].Address = smtp.Address{Local: "jürgen+x", Domain: "bücher.example"}
			n.Recipients[0].ORcptType, n.Recipients[0].ORcpt = "utf-8", "jörg@example.net"
			n.Recipients[0].Reply = smtp.Permanent(550, 1, 1, "用户不存在 \u202eno\u009b")
			n.Body = &memory{Reader: bytes.NewReader([]byte("Subject: hällo\r\n\r\ntext\r\n"))}
			n.Headers = []byte("Subject: hällo\r\n")
		}))
		p := parse(t, c.body)
		if want := []string{"text/plain; charset=utf-8", "message/delivery-status", "text/rfc822-headers; charset=utf-8"}; !slices.Equal(p.types, want) {
			t.Errorf("parts %q", p.types)
		}
		for field, want := range map[string]string{
			"Final-Recipient": `utf-8; j\x{FC}rgen\x{2B}x@b\x{FC}cher.example`, "Original-Recipient": `utf-8; j\x{F6}rg@example.net`,
			"Diagnostic-Code": "smtp; 550 5.1.1 ????? ?no?",
		} {
			if got := p.recipient[0].Get(field); got != want {
				t.Errorf("%s: %q, want %q", field, got, want)
			}
		}
		if !strings.Contains(p.parts[0], "<jürgen+x@bücher.example>\r\n    mx.example.net said: 550 5.1.1 用户不存在 ?no?\r\n") {
			t.Errorf("people read\n%s", p.parts[0])
		}
		if p.parts[2] != "Subject: hällo\r\n" {
			t.Errorf("returned is %q", p.parts[2])
		}
		if to := p.header.Get("To"); to != "<"+sender+"@example.com>" {
			t.Errorf("To: %q", to)
		}
	}
}

// TestRFC6533LongAddresses: an address that utf-8-addr-xtext makes longer than a line may be
// is folded before an escape, and unfolds to what it was.
func TestRFC6533LongAddresses(t *testing.T) {
	t.Parallel()
	local := "ü" + strings.Repeat("+", 126)
	for _, domain := range []string{strings.Repeat("ü", 30) + "." + strings.Repeat("ü", 30) + ".example", "example.net"} {
		address := smtp.Address{Local: local, Domain: domain}
		orcpt := strings.Repeat("+=ü", 160) + "@example.net"
		c := tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) {
			n.Recipients[0].Address, n.Recipients[0].ORcptType, n.Recipients[0].ORcpt = address, "utf-8", orcpt
		}))
		r := parse(t, c.body).recipient[0] // which looks at the lengths of lines
		for field, want := range map[string]string{"Final-Recipient": address.String(), "Original-Recipient": orcpt} {
			kind, got, _ := strings.Cut(r.Get(field), "; ")
			if got = strings.ReplaceAll(got, " ", ""); kind != "utf-8" || got != smtp.UTF8Addr(want) {
				t.Errorf("%s of %d octets: %q", field, len(want), got)
			}
		}
	}
}

// P03: of a message that not every way back takes, the header section is returned, and
// encoded where it needs to be.
func TestP03NoticeAboutOctets(t *testing.T) {
	t.Parallel()
	const plain = "From: alice@example.com\r\nSubject: hello\r\n"
	long := "X-Long: " + strings.Repeat("x", 1200) + "\r\n"
	for _, tt := range []struct {
		name, header, body string
		kind               string // of the third part
	}{
		{"ASCII", plain, "text\r\n", "message/rfc822"},
		{"ASCII without an end of line", plain, "text", "message/rfc822"},
		{"Latin-1 text", plain, "Gr\xfc\xdfe\r\n", "text/rfc822-headers"},
		{"UTF-8 text", plain, "Grüße\r\n", "text/rfc822-headers"},
		{"a long line", plain, strings.Repeat("x", 999) + "\r\n", "text/rfc822-headers"},
		{"the longest line", plain, strings.Repeat("x", 998) + "\r\n", "message/rfc822"},
		{"Latin-1 header", plain + "X-Name: M\xfcller\r\n", "text\r\n", "text/rfc822-headers"},
		{"UTF-8 header", plain + "X-Name: Müller\r\n", "text\r\n", "text/rfc822-headers; charset=utf-8"},
		{"a long line in the header", plain + long, "text\r\n", "text/rfc822-headers"},
	} {
		for _, declared := range []smtp.BodyType{"", smtp.Body8BitMIME} {
			c := tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) {
				n.Message.BodyType, n.Message.EightBit = declared, !smtp.IsASCII(tt.header+tt.body)
				n.Headers = []byte(tt.header)
				n.Body = &memory{Reader: bytes.NewReader([]byte(tt.header + "\r\n" + tt.body))}
			}))
			p := parse(t, c.body)
			if p.types[2] != tt.kind {
				t.Errorf("%s: returned as %s", tt.name, p.types[2])
			}
			want := tt.header
			if tt.kind == "message/rfc822" {
				want += "\r\n" + strings.TrimSuffix(tt.body, "\r\n") + "\r\n"
			}
			if p.parts[2] != want {
				t.Errorf("%s: returned is %.200q, want %.200q", tt.name, p.parts[2], want)
			}
		}
	}
}

// A notice about 1,000 recipients is one message.
func TestManyRecipientsOneNotice(t *testing.T) {
	t.Parallel()
	c := tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) {
		one := n.Recipients[0]
		for len(n.Recipients) < 1000 {
			n.Recipients = append(n.Recipients, one)
		}
	}))
	if p := parse(t, c.body); len(p.recipient) != 1000 {
		t.Fatalf("%d recipient groups", len(p.recipient))
	}
}

func TestNobodyToTell(t *testing.T) {
	t.Parallel()
	c := tellOne(t, notice(queue.NoticeFailure, func(n *queue.Notice) { n.Message.Sender = smtp.Address{} }))
	if c.body != nil {
		t.Fatalf("a notice to the null sender:\n%s", c.body)
	}
}

// A defect that one message brings out costs that message's notice some time, and
// the others nothing.
func TestPanicReleasesTheNotice(t *testing.T) {
	t.Parallel()
	n := notice(queue.NoticeFailure, nil)
	q := &fakeQueue{due: []*queue.Notice{n}, panics: true}
	b := New(Config{Queue: q, Hostname: "relay.test"})
	if _, err := b.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.panics.Load() != 1 {
		t.Errorf("%d panics are counted", b.panics.Load())
	}
	if len(q.released) != 1 || q.released[0] != n {
		t.Fatalf("released %v", q.released)
	}
	if m := n.Body.(*memory); m.drops != 1 {
		t.Errorf("the body was dropped %d times", m.drops)
	}
}

func TestTroubleReleasesTheNotice(t *testing.T) {
	t.Parallel()
	n := notice(queue.NoticeFailure, nil)
	q := &fakeQueue{due: []*queue.Notice{n}, err: errors.New("no database")}
	if _, err := New(Config{Queue: q, Hostname: "relay.test"}).round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(q.released) != 1 || q.released[0] != n {
		t.Fatalf("released %v", q.released)
	}
}

// P03: a notice that is lost is an event, whether or not others are due.
func TestP03LostNoticeIsLogged(t *testing.T) {
	t.Parallel()
	lost := queue.LostNotice{
		ID: queue.NewID(), About: queue.NewID(), Kind: queue.NoticeDelay, Loss: "expired",
		To: smtp.Address{Local: "alice", Domain: "example.com"}, Reply: smtp.Temporary(450, 2, 1, "later"),
	}
	var got []maillog.LostNoticeEvent
	log := maillog.New(nil).Observed(maillog.Observer{NoticeLost: func(e maillog.LostNoticeEvent) { got = append(got, e) }})
	b := New(Config{Queue: &fakeQueue{lost: []queue.LostNotice{lost}}, Hostname: "relay.test", Mail: log})
	for range 2 {
		if _, err := b.round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := maillog.LostNoticeEvent{ID: lost.ID.String(), About: lost.About.String(), Kind: "delay", To: lost.To, Reply: lost.Reply, Reason: "expired"}
	if len(got) != 1 || got[0] != want {
		t.Errorf("logged %+v, want %+v", got, want)
	}
}

// A sender reads whose fault it is that mail waits, or failed in the end.
func TestNoticeNamesTheFault(t *testing.T) {
	t.Parallel()
	for scope, want := range map[string]string{
		"account": "account with the next server, not yours", "sender": "send in your name", "host": "next server, not yours",
		"connection": "", "": "",
	} {
		for _, kind := range []queue.NoticeKind{queue.NoticeDelay, queue.NoticeFailure} {
			c := tellOne(t, notice(kind, func(n *queue.Notice) { n.Recipients[0].Scope = scope }))
			text := parse(t, c.body).parts[0]
			if !strings.Contains(text, want) || want == "" && strings.Contains(text, "this mail system") {
				t.Errorf("%s for %q:\n%s", kind, scope, text)
			}
		}
	}
}

// A notice tells what a server has said. It leaves out the relay's own words about an upstream, which
// name it and its address, and are for admins.
func TestNoticeKeepsTheInsideToItself(t *testing.T) {
	t.Parallel()
	const waits = `waits for upstream out, not used until 12:05:01 UTC after "451 4.4.1 upstream out at 127.0.0.1:1: connection refused"; b: upstream b is paused`
	ours := func(detail int, text string) smtp.Reply { return smtp.Temporary(451, 4, detail, text) }
	late := ours(7, "Delivery time expired after 1m0s, last reply: 451 4.4.1 "+waits)
	said := ours(7, "Delivery time expired after 1m0s, last reply: 452 4.2.2 full (said by 10.0.0.7)")
	for name, test := range map[string]struct {
		kind     queue.NoticeKind
		rcpt     queue.NoticeRecipient
		text     string
		remote   string
		diagnose string
	}{
		"waits":      {queue.NoticeDelay, queue.NoticeRecipient{Reply: ours(1, waits), Upstream: true}, "the relay says: 451 4.4.1 the relay's way on was not available", "", ""},
		"expired":    {queue.NoticeFailure, queue.NoticeRecipient{Reply: late, Upstream: true}, "451 4.4.7 Delivery time expired after 1m0s: the relay's way on was not available", "", ""},
		"expired mx": {queue.NoticeFailure, queue.NoticeRecipient{Reply: ours(7, "Delivery time expired, last reply: 451 4.4.1 no connection to mail host mx.test; b: upstream b is paused")}, "no connection to mail host mx.test", "", ""},
		"doubt": {queue.NoticeDoubt, queue.NoticeRecipient{Reply: ours(2, "conversation lost at the end of the message; it may have been delivered"), Upstream: true},
			"at the end of the message; it may have been delivered", "", ""},
		"withheld": {queue.NoticeDelay, queue.NoticeRecipient{Reply: ours(2, "conversation lost after RCPT; a: 451 4.4.1 upstream a at 127.0.0.1:1: connection refused"), Upstream: true}, "conversation lost after RCPT", "", ""},
		"too large": {queue.NoticeFailure, queue.NoticeRecipient{Reply: smtp.Permanent(552, 3, 4, "Message of 9 octets is over the limit of the next server, 8"), Upstream: true},
			"over the limit of the next server, 8", "", ""},
		"said":         {queue.NoticeFailure, queue.NoticeRecipient{Reply: smtp.Permanent(550, 1, 1, "no such user"), RemoteMTA: "smtp.example.net", Upstream: true}, "smtp.example.net said: 550 5.1.1 no such user", "dns; smtp.example.net", "smtp; 550 5.1.1 no such user"},
		"said inside":  {queue.NoticeFailure, queue.NoticeRecipient{Reply: smtp.Permanent(550, 1, 1, "no such user"), RemoteMTA: "10.0.0.7", Upstream: true}, "the next server said: 550 5.1.1 no such user", "", "smtp; 550 5.1.1 no such user"},
		"said one day": {queue.NoticeFailure, queue.NoticeRecipient{Reply: said, RemoteMTA: "10.0.0.7", Upstream: true}, "the relay says: 451 4.4.7 Delivery time expired after 1m0s, last reply: 452 4.2.2 full (said by the next server)", "", ""},
	} {
		c := tellOne(t, notice(test.kind, func(n *queue.Notice) {
			test.rcpt.Address = n.Recipients[0].Address
			n.Recipients = []queue.NoticeRecipient{test.rcpt}
		}))
		p := parse(t, c.body)
		if text := strings.Join(strings.Fields(p.parts[0]), " "); !strings.Contains(text, test.text) {
			t.Errorf("%s: %s\nwant %q", name, text, test.text)
		}
		if got := p.recipient[0]; got.Get("Remote-Mta") != test.remote || got.Get("Diagnostic-Code") != test.diagnose {
			t.Errorf("%s: fields %v", name, got)
		}
		for _, inside := range []string{"127.0.0.1", "10.0.0.7", "upstream", "paused"} {
			if bytes.Contains(c.body, []byte(inside)) {
				t.Errorf("%s: the notice has %q:\n%s", name, inside, c.body)
			}
		}
	}
}
