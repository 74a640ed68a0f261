package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern/relay/queue"
)

var (
	// commitBuckets are for one transaction, in seconds.
	commitBuckets = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
	// groupBuckets are for how many share one, up to the groups of the queue.
	groupBuckets = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}
)

// QueueObserver counts what the queue writes and takes.
func QueueObserver(to prometheus.Registerer) queue.Observer {
	took := newHistograms("postern_commit_seconds", "Seconds that a committed transaction took, by what it writes.", commitBuckets, "work")
	size := newHistograms("postern_commit_size", "Messages, or outcomes for settle, in one committed transaction.", groupBuckets, "work")
	commits := newCounters("postern_commits_total", "Transactions of the queue, by what they write and fate; an unknown one is tried again.", "work", "fate")
	claimTime := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "postern_claim_seconds", Help: "Seconds that a claim of due recipients took.", Buckets: commitBuckets})
	claims := newCounters("postern_claims_total", "Claims of due recipients, by result.", "result")
	claimed := newCounter("postern_claimed_recipients_total", "Recipients that were claimed.")
	to.MustRegister(took, size, commits, claimTime, claims, claimed)

	type series struct {
		took, size prometheus.Observer
		fates      map[queue.Fate]prometheus.Counter
	}
	of := make(map[queue.Work]series)
	for _, work := range []queue.Work{queue.WorkEnqueue, queue.WorkLarge, queue.WorkNotice, queue.WorkSettle} {
		s := series{took.WithLabelValues(string(work)), size.WithLabelValues(string(work)), make(map[queue.Fate]prometheus.Counter)}
		for _, fate := range []queue.Fate{queue.Committed, queue.Undone, queue.InDoubt} {
			s.fates[fate] = commits.WithLabelValues(string(work), string(fate))
		}
		of[work] = s
	}
	some, none, failed := claims.WithLabelValues("some"), claims.WithLabelValues("none"), claims.WithLabelValues("failed")
	return queue.Observer{
		Commit: func(c queue.Commit) {
			s := of[c.Work]
			s.fates[c.Fate].Inc()
			if c.Fate == queue.Committed {
				s.took.Observe(c.Took.Seconds())
				s.size.Observe(float64(c.Items))
			}
		},
		Claim: func(c queue.Claim) {
			claimTime.Observe(c.Took.Seconds())
			claimed.Add(float64(c.Recipients))
			switch {
			case c.Err != nil:
				failed.Inc()
			case c.Messages == 0:
				none.Inc()
			default:
				some.Inc()
			}
		},
	}
}

// QueueStats are the readings of this node's side of the queue.
func QueueStats() []Reading[queue.Stats] {
	return []Reading[queue.Stats]{
		{Name: "postern_node_epoch", Help: "The epoch that this node has and trusts; 0 if none, and then it neither accepts nor delivers.",
			Value: func(s queue.Stats) float64 { return float64(s.Epoch) }},
		{Name: "postern_node_lease_seconds", Help: "Seconds for which this node trusts its lease without another heartbeat.",
			Value: func(s queue.Stats) float64 { return s.LeaseLeft.Seconds() }},
		{Name: "postern_node_epochs_lost_total", Help: "Epochs that this node has lost.", Counter: true,
			Value: func(s queue.Stats) float64 { return float64(s.EpochsLost) }},
		{Name: "postern_database_trouble", Help: "1 while the queue sees the database fail, else 0.",
			Value: func(s queue.Stats) float64 { return Truth(s.Down) }},
		{Name: "postern_database_full", Help: "1 while no mail is accepted because the disk of the database is full, else 0.",
			Value: func(s queue.Stats) float64 { return Truth(s.Full) }},
		{Name: "postern_commits_in_doubt", Help: "Messages whose commit is in doubt and being tried again.",
			Value: func(s queue.Stats) float64 { return float64(s.InDoubt) }},
		{Name: "postern_messages_voiding", Help: "Refused messages that may be in the queue all the same and are being removed.",
			Value: func(s queue.Stats) float64 { return float64(s.Voiding) }},
		{Name: "postern_messages_in_hand", Help: "Messages that this process has in hand.",
			Value: func(s queue.Stats) float64 { return float64(s.InHand) }},
		{Name: "postern_outcomes_unsettled", Help: "Outcomes of attempts not written yet.",
			Value: func(s queue.Stats) float64 { return float64(s.Unsettled) }},
		{Name: "postern_outcomes_fenced_total", Help: "Outcomes that came after their epoch had lost the recipient.", Counter: true,
			Value: func(s queue.Stats) float64 { return float64(s.Fenced) }},
	}
}

// Truth is 1 for true, and else 0.
func Truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
