package check

import (
	"context"

	"github.com/jackc/pgx/v5"

	"postern/admin/health"
	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
)

var roleKinds = []kind{
	{"db.connections", health.Failed, "The database allows fewer connections than one node opens.",
		"raise its max_connections, or the role's or database's limit; or lower [database] max_connections"},
	{"db.connections-tight", health.Warning, "The database allows fewer connections than all nodes and other clients may open.",
		"raise its max_connections, or lower the nodes' [database] max_connections"},
	{"db.privileges", health.Failed, "The role lacks privileges that the server needs.",
		"let it own the tables, or grant what is missing; run 'postern migrate' as the owner"},
	{"db.superuser", health.Info, "The role is a superuser, which the server does not need.", ""},
	{"db.timeouts", health.Warning, "The database ends the server's statements or connections after a time.", "alter role NAME set SETTING = 0"},
}

func (in *inspection) connections(ctx context.Context) error {
	var most, others, nodes int
	// An unknown setting (reserved_connections before PostgreSQL 16) is null.
	err := in.conn.QueryRow(ctx, `
		select least(
				current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
					- coalesce(current_setting('reserved_connections', true)::int, 0),
				nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)),
			(select count(*) from pg_stat_activity where backend_type = 'client backend'
				and (datname is distinct from current_database() or application_name not like 'postern%') and pid <> pg_backend_pid())
		from pg_roles r, pg_database d where r.rolname = current_user and d.datname = current_database()`).Scan(&most, &others)
	if err != nil {
		return err
	}
	living, err := in.living(ctx)
	if err != nil {
		return err
	}
	nodes = max(1, len(living))
	need := in.c.cfg.NodeConnections()
	switch {
	case most < need:
		in.r.add("db.connections", "connections", "%d allowed, and this node may open %d", most, need)
	case most < need*nodes+others:
		in.r.add("db.connections-tight", "connections", "%d allowed; %s of %d each and %d of others make %d", most, screen.Count(nodes, "node"), need, others, need*nodes+others)
	}
	return nil
}

func (in *inspection) privileges(ctx context.Context) error {
	role, what, err := database.Lacking(ctx, in.conn)
	if err != nil {
		return err
	}
	if len(what) > 0 {
		in.r.add("db.privileges", "privileges", "%s lacks %s", role, screen.Few(what))
	}
	var super bool
	if err := in.conn.QueryRow(ctx, `select rolsuper from pg_roles where rolname = current_user`).Scan(&super); err != nil {
		return err
	}
	if super && in.c.cfg.Database.Private == "" {
		in.r.add("db.superuser", "privileges", "%s is a superuser", role)
	}
	return nil
}

// timeouts leaves out a lock_timeout that was set in the session: the check sets none,
// so a pooler passed on what nodes set for each of their connections, or what
// docs/postgres.md has it set for them.
func (in *inspection) timeouts(ctx context.Context) error {
	rows, err := in.conn.Query(ctx, `
		select name || ' is ' || setting || ' ' || unit from pg_settings
		where name in ('statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'lock_timeout')
			and setting::bigint between 1 and 59999 and not (name = 'lock_timeout' and source = 'session') order by name`)
	if err != nil {
		return err
	}
	set, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(set) > 0 {
		in.r.add("db.timeouts", "database", "%s", screen.Few(set))
	}
	return err
}
