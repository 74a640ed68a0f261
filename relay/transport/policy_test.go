package transport

import (
	"errors"
	"testing"
)

// The table of policies: an override, else DANE, else MTA-STS that is enforced, else what there is.
func TestDecide(t *testing.T) {
	t.Parallel()
	leaf := newChain(t, "mx.example.org").leaf
	ee := digest(usageEE, selectsKey, matchesSHA256, leaf)
	unusable := TLSA{0, 0, 1, make([]byte, 32)}
	sts := func(mode Mode, mx ...string) *STS { return &STS{Mode: mode, MX: mx} }
	tests := []struct {
		name    string
		facts   Facts
		level   Level
		source  Source
		refused bool
	}{
		{"nothing published", Facts{}, Opportunistic, SourceNone, false},
		{"TLSA", Facts{TLSA: []TLSA{ee}, MXSecure: true}, Matched, SourceDANE, false},
		{"TLSA, the MX not validated", Facts{TLSA: []TLSA{ee}}, Matched, SourceDANE, false},
		{"TLSA, unusable", Facts{TLSA: []TLSA{unusable}, MXSecure: true}, Encrypted, SourceDANE, false},
		{"TLSA, some unusable", Facts{TLSA: []TLSA{unusable, ee}, MXSecure: true}, Matched, SourceDANE, false},
		{"TLSA beats enforce", Facts{TLSA: []TLSA{ee}, MXSecure: true, STS: sts(Enforce, "mx.example.org")}, Matched, SourceDANE, false},
		{"TLSA beats an enforced policy that does not name the host", Facts{TLSA: []TLSA{ee}, MXSecure: true, STS: sts(Enforce, "other.example.org")}, Matched, SourceDANE, false},
		{"TLSA of a host that a forged MX record may name", Facts{TLSA: []TLSA{ee}, STS: sts(Enforce, "other.example.org")}, 0, SourceSTS, true},
		{"TLSA beats testing", Facts{TLSA: []TLSA{ee}, MXSecure: true, STS: sts(Testing, "other.example.org")}, Matched, SourceDANE, false},
		{"unusable TLSA and enforce", Facts{TLSA: []TLSA{unusable}, MXSecure: true, STS: sts(Enforce, "*.example.org")}, Verified, SourceSTS, false},
		{"unusable TLSA and enforce without the host", Facts{TLSA: []TLSA{unusable}, MXSecure: true, STS: sts(Enforce, "*.example.com")}, 0, SourceSTS, true},
		{"enforce", Facts{STS: sts(Enforce, "mx.example.org")}, Verified, SourceSTS, false},
		{"enforce by a star", Facts{STS: sts(Enforce, "*.example.org")}, Verified, SourceSTS, false},
		{"enforce without the host", Facts{STS: sts(Enforce, "mx.example.net"), MXSecure: true}, 0, SourceSTS, true},
		{"testing", Facts{STS: sts(Testing, "mx.example.org")}, Opportunistic, SourceTesting, false},
		{"testing without the host", Facts{STS: sts(Testing, "mx.example.net")}, Opportunistic, SourceTesting, false},
		{"none", Facts{STS: sts(None)}, Opportunistic, SourceNone, false},
		{"override beats TLSA", Facts{Override: &Override{Level: Opportunistic}, TLSA: []TLSA{ee}, MXSecure: true}, Opportunistic, SourceOverride, false},
		{"override beats enforce", Facts{Override: &Override{Level: Encrypted}, STS: sts(Enforce, "mx.example.net")}, Encrypted, SourceOverride, false},
		{"override demands more", Facts{Override: &Override{Level: Verified}}, Verified, SourceOverride, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.facts.Host, test.facts.Base, test.facts.Domain = "mx.example.org", "mx.example.org", "example.org"
			got, err := Decide(test.facts)
			if got.Level != test.level || got.Source != test.source || errors.Is(err, ErrNotAllowed) != test.refused || (err != nil) != test.refused {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
