package smtptest

import (
	"net"
	"testing"

	"github.com/miekg/dns"
)

// ServeDNS has a name server on loopback answer from r, with r's faults, until the end
// of the test, and returns its address. It follows aliases as a recursive server does,
// and answers a circle of them as some do: NOERROR, with nothing but the circle. Names
// that Stall and TimeOut are set for get no answer.
func (r *Resolver) ServeDNS(t testing.TB) (address string) {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(r.serve), NotifyStartedFunc: func() { close(ready) }}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() {
		_ = server.Shutdown()
		if err := <-ended; err != nil {
			t.Errorf("name server: %v", err)
		}
	})
	return packets.LocalAddr().String()
}

func (r *Resolver) serve(w dns.ResponseWriter, query *dns.Msg) {
	if len(query.Question) != 1 {
		return
	}
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	if r.fill(reply, query.Question[0]) {
		_ = w.WriteMsg(reply)
	}
}

// fill answers a question, or reports that there is no answer.
func (r *Resolver) fill(reply *dns.Msg, q dns.Question) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := dns.TypeToString[q.Qtype]
	switch r.fault(kind, q.Name) {
	case faultServFail:
		reply.Rcode = dns.RcodeServerFailure
		return true
	case faultRefuse:
		reply.Rcode = dns.RcodeRefused
		return true
	case faultTimeout, faultStall:
		return false
	}
	head := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: dns.Fqdn(name), Rrtype: kind, Class: dns.ClassINET, Ttl: 60}
	}
	aliases, end := r.follow(q.Name)
	if kind == "CNAME" {
		aliases = aliases[:min(len(aliases), 1)]
	}
	for _, alias := range aliases {
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: head(alias, dns.TypeCNAME), Target: dns.Fqdn(r.aliases[alias])})
	}
	switch kind {
	case "MX":
		for _, mx := range r.mx[end] {
			reply.Answer = append(reply.Answer, &dns.MX{Hdr: head(end, q.Qtype), Preference: mx.Pref, Mx: dns.Fqdn(mx.Host)})
		}
	case "A":
		for _, a := range r.family(kind, end) {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: head(end, q.Qtype), A: a.AsSlice()})
		}
	case "AAAA":
		for _, a := range r.family(kind, end) {
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: head(end, q.Qtype), AAAA: a.AsSlice()})
		}
	}
	if len(aliases) == 0 && len(r.mx[end]) == 0 && len(r.addrs[end]) == 0 {
		reply.Rcode = dns.RcodeNameError
	}
	return true
}
