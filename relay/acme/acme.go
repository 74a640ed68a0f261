package acme

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mholt/acmez/v3/acme"

	"postern/internal/panics"
	"postern/relay/certificate"
	"postern/relay/seal"
)

// Challenge is how an authority verifies that a name is ours.
type Challenge string

// The challenges of RFC 8555 and RFC 8737.
const (
	HTTP01    Challenge = "http-01"     // it asks port 80 of the name
	TLSALPN01 Challenge = "tls-alpn-01" // it asks port 443 of the name
	DNS01     Challenge = "dns-01"      // it looks for a record of the name
)

// LetsEncrypt is the directory of the default authority.
const LetsEncrypt = certmagic.LetsEncryptProductionCA

// Config says how to get certificates.
type Config struct {
	Names     []string       // each gets a certificate of its own; a wildcard needs DNS01
	Email     string         // of the account; required
	Directory string         // URL; "": LetsEncrypt
	Roots     *x509.CertPool // for the authority's own HTTPS; nil: the system's
	EABKeyID  string         // account at the authority to which ours is bound; "": none
	EABKey    string         // base64url

	Challenge      Challenge
	HTTPAddress    string   // where HTTP01 is answered
	TLSALPNAddress string   // where TLSALPN01 is answered
	DNS            *RFC2136 // with DNS01

	Node   string // this node, for people who look at locks
	Pool   *pgxpool.Pool
	Sealer *seal.Sealer
	Log    *slog.Logger  // nil: nowhere
	Guard  *panics.Guard // keeps what panics from ending the process; may be nil

	clock          clock         // nil: the system's
	lookEvery      time.Duration // 0: lookEvery
	renewWindow    float64       // the part of its time in which a certificate is renewed, when the authority does not say; 0: a third
	validationTime time.Duration // 0: validationTime
}

// NewKeeper opens the port for the authority's validations; Start begins the work.
func NewKeeper(cfg Config) (*Keeper, error) {
	if cfg.Email == "" || len(cfg.Names) == 0 {
		return nil, errors.New("certificate: names and an email address are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.clock == nil {
		cfg.clock = systemClock{}
	}
	if cfg.Directory == "" {
		cfg.Directory = LetsEncrypt
	}
	if cfg.lookEvery == 0 {
		cfg.lookEvery = lookEvery
	}
	if cfg.validationTime == 0 {
		cfg.validationTime = validationTime
	}
	names := slices.Clone(cfg.Names)
	for i := range names {
		names[i] = strings.ToLower(names[i])
	}
	slices.Sort(names)
	cfg.Names = slices.Compact(names)
	k := &Keeper{
		cfg: cfg, log: cfg.Log, clock: cfg.clock,
		storage: newStorage(cfg),
		names:   map[string]*kept{}, wake: map[string]chan struct{}{},
	}
	for _, name := range cfg.Names {
		k.names[name], k.wake[name] = &kept{}, make(chan struct{}, 1)
	}
	var err error
	if k.standIn, err = certificate.SelfSign(cfg.Names...); err != nil {
		return nil, err
	}
	if err := k.respond(); err != nil {
		return nil, err
	}
	k.authority = k.issuer.IssuerKey()
	return k, nil
}

// respond opens the standing port of the challenge and makes what talks to the
// authority.
func (k *Keeper) respond() error {
	if k.cfg.Challenge == DNS01 {
		k.build()
		return nil
	}
	address := &k.cfg.HTTPAddress
	if k.cfg.Challenge == TLSALPN01 {
		address = &k.cfg.TLSALPNAddress
	}
	ln, err := listenFor(k.cfg.Challenge, *address)
	if err != nil {
		return err
	}
	*address = ln.Addr().String() // certmagic opens it for itself unless it is open
	k.build()
	if k.cfg.Challenge == HTTP01 {
		k.responder = respondHTTP(ln, k.issuer, k.cfg)
	} else {
		k.responder = respondTLSALPN(ln, k.config, k.cfg)
	}
	return nil
}

// ChallengeAddress is the address for validations; "" with DNS01.
func (k *Keeper) ChallengeAddress() string {
	if k.responder == nil {
		return ""
	}
	return k.responder.listener.Addr().String()
}

// build makes the one issuer, which keeps connections to the authority, and the
// configuration that validations are answered by.
func (k *Keeper) build() {
	var cache *certmagic.Cache
	k.config, cache = k.fresh()
	cache.Stop()
	log := k.config.Logger
	k.config.Logger = quietLogger(k.log)
	template := certmagic.ACMEIssuer{
		CA: k.cfg.Directory, Email: k.cfg.Email, Agreed: true, TrustedRoots: k.cfg.Roots,
		DisableHTTPChallenge:    k.cfg.Challenge != HTTP01,
		DisableTLSALPNChallenge: k.cfg.Challenge != TLSALPN01,
		Logger:                  log,
	}
	switch k.cfg.Challenge {
	case HTTP01:
		template.ListenHost, template.AltHTTPPort = split(k.cfg.HTTPAddress)
	case TLSALPN01:
		template.ListenHost, template.AltTLSALPNPort = split(k.cfg.TLSALPNAddress)
	case DNS01:
		solver := &certmagic.DNS01Solver{}
		solver.DNSProvider, solver.TTL, solver.Logger = k.cfg.DNS, time.Minute, log
		if k.cfg.DNS.Resolver != "" {
			solver.Resolvers = []string{k.cfg.DNS.Resolver}
		}
		template.DNS01Solver = solver
	}
	if k.cfg.EABKeyID != "" {
		template.ExternalAccount = &acme.EAB{KeyID: k.cfg.EABKeyID, MACKey: k.cfg.EABKey}
	}
	k.issuer = certmagic.NewACMEIssuer(k.config, template)
	k.issuer.TestCA = "" // a second try is at the same authority
	k.config.Issuers = []certmagic.Issuer{k.issuer}
}

// fresh makes a configuration with an empty cache, which has a goroutine of its own:
// the caller stops it.
func (k *Keeper) fresh() (*certmagic.Config, *certmagic.Cache) {
	log := zapLogger(k.log)
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
			return nil, errors.New("passes look after it") // and not the cache
		},
		RenewCheckInterval: k.cfg.lookEvery,
		Logger:             log,
	})
	config := certmagic.New(cache, certmagic.Config{
		Issuers: []certmagic.Issuer{k.issuer},
		Storage: k.storage, Logger: log, OnEvent: k.onEvent,
		ShouldEmitFunc:      func(event string) bool { return event != "tls_get_certificate" },
		RenewalWindowRatio:  k.cfg.renewWindow,
		DisableStorageCheck: true, // taking the lock is a write too
		// With a proxy named, certmagic bounds its questions by 30 s; without, not at all.
		OCSP: certmagic.OCSPConfig{HTTPProxy: http.ProxyFromEnvironment},
	})
	return config, cache
}

func split(address string) (host string, port int) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0
	}
	port, _ = strconv.Atoi(text)
	return host, port
}

// String hides the secrets from logs.
func (a Config) String() string {
	return fmt.Sprintf("acme %s %s %v", a.Directory, a.Challenge, a.Names)
}
