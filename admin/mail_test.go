package admin

import (
	"context"
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/admin/health"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// feed tells an observer of each kind of event, with text wherever text can be.
func feed(o maillog.Observer, text string) {
	to := smtp.Address{Local: text, Domain: text}
	o.Accepted(maillog.Accept{ID: text, User: text, Sender: to, Recipients: 2, Size: 100, MessageID: text, Hello: text, TLS: text, Rule: text, Removed: text})
	o.Held(maillog.HeldEvent{ID: text, User: text, Sender: to})
	for _, reply := range []smtp.Reply{{}, smtp.Temporary(451, 3, 0, text), smtp.Permanent(550, 99, 99, text), {Code: 999, Text: text}} {
		o.Refused(maillog.Refusal{ID: text, User: text, Sender: to, Recipient: to, Stage: smtp.Stage(text), Reply: reply, Rule: text})
	}
	o.Attempt(maillog.AttemptEnd{ID: text, Recipient: to, Result: text, Upstream: text, RemoteMTA: text, TLS: text, Elapsed: time.Second, Age: time.Minute})
	o.Notice(maillog.NoticeEvent{ID: text, About: text, Kind: text, To: to, Suppressed: text})
	o.NoticeLost(maillog.LostNoticeEvent{ID: text, About: text, Kind: text, To: to, Reply: smtp.Permanent(550, 1, 1, text), Reason: text})
	o.Auth(maillog.AuthEvent{User: text, Mechanism: text, Listener: text, TLS: text, Reason: text, Rule: text})
	o.SessionClosed(maillog.Session{Listener: text, Hello: text, TLS: text, User: text, Reason: text})
	o.LimitNear(maillog.LimitEvent{User: text, Credential: text, Limit: text})
	o.Hold(maillog.HoldEvent{User: text, Credential: text, Reason: text})
	o.Released(maillog.HoldEvent{User: text, Credential: text, Reason: text})
}

// count is how many series a registry has.
func count(t *testing.T, r *prometheus.Registry) (n int) {
	t.Helper()
	list, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range list {
		n += len(family.GetMetric())
	}
	return n
}

// Whatever clients and servers say, there are no more series.
func TestSeriesAreBounded(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	o := MailObserver(r)
	feed(o, "x")
	before := count(t, r)
	for i := range 2000 {
		feed(o, strings.Repeat("y", i%300)+string(rune(i))+"\x00\xff\n{evil=\"1\"}")
	}
	if after := count(t, r); after != before {
		t.Errorf("%d series, %d before the flood", after, before)
	}
	if before > 60 {
		t.Errorf("%d series", before)
	}
}

// Everything that is known together is bounded as well.
func TestEverySeriesThereCanBe(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	o := MailObserver(r)
	for stage := range stages {
		for rule := range rules {
			for subject := range subjects {
				o.Refused(maillog.Refusal{Stage: smtp.Stage(stage), Rule: rule + " user", Reply: smtp.Temporary(450, subject, 0, "")})
				o.Refused(maillog.Refusal{Stage: smtp.Stage(stage), Reply: smtp.Permanent(550, subject, 0, "")})
			}
		}
	}
	for reason := range refusals {
		for mechanism := range mechanisms {
			o.Auth(maillog.AuthEvent{Mechanism: mechanism, Reason: reason})
		}
	}
	for reason := range endings {
		o.SessionClosed(maillog.Session{Reason: reason})
	}
	if n := count(t, r); n > 300 {
		t.Errorf("%d series", n)
	}
}

// The page has every word that a label can be, and no others.
func TestDocumentedWords(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	reasons := maps.Clone(rules)
	for _, subject := range subjects[1:] {
		reasons[subject] = true
	}
	logins := maps.Clone(refusals)
	logins["ok"] = true
	for row, want := range map[string]map[string]bool{
		"`stage` of a refusal": stages, "`reason` of a refusal": reasons, "`reason` of a session's end": endings,
		"`what` was removed": preambles,
		"`mechanism`":        mechanisms, "`result` of a login": logins, "`kind`, `sent` of a notice": words("failure doubt delay success yes no"),
		"`reason` of a lost notice": losses,
	} {
		_, values, found := strings.Cut(string(page), "\n| "+row+" | ")
		values, _, _ = strings.Cut(values, "\n")
		said := make(map[string]bool)
		for _, m := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(values, -1) {
			said[m[1]] = true
		}
		if !found || !maps.Equal(said, want) {
			t.Errorf("docs/metrics.md has %v for %s, want %v", said, row, want)
		}
	}
}

func TestMailObserver(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	o := MailObserver(r)
	o.Accepted(maillog.Accept{Recipients: 3, Size: 1000})
	o.Accepted(maillog.Accept{Recipients: 1, Size: 24, Removed: "bom mbox"})
	o.Held(maillog.HeldEvent{})
	o.Refused(maillog.Refusal{Stage: smtp.StageMail, Reply: smtp.Permanent(550, 7, 1, "no"), Rule: "sender none"})
	o.Refused(maillog.Refusal{Stage: smtp.StageDot, Reply: smtp.Temporary(452, 7, 1, "later"), Rule: "limit messages 100/h user"})
	o.Refused(maillog.Refusal{Stage: smtp.StageDot, Reply: smtp.Temporary(451, 3, 0, "later")})
	o.Refused(maillog.Refusal{Stage: smtp.StageBody})
	o.Auth(maillog.AuthEvent{Mechanism: "plain", OK: true})
	o.Auth(maillog.AuthEvent{Mechanism: "LOGIN", Reason: "credentials"})
	o.Auth(maillog.AuthEvent{Mechanism: "CRAM-MD5", Reason: "malformed"})
	o.SessionClosed(maillog.Session{Reason: "disconnect in data"})
	o.Attempt(maillog.AttemptEnd{Result: "delivered", Upstream: "mx", TLS: "TLS1.3 TLS_AES_128_GCM_SHA256 verified dane mx.example.com 2027-02-01", Elapsed: 20 * time.Millisecond, Age: 2 * time.Second})
	o.Attempt(maillog.AttemptEnd{Result: "delivered", Upstream: "out", Age: -time.Second})
	o.Attempt(maillog.AttemptEnd{Result: "failed", Upstream: "out"})
	o.Attempt(maillog.AttemptEnd{Result: "deferred", Upstream: "mx", TLS: "- - clear testing", OutcomeUnknown: true})
	o.Attempt(maillog.AttemptEnd{Result: "deferred", NotAnAttempt: true})
	o.Notice(maillog.NoticeEvent{Kind: "failure"})
	o.Notice(maillog.NoticeEvent{Kind: "failure", Suppressed: "null sender"})
	o.NoticeLost(maillog.LostNoticeEvent{Reason: "failed"})
	o.LimitNear(maillog.LimitEvent{})
	o.Hold(maillog.HoldEvent{ByAnomaly: true})
	o.Hold(maillog.HoldEvent{})
	o.Released(maillog.HoldEvent{})
	page := text(t, r)
	for _, want := range []string{
		"postern_messages_accepted_total 2", "postern_recipients_accepted_total 4", "postern_accepted_bytes_total 1024",
		`postern_preambles_removed_total{what="bom"} 1`, `postern_preambles_removed_total{what="mbox"} 1`, "postern_messages_held_total 1",
		`postern_refusals_total{class="permanent",reason="sender",stage="mail"} 1`, `postern_refusals_total{class="temporary",reason="limit",stage="dot"} 1`,
		`postern_refusals_total{class="temporary",reason="system",stage="dot"} 1`, `postern_refusals_total{class="none",reason="other",stage="body"} 1`,
		`postern_auth_total{mechanism="PLAIN",result="ok"} 1`, `postern_auth_total{mechanism="LOGIN",result="credentials"} 1`,
		`postern_auth_total{mechanism="other",result="malformed"} 1`, `postern_sessions_closed_total{reason="disconnect_in_data"} 1`,
		`postern_attempts_total{outcome="delivered",via="mx"} 1`, `postern_attempts_total{outcome="delivered",via="upstream"} 1`,
		`postern_attempts_total{outcome="failed",via="upstream"} 1`, `postern_attempts_total{outcome="deferred",via="mx"} 1`,
		`postern_mx_attempts_total{policy="dane",session="verified"} 1`, `postern_mx_attempts_total{policy="mta-sts",session="refused"} 0`,
		`postern_mx_attempts_total{policy="testing",session="clear"} 1`,
		`postern_attempts_total{outcome="deferred",via="upstream"} 0`, "postern_unroutable_total 1", "postern_possible_duplicates_total 1",
		`postern_delivery_latency_seconds_sum{via="mx"} 2`, `postern_delivery_latency_seconds_count{via="upstream"} 1`,
		`postern_delivery_latency_seconds_sum{via="upstream"} 0`, `postern_attempt_seconds_bucket{via="mx",le="0.05"} 2`,
		`postern_notices_total{kind="failure",sent="yes"} 1`, `postern_notices_total{kind="failure",sent="no"} 1`,
		`postern_notices_lost_total{reason="failed"} 1`, `postern_notices_lost_total{reason="cancelled"} 0`,
		"postern_limits_near_total 1", `postern_holds_begun_total{by="anomaly"} 1`, `postern_holds_begun_total{by="admin"} 1`, "postern_holds_ended_total 1",
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestQueueObserver(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	o := QueueObserver(r)
	o.Commit(queue.Commit{Work: queue.WorkEnqueue, Items: 5, Took: 3 * time.Millisecond, Fate: queue.Committed})
	o.Commit(queue.Commit{Work: queue.WorkEnqueue, Items: 2, Took: time.Minute, Fate: queue.InDoubt})
	o.Commit(queue.Commit{Work: queue.WorkSettle, Items: 9, Took: time.Millisecond, Fate: queue.Undone})
	o.Claim(queue.Claim{Messages: 2, Recipients: 3, Took: time.Millisecond})
	o.Claim(queue.Claim{Took: time.Millisecond})
	o.Claim(queue.Claim{Err: context.Canceled})
	page := text(t, r)
	for _, want := range []string{
		`postern_commit_seconds_bucket{work="enqueue",le="0.005"} 1`, `postern_commit_seconds_count{work="enqueue"} 1`,
		`postern_commit_size_sum{work="enqueue"} 5`, `postern_commits_total{fate="committed",work="enqueue"} 1`,
		`postern_commits_total{fate="unknown",work="enqueue"} 1`, `postern_commits_total{fate="failed",work="settle"} 1`,
		"postern_claimed_recipients_total 3", `postern_claims_total{result="some"} 1`, `postern_claims_total{result="none"} 1`, `postern_claims_total{result="failed"} 1`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// What every message and every commit counts takes no memory.
func TestCountingAllocatesNothing(t *testing.T) {
	r := prometheus.NewRegistry()
	mail, work := MailObserver(r), QueueObserver(r)
	accept, attempt := maillog.Accept{User: "alice", Recipients: 1, Size: 5000}, maillog.AttemptEnd{Result: "delivered", Upstream: "out", Age: time.Second}
	commit := queue.Commit{Work: queue.WorkSettle, Items: 12, Took: time.Millisecond, Fate: queue.Committed}
	for name, f := range map[string]func(){
		"accepted": func() { mail.Accepted(accept) }, "attempt": func() { mail.Attempt(attempt) },
		"commit": func() { work.Commit(commit) }, "claim": func() { work.Claim(queue.Claim{Messages: 1}) },
	} {
		if n := testing.AllocsPerRun(1000, f); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkMailObserver(b *testing.B) {
	o := MailObserver(prometheus.NewRegistry())
	accept, attempt := maillog.Accept{User: "alice", Recipients: 1, Size: 5000}, maillog.AttemptEnd{Result: "delivered", Upstream: "out", Age: time.Second}
	b.ReportAllocs()
	for b.Loop() {
		o.Accepted(accept)
		o.Attempt(attempt)
	}
}

// The names and helps follow Prometheus' own rules.
func TestLint(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	MailObserver(r)
	QueueObserver(r)
	Register(r, nil, func() queue.Stats { return queue.Stats{} }, QueueStats())
	RegisterCertificates(r, func() []health.Certificate { return []health.Certificate{{Name: "relay.test"}, {Name: "relay.test"}} })
	problems, err := testutil.GatherAndLint(r)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
