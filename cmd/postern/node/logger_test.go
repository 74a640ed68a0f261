package node

import (
	"bytes"
	"regexp"
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
