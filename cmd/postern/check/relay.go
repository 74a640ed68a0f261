package check

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/relay/smtp"
)

var relayKinds = []kind{
	{"relay.closed", health.OK, "", ""},
	{"relay.down", health.Skipped, "Nothing answers at the listener's address.", "start the server and check again"},
	{"relay.lookup", health.Failed, "The name of a listener, or of --connect, cannot be looked up.",
		"correct the name; one without a dot must be in /etc/hosts or the search list"},
	{"relay.unreachable", health.Failed, "Nothing answers at the address of --connect.", "check that the server runs, and the firewalls"},
	{"relay.balanced", health.Skipped, "The listener serves load balancers only, so it cannot be checked from here.",
		"ask the balancer from outside: postern check --only relay --connect HOST:PORT"},
	{"relay.talk", health.Failed, "The listener does not speak SMTP.", "read the server's log; check the listener's port and tls"},
	{"relay.open", health.Failed, "The listener accepts mail for others from anybody: it is an open relay.",
		"stop it now, and find out what listens there: Postern never does this"},
	{"relay.mail", health.Failed, "The listener accepts MAIL without AUTH, though not the recipient that was tried.",
		"find out what listens there: Postern answers 530"},
	{"relay.auth-clear", health.Failed, "The listener offers AUTH without TLS, so passwords are sent in clear.",
		"find out what listens there or intercepts the connection: Postern never does this"},
	{"relay.no-tls", health.Failed, "The listener does not offer STARTTLS, so nobody can log in.",
		"look for a firewall that inspects SMTP, or another program at the port"},
	{"relay.no-auth", health.Failed, "The listener offers no AUTH under TLS, so nobody can log in.", "find out what listens there"},
	{"relay.any-password", health.Failed, "The listener accepts a made-up password.", "stop it now; find out what listens there"},
	{"relay.certificate", health.Warning, "The listener shows another certificate than the configured one.",
		"read the server's log; look for another program at the port"},
	{"relay.untrusted", health.Failed, "Clients cannot verify the certificate that is shown.",
		"see the findings of tls and acme, and use a name that it has"},
}

// doors are the listeners, or what --connect names in their place.
func (c *checkup) doors() (list []door) {
	if len(c.opts.Connect) > 0 {
		for _, at := range c.opts.Connect {
			list = append(list, door{address: at})
		}
		return list
	}
	for _, l := range c.cfg.Listeners {
		list = append(list, doorOf(l))
	}
	return list
}

func (c *checkup) lookFromOutside(ctx context.Context, r *report) {
	doors := c.doors()
	guessed := new(atomic.Bool) // one wrong password is enough, and is all the throttle shall see
	r.each(ctx, len(doors), func(ctx context.Context, i int, r *report) {
		ctx, cancel := context.WithTimeout(ctx, 2*talkTime)
		defer cancel()
		k := &knock{c: c, r: r, door: doors[i], guessed: guessed}
		if k.door.deaf {
			r.add("relay.balanced", k.subject(), "this machine is not in its proxy_protocol")
			return
		}
		switch err := k.run(ctx); {
		case errors.Is(err, syscall.ECONNREFUSED):
			id := "relay.down"
			if len(c.opts.Connect) > 0 {
				id = "relay.unreachable"
			}
			r.add(id, k.subject(), "connection refused")
		case err != nil:
			r.add("relay.talk", k.subject(), "%v", err)
		case !k.told:
			r.add("relay.closed", k.subject(), "mail needs AUTH, and AUTH needs TLS")
		}
	})
}

// knock is an outsider's conversation with one door.
type knock struct {
	c       *checkup
	r       *report
	door    door
	guessed *atomic.Bool
	name    string // that certificates have to have
	told    bool   // something is wrong
}

func (k *knock) subject() string { return "outside " + k.door.address }

func (k *knock) tell(id, format string, args ...any) {
	k.told = true
	k.r.add(id, k.subject(), format, args...)
}

func (k *knock) run(ctx context.Context) error {
	host, _, err := net.SplitHostPort(k.door.address)
	if err != nil {
		return err
	}
	hostname, _ := k.c.cfg.ServerName()
	k.name = host
	if net.ParseIP(host) != nil {
		k.name = hostname
	}
	addresses, err := k.c.resolved(ctx, k.door.address)
	if err != nil {
		k.tell("relay.lookup", "%v", err)
		return nil
	}
	var t *talk
	var greeting smtp.Reply
	for to, rest := k.door, addresses; len(rest) > 0 && t == nil; rest = rest[1:] {
		to.address = rest[0]
		t, greeting, err = dialTalk(ctx, to, k.name)
	}
	if err != nil {
		return err
	}
	defer t.quit()
	if !greeting.IsPositive() {
		return fmt.Errorf("it greets with: %s", greeting)
	}
	offers, err := t.hello("outside.invalid")
	if err != nil {
		return err
	}
	if t.tls == nil {
		if offers, err = k.clear(ctx, t, offers); err != nil || offers == nil {
			return err
		}
	}
	return k.secured(t, offers)
}

