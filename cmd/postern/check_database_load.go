package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

var loadKinds = []kind{
	{"db.autovacuum", statusFailed, "Autovacuum is off, so the queue's tables grow and become slow.",
		"set autovacuum and track_counts to on in the database"},
	{"db.old-transaction", statusWarning, "A transaction that is open for long keeps deleted rows from being removed, so the queue's tables grow.",
		"end what holds it: select pg_terminate_backend(PID), or commit or roll back the prepared transaction"},
	{"db.slot", statusWarning, "A replication slot that nobody uses keeps the log, until the disk is full.",
		"bring its replica back, or drop it: select pg_drop_replication_slot('NAME')"},
	{"db.dead-rows", statusWarning, "A table has far more deleted rows than others: vacuum does not keep up.",
		"look for old transactions, then run VACUUM on the table"},
	{"db.wraparound", statusWarning, "Vacuum has not frozen rows for long; near 2 billion the database stops taking commits.",
		"look for old transactions and slots, then run VACUUM FREEZE on the database"},
	{"db.timeouts", statusWarning, "The database ends statements or connections of the server after a time.",
		"set it to 0 for the role: alter role NAME set SETTING = 0"},
	{"db.superuser", statusInfo, "The role is a superuser, which the server does not need.", ""},
	{"db.room", statusOK, "There is room on the disk of the database.", ""},
	{"db.room-low", statusWarning, "The disk of the database is nearly full.", "free room, or give it a larger disk"},
	{"db.room-none", statusFailed, "The disk of the database is full: soon nothing is accepted.", "free room, or give it a larger disk"},
}

// bounds say from where on something is told.
type bounds struct {
	server      int           // the oldest version
	trip        time.Duration // to the database and back
	transaction time.Duration // that is open
	deadRows    int64
	frozen      int64 // transactions since
	low, none   int64 // octets of room for the database
}

func defaultBounds() bounds {
	return bounds{
		server: 13_00_00, trip: 10 * time.Millisecond,
		transaction: 15 * time.Minute, deadRows: 500_000, frozen: 1_000_000_000, low: 5 << 30, none: 256 << 20,
	}
}

// nodeConnections is how many connections one node may open: those of the pools,
// which are configured, and those of the queue, of what is noted of logins, and of
// routes.
func (c *checkup) nodeConnections() int { return c.cfg.Database.MaxConnections + 16 + 3 + 1 }

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

