package acme

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

func TestZapLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := zapLogger(slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})))
	named := log.Named("obtain").With(zap.String("identifier", "mail.test"))
	named.Info("below the level")
	named.Warn("a step", zap.Duration("in", time.Second), zap.Strings("names", []string{"a", "b"}))
	named.Error("could not", zap.Error(errors.New("refused")), zap.Int("attempt", 2))
	log.Error("of no part", zap.Any("storage", &storage{node: "one"}))
	log.Error("a page", zap.Error(errors.New(strings.Repeat("x", 1<<20))))
	if err := log.Sync(); err != nil {
		t.Error(err)
	}
	want := []map[string]any{
		{"level": "INFO", "msg": "acme: a step", "part": "obtain", "identifier": "mail.test", "in": float64(time.Second), "names": []any{"a", "b"}},
		{"level": "WARN", "msg": "acme: could not", "part": "obtain", "identifier": "mail.test", "error": "refused", "attempt": float64(2)},
		{"level": "WARN", "msg": "acme: of no part", "storage": "postgres"},
		{"level": "WARN", "msg": "acme: a page", "error": strings.Repeat("x", 2000) + " …"},
	}
	lines := json.NewDecoder(&out)
	for _, w := range want {
		var got map[string]any
		if err := lines.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got["time"] == nil {
			t.Error("a line without its time")
		}
		delete(got, "time")
		if diff := cmp.Diff(w, got); diff != "" {
			t.Error(diff)
		}
	}
	if lines.More() {
		t.Errorf("more lines: %s", &out)
	}
}
