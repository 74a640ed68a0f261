package config

import (
	"fmt"
	"net/url"

	"postern/relay/upstream/oauth"
)

// OAuth names the server that gives the access tokens of upstream accounts in the place of
// Microsoft and Google; "" for those themselves.
type OAuth struct {
	Server   string `toml:"server"`
	ServerCA string `toml:"server_ca"`
}

func (c *OAuth) validate() error {
	if c.Server == "" {
		if c.ServerCA != "" {
			return fmt.Errorf("oauth: server_ca belongs to a server")
		}
		return nil
	}
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("oauth: server must be like https://login.example.com, not %q", c.Server)
	}
	return nil
}

// Config is the part of the configuration of tokens that the file has.
func (c *OAuth) Config() (cfg oauth.Config, err error) {
	if c.Server != "" {
		cfg.Authorities = oauth.At(c.Server)
	}
	if cfg.Roots, err = ReadRoots(c.ServerCA); err != nil {
		return cfg, fmt.Errorf("oauth: server_ca: %w", err)
	}
	return cfg, nil
}
