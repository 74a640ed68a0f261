package migrations_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/migrations"
)

func folder(files map[string]string) fs.FS {
	fsys := make(fstest.MapFS)
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

func set(t *testing.T, files map[string]string) []migrations.Migration {
	t.Helper()
	set, err := migrations.Load(folder(files))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func connect(t *testing.T, db *pgtest.DB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestLoad(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files map[string]string
		want  []string
		err   string
	}{
		{"in order, with gaps", map[string]string{"0010_c.sql": "", "0001_a.sql": "", "0002_b_b.sql": "", "load.go": ""},
			[]string{"0001_a", "0002_b_b", "0010_c"}, ""},
		{"no number", map[string]string{"queue.sql": ""}, nil, "NNNN_name.sql"},
		{"number 0", map[string]string{"0000_a.sql": ""}, nil, "start at 0001"},
		{"runs with a later one", map[string]string{"0002_a.sql": "-- Runs with: 0003\n"}, nil, "0002_a.sql says that it runs with 0003"},
		{"runs with none", map[string]string{"0002_a.sql": "-- Runs with: 0000\n"}, nil, "0002_a.sql says that it runs with 0000"},
		{"number twice", map[string]string{"0001_a.sql": "", "0001_b.sql": ""}, nil, "same number"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			set, err := migrations.Load(folder(test.files))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want one with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range set {
				got = append(got, m.String())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestWalkFromEmpty applies this program's own files and the next version's one by one, as
// releases do, and all together, and compares the schemas.
func TestWalkFromEmpty(t *testing.T) {
	t.Parallel()
	all, err := migrations.All()
	if err != nil {
		t.Fatal(err)
	}
	next, err := migrations.Load(os.DirFS("next"))
	if err != nil || len(next) == 0 {
		t.Fatal(next, err)
	}
	all = append(all, next...)
	stepwise := connect(t, pgtest.Empty(t))
	for i := range all {
		var applied []string
		log := func(line string) { applied = append(applied, line) }
		if err := migrations.ApplySet(t.Context(), stepwise, all[:i+1], log); err != nil {
			t.Fatal(err)
		}
		if want := []string{"applied migration " + all[i].String()}; !cmp.Equal(want, applied) {
			t.Errorf("step %d logged %q, want %q", i, applied, want)
		}
	}
	together := connect(t, pgtest.Empty(t))
	if err := migrations.ApplySet(t.Context(), together, all, nil); err != nil {
		t.Fatal(err)
	}
	want := schema(t, together)
	if len(want) == 0 {
		t.Fatal("the schema is empty")
	}
	if diff := cmp.Diff(want, schema(t, stepwise)); diff != "" {
		t.Errorf("-together +step by step:\n%s", diff)
	}
	status, err := migrations.CheckSet(t.Context(), together, all)
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Applied) != len(all) || len(status.Pending) != 0 || status.Err() != nil {
		t.Errorf("after all, the status is %+v", status)
	}
}

// schema lists every column, and every index and constraint by its definition.
func schema(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		select table_name || '.' || column_name || ' ' || data_type || ' ' || coalesce(column_default, '')
		  from information_schema.columns where table_schema = 'public'
		union all select indexdef from pg_indexes where schemaname = 'public'
		union all select conrelid::regclass || ' ' || pg_get_constraintdef(oid)
		  from pg_constraint where connamespace = 'public'::regnamespace
		order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// TestRetentionNamesEveryTable: who deletes what is said of each table in
// docs/retention.md, and of nothing that is none.
func TestRetentionNamesEveryTable(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/retention.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(page), "## Every table")
	list, _, _ = strings.Cut(list, "\n## ")
	if !found {
		t.Fatal("the list is not there")
	}
	named := make(map[string]bool)
	for line := range strings.Lines(list) {
		if cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " |"); ok && strings.HasPrefix(line, "| `") {
			for name := range strings.SplitSeq(cell, ", ") {
				named[strings.Trim(name, "`")] = true
			}
		}
	}
	rows, err := connect(t, pgtest.New(t)).Query(t.Context(), `select relname from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if !named[table] {
			t.Errorf("docs/retention.md does not say who deletes from %s", table)
		}
		delete(named, table)
	}
	for name := range named {
		t.Errorf("docs/retention.md has the table %s, which is none", name)
	}
}

func TestApplyAgainChangesNothing(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.New(t))
	log := func(line string) { t.Errorf("a migrated database logged %q", line) }
	if err := migrations.Apply(t.Context(), conn, log); err != nil {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	all, err := migrations.All()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var applied []string
	log := func(line string) {
		mu.Lock()
		defer mu.Unlock()
		applied = append(applied, line)
	}
	var nodes sync.WaitGroup
	for range 6 {
		conn := connect(t, db)
		nodes.Go(func() {
			if err := migrations.Apply(t.Context(), conn, log); err != nil {
				t.Error(err)
			}
		})
	}
	nodes.Wait()
	if len(applied) != len(all) {
		t.Errorf("%d nodes applied %q, want each of %d once", 6, applied, len(all))
	}
}

func TestFailedFileLeavesNothing(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.Empty(t))
	broken := set(t, map[string]string{
		"0001_good.sql": "create table good (id integer);",
		"0002_bad.sql":  "create table half (id integer);\n-- ünïcödé\ncreate table bad (id no_such_type);",
	})
	err := migrations.ApplySet(t.Context(), conn, broken, nil)
	if err == nil || !strings.Contains(err.Error(), "0002_bad.sql:3:") {
		t.Fatalf("error %v, want one that names file and line", err)
	}
	var tables string
	err = conn.QueryRow(t.Context(),
		`select string_agg(tablename, ' ' order by tablename) from pg_tables where schemaname = 'public'`).Scan(&tables)
	if err != nil {
		t.Fatal(err)
	}
	if want := "good schema_migration"; tables != want {
		t.Errorf("tables %q, want %q", tables, want)
	}
	mended := append(broken[:1:1], set(t, map[string]string{"0002_bad.sql": "create table bad (id integer)"})...)
	if err := migrations.ApplySet(t.Context(), conn, mended, nil); err != nil {
		t.Errorf("after mending a file that was never applied: %v", err)
	}
}

// TestTableInUse: a file that waits for a table does not keep others from it for long,
// and is applied once the table is free.
func TestTableInUse(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	conn, backup, mail := connect(t, db), connect(t, db), connect(t, db)
	first := map[string]string{"0001_a.sql": "create table a (n integer)"}
	if err := migrations.ApplySet(t.Context(), conn, set(t, first), nil); err != nil {
		t.Fatal(err)
	}
	reading, err := backup.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reading.Exec(t.Context(), "lock table a in access share mode"); err != nil {
		t.Fatal(err)
	}
	first["0002_b.sql"] = "alter table a add m integer"
	lines, ended := make(chan string, 10), make(chan error, 1)
	program := set(t, first)
	go func() {
		ended <- migrations.ApplySet(t.Context(), conn, program, func(line string) { lines <- line })
	}()
	select {
	case line := <-lines:
		if !strings.Contains(line, "waiting for a table") {
			t.Errorf("it says %q", line)
		}
	case <-time.After(3 * time.Minute):
		t.Error("it waits, and says nothing")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := mail.Exec(ctx, "insert into a values (1)"); err != nil {
		t.Errorf("a session behind the migration: %v", err)
	}
	if err := reading.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if line := <-lines; !strings.Contains(line, "0002_b") {
		t.Errorf("then it says %q", line)
	}
}

func TestDatabasesThatAreRefused(t *testing.T) {
	t.Parallel()
	applied := map[string]string{"0001_a.sql": "create table a ()", "0002_b.sql": "create table b ()"}
	tests := []struct {
		name    string
		program map[string]string
		want    error
		names   string
	}{
		{"newer", map[string]string{"0001_a.sql": applied["0001_a.sql"], "0003_c.sql": "create table c ()"},
			migrations.ErrNewer, "0002_b"},
		{"changed text", map[string]string{"0001_a.sql": "create table a (id integer)", "0002_b.sql": applied["0002_b.sql"], "0003_c.sql": "create table c ()"},
			migrations.ErrChanged, "0001_a"},
		{"changed name", map[string]string{"0001_a.sql": applied["0001_a.sql"], "0002_x.sql": applied["0002_b.sql"], "0003_c.sql": "create table c ()"},
			migrations.ErrChanged, "0002_b"},
		{"of before 0.1.0: changed text, and what nobody knows", map[string]string{"0001_a.sql": "create table a (id integer)", "0003_c.sql": "create table c ()"},
			migrations.ErrChanged, "0001_a; run the version that applied it, or migrate an empty database"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			conn := connect(t, pgtest.Empty(t))
			if err := migrations.ApplySet(t.Context(), conn, set(t, applied), nil); err != nil {
				t.Fatal(err)
			}
			program := set(t, test.program)
			err := migrations.ApplySet(t.Context(), conn, program, nil)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.names) {
				t.Errorf("error %v, want %v with %s", err, test.want, test.names)
			}
			status, err := migrations.CheckSet(t.Context(), conn, program)
			if err != nil {
				t.Fatal(err)
			}
			if !errors.Is(status.Err(), test.want) {
				t.Errorf("status says %v, want %v", status.Err(), test.want)
			}
			if len(status.Pending) != 1 || len(status.Applied) != 2 {
				t.Errorf("pending %v, applied %v: something was changed", status.Pending, status.Applied)
			}
		})
	}
}

func TestCheckOfAnUntouchedDatabase(t *testing.T) {
	t.Parallel()
	all, err := migrations.All()
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, pgtest.Empty(t))
	status, err := migrations.Check(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Pending) != len(all) || len(status.Applied) != 0 || status.Err() != nil {
		t.Errorf("status %+v, want %d pending", status, len(all))
	}
	if lines := schema(t, conn); len(lines) > 0 {
		t.Errorf("checking made %q", lines)
	}
}

// TestOlderProgram: a program runs on a database that a newer one has migrated if every
// file that it does not know says so, and then changes nothing there.
func TestOlderProgram(t *testing.T) {
	t.Parallel()
	a := map[string]string{"0001_a.sql": "create table a ()", "0002_b.sql": "create table b ()"}
	for name, tc := range map[string]struct {
		more map[string]string // of the newer program
		runs bool
	}{
		"nothing is said":        {map[string]string{"0003_c.sql": "create table c ()"}, false},
		"with its version":       {map[string]string{"0003_c.sql": "-- Runs with: 0002\ncreate table c ()"}, true},
		"with an earlier one":    {map[string]string{"0003_c.sql": "-- Runs with: 0001\ncreate table c ()"}, true},
		"only with a later one":  {map[string]string{"0003_c.sql": "-- Runs with: 0003\ncreate table c ()"}, false},
		"two that do":            {map[string]string{"0003_c.sql": "-- Runs with: 0002\ncreate table c ()", "0004_d.sql": "-- Runs with: 0001\ncreate table d ()"}, true},
		"one of two does not":    {map[string]string{"0003_c.sql": "-- Runs with: 0002\ncreate table c ()", "0004_d.sql": "-- Runs with: 0003\ncreate table d ()"}, false},
		"not in the first line":  {map[string]string{"0003_c.sql": "\n-- Runs with: 0002\ncreate table c ()"}, false},
		"not in so many letters": {map[string]string{"0003_c.sql": "-- runs with: 2\ncreate table c ()"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := connect(t, pgtest.Empty(t))
			newer := maps.Clone(a)
			maps.Copy(newer, tc.more)
			if err := migrations.ApplySet(t.Context(), conn, set(t, newer), nil); err != nil {
				t.Fatal(err)
			}
			older := set(t, a)
			status, err := migrations.CheckSet(t.Context(), conn, older)
			if err != nil {
				t.Fatal(err)
			}
			if status.Ahead() != tc.runs || (status.Err() == nil) != tc.runs || !tc.runs && !errors.Is(status.Err(), migrations.ErrNewer) {
				t.Errorf("ahead: %t, %v; runs: %t", status.Ahead(), status.Err(), tc.runs)
			}
			log := func(line string) { t.Errorf("the older program did something: %s", line) }
			if err := migrations.ApplySet(t.Context(), conn, older, log); (err == nil) != tc.runs {
				t.Errorf("apply: %v; runs: %t", err, tc.runs)
			}
		})
	}
}

// Times that are read whole, with all other rows of their tables, are finite: one that no program
// can read would keep the others from being read.
func TestFiniteTimes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	rows, err := db.Pool.Query(t.Context(), `
select c.table_name || '.' || c.column_name from information_schema.columns c
where c.table_name in ('upstream', 'upstream_reply', 'route', 'upstream_token', 'sealing_key', 'upstream_breaker', 'dkim_domain', 'dkim_key', 'sts_policy', 'transport_override')
	and c.data_type in ('timestamp with time zone', 'date', 'interval')
	and not exists (select from pg_constraint k where k.conrelid = c.table_name::regclass and pg_get_constraintdef(k.oid) ~ ('isfinite\(' || c.column_name || '\)'))`)
	if err != nil {
		t.Fatal(err)
	}
	lacking, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(lacking) > 0 {
		t.Errorf("may be infinite: %q, %v", lacking, err)
	}
}
