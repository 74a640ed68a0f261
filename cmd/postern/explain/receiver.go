package explain

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"postern/cmd/postern/receiver"
	"postern/cmd/postern/screen"
	"postern/relay/dkim/keys"
	"postern/relay/route"
)

// receiverTime bounds what is asked of DNS.
const receiverTime = 5 * time.Second

// reception is how a receiver finds the message that comes by a way.
type reception struct {
	Via      string             `json:"via"`
	Findings []receiver.Finding `json:"findings"`
}

// received asks how the message is found that goes by each of the ways to MX, or is signed by us.
func (e *Message) received(ctx context.Context, r Relay, q Question, ways []route.Way) error {
	author := cmp.Or(q.HeaderFrom, q.From)
	if author.IsNull() || strings.HasPrefix(author.Domain, "[") || len(ways) == 0 {
		return nil
	}
	list, err := keys.List(ctx, r.Pool, "")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, receiverTime)
	defer cancel()
	for _, way := range ways {
		mode, m := r.Signs, receiver.Mail{Author: author.DomainKey(), Upstream: way.Upstream != nil}
		if !q.From.IsNull() {
			m.Sender = q.From.DomainKey()
		}
		if up := way.Upstream; up != nil {
			mode = up.DKIM
			if !up.SendsAs.IsNull() {
				m.Author, m.Sender = up.SendsAs.DomainKey(), up.SendsAs.DomainKey()
			}
		} else {
			m.Addrs, _ = r.Receiver.Addresses(ctx) // without an answer they are not known
		}
		m.Signatures = receiver.Signatures(list, m.Author, mode)
		if m.Upstream && len(m.Signatures) == 0 {
			continue // what a receiver goes by is the upstream's
		}
		found := r.Receiver.Judge(ctx, m)
		for _, addr := range m.Addrs {
			found = append(found, r.Receiver.PTR(ctx, addr))
		}
		e.Receivers = append(e.Receivers, reception{way.Name, found})
	}
	return nil
}

// printReceivers prints what they find, and the records that help.
func (e *Message) printReceivers(to io.Writer) error {
	for _, r := range e.Receivers {
		t := screen.Table{Head: []string{"CHECK", "OF", "RESULT", "ALIGNED", "WHY"}, Wraps: true}
		var publish []receiver.Finding
		for _, f := range r.Findings {
			alignment := "-"
			if f.Check == "DKIM" || f.Check == "SPF" {
				alignment = map[bool]string{true: "yes", false: "no"}[f.Aligned]
			}
			t.Add(f.Check, f.Of, f.Result, alignment, f.Why)
			if f.Publish != "" && !slices.ContainsFunc(publish, func(p receiver.Finding) bool { return p.Publish == f.Publish }) {
				publish = append(publish, f)
			}
		}
		fmt.Fprintf(to, "\nby %s:\n", r.Via)
		if err := t.Print(to); err != nil {
			return err
		}
		for _, f := range publish {
			place := ""
			if f.Check == "SPF" && f.Result != receiver.None {
				place = " in place of the present record"
			}
			fmt.Fprintf(to, "to publish%s:\n%s\n", place, screen.Printable(f.Publish))
		}
	}
	return nil
}
