package check

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/internal/peers"
	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

func sql(statement string, args ...any) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) { p.sql(t, statement, args...) }
}

func bound(change func(*bounds)) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { change(&p.c.bounds) }
}

// loggingValues is how many set a server to find out what goes on.
func loggingValues(t *testing.T, p *patient) {
	p.admit(t)
	for _, setting := range []string{"log_statement = 'all'", "log_parameter_max_length = -1"} {
		p.sql(t, "alter database "+p.pool.Config().ConnConfig.Database+" set "+setting)
	}
}

// The tests' server has it off; without that, and with what is off by default, values
// would be logged.
func TestL2CheckFindsLoggedValues(t *testing.T) {
	t.Parallel()
	quiet := map[string]string{
		"log_statement": "none", "log_min_duration_statement": "-1", "log_min_duration_sample": "-1", "log_transaction_sample_rate": "0",
		"log_parameter_max_length": "-1", "log_parameter_max_length_on_error": "0",
	}
	for _, test := range []struct{ name, value, want string }{
		{"log_statement", "none", ""}, {"log_statement", "ddl", ""},
		{"log_statement", "mod", "log_statement is mod, and log_parameter_max_length is -1"},
		{"log_min_duration_statement", "250", "log_min_duration_statement is 250, and log_parameter_max_length is -1"},
		{"log_min_duration_sample", "0", "log_min_duration_sample is 0, and"},
		{"log_transaction_sample_rate", "0.1", "log_transaction_sample_rate is 0.1, and"},
		{"log_parameter_max_length_on_error", "64", "log_parameter_max_length_on_error is 64"},
	} {
		settings := maps.Clone(quiet)
		settings[test.name] = test.value
		if got := loggedValues(settings); !strings.HasPrefix(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s = %s: %q, want %q", test.name, test.value, got, test.want)
		}
		settings["log_parameter_max_length"] = "0"
		if got := loggedValues(settings); got != "" && test.name != "log_parameter_max_length_on_error" {
			t.Errorf("%s = %s without values: %q", test.name, test.value, got)
		}
	}
	p := newPatient(t)
	loggingValues(t, p)
	wantFinding(t, p.look(t.Context(), "database"), "db.logs-values", "log_statement is all")
}

