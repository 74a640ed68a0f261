package acmetest

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"postern/internal/serve"
)

// Key of the name server's zone: nobody may update it without.
const (
	KeyName      = "postern."
	KeyAlgorithm = "hmac-sha256"
	KeySecret    = "cG9zdGVybi1wb3N0ZXJuLXBvc3Rlcm4tcG9zdGVybiE="
)

// DNS is a primary for the zone test, over UDP and TCP. Every name in it has the
// address 127.0.0.1. TXT records come by updates (RFC 2136) that are signed.
type DNS struct {
	addr string

	mu      sync.Mutex
	texts   []dns.TXT
	unsaid  bool // answers are not signed
	refused int
	updates int
}

// NewDNS starts one that ends with the test.
func NewDNS(t testing.TB) *DNS {
	t.Helper()
	d := &DNS{}
	tcp, err := serve.Listen("127.0.0.1") // the kernel may have given another's port away for UDP
	if err != nil {
		t.Fatal(err)
	}
	d.addr = tcp.Addr().String()
	udp, err := net.ListenPacket("udp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{KeyName: KeySecret}
	accept := func(h dns.Header) dns.MsgAcceptAction {
		if opcode := int(h.Bits>>11) & 0xF; opcode == dns.OpcodeUpdate {
			return dns.MsgAccept
		}
		return dns.DefaultMsgAcceptFunc(h)
	}
	for _, server := range []*dns.Server{
		{Listener: tcp, Handler: dns.HandlerFunc(d.handle), TsigSecret: keys, MsgAcceptFunc: accept},
		{PacketConn: udp, Handler: dns.HandlerFunc(d.handle), TsigSecret: keys, MsgAcceptFunc: accept},
	} {
		started, ended := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			_ = server.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-ended
		})
	}
	return d
}

// Addr is where it answers.
func (d *DNS) Addr() string { return d.addr }

// LeaveUnsigned lets answers to updates come without a signature.
func (d *DNS) LeaveUnsigned() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsaid = true
}

// Texts are the TXT records of a name.
func (d *DNS) Texts(name string) (list []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, txt := range d.texts {
		if strings.EqualFold(txt.Hdr.Name, dns.Fqdn(name)) {
			list = append(list, strings.Join(txt.Txt, ""))
		}
	}
	return list
}

// Updates counts those that were made and those that were refused.
func (d *DNS) Updates() (made, refused int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.updates, d.refused
}

func (d *DNS) handle(w dns.ResponseWriter, r *dns.Msg) {
	reply := new(dns.Msg).SetReply(r)
	reply.Authoritative = true
	if r.Opcode == dns.OpcodeUpdate {
		d.update(w, r, reply)
	} else if len(r.Question) == 1 {
		d.answer(r.Question[0], reply)
	}
	_ = w.WriteMsg(reply)
}

func (d *DNS) update(w dns.ResponseWriter, r, reply *dns.Msg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	tsig := r.IsTsig()
	switch {
	case tsig == nil || w.TsigStatus() != nil || tsig.Algorithm != dns.Fqdn(KeyAlgorithm):
		reply.Rcode = dns.RcodeNotAuth
	case len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, "test."):
		reply.Rcode = dns.RcodeNotZone
	default:
		for _, rr := range r.Ns {
			if txt, ok := rr.(*dns.TXT); ok {
				d.apply(*txt)
			}
		}
		d.updates++
		if !d.unsaid {
			reply.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, int64(tsig.TimeSigned))
		}
		return
	}
	d.refused++
}

// apply adds a record, or with class NONE removes it (RFC 2136 section 2.5).
func (d *DNS) apply(txt dns.TXT) {
	var kept []dns.TXT
	for _, other := range d.texts {
		if !strings.EqualFold(other.Hdr.Name, txt.Hdr.Name) || strings.Join(other.Txt, "") != strings.Join(txt.Txt, "") {
			kept = append(kept, other)
		}
	}
	if txt.Hdr.Class == dns.ClassINET {
		kept = append(kept, txt)
	}
	d.texts = kept
}

func (d *DNS) answer(q dns.Question, reply *dns.Msg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 1}
	soa := &dns.SOA{Hdr: dns.RR_Header{Name: "test.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 1},
		Ns: "ns.test.", Mbox: "admin.test.", Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: 1}
	switch {
	case !dns.IsSubDomain("test.", dns.CanonicalName(q.Name)):
		reply.Rcode = dns.RcodeRefused
		return
	case q.Qtype == dns.TypeSOA && strings.EqualFold(q.Name, "test."):
		reply.Answer = append(reply.Answer, soa)
	case q.Qtype == dns.TypeA:
		reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: net.IPv4(127, 0, 0, 1)})
	case q.Qtype == dns.TypeTXT:
		for _, txt := range d.texts {
			if strings.EqualFold(txt.Hdr.Name, q.Name) {
				found := txt
				reply.Answer = append(reply.Answer, &found)
			}
		}
	}
	if len(reply.Answer) == 0 {
		reply.Ns = append(reply.Ns, soa)
	}
}
