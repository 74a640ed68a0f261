package peers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/internal/serve"
)

// ZoneState is what DNSSEC has to say of a zone.
type ZoneState int

// A validating resolver has answers for the first two only, and marks those of the first.
const (
	Signed   ZoneState = iota
	Unsigned           // its parent proves that it is not signed: an insecure delegation
	Bogus              // signed by another key than its parent says
	Expired            // its signatures were good in the first days of 2024
	Lame               // its name server does not know it
)

// A Zone is one of a tree that is signed from its root.
type Zone struct {
	Name    string // as "signed.test"
	State   ZoneState
	Records []string // as in a zone file: names without a final dot are below Name
}

// A SignedTree is a DNS of our own with a validating resolver: NSD answers for the zones, which
// ldns has signed, and Unbound trusts the key of their root.
type SignedTree struct {
	Resolver string // host:port of Unbound, which validates
	Blind    string // host:port of another one, which does not

	dir       string
	port      int // of NSD, the authoritative server of all zones
	cache     Cache
	processes []*process
}

// StartSignedTree serves zones, and signed ones above them up to the root, for the time of the test.
// The tree also has dnssec-failed.org, with wrong signatures as on the Internet.
func StartSignedTree(t testing.TB, zones ...Zone) *SignedTree {
	t.Helper()
	tree := &SignedTree{cache: requireCache(t)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of the name servers:\n%s", readAll(tree.file("nsd.log"), tree.file("unbound.log"), tree.file("blind.log")))
		}
		tree.close()
	})
	if err := tree.start(t.Context(), zones); err != nil {
		t.Fatal(err)
	}
	return tree
}

func (s *SignedTree) file(name string) string { return filepath.Join(s.dir, name) }

func (s *SignedTree) close() {
	for _, p := range s.processes {
		p.stop()
	}
	_ = os.RemoveAll(s.dir) // a leftover in the temporary folder does no harm
}

func (s *SignedTree) start(ctx context.Context, zones []Zone) (err error) {
	if s.dir, err = serverDir("", "dnssec"); err != nil {
		return err
	}
	zones = grown(append(slices.Clone(zones), Zone{Name: "dnssec-failed.org", State: Bogus, Records: []string{"@ A 192.0.2.1"}}))
	var anchor string
	for i := range zones { // children come before their parents
		ds, err := s.sign(ctx, zones[i])
		if err != nil {
			return fmt.Errorf("zone %q: %w", zones[i].Name, err)
		}
		anchor = ds
		if parent := parentOf(zones, zones[i].Name); parent >= 0 {
			zones[parent].Records = append(zones[parent].Records, zones[i].Name+". NS ns."+zones[i].Name+".", "ns."+zones[i].Name+". A 127.0.0.1")
			if zones[i].State != Unsigned {
				zones[parent].Records = append(zones[parent].Records, ds)
			}
		}
	}
	if err := s.serve(ctx, zones); err != nil {
		return err
	}
	if s.Resolver, err = s.resolve(ctx, "unbound", zones, "module-config: \"validator iterator\"\n  trust-anchor: \""+strings.Join(strings.Fields(anchor), " ")+"\""); err != nil {
		return err
	}
	s.Blind, err = s.resolve(ctx, "blind", zones, "module-config: \"iterator\"")
	return err
}

// grown adds the zones above, and orders all so that children come first.
func grown(zones []Zone) []Zone {
	for i := 0; i < len(zones); i++ {
		_, above, _ := strings.Cut(zones[i].Name, ".")
		if zones[i].Name != "" && !slices.ContainsFunc(zones, func(z Zone) bool { return z.Name == above }) {
			zones = append(zones, Zone{Name: above})
		}
	}
	slices.SortStableFunc(zones, func(a, b Zone) int { return labels(b.Name) - labels(a.Name) })
	return zones
}

func labels(name string) int {
	if name == "" {
		return 0
	}
	return 1 + strings.Count(name, ".")
}

func parentOf(zones []Zone, name string) int {
	_, above, _ := strings.Cut(name, ".")
	if name == "" {
		return -1
	}
	return slices.IndexFunc(zones, func(z Zone) bool { return z.Name == above })
}

// zoneFile is where NSD reads a zone.
func (s *SignedTree) zoneFile(z Zone) string { return s.file("zone" + z.Name + ".signed") }