func databaseFaults() []fault {
	return []fault{
		{"db.ok", "PostgreSQL", nothing},
		{"db.replica-none", "is empty", nothing},
		{"db.superuser", "is a superuser", nothing},
		{"db.clock", "in step", nothing},
		{"db.schema", "current", nothing},
		{"db.logs-values", "log_statement is all, and log_parameter_max_length is -1", loggingValues},
		{"db.room", "free for the database", nothing},
		{"db.none", "--database-url", setting(func(c *config.Config) { c.Database.URL = "" })},
		{"db.private-none", "no private database yet", func(_ *testing.T, p *patient) { p.c.cfg.Database.Private = filepath.Join(p.dir, "db") }},
		{"db.private", "mode 0777", func(t *testing.T, p *patient) {
			p.c.cfg.Database.Private = filepath.Join(p.dir, "db")
			if err := os.Mkdir(p.c.cfg.Database.Private, 0o700); err != nil {
				t.Fatal(err)
			}
			chmod("db", 0o777)(t, p)
		}},
		{"db.unreachable", "refused", func(t *testing.T, p *patient) { p.c.cfg.Database.URL = "postgres://" + closedPort(t) + "/x" }},
		{"db.unreachable", "malformed", setting(func(c *config.Config) { c.Database.URL = "mysql:nonsense" })},
		{"db.version", "PostgreSQL", bound(func(b *bounds) { b.server = 990000 })},
		{"db.slow", "the shortest of five", bound(func(b *bounds) { b.trip = 0 })},
		{"db.schema-old", "it lacks", func(t *testing.T, p *patient) { p.c.cfg.Database.URL = pgtest.Empty(t).URL }},
		{"db.schema-new", "9999_future", sql(`insert into schema_migration (version, oldest, name, checksum) values (9999, 9999, 'future', '')`)},
		{"db.schema-ahead", "9999_future", sql(`insert into schema_migration (version, name, checksum, oldest) values (9999, 'future', '', 1)`)},
		{"db.schema-changed", "0001_queue", sql(`update schema_migration set checksum = 'other' where version = 1`)},
		{"db.privileges", "lacks", lesserRole},
		{"db.clock-drift", "behind", later(3 * time.Second)},
		{"db.clock-drift", "ahead", later(-3 * time.Second)},
		{"db.clock-wrong", "behind", later(time.Hour)},
		{"db.error", "nodes", sql(`alter table node drop column superseded_at cascade`)},
		{"node.ok", "1 alive: other.test", livingNode("other.test")},
		{"node.taken", `"relay.test" is alive`, livingNode(patientName)},
		{"node.twice", `"relay.test" was taken over`, takenOver},
		{"db.old-transaction", "process", openTransaction},
		{"feed.held", "process", heldFeed},
		{"webhook.disabled", "gone", sql(insertWebhook + `values ('a', 'disabled', 'gone', now(), null, null, 'https://example.com', 8, '', '')`)},
		{"webhook.behind", "behind, 0 requests in a row failed", sql(insertWebhook + `values ('a', 'active', '', now() - interval '2 hours', null, null, 'https://example.com', 8, '', '')`)},
		{"webhook.gone", "events until", sql(insertWebhook + `values ('a', 'active', '', now(), now(), now(), 'https://example.com', 8, '', '')`)},
		{"db.dead-rows", "app_user", deletedRows},
		{"db.wraparound", "transactions since", bound(func(b *bounds) { b.frozen = 0 })},
		{"db.room-low", "free", bound(func(b *bounds) { b.low = 1 << 60 })},
		{"queue.set-aside", "its size is -1", sql(`insert into recipient (message_id, n, user_id, expires_at, held_at, set_aside, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
			values (gen_random_uuid(), 0, 1, now(), now(), 'its size is -1', 0, 0, 'x', 'a', 'x', '', '')`)},
		{"queue.in-doubt", "1 recipient in doubt", sql(`insert into recipient (message_id, n, user_id, expires_at, held_at, doubt, stays_with, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
			values (gen_random_uuid(), 0, 1, now(), now(), 'hold', 'out', 0, 0, 'x', 'a', 'x', '', '')`)},
		{"queue.held", "1 recipient", sql(`insert into recipient (message_id, n, user_id, expires_at, held_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
			values (gen_random_uuid(), 0, 1, now(), now(), 0, 0, 'x', 'a', 'x', '', '')`)},
		{"queue.held", "on hold: alice: why", sql(`with u as (insert into app_user (name) values ('alice') returning id) insert into hold (user_id, reason, made_by) select id, 'why', 'root' from u`)},
		{"queue.lost", "1", sql(`insert into notice (message_id, about, user_id, again, kind, lost, lost_at) values (gen_random_uuid(), gen_random_uuid(), 1, false, 'failure', 'failed', now())`)},
		{"alerts.undelivered", "-", sql(`with m as (update alert set mailed_at = now() - interval '61 minutes', message_id = gen_random_uuid() returning message_id)
			insert into recipient (message_id, n, user_id, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
			select message_id, 0, 0, now(), 0, 0, 'x', 'a', 'x', '', '' from m`)},
		{"db.full", "since", sql(`update room set full_at = now()`)},
		{"db.room-none", "free", bound(func(b *bounds) { b.none = 1 << 60 })},
		{"db.connections", "20 allowed, and this node may open 35", func(t *testing.T, p *patient) {
			p.admit(t)
			p.sql(t, "alter database "+p.pool.Config().ConnConfig.Database+" connection limit 20")
		}},
		{"db.connections-tight", "nodes", crowd},
		{"db.query-mode", "default_query_exec_mode=exec", mode("exec")},
		{"db.query-mode", "default_query_exec_mode=simple_protocol", mode("simple_protocol")},
		{"db.pooler-statements", "42P05", behindPooler("transaction", "cache_statement")},
		{"db.pooler-statements", "default_query_exec_mode=describe_exec", behindPooler("transaction", "describe_exec")},
		{"db.pooler", "two connections shared one", behindPooler("transaction", "cache_describe")},
		{"db.pooler-statements", "statement pooling mode", behindPooler("statement", "cache_describe")},
	}
}

