package admin

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/auth"
	"postern/relay/maillog"
	"postern/relay/smtp"
)

// latencyBuckets reach from an immediate delivery to the days that a queue waits, in seconds.
var latencyBuckets = []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 5 * 24 * 3600}

// attemptBuckets are for one conversation with a server, in seconds.
var attemptBuckets = []float64{0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300}

// MailObserver counts maillog's events. Nothing that somebody else can choose becomes a
// label: unknown words become "other".
func MailObserver(to prometheus.Registerer) maillog.Observer {
	sessions, sent := newSessionCounts(to), newDeliveryCounts(to)
	held := newHoldCounts(to)
	return maillog.Observer{
		Accepted: sessions.accept, Duplicate: sessions.duplicate, Refused: sessions.refuse, Auth: sessions.login, SessionClosed: sessions.end,
		Attempt: sent.attempt, Notice: sent.notice, NoticeLost: sent.lost,
		Held: held.message, LimitNear: held.limitNear, Hold: held.made, Released: held.released,
	}
}

// word is value if it is one of the known words, else "other".
func word(value string, known map[string]bool) string {
	if known[value] {
		return value
	}
	return "other"
}

func words(list string) map[string]bool {
	known := make(map[string]bool)
	for _, w := range strings.Fields(list) {
		known[w] = true
	}
	return known
}

var (
	mechanisms = words(strings.Join(auth.Mechanisms(), " "))
	refusals   = words("credentials busy unavailable malformed cancelled sessions")
	stages     = words("mail rcpt body dot")
	rules      = words("sender header size recipient recipients suppression limit")
	preambles  = words("bom mbox")
	kinds      = words("failure doubt delay success")
	losses     = words("failed expired cancelled")
	policies   = words("none testing dane mta-sts override optional")
	trusts     = words("verified unverified refused clear")
	endings    = words("quit timeout shutdown revoked disconnect disconnect_in_data connection_lost write_failed handshake_failed" +
		" endless_line early_data message_data_not_finished injection http panic")
)

// subjects are what an enhanced code is about (RFC 3463 section 3).
var subjects = [...]string{"other", "address", "mailbox", "system", "network", "protocol", "content", "policy"}

// refusalReason is the policy's word for a refusal, or what its code is about.
func refusalReason(r maillog.Refusal) string {
	if rule, _, _ := strings.Cut(r.Rule, " "); rules[rule] {
		return rule
	}
	if n := r.Reply.Enhanced.Subject; n > 0 && n < len(subjects) {
		return subjects[n]
	}
	return "other"
}

// refusalClass says whether the client may come again.
func refusalClass(r smtp.Reply) string {
	switch {
	case r.IsTemporary():
		return "temporary"
	case r.IsPermanent():
		return "permanent"
	}
	return "none" // the client was gone
}

// sessionCounts are of what clients do.
type sessionCounts struct {
	messages, recipients, octets, duplicates prometheus.Counter
	refused, logins, ended                   *prometheus.CounterVec
	removed                                  *prometheus.CounterVec
}

func newSessionCounts(to prometheus.Registerer) *sessionCounts {
	c := &sessionCounts{
		messages:   newCounter("postern_messages_accepted_total", "Messages that were committed to the queue and answered 250."),
		recipients: newCounter("postern_recipients_accepted_total", "Recipients of the accepted messages."),
		duplicates: newCounter("postern_duplicates_total", "Messages that were not taken again for some recipients or all, since a copy was accepted before."),
		octets:     newCounter("postern_accepted_bytes_total", "Octets of the accepted messages, as stored."),
		refused: newCounters("postern_refusals_total", "MAIL, RCPT and messages that got 4yz or 5yz, by stage of the session, whether the client may try again, and reason.",
			"stage", "class", "reason"),
		logins:  newCounters("postern_auth_total", "AUTH exchanges that ended, by mechanism and result.", "mechanism", "result"),
		ended:   newCounters("postern_sessions_closed_total", "Sessions that ended, by reason.", "reason"),
		removed: newCounters("postern_preambles_removed_total", "Accepted messages from which lines before the header were removed, by kind.", "what"),
	}
	to.MustRegister(c.messages, c.recipients, c.octets, c.duplicates, c.refused, c.logins, c.ended, c.removed)
	for what := range preambles {
		c.removed.WithLabelValues(what)
	}
	for m := range mechanisms {
		c.logins.WithLabelValues(m, "ok")
		c.logins.WithLabelValues(m, "credentials")
	}
	c.ended.WithLabelValues("quit")
	c.refused.WithLabelValues("rcpt", "permanent", "policy")
	return c
}

