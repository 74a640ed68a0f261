package policy

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// sqlOpenSessions counts as sqlEnterSession does.
const sqlOpenSessions = `
select s.credential_id, count(*) from live_session s
where s.user_id = $1 and exists (select from node n where n.epoch = s.epoch and n.reaped_at is null)
group by s.credential_id`

// OpenSessions says how many sessions of a user are open by each credential: of those
// that are counted, which are the ones under a limit.
func OpenSessions(ctx context.Context, pool *pgxpool.Pool, userID int64) (map[int64]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionsTimeout)
	defer cancel()
	rows, err := pool.Query(ctx, sqlOpenSessions, userID)
	if err != nil {
		return nil, fmt.Errorf("count sessions: %w", err)
	}
	open := make(map[int64]int64)
	var credential, n int64
	_, err = pgx.ForEachRow(rows, []any{&credential, &n}, func() error {
		open[credential] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count sessions: %w", err)
	}
	return open, nil
}
