package submission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"time"

	"postern/auth"
	"postern/internal/panics"
	"postern/policy/quota"
	"postern/relay/dkim"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/queue/content"
	"postern/relay/smtp"
	"postern/relay/suppression"
)

// TLSMode says when a listener's connections become TLS.
type TLSMode string

const (
	STARTTLS TLSMode = "starttls" // clear until STARTTLS (RFC 6409, port 587)
	Implicit TLSMode = "implicit" // from the first octet (RFC 8314, port 465)
)

// Listener is one open socket and how its connections are treated.
type Listener struct {
	Net  net.Listener // closed by Shutdown
	Name string       // for logs and traces; "": the address
	TLS  TLSMode
	// NormalizeBareLF takes a bare LF in message data for an end of line, for old
	// devices. It is never an end of the data.
	NormalizeBareLF bool
	// TolerateBrackets takes MAIL FROM:a@b and RCPT TO:a@b, without the angle brackets
	// that RFC 5321 section 4.1.1.2 wants.
	TolerateBrackets bool
	// Proxies are the networks of the load balancers in front of this listener. Each
	// connection from them begins with a PROXY protocol header, and no other is taken.
	// None: clients connect directly.
	Proxies []netip.Prefix
}

// Queue is where accepted messages go; relay/queue's Queue fits.
type Queue interface {
	Enqueue(ctx context.Context, m queue.Message, rcpts []queue.Recipient, body content.Body, owned bool) (queue.Accepted, error)
	// Available is a cheap guess whether a commit would succeed now. It does no I/O.
	Available() error
}

// Handoff takes committed messages from memory; relay/delivery's Engine fits.
// Neither method blocks.
type Handoff interface {
	// Reserve asks whether a message of size octets would be taken. It reserves
	// nothing: a failed commit needs no undo.
	Reserve(user, size int64) bool
	Take(d *queue.Delivery)
}

// Current returns what an authenticated user may do now; auth's Authenticator fits. The error
// is auth.ErrCredentials if the credential is no longer valid, from peer or at all; any other
// says nothing about it. The call is bounded by ctx.
type Current interface {
	Current(ctx context.Context, userID, credentialID int64, peer netip.Addr) (auth.Identity, error)
}

// Sessions bounds the concurrent sessions of a user; quota's Counter fits. A user who may
// not enter gets the limit that is reached; leave, which does not block, is called once for
// each that did. An error says nothing about the user.
type Sessions interface {
	Enter(ctx context.Context, who quota.Session, limits []quota.Limit) (leave func(), over *quota.Over, err error)
}

// Suppression knows the addresses that get no mail of a user, or of anybody (user 0); relay/suppression's
// List fits. A nil Entry is none; an error says nothing about the address.
type Suppression interface {
	Find(ctx context.Context, user int64, to smtp.Address) (*suppression.Entry, error)
	Refused(e *suppression.Entry)
}

