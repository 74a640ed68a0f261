package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postern/admin/health"
	"postern/cmd/postern/database"
	"postern/internal/pgserver"
	"postern/migrations"
	"postern/relay/queue/desk"
)

var databaseKinds = []kind{
	{"db.ok", health.OK, "", ""},
	{"db.none", health.Failed, "No database is configured.", "set url or private in [database], or POSTERN_DATABASE_URL"},
	{"db.private-none", health.Info, "The private database does not exist yet.", "start the server, or run 'postern migrate': either makes it"},
	{"db.private", health.Failed, "The private database cannot be started.",
		"act on the error: its folder belongs to the server's user, mode 700, below folders that nobody else may change; its postgres.log may say more"},
	kind(health.Unreachable),
	{"db.error", health.Failed, "The database did not answer a query.", "act on the error; the server's log may say more"},
	{"db.version", health.Failed, "The database server is too old.", "upgrade to PostgreSQL 13 or newer"},
	{"db.durable", health.OK, "", ""},
	{"db.durability", health.Failed, "The database may lose accepted mail.", "change the setting that it names, and reload or restart the database"},
	{"db.replica", health.OK, "", ""},
	{"db.replica-missing", health.Failed, "Commits wait for a missing synchronous replica, so nothing is accepted.",
		"bring the replica back, or lower synchronous_standby_names"},
	{"db.replica-none", health.Info, "There is no synchronous replica: mail is lost with the database's disk.", ""},
	{"db.clear", health.Failed, "Mail and passwords go to a remote database without encryption.",
		"add sslmode=verify-full and sslrootcert to the URL, and ssl = on to the database"},
	{"db.unverified", health.Warning, "A remote database's certificate is not verified, so it may be another server.",
		"set sslmode=verify-full and sslrootcert in the URL"},
	{"db.slow", health.Warning, "Round trips to the database are slow, and each message waits for several.", "move the relay and the database closer together"},
	{"db.query-mode", health.Failed, "No node can send its statements in the query mode of the URL.",
		"remove default_query_exec_mode from the URL; behind a pooler in transaction mode set it to cache_describe"},
	{"db.pooler", health.Info, "A pooler lends connections by transaction, which works.", ""},
	{"db.pooler-statements", health.Failed, "A pooler in transaction or statement mode loses state that a node relies on, so mail would get stuck.",
		"set pool_mode = session, or pool_mode = transaction with default_query_exec_mode=cache_describe in the URL"},
	{"db.logs-values", health.Warning, "PostgreSQL logs the values of statements: mail, and hashes of passwords.",
		"set log_parameter_max_length and log_parameter_max_length_on_error to 0, and reload"},
	{"db.schema", health.OK, "", ""},
	{"db.schema-old", health.Failed, "The schema is missing or older than this program.", "run 'postern migrate'"},
	{"db.schema-ahead", health.Info, "A newer program has migrated the database, and this one may run on it.", ""},
	{"db.schema-new", health.Failed, "A newer program has migrated the database, and this one may not run on it.", "install the newer version here"},
	{"db.schema-changed", health.Failed, "A migration was changed after it made the schema, whose state is therefore unknown.",
		"run the version that made it; if older than 0.1.0, migrate an empty database"},
	{"db.clock", health.OK, "", ""},
	{"db.clock-drift", health.Warning, "The clocks of this machine and the database differ.", "run chrony or systemd-timesyncd on both"},
	{"db.clock-wrong", health.Failed, "The clocks of this machine and the database differ so much that expiries and traces are wrong.",
		"set the wrong one, and run chrony or systemd-timesyncd on both"},
}

// Bounds of what the database is asked.
const (
	questionTime = 5 * time.Second
	clockDrift   = time.Second
	clockWrong   = 10 * time.Second
)

// errNoPrivate says that a check would have to make the private database.
var errNoPrivate = errors.New("there is no private database yet")

// databaseURL is the database of the configuration; a private one is started for the
// time of the check, and not made.
func (c *checkup) databaseURL(ctx context.Context) (string, error) {
	return c.database.get(ctx, func() (string, error) {
		if dir := c.cfg.Database.Private; dir != "" {
			switch made, err := pgserver.Made(dir); {
			case err != nil:
				return "", err
			case !made:
				return "", fmt.Errorf("%w in %s", errNoPrivate, dir)
			}
		}
		type result struct {
			url string
			err error
		}
		opened := make(chan result, 2)
		c.background.Go(func() {
			err := guard.Try("check", func() error {
				return database.With(ctx, c.cfg.Database, func(_ context.Context, url string) error {
					opened <- result{url: url}
					<-c.over
					return nil
				})
			})
			opened <- result{err: err}
		})
		first := <-opened
		return first.url, first.err
	})
}

