package trust

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/cmd/postern/screen"
	"postern/relay/connect"
	"postern/relay/resolver"
	"postern/relay/transport"
)

// Domain is what a domain demands of its mail hosts; --json prints it.
type Domain struct {
	Domain    string              `json:"domain"`
	Override  *transport.Override `json:"override"`
	STS       *transport.Kept     `json:"mta_sts"`
	Validated bool                `json:"mx_validated"`
	NoDANE    bool                `json:"dane_off,omitempty"` // a name server does not validate, or is not trusted
	Hosts     []Host              `json:"hosts"`
}

// Host is one of its mail hosts.
type Host struct {
	Host    string           `json:"host"`
	Source  transport.Source `json:"policy"`
	Demands string           `json:"demands"`
	Trouble string           `json:"trouble,omitempty"`
	Fails   bool             `json:"fails,omitempty"` // mail does not wait for the end of Trouble
}

// Look asks DNS for the mail hosts of a domain, and the database for what is known of it. cfg has the
// Policies to ask. No mail host is connected to.
func Look(ctx context.Context, pool *pgxpool.Pool, cfg connect.Config, domain string) (*Domain, error) {
	shown := &Domain{Domain: domain}
	var err error
	if shown.Hosts, shown.Validated, err = Hosts(ctx, cfg, domain); err != nil {
		return nil, err
	}
	for _, server := range cfg.DNS.Servers() {
		v, _ := cfg.DNS.Validation(ctx, server)
		shown.NoDANE = shown.NoDANE || v == resolver.Blind || v == resolver.Untrusted
	}
	overrides, err := transport.Overrides(ctx, pool, domain, 1)
	if err != nil {
		return nil, err
	}
	kept, err := transport.Policies(ctx, pool, domain, 1)
	if err != nil {
		return nil, err
	}
	if len(overrides) > 0 {
		shown.Override = &overrides[0]
	}
	if len(kept) > 0 {
		shown.STS = &kept[0]
	}
	return shown, nil
}

// Hosts asks what the mail hosts of a domain must prove, in the order in which they are tried, and
// whether DNSSEC validates that they are its hosts. The error is for the person who asks.
func Hosts(ctx context.Context, cfg connect.Config, domain string) (hosts []Host, validated bool, err error) {
	demands, err := connect.NewProber(cfg).Demands(ctx, domain)
	for _, d := range demands {
		validated = d.MXSecure
		one := Host{Host: d.Host, Source: d.Policy.Source, Demands: d.Policy.Demands()}
		if d.Err != nil {
			one.Demands, one.Trouble, one.Fails = "", d.Err.Error(), d.Permanent
		}
		if d.Permanent && d.Host == domain { // it has no mail host
			one.Host, one.Source = "", ""
		}
		hosts = append(hosts, one)
	}
	return hosts, validated, err
}

// PrintHosts writes mail hosts for people.
func PrintHosts(out io.Writer, list []Host) error {
	hosts := screen.TableOf([]string{"HOST", "POLICY", "DEMANDS"}, func(h Host) []string {
		switch {
		case h.Fails:
			return []string{screen.OrDash(h.Host), screen.OrDash(string(h.Source)), "mail fails: " + h.Trouble}
		case h.Trouble != "":
			return []string{h.Host, screen.OrDash(string(h.Source)), "no mail goes there now: " + h.Trouble}
		}
		return []string{h.Host, string(h.Source), h.Demands}
	}, list)
	hosts.Wraps = true
	return hosts.Print(out)
}

// Print writes it for people.
func (d *Domain) Print(out io.Writer) error {
	t := screen.Table{Head: []string{"DOMAIN", d.Domain}}
	override := "none"
	if d.Override != nil {
		override = OverrideText(d.Override)
	}
	t.Add("override", override)
	if d.STS != nil {
		t.Add("mta-sts", STSText(d.STS))
	} else {
		t.Add("mta-sts", "none")
	}
	validated := map[bool]string{true: "validated by DNSSEC", false: "not validated by DNSSEC"}
	t.Add("mx records", validated[d.Validated])
	if d.NoDANE {
		t.Add("dane", "off: 'postern check --only dns' says why")
	}
	if err := t.Print(out); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return PrintHosts(out, d.Hosts)
}

// List are the overrides and the kept MTA-STS policies of all domains.
type List struct {
	Overrides []transport.Override `json:"overrides"`
	STS       []transport.Kept     `json:"mta_sts"`
}

// mostPolicies is how many of each kind are listed.
const mostPolicies = 1000

// ListAll reads them.
func ListAll(ctx context.Context, pool *pgxpool.Pool) (l List, err error) {
	l = List{Overrides: []transport.Override{}, STS: []transport.Kept{}}
	overrides, err := transport.Overrides(ctx, pool, "", mostPolicies)
	if err != nil {
		return l, err
	}
	kept, err := transport.Policies(ctx, pool, "", mostPolicies)
	l.Overrides, l.STS = append(l.Overrides, overrides...), append(l.STS, kept...)
	return l, err
}

// Print writes them as a table.
func (l *List) Print(out io.Writer) error {
	t := screen.Table{Head: []string{"DOMAIN", "POLICY", "TERMS"}, Wraps: true}
	for _, o := range l.Overrides {
		t.Add(o.Domain, string(transport.SourceOverride), OverrideText(&o))
	}
	for _, k := range l.STS {
		t.Add(k.Domain, string(transport.SourceSTS), STSText(&k))
	}
	return t.Print(out)
}

// OverrideText is an override in one line.
func OverrideText(o *transport.Override) string {
	level, _ := o.Level.MarshalText()
	return fmt.Sprintf("%s until %s, by %s: %s", level, screen.LocalTime(o.ExpiresAt), o.SetBy, o.Reason)
}

// STSText is an MTA-STS policy in one line.
func STSText(k *transport.Kept) string {
	if k.Mode == "" && k.FailingSince != nil {
		return fmt.Sprintf("cannot be fetched since %s: %s", screen.LocalTime(*k.FailingSince), k.LastError)
	}
	text := fmt.Sprintf("%s until %s, id %s", k.Mode, screen.LocalTime(k.ExpiresAt), k.ID)
	if len(k.MX) > 0 {
		text += ", mx " + strings.Join(k.MX, " ")
	}
	if k.FailingSince != nil {
		text += fmt.Sprintf("; cannot be renewed since %s: %s", screen.LocalTime(*k.FailingSince), k.LastError)
	}
	return text
}
