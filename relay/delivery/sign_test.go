package delivery

import (
	"crypto"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/dkimtest"
	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/dkim"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// hashed is a delivery of a text, with its body hash.
func hashed(t testing.TB, text string, rcpts ...string) *queue.Delivery {
	t.Helper()
	d := message(t, rcpts...)
	d.Body, d.Message.Size = newBody(text), int64(len(text))
	d.Message.AcceptedAt = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	_, body, _ := strings.Cut(text, "\r\n\r\n")
	hash := dkim.NewBodyHash()
	_, _ = hash.Write([]byte(body))
	d.Message.BodyHash = hash.Sum()
	return d
}

// The way says which keys sign. The text goes on as it came, behind the signatures.
func TestSigning(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New("sender.test", "relay.example.com", "half.test")
	here := maps.Clone(keys)
	here["half.test"] = slices.Clone(keys["half.test"])
	for i := range here["half.test"] {
		if k := &here["half.test"][i]; k.Algorithm == dkim.RSA {
			k.Signer = nil
		}
	}
	elsewhere := strings.Replace(text, "a@sender.test", "a@other.test", 1)
	for _, tc := range []struct {
		name     string
		mode     dkim.Mode
		mx       bool
		as       string
		text     string
		nohash   bool
		notice   bool
		want     string
		signed   int64
		unsigned string // the domain that is counted
	}{
		{name: "both", mode: dkim.Both, want: "rsa sender.test, ed25519 sender.test", signed: 1},
		{name: "rsa", mode: dkim.OnlyRSA, want: "rsa sender.test", signed: 1},
		{name: "off", mode: dkim.Off},
		{name: "no setting"},
		{name: "MX", mx: true, want: "rsa sender.test, ed25519 sender.test", signed: 1},
		{name: "MX, rsa", mx: true, mode: dkim.OnlyRSA, want: "rsa sender.test", signed: 1},
		{name: "MX, off", mx: true, mode: dkim.Off},
		{name: "another's domain", mode: dkim.Both, text: elsewhere, unsigned: "sender.test"},
		{name: "a domain below", mode: dkim.OnlyRSA, text: strings.Replace(text, "sender", "Sub.sender", 1), want: "rsa sender.test", signed: 1},
		{name: "accepted before the key", mode: dkim.Both, nohash: true, unsigned: "sender.test"},
		{name: "the private half elsewhere", mode: dkim.Both, text: strings.Replace(text, "sender.test", "half.test", 1), want: "ed25519 half.test", signed: 1},
		{name: "notice", mode: dkim.Both, text: elsewhere, notice: true},
		{name: "rewritten", mode: dkim.OnlyRSA, as: "box@relay.example.com", want: "rsa relay.example.com", signed: 1},
		{name: "rewritten to a domain without a key", mode: dkim.OnlyRSA, as: "box@example.com", unsigned: "example.com"},
		{name: "signed by the customer", mode: dkim.OnlyRSA, text: "DKIM-Signature: v=1; a=rsa-sha256; d=other.test; s=x; h=from;\r\n bh=AAAA; b=AAAA\r\n" + text,
			want: "rsa sender.test", signed: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING", "SIZE 0"}})
			var dns dnstest.Zones
			dns.AddHost("one.test", server.Host())
			cfg := Config{Keys: here, Connect: connect.Config{DNS: dns.Resolver(), MXPort: server.Port(), AllowPrivateMX: true}}
			up := upstreamAt(server)
			if up.DKIM = tc.mode; tc.as != "" {
				up.SendsAs = address(t, tc.as)
			}
			cfg.Routes = routes{def: up}
			if tc.mx {
				cfg.DKIM, cfg.Routes = tc.mode, routes{}
			}
			if tc.text == "" {
				tc.text = text
			}
			q := newFakeQueue()
			e := startEngine(t, q, cfg)
			d := hashed(t, tc.text, "b@one.test")
			if tc.nohash {
				d.Message.BodyHash = nil
			}
			if tc.notice {
				d.Message.UserID = 0
			}
			e.Take(taken(t, e, d))
			got := server.WaitMessages(t, 1)[0]
			q.waitEnded(t, 1)
			if list := strings.Join(keys.Verified(t, got.Data), ", "); list != tc.want {
				t.Errorf("signed by %q, want %q:\n%s", list, tc.want, got.Data)
			}
			if !strings.Contains(got.Mail, "SIZE="+strconv.Itoa(len(got.Data))) {
				t.Errorf("MAIL %q of %d octets", got.Mail, len(got.Data))
			}
			if tc.as == "" && !strings.HasSuffix(string(got.Data), tc.text) {
				t.Errorf("the text is changed:\n%s", got.Data)
			}
			if s := e.Stats(); s.Signed != tc.signed {
				t.Errorf("%d signed, want %d", s.Signed, tc.signed)
			}
			want := []Unsigned{{otherDomains, 0}}
			if tc.unsigned != "" {
				want = append(want, Unsigned{tc.unsigned, 1})
			}
			if got := e.Unsigned(); !slices.Equal(got, want) {
				t.Errorf("unsigned are %v, want %v", got, want)
			}
		})
	}
}

