package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"postern/admin"
	"postern/auth"
	"postern/internal/owned"
	"postern/relay/connect"
	"postern/relay/delivery"
	"postern/relay/dkim"
	"postern/relay/queue"
	"postern/relay/retention"
	"postern/relay/smtp"
	"postern/relay/submission"
	"postern/relay/upstream"
	"postern/relay/webhook"
)

// Config is the configuration file: what belongs to one node. Everything that an
// admin changes while the relay runs lives in the database instead.
// configs/postern.toml lists every key with its default. Of the tags, reload marks what a
// reload applies (see Adopt), and above and least bound a value (see checkBounds).
type Config struct {
	Hostname string `toml:"hostname"`
	Node     string `toml:"node"`

	// DrainTime is how long a stop may take; in less than a second none is orderly.
	DrainTime Duration `toml:"drain_time" reload:"yes" least:"1s"`

	// SecretKeyFile holds the key that seals upstream passwords and private keys.
	SecretKeyFile string `toml:"secret_key_file"`

	Database   Database   `toml:"database"`
	Listeners  []Listener `toml:"listener"`
	TLS        TLS        `toml:"tls"`
	ACME       ACME       `toml:"acme"`
	Submission Submission `toml:"submission"`
	Auth       Auth       `toml:"auth"`
	Queue      Queue      `toml:"queue"`
	Delivery   Delivery   `toml:"delivery"`
	DNS        DNS        `toml:"dns"`
	OAuth      OAuth      `toml:"oauth"`
	Retention  Retention  `toml:"retention"`
	Webhooks   Webhooks   `toml:"webhooks"`
	Alerts     Alerts     `toml:"alerts"`
	Log        Log        `toml:"log"`
	Admin      Admin      `toml:"admin"`
}

type Database struct {
	URL            string `toml:"url"`
	Private        string `toml:"private"`
	MaxConnections int    `toml:"max_connections" least:"2"`
}

type Listener struct {
	Address         string `toml:"address"`
	TLS             string `toml:"tls"`
	NormalizeBareLF bool   `toml:"normalize_bare_lf" reload:"yes"`
	// Tolerate names what clients may do against the grammar: see tolerable.
	Tolerate []string `toml:"tolerate" reload:"yes"`
	// ProxyProtocol are the networks of the load balancers in front of it.
	ProxyProtocol []string `toml:"proxy_protocol" reload:"yes"`
}

type TLS struct {
	Certificate string `toml:"certificate"`
	Key         string `toml:"key"`
	SelfSigned  bool   `toml:"self_signed"`
	// Pairs are further ones, chosen by the name that a client asks for.
	Pairs []Pair `toml:"pair"`
}

type Pair struct {
	Certificate string `toml:"certificate"`
	Key         string `toml:"key"`
}

type Submission struct {
	Connections           int      `toml:"connections" reload:"yes" above:"0"`
	ConnectionsPerAddress int      `toml:"connections_per_address" reload:"yes" above:"0"`
	Commands              int      `toml:"commands" reload:"yes" above:"0"`
	BadCommands           int      `toml:"bad_commands" reload:"yes" above:"0"`
	AuthFailures          int      `toml:"auth_failures" reload:"yes" above:"0"`
	Recipients            int      `toml:"recipients" reload:"yes" above:"0"`
	MessageSize           size     `toml:"message_size" reload:"yes" above:"0"`
	HeaderSize            size     `toml:"header_size" reload:"yes" above:"0"`
	SessionTime           Duration `toml:"session_time" reload:"yes" above:"0"`
	IdleTime              Duration `toml:"idle_time" reload:"yes" above:"0"`
	MinDataRate           size     `toml:"min_data_rate" reload:"yes" above:"0"`
	Memory                size     `toml:"memory" reload:"yes" above:"0"`
	Spool                 size     `toml:"spool" reload:"yes" above:"0"`
	SpoolDir              string   `toml:"spool_dir"`
	ShowClientAddress     bool     `toml:"show_client_address" reload:"yes"`
}

// TempDir is where temporary files are.
func (c *Submission) TempDir() string { return cmp.Or(c.SpoolDir, os.TempDir()) }

type Auth struct {
	Permits int `toml:"permits" above:"0"`
}

type Queue struct {
	Gate        string   `toml:"gate"`
	Notify      bool     `toml:"notify"`
	Lifetime    Duration `toml:"lifetime" reload:"yes" above:"0"`
	DelayNotice Duration `toml:"delay_notice" reload:"yes" above:"0"`
	// History is where a commit in doubt is looked up for a minute; an hour is of use to a person.
	History Duration `toml:"history" reload:"yes" least:"1h"`
	Reserve size     `toml:"reserve"`
	// Duplicates is how long copies of a message are recognised; 0: not at all.
	Duplicates Duration `toml:"duplicates" reload:"yes"`
}