func (c *sessionCounts) accept(a maillog.Accept) {
	c.messages.Inc()
	c.recipients.Add(float64(a.Recipients))
	c.octets.Add(float64(a.Size))
	for what := range strings.FieldsSeq(a.Removed) {
		c.removed.WithLabelValues(word(what, preambles)).Inc()
	}
}

func (c *sessionCounts) duplicate(maillog.DuplicateEvent) { c.duplicates.Inc() }

func (c *sessionCounts) refuse(r maillog.Refusal) {
	c.refused.WithLabelValues(word(string(r.Stage), stages), refusalClass(r.Reply), refusalReason(r)).Inc()
}

func (c *sessionCounts) login(a maillog.AuthEvent) {
	result := "ok"
	if !a.OK {
		result = word(a.Reason, refusals)
	}
	c.logins.WithLabelValues(word(strings.ToUpper(a.Mechanism), mechanisms), result).Inc()
}

func (c *sessionCounts) end(s maillog.Session) {
	c.ended.WithLabelValues(word(strings.ReplaceAll(s.Reason, " ", "_"), endings)).Inc()
}

// The classes of destinations.
const (
	viaUpstream = "upstream"
	viaMX       = "mx"
)

// deliveryCounts count how servers answer. The counters that every delivery adds to are
// found without a look-up.
type deliveryCounts struct {
	attempts   *prometheus.CounterVec
	byOutcome  map[outcomeKey]prometheus.Counter
	noRoute    prometheus.Counter
	latency    map[string]prometheus.Observer // by class
	took       map[string]prometheus.Observer
	duplicates prometheus.Counter
	sessions   *prometheus.CounterVec
	notices    *prometheus.CounterVec
	losses     *prometheus.CounterVec
}

type outcomeKey struct{ outcome, via string }

func newDeliveryCounts(to prometheus.Registerer) *deliveryCounts {
	latency := newHistograms("postern_delivery_latency_seconds", "Seconds from the acceptance of a message to the delivery to a recipient, by class of destination.", latencyBuckets, "via")
	took := newHistograms("postern_attempt_seconds", "Seconds that a delivery attempt took over its connection, by class of destination; an attempt that found none is 0.", attemptBuckets, "via")
	c := &deliveryCounts{
		attempts:   newCounters("postern_attempts_total", "Delivery attempts for one recipient that ended, by outcome and class of destination.", "outcome", "via"),
		noRoute:    newCounter("postern_unroutable_total", "Recipients deferred, without an attempt, because no route to them was known."),
		duplicates: newCounter("postern_possible_duplicates_total", "Attempts that ended after the final dot without a complete reply: the next one may deliver a second copy."),
		sessions:   newCounters("postern_mx_attempts_total", "Delivery attempts for one recipient at a mail host of its domain, by where the policy for TLS came from, and what the session was.", "policy", "session"),
		notices:    newCounters("postern_notices_total", "Notices to senders that were due, by kind and whether one was sent.", "kind", "sent"),
		losses:     newCounters("postern_notices_lost_total", "Notices to senders that ended undelivered, by reason.", "reason"),
		byOutcome:  make(map[outcomeKey]prometheus.Counter), latency: make(map[string]prometheus.Observer), took: make(map[string]prometheus.Observer),
	}
	to.MustRegister(latency, took, c.attempts, c.noRoute, c.duplicates, c.sessions, c.notices, c.losses)
	for _, via := range []string{viaUpstream, viaMX} {
		c.latency[via], c.took[via] = latency.WithLabelValues(via), took.WithLabelValues(via)
		for _, outcome := range []string{"delivered", "deferred", "failed"} {
			c.byOutcome[outcomeKey{outcome, via}] = c.attempts.WithLabelValues(outcome, via)
		}
	}
	for policy := range policies {
		c.sessions.WithLabelValues(policy, "verified")
		c.sessions.WithLabelValues(policy, "refused")
	}
	for kind := range kinds {
		c.notices.WithLabelValues(kind, "yes")
	}
	for loss := range losses {
		c.losses.WithLabelValues(loss)
	}
	return c
}

