package smtp_test

import (
	"testing"

	"postern/relay/smtp"
)

func TestParseEnhanced(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]smtp.EnhancedCode{"5.1.1": {Class: 5, Subject: 1, Detail: 1}, "": {}, "x": {}} {
		if got := smtp.ParseEnhancedCode(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}
