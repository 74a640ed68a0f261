package policy

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/auth"
	"postern/relay/smtp"
)

func TestParseLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		kind auth.LimitKind
		in   string
		want []auth.Limit // nil: refused
	}{
		{auth.LimitMessages, "100/m,1000/d, 20000/30d", []auth.Limit{
			{Kind: auth.LimitMessages, Window: time.Minute, Max: 100},
			{Kind: auth.LimitMessages, Window: day, Max: 1000},
			{Kind: auth.LimitMessages, Window: 30 * day, Max: 20000}}},
		{auth.LimitRecipients, "5/90s", []auth.Limit{{Kind: auth.LimitRecipients, Window: 90 * time.Second, Max: 5}}},
		{auth.LimitRecipients, "0/366d", []auth.Limit{{Kind: auth.LimitRecipients, Window: 366 * day}}},
		{auth.LimitBytes, "1GB/d", []auth.Limit{{Kind: auth.LimitBytes, Window: day, Max: 1e9}}},
		{auth.LimitBytes, "3kib/2h", []auth.Limit{{Kind: auth.LimitBytes, Window: 2 * time.Hour, Max: 3072}}},
		{auth.LimitSize, "25MB", []auth.Limit{{Kind: auth.LimitSize, Max: 25e6}}},
		{auth.LimitSize, "25MiB", []auth.Limit{{Kind: auth.LimitSize, Max: 25 << 20}}},
		{auth.LimitSize, "1000", []auth.Limit{{Kind: auth.LimitSize, Max: 1000}}},
		{auth.LimitSize, "0", []auth.Limit{{Kind: auth.LimitSize}}},
		{auth.LimitRecipientsPerMessage, "100", []auth.Limit{{Kind: auth.LimitRecipientsPerMessage, Max: 100}}},
		{auth.LimitSessions, "10", []auth.Limit{{Kind: auth.LimitSessions, Max: 10}}},

		{auth.LimitMessages, "", nil}, {auth.LimitMessages, "100", nil}, {auth.LimitMessages, "100/", nil},
		{auth.LimitMessages, "/m", nil}, {auth.LimitMessages, "100/0d", nil}, {auth.LimitMessages, "100/367d", nil},
		{auth.LimitMessages, "100/31622401s", nil}, {auth.LimitMessages, "100/99999999999999999999d", nil},
		{auth.LimitMessages, "100/w", nil}, {auth.LimitMessages, "100/-1d", nil}, {auth.LimitMessages, "-1/d", nil},
		{auth.LimitMessages, "+1/d", nil}, {auth.LimitMessages, "1e3/d", nil}, {auth.LimitMessages, "100/m,", nil},
		{auth.LimitMessages, "100/m,200/60s", nil}, {auth.LimitMessages, "1KB/d", nil}, {auth.LimitMessages, "1/d/d", nil},
		{auth.LimitBytes, "1GB", nil}, {auth.LimitBytes, "GB/d", nil}, {auth.LimitBytes, "1.5GB/d", nil},
		{auth.LimitBytes, "9223372036854775807GB/d", nil}, {auth.LimitBytes, "99999999999999999999/d", nil},
		{auth.LimitSize, "25MB/d", nil}, {auth.LimitSize, "25 MB", nil}, {auth.LimitSize, "1,2", nil},
		{auth.LimitRecipientsPerMessage, "1KB", nil}, {auth.LimitSessions, "many", nil},
	}
	for _, tt := range tests {
		got, err := ParseLimit(tt.kind, tt.in)
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != (tt.want == nil) {
			t.Errorf("%s %q: %v %s", tt.kind, tt.in, err, diff)
		}
		if err != nil && !strings.Contains(err.Error(), "write") {
			t.Errorf("%s %q: %v does not say what to write", tt.kind, tt.in, err)
		}
	}
}

