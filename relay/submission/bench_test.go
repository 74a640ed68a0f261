package submission

import (
	"runtime"
	"strings"
	"testing"

	"postern/auth"
)

// BenchmarkSession submits messages of 5 KB over one TLS connection. The client is
// in the same process and costs about as much as the server.
func BenchmarkSession(b *testing.B) {
	message := sized(5<<10) + ".\r\n"
	group := "MAIL FROM:<alice@example.com> SIZE=5200\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
	for _, pipelined := range []bool{true, false} {
		name := "lockstep"
		if pipelined {
			name = "pipelined"
		}
		b.Run(name, func(b *testing.B) {
			ts := startServer(b)
			ts.queue.discard = true
			c := ts.login(b)
			b.ReportAllocs()
			b.SetBytes(int64(len(message)))
			for b.Loop() {
				if pipelined {
					c.send(group)
				} else {
					for _, line := range strings.SplitAfter(group, "\r\n")[:3] {
						c.send(line)
						c.reply()
					}
				}
				if pipelined {
					c.reply()
					c.reply()
					c.reply()
				}
				c.send(message)
				c.expect(250)
			}
		})
	}
}

// BenchmarkSessionClear leaves out TLS and the network: the session alone.
func BenchmarkSessionClear(b *testing.B) {
	message := sized(5<<10) + ".\r\n"
	group := "MAIL FROM:<alice@example.com> SIZE=5200\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
	ts := startServer(b)
	ts.queue.discard = true
	conn := &scripted{text: []byte(strings.Repeat(group+message, 64))}
	s := newSession(ts.Server, arrival{listener: ts.listeners[0], conn: conn})
	s.secured, s.greeted, s.hello, s.esmtp = "TLS1.3 TLS_AES_128_GCM_SHA256", true, "client.test", true
	id, _ := ts.verifier.Verify(b.Context(), "alice@example.com", "secret", auth.Peer{Addr: s.peer.addr.Addr()})
	s.identity = &id
	b.ReportAllocs()
	b.SetBytes(int64(len(message)))
	for b.Loop() {
		for range 4 { // MAIL, RCPT, DATA and what follows the dot in one write
			s.next()
			if s.tx == nil {
				break
			}
		}
		if s.ended != "" {
			b.Fatal(s.ended)
		}
	}
	s.wire.out = nil
}

// BenchmarkRecheckThousand has 1,000 idle sessions of 100 users told that their access
// was withdrawn.
func BenchmarkRecheckThousand(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		ts, _, clients := manySessions(b, 100, 10)
		b.StartTimer()
		ts.revokeAll(b, clients)
	}
}

// TestIdleSession: what a session that waits costs, TLS apart.
func TestIdleSession(t *testing.T) {
	// Not parallel: it looks at the heap of the process.
	ts := startServer(t, func(cfg *Config) { cfg.Limits.ConnectionsPerAddress = 1000 })
	const n = 200
	before := heap()
	sessions := make([]*session, n)
	for i := range sessions {
		sessions[i] = newSession(ts.Server, arrival{listener: ts.listeners[0], conn: &scripted{text: []byte("EHLO client.test\r\n")}})
		sessions[i].next()
	}
	each := (heap() - before) / n
	runtime.KeepAlive(sessions)
	t.Logf("%d octets each", each)
	if each > 8<<10 {
		t.Errorf("an idle session holds %d octets", each)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
