package dnstest

import (
	"net"
	"testing"

	"github.com/miekg/dns"

	"postern/internal/serve"
	"postern/relay/resolver"
)

// Both are the ways to ask z: in memory, and by a server.
func (z *Zones) Both(t testing.TB) map[string]*resolver.Resolver {
	t.Helper()
	return map[string]*resolver.Resolver{"memory": z.Resolver(), "server": At(z.Serve(t))}
}

// Serve has a name server on loopback answer from z, over UDP and TCP, until the end of the test,
// and returns its address. An answer that is longer than a client takes over UDP is cut off.
func (z *Zones) Serve(t testing.TB) (address string) {
	t.Helper()
	tcp, err := serve.Listen("127.0.0.1") // the kernel may have given another's port away for UDP
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{Listener: tcp}, {PacketConn: udp}} {
		server.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) { z.reply(w, query, server.PacketConn != nil) })
		started, ended := make(chan struct{}), make(chan error, 1)
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			if err := <-ended; err != nil {
				t.Errorf("name server: %v", err)
			}
		})
	}
	return udp.LocalAddr().String()
}

func (z *Zones) reply(w dns.ResponseWriter, query *dns.Msg, udp bool) {
	if len(query.Question) != 1 {
		return
	}
	reply, fault := z.answer(query)
	if fault != 0 {
		return
	}
	if udp {
		size := dns.MinMsgSize
		if edns := query.IsEdns0(); edns != nil {
			size = int(edns.UDPSize())
		}
		reply.Truncate(size)
	}
	_ = w.WriteMsg(reply)
}
