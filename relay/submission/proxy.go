package submission

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The PROXY protocol of HAProxy, "proxy-protocol.txt", versions 1 (section 2.1) and 2
// (section 2.2): a load balancer names its client before anything else.
//
// The reader is our own, since it reads not one octet more than the header, so that TLS or
// commands follow on the bare connection: a library wraps the connection to keep what it
// read too much, and loses closing for writing and the deadlines of a shutdown. A listener
// that reads headers serves nobody else, or clients could pass the balancer's filters and
// send a header of their own. A connection without a named client may not log in: all such
// clients would share one throttle, and a credential for the internal network would work
// for them.

const (
	proxyTime  = 5 * time.Second // for the whole header
	proxyLine  = 107             // octets of a version 1 header, with CRLF
	proxyBlock = 4 << 10         // octets of a version 2 header behind its length
)

// proxySignature begins a version 2 header. A version 1 header is longer as well, so
// that as many octets can be read before either is known.
var proxySignature = [12]byte{'\r', '\n', '\r', '\n', 0, '\r', '\n', 'Q', 'U', 'I', 'T', '\n'}

var (
	errNoProxyHeader = errors.New("no PROXY header")
	errProxyHeader   = errors.New("malformed PROXY header")
)

// readProxyHeader reads a header and not one octet more. The address is the zero one
// when the balancer names no client: its own connection, or one that it cannot tell.
func readProxyHeader(r io.Reader) (netip.AddrPort, error) {
	var start [len(proxySignature)]byte
	if _, err := io.ReadFull(r, start[:]); err != nil {
		return netip.AddrPort{}, err
	}
	switch {
	case start == proxySignature:
		return readProxyBlock(r)
	case bytes.HasPrefix(start[:], []byte("PROXY ")):
		return readProxyLine(r, start[:])
	}
	return netip.AddrPort{}, errNoProxyHeader
}

// readProxyLine is version 1. It reads octet by octet: the octets after it are not ours.
func readProxyLine(r io.Reader, start []byte) (netip.AddrPort, error) {
	line := make([]byte, len(start), proxyLine)
	copy(line, start)
	for line[len(line)-1] != '\n' {
		if len(line) == proxyLine {
			return netip.AddrPort{}, fmt.Errorf("%w: the line does not end", errProxyHeader)
		}
		line = line[:len(line)+1]
		if _, err := io.ReadFull(r, line[len(line)-1:]); err != nil {
			return netip.AddrPort{}, err
		}
	}
	text, ended := strings.CutSuffix(string(line), "\r\n")
	if !ended {
		return netip.AddrPort{}, fmt.Errorf("%w: the line does not end in CRLF", errProxyHeader)
	}
	field := strings.Split(text, " ")
	if field[1] == "UNKNOWN" { // whatever follows it
		return netip.AddrPort{}, nil
	}
	if len(field) != 6 {
		return netip.AddrPort{}, errProxyHeader
	}
	client, err := proxyEndpoint(field[1], field[2], field[4])
	if err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := proxyEndpoint(field[1], field[3], field[5]); err != nil {
		return netip.AddrPort{}, err
	}
	return client, nil
}

// proxyEndpoint reads an address and a port of version 1.
func proxyEndpoint(protocol, address, port string) (netip.AddrPort, error) {
	ip, err := netip.ParseAddr(address)
	number, portErr := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || portErr != nil,
		ip.Zone() != "" || port != strconv.FormatUint(number, 10),
		protocol != "TCP4" && protocol != "TCP6" || ip.Is4() != (protocol == "TCP4"):
		return netip.AddrPort{}, errProxyHeader
	}
	return namedClient(ip, uint16(number))
}