// Certificates is what the listeners show; relay/certificate's Set fits. It answers
// each handshake from memory and is safe for concurrent use.
type Certificates interface {
	GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Config is all that a Server needs.
type Config struct {
	Hostname     string // our name in the greeting, EHLO and Received
	Listeners    []Listener
	Certificates Certificates
	Verifier     auth.Verifier
	Current      Current     // asked by Recheck; nil: sessions keep what AUTH gave them
	Sessions     Sessions    // nil: no limit but that of connections
	Suppression  Suppression // nil: none
	// Refused hears of recipients that a user may not write to at all; it does not block. May be nil.
	Refused    func(user int64, to smtp.Address, r smtp.Reply)
	Queue      Queue
	Keys       dkim.Keys       // mail of their domains gets a body hash; may be nil
	Handoff    Handoff         // nil: messages are born waiting for a claim
	Log        *maillog.Logger // mail events; nil: nowhere
	System     *slog.Logger    // trouble that belongs to no message; nil: slog.Default()
	Guard      *panics.Guard   // keeps what panics from ending the process; may be nil
	Limits     Limits
	Known      []netip.Prefix // where users have logged in recently; at most KnownNetworks are remembered
	TempDir    string         // for bodies beyond Limits.MemoryBody; "": the system's
	HideClient bool           // leave the client's name and address out of Received
}

// Limits bound the resources that clients can use. Zero takes the default
// named; there is no "unlimited".
type Limits struct {
	Connections           int // concurrent, all listeners: 2,000
	ConnectionsPerAddress int // concurrent, from one IPv4 address or IPv6 /64: 100
	Handshakes            int // TLS handshakes computed concurrently: the number of processors

	Commands          int // since the greeting or the last accepted message, accepted RCPTs apart: 10,000
	BadCommands       int // unknown, malformed or out of order, and as many AUTH put off, in a session: 10
	FailedAuths       int // in a session: 3
	RefusedRecipients int // in a session, those beyond Recipients apart: 100

	Recipients  int   // of a message, for users without a limit of their own: 1,000
	MessageSize int64 // octets as received, ceiling for every user: 50 MiB
	HeaderSize  int   // octets of the header section: 256 KiB

	Session   time.Duration // from the connection on: 2 h
	Login     time.Duration // from the connection to a successful AUTH: 5 min
	Idle      time.Duration // for one command line: 5 min (RFC 5321 section 4.5.3.2.7)
	Handshake time.Duration // 10 s
	Write     time.Duration // for the client to take our replies: 1 min
	DataRead  time.Duration // for the next octets of message data: 3 min
	DataGrace time.Duration // before DataRate is asked for: 1 min
	DataRate  int64         // octets/s of message data on average, at least: 500
	Commit    time.Duration // waiting for the queue: 2 min

	// Duplicates is how long copies of a message are recognised; 0: they are not.
	Duplicates time.Duration

	MemoryBody int64 // octets of a body kept in memory, beyond it a file: 1 MiB
	Memory     int64 // octets of all bodies in memory: 128 MiB
	TempFiles  int64 // octets of all bodies in temporary files: 4 GiB
	Files      int   // such files, open at a time: 1 million
}

// Defaults are the limits of a server that is given none, and of an empty configuration
// file.
func Defaults() Limits { return Limits{}.withDefaults() }

// withDefaults returns l with zero values replaced by the defaults.
func (l Limits) withDefaults() Limits {
	def(&l.Connections, 2000)
	def(&l.ConnectionsPerAddress, 100)
	def(&l.Handshakes, runtime.GOMAXPROCS(0))
	def(&l.Commands, 10_000)
	def(&l.BadCommands, 10)
	def(&l.FailedAuths, 3)
	def(&l.RefusedRecipients, 100)
	def(&l.Recipients, 1000)
	def(&l.MessageSize, 50<<20)
	def(&l.HeaderSize, 256<<10)
	def(&l.Session, 2*time.Hour)
	def(&l.Login, 5*time.Minute)
	def(&l.Idle, 5*time.Minute)
	def(&l.Handshake, 10*time.Second)
	def(&l.Write, time.Minute)
	def(&l.DataRead, 3*time.Minute)
	def(&l.DataGrace, time.Minute)
	def(&l.DataRate, 500)
	def(&l.Commit, 2*time.Minute)
	def(&l.MemoryBody, 1<<20)
	def(&l.Memory, 128<<20)
	def(&l.TempFiles, 4<<30)
	def(&l.Files, 1e6)
	return l
}

func def[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// check reports what makes a Config unusable.
func (c *Config) check() error {
	switch {
	case c.Hostname == "":
		return errors.New("submission: no hostname")
	case len(c.Listeners) == 0:
		return errors.New("submission: no listener")
	case c.Certificates == nil:
		return errors.New("submission: no certificate")
	case c.Verifier == nil || c.Queue == nil:
		return errors.New("submission: verifier and queue are required")
	}
	for _, l := range c.Listeners {
		if l.Net == nil {
			return fmt.Errorf("submission: listener %q is not open", l.Name)
		}
		if l.TLS != STARTTLS && l.TLS != Implicit {
			return fmt.Errorf("submission: listener %q: tls is %q, want %q or %q", l.Name, l.TLS, STARTTLS, Implicit)
		}
	}
	return nil
}
