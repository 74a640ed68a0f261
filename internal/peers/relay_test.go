package peers

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// startRelay is a relay in front of a capture.
func startRelay(t *testing.T) (*Relay, *Capture) {
	t.Helper()
	requireCache(t)
	if os.Geteuid() != 0 {
		t.Skip(errNotRoot)
	}
	sink, err := StartCapture(CaptureConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sink.Close)
	relay, err := StartPostfixRelay(t.Context(), RelayConfig{
		User: testUser, Password: testPassword, NextHop: loopback(sink.Port()), Processes: 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(relay.Log())
		}
		relay.Close()
	})
	return relay, sink
}

func TestRelay(t *testing.T) {
	t.Parallel()
	relay, sink := startRelay(t)
	for mode, port := range map[TLS]int{StartTLS: relay.SubmissionPort, Implicit: relay.ImplicitPort} {
		for _, mechanism := range []string{"PLAIN", "LOGIN"} {
			out, err := Send(t, Curl, Settings{
				Host: "127.0.0.1", Port: port, TLS: mode, CAFile: relay.CAFile, User: testUser, Password: testPassword,
				Mechanism: mechanism, From: testUser, To: []string{"bob@example.net"}, Message: writeMail(t),
			})
			if err != nil {
				t.Fatalf("%s %s: %v\n%s", mode, mechanism, err, out)
			}
			sameMail(t, next(t, sink).Data)
		}
	}
	if strings.Contains(relay.Log(), "warning:") {
		t.Errorf("Postfix warns about its configuration:\n%s", relay.Log())
	}
}

func TestRelayEndsWithAllItsProcesses(t *testing.T) {
	t.Parallel()
	relay, _ := startRelay(t)
	if len(sessionProcesses(t, relay.Session)) < 2 {
		t.Fatalf("session %d is not Postfix's", relay.Session)
	}
	relay.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		left := sessionProcesses(t, relay.Session)
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes of session %d are left: %v", relay.Session, left)
		}
		runtime.Gosched() // a killed process is on its way out
	}
	if exists(relay.dir) {
		t.Errorf("%s is left", relay.dir)
	}
}

// sessionProcesses are the running processes of a session: pid and name.
func sessionProcesses(t *testing.T, session int) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		stat := readAll(file) // "" when it has just ended
		name, rest, _ := strings.Cut(stat, ") ")
		f := strings.Fields(rest) // state, ppid, pgrp, session, … (proc(5))
		if len(f) > 3 && f[3] == strconv.Itoa(session) && f[0] != "Z" && f[0] != "X" {
			found = append(found, name)
		}
	}
	return found
}
