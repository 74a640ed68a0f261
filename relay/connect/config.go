package connect

import (
	"cmp"
	"net/netip"
	"time"

	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// Config configures a Dialer. Zero values take the defaults named.
type Config struct {
	Tokens Tokens             // nil: upstreams that need one have none
	DNS    *resolver.Resolver // that asks the machine's name servers

	Hello string // this node's host name: EHLO, and to find loops
	// Origin is our end of connections to MX, and to upstreams that leave it open.
	Origin upstream.Origin
	// Self are the addresses of this node's listeners. An unspecified address
	// (0.0.0.0, ::) stands for every address of the machine.
	Self []netip.AddrPort

	// Sessions bound the connections to upstreams; nil: no bounds.
	Sessions Sessions

	Timeouts    smtp.Timeouts // of the conversation; zero fields: RFC 5321 section 4.5.3.2
	ConnectTime time.Duration // for one TCP connect: 30 s
	LookupTime  time.Duration // for one DNS question: 20 s

	MXPort         int  // 25; others are for tests
	AllowPrivateMX bool // for tests: MX may be at private and special addresses
	AllowLiterals  bool // deliver to user@[192.0.2.1]
}

// Defaults is the configuration of a Dialer that is given nothing.
func Defaults() Config { return Config{}.withDefaults() }

func (c Config) withDefaults() Config {
	if c.DNS == nil {
		c.DNS = resolver.New(resolver.Config{})
	}
	c.ConnectTime = cmp.Or(max(c.ConnectTime, 0), 30*time.Second)
	c.LookupTime = cmp.Or(max(c.LookupTime, 0), 20*time.Second)
	c.MXPort = cmp.Or(max(c.MXPort, 0), 25)
	return c
}
