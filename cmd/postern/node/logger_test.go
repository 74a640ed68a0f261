package node

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"postern/cmd/postern/config"
)

// TestLoggerChanges: loggers that were derived before a change follow it.
func TestLoggerChanges(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := NewLogger(&out, config.Log{Format: "text", Level: "warn"})
	derived := log.With("part", "queue").WithGroup("g")
	set := log.Handler().(*logHandler).set
	derived.Info("one")
	derived.Warn("two", "k", 1)
	set.take(config.Log{Format: "json", Level: "debug"})
	derived.Debug("three", "k", 2)
	log.Debug("four")
	set.take(config.Log{Format: "text", Level: "error"})
	log.Warn("five")
	const want = `^time=\S+ level=WARN msg=two part=queue g\.k=1
\{"time":"[^"]+","level":"DEBUG","msg":"three","part":"queue","g":\{"k":2\}\}
\{"time":"[^"]+","level":"DEBUG","msg":"four"\}
$`
	if !regexp.MustCompile(want).MatchString(out.String()) {
		t.Errorf("logged:\n%s", &out)
	}
}

// pieces counts what is written to it.
type pieces []string

func (p *pieces) Write(b []byte) (int, error) {
	*p = append(*p, string(b))
	return len(b), nil
}

// Lines that are logged together are written in one piece, unless they are too many, and those
// of others with them; all others immediately.
func TestLinesTogether(t *testing.T) {
	t.Parallel()
	var out pieces
	log := NewLogger(&out, config.Log{Format: "text", Level: "info"})
	h := log.With("part", "queue").Handler().(*logHandler)
	log.Info("one")
	h.Together(func() {
		log.Info("two")
		h.Together(func() { log.Info("three") })
		log.Info("four")
	})
	log.Info("five")
	if len(out) != 4 || strings.Count(out[1], "\n") != 2 || !strings.Contains(out[2], "four") || !strings.Contains(out[3], "five") {
		t.Errorf("written: %q", out)
	}
	out = nil
	h.Together(func() {
		for range 1000 {
			log.Info(strings.Repeat("x", 200))
		}
	})
	if all := strings.Join(out, ""); len(out) < 3 || len(out) > 10 || strings.Count(all, "\n") != 1000 {
		t.Errorf("%d pieces with %d lines", len(out), strings.Count(all, "\n"))
	}
}
