package pgtest_test

import (
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// TestAnotherServer lets three processes of these tests share a server concurrently,
// which none of them has used before.
func TestAnotherServer(t *testing.T) {
	t.Parallel()
	if os.Getenv("POSTERN_TEST_DATABASE_URL") != "" {
		t.Log("this is what runs now")
		return
	}
	server := pgtest.Server(t, pgserver.Config{Unsafe: true})
	var processes sync.WaitGroup
	for range 3 {
		processes.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=TestDatabasesAreApart|TestNewIsMigrated")
			cmd.Env = append(os.Environ(), "POSTERN_TEST_DATABASE_URL="+server.URL())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	processes.Wait()

	db := pgtest.On(t, server)
	var left, templates int
	err := db.Pool.QueryRow(t.Context(), `
		select count(*) filter (where datname like 'postern_test_%' and datname <> current_database()),
		       count(*) filter (where datname like 'postern_template_%')
		from pg_database`).Scan(&left, &templates)
	if err != nil {
		t.Fatal(err)
	}
	if left != 0 || templates != 1 {
		t.Errorf("they left %d databases and %d templates, want 0 and 1", left, templates)
	}
}

// TestAServerThatTheTestKills must not fail the test when its databases can no
// longer be dropped.
func TestAServerThatTheTestKills(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, pgserver.Config{Dir: pgtest.Dir(t)})
	db := pgtest.On(t, server)
	if _, err := db.Pool.Exec(t.Context(), `create table kept (id integer)`); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	pgtest.Server(t, pgserver.Config{Dir: server.Dir()})
	db.Pool.Reset() // its connections are dead
	if _, err := db.Pool.Exec(t.Context(), `select from kept`); err != nil {
		t.Errorf("what was committed before the kill: %v", err)
	}
}

// TestNoServerIsAFailure: a test without its database must not look like one
// that passed.
func TestNoServerIsAFailure(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=TestNewIsMigrated")
	cmd.Env = append(os.Environ(), "POSTERN_TEST_DATABASE_URL=postgres:///?host=/nonexistent")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--- FAIL: TestNewIsMigrated") {
		t.Errorf("without a server the test ended with %v:\n%s", err, out)
	}
}
