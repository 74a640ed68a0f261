package submission

import (
	"fmt"
	"net/netip"
	"slices"
)

// settings is what Reconfigure can change. A session keeps those that it began with.
type settings struct {
	limits     Limits
	hideClient bool
}

// listenerSettings is what Reconfigure can change of one listener.
type listenerSettings struct {
	normalizeBareLF  bool
	tolerateBrackets bool
	proxies          []netip.Prefix
}

func (s *listenerSettings) isProxy(a netip.Addr) bool {
	return slices.ContainsFunc(s.proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (l *Listener) settings() *listenerSettings {
	return &listenerSettings{normalizeBareLF: l.NormalizeBareLF, tolerateBrackets: l.TolerateBrackets, proxies: l.Proxies}
}

// Reconfigure takes over Limits (but for Handshakes), HideClient and, of each
// listener, NormalizeBareLF, TolerateBrackets and Proxies, for sessions that begin from now
// on; bounds on all sessions together apply immediately, and take nothing from sessions that
// have it. The rest of cfg is ignored, but the listeners must be those of New, in their
// order.
func (s *Server) Reconfigure(cfg Config) error {
	if len(cfg.Listeners) != len(s.listeners) {
		return fmt.Errorf("submission: %d listeners are running, not %d", len(s.listeners), len(cfg.Listeners))
	}
	now := &settings{limits: cfg.Limits.withDefaults(), hideClient: cfg.HideClient}
	for i, l := range s.listeners {
		l.settings.Store(cfg.Listeners[i].settings())
	}
	s.settings.Store(now)
	s.peers.resize(now.limits.Connections, now.limits.ConnectionsPerAddress)
	s.spool.resize(&now.limits)
	return nil
}
