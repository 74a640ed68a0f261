package acme

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"postern/internal/acmetest"
	"postern/internal/pgtest"
	"postern/internal/smtptest"
)

// TestTidy: what is long over goes, once a day; what is in use stays.
func TestTidy(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	n := startNode(t, db, ca, func(c *Config) { c.clock, c.lookEvery = clock, 10*time.Minute })
	clock.idle(t, 1)
	n.trusted(host(t), ca.Issued(t), nil)

	ctx, issuer := t.Context(), smtptest.NewCA(t)
	for name, ended := range map[string]time.Duration{"long.test": 100 * 24 * time.Hour, "lately.test": 24 * time.Hour} {
		until := time.Now().Add(-ended)
		leaf := issuer.LeafBetween(t, until.Add(-time.Hour), until, name)
		block, _ := pem.Decode(leaf.CertPEM)
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Fatal(err)
		}
		base := "certificates/old/" + name + "/" + name
		must(t, n.storage.Store(ctx, base+".crt", leaf.CertPEM))
		must(t, n.storage.Store(ctx, base+".key", leaf.KeyPEM))
		must(t, n.storage.Store(ctx, base+".json", []byte("{}")))
	}
	_, err := db.Pool.Exec(ctx, `insert into certificate_lock (name, holder, token, expires_at) values
		('dead', 'gone', 1, now() - interval '2 days'), ('alive', 'one', 2, now() + interval '1 day')`)
	must(t, err)
	_, err = db.Pool.Exec(ctx, `insert into certificate_state (authority, name, node, not_after, failures, failing_since, next_try_at) values
		('old', 'long.test', 'one', now() - interval '100 days', 0, null, null),
		('old', 'lately.test', 'one', now() - interval '1 day', 0, null, null),
		('old', 'tried.test', 'one', now() - interval '100 days', 9, now() - interval '130 days', now()),
		('old', 'never.test', 'one', null, 9, now() - interval '130 days', now() - interval '100 days')`)
	must(t, err)
	clock.advance(2 * time.Hour)
	clock.idle(t, 1)
	for name, want := range map[string]bool{
		"certificates/old/long.test": false, "certificates/old/lately.test/lately.test.key": true,
		certmagic.StorageKeys.SiteCert(n.authority, host(t)): true,
	} {
		if got := n.storage.Exists(ctx, name); got != want {
			t.Errorf("%s is there: %t, want %t", name, got, want)
		}
	}
	left := records(t, db)
	for name, want := range map[string]bool{"long.test": false, "never.test": false, "lately.test": true, "tried.test": true, host(t): true} {
		if _, got := left[name]; got != want {
			t.Errorf("the state of %s is there: %t, want %t", name, got, want)
		}
	}
	var locks string
	must(t, db.Pool.QueryRow(ctx, "select string_agg(name, ' ') from certificate_lock").Scan(&locks))
	if locks != "alive" {
		t.Errorf("locks: %s", locks)
	}
}
