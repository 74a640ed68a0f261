package delivery

import (
	"net/netip"
	"time"

	"postern/relay/queue"
	"postern/relay/smtp"
)

// trouble is why no conversation with a destination could be had. It concerns the
// destination and all that waits for it.
type trouble struct {
	reply     smtp.Reply // the server's, or one made up
	permanent bool       // the recipients fail: there is no such domain, or it takes no mail
	err       error      // the cause, for the log
	host      string     // the host that was talked to, "" if none
	addr      netip.AddrPort
	tls       string
	greeted   bool // EHLO was answered
}

// outcome is what t means for one recipient, whose destination is left alone for
// away.
func (t *trouble) outcome(d *destination, j *job, rcpt *queue.Recipient, away time.Duration) queue.Outcome {
	now := time.Now()
	o := queue.Outcome{
		Message: j.Message.ID, N: rcpt.N, Recipient: rcpt.Address, Epoch: j.Epoch,
		Result: queue.Deferred, Reply: t.reply,
		RemoteMTA: t.host, RemoteIP: t.addr, TLS: t.tls, Upstream: d.via,
		StartedAt: now, At: now,
	}
	if t.permanent {
		o.Result = queue.Failed
		return o
	}
	o.Suspended = true
	o.RetryIn = max(away, retryWait(d.e.cfg.Schedule, rcpt.Attempts, j.Message.ID))
	return o
}

// outranks reports that t says more than other about why a destination cannot be
// had: a server's word is worth more than silence.
func (t *trouble) outranks(other *trouble) bool {
	return other == nil || other.permanent || !t.permanent && t.addr.IsValid() && !other.addr.IsValid()
}
