package bounce

import (
	"net/netip"
	"strings"

	"postern/relay/queue"
	"postern/relay/smtp"
)

// told is what a notice says of the last reply.
type told struct {
	reply    smtp.Reply
	byServer bool   // a server gave it; else the relay did
	host     string // that server; "": not to be named
}

// unavailable is what a sender hears in place of the relay's own words about an upstream: its name,
// address and state are for admins, who have them in the trace and the log.
const unavailable = "the relay's way on was not available"

// told leaves out what is inside: what the relay says of an upstream, and the address of one. A
// server's own words are told.
func (r *report) told(rcpt *queue.NoticeRecipient) told {
	t := told{reply: rcpt.Reply, host: rcpt.RemoteMTA, byServer: rcpt.RemoteMTA != ""}
	if rcpt.Upstream && isInside(t.host) {
		t.reply.Text, t.host = strings.ReplaceAll(t.reply.Text, "(said by "+t.host+")", "(said by the next server)"), ""
	}
	expired := r.notice.Kind != queue.NoticeDelay && t.reply.Enhanced == smtp.EnhancedCode{Class: 4, Subject: 4, Detail: 7}
	brokeOff := t.reply.Enhanced == smtp.EnhancedCode{Class: 4, Subject: 4, Detail: 2}
	switch quoted := t.byServer; {
	case expired && quoted:
		t.byServer = false
	case quoted, t.reply.IsPermanent(): // a server's, or about what the message needs
	case expired && rcpt.Upstream:
		end, _, _ := strings.Cut(t.reply.Text, ", last reply: ")
		t.reply.Text = end + ": " + unavailable
	case rcpt.Upstream && !brokeOff:
		t.reply.Text = unavailable
	default:
		t.reply.Text = withoutWays(t.reply.Text)
	}
	return t
}

// withoutWays cuts off the ways that were left, which stand behind the relay's own words.
func withoutWays(text string) string {
	const doubt = "; it may have been delivered"
	words, rest, _ := strings.Cut(text, "; ")
	if strings.HasPrefix("; "+rest, doubt) {
		words += doubt
	}
	return words
}

// isInside reports an upstream's host that says something only in the relay's own network: an
// address, or a name of one label.
func isInside(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || !strings.Contains(strings.TrimSuffix(host, "."), ".")
}
