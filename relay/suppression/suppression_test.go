package suppression_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/internal/leaktest"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/internal/refusal"
	"postern/relay/smtp"
	"postern/relay/suppression"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestListFollows: a node knows of an entry of another within two seconds, also of one whose transaction
// took long and ended out of order; and what it cannot know it asks.
func TestListFollows(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	list := suppression.New(suppression.Config{DB: db.Pool})
	find := func(to string) *suppression.Entry {
		t.Helper()
		e, err := list.Find(t.Context(), 1, queuetest.Address(to))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	add := `insert into suppression (user_id, address, source, expires_at, struck_at) values ($1, $2, $3, $4::timestamptz, case when $3 = 'bounce' then $4::timestamptz end)`
	queuetest.Exec(t, db, `insert into app_user (name) values ('shop')`)
	queuetest.Exec(t, db, add, 1, "first@example.net", "admin", nil)
	queuetest.Exec(t, db, add, 2, "of-a-user@who-was.removed", "admin", nil)
	queuetest.Exec(t, db, add, 1, "long@ended.test", "bounce", time.Now().Add(-25*time.Hour))
	if find("first@example.net") == nil || list.Entries() != -1 {
		t.Error("before the first look nothing is asked")
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); list.Run(ctx) }()
	defer func() { stop(); <-done }()
	queuetest.Eventually(t, "the first look", func() bool { return list.Entries() == 1 })

	long, err := db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := long.Exec(ctx, add, 1, "long@example.net", "admin", nil); err != nil {
		t.Fatal(err)
	}
	queuetest.Exec(t, db, add, 0, "*@*.blocked.test", "admin", nil)
	queuetest.Exec(t, db, add, 0, "*@blocked.test", "admin", nil)
	queuetest.Eventually(t, "the patterns", func() bool { return list.Entries() == 3 })
	for to, want := range map[string]string{"x@blocked.test": "*@blocked.test", "x@a.b.blocked.test": "*@*.blocked.test", "x@notblocked.test": "", "x@test": ""} {
		got := ""
		if e := find(to); e != nil {
			got = e.Address
		}
		if got != want {
			t.Errorf("%s: %q, want %q", to, got, want)
		}
	}
	if list.Maybe(queuetest.Address("long@example.net")) {
		t.Error("it knows what is not committed")
	}
	if err := long.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	queuetest.Eventually(t, "the entry of the long transaction", func() bool { return find("long@example.net") != nil })
	if list.Maybe(queuetest.Address("other@example.net")) {
		t.Error("it asks about an address that nobody has suppressed")
	}

	e := find("first@example.net")
	for range 3 {
		list.Refused(e)
	}
	queuetest.Eventually(t, "the hits", func() bool {
		var hits int
		err := db.Pool.QueryRow(t.Context(), `select hits from suppression where address = 'first@example.net' and last_hit_at is not null`).Scan(&hits)
		return err == nil && hits == 3
	})
}

