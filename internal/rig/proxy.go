package rig

import (
	"errors"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy stands between a node and the database and loses what either says: the one
// moment of a commit that a kill hardly ever meets.
type Proxy struct {
	url      string
	socket   string
	listener net.Listener
	done     sync.WaitGroup
	losing   atomic.Int32 // a Way
	lost     atomic.Int64

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// Way is a direction in which a Proxy loses what is said.
type Way int32

const (
	Answers   Way = 1 + iota // the statements are carried out, and nobody learns it
	Questions                // the statements never come
)

// NewProxy listens on loopback in front of the rig's database until the end of the
// test.
func (r *Rig) NewProxy() *Proxy {
	r.t.Helper()
	u, err := url.Parse(r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	p := &Proxy{socket: filepath.Join(u.Query().Get("host"), ".s.PGSQL.5432"), conns: map[net.Conn]struct{}{}}
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		r.t.Fatal(err)
	}
	u.Host, u.RawQuery = p.listener.Addr().String(), "sslmode=disable"
	p.url = u.String()
	p.done.Go(p.accept)
	r.t.Cleanup(func() {
		_ = p.listener.Close()
		p.cut(true)
		p.done.Wait()
	})
	return p
}

// URL is the database through the proxy.
func (p *Proxy) URL() string { return p.url }

// Lost is how many octets were dropped.
func (p *Proxy) Lost() int64 { return p.lost.Load() }

// Lose drops what is said in one way for a while, and until something was lost; then it
// cuts all connections.
func (p *Proxy) Lose(way Way, span time.Duration) {
	before := p.Lost()
	p.losing.Store(int32(way))
	for end := time.Now().Add(Patience); ; {
		<-time.After(span)
		if p.Lost() > before || time.Now().After(end) {
			break
		}
	}
	p.cut(false)
	p.losing.Store(0)
}

// Hang drops what is said in one way until the test ends: a database that hangs.
func (p *Proxy) Hang(way Way) { p.losing.Store(int32(way)) }

// cut closes all connections, for good at the end.
func (p *Proxy) cut(last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = p.closed || last
	for conn := range p.conns {
		_ = conn.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", p.socket)
		if err != nil || !p.enter(client, server) {
			_ = client.Close()
			continue
		}
		p.done.Go(func() { p.pass(client, server) })
	}
}

func (p *Proxy) enter(client, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = server.Close()
		return false
	}
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	return true
}

// pass carries one connection until either side ends it.
func (p *Proxy) pass(client, server net.Conn) {
	end := func() { _ = errors.Join(client.Close(), server.Close()) }
	var back sync.WaitGroup
	back.Go(func() {
		p.carry(Answers, client, server)
		end()
	})
	p.carry(Questions, server, client)
	end()
	back.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// carry copies one way until either side ends, but for what is to be lost.
func (p *Proxy) carry(way Way, to, from net.Conn) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if p.losing.Load() == int32(way) {
			p.lost.Add(int64(n))
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}