func TestFormatLimit(t *testing.T) {
	t.Parallel()
	for kind, list := range map[auth.LimitKind][]string{
		auth.LimitMessages: {"100/m", "0/s", "7/90s", "1/11m", "20000/30d", "1/h", "5/36h"},
		auth.LimitBytes:    {"1GB/d", "1GiB/d", "1500MB/d", "1025/10m", "3KiB/s", "0/d", "9223372036854775807/d"},
		auth.LimitSize:     {"25MB", "25MiB", "1", "0"},
		auth.LimitSessions: {"10", "1000"},
	} {
		for _, s := range list {
			l, err := ParseLimit(kind, s)
			if err != nil {
				t.Fatal(err)
			}
			if got := FormatLimit(l[0]); got != s {
				t.Errorf("%q comes back as %q", s, got)
			}
		}
	}
}

func FuzzLimit(f *testing.F) {
	f.Add("100/m,1GB/30d")
	f.Add("25MiB")
	kinds := []auth.LimitKind{auth.LimitMessages, auth.LimitBytes, auth.LimitSize, auth.LimitSessions}
	f.Fuzz(func(t *testing.T, s string) {
		for _, kind := range kinds {
			limits, err := ParseLimit(kind, s)
			if err != nil {
				continue
			}
			for _, l := range limits {
				again, err := ParseLimit(kind, FormatLimit(l))
				if err != nil || len(again) != 1 || again[0] != l || l.Max < 0 {
					t.Fatalf("%q: %+v is written %q and read %+v, %v", s, l, FormatLimit(l), again, err)
				}
			}
		}
	})
}

func TestWindows(t *testing.T) {
	t.Parallel()
	limit := func(kind auth.LimitKind, w time.Duration, most int64, from auth.LimitSource) auth.Limit {
		return auth.Limit{Kind: kind, Window: w, Max: most, Source: from}
	}
	id := auth.Identity{Limits: []auth.Limit{
		limit(auth.LimitMessages, time.Minute, 100, auth.FromDefault),
		limit(auth.LimitSize, 0, 1, auth.FromUser),
		limit(auth.LimitMessages, time.Minute, 50, auth.FromUser),
		limit(auth.LimitMessages, time.Minute, 70, auth.FromCredential),
		limit(auth.LimitMessages, day, 10, auth.FromUser),
		limit(auth.LimitMessages, day, 5, auth.FromDefault),
		limit(auth.LimitBytes, day, 0, auth.FromUser),
		limit(auth.LimitRecipients, day, 7, auth.FromDefault),
		limit(auth.LimitRecipients, day, 7, auth.FromUser),
	}}
	want := []auth.Limit{
		limit(auth.LimitMessages, time.Minute, 50, auth.FromUser),
		limit(auth.LimitMessages, time.Minute, 70, auth.FromCredential),
		limit(auth.LimitMessages, day, 5, auth.FromDefault),
		limit(auth.LimitBytes, day, 0, auth.FromUser),
		limit(auth.LimitRecipients, day, 7, auth.FromUser),
	}
	if diff := cmp.Diff(want, Windows(id)); diff != "" {
		t.Error(diff)
	}
	if got := Windows(auth.Identity{Limits: id.Limits[1:2]}); got != nil {
		t.Errorf("without windows: %v", got)
	}
}

