package connect

import (
	"context"
	"errors"
	"fmt"

	"postern/internal/share"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

// Sessions are the upstreams' budgets of connections: *budget.Budgets.
type Sessions interface {
	Session(ctx context.Context, a budget.Ask) (done func(), wait *budget.Wait)
}

// enter takes a part of the connections for the address of an MX. An upstream's address
// was chosen by an administrator and is bounded by its own number of connections, and by its
// budget. leave gives the part back.
func (d *Dialer) enter(ctx context.Context, to Target) (leave func(), t *Trouble) {
	switch {
	case to.Upstream != nil:
		return d.session(ctx, to.Upstream)
	case d.Slots == nil:
		return func() {}, nil
	case !d.Slots.Join(1, share.Network(to.Addr.Addr())):
		return nil, crowdedTrouble(to)
	}
	return func() { d.Slots.Leave(1, share.Network(to.Addr.Addr())) }, nil
}

// OverBudgetReply is that of mail, or a connection, that waits for an upstream's budget.
func OverBudgetReply(wait *budget.Wait) smtp.Reply {
	return smtp.Temporary(451, 4, 5, "waits for the budget of upstream "+wait.Why)
}

// session takes a session of the upstream's budget.
func (d *Dialer) session(ctx context.Context, up *upstream.Account) (leave func(), t *Trouble) {
	if d.cfg.Sessions == nil || up.Budget == "" {
		return func() {}, nil
	}
	leave, wait := d.cfg.Sessions.Session(ctx, budget.Ask{Upstream: up.Name, Setting: up.Budget})
	if wait != nil {
		return nil, &Trouble{Reply: OverBudgetReply(wait), Err: fmt.Errorf("%w: %s", errNoSession, wait.Why), Crowded: true, Wait: wait}
	}
	return leave, nil
}

// crowdedTrouble is that of an address which has all the connections that it may.
func crowdedTrouble(to Target) *Trouble {
	return &Trouble{
		Reply: smtp.Temporary(451, 4, 5, "mail host "+to.Host+" has all the connections that one address may have"),
		Err:   errCrowded, Crowded: true,
	}
}

var (
	errCrowded   = errors.New("too many connections to one address")
	errNoSession = errors.New("the upstream's budget of sessions is spent")
)
