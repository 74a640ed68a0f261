package pgserver_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

func TestRunningFindsTheServerOfAFolder(t *testing.T) {
	t.Parallel()
	dir := pgtest.Dir(t)
	if _, ok := pgserver.Running(dir); ok {
		t.Fatal("a server in a folder that is not there")
	}
	s, err := pgserver.Start(t.Context(), pgserver.Config{Dir: dir, Unsafe: true})
	if err != nil {
		t.Fatal(err)
	}
	url, ok := pgserver.Running(dir)
	if !ok {
		t.Fatal("the running server was not found")
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(t.Context())
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, ok := pgserver.Running(dir); ok {
		t.Error("found after it was stopped")
	}
}
