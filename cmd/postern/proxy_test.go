package main

import (
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"syscall"
	"testing"

	"postern/internal/peers"
)

// TestBehindHAProxy puts a foreign load balancer in front of both listeners. Foreign
// clients send through it, its health checks are answered, and the relay knows the
// clients by their own address. Who comes past the balancer is not served.
func TestBehindHAProxy(t *testing.T) {
	t.Parallel()
	for version := 1; version <= 2; version++ {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			t.Parallel()
			s := installSite(t)
			s.edit(t, func(text string) string {
				return strings.ReplaceAll(text, "[[listener]]\n", "[[listener]]\nproxy_protocol = [\"192.0.2.0/24\"]\n")
			})
			d := s.serve(t)
			// The balancer's address is not the one that was configured: a reload adds it.
			s.edit(t, func(text string) string { return strings.ReplaceAll(text, "192.0.2.0/24", "127.0.0.9") })
			d.signal(t, syscall.SIGHUP)
			d.await(t, &d.stderr, `"msg":"configuration reloaded","applied":"listener.proxy_protocol","needs_restart":""`)

			past, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.starttls))
			if err != nil {
				t.Fatal(err)
			}
			defer past.Close()
			if code, text, err := textproto.NewConn(past).ReadResponse(0); err == nil {
				t.Errorf("who comes past the balancer is greeted with %d %s", code, text)
			}

			b := peers.StartBalancer(t, version, s.starttls, s.implicit)
			s.starttls, s.implicit = b.Ports[0], b.Ports[1]
			mail := mailFile(t, "From: alice@example.com\nTo: carol@example.net\nSubject: balanced\n\nHello\n")
			for _, mode := range modes {
				id := send(t, "swaks", s.settings(mode, mail, "carol@example.net"))
				h := s.trace(t, id)
				if got := h.Message.ClientAddr; got != "127.0.0.1" {
					t.Errorf("the message came from %s, want the client's address, 127.0.0.1", got)
				}
			}
			if log := d.stderr.String(); strings.Contains(log, `"client":"127.0.0.9`) || strings.Contains(log, "without a valid PROXY header") {
				t.Errorf("the balancer's own connections are in the log:\n%s", log)
			}
			if strings.Contains(b.Log(), "DOWN") {
				t.Errorf("the balancer found a listener ill:\n%s", b.Log())
			}
		})
	}
}
