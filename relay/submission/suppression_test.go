package submission

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/relay/smtp"
	"postern/relay/suppression"
)

// fakeSuppression has entries by user and address.
type fakeSuppression struct {
	entries map[int64]string
	err     error
	refused []string
}

func (f *fakeSuppression) Find(_ context.Context, user int64, to smtp.Address) (*suppression.Entry, error) {
	for _, of := range []int64{0, user} {
		if f.entries[of] == suppression.Key(to) {
			return &suppression.Entry{UserID: of, Address: f.entries[of], Source: suppression.Admin, AddedAt: time.Now()}, nil
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	if f.entries[0] == "*@"+to.DomainKey() {
		return &suppression.Entry{Address: f.entries[0], Source: suppression.Admin}, nil
	}
	return nil, nil
}

func (f *fakeSuppression) Refused(e *suppression.Entry) { f.refused = append(f.refused, e.Address) }

// TestSuppressedRecipients: the reply to RCPT, and what is queued, for each choice of a credential.
func TestSuppressedRecipients(t *testing.T) {
	t.Parallel()
	tests := []struct {
		what       auth.Suppressed
		to         string
		code       int
		text       string
		suppressed bool // as queued
	}{
		{"", "dead@example.net", 550, "5.1.1 dead@example.net is suppressed since", false},
		{auth.RefuseSuppressed, "dead@EXAMPLE.net", 550, "5.1.1", false},
		{auth.RefuseSuppressed, "alive@example.net", 250, "", false},
		{auth.RefuseSuppressed, "DEAD@example.net", 250, "", false},
		{auth.AcceptSuppressed, "dead@example.net", 250, "", true},
		{auth.IgnoreSuppressed, "dead@example.net", 250, "", false},
		{auth.RefuseSuppressed, "x@blocked.test", 550, "5.7.1 Mail to this domain is blocked by the administrator", false},
		{auth.AcceptSuppressed, "x@blocked.test", 550, "5.7.1", false},
		{auth.IgnoreSuppressed, "x@blocked.test", 550, "5.7.1", false},
	}
	for _, tt := range tests {
		t.Run(string(tt.what)+" "+tt.to, func(t *testing.T) {
			t.Parallel()
			list := &fakeSuppression{entries: map[int64]string{7: "dead@example.net", 0: "*@blocked.test"}}
			var told []string
			ts := startServer(t, func(cfg *Config) {
				cfg.Suppression = list
				cfg.Refused = func(_ int64, to smtp.Address, r smtp.Reply) { told = append(told, to.String()+" "+r.String()) }
			})
			ts.verifier.id = auth.Identity{Suppressed: tt.what}
			c := ts.login(t)
			c.cmd(250, "MAIL FROM:<alice@example.com>")
			if got := c.cmd(tt.code, "RCPT TO:<"+tt.to+">"); !strings.Contains(got, tt.text) {
				t.Errorf("reply %q, want %q", got, tt.text)
			}
			c.cmd(250, "RCPT TO:<other@example.net>")
			c.cmd(354, "DATA")
			c.send(smallMessage + ".\r\n")
			c.expect(250)
			c.cmd(221, "QUIT")
			if (tt.code == 550) != (len(told) == 1) || len(told) == 1 && !strings.HasPrefix(told[0], tt.to+" 550 5.") {
				t.Errorf("the feed hears %q", told)
			}
			rcpts := ts.queue.all()[0].Rcpts
			if tt.code == 250 && (len(rcpts) != 2 || rcpts[0].Suppressed != tt.suppressed) || rcpts[len(rcpts)-1].Suppressed {
				t.Errorf("queued %+v", rcpts)
			}
			hit := 0
			if tt.code == 550 || tt.suppressed {
				hit = 1
			}
			if got := ts.Stats(); len(list.refused) != hit || got.Suppressed != int64(hit) {
				t.Errorf("hits %v, counted %d, want %d", list.refused, got.Suppressed, hit)
			}
		})
	}
}

// TestSuppressionTrouble: what cannot be looked for is put off, and nothing of it is told.
func TestSuppressionTrouble(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Suppression = &fakeSuppression{err: errors.New("the server is gone")} })
	c := ts.login(t)
	c.cmd(250, "MAIL FROM:<alice@example.com>")
	if got := c.cmd(451, "RCPT TO:<x@example.net>"); !strings.Contains(got, "4.3.0 Recipients cannot be checked now, try again later") {
		t.Errorf("reply %q", got)
	}
	c.cmd(451, "DATA")
	c.cmd(221, "QUIT")
}

// TestRecipientPatterns: they come before the suppression list.
func TestRecipientPatterns(t *testing.T) {
	t.Parallel()
	list := &fakeSuppression{entries: map[int64]string{7: "dead@example.net"}}
	ts := startServer(t, func(cfg *Config) { cfg.Suppression = list })
	ts.verifier.id = auth.Identity{Recipients: []auth.RecipientPattern{{Allow: true, Pattern: "*@example.com"}}}
	c := ts.login(t)
	c.cmd(250, "MAIL FROM:<alice@example.com>")
	c.cmd(250, "RCPT TO:<bob@example.com>")
	if got := c.cmd(550, "RCPT TO:<dead@example.net>"); !strings.Contains(got, "5.7.1 User alice@example.com may not send to <dead@example.net>; ask the administrator to allow it") {
		t.Errorf("reply %q", got)
	}
	c.cmd(221, "QUIT")
	if len(list.refused) != 0 {
		t.Errorf("hits %v", list.refused)
	}
}
