package node

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"postern/cmd/postern/config"
)

// NewLogger makes the one logger of the process.
func NewLogger(w io.Writer, cfg config.Log) *slog.Logger {
	h := &logHandler{set: &logSettings{out: lines{to: w}}}
	opt := &slog.HandlerOptions{Level: &h.set.level}
	h.text, h.json = slog.NewTextHandler(&h.set.out, opt), slog.NewJSONHandler(&h.set.out, opt)
	h.set.take(cfg)
	return slog.New(h)
}

// logHandler is a handler whose level and format can change while it is used.
type logHandler struct {
	set        *logSettings // one for all loggers that were derived
	text, json slog.Handler
}

type logSettings struct {
	level  slog.LevelVar
	asJSON atomic.Bool
	out    lines
}

func (s *logSettings) take(cfg config.Log) {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // validated with the configuration
	s.level.Set(level)
	s.asJSON.Store(cfg.Format == "json")
}

func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.set.level.Level()
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	if h.set.asJSON.Load() {
		return h.json.Handle(ctx, r)
	}
	return h.text.Handle(ctx, r)
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.set, h.text.WithAttrs(attrs), h.json.WithAttrs(attrs)}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.set, h.text.WithGroup(name), h.json.WithGroup(name)}
}

// Together writes all lines that f logs in one piece (maillog.Logger.Attempts).
func (h *logHandler) Together(f func()) {
	h.set.out.hold()
	defer h.set.out.release()
	f()
}

// mostGathered bounds what lines holds back, in octets.
const mostGathered = 64 << 10

// lines passes lines on, or holds them back for a moment: a system call for each recipient of
// a message costs as much as what is written.
type lines struct {
	to io.Writer

	mu      sync.Mutex
	holders int
	held    []byte
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holders == 0 {
		return l.to.Write(line)
	}
	l.held = append(l.held, line...)
	if len(l.held) >= mostGathered {
		l.flush()
	}
	return len(line), nil
}

func (l *lines) hold() {
	l.mu.Lock()
	l.holders++
	l.mu.Unlock()
}

func (l *lines) release() {
	l.mu.Lock()
	l.holders--
	l.flush()
	l.mu.Unlock()
}

func (l *lines) flush() {
	if len(l.held) > 0 {
		_, _ = l.to.Write(l.held) // as slog's loggers do, it drops what cannot be written
		l.held = l.held[:0]
	}
}
