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

// TestL2DescriptorsFit: what may be open fits into the limit, and everybody has some.
func TestL2DescriptorsFit(t *testing.T) {
	t.Parallel()
	plain := func(*config) {}
	for _, test := range []struct {
		limit  uint64
		change func(*config)
		want   descriptors
	}{
		{0, plain, descriptors{1000, 500, 0, 8}},
		{1, plain, descriptors{1, 1, 1, 2}},
		{64, plain, descriptors{1, 1, 1, 8}},
		{256, plain, descriptors{128, 21, 22, 8}},
		{1024, plain, descriptors{704, 85, 86, 8}},
		{1024, func(c *config) { c.Submission.Connections = 100 }, descriptors{100, 286, 288, 8}},
		{1024, func(c *config) { c.Listeners = nil }, descriptors{0, 320, 320, 8}},
		{1024, func(c *config) { c.Database.MaxConnections = 200 }, descriptors{584, 85, 86, 128}},
		{65536, plain, descriptors{1000, 500, 63472, 8}},
		{1 << 63, plain, descriptors{1000, 500, 1<<30 - 64 - 2000, 8}},
	} {
		cfg := defaultConfig()
		cfg.Listeners = []listenerConfig{{}}
		cfg.Submission.Connections = 1000
		test.change(&cfg)
		got := cfg.fit(test.limit)
		if got != test.want {
			t.Errorf("%d: %+v, want %+v", test.limit, got, test.want)
		}
		own := ownDescriptors + max(0, got.database-plainDatabase)
		if all := uint64(got.connections + 2*got.deliveries + got.files + own); test.limit >= 128 && all > test.limit {
			t.Errorf("%d: %d may be open", test.limit, all)
		}
		if cut := cfg.cuts(got) != ""; cut != (test.limit > 0 && test.limit <= 1024) {
			t.Errorf("%d: %q", test.limit, cfg.cuts(got))
		}
	}
}

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
	// On a slow machine silent connections give way to later ones meanwhile.
	if most := 300 - 128 + 128/10; refused == 0 || refused > most {
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
