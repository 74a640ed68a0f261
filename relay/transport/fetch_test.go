package transport

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A policy host that never answers the TLS handshake keeps no connection.
func TestSilentPolicyHost(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	f := &Fetcher{Time: 100 * time.Millisecond,
		Addresses: func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{netip.IPv6Loopback()}, nil },
		Dial:      func(context.Context, string, string) (net.Conn, error) { return ours, nil }}
	if _, err := f.Policy(t.Context(), "silent.test"); err == nil {
		t.Fatal("a policy came from nowhere")
	}
	_ = theirs.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, theirs); err != nil {
		t.Errorf("the connection is still open: %v", err)
	}
}