// TestBeyondReach: without an answer of the database there is an error, and no verdict.
func TestBeyondReach(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	list := suppression.New(suppression.Config{DB: db.Pool})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := list.Find(ctx, 1, queuetest.Address("x@example.net")); err == nil || e != nil {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Bob@Example.NET": "Bob@example.net", "bob@bücher.example": "bob@xn--bcher-kva.example", `"a b"@x.test`: `"a b"@x.test`,
		"*@Example.net": "*@example.net", "*@*.Example.net": "*@*.example.net", `"*"@x.test`: `"*"@x.test`,
	} {
		if got, err := suppression.ParseKey(text, true); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	if got := suppression.Key(smtp.Address{Local: "*", Domain: "x.test"}); got != `"*"@x.test` {
		t.Errorf("the mailbox *: %q", got)
	}
	for _, text := range []string{"", "bob", "*@", "*@*.", "*@*.*.x.test", "a@b@c", "bob@*.x.test", "*@-x.test"} {
		if got, err := suppression.ParseKey(text, true); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := suppression.ParseKey("*@x.test", false); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("a user's pattern: %v", err)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	until := at.AddDate(0, 0, 7)
	tests := map[string]suppression.Entry{
		"550 5.1.1 bob@example.net is suppressed since 2026-11-30 until 2026-12-07, mail to it bounced: 550 5.1.1 No such ?user?; an administrator can lift this with 'postern suppression remove'": {UserID: 1, Address: "bob@example.net", Source: suppression.Bounce, Reply: "550 5.1.1\tNo such «user»", AddedAt: at, ExpiresAt: &until},
		"550 5.1.1 bob@example.net is suppressed since 2026-11-30, by an administrator: asked; an administrator can lift this with 'postern suppression remove'":                                    {UserID: 1, Address: "bob@example.net", Source: suppression.Admin, Reason: "asked", AddedAt: at},
		"550 5.1.1 This address is suppressed by the administrator":     {Address: "bob@example.net", Source: suppression.Admin, Reason: "secret", AddedAt: at},
		"550 5.7.1 Mail to this domain is blocked by the administrator": {Address: "*@example.net", Source: suppression.Admin, Reason: "secret", AddedAt: at},
	}
	for want, e := range tests {
		if got := e.Refusal().String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	long := suppression.Entry{UserID: 1, Address: strings.Repeat("a", 64) + "@" + strings.Repeat("b", 200) + ".test", Source: suppression.Bounce,
		Reply: strings.Repeat("x ", 1000), AddedAt: at, ExpiresAt: &until}
	if wire := long.Refusal().Append(nil); len(wire) > 512 {
		t.Errorf("the reply has %d octets", len(wire))
	}
}

// TestFile writes entries as a file and reads it back, also one of somebody else.
func TestFile(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	store := suppression.NewStore(db.Pool, "alice")
	from, to := suppression.Owner{UserID: 1, Name: "shop"}, suppression.Owner{UserID: 2, Name: "copy"}
	const n = 2*suppression.Chunk + 7
	var in strings.Builder
	in.WriteString("address,reason,expires,source,reply\n")
	for i := range n {
		fmt.Fprintf(&in, "to%d@Example.net,\"so, why\",2099-01-01T00:00:00Z,%s,550 5.1.1 none\n", i, []string{"admin", "bounce"}[i%2])
	}
	in.WriteString("to3@example.net,the last counts,,,\n")
	list, err := suppression.ParseCSV(strings.NewReader(in.String()), from)
	if err != nil || len(list) != n || list[3].Reason != "the last counts" {
		t.Fatal(len(list), err)
	}
	var heard []int
	if err := store.Import(t.Context(), from, list, func(n int) { heard = append(heard, n) }); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(heard) != fmt.Sprint([]int{suppression.Chunk, 2 * suppression.Chunk, n}) {
		t.Errorf("progress %v", heard)
	}
	export := func(o suppression.Owner) string {
		var out bytes.Buffer
		w, err := suppression.NewWriter(&out)
		if err == nil {
			err = store.Each(t.Context(), o, w.Write)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	file := export(from)
	if lines := strings.Count(file, "\n"); lines != n+1 {
		t.Errorf("%d lines, want %d", lines, n+1)
	}
	if list, err = suppression.ParseCSV(strings.NewReader(file), to); err != nil {
		t.Fatal(err)
	}
	if err := store.Import(t.Context(), to, list, func(int) {}); err != nil {
		t.Fatal(err)
	}
	if copied := export(to); copied != file {
		t.Errorf("the copy differs: %.300s\nand %.300s", copied, file)
	}
	var deeds int
	if err := db.Pool.QueryRow(t.Context(), `select count(*) from audit where action = 'suppression import'`).Scan(&deeds); err != nil || deeds != 2 {
		t.Errorf("%d deeds, %v", deeds, err)
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"":                                 "empty",
		"name\nx@y.test\n":                 "line 1: column",
		"address,address\n":                "line 1: column",
		"reason\nx\n":                      "the column address",
		"address\nx@y.test\nnobody\n":      "line 3",
		"address,expires\nx@y.test,soon\n": "line 2",
		"address,expires\nx@y.test,2020-01-01T00:00:00Z\n": "line 2: expires must",
		"address,source\nx@y.test,me\n":                    "line 2: source",
		"address,source\nx@y.test,bounce\n":                "line 2: an entry with source bounce",
		"address\nx@y.test,z\n":                            "line 2",
		"address\n*@y.test\n":                              "line 2",
	} {
		_, err := suppression.ParseCSV(strings.NewReader(file), suppression.Owner{UserID: 1})
		if !errors.Is(err, refusal.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", file, err, want)
		}
	}
}

// TestRemove removes all or nothing.
func TestRemove(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	store, owner := suppression.NewStore(db.Pool, "alice"), suppression.Owner{}
	if _, err := store.Add(t.Context(), owner, []string{"a@x.test", "*@y.test", "a@X.test"}, "", nil); err != nil {
		t.Fatal(err)
	}
	count := func() int {
		n, err := store.Count(t.Context(), owner)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := store.Remove(t.Context(), owner, []string{"a@x.test", "b@x.test"}); !errors.Is(err, refusal.ErrNotFound) || count() != 2 {
		t.Error(err, count())
	}
	if err := store.Remove(t.Context(), owner, []string{"a@X.test", "*@y.test"}); err != nil || count() != 0 {
		t.Error(err, count())
	}
}

// TestEvents: the feed has an event for each change, and of an import one for each transaction.
func TestEvents(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	store, alice, all := suppression.NewStore(db.Pool, "root"), suppression.Owner{UserID: 1, Name: "alice@example.com"}, suppression.Owner{}
	var in strings.Builder
	in.WriteString("address\n")
	for i := range suppression.Chunk + 1 {
		fmt.Fprintf(&in, "b%d@y.test\n", i)
	}
	many, err := suppression.ParseCSV(strings.NewReader(in.String()), alice)
	if err != nil {
		t.Fatal(err)
	}
	_, add := store.Add(t.Context(), alice, []string{"a@x.test", "b@x.test"}, "why", nil)
	_, block := store.Add(t.Context(), all, []string{"*@z.test"}, "", nil)
	err = errors.Join(add, block, store.Remove(t.Context(), alice, []string{"b@x.test"}), store.Import(t.Context(), alice, many, func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	var told string
	if err := db.Pool.QueryRow(t.Context(), `select string_agg(concat_ws(' ', user_id, kind, nullif(object, ''), detail->>'by', detail->>'count', detail->>'reason'), ', ' order by id) from event`).Scan(&told); err != nil {
		t.Fatal(err)
	}
	if want := "1 suppression.added a@x.test admin why, 1 suppression.added b@x.test admin why, suppression.added *@z.test admin , " +
		"1 suppression.removed b@x.test admin, 1 suppression.added import 1000, 1 suppression.added import 1"; told != want {
		t.Errorf("%s, want %s", told, want)
	}
}