func (c *deliveryCounts) attempt(a maillog.AttemptEnd) {
	if a.NotAnAttempt {
		c.noRoute.Inc()
		return
	}
	if a.Result == "suppressed" { // counted at RCPT
		return
	}
	key := outcomeKey{"deferred", viaUpstream} // as in the log, an unknown result is a deferral
	if a.Result == "delivered" || a.Result == "failed" {
		key.outcome = a.Result
	}
	if a.Upstream == viaMX { // no upstream may have this name
		key.via = viaMX
		c.session(a)
	}
	c.byOutcome[key].Inc()
	c.took[key.via].Observe(seconds(a.Elapsed))
	if a.OutcomeUnknown {
		c.duplicates.Inc()
	}
	if key.outcome == "delivered" {
		c.latency[key.via].Observe(seconds(a.Age))
	}
}

// session counts what the session with a mail host was; its facts are those of connect.Conn.
func (c *deliveryCounts) session(a maillog.AttemptEnd) {
	facts := strings.Fields(a.TLS)
	switch {
	case len(facts) > 3:
		c.sessions.WithLabelValues(word(facts[3], policies), word(facts[2], trusts)).Inc()
	case a.RemoteIP.IsValid():
		c.sessions.WithLabelValues("none", "clear").Inc()
	}
}

func (c *deliveryCounts) notice(n maillog.NoticeEvent) {
	sent := "yes"
	if n.Suppressed != "" {
		sent = "no"
	}
	c.notices.WithLabelValues(word(n.Kind, kinds), sent).Inc()
}

func (c *deliveryCounts) lost(n maillog.LostNoticeEvent) {
	c.losses.WithLabelValues(word(n.Reason, losses)).Inc()
}

// holdCounts are of limits and of holds.
type holdCounts struct {
	messages, near, ended prometheus.Counter
	begun                 *prometheus.CounterVec
}

func newHoldCounts(to prometheus.Registerer) *holdCounts {
	c := &holdCounts{
		messages: newCounter("postern_messages_held_total", "Accepted messages that wait for an admin because of a hold."),
		near:     newCounter("postern_limits_near_total", "Times that the use of a limit reached four fifths."),
		begun:    newCounters("postern_holds_begun_total", "Holds on the mail of a user or credential that began, as every node sees them, by maker.", "by"),
		ended:    newCounter("postern_holds_ended_total", "Holds that ended, as every node sees them."),
	}
	to.MustRegister(c.messages, c.near, c.begun, c.ended)
	c.begun.WithLabelValues("anomaly")
	c.begun.WithLabelValues("admin")
	return c
}

func (c *holdCounts) message(maillog.HeldEvent)    { c.messages.Inc() }
func (c *holdCounts) limitNear(maillog.LimitEvent) { c.near.Inc() }
func (c *holdCounts) released(maillog.HoldEvent)   { c.ended.Inc() }

func (c *holdCounts) made(h maillog.HoldEvent) {
	by := "admin"
	if h.ByAnomaly {
		by = "anomaly"
	}
	c.begun.WithLabelValues(by).Inc()
}

// seconds is d as metrics have it, never below 0: clocks differ.
func seconds(d time.Duration) float64 { return max(0, d.Seconds()) }

func newCounter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func newCounters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func newHistograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}
