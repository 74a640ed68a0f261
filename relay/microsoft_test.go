package relay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/oauthtest"
	"postern/internal/rig"
	"postern/internal/smtptest"
)

// microsoft is a server as Microsoft's: it takes tokens over TLS, three sessions, so many messages
// in a window, and has a daily quota.
type microsoft struct {
	*smtptest.Server
	authority *oauthtest.Authority

	mu sync.Mutex

	taken  int
	spent  bool // the quota
	quotas int  // messages refused by it
}

const submissionQuota = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message " +
	"The message can't be submitted because the sender's submission quota was exceeded."

func newMicrosoft(t *testing.T, ca *smtptest.CA, quotaAfter int) *microsoft {
	t.Helper()
	m := &microsoft{authority: oauthtest.New(t)}
	m.authority.Set(func(s *oauthtest.Settings) { s.Secrets["app-1"] = "a client's secret" })
	m.Server = smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true,
		Extensions: []string{"SIZE 157286400", "PIPELINING", "DSN", "ENHANCEDSTATUSCODES", "8BITMIME", "CHUNKING", "SMTPUTF8"},
		Tokens:     func(user, token string) bool { return user == "relay@"+rig.Domain && m.authority.Valid(token) != "" },
	})
	m.On(smtptest.PhaseDot, func(smtptest.Session) smtptest.Action {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.taken++; m.taken == quotaAfter {
			m.spent = true
		}
		if m.spent {
			m.quotas++
			return smtptest.Reply(submissionQuota)
		}
		return smtptest.Normal()
	})
	return m
}

// refused is how many messages the quota has refused.
func (m *microsoft) refused() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.quotas
}

func (m *microsoft) renewQuota() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spent = false
}

// TestMicrosoftLikeUpstream: two nodes offer an upstream more than it takes, by its sessions, its
// rate and its quota; one of them is killed meanwhile. Nothing bounces, no limit is ever
// exceeded, the second way takes what the routes allow, and the rest goes by itself when the
// quota is back, in order. With POSTERN_LONG it is 5,000 messages and a window of a minute.
func TestMicrosoftLikeUpstream(t *testing.T) {
	t.Parallel()
	window, most, each, quotaAfter := 5*time.Second, 30, 8, 45
	if longtest.Run() {
		window, most, each, quotaAfter = time.Minute, 600, 250, 700
	}
	ca := smtptest.NewCA(t)
	upstream := newMicrosoft(t, ca, quotaAfter)
	r := rig.New(t, false)
	dir := t.TempDir()
	for name, text := range map[string][]byte{"authority.pem": upstream.authority.PEM, "upstream.pem": ca.PEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	oauth := fmt.Sprintf("[oauth]\nserver = %q\nserver_ca = %q\n", upstream.authority.URL, filepath.Join(dir, "authority.pem"))
	second := rig.NewSink(t, "", 0)
	r.Postern("a client's secret", "upstream", "add", "m365", "--preset", "m365", "--host", upstream.Addr(), "--tls", "require", "--ca-file", filepath.Join(dir, "upstream.pem"),
		"--username", "relay@"+rig.Domain, "--oauth", "client-credentials", "--tenant", "example.com", "--client-id", "app-1", "--client-secret-stdin",
		"--budget", fmt.Sprintf("messages %d/%ds, sessions 3", most, int(window.Seconds())))
	r.Postern("", "upstream", "add", "second", "--host", second.Addr(), "--tls", "none")
	const only = "only@" + rig.Domain // has no other way
	r.AddUser(only)
	r.Postern("", "route", "add", "--user", only, "--via", "m365")
	r.Postern("", "route", "add", "--via", "m365,second")
	a := r.Node(rig.NodeConfig{Name: "a", Extra: oauth})
	b := r.Node(rig.NodeConfig{Name: "b", Extra: oauth})

	first := newLoad(t, r, a, b)
	first.Conns, first.Each, first.Pace, first.Shape = 10, each, 400*time.Millisecond, ofBudget
	other := newLoad(t, r, a, b)
	other.Name, other.Conns, other.Each, other.Pace, other.Shape, other.Ledger = only, 10, each, 400*time.Millisecond, ofBudget, first.Ledger
	first.Start()
	other.Start()
	awaitBudget(t, "the quota is spent", func() bool { return upstream.refused() > 0 })
	b.Kill()
	b.Start()
	b.Ready()
	first.Wait()
	other.Wait()
	awaitBudget(t, "the second way takes mail", func() bool { return len(second.Received()) > 0 })
	time.Sleep(window / 2) // the quota is away for a while
	upstream.renewQuota()
	r.Drain()

	copies := map[string]int{}
	var at, accepted []time.Time
	sentAt := map[string]time.Time{}
	for _, s := range first.Ledger.Sent() {
		if s.Fate == rig.Accepted {
			sentAt[s.ID] = s.DotAt
		}
	}
	for _, m := range upstream.Messages() {
		if m.From() == "" {
			t.Errorf("a notice to %v", m.To())
		}
		id := ""
		if named := loadID.FindSubmatch(m.Data); named != nil { // a notice has none
			id = string(named[1])
		}
		copies[id]++
		at = append(at, m.Received)
		if sent, is := sentAt[id]; is {
			accepted = append(accepted, sent)
		}
	}
	for _, m := range second.Received() {
		if m.From == "" {
			t.Errorf("a notice to %v", m.To)
		}
		copies[m.ID]++
	}
	again := 0
	for id := range sentAt {
		if copies[id] == 0 {
			t.Errorf("%s was accepted and did not arrive", id)
		}
		again += max(copies[id]-1, 0)
	}
	flagged, err := r.Count(t.Context(), `select count(*) from history where possible_duplicate`)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d accepted; %d by m365, %d by the second way, %d copies after the kill (%d flagged), %d refused by the quota",
		len(sentAt), len(at), len(second.Received()), again, flagged, upstream.refused())
	if again > flagged {
		t.Errorf("%d second copies, %d are flagged", again, flagged)
	}
	if n := upstream.PeakConns(); n > 3 {
		t.Errorf("%d sessions at the same time", n)
	}
	slices.SortFunc(at, time.Time.Compare)
	if peak := peakIn(at, window); peak > most {
		t.Errorf("%d messages within %v", peak, window)
	}
	if lead := overtaken(accepted); lead > max(2*window, time.Minute) { // far less than the drain takes
		t.Errorf("a message overtook one that was accepted %v earlier", lead)
	}
}

// peakIn is the most events in any window; at is in order.
func peakIn(at []time.Time, window time.Duration) (peak int) {
	first := 0
	for i := range at {
		for at[i].Sub(at[first]) >= window {
			first++
		}
		peak = max(peak, i-first+1)
	}
	return peak
}

// overtaken is by how much the earliest of those that went before was accepted later, at most.
func overtaken(accepted []time.Time) (lead time.Duration) {
	var latest time.Time
	for _, at := range accepted {
		lead = max(lead, latest.Sub(at))
		if at.After(latest) {
			latest = at
		}
	}
	return lead
}
