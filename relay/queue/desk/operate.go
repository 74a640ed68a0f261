package desk

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/relay/queue"
)

// operateRows bounds the rows that one statement of an operator changes and locks.
const operateRows = 5000

// verb is something that an operator does to recipients. Those that a node has in
// hand are never touched.
type verb struct {
	name  string // in the history and the audit
	count string // the statement of a dry run
	do    string // takes operateRows and who acts as well
	loud  bool   // running nodes are told to hurry

	detail map[string]any // for the audit
}

var (
	toRetry    = verb{name: "retry", count: counting("retry"), do: changing("retry"), loud: true}
	toHold     = verb{name: "hold", count: counting("hold"), do: changing("hold")}
	toRelease  = verb{name: "release", count: counting("release"), do: changing("release"), loud: true}
	toCancel   = verb{name: "cancel", count: counting("cancel"), do: ending("cancel")}
	cancelHeld = verb{name: "cancel", count: counting("cancel_held"), do: ending("cancel_held")}
	toDeliver  = verb{name: "resolve", count: counting("resolve"), do: ending("resolve"), detail: map[string]any{"as": "delivered"}}
	toResend   = verb{name: "resolve", count: counting("resolve"), do: changing("resend"), loud: true, detail: map[string]any{"as": "resend"}}

	sqlInHand     = counting("in_hand")
	sqlUnresolved = counting("unresolved")
	sqlMakeHold   = texts.Bind("make_hold", "user_id", "credential_id", "reason", "made_by")
	sqlEndHolds   = texts.Bind("end_holds", "user_id")
	sqlForgetUser = texts.Bind("forget_user", "user_id")
)

func counting(verb string) string {
	return texts.BindWith("count", pg.Constants{"verb": "'" + verb + "'"}, filterNames...)
}

func changing(verb string) string {
	return texts.BindWith("change", pg.Constants{"verb": "'" + verb + "'"}, append(filterNames, "rows", "actor")...)
}

func ending(verb string) string {
	return texts.BindWith("cancel", pg.Constants{"verb": "'" + verb + "'"}, append(filterNames, "rows", "actor")...)
}

// InHand counts the recipients that f chooses and a node has in hand: those that Retry,
// Hold, Release and Cancel leave alone.
func (a *Admin) InHand(ctx context.Context, f Filter) (n int, err error) {
	if err := a.db.QueryRow(ctx, sqlInHand, f.args()...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count what is being sent: %w", err)
	}
	return n, nil
}

// Retry makes waiting recipients due now and says how many were not.
func (a *Admin) Retry(ctx context.Context, f Filter, dryRun bool) (int, error) {
	return a.operate(ctx, toRetry, f, dryRun)
}

// Hold keeps waiting recipients from being tried until they are released, and says how
// many. Their lifetime does not end them meanwhile.
func (a *Admin) Hold(ctx context.Context, f Filter, dryRun bool) (int, error) {
	return a.operate(ctx, toHold, f, dryRun)
}

// Release lets held recipients be tried now, and says how many.
func (a *Admin) Release(ctx context.Context, f Filter, dryRun bool) (int, error) {
	return a.operate(ctx, toRelease, f, dryRun)
}

// Cancel discards waiting and held recipients without notifying their sender, and
// says how many.
func (a *Admin) Cancel(ctx context.Context, f Filter, dryRun bool) (int, error) {
	return a.operate(ctx, toCancel, f, dryRun)
}

// ResolveDelivered ends recipients in doubt as delivered: an operator says so. It says how many.
func (a *Admin) ResolveDelivered(ctx context.Context, f Filter, dryRun bool) (int, error) {
	return a.operate(ctx, toDeliver, f, dryRun)
}

// ResolveResend lets recipients in doubt be sent again, by any way of their route, and says how
// many. They are flagged as possible duplicates.
func (a *Admin) ResolveResend(ctx context.Context, f Filter, dryRun bool) (int, error) {
	return a.operate(ctx, toResend, f, dryRun)
}

// Unresolved counts the recipients that f chooses and that are held because they may have been
// delivered: Release leaves them alone.
func (a *Admin) Unresolved(ctx context.Context, f Filter) (n int, err error) {
	if err := a.db.QueryRow(ctx, sqlUnresolved, f.args()...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count what is in doubt: %w", err)
	}
	return n, nil
}

// CancelHeld is Cancel for a whole user: what is set aside waits for somebody to look at it,
// not for the end of a hold.
func (a *Admin) CancelHeld(ctx context.Context, f Filter, dryRun bool) (int, error) {
	return a.operate(ctx, cancelHeld, f, dryRun)
}

