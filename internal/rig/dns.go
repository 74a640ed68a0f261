package rig

import (
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server on loopback that knows MX and A records. Other names do
// not exist.
type DNS struct {
	conn net.PacketConn

	mu sync.Mutex
	mx map[string][]dnsmessage.MXResource
	a  map[string][4]byte
}

// NewDNS listens until the end of the test.
func NewDNS(t testing.TB) *DNS {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &DNS{conn: conn, mx: map[string][]dnsmessage.MXResource{}, a: map[string][4]byte{}}
	var done sync.WaitGroup
	done.Go(d.serve)
	t.Cleanup(func() {
		_ = conn.Close()
		done.Wait()
	})
	return d
}

// Addr is where the server listens.
func (d *DNS) Addr() string { return d.conn.LocalAddr().String() }

// AddMX gives domain a mail server.
func (d *DNS) AddMX(domain string, preference uint16, host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mx[domain] = append(d.mx[domain], dnsmessage.MXResource{Pref: preference, MX: dnsmessage.MustNewName(host + ".")})
}

// AddHost gives host an address.
func (d *DNS) AddHost(host string, address [4]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.a[host] = address
}

func (d *DNS) serve() {
	packet := make([]byte, 1500)
	for {
		n, from, err := d.conn.ReadFrom(packet)
		if err != nil {
			return
		}
		var query dnsmessage.Message
		if query.Unpack(packet[:n]) != nil || len(query.Questions) != 1 {
			continue
		}
		reply := d.answer(query.ID, query.Questions[0])
		if out, err := reply.Pack(); err == nil {
			_, _ = d.conn.WriteTo(out, from)
		}
	}
}

func (d *DNS) answer(id uint16, q dnsmessage.Question) dnsmessage.Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, Response: true, Authoritative: true, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	add := func(body dnsmessage.ResourceBody) {
		reply.Answers = append(reply.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 60}, Body: body,
		})
	}
	address, isHost := d.a[name]
	switch {
	case q.Type == dnsmessage.TypeMX:
		for i := range d.mx[name] {
			add(&d.mx[name][i])
		}
	case q.Type == dnsmessage.TypeA && isHost:
		add(&dnsmessage.AResource{A: address})
	}
	if len(d.mx[name]) == 0 && !isHost {
		reply.RCode = dnsmessage.RCodeNameError
	}
	return reply
}