// mode sets the query mode of the patient's URL.
func mode(name string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		u, err := url.Parse(p.c.cfg.Database.URL)
		if err != nil {
			t.Fatal(err)
		}
		query := u.Query()
		query.Set("default_query_exec_mode", name)
		u.RawQuery = query.Encode()
		p.c.cfg.Database.URL = u.String()
	}
}

// behindPooler gives the patient a database behind a PgBouncer.
func behindPooler(lends, mode string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		host := fmt.Sprintf("127.%d.%d.%d", 1+mathrand.N(250), mathrand.N(250), 1+mathrand.N(250))
		pgtest.Server(t, pgserver.Config{Unsafe: true, Settings: map[string]string{"listen_addresses": host}})
		pooler := peers.StartPooler(t, peers.PoolerConfig{Mode: lends, Host: host, User: "postern", Servers: 20})
		p.c.cfg.Database.URL = fmt.Sprintf("postgres://postern@127.0.0.1:%d/postgres?sslmode=disable&default_query_exec_mode=%s",
			pooler.Port, mode)
	}
}

// The schema's finding tells of an older schema, and nothing else takes it for trouble.
func TestCheckBeforeTheMigration(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, p *patient){
		"no schema": func(t *testing.T, p *patient) { p.c.cfg.Database.URL = pgtest.Empty(t).URL },
		"an older one": func(t *testing.T, p *patient) {
			p.sql(t, `alter table recipient drop column set_aside; drop table room`)
		},
		"another owner": func(t *testing.T, p *patient) { as(t, p) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.admit(t)
			change(t, p)
			for _, f := range p.look(t.Context(), "database") {
				if f.ID == "db.error" {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

// The check leaves none of its prepared statements on a pooler's connections to the server.
func TestCheckLeavesNoStatements(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	behindPooler("transaction", "cache_statement")(t, p)
	if found := p.look(t.Context(), "database"); !slices.ContainsFunc(found, func(f health.Finding) bool { return f.ID == "db.pooler-statements" }) {
		t.Fatal(told(found))
	}
	// Transactions at the same time are on different ones, as many as there are.
	for range 10 {
		conn, err := p.c.dialer.Connect(t.Context(), p.c.cfg.Database.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var left int
		if err := tx.QueryRow(t.Context(), `select count(*) from pg_prepared_statements where name like 'postern%'`).Scan(&left); err != nil || left > 0 {
			t.Errorf("%d statements are left, %v", left, err)
		}
	}
}

// The role is not blamed for what nodes set for each of their connections, though a pooler
// passes that on.
func TestCheckTakesSettingsOfThePool(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	behindPooler("transaction", "cache_describe")(t, p)
	conn, err := pgx.Connect(t.Context(), p.c.cfg.Database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `set lock_timeout = '15s'`); err != nil {
		t.Fatal(err)
	}
	for _, f := range p.look(t.Context(), "database") {
		if f.ID == "db.timeouts" {
			t.Errorf("%+v", f)
		}
	}
}

func TestCheckFindsFaultsOfTheDatabase(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t) // of those that change nothing
	find(t, databaseFaults(), "database", func(_ *testing.T, p *patient) { p.c.cfg.Database.URL = db.URL })
}

// lesserRole lets the check be a role that may read only.
func lesserRole(t *testing.T, p *patient) {
	as(t, p, "select on all tables in schema public")
}

// as gives the patient another role, with what a grant names, and returns its name.
func as(t *testing.T, p *patient, grants ...string) (role string) {
	t.Helper()
	name := "reader_" + strings.ToLower(rand.Text()[:12])
	p.sql(t, "create role "+name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := p.pool.Exec(ctx, "drop owned by "+name+"; drop role "+name); err != nil {
			t.Error(err)
		}
	})
	for _, grant := range grants {
		p.sql(t, "grant "+grant+" to "+name)
	}
	u, err := url.Parse(p.c.cfg.Database.URL)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("options", "-crole="+name)
	u.RawQuery = query.Encode()
	p.c.cfg.Database.URL = u.String()
	return name
}

// A role that could not write down what becomes of mail: the check says what it lacks, and
// a node is told which GRANTs are missing. With these it starts.
func TestL2RoleWithoutPrivileges(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.admit(t)
	all := "select, insert, update, delete on all tables in schema public"
	role := as(t, p, all, "truncate on large_body_0, large_body_1, large_body_2, large_body_3, reserve", "usage on sequence certificate_lock_token")
	require := func() error {
		conn, err := p.c.dialer.Connect(t.Context(), p.c.cfg.Database.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		return database.RequirePrivileges(t.Context(), conn)
	}
	p.sql(t, "revoke insert, update, delete on schema_migration from "+role)
	if err := require(); err != nil {
		t.Errorf("nothing is missing: %v", err)
	}
	for _, test := range []struct{ revoked, says string }{
		{"insert on history", "grant INSERT on history to " + role},
		{"update, delete on recipient", "grant UPDATE, DELETE on recipient to " + role},
		{"truncate on large_body_2", "grant TRUNCATE on large_body_2 to " + role},
		{"usage on sequence certificate_lock_token", "grant USAGE on sequence certificate_lock_token to " + role},
		{"select on schema_migration", "grant SELECT on schema_migration to " + role},
		{"select on live_epoch", "grant SELECT on live_epoch to " + role},
	} {
		p.sql(t, "revoke "+test.revoked+" from "+role)
		err := require()
		if err == nil || !strings.HasSuffix(err.Error(), "run as the owner of the tables: "+test.says) {
			t.Errorf("without %s: %v", test.revoked, err)
		}
		p.sql(t, test.says)
		if err := require(); err != nil {
			t.Errorf("after %s: %v", test.says, err)
		}
	}
	p.sql(t, "revoke insert on history from "+role)
	wantFinding(t, p.look(t.Context(), "database"), "db.privileges", role+" lacks INSERT on history")
}

// livingNode is what a node leaves in the database.
func livingNode(name string) func(*testing.T, *patient) {
	return sql(`insert into node (name, expires_at) values ($1, clock_timestamp() + interval '1 hour')`, name)
}

// takenOver is what two processes of one name leave, of which this machine runs one.
func takenOver(t *testing.T, p *patient) {
	listening(sayingHello(patientName))(t, p)
	p.sql(t, `insert into node (name, expires_at, superseded_at) values ($1, clock_timestamp() + interval '20 seconds', clock_timestamp())`, patientName)
	livingNode(patientName)(t, p)
}

func openTransaction(t *testing.T, p *patient) {
	p.admit(t)
	p.c.bounds.transaction = 0
	begin(t, p.c.cfg.Database.URL)
}

// heldFeed has a transaction of another database hold the feed back.
func heldFeed(t *testing.T, p *patient) {
	p.admit(t)
	p.c.bounds.feed = 0
	begin(t, pgtest.New(t).URL)
}

// A transaction in another database of the server keeps no row of ours.
func TestCheckLooksAtItsOwnDatabase(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.admit(t)
	p.c.bounds.transaction = 0
	begin(t, pgtest.New(t).URL)
	found := p.look(t.Context(), "database")
	wantFinding(t, found, "db.ok", "")
	wantNone(t, found, "db.old-transaction")
}

// begin opens a transaction that lasts as long as the test.
func begin(t *testing.T, url string) {
	t.Helper()
	tx, err := connection(t, url).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select txid_current()`); err != nil {
		t.Fatal(err)
	}
}

func deletedRows(t *testing.T, p *patient) {
	p.c.bounds.deadRows = 20
	p.sql(t, `insert into app_user (name) select 'user' || n from generate_series(1, 50) n`)
	p.sql(t, `delete from app_user`)
	p.pool.Reset() // what a connection knows of rows it tells at its end
	p.waitSQL(t, `select coalesce(max(n_dead_tup), 0) > 20 from pg_stat_user_tables where relname = 'app_user'`)
}

func crowd(t *testing.T, p *patient) {
	p.sql(t, `insert into node (name, expires_at) select 'node' || n, clock_timestamp() + interval '1 hour' from generate_series(1, 200) n`)
}

// A server as pgserver makes it for one machine has nothing that is to be mended, until
// it is set up to lose mail, to hold it up and to grow.
func TestCheckJudgesTheServer(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	db := pgtest.On(t, pgtest.Server(t, pgserver.Config{}))
	p.c.cfg.Database.URL, p.pool = db.URL, db.Pool
	found := p.look(t.Context(), "database")
	wantFinding(t, found, "db.durable", "keeps what it commits")
	for _, f := range found {
		if f.Status == health.Failed || f.Status == health.Warning {
			t.Errorf("%+v", f)
		}
	}
	p.sql(t, `select pg_create_physical_replication_slot('gone', true)`)
	for _, setting := range []string{"fsync = off", "synchronous_commit = off", "synchronous_standby_names = 'ANY 2 (a, b, c)'",
		"autovacuum = off", "statement_timeout = '30s'"} {
		p.sql(t, "alter system set "+setting)
	}
	p.sql(t, `select pg_reload_conf()`)
	p.pool.Reset()
	p.waitSQL(t, `select current_setting('fsync') = 'off' and current_setting('statement_timeout') = '30s'`)
	found = p.again().look(t.Context(), "database")
	wantFinding(t, found, "db.durability", "fsync is off: set it to on")
	wantFinding(t, found, "db.durability", "synchronous_commit is off")
	wantFinding(t, found, "db.replica-missing", "0 of 2")
	wantFinding(t, found, "db.autovacuum", "autovacuum is off")
	wantFinding(t, found, "db.timeouts", "statement_timeout is 30000 ms")
	wantFinding(t, found, "db.slot", "gone")
	p.sql(t, `select pg_drop_replication_slot('gone')`)
}

func TestCheckJudgesTheWayToTheDatabase(t *testing.T) {
	t.Parallel()
	remote, local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	for _, test := range []struct {
		to                net.Addr
		secured, verified bool
		want              string
	}{
		{remote, false, false, "db.clear"}, {remote, true, false, "db.unverified"}, {remote, true, true, ""},
		{local, false, false, ""}, {&net.UnixAddr{Name: "/run/x"}, false, false, ""},
	} {
		r := &report{}
		judgeProtection(r, test.to, test.secured, test.verified)
		found := r.close()
		switch {
		case test.want != "":
			wantFinding(t, found, test.want, "192.0.2.1")
		case len(found) > 0:
			t.Errorf("%+v: %+v", test, found)
		}
	}
}

func TestCheckJudgesReplicas(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		standbys     string
		seen, hidden int
		want         string
	}{
		{"", 0, 0, "db.replica-none"}, {"standby1", 1, 0, "db.replica"}, {"*", 0, 0, "db.replica-missing"},
		{"FIRST 1 (a, b)", 1, 0, "db.replica"}, {"ANY 2 (a, b, c)", 1, 0, "db.replica-missing"}, {"any 2 (a, b, c)", 2, 1, "db.replica"},
		{"2 (a, b)", 1, 0, "db.replica-missing"}, {"standby1", 0, 1, "check.skipped"},
	} {
		r := &report{}
		judgeReplicas(r, test.standbys, test.seen, test.hidden)
		wantFinding(t, r.close(), test.want, "")
	}
}

// A check makes no private database, in no area; a full disk is told where the nodes ask it.
func TestCheckMakesNoPrivateDatabase(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.c.cfg.Database.Private = filepath.Join(p.dir, "db")
	found := p.look(t.Context(), "database", "account", "route")
	wantFinding(t, found, "db.private-none", "db")
	wantFinding(t, found, "check.skipped", "no private database yet")
	if _, err := os.Stat(p.c.cfg.Database.Private); !os.IsNotExist(err) {
		t.Errorf("the folder is there: %v", err)
	}
}

func TestCheckJudgesTheRoom(t *testing.T) {
	t.Parallel()
	b := bounds{none: 256, low: 1000}
	for _, test := range []struct {
		free, reserve int64
		want          string
	}{
		{1000, 64, "db.room"}, {999, 64, "db.room-low"}, {255, 64, "db.room-none"}, {64, 64, "db.room-none"},
		{63, 64, "db.full"}, {63, 0, "db.room-none"}, {500, 512, "db.full"},
	} {
		r := &report{}
		judgeRoom(r, test.free, test.reserve, b)
		if found := r.close(); len(found) != 1 || found[0].ID != test.want {
			t.Errorf("%d free, %d in reserve: %v, want %s", test.free, test.reserve, found, test.want)
		}
	}
}

const insertWebhook = `insert into webhook (name, state, reason, place_at, gone_until, gone_at, url, at_once, cursor, secret) `
