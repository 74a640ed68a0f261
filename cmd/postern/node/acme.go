package node

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"

	"postern/cmd/postern/config"
	"postern/relay/acme"
)

// newKeeper makes what gets certificates, and opens the port of its validations.
func (f *front) newKeeper(ctx context.Context) (*acme.Keeper, error) {
	c := f.node.Config.ACME
	cfg := acme.Config{
		Names: c.Names, Email: c.Email, Directory: c.Directory, Challenge: acme.Challenge(c.Challenge),
		HTTPAddress: c.HTTPAddress, TLSALPNAddress: c.TLSALPNAddress, EABKeyID: c.EABKeyID, Sealer: f.node.keys.sealer, Node: f.node.name, Log: f.node.Log, Guard: f.node.guard,
	}
	if f.node.keys.err != nil {
		// It names the key. A node that cannot open the certificates must not order others.
		return nil, f.node.keys.err
	}
	var err error
	if cfg.Roots, err = config.ReadRoots(c.DirectoryCA); err != nil {
		return nil, fmt.Errorf("acme: directory_ca: %w", err)
	}
	if cfg.EABKey, err = config.ReadKeyFile(c.EABKeyFile); err != nil {
		return nil, fmt.Errorf("acme: eab_key_file: %w", err)
	}
	cfg.EABKey = strings.TrimRight(cfg.EABKey, "=")
	if _, err := base64.RawURLEncoding.DecodeString(cfg.EABKey); err != nil {
		return nil, fmt.Errorf("acme: eab_key_file: %s holds no key in base64url", c.EABKeyFile)
	}
	if cfg.Challenge == acme.DNS01 {
		if cfg.DNS, err = c.RFC2136.Provider(); err != nil {
			return nil, err
		}
	}
	if cfg.Pool, err = f.node.pool(ctx, "certificates", 3, nil); err != nil {
		return nil, err
	}
	k, err := acme.NewKeeper(cfg)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			return nil, fmt.Errorf("acme: cannot listen on %s for the CA's validations: %w", c.Address(), config.ListenReason(err))
		}
		return nil, err
	}
	return k, nil
}
