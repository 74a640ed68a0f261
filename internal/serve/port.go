package serve

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
)

// FreePort is a port on 127.0.0.1 that was free a moment ago. It is not one of those that
// the kernel gives away by itself: nobody has it before it is used, nor while a server that
// used it is away.
func FreePort() (int, error) {
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
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return listener.Addr().(*net.TCPAddr).Port, listener.Close()
		}
	}
	return 0, fmt.Errorf("%d ports were tried, and none is free", tries)
}
