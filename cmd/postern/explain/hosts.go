package explain

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/trust"
	"postern/relay/connect"
	"postern/relay/route"
)

// hostsTime bounds the questions about mail hosts, and the MTA-STS policies that are fetched.
const hostsTime = 10 * time.Second

// mailHosts are those of a recipient domain, and what each must prove.
type mailHosts struct {
	Domain  string       `json:"domain"`
	Hosts   []trust.Host `json:"hosts"`
	Trouble string       `json:"trouble,omitempty"` // why they are not known, or there are none
}

// hosts asks about the mail hosts of all recipients whose mail goes to MX. Nothing is connected to but
// the hosts of policies.
func (e *Message) hosts(ctx context.Context, cfg connect.Config, q Question) {
	for i, to := range q.To {
		domain := to.DomainKey()
		known := func(h mailHosts) bool { return h.Domain == domain }
		if e.Routes[i].Via == route.MX && !strings.HasPrefix(domain, "[") && !slices.ContainsFunc(e.MailHosts, known) {
			e.MailHosts = append(e.MailHosts, mailHosts{Domain: domain, Hosts: []trust.Host{}})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, hostsTime)
	defer cancel()
	var all sync.WaitGroup
	for i := range e.MailHosts {
		all.Go(func() {
			of := &e.MailHosts[i]
			found, _, err := trust.Hosts(ctx, cfg, of.Domain)
			if of.Hosts = append(of.Hosts, found...); err != nil {
				of.Trouble = err.Error()
			}
		})
	}
	all.Wait()
}

// printHosts prints what the mail hosts of each domain must prove.
func (e *Message) printHosts(to io.Writer) error {
	for _, of := range e.MailHosts {
		if of.Trouble != "" {
			fmt.Fprintf(to, "\nmail hosts of %s: %s\n", of.Domain, screen.Printable(of.Trouble))
			continue
		}
		fmt.Fprintf(to, "\nmail hosts of %s:\n", of.Domain)
		if err := trust.PrintHosts(to, of.Hosts); err != nil {
			return err
		}
	}
	return nil
}
