package keys

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/internal/dnstest"
	"postern/internal/logtest"
	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/relay/dkim"
	"postern/relay/resolver"
	"postern/relay/seal"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is the DNS as a node sees it: a recursive server, and those of the domains by address.
type world struct {
	recursive dnstest.Zones
	servers   map[string]*dnstest.Zones
}

// newWorld has two servers for the domains shop.test and other.test, and one for host.test.
func newWorld() *world {
	w := &world{servers: map[string]*dnstest.Zones{"192.0.2.1:53": {}, "192.0.2.2:53": {}, "192.0.2.9:53": {}}}
	for _, domain := range []string{"shop.test", "other.test"} {
		w.recursive.Add(domain+". IN NS ns1.test.", domain+". IN NS ns2.test.")
	}
	w.recursive.Add("host.test. IN NS ns9.test.")
	w.recursive.AddHost("ns1.test", "192.0.2.1")
	w.recursive.AddHost("ns2.test", "192.0.2.2")
	w.recursive.AddHost("ns9.test", "192.0.2.9")
	return w
}

func (w *world) resolver() *resolver.Resolver {
	return resolver.New(resolver.Config{Servers: []string{"recursive"}, Exchange: func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		if server == "recursive" {
			return w.recursive.Exchange(ctx, server, query)
		}
		reply, err := w.servers[server].Exchange(ctx, server, query)
		if reply != nil {
			reply.Authoritative = true
		}
		return reply, err
	}})
}

// publish is what an admin does with the line of a zone file, at the servers with these numbers.
func (w *world) publish(k Key, servers ...string) {
	for _, n := range servers {
		w.servers["192.0.2."+n+":53"].Add(k.Zone())
	}
}

func (w *world) remove(k Key, servers ...string) {
	for _, n := range servers {
		w.servers["192.0.2."+n+":53"].Forget(k.Name())
	}
}

// stage is a database with a node whose clock a test moves.
type stage struct {
	*testing.T
	db    *pgtest.DB
	world *world
	admin *Admin
	node  *Ring
	log   *logtest.Lines
	shift time.Duration
}

var sealer = sync.OnceValue(func() *seal.Sealer {
	s, err := seal.New(slices.Repeat([]byte("k"), seal.KeySize))
	if err != nil {
		panic(err)
	}
	return s
})

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{T: t, db: pgtest.New(t), world: newWorld(), log: &logtest.Lines{}}
	s.admin = &Admin{Pool: s.db.Pool, Sealer: sealer(), Actor: "root", clock: s.clock}
	s.node = s.ring("a")
	return s
}

func (s *stage) clock(now time.Time) time.Time { return now.Add(s.shift) }

func (s *stage) ring(name string) *Ring {
	r := New(Config{Pool: s.db.Pool, Sealer: sealer(), Node: name, Lifetime: 5 * day, Log: s.log.Logger()})
	r.clock = s.clock
	return r
}

// pass lets time pass, and the node do what is due.
func (s *stage) pass(d time.Duration) {
	s.Helper()
	s.shift += d
	s.round()
}

func (s *stage) round() {
	s.Helper()
	must(s.T, s.node.round(s.Context(), s.world.resolver()))
	s.node.looking.Wait()
	_, err := s.node.Load(s.Context())
	must(s.T, err)
}