// At most mostUnsigned domains have a count of their own, and names that are not valid have none.
func TestUnsignedIsBounded(t *testing.T) {
	t.Parallel()
	e := New(Config{})
	for range 2 {
		for i := range mostUnsigned + 10 {
			e.unsigned.add("d" + strconv.Itoa(i) + ".test")
		}
		e.unsigned.add("\xff.test")
		e.unsigned.add("")
	}
	list := e.Unsigned()
	if want := (Unsigned{otherDomains, 24}); len(list) != mostUnsigned+1 || list[0] != want {
		t.Errorf("%d counts, and %v, want %d and %v", len(list), list[0], mostUnsigned+1, want)
	}
	if !slices.Contains(list, Unsigned{"d7.test", 2}) {
		t.Errorf("d7.test is not in %v", list)
	}
}

// A reload changes what MX get; zero changes nothing.
func TestSigningIsRebound(t *testing.T) {
	t.Parallel()
	e := New(Config{})
	for _, step := range []struct{ to, want dkim.Mode }{{"", dkim.Both}, {dkim.Off, dkim.Off}, {"", dkim.Off}, {dkim.OnlyRSA, dkim.OnlyRSA}} {
		e.Rebound(Bounds{DKIM: step.to})
		if got := e.bounds.Load().DKIM; got != step.want {
			t.Errorf("after %q: %q, want %q", step.to, got, step.want)
		}
	}
}

// counting counts what a key signs.
type counting struct {
	crypto.Signer
	n *atomic.Int64
}

func (c counting) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.n.Add(1)
	return c.Signer.Sign(rand, digest, opts)
}

// A message is signed once for all its destinations that want the same, and a retry sends the same octets.
func TestSignedOnce(t *testing.T) {
	t.Parallel()
	keys, made := dkimtest.New("sender.test"), new(atomic.Int64)
	for i := range keys["sender.test"] {
		k := &keys["sender.test"][i]
		k.Signer = counting{k.Signer, made}
	}
	server := smtptest.Start(t, smtptest.Config{})
	server.On(smtptest.PhaseDot, smtptest.Once(smtptest.Reply("451 4.3.0 later")))
	up := upstreamAt(server)
	up.DKIM = dkim.Both
	to := map[string]*upstream.Account{}
	for _, domain := range []string{"one.test", "two.test", "three.test"} {
		other := *up
		other.Name = domain
		to[domain] = &other
	}
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{to: to}, Keys: keys})
	first := hashed(t, text, "a@one.test", "b@two.test", "c@three.test")
	e.Take(taken(t, e, first))
	q.waitEnded(t, 3)
	if n := made.Load(); n != 2 {
		t.Errorf("%d signatures were made of one message by two keys", n)
	}
	again := hashed(t, text, "a@one.test")
	again.Message.ID = first.Message.ID
	e.Take(taken(t, e, again))
	server.WaitMessages(t, 3)
	sent := server.Transactions()
	if len(sent) != 4 {
		t.Fatalf("%d transactions", len(sent))
	}
	for _, m := range sent {
		if string(m.Data) != string(sent[0].Data) {
			t.Errorf("an attempt sends other octets:\n%s\n%s", m.Data, sent[0].Data)
		}
	}
	if list := keys.Verified(t, sent[0].Data); len(list) != 2 {
		t.Error(list)
	}
}
