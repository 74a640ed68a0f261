package check

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"

	"postern/admin/health"
	"postern/cmd/postern/config"
)

var portKinds = []kind{
	{"port.free", health.OK, "", ""},
	{"port.ours", health.OK, "", ""},
	{"port.other", health.Failed, "A Postern with another hostname uses the address.", "stop it, or change one of the addresses"},
	{"port.foreign", health.Failed, "Another program uses the address.", "find it with 'ss -ltnp'; stop it, or change the address in [[listener]]"},
	{"port.privileged", health.Warning, "This user may not listen on ports below 1024.",
		"run the server as the systemd unit does: with CAP_NET_BIND_SERVICE, or sockets from systemd"},
	{"port.unusable", health.Failed, "The server cannot listen at the address.", "set an address of this machine, or 0.0.0.0, in [[listener]]"},
	{"port.balanced", health.Info, "The listener serves load balancers only, so its program cannot be identified.", ""},
	{"port.handed", health.Info, "The service manager opens the socket, and nothing answers at the usual address.", ""},
	{"port.none", health.Warning, "There is no [[listener]], so only 'postern serve --only delivery' starts.",
		"add a [[listener]], unless this node is only to deliver"},
}

func (c *checkup) lookAtPorts(ctx context.Context, r *report) {
	if len(c.cfg.Listeners) == 0 {
		if c.found {
			r.add("port.none", "listener", "none")
		}
		return
	}
	r.each(ctx, len(c.cfg.Listeners), func(ctx context.Context, i int, r *report) {
		c.port(ctx, r, c.cfg.Listeners[i])
	})
}

// port tries to listen, which disturbs nobody who does already.
func (c *checkup) port(ctx context.Context, r *report, l config.Listener) {
	if _, handed := l.Socket(); handed {
		c.handed(r, l, c.answers(ctx, r, l))
		return
	}
	ln, err := net.Listen("tcp", l.Address)
	if err == nil {
		_ = ln.Close()
		r.add("port.free", "listener", "%s is free: no server runs there", l.Address)
		return
	}
	c.notFree(ctx, r, l, err)
}

// handed is a listener whose socket the service manager opens.
func (c *checkup) handed(r *report, l config.Listener, answered bool) {
	if !answered {
		r.add("port.handed", "listener", "%s: nothing answers at %s", l.Address, doorOf(l).address)
	}
}

// notFree says why nobody could listen there.
func (c *checkup) notFree(ctx context.Context, r *report, l config.Listener, err error) {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		if !c.answers(ctx, r, l) {
			r.add("port.foreign", "listener", "%s is in use, and does not answer as a mail server", l.Address)
		}
	case errors.Is(err, syscall.EACCES):
		if !c.answers(ctx, r, l) {
			r.add("port.privileged", "listener", "%s: %v", l.Address, config.ListenReason(err))
		}
	default:
		r.add("port.unusable", "listener", "%s: %v", l.Address, config.ListenReason(err))
	}
}

// answers says who greets at the address, if somebody does.
func (c *checkup) answers(ctx context.Context, r *report, l config.Listener) bool {
	d := doorOf(l)
	if d.deaf {
		if !d.open(ctx) {
			return false
		}
		r.add("port.balanced", "listener", "%s is in use; this machine is not in its proxy_protocol", l.Address)
		return true
	}
	hostname, _ := c.cfg.ServerName()
	t, greeting, err := dialTalk(ctx, d, hostname)
	if err != nil {
		return false
	}
	defer t.quit()
	name, isPostern := strings.CutSuffix(greeting.Text, " ESMTP Postern")
	switch {
	case !isPostern:
		r.add("port.foreign", "listener", "%s is in use by a server that says: %s", l.Address, greeting)
	case !strings.EqualFold(name, hostname):
		r.add("port.other", "listener", "%s is in use by %s", l.Address, name)
	default:
		r.add("port.ours", "listener", "%s answers: %s", l.Address, greeting)
	}
	return true
}
