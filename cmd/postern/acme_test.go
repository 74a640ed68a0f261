package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/acmetest"
)

// acmeNode is one of several processes that share a database and an authority.
type acmeNode struct {
	*site
	*daemon
	name       string
	validation string // where it answers the authority
}

// startACMENodes starts processes that order a certificate for relay.test. Orders are
// held, so that all are up before one goes on.
func startACMENodes(t *testing.T, ca *acmetest.CA, names ...string) (nodes []*acmeNode, hold *acmetest.Hold) {
	t.Helper()
	first := installSite(t)
	roots := ca.WriteRoots(t, first.dir)
	hold = ca.HoldAt("/order-plz")
	for _, name := range names {
		nodes = append(nodes, startACMENode(t, first, ca.URL, roots, name))
	}
	return nodes, hold
}

// startACMENode starts one process of a site that orders at the directory.
func startACMENode(t *testing.T, first *site, directory, roots, name string) *acmeNode {
	t.Helper()
	s := *first
	s.config = filepath.Join(s.dir, name+".toml")
	text := fmt.Sprintf(`hostname = "relay.test"
node = %q
[[listener]]
address = "127.0.0.1:0"
tls = "starttls"
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
[acme]
names = ["relay.test"]
email = "admin@relay.test"
agree = true
directory = %q
directory_ca = %q
http_address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[log]
format = "json"
level = "debug"
`, name, directory, roots)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &acmeNode{site: &s, name: name}
	n.daemon = s.serve(t)
	n.validation = n.validates(t)
	return n
}

// validates is where the node answers the authority.
func (n *acmeNode) validates(t *testing.T) string {
	t.Helper()
	line := n.await(t, &n.stderr, `(?m)^.*"msg":"answering the authority's validations".*$`)[0]
	var said struct{ Address string }
	if err := json.Unmarshal([]byte(line), &said); err != nil {
		t.Fatal(err)
	}
	return said.Address
}

// query asks the site's database.
func (s *site) query(t *testing.T, sql string, into ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	url, _ := strings.CutPrefix(s.env[0], "POSTERN_DATABASE_URL=")
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, sql).Scan(into...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// holder is the node that orders, and the others.
func holder(t *testing.T, nodes []*acmeNode) (it *acmeNode, others []*acmeNode) {
	t.Helper()
	var name string
	nodes[0].query(t, "select holder from certificate_lock where name = 'issue_cert_relay.test' and expires_at > now()", &name)
	for _, n := range nodes {
		if n.name == name {
			it = n
		} else {
			others = append(others, n)
		}
	}
	if it == nil {
		t.Fatalf("%q holds the lock", name)
	}
	return it, others
}

// shows waits until a client that trusts the authority gets through, and returns the
// certificate's serial number.
func (n *acmeNode) shows(t *testing.T, roots *x509.CertPool) string {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", n.implicit)
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var conn *tls.Conn
		if conn, err = tls.Dial("tcp", address, &tls.Config{ServerName: "relay.test", RootCAs: roots}); err == nil {
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].SerialNumber.Text(16)
		}
	}
	t.Fatalf("%s shows no such certificate: %v", n.name, err)
	return ""
}

func arrived(t *testing.T, hold *acmetest.Hold) {
	t.Helper()
	select {
	case <-hold.Arrived:
	case <-time.After(patience):
		t.Fatal("no order came")
	}
}

// TestACMETwoNodes: of two processes one orders; the authority's validation comes to
// the other; both show the certificate, and an admin sees it.
func TestACMETwoNodes(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Options{})
	nodes, hold := startACMENodes(t, ca, "one", "two")
	arrived(t, hold)
	_, others := holder(t, nodes)
	ca.HTTP.To(func() string { return others[0].validation })
	hold.Release()
	serial := nodes[0].shows(t, ca.Issued(t))
	if other := nodes[1].shows(t, ca.Issued(t)); other != serial {
		t.Errorf("two certificates: %s and %s", serial, other)
	}
	if n := len(ca.Orders()); n != 1 {
		t.Errorf("%d orders", n)
	}
	others[0].await(t, &others[0].stderr, `"msg":"acme: served key authentication".*"distributed":true`)
	var list []certificateLine
	for deadline := time.Now().Add(patience); len(list) == 0 && time.Now().Before(deadline); {
		if err := json.Unmarshal([]byte(nodes[0].must(t, "", "certificate", "list", "--json")), &list); err != nil {
			t.Fatal(err)
		}
	}
	if len(list) != 1 || list[0].Condition != "valid" || list[0].Serial != serial || !slices.Contains([]string{"one", "two"}, list[0].Node) {
		t.Errorf("listed: %+v", list)
	}
	for _, n := range nodes {
		if text := n.stderr.String(); strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("%s logs a key", n.name)
		}
	}
}

