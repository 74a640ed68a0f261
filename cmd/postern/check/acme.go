package check

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"

	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/relay/acme"
)

var acmeKinds = []kind{
	{"acme.ok", health.OK, "", ""},
	{"acme.waiting", health.Warning, "No node has ordered the certificate yet; clients get a self-signed one.", "start the server, and read its log"},
	{"acme.file", health.Failed, "A file that [acme] names cannot be used, so the server does not start.",
		"correct the path, let the server's user read it, and chmod 600 a key"},
	{"acme.port", health.Failed, "The server cannot listen where the CA validates.",
		"stop the other program, or set another address in [acme] and forward the port to it"},
	{"acme.no-address", health.Failed, "A name has no address, so the CA cannot validate it.",
		"add A and AAAA records, or use challenge = \"dns-01\""},
}

// acme looks at what the nodes tell each other of the certificates they order.
func (c *checkup) acme(ctx context.Context, r *report) {
	c.acmeFiles(r)
	c.acmePort(ctx, r)
	v, err := c.view(ctx)
	if err != nil {
		r.skip("acme", "%v", err)
		return
	}
	for _, name := range c.cfg.ACME.Names {
		i := slices.IndexFunc(v.certificates, func(rec acme.Record) bool { return strings.EqualFold(rec.Name, name) })
		if i < 0 {
			r.add("acme.waiting", "acme "+name, "nothing is known about it")
			continue
		}
		c.acmeRecord(r, v.certificates[i])
	}
}

// acmeRecord judges a certificate as the nodes that show it do.
func (c *checkup) acmeRecord(r *report, rec acme.Record) {
	found := health.Certificate{Name: rec.Name, NotBefore: rec.NotBefore, NotAfter: rec.NotAfter,
		FailingSince: rec.FailingSince, Error: rec.LastError}.Judge(c.now())
	if found.Status == health.OK {
		r.add("acme.ok", "acme "+rec.Name, "by %s, until %s", screen.OrDash(rec.Issuer), screen.LocalTime(rec.NotAfter))
		return
	}
	r.take(found)
}

// acmeFiles reads what the server would read at its start.
func (c *checkup) acmeFiles(r *report) {
	a := c.cfg.ACME
	_, err := config.ReadRoots(a.DirectoryCA)
	if err != nil {
		r.add("acme.file", "acme", "directory_ca: %v", err)
	}
	if _, err = config.ReadKeyFile(a.EABKeyFile); err != nil {
		r.add("acme.file", "acme", "eab_key_file: %v", err)
	}
	if acme.Challenge(a.Challenge) != acme.DNS01 {
		return
	}
	if _, err = a.RFC2136.Provider(); err != nil {
		r.add("acme.file", "acme", "%v", err)
	}
}

// acmePort: where a server of ours runs, it is this one that has the port.
func (c *checkup) acmePort(ctx context.Context, r *report) {
	a := c.cfg.ACME
	if acme.Challenge(a.Challenge) == acme.DNS01 {
		return
	}
	ln, err := net.Listen("tcp", a.Address())
	if err == nil {
		_ = ln.Close()
		return
	}
	if (errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EACCES)) && c.runsHere(ctx) {
		return
	}
	r.add("acme.port", "acme", "%s: %v", a.Address(), config.ListenReason(err))
}

// acmeNames looks whether the authority can find the names that it connects to.
func (c *checkup) acmeNames(ctx context.Context, r *report) {
	a := c.cfg.ACME
	if acme.Challenge(a.Challenge) == acme.DNS01 {
		return
	}
	r.each(ctx, len(a.Names), func(ctx context.Context, i int, r *report) {
		addrs, err := c.hostAddresses(ctx, a.Names[i])
		if err == nil && len(addrs) == 0 {
			r.add("acme.no-address", "acme "+a.Names[i], "not in DNS")
		}
	})
}