// states are the selectors of a domain with their states, in order.
func (s *stage) states(domain string) string {
	s.Helper()
	list, err := List(s.Context(), s.db.Pool, domain)
	must(s.T, err)
	var texts []string
	for _, k := range list {
		text := string(k.Algorithm) + " " + string(k.State)
		if k.Gone {
			text += " gone"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

func (s *stage) wantStates(domain, want string) {
	s.Helper()
	if got := s.states(domain); got != want {
		s.Errorf("%s has %q, want %q", domain, got, want)
	}
}

// wantSigns compares the selectors that sign for a domain.
func (s *stage) wantSigns(domain string, want ...string) {
	s.Helper()
	var got []string
	for _, k := range s.node.Keys(domain) {
		got = append(got, k.Selector)
	}
	if !slices.Equal(got, want) {
		s.Errorf("%s is signed by %q, want %q", domain, got, want)
	}
}

func (s *stage) add(domain string, algorithms ...dkim.Algorithm) []Key {
	s.Helper()
	list, err := s.admin.Add(s.Context(), domain, algorithms, 0)
	must(s.T, err)
	return list
}

func refused(t *testing.T, err, kind error, says string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), says) {
		t.Errorf("%v: want a refusal with %q", err, says)
	}
}

// TestPublication: a key signs when all servers had its record in two looks in a row.
func TestPublication(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	key := s.add("shop.test", dkim.Ed25519)[0]
	s.round()
	s.wantStates("shop.test", "ed25519 pending")
	s.wantSigns("shop.test")
	s.world.publish(key, "1")
	s.pass(time.Minute)
	s.pass(time.Minute)
	s.wantStates("shop.test", "ed25519 pending")
	list, err := List(t.Context(), s.db.Pool, "")
	if must(t, err); list[0].Found != "ns2.test: no record" {
		t.Errorf("found %q", list[0].Found)
	}
	s.world.publish(key, "2")
	s.pass(30 * time.Second) // not due
	s.wantStates("shop.test", "ed25519 pending")
	s.pass(30 * time.Second)
	s.world.servers["192.0.2.2:53"].ServFail(key.Name())
	s.pass(time.Minute) // not in a row
	s.world.servers["192.0.2.2:53"].Mend(key.Name())
	s.pass(time.Minute)
	s.wantStates("shop.test", "ed25519 pending")
	s.pass(time.Minute)
	s.wantStates("shop.test", "ed25519 active")
	s.wantSigns("shop.test", key.Selector)
	if !strings.Contains(s.log.String(), "DKIM key is active") {
		t.Errorf("the log has %s", s.log)
	}
	var events string
	must(t, s.db.Pool.QueryRow(t.Context(), `select string_agg(kind || ' ' || object || ' ' || (detail->>'selector') || ' ' || (detail->>'change'), ', ') from event`).Scan(&events))
	if events != "dkim.key shop.test "+key.Selector+" is active" {
		t.Errorf("events: %s", events)
	}
}

// TestRecordGoes: a record that is gone ends the signing with its key, servers that do not answer
// do not; the key before signs again if its record is there.
func TestRecordGoes(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	first := s.active("shop.test", dkim.RSA)
	list, err := s.admin.Rotate(t.Context(), "shop.test")
	must(t, err)
	second := list[0]
	if again, err := s.admin.Rotate(t.Context(), "shop.test"); err != nil || len(again) != 1 || again[0].Selector != second.Selector {
		t.Errorf("rotated again: %v, %v", again, err)
	}
	s.round()
	s.wantSigns("shop.test", first.Selector)
	s.world.publish(second, "1", "2")
	s.pass(time.Minute)
	s.pass(time.Minute)
	s.wantStates("shop.test", "rsa retiring, rsa active")
	s.wantSigns("shop.test", second.Selector)

	for _, server := range s.world.servers {
		server.TimeOut(second.Name())
	}
	s.pass(time.Hour)
	s.pass(time.Hour)
	s.wantSigns("shop.test", second.Selector)
	for _, server := range s.world.servers {
		server.Mend(second.Name())
	}
	s.world.remove(second, "1")
	s.pass(time.Hour)
	s.pass(time.Hour)
	s.wantSigns("shop.test", second.Selector) // some servers have it
	s.world.remove(second, "2")
	s.pass(time.Hour)
	s.wantSigns("shop.test", second.Selector)
	s.pass(10 * time.Minute)
	s.wantStates("shop.test", "rsa retiring, rsa active gone")
	s.wantSigns("shop.test", first.Selector)
	s.pass(8 * day) // what signs does not retire
	s.wantStates("shop.test", "rsa retiring, rsa active gone")
	s.world.remove(first, "1", "2")
	s.pass(time.Hour)
	s.pass(10 * time.Minute)
	s.wantSigns("shop.test")
	s.world.publish(second, "1", "2")
	s.pass(time.Hour)
	s.wantSigns("shop.test")
	s.pass(10 * time.Minute)
	s.wantSigns("shop.test", second.Selector)
}

// active makes a key of a domain that signs.
func (s *stage) active(domain string, a dkim.Algorithm) Key {
	s.Helper()
	key := s.add(domain, a)[0]
	s.world.publish(key, "1", "2")
	s.round()
	s.pass(time.Minute)
	s.wantSigns(domain, key.Selector)
	return key
}

// TestRotationByAge: the next key is made ahead of the time, and signs once it is published; the old
// one keeps its record a week, and goes when that is taken away.
func TestRotationByAge(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	first := s.active("shop.test", dkim.Ed25519)
	must(t, s.admin.SetEvery(t.Context(), "shop.test", 30))
	s.pass(15 * day)
	s.wantStates("shop.test", "ed25519 active")
	s.pass(2 * day)
	s.wantStates("shop.test", "ed25519 active, ed25519 pending")
	s.pass(40 * day) // nobody publishes it: the old one signs
	s.wantStates("shop.test", "ed25519 active, ed25519 pending")
	s.wantSigns("shop.test", first.Selector)
	list, err := List(t.Context(), s.db.Pool, "shop.test")
	must(t, err)
	s.world.publish(list[1], "1", "2")
	s.pass(time.Hour)
	s.pass(time.Minute)
	s.wantStates("shop.test", "ed25519 retiring, ed25519 active")
	s.pass(7*day - time.Hour)
	s.wantStates("shop.test", "ed25519 retiring, ed25519 active")
	s.pass(2 * time.Hour)
	s.wantStates("shop.test", "ed25519 retired, ed25519 active")
	var halves int
	must(t, s.db.Pool.QueryRow(t.Context(), `select count(sealed) from dkim_key`).Scan(&halves))
	if halves != 1 {
		t.Errorf("%d private halves are left, want 1", halves)
	}
	s.world.remove(first, "1", "2")
	s.pass(day)
	s.pass(day)
	s.wantStates("shop.test", "ed25519 active")
}

// TestRotationWhileAServerHangs: the next key is made though a look takes longer than a reading may.
func TestRotationWhileAServerHangs(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	key := s.active("shop.test", dkim.Ed25519)
	must(t, s.admin.SetEvery(t.Context(), "shop.test", 30))
	s.world.servers["192.0.2.2:53"].Stall(key.Name())
	s.pass(17 * day)
	s.wantStates("shop.test", "ed25519 active, ed25519 pending")
}

// TestAliases: the record may be in a zone of others.
func TestAliases(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	key := s.add("shop.test", dkim.RSA)[0]
	for _, n := range []string{"1", "2"} {
		s.world.servers["192.0.2."+n+":53"].AddCNAME(key.Name(), "k1.host.test")
	}
	s.round()
	list, err := List(t.Context(), s.db.Pool, "")
	if must(t, err); list[0].Found != "ns9.test: no record" {
		t.Errorf("found %q", list[0].Found)
	}
	s.world.servers["192.0.2.9:53"].Add(ZoneLine("k1.host.test", key.Record()))
	s.pass(time.Minute)
	s.pass(time.Minute)
	s.wantSigns("shop.test", key.Selector)
}

func TestMatches(t *testing.T) {
	t.Parallel()
	k := Key{Domain: "shop.test", Selector: "s", Algorithm: dkim.Ed25519, Public: []byte("the public half")}
	p := base64.StdEncoding.EncodeToString(k.Public)
	for text, want := range map[string]string{
		k.Record():          "",
		"k=ed25519; p=" + p: "",
		"v=DKIM1;k=ed25519;p=" + p[:4] + " " + p[4:] + ";":             "",
		"v=DKIM1; h=sha1:sha256; s=email; t=s; n=x; k=ed25519; p=" + p: "",
		"v=DKIM2; k=ed25519; p=" + p:                                   "v=DKIM2",
		"v=DKIM1; p=" + p:                                              "k=rsa",
		"v=DKIM1; k=ed25519; p=":                                       "revokes",
		"v=DKIM1; k=ed25519":                                           "revokes",
		"v=DKIM1; k=ed25519; p=" + p[:5]:                               "cut off",
		"v=DKIM1; k=ed25519; p=" + p[:8]:                               "another key",
		"v=DKIM1; h=sha1; k=ed25519; p=" + p:                           "forbids sha256",
		"v=DKIM1; s=tlsrpt; k=ed25519; p=" + p:                         "forbids mail",
	} {
		err := k.matches([]string{text})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for n, texts := range map[string][]string{"no record": nil, "2 TXT records": {k.Record(), k.Record()}} {
		if err := k.matches(texts); err == nil || !strings.Contains(err.Error(), n) {
			t.Errorf("%q: %v", texts, err)
		}
	}
}

// TestWordsOfRecords: the text of a record is shown on one line, bounded, without terminal control codes.
func TestWordsOfRecords(t *testing.T) {
	t.Parallel()
	lacks := answer{none: errors.New("no record")}
	if l := judge(map[string]answer{"ns1.shop.test": lacks, "ns2.shop.test": lacks}); l.found != "all name servers: no record" || l.verdict != missing {
		t.Errorf("%+v", l)
	}
	if l := judge(map[string]answer{"ns1.shop.test": {}, "ns2.shop.test": {err: errors.New("away")}}); l.verdict != silent {
		t.Errorf("%+v", l)
	}
	k := Key{Algorithm: dkim.RSA}
	none := k.matches([]string{"v=\x1b[31m" + strings.Repeat("x", 5000)})
	l := judge(map[string]answer{"ns1.shop.test": {none: none}, "ns2.shop.test": {err: errors.New("a\nb")}})
	if !strings.HasPrefix(l.found, `ns1.shop.test: v=\x1b[31mxx`) || len(l.found) > 700 || !strings.HasSuffix(l.found, `; ns2.shop.test does not answer: a\x0ab`) {
		t.Errorf("%q", l.found)
	}
	many := map[string]answer{"ns1.shop.test": {}}
	for i := range 100 {
		many[fmt.Sprintf("ns%d.shop.test", 100+i)] = answer{none: none}
	}
	if l := judge(many); len(l.found) > 6000 || !strings.HasSuffix(l.found, "; and 92 more") {
		t.Errorf("%d octets: %q", len(l.found), l.found)
	}
}

// TestZoneLine: the strings of a record have at most 255 octets, and are the text together.
func TestZoneLine(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 255, 256, 510, 511, 700} {
		text := strings.Repeat("0123456789", 70)[:n]
		record, err := dns.NewRR(ZoneLine("s._domainkey.shop.test", text))
		if err != nil {
			t.Fatal(err)
		}
		txt := record.(*dns.TXT)
		if got := strings.Join(txt.Txt, ""); got != text || txt.Hdr.Name != "s._domainkey.shop.test." {
			t.Errorf("%d: %q at %q", n, got, txt.Hdr.Name)
		}
		for _, part := range txt.Txt {
			if len(part) > 255 {
				t.Errorf("%d: a string of %d octets", n, len(part))
			}
		}
	}
}

// TestTwoNodes: one of two looks; the result of one that has lost its lease counts for nothing.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	key := s.add("shop.test", dkim.Ed25519)[0]
	other := s.ring("b")
	now, err := other.Load(t.Context())
	must(t, err)
	var lease int64
	var domain string
	take := func() error {
		return s.db.Pool.QueryRow(t.Context(), sqlTake, "b", now, leaseTime, 5).Scan(&domain, &lease)
	}
	must(t, take())
	if err := take(); err == nil {
		t.Error("the lease was given twice")
	}
	s.round()
	if n := s.world.servers["192.0.2.1:53"].Queries("TXT", key.Name()); n != 0 {
		t.Errorf("a node looked without the lease: %d questions", n)
	}
	s.world.publish(key, "1", "2")
	s.pass(leaseTime + time.Minute) // b is dead
	s.pass(time.Minute)
	s.wantStates("shop.test", "ed25519 active")
	_, err = other.record(t.Context(), visit{domain, lease, now}, map[string]look{key.Selector: {missing, "late"}}, nil)
	if !errors.Is(err, errLost) {
		t.Errorf("a result after the lease: %v", err)
	}
	_, err = other.Load(t.Context())
	if must(t, err); len(other.Keys("shop.test")) != 1 {
		t.Error("the other node does not sign")
	}
}

