package pgtest

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// LoadBacklog inserts deferred mail as the queue would have left it: accepted in the
// last day, tried some times, due in the next hours.
// It takes the first and the last number, and over how many destinations they are spread.
const LoadBacklog = `
with new as materialized (select g, ('018f0000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid as id from generate_series($1::int, $2::int) g),
m as (insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
		client_addr, client_hello, listener, tls, node, recipients)
	select id, 1 + g % 10, 1, 'a' || g % 100, 'example.com', 1000, '', false, '', '', '<' || g || '@example.com>', now() - interval '1 day' * random(),
		'192.0.2.1', 'client.example.com', '127.0.0.1:587', 'TLS1.3', 'a', 1 from new),
b as (insert into body select id, 0, convert_to(repeat('0123456789', 100), 'UTF8') from new),
a as (insert into history (message_id, n, at, epoch, result, local, domain, reply_code, reply_enhanced, reply_text, remote_mta, node)
	select id, 0, now(), 1, 'deferred', 'r' || g, 'd' || g % $3::int || '.example', 451, '4.7.1', 'Greylisted, try again later', 'mx.example', 'a' from new)
insert into recipient (message_id, n, attempts, accepted_at, next_attempt_at, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt,
	last_attempt_at, reply_code, reply_enhanced, reply_text, remote_mta, notice_at, user_id)
select id, 0, 3, now() - interval '1 day' * random(), now() + interval '1 hour' + interval '4 hours' * random(), now() + interval '5 days', 3, 0,
	'd' || g % $3::int || '.example', 'r' || g, 'd' || g % $3::int || '.example', '', '', now(), 451, '4.7.1', 'Greylisted, try again later', 'mx.example',
	now() + interval '4 hours', 1 + g % 10
from new`

// Cost runs a statement, takes back what it did, and prints what it took.
func Cost(t testing.TB, conn *pgx.Conn, name string, most int64, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	var text []byte
	if err := tx.QueryRow(ctx, `explain (analyze, buffers, format json) `+sql, args...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var top []struct {
		Plan struct {
			Hit  int64 `json:"Shared Hit Blocks"`
			Read int64 `json:"Shared Read Blocks"`
		}
		Time float64 `json:"Execution Time"`
	}
	if err := json.Unmarshal(text, &top); err != nil {
		t.Fatal(err)
	}
	pages := top[0].Plan.Hit + top[0].Plan.Read
	t.Logf("%-24s %9.1f ms %9d pages", name, top[0].Time, pages)
	if most > 0 && pages > most {
		t.Errorf("%s reads %d pages, at most %d were expected", name, pages, most)
	}
}
