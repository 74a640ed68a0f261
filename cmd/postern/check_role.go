package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

var roleKinds = []kind{
	{"db.connections", statusFailed, "The database allows fewer connections than one node opens.",
		"raise max_connections of the database, or the limit of the role or the database; or lower [database] max_connections"},
	{"db.connections-tight", statusWarning, "The database allows fewer connections than all nodes and the other clients may open together.",
		"raise max_connections of the database, or lower [database] max_connections of the nodes"},
	{"db.privileges", statusFailed, "The role may not do what the server does.",
		"let the role own the tables, or grant it what is missing; and run 'postern migrate' as the owner"},
	{"db.superuser", statusInfo, "The role is a superuser, which the server does not need.", ""},
	{"db.timeouts", statusWarning, "The database ends statements or connections of the server after a time.",
		"set it to 0 for the role: alter role NAME set SETTING = 0"},
}

// nodeConnections is how many connections one node may open: those that are configured,
// and those of the queue, of what is noted of logins, of routes, of health and metrics,
// and of certificates by ACME.
func (c *checkup) nodeConnections() int {
	n := c.cfg.Database.MaxConnections + 17 + 3 + 1
	if c.cfg.Admin.Address != "" {
		n += adminPool
	}
	if c.cfg.ACME.on() {
		n += 3
	}
	return n
}

func (in *inspection) connections(ctx context.Context) error {
	var most, others, nodes int
	// What is not known (reserved_connections before PostgreSQL 16) is null.
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
	need := in.c.nodeConnections()
	switch {
	case most < need:
		in.r.add("db.connections", "connections", "%d allowed, and this node may open %d", most, need)
	case most < need*nodes+others:
		in.r.add("db.connections-tight", "connections", "%d allowed; %d nodes of %d each and %d others make %d", most, nodes, need, others, need*nodes+others)
	}
	return nil
}

// ours names the tables of the schema: those with the owner of the queue's.
const ours = `
	select c.oid, c.relname from pg_class c join pg_class q on q.oid = to_regclass('recipient')
	where c.relnamespace = q.relnamespace and c.relowner = q.relowner and c.relkind in ('r', 'p')`

// sqlLacking is the role, and what it lacks of the schema as a GRANT names it. The schema's
// version is for the owner to write. A sequence of a column needs no privilege.
const sqlLacking = `
	with lacking as (
		select c.relname, string_agg(p.privilege, ', ' order by p.n) || ' on ' || quote_ident(c.relname) as what from (` + ours + `) c
		cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) with ordinality p(privilege, n)
		where not has_table_privilege(c.oid, p.privilege)
			and (p.privilege <> 'TRUNCATE' or c.relname like 'large\_body\__' or c.relname = 'reserve')
			and (p.privilege = 'SELECT' or c.relname <> 'schema_migration')
		group by c.relname
		union all
		select s.relname, 'USAGE on sequence ' || quote_ident(s.relname) from pg_class s join pg_class q on q.oid = to_regclass('recipient')
		where s.relnamespace = q.relnamespace and s.relowner = q.relowner
			and case when s.relkind = 'S' then not has_sequence_privilege(s.oid, 'USAGE') else false end -- of others it is an error
			and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = s.oid and d.deptype in ('a', 'i')))
	select quote_ident(current_user), array(select what from lacking order by relname)`

// lacking says what the role of a connection lacks of what a node does.
func lacking(ctx context.Context, conn *pgx.Conn) (role string, what []string, err error) {
	err = conn.QueryRow(ctx, sqlLacking).Scan(&role, &what)
	return role, what, err
}

// requirePrivileges refuses a role that would accept mail and could not write down what
// becomes of it.
func requirePrivileges(ctx context.Context, conn *pgx.Conn) error {
	role, what, err := lacking(ctx, conn)
	if err != nil {
		return fmt.Errorf("read the privileges of the database's role: %w", err)
	}
	if len(what) == 0 {
		return nil
	}
	for i := range what {
		what[i] = "grant " + what[i] + " to " + role
	}
	return fmt.Errorf("the database's role %s may not do all that a node does; run as the owner of the tables: %s", role, strings.Join(what, "; "))
}

func (in *inspection) privileges(ctx context.Context) error {
	role, what, err := lacking(ctx, in.conn)
	if err != nil {
		return err
	}
	if len(what) > 0 {
		in.r.add("db.privileges", "privileges", "%s lacks %s", role, few(what))
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
		in.r.add("db.timeouts", "database", "%s", few(set))
	}
	return err
}