// TestActs are those of an admin, and what is refused.
func TestActs(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.shift = time.Until(time.Now().UTC().Truncate(day).Add(36 * time.Hour)) // noon: no day begins in the midst of it
	ctx := t.Context()
	both := s.add("shop.test", dkim.RSA, dkim.Ed25519)
	_, err := s.admin.Add(ctx, "shop.test", []dkim.Algorithm{dkim.RSA}, 0)
	refused(t, err, refusal.ErrExists, "has a key for rsa already")
	_, err = s.admin.Rotate(ctx, "other.test")
	refused(t, err, refusal.ErrNotFound, "no DKIM key for other.test")
	_, err = s.admin.Retire(ctx, "shop.test", "x")
	refused(t, err, refusal.ErrNotFound, `no key "x"`)
	for _, k := range both {
		s.world.publish(k, "1", "2")
	}
	s.round()
	s.pass(time.Minute)
	s.wantSigns("shop.test", both[0].Selector, both[1].Selector)
	_, err = s.admin.Remove(ctx, "shop.test", both[0].Selector, false)
	refused(t, err, refusal.ErrInvalid, "signs mail: 'postern dkim retire shop.test' first")
	_, err = s.admin.Retire(ctx, "shop.test", both[0].Selector)
	must(t, err)
	_, err = s.admin.Remove(ctx, "shop.test", both[0].Selector, false)
	refused(t, err, refusal.ErrInvalid, "may be on its way: wait until")
	s.round()
	s.wantStates("shop.test", "ed25519 active, rsa retiring")
	s.wantSigns("shop.test", both[1].Selector)
	_, err = s.admin.Retire(ctx, "shop.test", both[0].Selector)
	refused(t, err, refusal.ErrInvalid, "pending or active")
	again := s.add("shop.test", dkim.RSA)
	if again[0].Selector != both[0].Selector+"-2" {
		t.Errorf("the second selector of a day is %s", again[0].Selector)
	}
	next, err := s.admin.Rotate(ctx, "shop.test")
	if must(t, err); len(next) != 2 {
		t.Errorf("the next keys are %v", next)
	}
	same, err := s.admin.Rotate(ctx, "shop.test") // which makes nothing, and is not in the audit
	if must(t, err); len(same) != 2 {
		t.Errorf("the next keys are %v", same)
	}
	done, err := s.admin.Retire(ctx, "shop.test", "")
	if must(t, err); len(done) != 3 {
		t.Errorf("retired %v", done)
	}
	s.round()
	s.wantStates("shop.test", "ed25519 retiring, rsa retiring")
	s.wantSigns("shop.test")
	_, err = s.admin.Remove(ctx, "shop.test", "", true)
	must(t, err)
	var domains int
	must(t, s.db.Pool.QueryRow(ctx, `select count(*) from dkim_domain`).Scan(&domains))
	if domains != 0 {
		t.Errorf("%d domains are left", domains)
	}
	for _, k := range s.add("shop.test", dkim.RSA, dkim.Ed25519) {
		if want := both[0].CreatedAt.UTC().Format("p20060102-") + string(k.Algorithm) + "-3"; k.Selector != want {
			t.Errorf("after two selectors of the day that were removed there is %s, want %s", k.Selector, want)
		}
	}
	_, err = s.admin.Add(ctx, "co.uk", []dkim.Algorithm{dkim.RSA}, 0)
	refused(t, err, refusal.ErrInvalid, "co.uk is a public suffix")
	var ages int
	must(t, s.db.Pool.QueryRow(ctx, `select count(*) from audit where detail ? 'every_days'`).Scan(&ages))
	if ages != 0 {
		t.Errorf("the audit has %d changes of the age", ages)
	}
	var deeds []string
	must(t, s.db.Pool.QueryRow(ctx, `select array_agg(action || ' ' || object order by id) from audit`).Scan(&deeds))
	if want := []string{"dkim add shop.test", "dkim retire shop.test", "dkim add shop.test", "dkim rotate shop.test", "dkim retire shop.test", "dkim remove shop.test", "dkim add shop.test"}; !slices.Equal(deeds, want) {
		t.Errorf("audit %q, want %q", deeds, want)
	}
}

// TestKeyThatDoesNotOpen: it signs nothing at this node, and is used once it opens.
func TestKeyThatDoesNotOpen(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	key := s.active("shop.test", dkim.Ed25519)
	stranger, err := seal.New(slices.Repeat([]byte("x"), seal.KeySize))
	must(t, err)
	other := s.ring("b")
	other.cfg.Sealer = stranger
	_, err = other.Load(t.Context())
	if must(t, err); len(other.Keys("shop.test")) != 0 || !strings.Contains(s.log.String(), "cannot be used by this node") {
		t.Errorf("it signs with %v; the log has %s", other.Keys("shop.test"), s.log)
	}
	front := s.ring("c")
	front.cfg.Sealer = nil // it only accepts mail
	_, err = front.Load(t.Context())
	if must(t, err); len(front.Keys("shop.test")) != 1 {
		t.Error("a node that opens no keys does not know which domains have one")
	}
	other.cfg.Sealer = sealer()
	s.shift += 2 * time.Minute
	_, err = other.Load(t.Context())
	if must(t, err); len(other.Keys("shop.test")) != 1 || other.Keys("shop.test")[0].Selector != key.Selector {
		t.Error("a key that opens now is not used")
	}
}
