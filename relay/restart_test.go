package relay_test

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
	"postern/internal/serve"
	"postern/internal/smtptest"
)

// restarted is an upstream that is killed and started again, at one address.
type restarted struct {
	cfg    smtptest.Config
	server *smtptest.Server
}

// startUpstream takes its time at MAIL, so that many connections are busy and none of
// them awaits the reply to a final dot for long: what is lost there is in doubt.
func startUpstream(t *testing.T, tlsConfig *tls.Config) *restarted {
	t.Helper()
	u := &restarted{cfg: smtptest.Config{
		TLS: tlsConfig, DiscardBodies: true,
		Hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseMail: smtptest.Always(smtptest.Then(smtptest.Delay(40*time.Millisecond), smtptest.Normal()))},
	}}
	port, err := serve.FreePort() // one that nobody else gets while the upstream is away
	if err != nil {
		t.Fatal(err)
	}
	u.cfg.Addr = fmt.Sprintf("127.0.0.1:%d", port)
	u.server = smtptest.Start(t, u.cfg)
	return u
}

// restart kills the upstream and starts it again after a time.
func (u *restarted) restart(t *testing.T, away time.Duration) {
	t.Helper()
	u.server.Close()
	time.Sleep(away)
	u.server = smtptest.Start(t, u.cfg)
}

// TestR2UpstreamRestarts kills an upstream again and again under a load, and starts it
// after at most two seconds. No attempt is counted for it, but for messages whose final
// dot it had: those are in doubt. With POSTERN_LONG=1 it is 50 restarts at 20 and at 200
// messages a second, in clear and under TLS, and no message may wait longer than 5 s.
func TestR2UpstreamRestarts(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	long := longtest.Run()
	for name, secure := range map[string]*tls.Config{"clear": nil, "TLS": ca.ServerConfig(t, "127.0.0.1")} {
		rates, restarts, away := []int{200}, 4, []time.Duration{0}
		if long {
			rates, restarts, away = []int{20, 200}, 50, []time.Duration{0, 500 * time.Millisecond, 2 * time.Second}
		}
		for _, rate := range rates {
			t.Run(fmt.Sprintf("%s, %d messages/s", name, rate), func(t *testing.T) {
				if !long {
					t.Parallel()
				}
				survive(t, startUpstream(t, secure), rate, restarts, away)
			})
		}
	}
}

func survive(t *testing.T, u *restarted, rate, restarts int, away []time.Duration) {
	t.Helper()
	r := rig.New(t, false)
	r.Postern("", "upstream", "add", "sink", "--host", u.cfg.Addr, "--tls", "opportunistic", "--connections", "20")
	if u.cfg.TLS != nil {
		r.Postern("", "upstream", "set", "sink", "--budget", "messages 1000/s, sessions 20")
	}
	r.Postern("", "route", "add", "--via", "sink")
	node := r.Node(rig.NodeConfig{Name: "solo"})
	load := newLoad(t, r, node)
	load.Conns, load.Pace = 20, 20*time.Second/time.Duration(rate)
	load.Shape = func(random *rand.Rand) rig.Shape {
		return rig.Shape{From: rig.User, To: []string{fmt.Sprintf("rcpt%d@dest.test", random.IntN(1000))}, Size: 2 << 10}
	}
	load.Start()
	none := func(left string, args ...any) {
		await(t, "no mail is left that is not in doubt", func() bool { return count(t, r, left, args...) == 0 })
	}
	var killed time.Time
	for i := range restarts {
		// Wait until the mail that the last kill interrupted has gone out, and the mail that came
		// meanwhile: no message meets two kills in one attempt, however slow the machine is.
		u.server.WaitMessages(t, 50)
		none(`select count(*) from recipient where not possible_duplicate and (accepted_at < now() - interval '1 s' or accepted_at < $1)`, killed)
		<-moment()
		killed = time.Now().Add(away[i%len(away)] + time.Second)
		u.restart(t, away[i%len(away)])
	}
	u.server.WaitMessages(t, 50)
	load.Stop()
	none(`select count(*) from recipient where not possible_duplicate`)
	doubt := count(t, r, `select count(*) from history where outcome_unknown`)
	deferred := count(t, r, `select count(*) from history where result <> 'delivered' and not outcome_unknown`)
	delivered := count(t, r, `select count(*) from history where result = 'delivered'`)
	waited := count(t, r, `select ceil(extract(epoch from max(a.at - m.accepted_at)) * 1000) from history a join message m on m.id = a.message_id
		where a.result = 'delivered' and not exists (select from history d where d.message_id = a.message_id and d.outcome_unknown)`)
	t.Logf("%d restarts, %d accepted, %d delivered, %d deferred, %d in doubt at the dot, longest wait %d ms", restarts,
		load.Ledger.Accepted(), delivered, deferred, doubt, waited)
	if deferred != 0 || delivered+doubt < load.Ledger.Accepted() {
		t.Errorf("%d attempts were counted for restarts; %d of %d delivered", deferred, delivered, load.Ledger.Accepted())
		t.Log(r.Text(t.Context(), `select string_agg(concat_ws(' ', started_at, at, result, reply_code, reply_enhanced, reply_text, left_ways), E'\n')
			from history where result <> 'delivered' and not outcome_unknown`))
	}
	if opened := count(t, r, `select count(*) from upstream_breaker`); opened != 0 {
		t.Error("the restarts have opened the upstream's breaker")
	}
	if longtest.Run() && waited > 5000 {
		t.Errorf("a message waited %d ms", waited)
	}
}
