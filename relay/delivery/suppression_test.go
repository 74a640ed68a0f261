package delivery

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/dnstest"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/suppression"
	"postern/relay/upstream"
)

// TestRepliesThatSuppress has mail hosts give replies to a node with a database: which of the
// addresses are on the sender's suppression list afterwards, and on nobody else's.
func TestRepliesThatSuppress(t *testing.T) {
	t.Parallel()
	tests := []struct {
		reply      string
		phase      smtptest.Phase // "": RCPT
		suppresses bool
	}{
		{reply: "550 5.1.1 No such user here", suppresses: true},
		{reply: "550 5.1.1 <%s>: Recipient address rejected: User unknown in virtual mailbox table", suppresses: true},
		{reply: "550-5.1.1 The email account that you tried to reach does not exist. Please try\r\n550-5.1.1 double-checking the recipient's email address for typos or\r\n550 5.1.1 unnecessary spaces. For more information, go to https://support.example/mail/?p=NoSuchUser d9443c01a7336 - gsmtp", suppresses: true},
		{reply: "550 5.1.1 User rate@limit.example not listed in directory", suppresses: true},
		{reply: "553 5.1.1 sorry, no mailbox here by that name", suppresses: true},
		{reply: "551 5.1.6 Mailbox has moved", suppresses: true},
		{reply: "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient %s not found by SMTP address lookup", suppresses: true},
		{reply: "550 5.2.1 The email account that you tried to reach is disabled", suppresses: true},
		{reply: "550 5.1.1 no such user", phase: smtptest.PhaseDot, suppresses: true},
		{reply: "550 5.1.1 no such user", phase: smtptest.PhaseData, suppresses: true},

		{reply: "550 5.7.1 Service unavailable, client host blocked using dnsbl"},
		{reply: "550 5.7.1 No such user"},
		{reply: "554 5.7.1 <%s>: Relay access denied"},
		{reply: "550 5.7.26 Unauthenticated sender"},
		{reply: "552 5.2.2 Mailbox full"},
		{reply: "550 5.2.2 user is over quota"},
		{reply: "550 5.1.1 mailbox quota exceeded"},
		{reply: "550 5.1.1 Mailbox is full"},
		{reply: "550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages"},
		{reply: "550 5.2.1 The user is receiving mail too quickly"},
		{reply: "550 5.1.1 rejected by our spam policy"},
		{reply: "550 5.1.1 your host is on a blocklist"},
		{reply: "550 5.1.1 temporarily unavailable, try again"},
		{reply: "550 5.1.2 Bad destination system"},
		{reply: "550 5.1.3 Bad address syntax"},
		{reply: "550 5.4.1 Recipient address rejected: Access denied"},
		{reply: "550 5.0.0 no"},
		{reply: "550 No such user"},
		{reply: "550 4.1.1 no such user"},
		{reply: "450 4.1.1 User unknown"},
		{reply: "450 4.2.1 The user is receiving mail at a rate"},
		{reply: "421 4.7.0 go away"},
		{reply: "552 5.3.4 too big", phase: smtptest.PhaseDot},
		{reply: "550 5.1.1 this sender", phase: smtptest.PhaseMail},
		{reply: "550 5.1.1 that name", phase: smtptest.PhaseHello},
		{reply: "550 5.1.1 nobody is here", phase: smtptest.PhaseBanner},
		{reply: "", phase: smtptest.PhaseRcpt}, // closes
		{reply: "", phase: smtptest.PhaseDot},
	}
	db := pgtest.New(t)
	list := suppression.New(suppression.Config{DB: db.Pool})
	cfg := queuetest.HandConfig(db)
	cfg.Suppressed = list
	q := queuetest.Start(t, cfg)
	zones := &dnstest.Zones{}
	server := smtptest.Start(t, smtptest.Config{Addr: "127.0.0.2:0"})
	zones.AddHost("mx.test", "127.0.0.2")
	of := func(s smtptest.Session, phase smtptest.Phase) smtptest.Action {
		at := phase
		if at == smtptest.PhaseRcpt {
			at = ""
		}
		var to string
		for i, test := range tests {
			if strings.Contains(s.Command+s.Mail, fmt.Sprintf("-%d@", i)) && (test.phase == at || test.phase == phase) {
				to = fmt.Sprintf("to-%d@case%d.test", i, i)
				if test.reply == "" {
					return smtptest.Close()
				}
				return smtptest.Reply(strings.ReplaceAll(test.reply, "%s", to))
			}
		}
		return smtptest.Normal()
	}
	for _, phase := range []smtptest.Phase{smtptest.PhaseMail, smtptest.PhaseRcpt, smtptest.PhaseData, smtptest.PhaseDot} {
		server.On(phase, func(s smtptest.Session) smtptest.Action { return of(s, phase) })
	}
	// Before MAIL a server cannot know whose mail comes: such a case has a host of its own.
	smarthost := smtptest.Start(t, smtptest.Config{})
	smarthost.On(smtptest.PhaseRcpt, smtptest.Always(smtptest.Reply("550 5.1.1 no such user")))
	to := map[string]*upstream.Account{"smarthost.test": upstreamAt(smarthost)}
	e := New(Config{Queue: q, Routes: routes{to: to}, Connect: connect.Config{Hello: "relay.test", DNS: zones.Resolver(), MXPort: server.Port(), AllowPrivateMX: true}})
	e.Start()
	t.Cleanup(func() { stop(t, e) })

	var sent []string
	send := func(from string, rcpts ...string) {
		m := queuetest.Message()
		m.Sender = address(t, from)
		d := queuetest.Put(t, q, m, true, rcpts...)
		sent = append(sent, rcpts...)
		e.Take(d)
	}
	var want []string
	for i, test := range tests {
		domain, rcpt := fmt.Sprintf("case%d.test", i), fmt.Sprintf("to-%d@case%d.test", i, i)
		host := "mx.test."
		if test.phase == smtptest.PhaseBanner || test.phase == smtptest.PhaseHello {
			host = fmt.Sprintf("mx%d.test.", i)
			address := fmt.Sprintf("127.0.3.%d", i+1)
			own := smtptest.Start(t, smtptest.Config{Addr: fmt.Sprintf("%s:%d", address, server.Port())})
			own.On(test.phase, smtptest.Always(smtptest.Reply(test.reply)))
			zones.AddHost(host, address)
		}
		zones.AddMX(domain, 10, host)
		send(fmt.Sprintf("from-%d@sender.test", i), rcpt)
		if test.suppresses {
			want = append(want, rcpt)
		}
	}
	// What Postern says itself, what a smarthost says, and what is said of more than one.
	zones.AddMX("null.test", 0, ".")
	zones.ServFail("trouble.test")
	zones.AddMX("two.test", 10, "mx.test.")
	server.On(smtptest.PhaseData, func(s smtptest.Session) smtptest.Action {
		if strings.Contains(s.Mail, "from-two@") {
			return smtptest.Reply("550 5.1.1 no such user")
		}
		return of(s, smtptest.PhaseData)
	})
	send("from-x@sender.test", "x@null.test")
	send("from-x@sender.test", "x@trouble.test")
	send("from-x@sender.test", "x@none.test")
	send("from-x@sender.test", "x@smarthost.test")
	send("from-two@sender.test", "a@two.test", "b@two.test")
	queuetest.Eventually(t, "the end of each attempt", func() bool {
		var n int
		if err := db.Pool.QueryRow(t.Context(), `select count(distinct (message_id, n)) from history`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == len(sent)
	})
	rows, err := db.Pool.Query(t.Context(), `select address from suppression where user_id = 1 and source = 'bounce' order by address`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	for _, a := range got {
		if !slices.Contains(want, a) {
			t.Errorf("%s is suppressed: %s", a, replyTo(t, db, a))
		}
	}
	for _, a := range want {
		if !slices.Contains(got, a) {
			t.Errorf("%s is not suppressed: %s", a, replyTo(t, db, a))
		}
	}
	var others int
	if err := db.Pool.QueryRow(t.Context(), `select count(*) from suppression where user_id <> 1`).Scan(&others); err != nil || others != 0 {
		t.Errorf("%d entries of others, %v", others, err)
	}
}

// replyTo is the reply that the history has of an address.
func replyTo(t *testing.T, db *pgtest.DB, rcpt string) (reply string) {
	t.Helper()
	err := db.Pool.QueryRow(t.Context(), `select result || ' ' || reply_code || ' ' || reply_enhanced || ' ' || reply_text from history
		where local || '@' || domain = $1 limit 1`, rcpt).Scan(&reply)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// TestSuppressedRecipientFails has a message accepted for a suppressed recipient beside another one:
// nothing is said about it to its mail host.
func TestSuppressedRecipientFails(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "a@one.test", "b@one.test")
	d.Recipients[0].Suppressed = true
	e.Take(d)
	q.wait(t, "both outcomes", func() bool { return len(q.outcomes) == 2 })
	o := q.outcome(t, d, 0)
	if o.Result != queue.Suppressed || o.Reply.Code != 550 || o.RemoteMTA != "" || o.NoMailbox {
		t.Errorf("outcome %+v", o)
	}
	if o := q.outcome(t, d, 1); o.Result != queue.Delivered {
		t.Errorf("the other's outcome %+v", o)
	}
	if got := server.Messages(); len(got) != 1 || len(got[0].To()) != 1 || got[0].To()[0] != "b@one.test" {
		t.Errorf("messages %+v", got)
	}
}
