package acme

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger lets certmagic write to log. It reports each step and also returns the
// errors that it logs; what came of it is logged by us. So its lines are one level
// lower here than there.
func zapLogger(log *slog.Logger) *zap.Logger {
	return zap.New(&slogCore{log: log})
}

// quietLogger is zapLogger for what strangers can cause as often as they like.
func quietLogger(log *slog.Logger) *zap.Logger {
	return zap.New(&slogCore{log: log, quiet: true})
}

// slogCore is a zapcore.Core that writes to a slog.Logger.
type slogCore struct {
	log    *slog.Logger
	quiet  bool // all of it is for debugging
	fields []zapcore.Field
}

func (c *slogCore) slogLevel(level zapcore.Level) slog.Level {
	switch {
	case c.quiet:
		return slog.LevelDebug
	case level >= zapcore.ErrorLevel:
		return slog.LevelWarn
	case level >= zapcore.WarnLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// Enabled implements zapcore.LevelEnabler.
func (c *slogCore) Enabled(level zapcore.Level) bool {
	return c.log.Enabled(context.Background(), c.slogLevel(level))
}

// With implements zapcore.Core.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log, quiet: c.quiet, fields: slices.Concat(c.fields, fields)}
}

// Check implements zapcore.Core.
func (c *slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	encoded := zapcore.NewMapObjectEncoder()
	for _, field := range slices.Concat(c.fields, fields) {
		field.AddTo(encoded)
	}
	record := slog.NewRecord(entry.Time, c.slogLevel(entry.Level), "acme: "+entry.Message, 0)
	if entry.LoggerName != "" {
		record.AddAttrs(slog.String("part", strings.TrimPrefix(entry.LoggerName, ".")))
	}
	for _, key := range slices.Sorted(maps.Keys(encoded.Fields)) {
		value := encoded.Fields[key]
		if text, ok := value.(string); ok {
			value = storable(text) // an authority's answer may be of any length
		}
		record.AddAttrs(slog.Any(key, value))
	}
	return c.log.Handler().Handle(context.Background(), record)
}

// Sync implements zapcore.Core: nothing is buffered.
func (c *slogCore) Sync() error { return nil }
