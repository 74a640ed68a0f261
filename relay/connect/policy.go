package connect

import (
	"context"
	"errors"
	"fmt"

	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/transport"
)

// Policies say what the mail hosts of domains must prove: *transport.Finder.
type Policies interface {
	Domain(ctx context.Context, name string) (transport.Domain, error)
	Host(ctx context.Context, d transport.Domain, host string, mxSecure bool, addrs resolver.Addresses) (transport.Policy, error)
}

// demand finds out what the host must prove, or why it gets no mail now.
func (w *Walk) demand(ctx context.Context, addrs resolver.Addresses) *Trouble {
	if w.d.cfg.Policies == nil || w.Upstream != nil || w.host.literal.IsValid() {
		return nil
	}
	var err error
	if w.demands.Name == "" {
		w.demands, err = w.d.cfg.Policies.Domain(ctx, w.domain)
	}
	if err != nil {
		return &Trouble{
			Reply: smtp.Temporary(451, 3, 0, "this server cannot find out now what "+w.domain+" demands of TLS"),
			Err:   fmt.Errorf("transport policy of %s: %w", w.domain, err), Crowded: true,
		}
	}
	ctx, cancel := context.WithTimeout(ctx, w.d.cfg.LookupTime)
	defer cancel()
	w.policy, err = w.d.cfg.Policies.Host(ctx, w.demands, w.host.host, w.mxSecure, addrs)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, transport.ErrNotAllowed):
		return &Trouble{
			Reply: smtp.Temporary(451, 7, 5, w.host.host+" is not a mail host by the MTA-STS policy of "+w.domain),
			Err:   fmt.Errorf("mail host %s: %w", w.host.host, err), Host: w.host.host, TLS: "- - refused " + string(w.policy.Source),
		}
	}
	return &Trouble{
		Reply: smtp.Temporary(451, 4, 3, "DNS gives no answer that can be trusted about the TLSA records of "+w.host.host),
		Err:   fmt.Errorf("TLSA records of %s: %w", w.host.host, err), Host: w.host.host, TLS: "- - refused " + string(w.policy.Source),
	}
}
