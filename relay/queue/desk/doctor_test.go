package desk

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
)

func TestCheckServer(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, pgserver.Config{})
	conn, err := pgx.Connect(queuetest.Context(t), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if found, err := CheckServer(queuetest.Context(t), conn); err != nil || len(found) != 0 {
		t.Fatalf("a durable server: %v, %v", found, err)
	}
	if _, err := conn.Exec(queuetest.Context(t), `set synchronous_commit = off; set default_transaction_read_only = on`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if found, err := CheckServer(queuetest.Context(t), conn); err != nil || len(found) != 2 {
		t.Fatalf("a server that is not durable: %v, %v", found, err)
	}
	good := map[string]string{"fsync": "off", "full_page_writes": "off", "synchronous_commit": "local", "data_sync_retry": "on",
		"server_encoding": "LATIN1", "default_transaction_read_only": "on", "default_transaction_isolation": "serializable"}
	if got := judgeSettings(good, true); len(got) != 8 {
		t.Fatalf("%d findings: %v", len(got), got)
	}
}
