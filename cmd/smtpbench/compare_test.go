package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompare measures the real relay, and Postfix where it can be had.
func TestCompare(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "postern")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", program, "postern/cmd/postern")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the package is built: compiled once for both
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var stdout, stderr bytes.Buffer
	args := []string{"compare", "--workload", "smoke", "--rounds", "2", "--json", "--postern", program, "--dir", t.TempDir(), "--profile", t.TempDir()}
	if status := run(t.Context(), args, nil, &stdout, &stderr); status != 0 {
		t.Fatalf("status %d: %s", status, &stderr)
	}
	var all []struct {
		Workload, Server string
		Rounds           []result
	}
	if err := json.Unmarshal(stdout.Bytes(), &all); err != nil {
		t.Fatalf("printed %q: %v", &stdout, err)
	}
	if len(all) == 0 || all[0].Server != "postern" {
		t.Fatalf("measured %+v; %s", all, &stderr)
	}
	if len(all) == 1 && !strings.Contains(stderr.String(), "measuring Postern alone: ") {
		t.Errorf("does not say why Postfix is missing: %s", &stderr)
	}
	for _, s := range all {
		if len(s.Rounds) != 2 {
			t.Errorf("%s has %d rounds", s.Server, len(s.Rounds))
		}
		for _, r := range s.Rounds { // of two passes of ten messages to three recipients
			if want := (tally{Accepted: 20, Arrived: 60}); r.Tally != want || !r.Sound || r.Rate <= 0 {
				t.Errorf("%s: %+v", s.Server, r)
			}
		}
	}
	if peak := all[0].Rounds[0].Peak; peak < 1<<20 {
		t.Errorf("Postern's peak is %d octets", peak)
	}
}

func TestCompareSaysWhatPosternSaid(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	status := run(t.Context(), []string{"compare", "--postern", "/bin/false", "--dir", t.TempDir()}, nil, &stdout, &stderr)
	if status != 1 || !strings.Contains(stderr.String(), "start postern: postern migrate: exit status 1") {
		t.Errorf("status %d: %s", status, &stderr)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	at := func(rate, server, postgres float64) round {
		r := round{result: result{Rate: rate, AcceptRate: rate, CPU: map[string]float64{"server": server}, Sound: true}}
		if postgres > 0 {
			r.CPU["postgres"] = postgres
		}
		return r
	}
	w := workload{name: "burst", connections: 2, messages: 3, passes: 4}
	all := []series{
		{Workload: "burst", Server: "postern", what: "much", shape: w, Rounds: []round{at(5000, 0.1, 0.1), at(1, 9, 9), at(6000, 0.1, 0.2)}},
		{Workload: "burst", Server: "postfix", what: "much", shape: w, Rounds: []round{at(1000, 2, 0), at(500, 3, 0), at(1000, 2.4, 0)}},
		{Workload: "burst", Server: "postern --dkim rsa", what: "much", shape: w, Rounds: []round{at(4000, 0.2, 0.1), at(1, 9, 9), at(4000, 0.3, 0.4)}},
		{Workload: "many", Server: "postern", what: "more", shape: w, Rounds: []round{at(100, 1, 1)}},
	}
	var out bytes.Buffer
	if err := printTable(&out, all); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"workload server end to end/s accepted/s p50 ms p99 ms max ms CPU ms of it server PostgreSQL peak MiB",
		"burst postern 5000 5000 - - - 0.300 0.100 0.200 -",
		"burst postfix 1000 1000 - - - 2.400 2.400 - -",
		"ratio 5.00 × 5.00 × 8.00 ×",
		"burst postern --dkim rsa 4000 4000 - - - 0.700 0.300 0.400 -",
		"ratio 1.25 × 1.25 × 1.50 × 2.00 × 1.00 ×",
		"many postern 100 100 - - - 2.000 1.000 1.000 -",
		"burst: much; median of 3 rounds of 24 messages",
		"many: more; median of 1 rounds of 24 messages",
		"Rates are messages/s, CPU is for each message; a ratio above 1 is better for the first.",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := judge(all); err != nil {
		t.Error(err)
	}
	all[1].Rounds[1].Sound = false
	if err := judge(all); !errors.Is(err, errUnsound) || !strings.Contains(err.Error(), "burst with postfix") {
		t.Errorf("a bad round ends with %v", err)
	}
}

// TestRoundAdds adds passes of different size.
func TestRoundAdds(t *testing.T) {
	t.Parallel()
	var r round
	r.add(result{Messages: 10, Recipients: 2, Accept: 1, EndToEnd: 2, P50: 1, P99: 5, Max: 7, Own: 1, CPU: map[string]float64{"server": 1},
		Tally: tally{Accepted: 10, Arrived: 20}, Sound: true, Problems: map[string]int{}})
	r.add(result{Messages: 30, Recipients: 2, Accept: 3, EndToEnd: 3, P50: 2, P99: 4, Max: 9, Own: 9, CPU: map[string]float64{"server": 5},
		Tally: tally{Accepted: 30, Refused: 1, Arrived: 59, Lost: 1}, Problems: map[string]int{"x": 1}})
	if r.Messages != 40 || r.AcceptRate != 10 || r.Rate != 7.9 || r.CPU["server"] != 4 || r.Sound || r.Problems["x"] != 1 {
		t.Errorf("%+v", r)
	}
	if r.P50 != 2 || r.Own != 7 || r.P99 != 5 || r.Max != 9 || r.Tally != (tally{Accepted: 40, Refused: 1, Arrived: 79, Lost: 1}) {
		t.Errorf("%+v", r)
	}
}