func (in *inspection) privileges(ctx context.Context) error {
	rows, err := in.conn.Query(ctx, `
		select p.privilege || ' on ' || c.relname from (`+ours+`) c
		cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) p(privilege)
		where not has_table_privilege(c.oid, p.privilege)
			and (p.privilege <> 'TRUNCATE' or c.relname like 'large\_body\__')
		order by c.relname, p.privilege`)
	if err != nil {
		return err
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	var role string
	var super bool
	if err := in.conn.QueryRow(ctx, `select rolname, rolsuper from pg_roles where rolname = current_user`).Scan(&role, &super); err != nil {
		return err
	}
	if len(missing) > 0 {
		in.r.add("db.privileges", "privileges", "%s lacks %s", role, few(missing))
	}
	if super && in.c.cfg.Database.Private == "" {
		in.r.add("db.superuser", "privileges", "%s is a superuser", role)
	}
	return nil
}

// living are the names of the nodes whose lease holds. Without a schema there are none.
func (in *inspection) living(ctx context.Context) ([]string, error) {
	var exists bool
	err := in.conn.QueryRow(ctx, `select coalesce(has_table_privilege(to_regclass('node'), 'SELECT'), false)`).Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	rows, err := in.conn.Query(ctx, `
		select name from node
		where superseded_at is null and reaped_at is null and expires_at > clock_timestamp() order by name`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// nodes looks for another process with this node's name. Which one is ours is told by
// the listeners: where nothing of ours answers, a living node of the name is elsewhere.
func (in *inspection) nodes(ctx context.Context) error {
	living, err := in.living(ctx)
	if err != nil {
		return err
	}
	if len(living) > 0 {
		in.r.add("node.ok", "nodes", "%d alive: %s", len(living), few(living))
	}
	own := in.c.cfg.Node
	if own == "" {
		if own, err = in.c.cfg.hostname(); err != nil {
			return nil // told elsewhere
		}
	}
	for _, name := range living {
		if name == own && len(in.c.cfg.Listeners) > 0 && !in.c.runsHere(ctx) {
			in.r.add("node.taken", "nodes", "%q is alive, and no server of this configuration runs on this machine", own)
			return nil
		}
	}
	if len(living) == 0 {
		return nil
	}
	var taken *time.Time
	err = in.conn.QueryRow(ctx, `
		select max(superseded_at) from node
		where name = $1 and superseded_at > clock_timestamp() - interval '10 minutes'
			and superseded_at < expires_at and beat_at > superseded_at - interval '10 seconds'`, own).Scan(&taken)
	if err == nil && taken != nil {
		in.r.add("node.twice", "nodes", "%q was taken over at %s", own, localTime(*taken))
	}
	return err
}

// runsHere reports that one of the configured listeners is a Postern of this hostname.
func (c *checkup) runsHere(ctx context.Context) bool {
	hostname, _ := c.cfg.hostname()
	for _, l := range c.cfg.Listeners {
		t, greeting, err := dialTalk(ctx, reachable(l.Address), l.TLS, hostname)
		if err != nil {
			continue
		}
		t.quit()
		if strings.EqualFold(greeting.Text, hostname+" ESMTP Postern") {
			return true
		}
	}
	return false
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

// transactions looks for what holds vacuum back. Of other roles' sessions only who may
// read all statistics sees when they began.
func (in *inspection) transactions(ctx context.Context) error {
	rows, err := in.conn.Query(ctx, `
		select 'process ' || pid || ' (' || coalesce(usename, '?') || ', ' || coalesce(nullif(application_name, ''), 'no name') || ') since ', xact_start
		from pg_stat_activity
		where backend_type = 'client backend' and pid <> pg_backend_pid() and (backend_xid is not null or backend_xmin is not null)
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
		open = append(open, who+localTime(since))
		return nil
	}); err != nil {
		return err
	}
	if len(open) > 0 {
		in.r.add("db.old-transaction", "transactions", "%s", few(open))
	}
	rows, err = in.conn.Query(ctx, `select slot_name from pg_replication_slots where not active order by slot_name`)
	if err != nil {
		return err
	}
	slots, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(slots) > 0 {
		in.r.add("db.slot", "replica", "not in use: %s", few(slots))
	}
	return err
}

func (in *inspection) deadRows(ctx context.Context) error {
	rows, err := in.conn.Query(ctx, `
		select s.relname || ' (' || s.n_dead_tup || ' deleted, ' || s.n_live_tup || ' others, ' || pg_size_pretty(pg_total_relation_size(c.oid)) || ')'
		from pg_stat_user_tables s join (`+ours+`) c on c.oid = s.relid
		where s.n_dead_tup > $1 and s.n_dead_tup > 4 * s.n_live_tup order by s.n_dead_tup desc`, in.c.bounds.deadRows)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(tables) > 0 {
		in.r.add("db.dead-rows", "autovacuum", "%s", few(tables))
	}
	return err
}

func (in *inspection) timeouts(ctx context.Context) error {
	rows, err := in.conn.Query(ctx, `
		select name || ' is ' || setting || ' ' || unit from pg_settings
		where name in ('statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'lock_timeout')
			and setting::bigint between 1 and 59999 order by name`)
	if err != nil {
		return err
	}
	set, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(set) > 0 {
		in.r.add("db.timeouts", "database", "%s", few(set))
	}
	return err
}

// disk can only be looked at where the database is on this machine, by who may know
// where it is.
func (in *inspection) disk(ctx context.Context) error {
	if tcp, is := in.conn.PgConn().Conn().RemoteAddr().(*net.TCPAddr); is && !tcp.IP.IsLoopback() {
		return nil
	}
	var dir string
	err := in.conn.QueryRow(ctx, `select setting from pg_settings where name = 'data_directory'`).Scan(&dir)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	free, err := freeRoom(dir)
	if err != nil {
		return nil // a container's path, or one that this user may not reach
	}
	id := "db.room"
	switch {
	case free < in.c.bounds.none:
		id = "db.room-none"
	case free < in.c.bounds.low:
		id = "db.room-low"
	}
	in.r.add(id, "disk", "%s free for the database", octets(free))
	return nil
}