// sign writes a zone and returns the DS record that its parent has for it.
func (s *SignedTree) sign(ctx context.Context, z Zone) (ds string, err error) {
	origin := z.Name + "."
	text := fmt.Sprintf("$ORIGIN %s\n$TTL 60\n@ SOA ns admin 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n%s\n", origin, strings.Join(z.Records, "\n"))
	plain := s.file("zone" + z.Name)
	if err := os.WriteFile(plain, []byte(text), 0o644); err != nil {
		return "", err
	}
	if z.State == Unsigned {
		return "", os.WriteFile(s.zoneFile(z), []byte(text), 0o644)
	}
	key, err := s.key(ctx, origin)
	if err != nil {
		return "", err
	}
	dsText, err := os.ReadFile(s.file(key + ".ds"))
	if err != nil {
		return "", err
	}
	args := []string{"-o", origin, "-f", s.zoneFile(z)}
	switch z.State {
	case Bogus:
		if key, err = s.key(ctx, origin); err != nil {
			return "", err
		}
	case Expired:
		args = append(args, "-i", "20240101000000", "-e", "20240108000000")
	}
	_, err = s.run(ctx, "ldns-signzone", append(args, plain, key)...)
	return strings.TrimSpace(string(dsText)), err
}

// key makes one and returns the name of its files.
func (s *SignedTree) key(ctx context.Context, origin string) (string, error) {
	out, err := s.run(ctx, "ldns-keygen", "-r", "/dev/urandom", "-a", "ECDSAP256SHA256", "-k", origin)
	return strings.TrimSpace(out), err
}

func (s *SignedTree) run(ctx context.Context, name string, args ...string) (string, error) {
	program, err := s.cache.Program(name)
	if err != nil {
		return "", err
	}
	cmd := program.Command(ctx, args...)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

const nsdConfig = `server:
  ip-address: 127.0.0.1@%d
  username: ""
  server-count: 1
  database: ""
  zonesdir: %[2]q
  pidfile: "%[2]s/nsd.pid"
  xfrdfile: "%[2]s/xfrd.state"
  xfrdir: %[2]q
  zonelistfile: "%[2]s/zone.list"
remote-control:
  control-enable: no
`

// serve runs NSD.
func (s *SignedTree) serve(ctx context.Context, zones []Zone) (err error) {
	if s.port, err = serve.FreePort(); err != nil {
		return err
	}
	text := fmt.Sprintf(nsdConfig, s.port, s.dir)
	for _, z := range zones {
		if z.State != Lame {
			text += fmt.Sprintf("zone:\n  name: %q\n  zonefile: %q\n", z.Name+".", s.zoneFile(z))
		}
	}
	return s.daemon(ctx, "nsd", "nsd", loopback(s.port), text)
}

const unboundConfig = `server:
  interface: 127.0.0.1@%[1]d
  port: %[1]d
  username: ""
  chroot: ""
  directory: %[2]q
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  do-ip6: no
  do-not-query-localhost: no
  access-control: 127.0.0.0/8 allow
  num-threads: 1
  local-zone: "test." nodefault
  ede: yes
  val-log-level: 2
  %[3]s
remote-control:
  control-enable: no
`

// resolve runs an Unbound with a validator or without. Since the servers of the zones are not at
// port 53 it is configured with each; validation needs only the signatures.
func (s *SignedTree) resolve(ctx context.Context, name string, zones []Zone, modules string) (address string, err error) {
	port, err := serve.FreePort()
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf(unboundConfig, port, s.dir, modules)
	for _, z := range zones {
		text += fmt.Sprintf("stub-zone:\n  name: %q\n  stub-addr: 127.0.0.1@%d\n", z.Name+".", s.port)
	}
	return loopback(port), s.daemon(ctx, "unbound", name, loopback(port), text)
}

// daemon runs a server of that name with a configuration.
func (s *SignedTree) daemon(ctx context.Context, program, name, address, config string) error {
	path, err := s.cache.lookPath(program)
	if err != nil {
		return err
	}
	file := s.file(name + ".conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	p, err := startProcess([]string{path, "-d", "-c", file}, s.cache.environ(path), s.file(name+".log"), 0)
	if err != nil {
		return err
	}
	s.processes = append(s.processes, p)
	if err := p.ready(ctx, address, true); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}
