package handout

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"postern/cmd/postern/config"
	"postern/relay/smtp"
)

// Settings are what a mail client must be told to send mail here.
type Settings struct {
	Server   string `json:"server"`
	Ports    []Port `json:"ports"`
	UserName string `json:"user_name"`
}

// Port is a port of a listener.
type Port struct {
	Port int    `json:"port"`
	TLS  string `json:"tls"` // starttls or implicit
}

// For are the settings for the user of a name; without a listener in the configuration they
// have no ports.
func For(cfg *config.Config, name string) (s Settings, err error) {
	s = Settings{UserName: name, Ports: []Port{}}
	for _, l := range cfg.Listeners {
		_, port, _ := net.SplitHostPort(l.Address)
		if _, handed := l.Socket(); handed { // the socket unit has it; these are the usual ones
			port = map[string]string{"starttls": "587", "implicit": "465"}[l.TLS]
		}
		n, _ := net.LookupPort("tcp", port)
		if p := (Port{n, l.TLS}); n > 0 && !slices.Contains(s.Ports, p) {
			s.Ports = append(s.Ports, p)
		}
	}
	if len(s.Ports) > 0 {
		s.Server, err = cfg.ServerName()
	}
	return s, err
}

// Profiles says which files for mail clients are to be written.
type Profiles struct {
	Apple, Mozilla string // files
	IMAP           string // HOST[:PORT] of the incoming server
	Force          bool   // over files that are there
}

func (p *Profiles) wanted() bool { return p.Apple != "" || p.Mozilla != "" }

// Check finds what is wrong with the flags, before anything is changed.
func (p *Profiles) Check(s Settings) error {
	if !p.wanted() {
		if p.IMAP != "" || p.Force {
			return errors.New("--imap and --force are for --mobileconfig and --autoconfig")
		}
		return nil
	}
	if p.Apple == "-" || p.Mozilla == "-" {
		return errors.New("--mobileconfig and --autoconfig need a file, standard output is taken: write ./- if it has that name")
	}
	if p.Apple != "" && p.Mozilla != "" && filepath.Clean(p.Apple) == filepath.Clean(p.Mozilla) {
		return errors.New("--mobileconfig and --autoconfig need a file each")
	}
	if len(s.Ports) == 0 {
		return errors.New("the configuration has no [[listener]] with a port: there are no settings for a mail client")
	}
	_, _, err := p.incoming()
	return err
}

// incoming is the IMAP server; "" for none.
func (p *Profiles) incoming() (host string, port int, err error) {
	host, port = p.IMAP, 993
	if h, digits, err := net.SplitHostPort(p.IMAP); err == nil {
		n, err := strconv.Atoi(digits)
		if err != nil || n < 1 || n > 65535 {
			return "", 0, fmt.Errorf("--imap: %q is not a port", digits)
		}
		host, port = h, n
	}
	if host != "" && !smtp.ValidDomain(host) && net.ParseIP(host) == nil {
		return "", 0, fmt.Errorf("--imap: %q is not the name of a server", host)
	}
	return host, port, nil
}

// Make makes the files that are wanted, beside where they will be: what cannot be
// written is found before anything is changed.
func (p *Profiles) Make(s Settings) (made Pending, err error) {
	defer func() {
		if err != nil {
			made.Drop()
		}
	}()
	for _, file := range []struct {
		path string
		text func(Settings) ([]byte, error)
	}{{p.Apple, p.mobileconfig}, {p.Mozilla, p.autoconfig}} {
		if file.path == "" {
			continue
		}
		text, err := file.text(s)
		if err != nil {
			return made, err
		}
		if err := made.add(file.path, text, p.Force); err != nil {
			return made, err
		}
	}
	return made, nil
}

// best is the port that a client is told when it can be told but one: TLS from the
// first octet is to be preferred (RFC 8314 section 3.3).
func (s Settings) best() Port {
	for _, p := range s.Ports {
		if p.TLS == "implicit" {
			return p
		}
	}
	return s.Ports[0]
}

