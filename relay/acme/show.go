package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// adopt shows the certificate for name that is in the storage. One from another
// authority, of an earlier configuration, is better than none or one that has expired.
func (k *Keeper) adopt(ctx context.Context, name string) error {
	own, err := k.load(ctx, k.authority, name)
	if err == nil && time.Now().Before(own.Leaf.NotAfter) {
		k.showOther(name, own)
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	authorities, listErr := k.storage.List(ctx, "certificates", false)
	if listErr != nil {
		return listErr
	}
	newest := own
	for _, path := range authorities {
		cert, loadErr := k.load(ctx, strings.TrimPrefix(path, "certificates/"), name)
		if loadErr != nil && !errors.Is(loadErr, fs.ErrNotExist) {
			err = loadErr
		}
		if loadErr == nil && (newest == nil || cert.Leaf.NotAfter.After(newest.Leaf.NotAfter)) {
			newest = cert
		}
	}
	if newest == nil {
		return err
	}
	k.showOther(name, newest)
	return nil
}

// load reads a certificate with its key in one statement: another node may renew it now.
func (k *Keeper) load(ctx context.Context, authority, name string) (*tls.Certificate, error) {
	chain, key := certmagic.StorageKeys.SiteCert(authority, name), certmagic.StorageKeys.SitePrivateKey(authority, name)
	values, err := k.storage.get(ctx, chain, key)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(values[chain], values[key])
	if err != nil {
		return nil, fmt.Errorf("certificate for %s of %s: %w", name, authority, err)
	}
	return &cert, nil
}

// showOther is show for what was read from the storage, unless it is in use: that has
// its OCSP staple.
func (k *Keeper) showOther(name string, cert *tls.Certificate) {
	if current := k.kept(name).cert; current == nil || !current.Leaf.Equal(cert.Leaf) {
		k.show(name, cert)
	}
}

// show lets handshakes use cert from now on.
func (k *Keeper) show(name string, cert *tls.Certificate) {
	var before *tls.Certificate
	k.update(name, func(kept *kept) { before, kept.cert = kept.cert, cert })
	if before == nil || !before.Leaf.Equal(cert.Leaf) {
		k.log.Info("certificate in use", "name", name, "issuer", cert.Leaf.Issuer.CommonName, "expires", cert.Leaf.NotAfter)
	}
}

// Shown are the certificates of all names, the stand-in last if one is missing.
func (k *Keeper) Shown() []*tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]*tls.Certificate, 0, len(k.cfg.Names)+1)
	lacking := false
	for _, name := range k.cfg.Names {
		if cert := k.names[name].cert; cert != nil {
			list = append(list, cert)
		} else {
			lacking = true
		}
	}
	if lacking {
		list = append(list, k.standIn)
	}
	return list
}
