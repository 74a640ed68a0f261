package policy

import (
	"testing"

	"postern/auth"
	"postern/relay/smtp"
)

func TestRecipient(t *testing.T) {
	t.Parallel()
	internal := auth.RecipientPattern{Allow: true, Pattern: "*@example.com"}
	below := auth.RecipientPattern{Allow: true, Pattern: "*@*.example.com"}
	boss := auth.RecipientPattern{Pattern: "boss@example.com"}
	byKey := auth.RecipientPattern{Credential: 9, Allow: true, Pattern: "*@example.net"}
	denied := auth.RecipientPattern{Credential: 9, Pattern: "*@example.com"}
	tests := []struct {
		patterns []auth.RecipientPattern
		to       string
		rule     string
		refused  bool
	}{
		{nil, "x@example.net", "", false},
		{[]auth.RecipientPattern{internal}, "x@Example.COM", "recipient *@example.com user", false},
		{[]auth.RecipientPattern{internal}, "x@sub.example.com", "recipient none user", true},
		{[]auth.RecipientPattern{internal, below}, "x@sub.example.com", "recipient *@*.example.com user", false},
		{[]auth.RecipientPattern{boss}, "x@example.com", "", false},
		{[]auth.RecipientPattern{boss}, "BOSS@example.com", "recipient deny boss@example.com user", true},
		{[]auth.RecipientPattern{boss, internal}, "boss@example.com", "recipient deny boss@example.com user", true},
		{[]auth.RecipientPattern{internal, boss}, "boss@example.com", "recipient deny boss@example.com user", true},
		// Both must let it through.
		{[]auth.RecipientPattern{internal, byKey}, "x@example.com", "recipient none credential", true},
		{[]auth.RecipientPattern{internal, byKey}, "x@example.net", "recipient none user", true},
		{[]auth.RecipientPattern{internal, denied}, "x@example.com", "recipient deny *@example.com credential", true},
		{[]auth.RecipientPattern{byKey}, "x@example.net", "recipient *@example.net credential", false},
	}
	for _, tt := range tests {
		to, err := smtp.ParseRecipient(tt.to)
		if err != nil {
			t.Fatal(err)
		}
		v := Recipient(auth.Identity{Name: "shop", Recipients: tt.patterns}, to)
		if v.Rule != tt.rule || v.Allowed == tt.refused || tt.refused && v.Reply.Code != 550 {
			t.Errorf("%v to %s: %+v, want rule %q, refused %v", tt.patterns, tt.to, v, tt.rule, tt.refused)
		}
	}
}
