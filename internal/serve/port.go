package serve

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
)

// Listen listens on a port of host, an address of loopback, that is free. It is not one of those
// that the kernel gives away by itself: nobody gets it while its server is away, nor after.
func Listen(host string) (net.Listener, error) {
	const lowest, tries = 12_000, 100
	highest := 32_768
	if ports, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		low, _, _ := strings.Cut(string(ports), "\t")
		highest, _ = strconv.Atoi(low)
	}
	for range tries {
		port := 0 // where all ports are given away
		if highest > lowest {
			port = lowest + rand.IntN(highest-lowest)
		}
		if listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			return listener, nil
		}
	}
	return nil, fmt.Errorf("%d ports of %s were tried, and none is free", tries, host)
}

// FreePort is a port on 127.0.0.1 as Listen has it, which was free a moment ago.
func FreePort() (int, error) {
	listener, err := Listen("127.0.0.1")
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}
