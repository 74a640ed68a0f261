package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

var sqlCatchUpHolds = texts.Bind("catch_up", "user_id")

const (
	holdsEvery = 5 * time.Second
	catchUpFor = 20 * time.Second // from when this node has seen a hold first
)

// UserHold says that mail of a user, or of one credential, waits for an admin.
type UserHold struct {
	UserID       int64     `json:"user_id"`
	CredentialID int64     `json:"credential_id,omitempty"` // 0: all mail of the user
	Reason       string    `json:"reason"`
	MadeBy       string    `json:"made_by"`
	MadeAt       time.Time `json:"made_at"`
}

// sqlHolds lists the holds.
const sqlHolds = `select user_id, credential_id, reason, made_by, sane_time(made_at) from hold order by made_at, user_id, credential_id`

// UserHolds lists the holds, the oldest first.
func UserHolds(ctx context.Context, db pg.DB) ([]UserHold, error) {
	rows, err := db.Query(ctx, sqlHolds)
	if err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[UserHold])
	if err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	return list, nil
}

// holds follows the holds that begin and end, whoever made them and on whichever node.
type holds struct {
	q     *Queue
	known map[holder]UserHold  // as last seen; nil before the first look
	young map[holder]time.Time // those to apply again, and until when
}

type holder struct{ user, credential int64 }

func newHolds(q *Queue) *holds { return &holds{q: q, young: make(map[holder]time.Time)} }

func (h *holds) run(ctx context.Context) {
	for {
		if err := h.look(ctx); err != nil && ctx.Err() == nil && !h.q.Suspect(err) {
			h.q.log.Warn("queue: cannot read the holds, will retry", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(holdsEvery):
		}
	}
}

// look reports holds that began or ended. After an error nothing changes.
func (h *holds) look(ctx context.Context) error {
	list, err := UserHolds(ctx, h.q.cfg.WorkPool)
	if err != nil {
		return err
	}
	known := h.known
	h.known = make(map[holder]UserHold, len(list))
	for _, hold := range list {
		who := holder{hold.UserID, hold.CredentialID}
		h.known[who] = hold
		if _, old := known[who]; old {
			continue
		}
		h.young[who] = time.Now().Add(catchUpFor)
		if known != nil && h.q.cfg.HoldMade != nil {
			h.q.cfg.HoldMade(hold)
		}
	}
	for who, hold := range known {
		if _, still := h.known[who]; !still && h.q.cfg.HoldEnded != nil {
			h.q.cfg.HoldEnded(hold)
		}
	}
	return h.catchUp(ctx)
}

// catchUp applies young holds again, for longer than an outcome can be under way: a row that
// went back to waiting while its hold was being made is held afterwards, on every node,
// whether anybody looks for compromised accounts or not.
func (h *holds) catchUp(ctx context.Context) error {
	if len(h.young) == 0 {
		return nil
	}
	var users []int64
	now := time.Now()
	for who, until := range h.young {
		users = append(users, who.user)
		if now.After(until) {
			delete(h.young, who)
		}
	}
	if _, err := h.q.cfg.WorkPool.Exec(ctx, sqlCatchUpHolds, users); err != nil {
		return fmt.Errorf("catch up with holds: %w", err)
	}
	return nil
}
