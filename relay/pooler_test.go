package relay_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/peers"
	"postern/internal/rig"
)

// pooled is an installation with a PgBouncer in front of its database, and the URL that
// leads through it.
func pooled(t *testing.T, mode, query string) (r *rig.Rig, url string) {
	t.Helper()
	r, host := rig.NewTCP(t)
	p := peers.StartPooler(t, peers.PoolerConfig{Mode: mode, Host: host, User: "postern", Servers: 60, First: documentedSettings(t)})
	return r, fmt.Sprintf("postgres://postern@127.0.0.1:%d/postgres?sslmode=disable%s", p.Port, query)
}

// documentedSettings is the connect_query of docs/postgres.md.
func documentedSettings(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/postgres.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`connect_query='([^']+)'`).FindSubmatch(page)
	if found == nil {
		t.Fatal("docs/postgres.md has no connect_query")
	}
	return string(found[1])
}

// deliver sends a load through a node that speaks to its database by url, and expects all
// of it to arrive.
func deliver(t *testing.T, r *rig.Rig, url string) *rig.Node {
	t.Helper()
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	node := r.Node(rig.NodeConfig{Name: "solo", Database: url})
	load := newLoad(t, r, node)
	load.Conns, load.Each, load.Pace = 4, 25, 0
	load.Start()
	load.Wait()
	wantCalm(t, settle(t, r, load, sink, node))
	return node
}

// TestR4SessionPooler: behind a pooler that lends connections by session all is as without.
func TestR4SessionPooler(t *testing.T) {
	t.Parallel()
	r, url := pooled(t, "session", "")
	node := deliver(t, r, url)
	node.Start()
	node.Ready()
	await(t, "the node listens", func() bool {
		return count(t, r, `select count(*) from pg_stat_activity where query = 'listen postern_queue'`) > 0
	})
	if n := node.Said("a pooler lends database connections"); n > 0 {
		t.Error("the node sees what is not so")
	}
}

// TestR4TransactionPooler: behind a pooler that lends connections by the transaction a node
// works in the query mode that the documentation names, and starts in no other.
func TestR4TransactionPooler(t *testing.T) {
	t.Parallel()
	r, url := pooled(t, "transaction", "")
	conn, err := pgx.Connect(t.Context(), url+"&default_query_exec_mode=cache_describe")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var scans string
	if err := conn.QueryRow(t.Context(), `select current_setting('enable_seqscan')`).Scan(&scans); err != nil || scans != "off" {
		t.Errorf("the documented settings: enable_seqscan is %q, %v", scans, err)
	}
	node := deliver(t, r, url+"&default_query_exec_mode=cache_describe")
	if node.Said("notifications do not arrive") != 1 {
		t.Error("the node does not say that it polls")
	}
	for mode, want := range map[string]string{
		"": "loses prepared statements", "cache_statement": "loses prepared statements", "describe_exec": "loses prepared statements",
		"exec": "cannot send its statements", "simple_protocol": "cannot send its statements",
	} {
		other := url
		if mode != "" {
			other += "&default_query_exec_mode=" + mode
		}
		if said := r.Refused("serve", "--config", node.ConfigFile(), "--database-url", other); !strings.Contains(said, want) {
			t.Errorf("%q: the node says %q, want %q", mode, said, want)
		}
	}
}