type Delivery struct {
	Connections              int      `toml:"connections" reload:"yes" above:"0"`
	MXConnections            int      `toml:"mx_connections" reload:"yes" above:"0"`
	Memory                   size     `toml:"memory" reload:"yes" above:"0"`
	IdleTime                 Duration `toml:"idle_time" reload:"yes" above:"0"`
	MessagesPerConn          int      `toml:"messages_per_connection" reload:"yes" above:"0"`
	RecipientsPerTransaction int      `toml:"recipients_per_transaction" reload:"yes" above:"0"`
	MXPort                   int      `toml:"mx_port" above:"0"`
	AllowPrivateMX           bool     `toml:"allow_private_mx"`
	DKIM                     string   `toml:"dkim" reload:"yes"`
	Source                   string   `toml:"source"`
	IP                       string   `toml:"ip"`
	Hello                    string   `toml:"hello"`
}

// Origin is the node's end of its connections.
func (d *Delivery) Origin() upstream.Origin {
	return upstream.Origin{Source: d.Source, IP: d.IP, Hello: d.Hello}
}

// Retention says how long is kept what is not mail: docs/retention.md.
type Retention struct {
	Audit          Duration `toml:"audit" least:"1d"`
	Correspondents Duration `toml:"correspondents" least:"1d"`
}

type Webhooks struct {
	// Allow are the endpoints that need neither https nor a public address.
	Allow []string `toml:"allow" reload:"yes"`
}

// Reach is how endpoints are reached.
func (w *Webhooks) Reach() (webhook.Reach, error) {
	allow, err := webhook.ParseAllow(w.Allow)
	if err != nil {
		return webhook.Reach{}, fmt.Errorf("webhooks.allow: %w", err)
	}
	return webhook.Reach{Allow: allow}, nil
}

// Alerts says who gets mail about what is wrong: docs/alerts.md.
type Alerts struct {
	Mail []string `toml:"mail" reload:"yes"`
}

// mostAlerted bounds the addresses of alerts.
const mostAlerted = 20

// Addresses are those of Mail.
func (a *Alerts) Addresses() (list []smtp.Address, err error) {
	if len(a.Mail) > mostAlerted {
		return nil, fmt.Errorf("alerts: mail has %d addresses, at most %d are allowed", len(a.Mail), mostAlerted)
	}
	for _, text := range a.Mail {
		address, err := smtp.ParseRecipient(text)
		if err == nil && (address.NeedsUTF8() || address.Domain == "") {
			err = errors.New("it needs a domain, and only ASCII")
		}
		if err != nil {
			return nil, fmt.Errorf("alerts: mail: %q: %w", text, err)
		}
		for _, other := range list {
			if other.Local == address.Local && other.DomainKey() == address.DomainKey() {
				return nil, fmt.Errorf("alerts: mail: %q is in the list twice", text)
			}
		}
		list = append(list, address)
	}
	return list, nil
}

type Log struct {
	Format string `toml:"format" reload:"yes"`
	Level  string `toml:"level" reload:"yes"`
}

// Defaults is the configuration of an empty file: what the packages do that are told
// nothing.
func Defaults() Config {
	login, clients, mail := auth.Defaults(), submission.Defaults(), queue.Defaults()
	sending, kept := delivery.Defaults(), retention.Defaults()
	return Config{
		DrainTime: Duration(30 * time.Second),
		Database:  Database{MaxConnections: 8},
		ACME:      defaultACME(),
		Submission: Submission{
			Connections: clients.Connections, ConnectionsPerAddress: clients.ConnectionsPerAddress,
			Commands: clients.Commands, BadCommands: clients.BadCommands, AuthFailures: clients.FailedAuths,
			Recipients: clients.Recipients, MessageSize: size(clients.MessageSize), HeaderSize: size(clients.HeaderSize),
			SessionTime: Duration(clients.Session), IdleTime: Duration(clients.Idle),
			MinDataRate: size(clients.DataRate), Memory: size(clients.Memory), Spool: size(clients.TempFiles),
			ShowClientAddress: true,
		},
		Auth: Auth{Permits: login.Permits},
		Queue: Queue{
			Gate: "local", Notify: true, Reserve: 64 << 20, Duplicates: Duration(time.Hour),
			Lifetime: Duration(mail.Lifetime), DelayNotice: Duration(mail.DelayNotice), History: Duration(kept.History),
		},
		Delivery: Delivery{
			Connections: sending.Connections, MXConnections: sending.MXConnections, Memory: size(sending.Memory),
			IdleTime: Duration(sending.IdleTime), MessagesPerConn: sending.PerConnection, RecipientsPerTransaction: sending.PerTransaction,
			MXPort: connect.Defaults().MXPort, DKIM: string(sending.DKIM),
		},
		Retention: Retention{Audit: Duration(login.Audit), Correspondents: Duration(kept.Correspondents)},
		Log:       Log{Format: "text", Level: "info"},
		Admin:     Admin{Address: "127.0.0.1:5878"},
	}
}

