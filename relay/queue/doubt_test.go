package queue

import (
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/smtp"
)

// policies gives user 1 and the upstream "out" their policies of mail in doubt; "" is none.
func policies(t *testing.T, db *pgtest.DB, user, way string) {
	t.Helper()
	exec(t, db, `insert into app_user (id, name, in_doubt) overriding system value values (1, 'alice@example.com', $1)`, user)
	exec(t, db, `insert into upstream (name, host, port, tls, in_doubt) values ('out', 'h', 25, 'none', $1)`, way)
}

// doubts describes the recipients of a message: state, doubt, held or not, and whether it is due
// now or in the wait of mail in doubt.
const doubts = `select coalesce(string_agg(concat_ws(' ', n, state, doubt, case when held_at is not null then 'held' end,
	case when state = 'waiting' and held_at is null then case when next_attempt_at <= now() then 'due' when next_attempt_at > now() + interval '14 minutes' then 'later' else 'soon' end end,
	case when possible_duplicate then 'duplicate' end), ';' order by n), '') from recipient where message_id = $1`

// unknownEnd is the end of an attempt whose reply was lost.
func unknownEnd(d *Delivery, n int) Outcome {
	o := outcome(d, n, Deferred)
	o.Reply, o.Upstream, o.Unknown, o.RetryIn, o.StaysWith = smtp.Temporary(451, 4, 2, "lost"), "out", true, DoubtWait, "out"
	return o
}

// A lost reply is answered by the policy of the user, else of the way, else by a retry; who cannot be
// told is held instead.
func TestDoubtPolicy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ user, way, want, never string }{
		{"", "", "retry later", "retry later"},
		{"", "hold", "hold held", "hold held"},
		{"", "notice", "notice", "hold held"},
		{"retry", "notice", "retry later", "retry later"},
		{"hold", "notice", "hold held", "hold held"},
		{"notice", "retry", "notice", "hold held"},
	} {
		db := pgtest.New(t)
		policies(t, db, c.user, c.way)
		q := start(t, calmConfig(db))
		m, d := put(t, q, true, "a@example.net", "b@example.net")
		exec(t, db, `update recipient set tell = 0 where n = 1`)
		q.Settle(unknownEnd(d, 0), unknownEnd(d, 1))
		state := "waiting"
		if c.want == "notice" {
			state = "failed"
		}
		want := "0 " + state + " " + c.want + " duplicate;1 waiting " + c.never + " duplicate"
		eventually(t, want, func() bool { return read(t, db, doubts, m.ID) == want })
		if got := read(t, db, `select coalesce(string_agg(result || ' ' || outcome_unknown, ';' order by n), '') from history`); got != map[bool]string{true: "failed true;deferred true", false: "deferred true;deferred true"}[state == "failed"] {
			t.Errorf("%+v: history %q", c, got)
		}
	}
}

// The gate's record of a dead node is in doubt: tried again immediately under the local gate, unless
// the policy says otherwise. Without a record it is tried again.
func TestDoubtOfADeadNode(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		for policy, want := range map[string]string{
			"retry":  map[bool]string{false: "0 waiting retry due duplicate", true: "0 waiting retry later duplicate"}[strict],
			"hold":   "0 waiting hold held duplicate",
			"notice": "0 failed notice duplicate",
		} {
			db := pgtest.New(t)
			policies(t, db, "", policy)
			cfg := handConfig(db, "a")
			cfg.StrictGate = strict
			clock := &fakeClock{}
			q, other := start(t, cfg), start(t, handConfig(db, "b"), withClock(clock))
			m, d := put(t, q, true, "a@example.net", "b@example.net")
			if err := q.Gate(ctxOf(t), d, []int{0}, "out"); err != nil {
				t.Fatal(err)
			}
			die(t, db, d.Epoch, other, clock)
			want += map[bool]string{false: ";1 waiting due duplicate", true: ";1 waiting due"}[strict]
			if got := read(t, db, doubts, m.ID); got != want {
				t.Errorf("strict %v, %s: %q, want %q", strict, policy, got, want)
			}
			// The outcome comes after all: it is recorded, and changes nothing.
			q.Settle(unknownEnd(d, 0))
			eventually(t, "the fenced outcome", func() bool { return count(t, db, `select count(*) from history where fenced`) == 1 })
			if got := read(t, db, doubts, m.ID); got != want {
				t.Errorf("strict %v, %s: %q after the outcome, want %q", strict, policy, got, want)
			}
		}
	}
}

