// Package route holds the rules that choose the way of a recipient: an upstream account
// (relay/upstream) or MX.
//
// A route is resolved at each attempt, so correcting it corrects queued mail.
package route

import (
	"context"
	"errors"

	"postern/relay/smtp"
	"postern/relay/upstream"
)

// Decision is where a recipient goes: to an upstream or, when it is nil, to MX.
type Decision struct {
	Route    int64 // the rule's number, for traces
	Upstream *upstream.Account
}

// ErrNoRoute says that no rule matched: the mail waits until one is added.
var ErrNoRoute = errors.New("no route: add one with 'postern route add'")

// Resolver finds the way for one recipient.
type Resolver interface {
	Resolve(ctx context.Context, userID int64, sender, recipient smtp.Address) (Decision, error)
}
