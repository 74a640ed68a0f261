package config

import (
	"fmt"
	"net/netip"

	"postern/relay/resolver"
)

// DNS says who is asked about names.
type DNS struct {
	Servers []string `toml:"servers"`
	Trusted bool     `toml:"trusted"`
}

// Config is how to ask them.
func (d *DNS) Config() (cfg resolver.Config, err error) {
	cfg.Trusted = d.Trusted
	for _, server := range d.Servers {
		at, err := netip.ParseAddrPort(server)
		if addr, addrErr := netip.ParseAddr(server); addrErr == nil {
			at, err = netip.AddrPortFrom(addr, 53), nil
		}
		if err != nil {
			return cfg, fmt.Errorf("dns.servers: %q is not an address, nor address:port", server)
		}
		cfg.Servers = append(cfg.Servers, at.String())
	}
	return cfg, nil
}
