package delivery

import (
	"testing"
	"time"

	"postern/relay/connect"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// Trouble before MAIL concerns no mail, whatever the reply, and has the wait of its row.
func TestTroubleIsAbout(t *testing.T) {
	t.Parallel()
	at := func(stage smtp.Stage, r smtp.Reply) *trouble {
		return &trouble{Trouble: connect.Trouble{Reply: r, Said: true, Err: &smtp.StageError{Stage: stage, Reply: r}}}
	}
	for name, c := range map[string]struct {
		t     *trouble
		scope upstream.Scope
		wait  time.Duration
	}{
		"too many connections": {at(smtp.StageGreeting, smtp.Temporary(432, 3, 2, "Concurrent connections limit exceeded")), upstream.ScopeConnection, 30 * time.Second},
		"no login":             {at(smtp.StageAuth, smtp.Permanent(535, 7, 8, "no")), upstream.ScopeAccount, 0},
		"a greeting":           {at(smtp.StageGreeting, smtp.Permanent(554, 0, 0, "no")), upstream.ScopeHost, 0},
		"of mail":              {at(smtp.StageHello, smtp.Permanent(552, 5, 3, "too many")), upstream.ScopeHost, 0},
		"silence":              {&trouble{Trouble: connect.Trouble{Err: &smtp.StageError{Stage: smtp.StageConnect}}}, upstream.ScopeHost, 0},
	} {
		if scope, wait := c.t.about(upstream.Table("m365")); scope != c.scope || wait != c.wait {
			t.Errorf("%s: %s, %s; want %s, %s", name, scope, wait, c.scope, c.wait)
		}
	}
}
