package check

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/admin/health"
	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/internal/dnstest"
	"postern/internal/pgtest"
	"postern/internal/serve"
	"postern/internal/smtptest"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/upstream"
)

// A patient is an installation in good health that faults are planted in.
type patient struct {
	c    *checkup
	dir  string // of postern.toml, cert.pem, key.pem and secret.key
	ca   *smtptest.CA
	dns  *dnstest.Zones
	view *mailView     // nil: as the database says
	pool *pgxpool.Pool // nil without a database of its own
}

// patience is for what a test waits for, on whatever machine.
const patience = 3 * time.Minute

const (
	patientName    = "relay.test"
	patientAddress = "198.51.100.7"
	patientPTR     = "7.100.51.198.in-addr.arpa."
)

// newPatient has no database; see admit and viewed.
func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{dir: t.TempDir(), ca: smtptest.NewCA(t), dns: healthyDNS()}
	p.ca.Leaf(t, patientName).WriteFiles(t, p.dir)
	const text = `hostname = "relay.test"
secret_key_file = "secret.key"
[[listener]]
address = "127.0.0.1:0"
tls = "starttls"
[tls]
certificate = "cert.pem"
key = "key.pem"
[submission]
spool = "64MiB"
`
	p.write(t, "postern.toml", text)
	p.write(t, "secret.key", strings.Repeat("k", seal.KeySize))
	p.treat(newCheckup(config.Source{Path: filepath.Join(p.dir, "postern.toml")}, new(database.Connector), Options{}))
	return p
}

// treat gives a new check the patient's surroundings.
func (p *patient) treat(c *checkup) {
	c.dns, c.roots, c.limit = p.dns.Resolver(), p.ca.Pool(), patience
	c.bounds.low, c.bounds.none, c.bounds.trip = 1, 0, time.Minute // whatever machine the tests run on
	p.c = c
}

// served is the patient's certificate for a server.
func (p *patient) served(t *testing.T) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.dir, "cert.pem"), filepath.Join(p.dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
}

// again is the patient for another look: a check is made once.
func (p *patient) again() *patient {
	before := p.c
	p.treat(newCheckup(before.source, before.dialer, before.opts))
	p.c.cfg = before.cfg
	return p
}

func healthyDNS() *dnstest.Zones {
	z := &dnstest.Zones{}
	z.Sign("signed.test")
	z.Set("relay.test.", "A "+patientAddress)
	z.Set(patientPTR, "PTR relay.test.")
	z.Set("example.com.", `TXT "v=spf1 ip4:198.51.100.0/24 -all"`, "MX 10 mx.example.com.")
	z.Set("_dmarc.example.com.", `TXT "v=DMARC1; p=none"`)
	return z
}

func (p *patient) write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// admit gives the patient a database of its own.
func (p *patient) admit(t *testing.T) {
	t.Helper()
	db := pgtest.New(t)
	p.c.cfg.Database.URL, p.pool = db.URL, db.Pool
}

// viewed gives the patient what a database would say: a user who sends to MX.
func viewed(_ *testing.T, p *patient) {
	p.view = &mailView{
		users: []auth.User{{ID: 1, Name: "alice@example.com", Enabled: true, Credentials: 1}},
		rules: []route.Rule{{ID: 1, Via: []string{route.MX}}},
	}
}

// withUser adds one who can log in.
func withUser(name string, senders ...string) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) {
		p.view.users = append(p.view.users, auth.User{ID: int64(len(p.view.users) + 1), Name: name, Enabled: true, Credentials: 1, Senders: senders})
	}
}

// upstream adds one and sends all mail there.
func (p *patient) upstream(up upstream.Account) {
	up.Name = "out"
	p.view.upstreams = append(p.view.upstreams, up)
	p.view.accounts = append(p.view.accounts, upstream.Listed{Account: upstream.Account{Name: up.Name}})
	p.view.rules = []route.Rule{{ID: 1, Via: []string{up.Name}}}
}

// waitSQL asks until the answer is true.
func (p *patient) waitSQL(t *testing.T, question string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var yes bool
		if err := p.pool.QueryRow(t.Context(), question).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never true: %s", question)
		}
	}
}

// sql changes a database, which is the patient's own from then on.
func (p *patient) sql(t *testing.T, statement string, args ...any) {
	t.Helper()
	if p.pool == nil {
		p.admit(t)
	}
	if _, err := p.pool.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// look runs the check of some areas.
func (p *patient) look(ctx context.Context, only ...string) []health.Finding {
	p.c.opts.Only = only
	if p.view != nil {
		_, _ = p.c.mail.get(ctx, func() (*mailView, error) { return p.view, nil })
	}
	return p.c.run(ctx)
}

// fault is something wrong, and the finding that has to tell it.
type fault struct {
	id    string
	text  string // is in the finding
	plant func(t *testing.T, p *patient)
}

// find plants each fault in a patient of its own and looks for its finding.
func find(t *testing.T, faults []fault, only string, healthy func(*testing.T, *patient)) {
	t.Helper()
	t.Run("healthy", func(t *testing.T) {
		t.Parallel()
		p := newPatient(t)
		healthy(t, p)
		for _, f := range p.look(t.Context(), only) {
			// The tests' database is fast and not durable, and many tests share it.
			if (f.Status == health.Warning || f.Status == health.Failed) && f.ID != "db.durability" && f.ID != "db.connections-tight" {
				t.Errorf("found in good health: %+v", f)
			}
		}
	})
	for _, fault := range faults {
		t.Run(fault.id+" "+fault.text, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			healthy(t, p)
			fault.plant(t, p)
			wantFinding(t, p.look(t.Context(), only), fault.id, fault.text)
		})
	}
}

// wantFinding looks for a finding with a text, and that it says what to do.
func wantFinding(t *testing.T, found []health.Finding, id, text string) {
	t.Helper()
	k, known := kinds()[id]
	if !known {
		t.Fatalf("%s is no kind of finding", id)
	}
	for _, f := range found {
		if f.ID != id || !strings.Contains(f.Text, text) {
			continue
		}
		if f.Status != k.Status || f.Subject == "" {
			t.Errorf("%+v", f)
		}
		if needs := f.Status == health.Warning || f.Status == health.Failed; needs && f.Todo == "" {
			t.Errorf("nothing says what to do: %+v", f)
		}
		return
	}
	t.Errorf("no %s with %q among\n%s", id, text, told(found))
}

func told(found []health.Finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%-8s %-20s %s: %s\n", f.Status, f.ID, f.Subject, f.Text)
	}
	return b.String()
}

// wantNone looks that a finding is not there.
func wantNone(t *testing.T, found []health.Finding, id string) {
	t.Helper()
	if slices.ContainsFunc(found, func(f health.Finding) bool { return f.ID == id }) {
		t.Errorf("%s is among\n%s", id, told(found))
	}
}

// connection is one more to a database, closed with the test.
func connection(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// greeter answers each connection on a port of 127.0.0.1 with a line, and closes.
func greeter(t *testing.T, line string) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(line))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	port, err := serve.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// later makes the check's clock differ.
func later(d time.Duration) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { p.c.now = func() time.Time { return time.Now().Add(d) } }
}