// resolved looks the host of an address up as deliveries to an upstream do: a word may be
// in this machine's hosts file or its search list.
func (c *checkup) resolved(ctx context.Context, address string) (list []string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || net.ParseIP(host) != nil {
		return []string{address}, err
	}
	ctx, cancel := context.WithTimeout(ctx, questionsTime)
	defer cancel()
	addrs, err := c.dns.Local(ctx, host)
	for _, addr := range addrs.List {
		list = append(list, net.JoinHostPort(addr.String(), port))
	}
	return list, err
}

// clear is what is tried before TLS; it returns what is offered under it, nil when
// there is none.
func (k *knock) clear(ctx context.Context, t *talk, offers map[string]string) (map[string]string, error) {
	if mechanisms, offered := offers["AUTH"]; offered {
		k.tell("relay.auth-clear", "it offers AUTH %s", mechanisms)
	}
	if err := k.mail(t, "in clear"); err != nil {
		return nil, err
	}
	if _, offered := offers["STARTTLS"]; !offered {
		k.tell("relay.no-tls", "it offers %s", screen.OrDash(screen.Few(keywords(offers))))
		return nil, nil
	}
	reply, err := t.say("STARTTLS")
	if err != nil {
		return nil, err
	}
	if reply.Code != 220 {
		k.tell("relay.no-tls", "STARTTLS: %s", reply)
		return nil, nil
	}
	if err := t.secure(ctx, k.name); err != nil {
		return nil, err
	}
	return t.hello("outside.invalid")
}

func (k *knock) secured(t *talk, offers map[string]string) error {
	k.certificate(t.tls.PeerCertificates)
	if err := k.mail(t, "under TLS"); err != nil {
		return err
	}
	if _, offered := offers["AUTH"]; !offered {
		k.tell("relay.no-auth", "it offers %s", screen.OrDash(screen.Few(keywords(offers))))
		return nil
	}
	if k.guessed.Swap(true) {
		return nil
	}
	// A name that nobody has: no account is brought nearer to its limits.
	login := "\x00postern-check-" + strings.ToLower(rand.Text()) + "@invalid\x00" + rand.Text()
	reply, err := t.say("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte(login)))
	if err == nil && reply.IsPositive() {
		k.tell("relay.any-password", "AUTH: %s", reply)
	}
	return err
}

// mail begins a transaction without AUTH, and ends it before any data.
func (k *knock) mail(t *talk, where string) error {
	reply, err := t.say("MAIL FROM:<postmaster@sender.example>")
	if err != nil || !reply.IsPositive() {
		return err
	}
	rcpt, err := t.say("RCPT TO:<postmaster@recipient.example>")
	if err != nil {
		return err
	}
	if rcpt.IsPositive() {
		k.tell("relay.open", "%s: MAIL: %s, RCPT: %s", where, reply, rcpt)
	} else {
		k.tell("relay.mail", "%s: MAIL: %s, RCPT: %s", where, reply, rcpt)
	}
	_, err = t.say("RSET")
	return err
}

// certificate compares what is shown with the files or, where there are none, judges
// it as a client does.
func (k *knock) certificate(shown []*x509.Certificate) {
	if k.c.cfg.TLS.SelfSigned && k.door.ours {
		return
	}
	// With ACME the files are not all that may be shown.
	if files := k.c.certificateFiles(); k.door.ours && len(files) > 0 && !k.c.cfg.ACME.On() {
		for _, f := range files {
			chain, err := readChain(f.certificate)
			if err != nil || bytes.Equal(chain[0].Raw, shown[0].Raw) {
				return // what is wrong with files is told elsewhere
			}
		}
		k.tell("relay.certificate", "it shows one for %s, until %s", screen.OrDash(screen.Few(shown[0].DNSNames)), screen.LocalTime(shown[0].NotAfter))
		return
	}
	between := x509.NewCertPool()
	for _, cert := range shown[1:] {
		between.AddCert(cert)
	}
	_, err := shown[0].Verify(x509.VerifyOptions{Roots: k.c.roots, Intermediates: between, CurrentTime: k.c.now(), DNSName: k.name})
	if err != nil {
		k.tell("relay.untrusted", "%v", err)
	} else if weak := weakness(shown[0]); weak != "" {
		k.tell("relay.untrusted", "%s", weak)
	}
}

func keywords(offers map[string]string) (list []string) {
	for keyword := range offers {
		list = append(list, keyword)
	}
	return list
}
