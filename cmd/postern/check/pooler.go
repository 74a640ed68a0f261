package check

import (
	"context"
	"errors"

	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
)

// pooling is the question of the check.
func (in *inspection) pooling(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		p, err := in.c.dialer.LookForPooler(ctx, url)
		if err != nil {
			return err
		}
		judgePooler(in.r, p)
		return nil
	}
}

// judgePooler tells nothing when there is no pooler, or none that shows.
func judgePooler(r *report, p database.Pooler) {
	err := p.Refusal()
	switch {
	case errors.Is(err, database.ErrQueryMode):
		r.add("db.query-mode", "database", "default_query_exec_mode=%s", p.ModeName())
	case err != nil && p.Statements != nil:
		r.add("db.pooler-statements", "database", "%s", screen.OneLine(p.Statements.Error()))
	case err != nil:
		r.add("db.pooler-statements", "database", "default_query_exec_mode=%s", p.ModeName())
	case p.Shares:
		r.add("db.pooler", "database", "two connections shared one of the server's")
	}
}
