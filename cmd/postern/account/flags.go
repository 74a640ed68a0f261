package account

import (
	"net/netip"
	"time"

	"postern/internal/refusal"
	"postern/internal/units"
)

// ParseExpiry takes a span of time from now, a date (its beginning, here) or a moment; "" is the zero time.
// Errors: refusal.ErrInvalid.
func ParseExpiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.ParseInLocation(time.DateOnly, s, time.Local)
	if err != nil {
		t, err = time.Parse(time.RFC3339, s)
	}
	if err != nil {
		d, notSpan := units.ParseSpan(s)
		t, err = now.Add(d), notSpan
	}
	switch {
	case err != nil:
		return time.Time{}, refusal.Invalid("--expires: %q is neither a span such as 90d nor a date such as 2027-01-31", s)
	case !t.After(now):
		return time.Time{}, refusal.Invalid("--expires: %s is in the past", s)
	}
	return t, nil
}

// ParseNetworks takes networks, and single addresses as well. Errors: refusal.ErrInvalid.
func ParseNetworks(list []string) (networks []netip.Prefix, err error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if addr, notAddr := netip.ParseAddr(s); err != nil && notAddr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		switch {
		case err != nil:
			return nil, refusal.Invalid("--network: %q is not a network such as 192.0.2.0/24 or 2001:db8::/48", s)
		case p != p.Masked():
			return nil, refusal.Invalid("--network: %s has bits set after the prefix: write %s", s, p.Masked())
		}
		networks = append(networks, p)
	}
	return networks, nil
}
