package main

import (
	"os"
	"path/filepath"

	"postern/relay/route"
)

// secretKeyPath is where the key lies that seals upstream passwords.
func (a *app) secretKeyPath(cfg config) string {
	if cfg.SecretKeyFile != "" {
		return cfg.SecretKeyFile
	}
	if state := a.env["XDG_STATE_HOME"]; state != "" && os.Geteuid() != 0 {
		return filepath.Join(state, "postern", "secret.key")
	}
	if home := a.env["HOME"]; home != "" && os.Geteuid() != 0 {
		return filepath.Join(home, ".local", "state", "postern", "secret.key")
	}
	return "/var/lib/postern/secret.key"
}

// sealer opens the key, making it when it is not there yet.
func (a *app) sealer(cfg config) (*route.Sealer, error) {
	key, err := route.LoadOrCreateKey(a.secretKeyPath(cfg))
	if err != nil {
		return nil, err
	}
	return route.NewSealer(key)
}
