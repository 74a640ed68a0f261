package node

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestSocketsThatDoNotFit: sockets without a listener and listeners without a socket
// are errors that say what to do.
func TestSocketsThatDoNotFit(t *testing.T) {
	t.Parallel()
	open := func(names ...string) *sockets {
		t.Helper()
		var files []*os.File
		for _, name := range names {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			f, err := ln.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fd, err := syscall.Dup(int(f.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, os.NewFile(uintptr(fd), name))
		}
		s, err := openSockets(files)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.close)
		return s
	}
	if _, err := open().take("submission"); err == nil || !strings.Contains(err.Error(), "start the socket unit") {
		t.Errorf("no socket at all: %v", err)
	}
	two := open("submission", "submissions", "submission")
	if _, err := two.take("smtp"); err == nil || !strings.Contains(err.Error(), "but submission, submissions: set FileDescriptorName=smtp") {
		t.Errorf("another name: %v", err)
	}
	if list, err := two.take("submission"); err != nil || len(list) != 2 {
		t.Errorf("two sockets of a name: %v, %v", list, err)
	}
	if err := two.left(); err == nil || !strings.Contains(err.Error(), `"systemd:NAME": submissions (127.0.0.1:`) {
		t.Errorf("one that nobody takes: %v", err)
	}
	if err := open().left(); err != nil {
		t.Error(err)
	}
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	f, err := datagrams.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openSockets([]*os.File{f}); err == nil || !strings.Contains(err.Error(), "cannot be listened on") {
		t.Errorf("UDP: %v", err)
	}
}
