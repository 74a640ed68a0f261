package oauth

import (
	"strings"
	"testing"
)

func TestExchange(t *testing.T) {
	t.Parallel()
	token := Token{Access: "ya29.token"}
	tests := []struct {
		mechanism, username, initial, answer string
	}{
		{"XOAUTH2", "relay@example.com", "user=relay@example.com\x01auth=Bearer ya29.token\x01\x01", ""},
		{"OAUTHBEARER", "a=b,c@example.com", "n,a=a=3Db=2Cc@example.com,\x01host=smtp.example\x01port=587\x01auth=Bearer ya29.token\x01\x01", "\x01"},
	}
	challenges := map[string]string{
		`{"status":"401","schemes":"bearer mac","scope":"https://mail.google.com/"}`: `status "401", schemes "bearer mac", scope "https://mail.google.com/"`,
		`{"status":401}`:    `"{\"status\":401}"`,
		"no ya29.token\r\n": `"no …\r\n"`,
		"":                  `""`,
	}
	for _, test := range tests {
		for challenge, said := range challenges {
			e := NewExchange(test.mechanism, test.username, token, "smtp.example", 587)
			mechanism, initial, err := e.Start()
			if mechanism != test.mechanism || string(initial) != test.initial || err != nil {
				t.Errorf("Start = %q, %q, %v", mechanism, initial, err)
			}
			if e.Refusal() != "" {
				t.Errorf("refused beforehand: %s", e.Refusal())
			}
			answer, err := e.Next([]byte(challenge))
			if answer == nil || string(answer) != test.answer || err != nil {
				t.Errorf("%s answers %q with %q, %v", mechanism, challenge, answer, err)
			}
			if !strings.HasSuffix(e.Refusal(), said) {
				t.Errorf("%q is shown as %q", challenge, e.Refusal())
			}
			if _, err := e.Next(nil); err == nil {
				t.Error("a second challenge is answered")
			}
		}
	}
}