// readProxyBlock is version 2, behind its signature.
func readProxyBlock(r io.Reader) (netip.AddrPort, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return netip.AddrPort{}, err
	}
	size := int(binary.BigEndian.Uint16(head[2:]))
	if size > proxyBlock {
		return netip.AddrPort{}, fmt.Errorf("%w: %d octets", errProxyHeader, size)
	}
	block := make([]byte, size)
	if _, err := io.ReadFull(r, block); err != nil {
		return netip.AddrPort{}, err
	}
	const local, proxy = 0x20, 0x21 // version and command
	if head[0] != local && head[0] != proxy {
		return netip.AddrPort{}, fmt.Errorf("%w: version and command %#x", errProxyHeader, head[0])
	}
	var client netip.AddrPort
	if head[0] == local { // the family and the block are to be ignored
		return client, nil
	}
	addresses := 0 // octets
	switch head[1] {
	case 0x00: // AF_UNSPEC: the block is to be ignored
		return client, nil
	case 0x11: // TCP over IPv4
		if addresses = 12; size >= addresses {
			client = netip.AddrPortFrom(netip.AddrFrom4([4]byte(block)), binary.BigEndian.Uint16(block[8:]))
		}
	case 0x21: // TCP over IPv6
		if addresses = 36; size >= addresses {
			client = netip.AddrPortFrom(netip.AddrFrom16([16]byte(block)), binary.BigEndian.Uint16(block[32:]))
		}
	case 0x31: // a stream over AF_UNIX
		addresses = 216
	default:
		return client, fmt.Errorf("%w: family and protocol %#x", errProxyHeader, head[1])
	}
	if size < addresses || !wellFormedTLVs(block[addresses:]) {
		return netip.AddrPort{}, fmt.Errorf("%w: cut short", errProxyHeader)
	}
	if !client.IsValid() {
		return netip.AddrPort{}, nil
	}
	return namedClient(client.Addr(), client.Port())
}

// wellFormedTLVs walks over the additions of version 2, of which none is needed.
func wellFormedTLVs(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 3 {
			return false
		}
		n := 3 + int(binary.BigEndian.Uint16(b[1:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
}

// namedClient refuses addresses that no client can have.
func namedClient(ip netip.Addr, port uint16) (netip.AddrPort, error) {
	ip = ip.Unmap()
	if ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.AddrPort{}, fmt.Errorf("%w: a client at %s", errProxyHeader, ip)
	}
	return netip.AddrPortFrom(ip, port), nil
}

// introduce reads the PROXY header of a connection from a load balancer and reports whether
// the session goes on: for the client it names, or without one.
func (s *session) introduce() bool {
	s.wire.until, s.wire.idle = time.Now().Add(proxyTime), true
	client, err := readProxyHeader(s.wire)
	switch {
	case errors.Is(err, errShutdown):
		s.end("shutdown")
		s.server.sayAndClose(s.listener, s.wire.raw, replyShutdown)
		return false
	case errors.Is(err, io.EOF): // it only looked whether the port is open
		s.end("no PROXY header")
		return false
	case err != nil:
		s.end("no PROXY header")
		s.server.counts.refusedByProxy.Add(1)
		if s.server.mail.Allow("no good PROXY header", s.peer.addr) {
			s.server.log.Warn("load balancer connected without a valid PROXY header",
				"balancer", s.peer.addr.String(), "listener", s.listener.Name, "error", err)
		}
		return false
	}
	s.wire.disarm()
	if !client.IsValid() {
		return true
	}
	p := peerAt(client)
	if full := s.server.peers.enterNetwork(p.network); full != noCrowd {
		s.server.turnAway(s.listener, s.wire.raw, p.addr, full)
		s.end("too many connections")
		return false
	}
	s.peer, s.counted, s.unnamed = p, tally{network: p.network, named: true}, false
	s.server.counts.sessions.Add(1)
	return true
}

// refuseStray closes a connection to a listener for load balancers that comes from none of
// them.
func (s *Server) refuseStray(a arrival) {
	_ = a.conn.Close()
	s.counts.refusedByProxy.Add(1)
	if s.mail.Allow("not in proxy_protocol", a.peer.addr) {
		s.log.Warn("connection to a PROXY listener from an address outside its proxy_protocol",
			"client", a.peer.addr.String(), "listener", a.listener.Name)
	}
}
