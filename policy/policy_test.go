package policy

import (
	"strings"
	"testing"

	"postern/auth"
	"postern/policy/quota"
	"postern/relay/smtp"
)

func TestSender(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string // of the user
		patterns string
		local    string
		domain   string
		rule     string // of the verdict; "" is a refusal
	}{
		{"u", "a@b.example", "a", "b.example", "sender a@b.example"},
		{"u", "a@b.example", "A", "B.EXAMPLE", "sender a@b.example"},
		{"u", "a@b.example", "ab", "b.example", ""},
		{"u", "a@b.example", "a", "sub.b.example", ""},
		{"u", "a@b.example", "a", "b.example.evil", ""},
		{"u", "*@b.example", "x y", "b.example", "sender *@b.example"},
		{"u", "*@b.example", "x", "ab.example", ""},
		{"u", "*@b.example", "x", "a.b.example", ""},
		{"u", "*@*.b.example", "x", "a.b.example", "sender *@*.b.example"},
		{"u", "*@*.b.example", "x", "c.a.b.example", "sender *@*.b.example"},
		{"u", "*@*.b.example", "x", "b.example", ""},
		{"u", "*@*.b.example", "x", "ab.example", ""},
		{"u", "a@b c@d *@e", "q", "e", "sender *@e"},
		{"u", "*@xn--bcher-kva.example", "x", "bücher.example", "sender *@xn--bcher-kva.example"},
		{"u", "*@xn--bcher-kva.example", "x", "BÜCHER.example", "sender *@xn--bcher-kva.example"},
		{"u", "k@b.example", "\u212a", "b.example", ""}, // Kelvin sign
		{"u", "é@b.example", "é", "b.example", "sender é@b.example"},
		{"u", "*@b.example", "x", "[192.0.2.1]", ""},
		{"u", "*@b.example", "a@b.example", "evil.example", ""}, // "a@b.example"@evil.example
		{"alice@b.example", "", "Alice", "b.example", "sender alice@b.example"},
		{"alice@b.example", "", "bob", "b.example", ""},
		{"alice@b.example", "bob@b.example", "alice", "b.example", ""},
		{"alice", "", "alice", "b.example", ""},
		{"*@b.example", "", "bob", "b.example", ""},
	}
	for _, tt := range tests {
		id := auth.Identity{Name: tt.name, Senders: strings.Fields(tt.patterns)}
		got := Sender(id, smtp.Address{Local: tt.local, Domain: tt.domain})
		if tt.rule != "" {
			if !got.Allowed || got.Rule != tt.rule || !got.Reply.IsZero() {
				t.Errorf("%+v: %+v", tt, got)
			}
			continue
		}
		text := got.Reply.String()
		if got.Allowed || !strings.HasPrefix(text, "550 5.7.1 ") || got.Rule == "" {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
}

func TestSenderRefusalNamesTheAddress(t *testing.T) {
	t.Parallel()
	got := Sender(auth.Identity{Name: "alice"}, smtp.Address{Local: "bob", Domain: "b.example"})
	if text := got.Reply.Text; !strings.Contains(text, "<bob@b.example>") || !strings.Contains(text, "alice") {
		t.Errorf("text = %q", text)
	}
	null := Sender(auth.Identity{Name: "alice"}, smtp.Address{})
	if null.Allowed || !strings.HasPrefix(null.Reply.String(), "550 5.7.1 The null sender") {
		t.Errorf("null path: %+v", null)
	}
	for _, from := range []smtp.Address{{Local: "ü", Domain: "b.example"}, {Local: strings.Repeat("x", 64), Domain: strings.Repeat("y.", 120) + "z"}} {
		line := Sender(auth.Identity{Name: strings.Repeat("n", 255)}, from).Reply.Append(nil)
		if len(line) > 512 || !smtp.IsASCII(string(line)) {
			t.Errorf("reply line of %d octets: %q", len(line), line)
		}
	}
}

// limited is a user with one limit, or without any for 0.
func limited(kind quota.Kind, most int64) auth.Identity {
	if most == 0 {
		return auth.Identity{}
	}
	return auth.Identity{Limits: []quota.Limit{{Kind: kind, Max: most, Scope: quota.User}}}
}

func TestSize(t *testing.T) {
	t.Parallel()
	tests := []struct {
		user, server, size int64
		rule               string
		allowed            bool
	}{
		{0, 0, 1 << 40, "size server", true},
		{0, 100, 100, "size server", true},
		{0, 100, 101, "size server", false},
		{50, 100, 50, "size user", true},
		{50, 100, 51, "size user", false},
		{200, 100, 101, "size server", false},
		{50, 0, 51, "size user", false},
	}
	for _, tt := range tests {
		got := Size(limited(quota.Size, tt.user), tt.size, tt.server)
		if got.Allowed != tt.allowed || got.Rule != tt.rule {
			t.Errorf("%+v: %+v", tt, got)
		}
		if !tt.allowed && !strings.HasPrefix(got.Reply.String(), "552 5.3.4 ") {
			t.Errorf("%+v: %s", tt, got.Reply)
		}
	}
}

func TestRecipients(t *testing.T) {
	t.Parallel()
	tests := []struct {
		user, server, n int
		rule            string
		allowed         bool
	}{
		{0, 0, 1e6, "recipients server", true},
		{0, 100, 100, "recipients server", true},
		{0, 100, 101, "recipients server", false},
		{5, 100, 5, "recipients user", true},
		{5, 100, 6, "recipients user", false},
		{500, 100, 101, "recipients server", false},
	}
	for _, tt := range tests {
		got := Recipients(limited(quota.RecipientsOfMessage, int64(tt.user)), tt.n, tt.server)
		if got.Allowed != tt.allowed || got.Rule != tt.rule {
			t.Errorf("%+v: %+v", tt, got)
		}
		if !tt.allowed && !strings.HasPrefix(got.Reply.String(), "452 4.5.3 ") {
			t.Errorf("%+v: %s", tt, got.Reply)
		}
	}
}
