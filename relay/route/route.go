// Package route holds the upstream accounts and the rules that choose among them
// and direct delivery to MX.
//
// A route is resolved at each attempt, so correcting it corrects queued mail.
package route

import (
	"context"
	"errors"

	"postern/relay/smtp"
)

// TLSMode says how a connection to an upstream is protected.
type TLSMode string

const (
	TLSNone          TLSMode = "none"          // never
	TLSOpportunistic TLSMode = "opportunistic" // STARTTLS when offered, certificate not verified
	TLSRequire       TLSMode = "require"       // STARTTLS, certificate verified
	TLSImplicit      TLSMode = "implicit"      // TLS from the first octet, certificate verified
)

// Upstream is a smarthost account.
type Upstream struct {
	Name           string
	Host           string // DNS name or IP address
	Port           int
	TLS            TLSMode
	Username       string // "" for none
	Password       string // opened; "" for none
	CA             string // PEM of the authorities to trust instead of the system's; "" for those
	MaxConnections int    // concurrent ones of each node; 0: the default
}

// Decision is where a recipient goes: to an upstream or, when it is nil, to MX.
type Decision struct {
	Route    int64 // the rule's number, for traces
	Upstream *Upstream
}

// ErrNoRoute says that no rule matched: the mail waits until one is added.
var ErrNoRoute = errors.New("no route: add one with 'postern route add'")

// Resolver finds the way for one recipient.
type Resolver interface {
	Resolve(ctx context.Context, userID int64, sender, recipient smtp.Address) (Decision, error)
}
