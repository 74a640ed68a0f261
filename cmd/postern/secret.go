package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"postern/relay/seal"
)

// secretKeyPath is where the key lies that seals upstream passwords and private keys.
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

// sealer opens the key, making it and its folder when they are not there yet.
func (a *app) sealer(cfg config) (*seal.Sealer, error) {
	path := a.secretKeyPath(cfg)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("folder of the key (secret_key_file in the configuration says where): %w", err)
	}
	key, err := seal.LoadOrCreateKey(path)
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err) // which names it
	}
	return seal.New(key)
}

// presentSealer is sealer for those who only look: it makes no key. Without one it
// is nil, which opens no password.
func (a *app) presentSealer(cfg config) (*seal.Sealer, error) {
	if _, err := os.Stat(a.secretKeyPath(cfg)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return a.sealer(cfg)
}