// Read parses path strictly: a key that is not known is an error. Relative
// paths in the file are taken from the folder of the file.
func Read(path string) (Config, error) {
	cfg := Defaults()
	text, err := owned.Read(path)
	if err != nil {
		return cfg, fmt.Errorf("configuration: %w", err)
	}
	dec := toml.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("configuration %s: %w", path, explainTOML(err))
	}
	if err := bareSpan(text); err != nil {
		return cfg, fmt.Errorf("configuration %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	paths := []*string{&cfg.TLS.Certificate, &cfg.TLS.Key, &cfg.Database.Private, &cfg.SecretKeyFile, &cfg.Submission.SpoolDir, &cfg.Admin.TokenFile, &cfg.OAuth.ServerCA}
	for i := range cfg.TLS.Pairs {
		paths = append(paths, &cfg.TLS.Pairs[i].Certificate, &cfg.TLS.Pairs[i].Key)
	}
	for _, p := range append(paths, cfg.ACME.paths()...) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	cfg.Admin.Address = admin.AddressFrom(dir, cfg.Admin.Address)
	if err := cfg.validate(); err != nil {
		return cfg, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// wanted says what a key of a type is written as, for values of another one.
var wanted = map[string]string{
	"[]string": `a list, as ["a", "b"]`, "string": "text in quotes", "bool": "true or false", "int": "a number without quotes",
}

// bareSpan refuses spans of time that are numbers: the decoder takes them for
// nanoseconds, and who wrote them meant seconds or days.
func bareSpan(text []byte) error {
	var sections map[string]any
	if err := toml.Unmarshal(text, &sections); err != nil {
		return err
	}
	return bareSpanIn(reflect.TypeFor[Config](), sections, "")
}

func bareSpanIn(section reflect.Type, values map[string]any, prefix string) error {
	for f := range section.Fields() {
		key := f.Tag.Get("toml")
		switch value := values[key].(type) {
		case int64:
			if f.Type == reflect.TypeFor[Duration]() {
				return fmt.Errorf("%s%s: %d is not a duration: write it with a unit, as \"%[3]ds\" or \"%[3]dd\"", prefix, key, value)
			}
		case map[string]any:
			if f.Type.Kind() != reflect.Struct {
				continue
			}
			if err := bareSpanIn(f.Type, value, prefix+key+"."); err != nil {
				return err
			}
		}
	}
	return nil
}

// explainTOML turns the parser's errors into one line that says where.
func explainTOML(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		first := strict.Errors[0]
		row, _ := first.Position()
		key := strings.Join(first.Key(), ".")
		return fmt.Errorf("line %d: unknown key %q%s", row, key, configMeant(key))
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, col := decode.Position()
		text := strings.TrimPrefix(decode.Error(), "toml: ")
		if _, typ, mismatch := strings.Cut(text, " of type "); mismatch && wanted[typ] != "" {
			text = fmt.Sprintf("%s must be %s", strings.Join(decode.Key(), "."), wanted[typ])
		}
		return fmt.Errorf("line %d, column %d: %s", row, col, text)
	}
	return err
}

// validate checks what can be checked without touching anything outside the file.
func (c *Config) validate() error {
	if c.Hostname != "" && !smtp.ValidDomain(c.Hostname) {
		return fmt.Errorf("hostname: %q is not a domain name", c.Hostname)
	}
	if err := c.validateListeners(); err != nil {
		return err
	}
	if c.Database.URL != "" && c.Database.Private != "" {
		return errors.New("database: set either url or private, not both")
	}
	if err := c.validateTLS(); err != nil {
		return err
	}
	if err := c.Admin.validate(); err != nil {
		return err
	}
	if time.Duration(c.Queue.Duplicates) > auth.MaxDuplicates {
		return errors.New("queue: duplicates must be at most 7d")
	}
	if c.Queue.Gate != "local" && c.Queue.Gate != "strict" {
		return fmt.Errorf("queue: gate must be \"local\" or \"strict\", not %q", c.Queue.Gate)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log: format must be \"text\" or \"json\", not %q", c.Log.Format)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("log: level must be debug, info, warn or error, not %q", c.Log.Level)
	}
	if c.Delivery.MXPort > 65535 {
		return fmt.Errorf("delivery.mx_port must be at most 65535, not %d", c.Delivery.MXPort)
	}
	if !dkim.Mode(c.Delivery.DKIM).Valid() {
		return fmt.Errorf("delivery.dkim must be \"off\", \"rsa\" or \"both\", not %q", c.Delivery.DKIM)
	}
	if err := c.Delivery.Origin().Validate(); err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	if _, err := c.DNS.Config(); err != nil {
		return err
	}
	if _, err := c.Webhooks.Reach(); err != nil {
		return err
	}
	if err := c.OAuth.validate(); err != nil {
		return err
	}
	if _, err := c.Alerts.Addresses(); err != nil {
		return err
	}
	return checkBounds("", reflect.ValueOf(*c))
}

// ErrNoListeners is why a node that accepts mail cannot run with a configuration.
var ErrNoListeners = errors.New("the configuration has no [[listener]]; 'serve --only delivery' needs none")

// Submits returns what a node lacks that accepts mail, nil for nothing.
func (c *Config) Submits() error {
	switch {
	case len(c.Listeners) == 0:
		return ErrNoListeners
	case c.TLS.Certificate == "" && len(c.TLS.Pairs) == 0 && !c.TLS.SelfSigned && !c.ACME.On():
		return errors.New("the configuration has no certificate: set certificate and key in [tls], names in [acme], or self_signed = true to try things out")
	}
	return nil
}

func (c *Config) validateTLS() error {
	if (c.TLS.Certificate == "") != (c.TLS.Key == "") {
		return errors.New("tls: certificate and key go together")
	}
	for i, pair := range c.TLS.Pairs {
		if pair.Certificate == "" || pair.Key == "" {
			return fmt.Errorf("tls.pair %d: certificate and key go together", i+1)
		}
	}
	if c.TLS.SelfSigned && (c.TLS.Certificate != "" || len(c.TLS.Pairs) > 0) {
		return errors.New("tls: set either self_signed or certificate and key, not both")
	}
	if c.TLS.SelfSigned && c.ACME.On() {
		return errors.New("tls: set either self_signed or names in [acme], not both")
	}
	return c.ACME.validate()
}

func (c *Config) validateListeners() error {
	taken := map[string]bool{}
	for i, l := range c.Listeners {
		port, err := l.check()
		if err != nil {
			return fmt.Errorf("listener %d: %w", i+1, err)
		}
		if taken[l.Address] && port != "0" {
			return fmt.Errorf("listener %d: there is one at %s already", i+1, l.Address)
		}
		taken[l.Address] = true
		if l.TLS != "starttls" && l.TLS != "implicit" {
			return fmt.Errorf("listener %s: tls must be \"starttls\" or \"implicit\", not %q", l.Address, l.TLS)
		}
	}
	return nil
}

// tolerable is what a listener can tolerate. "brackets": addresses in MAIL and RCPT
// without angle brackets.
var tolerable = []string{"brackets"}

// check returns the port of a listener's address, "" for a socket that is handed over.
func (l *Listener) check() (port string, err error) {
	for _, word := range l.Tolerate {
		if !slices.Contains(tolerable, word) {
			return "", fmt.Errorf("tolerate: %q is not known; write %q", word, tolerable)
		}
	}
	if _, err := l.Proxies(); err != nil {
		return "", err
	}
	if name, handed := l.Socket(); handed {
		if name == "" {
			return "", fmt.Errorf("address %q needs the name of a socket, as in %ssubmission", l.Address, HandedOver)
		}
		return "", nil
	}
	if _, port, err = net.SplitHostPort(l.Address); err != nil {
		return "", fmt.Errorf("address %q must be host:port, or %sNAME", l.Address, HandedOver)
	}
	return port, nil
}

// Socket is the name of the sockets that are handed over for this listener, if its
// address says that they are.
func (l *Listener) Socket() (name string, handed bool) {
	return strings.CutPrefix(l.Address, HandedOver)
}

// Proxies are the networks of ProxyProtocol. One address stands for itself.
func (l *Listener) Proxies() ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range l.ProxyProtocol {
		p, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("proxy_protocol: %q is not a network such as 10.0.0.0/8", text)
		case p.Bits() == 0:
			return nil, fmt.Errorf("proxy_protocol: %q is everybody, who could then claim any address; name the load balancers", text)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

// ServerName is the configured name, or the machine's.
func (c *Config) ServerName() (string, error) {
	if c.Hostname != "" {
		return c.Hostname, nil
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "", errors.New("hostname: set it in the configuration file, the machine has none")
	}
	return name, nil
}

// HandedOver begins the address of a listener whose sockets the service manager has
// opened (sd_listen_fds(3)): its FileDescriptorName follows.
const HandedOver = "systemd:"
