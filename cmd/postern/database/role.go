package database

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// SQLTables names the tables of the schema: those with the owner of the queue's.
const SQLTables = `
	select c.oid, c.relname from pg_class c join pg_class q on q.oid = to_regclass('recipient')
	where c.relnamespace = q.relnamespace and c.relowner = q.relowner and c.relkind in ('r', 'p')`

// sqlLacking is the role, and what it lacks of the schema as a GRANT names it. The schema's
// version is for the owner to write. A sequence of a column needs no privilege.
const sqlLacking = `
	with lacking as (
		select c.relname, string_agg(p.privilege, ', ' order by p.n) || ' on ' || quote_ident(c.relname) as what from (` + SQLTables + `) c
		cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) with ordinality p(privilege, n)
		where not has_table_privilege(c.oid, p.privilege)
			and (p.privilege <> 'TRUNCATE' or c.relname like 'large\_body\__' or c.relname = 'reserve')
			and (p.privilege = 'SELECT' or c.relname <> 'schema_migration')
		group by c.relname
		union all
		select s.relname, case s.relkind when 'S' then 'USAGE on sequence ' else 'SELECT on ' end || quote_ident(s.relname) from pg_class s join pg_class q on q.oid = to_regclass('recipient')
		where s.relnamespace = q.relnamespace and s.relowner = q.relowner
			and case s.relkind when 'S' then not has_sequence_privilege(s.oid, 'USAGE') -- of others it is an error
				when 'v' then not has_table_privilege(s.oid, 'SELECT') else false end
			and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = s.oid and d.deptype in ('a', 'i')))
	select quote_ident(current_user), array(select what from lacking order by relname)`

// Lacking says what the role of a connection lacks of what a node does.
func Lacking(ctx context.Context, conn *pgx.Conn) (role string, what []string, err error) {
	err = conn.QueryRow(ctx, sqlLacking).Scan(&role, &what)
	return role, what, err
}

// RequirePrivileges refuses a role that would accept mail and could not write down what
// becomes of it.
func RequirePrivileges(ctx context.Context, conn *pgx.Conn) error {
	role, what, err := Lacking(ctx, conn)
	if err != nil {
		return fmt.Errorf("read the privileges of the database's role: %w", err)
	}
	if len(what) == 0 {
		return nil
	}
	for i := range what {
		what[i] = "grant " + what[i] + " to " + role
	}
	return fmt.Errorf("the database's role %s lacks privileges that a node needs; run as the owner of the tables: %s", role, strings.Join(what, "; "))
}