// inspection is a look at one database over one connection.
type inspection struct {
	c    *checkup
	r    *report
	conn *pgx.Conn
}

func (c *checkup) lookAtDatabase(ctx context.Context, r *report) {
	url, err := c.databaseURL(ctx)
	if err != nil {
		id := "db.private" // another is looked for when it is connected to
		switch {
		case errors.Is(err, database.ErrNone):
			id = "db.none"
		case errors.Is(err, errNoPrivate):
			id = "db.private-none"
		}
		r.add(id, "database", "%v", err)
		return
	}
	conn, err := c.dialer.Connect(ctx, url)
	if err != nil {
		r.add("db.unreachable", "database", "%v", err)
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	in := &inspection{c, r, conn}
	for _, question := range []struct {
		about string
		ask   func(context.Context) error
	}{
		{"version", func(ctx context.Context) error { return in.server(ctx, url) }},
		{"pooler", in.pooling(url)}, {"settings", in.durability}, {"log", in.statementsLogged}, {"replicas", in.replicas}, {"TLS", in.protection},
		{"clock", in.clock}, {"connections", in.connections}, {"privileges", in.privileges},
		{"schema", in.schema}, {"nodes", in.nodes}, {"queue", in.setAside}, {"queue in doubt", in.inDoubt}, {"queue held", in.held}, {"notices", in.lost},
		{"autovacuum", in.autovacuum}, {"transactions", in.transactions}, {"feed", in.feed}, {"webhooks", in.webhooks},
		{"tables", in.deadRows}, {"limits", in.timeouts}, {"disk", in.disk}, {"full", in.full},
	} {
		limited, cancel := context.WithTimeout(ctx, questionTime)
		err := question.ask(limited)
		cancel()
		if err != nil {
			r.add("db.error", "database", "%s: %s", question.about, database.Reason(err))
		}
		if conn.IsClosed() {
			return
		}
	}
}

// server also measures the way to it.
func (in *inspection) server(ctx context.Context, url string) error {
	var version int
	if err := in.conn.QueryRow(ctx, `select current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return err
	}
	trip := time.Hour
	for range 5 {
		start := time.Now()
		if err := in.conn.Ping(ctx); err != nil {
			return err
		}
		trip = min(trip, time.Since(start))
	}
	in.r.add("db.ok", "database", "%s answers in %s: PostgreSQL %d.%d", database.Redacted(url), trip.Round(10*time.Microsecond), version/10000, version%10000)
	if version < in.c.bounds.server {
		in.r.add("db.version", "database", "PostgreSQL %d.%d", version/10000, version%10000)
	}
	if trip > in.c.bounds.trip {
		in.r.add("db.slow", "database", "the shortest of five answers took %s", trip.Round(100*time.Microsecond))
	}
	return nil
}

func (in *inspection) durability(ctx context.Context) error {
	findings, err := desk.CheckServer(ctx, in.conn)
	if err != nil {
		return err
	}
	for _, f := range findings {
		in.r.add("db.durability", "durability", "%s is %s: %s", f.Setting, f.Value, f.Advice)
	}
	if len(findings) == 0 {
		in.r.add("db.durable", "durability", "the database keeps what it commits")
	}
	return nil
}

// standbyCount is the number in synchronous_standby_names, "ANY 2 (a, b, c)".
var standbyCount = regexp.MustCompile(`(?i)^\s*(?:first|any)?\s*(\d+)\s*\(`)

// replicas looks at the standbys. A role that may not see the state of others sees none.
func (in *inspection) replicas(ctx context.Context) error {
	var standbys string
	var seen, hidden int
	err := in.conn.QueryRow(ctx, `
		select current_setting('synchronous_standby_names'),
			(select count(*) from pg_stat_replication where sync_state in ('sync', 'quorum')),
			(select count(*) from pg_stat_replication where sync_state is null)`).Scan(&standbys, &seen, &hidden)
	if err != nil {
		return err
	}
	judgeReplicas(in.r, standbys, seen, hidden)
	return nil
}

// judgeReplicas compares synchronous_standby_names with the replicas that are in step
// and those whose state this role may not see.
func judgeReplicas(r *report, standbys string, seen, hidden int) {
	wanted := 1
	if m := standbyCount.FindStringSubmatch(standbys); m != nil {
		wanted, _ = strconv.Atoi(m[1])
	}
	switch {
	case standbys == "":
		r.add("db.replica-none", "replica", "synchronous_standby_names is empty")
	case seen >= wanted:
		r.add("db.replica", "replica", "%d in sync, %d needed", seen, wanted)
	case hidden > 0:
		r.skip("replica", "the role may not see the state of replicas (grant it pg_read_all_stats)")
	default:
		r.add("db.replica-missing", "replica", "%d of %d in synchronous_standby_names = %q", seen, wanted, standbys)
	}
}

func (in *inspection) protection(context.Context) error {
	conn := in.conn.PgConn().Conn()
	_, secured := conn.(*tls.Conn)
	cfg := in.conn.Config().TLSConfig
	verified := secured && cfg != nil && (!cfg.InsecureSkipVerify || cfg.VerifyPeerCertificate != nil)
	judgeProtection(in.r, conn.RemoteAddr(), secured, verified)
	return nil
}

// judgeProtection looks at the way to a database that is not on this machine.
func judgeProtection(r *report, to net.Addr, secured, verified bool) {
	tcp, isTCP := to.(*net.TCPAddr)
	switch {
	case !isTCP || tcp.IP.IsLoopback():
	case !secured:
		r.add("db.clear", "database", "no TLS with %s", tcp.IP)
	case !verified:
		r.add("db.unverified", "database", "TLS with %s, whose identity is not verified", tcp.IP)
	}
}

// clock compares with the middle of the shortest of some questions.
func (in *inspection) clock(ctx context.Context) error {
	best, skew := time.Hour, time.Duration(0)
	for range 3 {
		var theirs time.Time
		sent := in.c.now()
		if err := in.conn.QueryRow(ctx, `select clock_timestamp()`).Scan(&theirs); err != nil {
			return err
		}
		if trip := in.c.now().Sub(sent); trip < best {
			best, skew = trip, theirs.Sub(sent.Add(trip/2))
		}
	}
	off := skew.Abs() - best/2
	id, text := "db.clock", "in step with the database"
	switch {
	case off > clockWrong:
		id = "db.clock-wrong"
	case off > clockDrift:
		id = "db.clock-drift"
	}
	if id != "db.clock" {
		text = fmt.Sprintf("the database's clock is %s ahead", skew.Round(time.Millisecond))
		if skew < 0 {
			text = fmt.Sprintf("the database's clock is %s behind", (-skew).Round(time.Millisecond))
		}
	}
	in.r.add(id, "clock", "%s", text)
	return nil
}

func (in *inspection) schema(ctx context.Context) error {
	status, err := migrations.Check(ctx, in.conn)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == insufficientPrivilege {
		return nil // told by privileges
	}
	if err != nil {
		return err
	}
	switch err := status.Err(); {
	case errors.Is(err, migrations.ErrNewer):
		in.r.add("db.schema-new", "schema", "%v", err)
	case err != nil:
		in.r.add("db.schema-changed", "schema", "%v", err)
	case len(status.Pending) > 0:
		in.r.add("db.schema-old", "schema", "it lacks %d of %d migrations", len(status.Pending), len(status.Pending)+len(status.Applied))
	case status.Ahead():
		in.r.add("db.schema-ahead", "schema", "it has %s", status.Unknown[len(status.Unknown)-1])
	default:
		in.r.add("db.schema", "schema", "current, %s", status.Applied[len(status.Applied)-1])
	}
	return nil
}

// insufficientPrivilege is the SQLSTATE of what a role may not do.
const insufficientPrivilege = "42501"

// toldElsewhere reports that a question is about what the role may not see, or what is not
// there before a migration: privileges or schema tells of that.
func toldElsewhere(err error) bool {
	const undefinedTable, undefinedColumn, undefinedFunction = "42P01", "42703", "42883"
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == insufficientPrivilege || pg.Code == undefinedTable || pg.Code == undefinedColumn || pg.Code == undefinedFunction)
}

// bounds say from where on something is told.
type bounds struct {
	server      int           // the oldest version
	trip        time.Duration // to the database and back
	transaction time.Duration // that is open
	feed        time.Duration // for which it is held back
	deadRows    int64
	frozen      int64 // transactions since
	low, none   int64 // octets of room for the database
}

func defaultBounds() bounds {
	return bounds{
		server: 13_00_00, trip: 10 * time.Millisecond,
		transaction: 15 * time.Minute, feed: time.Minute, deadRows: 500_000, frozen: 1_000_000_000, low: 5 << 30, none: 256 << 20,
	}
}
