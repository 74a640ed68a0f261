package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFewDescriptors (A10) opens more connections than the process may have files, from
// many addresses: those beyond the clients' share of the files are turned away, and the
// listener never runs out of them.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	site := installSite(t)
	appendLines(t, site.config, "[submission]", "connections_per_address = 1000")
	site.env = append(site.env, fewDescriptors+"=256")
	d := site.serve(t)
	d.await(t, &d.stderr, `fewer connections than configured.*"connections":128`)
	refused := 0
	for i := range 300 {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%100))}}
		conn, err := from.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", site.starttls))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		greeting, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(greeting, "421 4.7.0 ") {
			refused++
		}
	}
	// On a slow machine silent connections give way to later ones meanwhile. A tenth of the
	// places is for addresses with a login, and one is left for an address that has none yet.
	if most := 300 - 128 + 128/10 + 1; refused == 0 || refused > most {
		t.Errorf("%d of 300 connections were refused, want %d at most", refused, most)
	}
	if strings.Contains(d.stderr.String(), "accept failed") {
		t.Error("the listener ran out of descriptors")
	}
}

// fewDescriptors is the variable that has the program of a test lower its own
// limit of open files.
const fewDescriptors = "POSTERN_TEST_DESCRIPTORS"

func lowerDescriptors() {
	var n uint64
	if _, err := fmt.Sscan(os.Getenv(fewDescriptors), &n); err != nil {
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
		panic(err)
	}
}

func appendLines(t *testing.T, file string, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(strings.Join(lines, "\n") + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
