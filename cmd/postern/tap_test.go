package main

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
)

// A tap stands before a server and keeps what clients send to it.
type tap struct {
	listener net.Listener
	server   string
	talks    sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	heard []*bytes.Buffer // for each connection
}

// tapPort starts a tap before a port of 127.0.0.1 for the time of the test.
func tapPort(t *testing.T, port int) *tap {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &tap{listener: listener, server: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	w.talks.Go(w.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		w.mu.Lock()
		for _, conn := range w.conns {
			_ = conn.Close()
		}
		w.mu.Unlock()
		w.talks.Wait()
	})
	return w
}

func (w *tap) address() string { return w.listener.Addr().String() }

func (w *tap) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return // closed
		}
		server, err := net.Dial("tcp", w.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		heard := new(bytes.Buffer)
		w.mu.Lock()
		w.conns = append(w.conns, client, server)
		w.heard = append(w.heard, heard)
		w.mu.Unlock()
		w.talks.Go(func() {
			_, _ = io.Copy(io.MultiWriter(server, lockedWriter{&w.mu, heard}), client) // ends with either side
			_ = server.(*net.TCPConn).CloseWrite()
		})
		w.talks.Go(func() {
			_, _ = io.Copy(client, server)
			_ = client.Close()
			_ = server.Close()
		})
	}
}

// sent is what was sent so far, for each connection.
func (w *tap) sent() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all [][]byte
	for _, heard := range w.heard {
		all = append(all, bytes.Clone(heard.Bytes()))
	}
	return all
}

type lockedWriter struct {
	mu *sync.Mutex
	to io.Writer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(b)
}