// TestACMEHolderKilled: the process that orders is killed in the middle; when its lease
// is over, the other takes over and gets the certificate.
func TestACMEHolderKilled(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Options{})
	nodes, hold := startACMENodes(t, ca, "one", "two")
	arrived(t, hold)
	it, others := holder(t, nodes)
	ca.HTTP.To(func() string { return others[0].validation })
	middle := ca.HoldAt("/finalize-order/")
	hold.Release()
	arrived(t, middle)
	it.kill()
	middle.Release()
	// The lease would be over in 30 s; the database's clock is not waited for.
	var name string
	others[0].query(t, "update certificate_lock set expires_at = clock_timestamp() where holder = '"+it.name+"' returning name", &name)
	others[0].shows(t, ca.Issued(t))
	if n := len(ca.Orders()); n != 2 {
		t.Errorf("%d orders, want the one that was cut off and one more", n)
	}
}

// TestACMEFailureIsSeen: while no certificate can be had the listeners serve, and health
// and metrics say so; when the authority is back they say that as well.
func TestACMEFailureIsSeen(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Options{})
	ca.Down()
	first := installSite(t)
	n := startACMENode(t, first, ca.URL, ca.WriteRoots(t, first.dir), "one")
	base := "http://" + n.await(t, &n.stderr, `"msg":"postern is ready".*"admin":"([^"]+)"`)[1]
	n.await(t, &n.stderr, `"failing_since"`)
	if conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n.implicit), &tls.Config{InsecureSkipVerify: true}); err != nil {
		t.Errorf("while the authority is down: %v", err)
	} else {
		_ = conn.Close()
	}
	page(t, base+"/readyz", http.StatusServiceUnavailable, "relay.test: there is no certificate: ")
	page(t, base+"/metrics", http.StatusOK, `postern_certificate_renewal_failing{name="relay.test"} 1`)

	ca.HTTP.To(func() string { return n.validation })
	ca.Up(t)
	n.must(t, "", "certificate", "renew", "relay.test")
	n.shows(t, ca.Issued(t))
	page(t, base+"/readyz", http.StatusOK, "relay.test: valid until ")
	page(t, base+"/metrics", http.StatusOK, `postern_certificate_renewal_failing{name="relay.test"} 0`)
}

// page waits for a page with this status that has this text.
func page(t *testing.T, url string, status int, text string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		answer, err := http.Get(url)
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if last = answer.Status + "\n" + string(body); err == nil && answer.StatusCode == status && strings.Contains(string(body), text) {
			return
		}
	}
	t.Fatalf("%s has no %d with %q:\n%s", url, status, text, last)
}

// TestACMEAnotherKey: a node that cannot open what the others have sealed ends before it
// has an epoch, whose end the others would wait for.
func TestACMEAnotherKey(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	s.edit(t, func(text string) string {
		return text + "[acme]\nnames = [\"relay.test\"]\nemail = \"admin@relay.test\"\nagree = true\n" +
			"directory = \"https://127.0.0.1:1/dir\"\nhttp_address = \"127.0.0.1:0\"\n"
	})
	var rows int
	s.query(t, `with x as (insert into certificate_store (key, value, size)
		values ('certificates/127.0.0.1-1-dir/relay.test/relay.test.crt', 'sealed elsewhere', 16) returning 1) select count(*) from x`, &rows)
	_, complaint, err := s.postern(t, "", "serve")
	if err == nil || !strings.HasSuffix(complaint, "secret_key_file must be the same on all nodes\n") {
		t.Errorf("%v: %s", err, complaint)
	}
	if s.query(t, `select count(*) from node`, &rows); rows != 0 {
		t.Errorf("it left %d epochs", rows)
	}
}

// TestCertificatesPage types the sessions of docs/certificates.md, and reads its
// configurations.
func TestCertificatesPage(t *testing.T) {
	t.Parallel()
	const page = "../../docs/certificates.md"
	s := newAdminShell(t)
	var url string
	for _, v := range s.env {
		if value, ok := strings.CutPrefix(v, "POSTERN_DATABASE_URL="); ok {
			url = value
		}
	}
	(&site{env: []string{"POSTERN_DATABASE_URL=" + url}}).query(t, `
		insert into certificate_state (authority, name, node, issuer, serial, not_before, not_after, renewed_at)
		values ('acme-v02.api.letsencrypt.org-directory', 'relay.example.com', 'one', 'R3', '1f', now(), now() + interval '90 days', now())
		returning name`, new(string))
	sessions := codeBlocks(t, page, "console")
	for _, session := range sessions {
		s.session(t, strings.Split(strings.TrimSuffix(session, "\n"), "\n"))
	}
	configs := codeBlocks(t, page, "toml")
	for _, text := range configs {
		if err := takesConfig(t, text); err != nil {
			t.Errorf("%v:\n%s", err, text)
		}
	}
	if len(sessions) != 2 || len(configs) != 3 {
		t.Errorf("%d sessions, %d configurations", len(sessions), len(configs))
	}
}
