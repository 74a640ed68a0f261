package peers

import (
	"os"
	"runtime"
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
	if cpu, err := relay.CPU(); err != nil || cpu <= 0 {
		t.Errorf("four mails cost %s: %v", cpu, err)
	}
	if strings.Contains(relay.Log(), "warning:") {
		t.Errorf("Postfix warns about its configuration:\n%s", relay.Log())
	}
}

func TestRelayEndsWithAllItsProcesses(t *testing.T) {
	t.Parallel()
	relay, _ := startRelay(t)
	running := func() int {
		processes, err := sessionProcesses(relay.session)
		if err != nil {
			t.Fatal(err)
		}
		return len(processes)
	}
	if running() < 2 {
		t.Fatalf("session %d is not Postfix's", relay.session)
	}
	relay.Close()
	for deadline := time.Now().Add(3 * time.Minute); running() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d processes of session %d are left", running(), relay.session)
		}
		runtime.Gosched() // a killed process is on its way out
	}
	if exists(relay.dir) {
		t.Errorf("%s is left", relay.dir)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	line := "42 (a) b (c) S 1 40 39 0 -1 4194304 1 2 3 4 150 50 7 3 20 0 1 0 100 0 0"
	want := procStat{pid: 42, name: "a) b (c", state: "S", session: 39, cpu: 2 * time.Second, reaped: 100 * time.Millisecond}
	if got, ok := parseStat(line); !ok || got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "42", "42 (a", ") 42 (", "x (a) S 1", "42 (a) S 1 40 39"} {
		if got, ok := parseStat(bad); ok {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}
