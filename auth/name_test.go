package auth

import (
	"errors"
	"testing"
)

// A26: two spellings are one user, or one of them is nobody; never two users that
// look or fold alike by accident of the encoding.
func TestA26CanonicalName(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in, want string // want "" is refused
	}{
		{"plain", "admin", "admin"},
		{"case", "ADMIN", "admin"},
		{"address", "Admin@Example.COM", "admin@example.com"},
		{"final dot", "admin@example.com.", "admin@example.com"},
		{"Cyrillic letter", "\u0430dmin", "\u0430dmin"}, // another user, who does not exist
		{"fullwidth", "\uff41\uff44\uff4d\uff49\uff4e", "admin"},
		{"fullwidth case", "\uff21dmin", "admin"},
		{"ligature", "\ufb01n", ""},
		{"NFC", "caf\u00e9", "caf\u00e9"},
		{"NFD", "cafe\u0301", "caf\u00e9"},
		{"case of NFD", "CAFE\u0301", "caf\u00e9"},
		{"zero width joiner", "ad\u200dmin", ""},
		{"zero width space", "ad\u200bmin", ""},
		{"soft hyphen", "ad\u00admin", ""},
		{"bidi override", "ad\u202emin", ""},
		{"trailing space", "admin ", ""},
		{"leading space", " admin", ""},
		{"no-break space", "admin\u00a0", ""},
		{"tab", "ad\tmin", ""},
		{"line feed", "a\nb", ""},
		{"NUL", "a\x00b", ""},
		{"not UTF-8", "adm\xffn", ""},
		{"fullwidth at", "a\uff20b", ""},
		{"two at", "a@b@c", ""},
		{"no local", "@example.com", ""},
		{"no domain", "admin@", ""},
		{"only a dot", "admin@.", ""},
		{"two dots", "admin@example..com", ""},
		{"two final dots", "admin@example.com..", ""},
		{"U-label", "a@b\u00fccher.example", "a@xn--bcher-kva.example"},
		{"U-label case", "a@B\u00dcCHER.example", "a@xn--bcher-kva.example"},
		{"A-label", "a@XN--bcher-kva.example", "a@xn--bcher-kva.example"},
		{"ideographic dot", "a@example\u3002com", "a@example.com"},
		{"domain with a space", "a@exa mple", ""},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		got, err := CanonicalName(tt.in)
		if got != tt.want || (err == nil) != (tt.want != "") || err != nil && !errors.Is(err, ErrName) {
			t.Errorf("%s: CanonicalName(%q) = %q, %v; want %q", tt.name, tt.in, got, err, tt.want)
		}
	}
	// The Kelvin sign folds to k or is refused.
	if got, err := CanonicalName("\u212a"); err == nil && got != "k" {
		t.Errorf("Kelvin sign is %q", got)
	}
}

func TestA26SameName(t *testing.T) {
	t.Parallel()
	if !SameName("A@Example.com", "a@example.COM.") || SameName("a", "b") || SameName("a ", "a") || SameName("\u0430", "a") {
		t.Error("SameName does not follow CanonicalName")
	}
}

func FuzzCanonicalName(f *testing.F) {
	for _, s := range []string{"a", "A@B.c.", "caf\u00e9@b\u00fccher", "\u1e9e", "\u0130", "\u03a3\u03c2", "\uff21", "\u212b", "A00\u00e9@0\xc30"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := CanonicalName(s)
		if err != nil {
			return
		}
		twice, err := CanonicalName(once)
		if err != nil || twice != once || len(once) > maxName {
			t.Fatalf("%q: %q, then %q, %v", s, once, twice, err)
		}
	})
}

func TestCanonicalPattern(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want string }{
		{"a@b", "a@b"},
		{"Alice@Example.COM.", "alice@example.com"},
		{"*@Example.com", "*@example.com"},
		{"*@*.Example.com", "*@*.example.com"},
		{"*@b\u00fccher.example", "*@xn--bcher-kva.example"},
		{"a+b@c", "a+b@c"},
		{"\u00e9@b", "\u00e9@b"},
		{"*", ""}, {"@", ""}, {"a@", ""}, {"@b", ""}, {"a", ""}, {"", ""},
		{"a*@b", ""}, {"**@b", ""}, {"a@*.b", ""}, {"*@*", ""}, {"*@*.", ""}, {"*@*.*.b", ""}, {"*@b*", ""},
		{"<>", "<>"}, {" <>", ""}, {"<>@b", ""}, {"< >", ""},
		{"a b@c", ""}, {"<a@b>", ""}, {`"a"@b`, ""}, {"a@b@c", ""}, {"a@[192.0.2.1]", ""}, {"a\n@b", ""}, {"a\xff@b", ""}, {"a@b c", ""},
	}
	for _, tt := range tests {
		got, err := CanonicalPattern(tt.in)
		if got != tt.want || (err == nil) != (tt.want != "") || err != nil && !errors.Is(err, ErrPattern) {
			t.Errorf("CanonicalPattern(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}
