// Package route holds the rules that choose the ways of a recipient: upstream accounts
// (relay/upstream), MX, or upstreams and then MX. The first rule that matches decides; the
// default route, which matches everything, is always the last.
//
// A route is resolved at each attempt, so correcting it corrects queued mail.
package route

import (
	"context"
	"errors"

	"postern/relay/smtp"
	"postern/relay/upstream"
)

// Decision is where a recipient may go. Its ways are shared by all who ask: read only.
type Decision struct {
	Route int64 // the rule's number, for traces
	Ways  []Way // in the order in which they are to be tried, at least one
}

// Way is one way out: an upstream, or MX.
type Way struct {
	Name     string            // the upstream's, or MX
	Upstream *upstream.Account // nil: MX
	Err      error             // why it cannot be used now: paused, gone, not for this sender, or its secret cannot be opened
}

// MX is the Name of the way to a domain's own mail hosts, as Outcome.Upstream has it.
const MX = "mx"

// First is the first way that can be used. If none can it is why the first one cannot that may
// send as the sender.
func (d Decision) First() (Way, error) {
	err := d.Ways[0].Err
	for _, w := range d.Ways {
		if w.Err == nil {
			return w, nil
		}
		if upstream.IsSender(err) {
			err = w.Err
		}
	}
	return Way{}, err
}

// ErrNoRoute says that no rule matched: the mail waits until one is added.
var ErrNoRoute = errors.New("no route: add one with 'postern route add'")

// Resolver finds the way for one recipient.
type Resolver interface {
	Resolve(ctx context.Context, userID int64, sender, recipient smtp.Address) (Decision, error)
	// Named returns a way by its name, whatever the rules are.
	Named(ctx context.Context, name string) (Way, error)
}