// A node that ends, or has lost track of a row, treats it as a reap does.
func TestDoubtHandedBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	policies(t, db, "hold", "")
	cfg := handConfig(db, "a")
	cfg.StrictGate = true
	q := start(t, cfg)
	m, d := put(t, q, true, "a@example.net", "b@example.net")
	if err := q.Gate(ctxOf(t), d, []int{0}, "out"); err != nil {
		t.Fatal(err)
	}
	if err := q.sweeps.handBack(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, db, doubts, m.ID); got != "0 waiting hold held duplicate;1 waiting due" {
		t.Errorf("%q", got)
	}
}

// The doubt ends with a complete refusal, and outlives another trouble, a release and the lifetime,
// whose notice says so. Held mail has no end of its lifetime.
func TestDoubtEnds(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	policies(t, db, "", "")
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "0@example.net", "1@example.net", "2@example.net", "3@example.net", "4@example.net")
	for n := range 4 {
		q.Settle(unknownEnd(d, n))
	}
	eventually(t, "all in doubt", func() bool {
		return count(t, db, `select count(*) from recipient where doubt = 'retry' and owner is null`) == 4
	})
	exec(t, db, `update recipient set next_attempt_at = now() where owner is null`)
	d2 := claimAll(t, q, all)[0]
	exec(t, db, `update recipient set expires_at = now() where n in (2, 4)`)
	exec(t, db, `update app_user set in_doubt = 'hold'`)
	refused, later, late := outcome(d2, 0, Failed), outcome(d2, 1, Deferred), outcome(d2, 2, Deferred)
	for _, o := range []*Outcome{&refused, &later, &late} {
		o.StaysWith, o.Upstream, o.RetryIn = "out", "out", time.Hour
	}
	q.Settle(refused, later, late)
	q.Release(d2, []int{3}, 0)
	q.Settle(unknownEnd(d, 4)) // its lifetime is over, and it is held all the same
	want := "0 failed duplicate;1 waiting retry later duplicate;2 failed retry duplicate;3 waiting retry due duplicate;4 waiting hold held duplicate"
	eventually(t, want, func() bool { return read(t, db, doubts, m.ID) == want })

	// The failure and the doubt are two notices.
	exec(t, db, `update recipient set notice_at = now() where state = 'failed'`)
	notices, err := q.ClaimNotices(ctxOf(t), 10)
	if err != nil || len(notices) != 2 {
		t.Fatalf("%d notices, %v", len(notices), err)
	}
	kinds := map[NoticeKind]int{notices[0].Kind: notices[0].Recipients[0].N, notices[1].Kind: notices[1].Recipients[0].N}
	if kinds[NoticeFailure] != 0 || kinds[NoticeDoubt] != 2 || len(kinds) != 2 {
		t.Errorf("notices %v", kinds)
	}
	for _, n := range notices {
		told := Message{ID: NewID(), AcceptedAt: time.Now(), Listener: "notice"}
		if err := q.EnqueueNotice(ctxOf(t), n, told, Recipient{Address: n.Message.Sender, Notify: smtp.NotifyNever}, []byte("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, db, `select string_agg(kind, ' ' order by kind) from notice`); got != "doubt failure" {
		t.Errorf("notices %q", got)
	}
	if got := count(t, db, `select count(*) from recipient where message_id = $1 and n in (0, 2)`, m.ID); got != 0 {
		t.Errorf("%d told recipients are left", got)
	}
	if _, err := q.Claim(ctxOf(t), all); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, `select count(*) from recipient where held_at is not null and owner is not null`); got != 0 {
		t.Error("held mail was claimed")
	}
}