// What a window can never hold is refused like what one message may not have.
func TestWindowsBoundOneMessage(t *testing.T) {
	t.Parallel()
	id := auth.Identity{Limits: []auth.Limit{
		{Kind: auth.LimitSize, Max: 500, Source: auth.FromDefault},
		{Kind: auth.LimitBytes, Window: day, Max: 300, Source: auth.FromUser},
		{Kind: auth.LimitBytes, Window: time.Hour, Max: 400, Source: auth.FromUser},
		{Kind: auth.LimitRecipients, Window: time.Minute, Max: 3, Source: auth.FromCredential},
		{Kind: auth.LimitRecipientsPerMessage, Max: 4, Source: auth.FromUser},
	}}
	if v := Size(id, 301, 1000); v.Allowed || v.Rule != "size 300/d user" || v.Reply.Code != 552 {
		t.Errorf("size: %+v", v)
	}
	if v := Size(id, 300, 1000); !v.Allowed || MaxSize(id, 1000) != 300 || MaxSize(id, 200) != 200 || MaxSize(id, 0) != 300 {
		t.Errorf("size: %+v", v)
	}
	if v := Recipients(id, 4, 100); v.Allowed || v.Rule != "recipients 3/m credential" ||
		v.Reply.String() != "452 4.5.3 Limit of 3 recipients in 1m: a message can have no more, and the others must wait; send them 1 min after these, not together" {
		t.Errorf("recipients: %+v", v)
	}
	if v := Recipients(id, 3, 100); !v.Allowed {
		t.Errorf("recipients: %+v", v)
	}
}

func TestLimitOfNothing(t *testing.T) {
	t.Parallel()
	for _, l := range []auth.Limit{{Kind: auth.LimitSize, Source: auth.FromUser}, {Kind: auth.LimitBytes, Window: day, Source: auth.FromUser}} {
		id := auth.Identity{Limits: []auth.Limit{l}}
		for _, server := range []int64{0, 100} {
			for _, size := range []int64{0, 1} {
				if v := Size(id, size, server); v.Allowed || v.Reply.Code != 552 {
					t.Errorf("%+v: size %d: %+v", l, size, v)
				}
			}
			if got := MaxSize(id, server); got != 0 {
				t.Errorf("%+v: the largest size is %d", l, got)
			}
		}
	}
	for _, l := range []auth.Limit{{Kind: auth.LimitRecipientsPerMessage}, {Kind: auth.LimitRecipients, Window: day}} {
		for _, server := range []int{0, 100} {
			if v := Recipients(auth.Identity{Limits: []auth.Limit{l}}, 1, server); v.Allowed || v.Reply.Code != 452 {
				t.Errorf("%+v: %+v", l, v)
			}
		}
	}
	v := Messages(auth.Identity{Limits: []auth.Limit{{Kind: auth.LimitMessages, Window: day, Source: auth.FromUser}}}, time.Now())
	if v.Allowed || v.Rule != "limit messages 0/d user" || !strings.HasPrefix(v.Reply.String(), "452 4.7.1 ") {
		t.Errorf("messages: %+v", v)
	}
	if v := Messages(limited(auth.LimitMessages, 1), time.Now()); !v.Allowed {
		t.Errorf("messages: %+v", v)
	}
	if got := MaxSize(auth.Identity{}, 0); got != math.MaxInt64 {
		t.Errorf("without a limit: %d", got)
	}
}