// mobileconfig is Apple's profile (Device Management, com.apple.mail.managed). Its
// UUIDs follow from the server's and the user's name, so that installing it again
// replaces it.
func (p *Profiles) mobileconfig(s Settings) ([]byte, error) {
	host, port, err := p.incoming()
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = s.Server
	}
	id := func(what string) string {
		return strings.ToUpper(uuid.NewSHA1(uuid.NameSpaceURL, []byte("smtp://"+s.Server+"/"+s.UserName+"#"+what)).String())
	}
	identifier := s.Server + ".mail." + strings.ToLower(id("profile"))
	account := plist{
		{"PayloadType", "com.apple.mail.managed"}, {"PayloadVersion", 1},
		{"PayloadIdentifier", identifier + ".account"}, {"PayloadUUID", id("account")},
		{"PayloadDisplayName", "Mail of " + s.UserName},
		{"EmailAccountDescription", s.UserName}, {"EmailAccountType", "EmailTypeIMAP"}, {"EmailAddress", s.UserName},
		{"IncomingMailServerAuthentication", "EmailAuthPassword"}, {"IncomingMailServerHostName", host},
		{"IncomingMailServerPortNumber", port}, {"IncomingMailServerUseSSL", true}, {"IncomingMailServerUsername", s.UserName},
		{"OutgoingMailServerAuthentication", "EmailAuthPassword"}, {"OutgoingMailServerHostName", s.Server},
		{"OutgoingMailServerPortNumber", s.best().Port}, {"OutgoingMailServerUseSSL", true}, {"OutgoingMailServerUsername", s.UserName},
		{"OutgoingPasswordSameAsIncomingPassword", false},
	}
	if !strings.Contains(s.UserName, "@") {
		account = slices.DeleteFunc(account, func(e entry) bool { return e.key == "EmailAddress" })
	}
	var b bytes.Buffer
	b.WriteString(xml.Header + `<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
`)
	err = plist{
		{"PayloadType", "Configuration"}, {"PayloadVersion", 1},
		{"PayloadIdentifier", identifier}, {"PayloadUUID", id("profile")},
		{"PayloadDisplayName", "Mail of " + s.UserName}, {"PayloadContent", []plist{account}},
	}.write(&b)
	b.WriteString("</plist>\n")
	return b.Bytes(), err
}

// plist is a dictionary of Apple's property lists, in order.
type plist []entry

type entry struct {
	key   string
	value any // string, int, bool or []plist
}

func (p plist) write(b *bytes.Buffer) error {
	b.WriteString("<dict>\n")
	for _, e := range p {
		fmt.Fprintf(b, "<key>%s</key>\n", e.key)
		switch v := e.value.(type) {
		case string:
			b.WriteString("<string>")
			if err := xml.EscapeText(b, []byte(v)); err != nil {
				return err
			}
			b.WriteString("</string>\n")
		case int:
			fmt.Fprintf(b, "<integer>%d</integer>\n", v)
		case bool:
			fmt.Fprintf(b, "<%t/>\n", v)
		case []plist:
			b.WriteString("<array>\n")
			for _, sub := range v {
				if err := sub.write(b); err != nil {
					return err
				}
			}
			b.WriteString("</array>\n")
		default:
			return errors.New("property list: " + e.key)
		}
	}
	b.WriteString("</dict>\n")
	return nil
}

// The clientConfig of Mozilla's autoconfiguration, version 1.1.
type clientConfig struct {
	XMLName  xml.Name `xml:"clientConfig"`
	Version  string   `xml:"version,attr"`
	Provider struct {
		ID        string         `xml:"id,attr"`
		Domain    string         `xml:"domain"`
		Name      string         `xml:"displayName"`
		ShortName string         `xml:"displayShortName"`
		Incoming  []clientServer `xml:"incomingServer"`
		Outgoing  []clientServer `xml:"outgoingServer"`
	} `xml:"emailProvider"`
}

type clientServer struct {
	Type           string `xml:"type,attr"`
	Hostname       string `xml:"hostname"`
	Port           int    `xml:"port"`
	SocketType     string `xml:"socketType"`
	Authentication string `xml:"authentication"`
	UserName       string `xml:"username"`
}

func (p *Profiles) autoconfig(s Settings) ([]byte, error) {
	host, port, err := p.incoming()
	if err != nil {
		return nil, err
	}
	c := clientConfig{Version: "1.1"}
	_, domain, isAddress := strings.Cut(s.UserName, "@")
	if !isAddress {
		domain = s.Server
	}
	c.Provider.ID, c.Provider.Domain, c.Provider.Name, c.Provider.ShortName = domain, domain, "Mail of "+s.UserName, domain
	if host != "" {
		c.Provider.Incoming = []clientServer{{"imap", host, port, "SSL", "password-cleartext", s.UserName}}
	}
	for _, port := range s.Ports {
		socket := "STARTTLS"
		if port.TLS == "implicit" {
			socket = "SSL"
		}
		c.Provider.Outgoing = append(c.Provider.Outgoing, clientServer{"smtp", s.Server, port.Port, socket, "password-cleartext", s.UserName})
	}
	text, err := xml.MarshalIndent(c, "", "  ")
	return slices.Concat([]byte(xml.Header), text, []byte("\n")), err
}