// operate does v to what f chooses, a bounded number of rows in each transaction
// unless a is in one. The audit has it before the first row is changed.
func (a *Admin) operate(ctx context.Context, v verb, f Filter, dryRun bool) (int, error) {
	total := 0
	if dryRun {
		if err := a.db.QueryRow(ctx, v.count, f.args()...).Scan(&total); err != nil {
			return 0, fmt.Errorf("%s: %w", v.name, err)
		}
		return total, nil
	}
	if err := audit.Record(ctx, a.db, a.actor, audit.Deed{Action: "queue " + v.name, Object: f.String(), Detail: v.detail}); err != nil {
		return 0, err
	}
	total, err := a.carryOut(ctx, v, f)
	if err == nil && v.loud {
		a.Hurry(ctx)
	}
	return total, err
}

// carryOut is operate without a row in the audit.
func (a *Admin) carryOut(ctx context.Context, v verb, f Filter) (total int, err error) {
	args := append(f.args(), operateRows, a.actor)
	for {
		var count int
		if err := a.db.QueryRow(ctx, v.do, args...).Scan(&count); err != nil {
			return total, fmt.Errorf("%s: %w", v.name, err)
		}
		total += count
		if count < operateRows {
			return total, nil
		}
	}
}

// Hurry tells running nodes to look for work now. It is only a hint: poolers may not
// carry it, and polling finds the rows. In a transaction it does nothing, for NOTIFY
// locks the whole database until the commit; call it afterwards.
func (a *Admin) Hurry(ctx context.Context) {
	if _, within := a.db.(pgx.Tx); !within {
		queue.Hurry(ctx, a.db)
	}
}

// UserHolds lists the holds, the oldest first.
func (a *Admin) UserHolds(ctx context.Context) ([]queue.UserHold, error) {
	return queue.UserHolds(ctx, a.db)
}

// HoldUser holds the mail of a user (credential 0) or of one of its credentials, in the
// queue and to come. It returns how many recipients were waiting.
func (a *Admin) HoldUser(ctx context.Context, user, credential int64, reason string) (held int, err error) {
	err = pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlMakeHold, user, credential, pg.Storable(reason), a.actor); err != nil {
			return fmt.Errorf("hold user: %w", err)
		}
		v := toHold
		v.detail = map[string]any{"user_hold": "made", "reason": pg.Storable(reason)}
		f := Filter{UserID: user, CredentialID: credential}
		if f.UserName, err = userName(ctx, tx, user); err != nil {
			return err
		}
		held, err = (&Admin{tx, a.actor}).operate(ctx, v, f, false)
		return err
	})
	return held, err
}

// sqlUserName reads a user's name for the audit: the number means nothing once the user is
// removed.
const sqlUserName = `select coalesce((select name from app_user where id = $1), '')`

func userName(ctx context.Context, tx pgx.Tx, user int64) (name string, err error) {
	if err := tx.QueryRow(ctx, sqlUserName, user).Scan(&name); err != nil {
		return "", fmt.Errorf("name of user %d: %w", user, err)
	}
	return name, nil
}

// ReleaseUser ends all holds of a user and releases its held mail. It returns how many
// recipients there were.
func (a *Admin) ReleaseUser(ctx context.Context, user int64) (int, error) {
	n, err := a.endHolds(ctx, user, toRelease)
	if err == nil {
		a.Hurry(ctx)
	}
	return n, err
}

// CancelUser ends all holds of a user and discards its held mail, except mail set aside. It
// returns how many recipients there were.
func (a *Admin) CancelUser(ctx context.Context, user int64) (int, error) {
	return a.endHolds(ctx, user, cancelHeld)
}

// sqlIsHeld reports whether a user is on hold.
const sqlIsHeld = `select exists (select from hold where user_id = $1)`

// endHolds looks a second time after its commit: the hold may have held rows that came back
// to waiting during the first look, unseen.
func (a *Admin) endHolds(ctx context.Context, user int64, v verb) (n int, err error) {
	v.detail = map[string]any{"user_hold": "ended"}
	held := Filter{UserID: user, State: StateHeld}
	err = pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlEndHolds, user); err != nil {
			return fmt.Errorf("end holds: %w", err)
		}
		if held.UserName, err = userName(ctx, tx, user); err != nil {
			return err
		}
		n, err = (&Admin{tx, a.actor}).operate(ctx, v, held, false)
		return err
	})
	if _, within := a.db.(pgx.Tx); within || err != nil {
		return n, err
	}
	time.Sleep(secondLook)
	again := false
	if err := a.db.QueryRow(ctx, sqlIsHeld, user).Scan(&again); err != nil || again {
		return n, err
	}
	late, err := a.carryOut(ctx, v, held)
	return n + late, err
}

// secondLook is longer than nodes take to write the outcomes of attempts.
const secondLook = 300 * time.Millisecond

// ForgetUser deletes everything about a removed user except the history of its mail.
func (a *Admin) ForgetUser(ctx context.Context, user int64) error {
	if _, err := a.db.Exec(ctx, sqlForgetUser, user); err != nil {
		return fmt.Errorf("forget user: %w", err)
	}
	return nil
}