func TestOverLimit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
	limit := func(kind auth.LimitKind, w time.Duration, most int64, from auth.LimitSource) auth.Limit {
		return auth.Limit{Kind: kind, Window: w, Max: most, Source: from}
	}
	tests := []struct {
		e          Exceeded
		text, rule string
	}{
		{Exceeded{limit(auth.LimitMessages, time.Minute, 100, auth.FromUser), 100, 1, now.Add(12 * time.Second)},
			"Limit of 100 messages in 1m reached (used 100); try again after 2026-11-25T10:00:12Z (in 12 s)", "limit messages 100/m user"},
		{Exceeded{limit(auth.LimitMessages, time.Minute, 100, auth.FromDefault), 100, 1, now.Add(11*time.Second + 1)},
			"Limit of 100 messages in 1m reached (used 100); try again after 2026-11-25T10:00:12Z (in 12 s)", "limit messages 100/m user"},
		{Exceeded{limit(auth.LimitRecipients, 30*day, 5000, auth.FromCredential), 4990, 20, now.Add(3*time.Hour + 19*time.Minute + time.Second)},
			"Limit of 5000 recipients in 30d reached (used 4990); try again after 2026-11-25T13:19:01Z (in 3 h 20 min)", "limit recipients 5000/30d credential"},
		{Exceeded{limit(auth.LimitBytes, day, 1e9, auth.FromUser), 999999999, 2, now.Add(59*time.Minute + 59*time.Second + 1)},
			"Limit of 1000000000 octets in 1d reached (used 999999999); try again after 2026-11-25T11:00:00Z (in 1 h)", "limit bytes 1GB/d user"},
		{Exceeded{limit(auth.LimitBytes, day, 1000, auth.FromUser), 0, 1200, time.Time{}},
			"Limit of 1000 octets in 1d can never hold this message of 1200; make it smaller, or ask the administrator", "limit bytes 1KB/d user"},
		{Exceeded{limit(auth.LimitMessages, day, 0, auth.FromUser), 0, 1, time.Time{}},
			"Limit of 0 messages in 1d: nothing may be sent; ask the administrator", "limit messages 0/d user"},
		{Exceeded{limit(auth.LimitMessages, time.Second, 1, auth.FromUser), 1, 1, now.Add(-time.Hour)},
			"Limit of 1 message in 1s reached (used 1); try again after 2026-11-25T09:00:00Z (in 1 s)", "limit messages 1/s user"},
	}
	for _, tt := range tests {
		v := OverLimit(tt.e, now)
		if v.Allowed || v.Reply.String() != "452 4.7.1 "+tt.text || v.Rule != tt.rule {
			t.Errorf("%+v", v)
		}
	}
	longest := Exceeded{limit(auth.LimitRecipients, 366*day-time.Second, math.MaxInt64, auth.FromCredential), math.MaxInt64, math.MaxInt64, now.AddDate(7000, 0, 0)}
	if line := OverLimit(longest, now).Reply.Append(nil); len(line) > 512 || !smtp.IsASCII(string(line)) {
		t.Errorf("reply line of %d octets: %q", len(line), line)
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	id := auth.Identity{Name: "alice", Senders: []string{"a@own.example", "*@*.own.example", "<>"}}
	at := func(local, domain string) []smtp.Address { return []smtp.Address{{Local: local, Domain: domain}} }
	own, sub, victim := at("A", "own.example"), at("x", "sub.OWN.example"), at("b", "victim.example")
	tests := []struct {
		name string
		h    HeaderIdentity
		rule string // "header" is allowed
	}{
		{"own", HeaderIdentity{From: own}, "header"},
		{"all own", HeaderIdentity{From: append(own, sub...), Sender: own, ResentFrom: sub, ResentSender: own}, "header"},
		{"second author", HeaderIdentity{From: append(own, victim...)}, "header From"},
		{"sender", HeaderIdentity{From: own, Sender: victim}, "header Sender"},
		{"resent from", HeaderIdentity{From: own, ResentFrom: victim}, "header Resent-From"},
		{"resent sender", HeaderIdentity{From: own, ResentSender: victim}, "header Resent-Sender"},
		{"homograph", HeaderIdentity{From: at("a", "\u043ewn.example")}, "header From"},
		{"null", HeaderIdentity{From: at("", "")}, "header From"},
	}
	for _, tt := range tests {
		v := Header(id, tt.h)
		if v.Rule != tt.rule || v.Allowed != (tt.rule == "header") {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if !v.Allowed && !strings.HasPrefix(v.Reply.String(), "550 5.7.1 ") {
			t.Errorf("%s: %s", tt.name, v.Reply)
		}
	}
	want := "User alice may not write the Sender field as <b@victim.example>; choose another sender, or ask the administrator to allow it"
	if got := Header(id, HeaderIdentity{From: own, Sender: victim}).Reply.Text; got != want {
		t.Errorf("text %q", got)
	}
	long := at(strings.Repeat("x", 64), strings.Repeat("y.", 120)+"z")
	if line := Header(auth.Identity{Name: strings.Repeat("n", 255)}, HeaderIdentity{ResentSender: long}).Reply.Append(nil); len(line) > 512 {
		t.Errorf("reply line of %d octets: %q", len(line), line)
	}
}

// Redirecting: who resent a message last by a pattern with the option may pass on what
// is another's; nobody else, and as nobody else.
func TestHeaderResend(t *testing.T) {
	t.Parallel()
	id := auth.Identity{Name: "alice", Senders: []string{"*@own.example", "a@office.example"}, Resend: []string{"a@office.example"}}
	at := func(list ...string) (addrs []smtp.Address) {
		for _, s := range list {
			local, domain, _ := strings.Cut(s, "@")
			addrs = append(addrs, smtp.Address{Local: local, Domain: domain})
		}
		return addrs
	}
	office, own, victim := at("A@OFFICE.example"), at("a@own.example"), at("b@victim.example")
	for name, tt := range map[string]struct {
		h    HeaderIdentity
		rule string
		text string // of the refusal, a part
	}{
		"another's":                  {HeaderIdentity{From: victim, Sender: victim, ResentFrom: office, Redirector: office}, "resend a@office.example", ""},
		"another's, resent before":   {HeaderIdentity{From: victim, ResentFrom: append(office, victim...), ResentSender: victim, Redirector: office}, "resend a@office.example", ""},
		"one's own":                  {HeaderIdentity{From: own, ResentFrom: office, Redirector: office}, "header", ""},
		"by another's Resent-Sender": {HeaderIdentity{From: victim, ResentFrom: office, ResentSender: victim, Redirector: append(office, victim...)}, "header From", "write the From field as"},
		"one without the option":     {HeaderIdentity{From: victim, ResentFrom: append(office, own...), ResentSender: office, Redirector: append(office, own[0], office[0])}, "header From", "resend mail of <b@victim.example>"},
		"a pattern without":          {HeaderIdentity{From: victim, ResentFrom: own, Redirector: own}, "header From", "resend mail of <b@victim.example>"},
		"as another":                 {HeaderIdentity{From: office, ResentFrom: victim, Redirector: victim}, "header Resent-From", "write the Resent-From field as"},
		"not clear by whom":          {HeaderIdentity{From: victim, ResentFrom: office}, "header From", "write the From field as"},
		"not resent":                 {HeaderIdentity{From: victim}, "header From", "write the From field as"},
	} {
		v := Header(id, tt.h)
		if v.Rule != tt.rule || v.Allowed != (tt.text == "") || !strings.Contains(v.Reply.Text, tt.text) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	// The name alone is no pattern with an option, and the envelope is judged as always.
	if v := Header(auth.Identity{Name: "a@own.example"}, HeaderIdentity{From: victim, ResentFrom: own, Redirector: own}); v.Allowed {
		t.Errorf("by the name: %+v", v)
	}
	if v := Sender(id, victim[0]); v.Allowed {
		t.Errorf("in MAIL: %+v", v)
	}
}

func TestNullSender(t *testing.T) {
	t.Parallel()
	if v := Sender(auth.Identity{Name: "a@b", Senders: []string{"a@b", "<>"}}, smtp.Address{}); !v.Allowed || v.Rule != "sender <>" {
		t.Errorf("with the pattern: %+v", v)
	}
	// The pattern is for no address, so the user's own name is still one.
	only := auth.Identity{Name: "a@b", Senders: []string{"<>"}}
	if v := Sender(only, smtp.Address{Local: "a", Domain: "b"}); !v.Allowed || v.Rule != "sender a@b" {
		t.Errorf("the name: %+v", v)
	}
	if v := Sender(only, smtp.Address{Local: "c", Domain: "b"}); v.Allowed {
		t.Errorf("another: %+v", v)
	}
	if v := Sender(auth.Identity{Name: "<>"}, smtp.Address{}); v.Allowed {
		t.Errorf("a name is no pattern: %+v", v)
	}
}
