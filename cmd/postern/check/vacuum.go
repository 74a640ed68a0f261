package check

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/admin/health"
	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
	"postern/relay/feed"
)

var vacuumKinds = []kind{
	{"db.autovacuum", health.Failed, "Autovacuum is off, so the queue's tables grow and become slow.", "set autovacuum and track_counts to on"},
	{"db.old-transaction", health.Warning, "A long transaction keeps deleted rows, so the queue's tables grow.",
		"end it: select pg_terminate_backend(PID), or commit or roll back the prepared one"},
	{"feed.held", health.Warning, "A transaction that stays open holds back the feed of events.",
		"end it: select pg_terminate_backend(PID), or commit or roll back the prepared one"},
	{"db.slot", health.Warning, "An unused replication slot keeps WAL until the disk is full.",
		"bring its replica back, or drop it: select pg_drop_replication_slot('NAME')"},
	{"db.dead-rows", health.Warning, "Vacuum does not keep up with a table's deleted rows.", "end old transactions, then run VACUUM on the table"},
	{"db.wraparound", health.Warning, "Vacuum has not frozen rows for a long time; near 2 billion the database stops taking commits.",
		"end old transactions and slots, then run VACUUM FREEZE on the database"},
}

func (in *inspection) autovacuum(ctx context.Context) error {
	var vacuum, counts string
	var age int64
	err := in.conn.QueryRow(ctx, `
		select current_setting('autovacuum'), current_setting('track_counts'),
			(select age(datfrozenxid) from pg_database where datname = current_database())`).Scan(&vacuum, &counts, &age)
	if err != nil {
		return err
	}
	if vacuum != "on" || counts != "on" {
		in.r.add("db.autovacuum", "autovacuum", "autovacuum is %s, track_counts is %s", vacuum, counts)
	}
	if age > in.c.bounds.frozen {
		in.r.add("db.wraparound", "autovacuum", "%d transactions since the oldest row was frozen", age)
	}
	return nil
}

// transactions looks for what holds vacuum back: those of other databases do not. Of
// other roles' sessions only who may read all statistics sees when they began.
func (in *inspection) transactions(ctx context.Context) error {
	rows, err := in.conn.Query(ctx, `
		select 'process ' || pid || ' (' || coalesce(usename, '?') || ', ' || coalesce(nullif(application_name, ''), 'no name') || ') since ', xact_start
		from pg_stat_activity
		where backend_type = 'client backend' and datname = current_database() and pid <> pg_backend_pid() and (backend_xid is not null or backend_xmin is not null)
			and xact_start < clock_timestamp() - $1::interval
		union all
		select 'prepared transaction ' || gid || ' since ', prepared from pg_prepared_xacts
		where database = current_database() and prepared < clock_timestamp() - $1::interval
		order by 2`, in.c.bounds.transaction)
	if err != nil {
		return err
	}
	var who string
	var since time.Time
	var open []string
	if _, err := pgx.ForEachRow(rows, []any{&who, &since}, func() error {
		open = append(open, who+screen.LocalTime(since))
		return nil
	}); err != nil {
		return err
	}
	if len(open) > 0 {
		in.r.add("db.old-transaction", "transactions", "%s", screen.Few(open))
	}
	rows, err = in.conn.Query(ctx, `select slot_name from pg_replication_slots where not active order by slot_name`)
	if err != nil {
		return err
	}
	slots, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(slots) > 0 {
		in.r.add("db.slot", "replica", "not in use: %s", screen.Few(slots))
	}
	return err
}

// feed looks for what holds the feed of events back, in any database of the server.
func (in *inspection) feed(ctx context.Context) error {
	held, err := feed.Hold(ctx, in.conn)
	if toldElsewhere(err) {
		return nil
	}
	if err == nil && held != nil && time.Since(held.Since) > in.c.bounds.feed {
		in.r.add("feed.held", "events", "%s since %s", held.Who, screen.LocalTime(held.Since))
	}
	return err
}

func (in *inspection) deadRows(ctx context.Context) error {
	rows, err := in.conn.Query(ctx, `
		select s.relname || ' (' || s.n_dead_tup || ' deleted, ' || s.n_live_tup || ' others, ' || pg_size_pretty(pg_total_relation_size(c.oid)) || ')'
		from pg_stat_user_tables s join (`+database.SQLTables+`) c on c.oid = s.relid
		where s.n_dead_tup > $1 and s.n_dead_tup > 4 * s.n_live_tup order by s.n_dead_tup desc`, in.c.bounds.deadRows)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(tables) > 0 {
		in.r.add("db.dead-rows", "autovacuum", "%s", screen.Few(tables))
	}
	return err
}
