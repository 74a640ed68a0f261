package relay_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"postern/internal/longtest"
	"postern/internal/peers"
	"postern/internal/rig"
)

// manyRecipients is how many recipients each message to a foreign upstream has; of them refused
// are answered 550.
const manyRecipients, refused = 60, 6

// foreign is a server of others as the upstream, and how it is set up.
type foreign struct {
	start    func(testing.TB, peers.UpstreamConfig) *peers.Upstream
	settings map[string]string
	most     int  // recipients of one message of it that arrive
	waits    bool // mail waits for a rate
}

// A rate of n in a minute, and Postfix's tarpit off, which would only take time.
func postfixLimits(name string, n int) map[string]string {
	return map[string]string{
		"smtpd_recipient_limit": "20", "smtpd_client_connection_count_limit": "4", "smtpd_error_sleep_time": "0",
		"smtpd_hard_error_limit": "4", name: strconv.Itoa(n),
	}
}

func eximLimits(rejects string) map[string]string {
	return map[string]string{
		"recipients_max": "20", "recipients_max_reject": rejects, "smtp_accept_max_per_host": "4",
		"smtp_accept_max_per_connection": "7", "smtp_accept_queue_per_connection": "0",
	}
}

// TestForeignUpstreams sends messages for many recipients through Postfix and Exim with narrow
// limits: 30, or 1,000 with POSTERN_LONG=1 and then by rates too. Nobody waits for anything but a
// rate.
func TestForeignUpstreams(t *testing.T) {
	t.Parallel()
	servers := map[string]foreign{
		"Postfix": {peers.StartPostfix, postfixLimits("smtpd_client_message_rate_limit", 0), 20, false},
		"Exim":    {peers.StartExim, eximLimits("true"), 20, false},
	}
	messages := 30
	if longtest.Run() {
		messages = 1000
		servers["Exim in parts"] = foreign{peers.StartExim, eximLimits("false"), 20, false}
		servers["Postfix, messages"] = foreign{peers.StartPostfix, postfixLimits("smtpd_client_message_rate_limit", 1500), 20, true}
		servers["Postfix, recipients"] = foreign{peers.StartPostfix, postfixLimits("smtpd_client_recipient_rate_limit", 30000), 20, true}
	}
	for name, f := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			foreignUpstream(t, f, messages)
		})
	}
}

// foreignUpstream sends messages through a server of others: each recipient has each exactly once,
// and the refused ones alone fail.
func foreignUpstream(t *testing.T, f foreign, messages int) {
	const account, password = "relay@example.com", "s3cret"
	answers := peers.Answers{}
	for n := range refused {
		answers[fmt.Sprintf("no-%d@dest.test", n)] = []string{"550 5.1.1 No such mailbox"}
	}
	up := f.start(t, peers.UpstreamConfig{User: account, Password: password, Answers: answers, Settings: f.settings})
	r := rig.New(t, false)
	r.Postern(password, "upstream", "add", "out", "--host", fmt.Sprintf("%s:%d", up.Host, up.Port), "--tls", "require",
		"--ca-file", up.CAFile, "--username", account, "--password-stdin", "--connections", "6")
	r.Postern("", "route", "add", "--via", "out")
	load := newLoad(t, r, r.Node(rig.NodeConfig{Name: "solo"}))
	load.Conns, load.Each, load.Pace, load.Shape = 5, messages/5, 0, toMany
	load.Start()
	load.Wait()
	arrived := arrivals(t, up, messages*(manyRecipients-refused), f.most)
	if len(load.Ledger.Sent()) != messages || load.Ledger.Accepted() != messages {
		t.Fatalf("not all was accepted: %s", load.Ledger)
	}
	for _, s := range load.Ledger.Sent() {
		for _, to := range s.To {
			want := 1
			if answers[to] != nil {
				want = 0
			}
			if got := arrived[s.ID+" "+to]; got != want {
				t.Errorf("%s came to %s %d times, want %d", s.ID, to, got, want)
			}
		}
	}
	await(t, "the refused ones fail", func() bool {
		return count(t, r, `select count(*) from history where result = 'failed'`) >= messages*refused
	})
	if n := count(t, r, `select count(*) from history where result = 'failed' and local not like 'no-%'`); n != 0 {
		t.Errorf("%d recipients failed that were not refused", n)
	}
	if n := count(t, r, `select count(*) from history where result in ('deferred', 'expired', 'unknown')`); n > 0 != f.waits {
		t.Errorf("%d recipients waited, rate: %t", n, f.waits)
	}
}

// toMany is a message for manyRecipients.
func toMany(*rand.Rand) rig.Shape {
	shape := rig.Shape{From: "sender@" + rig.Domain, Size: 1 << 10}
	for n := range manyRecipients {
		to := fmt.Sprintf("rcpt-%d@dest.test", n)
		if n%9 == 8 { // one in each transaction, or more
			to = fmt.Sprintf("no-%d@dest.test", n/9)
		}
		shape.To = append(shape.To, to)
	}
	return shape
}

var loadID = regexp.MustCompile(`(?m)^X-Load-Id: (\S+)\r$`)

// arrivals counts what came through the server, by message and recipient, until it is as many
// recipients as that. Notices of the relay are left out.
func arrivals(t *testing.T, up *peers.Upstream, recipients, most int) map[string]int {
	t.Helper()
	arrived := map[string]int{}
	for n := 0; n < recipients; {
		ctx, cancel := context.WithTimeout(t.Context(), rig.Patience)
		m, err := up.Next(ctx)
		cancel()
		if err != nil {
			t.Fatalf("%d of %d recipients have their message: %v", n, recipients, err)
		}
		if m.From == "" {
			continue
		}
		id := loadID.FindSubmatch(m.Data)
		if id == nil || len(m.To) > most || slices.Contains(m.To, "") {
			t.Fatalf("came to %q: %.200q", m.To, m.Data)
		}
		for _, to := range m.To {
			arrived[string(id[1])+" "+to]++
			n++
		}
	}
	return arrived
}
