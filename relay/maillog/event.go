package maillog

import (
	"context"
	"log/slog"
	"net/netip"

	"postern/relay/smtp"
)

// event collects the fields of one line. Empty fields are left out.
type event struct {
	log   *slog.Logger
	level slog.Level
	attrs [16]slog.Attr // no event has more
	n     int
}

func (e *event) add(attrs ...slog.Attr) { e.n += copy(e.attrs[e.n:], attrs) }

// text adds a string that somebody else may have chosen.
func (e *event) text(key, value string) {
	if value != "" {
		e.add(slog.String(key, Clean(value)))
	}
}

// path adds an envelope path, of which "<>" is one.
func (e *event) path(key string, a smtp.Address) { e.add(pathAttr(key, a)) }

func pathAttr(key string, a smtp.Address) slog.Attr {
	if a.IsNull() {
		return slog.String(key, "<>")
	}
	return slog.String(key, Clean(a.String()))
}

// mailbox adds an address where the zero value means that there is none.
func (e *event) mailbox(key string, a smtp.Address) {
	if !a.IsNull() {
		e.text(key, a.String())
	}
}

func (e *event) addr(key string, a netip.AddrPort) {
	if a.IsValid() {
		// A zone is text that a system chose; it is cleaned like any other.
		e.text(key, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String())
	}
}

func (e *event) reply(r smtp.Reply) {
	if !r.IsZero() {
		e.add(slog.Int("code", r.Code))
		e.text("reply", r.String())
	}
}

func (e *event) err(err error) {
	if err != nil {
		e.text("error", err.Error())
	}
}

func (e *event) end(name string) {
	e.log.LogAttrs(context.Background(), e.level, name, e.attrs[:e.n]...)
}
