package config

import (
	"fmt"

	"postern/admin"
	"postern/relay/smtp"
)

type Admin struct {
	Address   string `toml:"address"`
	TokenFile string `toml:"token_file"`
	// Hosts are further names that requests may be for, where there is no token.
	Hosts []string `toml:"hosts"`
	Pprof bool     `toml:"pprof"`
}

func (c *Admin) validate() error {
	if c.Address == "" {
		return nil
	}
	if err := admin.CheckAddress(c.Address); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	for _, name := range c.Hosts {
		if !smtp.ValidDomain(name) {
			return fmt.Errorf("admin: hosts: %q is not the name of a host", name)
		}
	}
	if !admin.IsLocal(c.Address) && c.TokenFile == "" {
		return fmt.Errorf("admin: other machines reach %s: set token_file, or use a loopback address or a unix socket", c.Address)
	}
	return nil
}
