package node

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"

	"postern/cmd/postern/config"
)

// NewLogger makes the one logger of the process.
func NewLogger(w io.Writer, cfg config.Log) *slog.Logger {
	h := &logHandler{set: new(logSettings)}
	opt := &slog.HandlerOptions{Level: &h.set.level}
	h.text, h.json = slog.NewTextHandler(w, opt), slog.NewJSONHandler(w, opt)
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
