package story

import (
	"strings"
	"testing"

	"postern/cmd/postern/screen"
	"postern/relay/queue/desk"
)

func TestUsageText(t *testing.T) {
	t.Parallel()
	for want, usage := range map[string][]desk.Use{
		"":                                      nil,
		"messages 12/100 in 1m":                 {{Kind: "messages", Used: 12, Max: 100, Window: 60}},
		"recipients 1/20000 in 30d":             {{Kind: "recipients", Used: 1, Max: 20000, Window: 2592000}},
		"bytes 999B/1KB in 2h":                  {{Kind: "bytes", Used: 999, Max: 1000, Window: 7200}},
		"bytes 1.5MB/25GB in 90s":               {{Kind: "bytes", Used: 1549999, Max: 25000000000, Window: 90}},
		"messages 1/2 in 1d by credential":      {{Kind: "messages", Used: 1, Max: 2, Window: 86400, Scope: "credential", Subject: "7"}},
		"messages 1/2 in 1s, bytes 2B/1B in 1m": {{Kind: "messages", Used: 1, Max: 2, Window: 1}, {Kind: "bytes", Used: 2, Max: 1, Window: 60}},
		"messages 1/2 in 1h by all of a.test":   {{Kind: "messages", Used: 1, Max: 2, Window: 3600, Scope: "domain", Subject: "a.test"}},
	} {
		if got := usageText(usage); got != want {
			t.Errorf("%+v: %q, want %q", usage, got, want)
		}
	}
}

// TestWholeReply: what is asked about one message has all of its reply, as that says why it waits,
// on a narrow terminal too.
func TestWholeReply(t *testing.T) {
	t.Parallel()
	reply := `451 4.4.1 waits for upstream out, not used until 12:05:01 UTC after "535 5.7.8 the password is wrong"; b: upstream b is paused`
	e := Entry{Entry: desk.Entry{State: desk.StateWaiting, Recipient: "bob@example.net", LastReply: reply}}
	var b strings.Builder
	s := Story{History: &desk.History{Live: []desk.Entry{e.Entry}}}
	if err := s.Print(&b); err != nil || !strings.Contains(b.String(), reply) {
		t.Errorf("%s%v", &b, err)
	}
	b.Reset()
	if err := s.Print(screen.Writer{Writer: &b, Width: 80}); err != nil || strings.Contains(b.String(), "…") || !strings.Contains(b.String(), "paused") ||
		!strings.Contains(b.String(), "bob@example.net") || !strings.Contains(b.String(), "NEXT") {
		t.Errorf("on a terminal: %s%v", &b, err)
	}
}

func TestFateText(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]desk.Summary{
		"-":                                {Recipients: 1},
		"delivered":                        {Recipients: 2, Delivered: 2},
		"1 delivered, 1 failed, 1 waiting": {Recipients: 3, Delivered: 1, Failed: 1, Waiting: 1},
		"1 cancelled, 2 held":              {Recipients: 3, Cancelled: 1, Held: 2},
		"refused after all":                {Recipients: 1, Voided: true, Waiting: 1},
	} {
		if got := fateText(s); got != want {
			t.Errorf("%+v: %q, want %q", s, got, want)
		}
	}
}
