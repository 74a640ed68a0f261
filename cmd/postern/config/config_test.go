package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// configKeys lists the keys of config by its toml tags, without their tables.
func configKeys(t *testing.T) []string {
	t.Helper()
	var keys []string
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for f := range typ.Fields() {
			inner := f.Type
			if inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				walk(inner)
				continue
			}
			tag := f.Tag.Get("toml")
			if tag == "" {
				t.Fatalf("field %s has no key", f.Name)
			}
			keys = append(keys, tag)
		}
	}
	walk(reflect.TypeFor[Config]())
	return keys
}

func hasKey(text, key string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, key+" = ") {
			return true
		}
	}
	return false
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "postern.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// acmeText is a whole [acme] section, with other values for some keys.
func acmeText(change string) string {
	return withKeys("[acme]\n", map[string]string{
		"names": `["mail.example.com"]`, "email": `"admin@example.com"`, "agree": "true",
	}, change)
}

func rfc2136Text(change string) string {
	return withKeys("[acme.rfc2136]\n", map[string]string{
		"server": `"ns.example.com:53"`, "key_name": `"key"`, "key_file": `"tsig"`,
	}, change)
}

func withKeys(text string, keys map[string]string, change string) string {
	for key, value := range keys {
		if !strings.Contains("\n"+change, "\n"+key+" = ") {
			text += key + " = " + value + "\n"
		}
	}
	return text + change
}

// TestACMEConfig: what is whole passes; paths are taken from the file's folder, and
// without names everything is at its default.
func TestACMEConfig(t *testing.T) {
	t.Parallel()
	path := writeConfig(t, acmeText("challenge = \"dns-01\"\nnames = [\"mail.example.com\", \"*.example.com\"]\ndirectory_ca = \"ca.pem\"\n")+rfc2136Text(""))
	cfg, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if got := []string{cfg.ACME.DirectoryCA, cfg.ACME.RFC2136.KeyFile}; got[0] != filepath.Join(dir, "ca.pem") || got[1] != filepath.Join(dir, "tsig") {
		t.Errorf("paths: %q", got)
	}
	cfg, err = Read("../../../configs/postern.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg.ACME.Names = nil // empty and not there are the same
	if !reflect.DeepEqual(cfg.ACME, defaultACME()) {
		t.Errorf("[acme] in the file says %+v, the default is %+v", cfg.ACME, defaultACME())
	}
}

func TestConfigErrorsSayWhere(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "hostname = \"x\"\nhostnme = \"y\"\n", `line 2: unknown key "hostnme", did you mean hostname?`},
		{"unknown key in a table", "[tls]\ncert = \"y\"\n", `line 2: unknown key "tls.cert"`},
		{"unknown key like another", "[submission]\nconections = 5\n", `line 2: unknown key "submission.conections", did you mean submission.connections?`},
		{"unknown section", "[submision]\nconnections = 5\n", `unknown key "submision", did you mean submission?`},
		{"key in no section", "mx_port = 25\n", `unknown key "mx_port", did you mean delivery.mx_port?`},
		{"key in the wrong section", "[queue]\nidle_time = \"5s\"\n", `unknown key "queue.idle_time", did you mean submission.idle_time or delivery.idle_time?`},
		{"key in a list", "[[listener]]\naddres = \":587\"\n", `unknown key "listener.addres", did you mean listener.address?`},
		{"a hostname that is none", "hostname = \"bad host\"\n", `hostname: "bad host" is not a domain name`},
		{"one address twice", "[[listener]]\naddress = \":587\"\ntls = \"starttls\"\n[[listener]]\naddress = \":587\"\ntls = \"implicit\"\n",
			"listener 2: there is one at :587 already"},
		{"a name server by its name", "[dns]\nservers = [\"ns.test\"]\n", `dns.servers: "ns.test" is not an address`},
		{"no TOML", "hostname = \n", "line 1"},
		{"wrong type", "[database]\nmax_connections = \"many\"\n", "line 2"},
		{"listener without port", "[[listener]]\naddress = \"127.0.0.1\"\ntls = \"starttls\"\n", "host:port"},
		{"listener without tls", "[[listener]]\naddress = \"127.0.0.1:587\"\n", `"starttls" or "implicit"`},
		{"certificate without key", "[tls]\ncertificate = \"c.pem\"\n", "go together"},
		{"two kinds of certificate", "[tls]\nself_signed = true\ncertificate = \"c\"\nkey = \"k\"\n", "not both"},
		{"half a pair", "[[tls.pair]]\ncertificate = \"c.pem\"\n", "tls.pair 1: certificate and key go together"},
		{"self-signed and a pair", "[tls]\nself_signed = true\n[[tls.pair]]\ncertificate = \"c\"\nkey = \"k\"\n", "not both"},
		{"self-signed and ACME", "[tls]\nself_signed = true\n" + acmeText(""), "not both"},
		{"ACME without names", "[acme]\nemail = \"a@example.com\"\n", "names is empty"},
		{"ACME for no name", acmeText("names = [\"localhost\"]\n"), `"localhost" is not a name`},
		{"ACME for a wildcard", acmeText("names = [\"*.example.com\"]\n"), `needs challenge = "dns-01"`},
		{"ACME without an address", acmeText("email = \"\"\n"), "acme: email must be"},
		{"ACME without consent", acmeText("agree = false\n"), "agree = true"},
		{"ACME in clear", acmeText("directory = \"http://acme.test/\"\n"), "https"},
		{"ACME by no challenge", acmeText("challenge = \"smtp-01\"\n"), `not "smtp-01"`},
		{"ACME at no port", acmeText("http_address = \"80\"\n"), "http_address"},
		{"ACME at no TLS port", acmeText("challenge = \"tls-alpn-01\"\ntls_alpn_address = \"x\"\n"), "tls_alpn_address"},
		{"half an account", acmeText("eab_key_id = \"x\"\n"), "eab_key_id and eab_key_file go together"},
		{"DNS-01 without a server", acmeText("challenge = \"dns-01\"\n"), "needs server, key_name and key_file"},
		{"DNS-01 with an old algorithm", acmeText("challenge = \"dns-01\"\n") + rfc2136Text("key_algorithm = \"hmac-md5\"\n"), "key_algorithm must be one of"},
		{"DNS-01 at no port", acmeText("challenge = \"dns-01\"\n") + rfc2136Text("server = \"ns\"\n"), "acme.rfc2136: server"},
		{"DNS-01 in no zone", acmeText("challenge = \"dns-01\"\n") + rfc2136Text("zone = \"a b\"\n"), "acme.rfc2136: zone"},
		{"DNS-01 by no resolver", acmeText("challenge = \"dns-01\"\n") + rfc2136Text("resolver = \"ns\"\n"), "acme.rfc2136: resolver"},
		{"updates without DNS-01", acmeText("") + rfc2136Text(""), `is for challenge = "dns-01"`},
		{"two databases", "[database]\nurl = \"postgres://x\"\nprivate = \"d\"\n", "not both"},
		{"gate", "[queue]\ngate = \"open\"\n", `"local" or "strict"`},
		{"zero", "[submission]\nrecipients = 0\n", "submission.recipients must be more than 0"},
		{"size", "[submission]\nmessage_size = \"25 elephants\"\n", "is not a size"},
		{"duration", "[queue]\nlifetime = \"soon\"\n", "is not a duration"},
		{"a bare duration", "[queue]\nlifetime = 5\n", `queue.lifetime: 5 is not a duration: write it with a unit, as "5s" or "5d"`},
		{"a bare duration on top", "drain_time = 30000000000\n", "drain_time: 30000000000 is not a duration"},
		{"a bare duration in a table", "submission.idle_time = 300\n", "submission.idle_time: 300 is not a duration"},
		{"no list", "[[listener]]\naddress = \":587\"\ntls = \"starttls\"\nproxy_protocol = \"10.0.0.0/8\"\n", `line 4, column 18: listener.proxy_protocol must be a list, as ["a", "b"]`},
		{"no truth", "[admin]\npprof = \"yes\"\n", "line 2, column 9: admin.pprof must be true or false"},
		{"no text", "[acme]\nemail = 5\n", "line 2, column 9: acme.email must be text in quotes"},
		{"no number", "[submission]\nrecipients = \"50\"\n", "line 2, column 14: submission.recipients must be a number without quotes"},
		{"ACME for a name beyond ASCII", acmeText("names = [\"bücher.example.com\"]\n"), "must be written in ASCII"},
		{"too few connections", "[database]\nmax_connections = 1\n", "at least 2"},
		{"port", "[delivery]\nmx_port = 70000\n", "at most 65535"},
		{"no data rate", "[submission]\nmin_data_rate = \"0\"\n", "submission.min_data_rate must be more than 0"},
		{"too short a history", "[queue]\nhistory = \"59m\"\n", "queue.history must be at least 1h"},
		{"too short an audit", "[retention]\naudit = \"0s\"\n", "retention.audit must be at least 1d"},
		{"correspondents", "[retention]\ncorrespondents = \"23h\"\n", "retention.correspondents must be at least 1d"},
		{"admin address", "[admin]\naddress = \"5878\"\n", `address "5878" must be host:port`},
		{"admin socket", "[admin]\naddress = \"unix:\"\n", "must name a file"},
		{"admin for all without a token", "[admin]\naddress = \"0.0.0.0:5878\"\n", "other machines reach 0.0.0.0:5878: set token_file"},
		{"admin for all by default", "[admin]\naddress = \":5878\"\n", "set token_file"},
		{"drain time", "drain_time = \"0s\"\n", "drain_time must be at least 1s"},
		{"a socket without a name", "[[listener]]\naddress = \"systemd:\"\ntls = \"starttls\"\n", "needs the name of a socket"},
		{"a socket twice", "[[listener]]\naddress = \"systemd:a\"\ntls = \"starttls\"\n[[listener]]\naddress = \"systemd:a\"\ntls = \"implicit\"\n", "listener 2: there is one at systemd:a already"},
		{"no network", "[[listener]]\naddress = \":587\"\ntls = \"starttls\"\nproxy_protocol = [\"10.0.0.0/8\", \"balancer\"]\n", `listener 1: proxy_protocol: "balancer" is not a network`},
		{"unknown tolerance", "[[listener]]\naddress = \":587\"\ntls = \"starttls\"\ntolerate = [\"brackets\", \"Brackets\"]\n", `listener 1: tolerate: "Brackets" is not known; write ["brackets"]`},
		{"tolerance, no list", "[[listener]]\naddress = \":587\"\ntls = \"starttls\"\ntolerate = \"brackets\"\n", `listener.tolerate must be a list, as ["a", "b"]`},
		{"everybody", "[[listener]]\naddress = \":587\"\ntls = \"starttls\"\nproxy_protocol = [\"::/0\"]\n", "is everybody"},
		{"an address of alerts twice", "[alerts]\nmail = [\"ops@example.com\", \"ops@EXAMPLE.com\"]\n", `alerts: mail: "ops@EXAMPLE.com" is in the list twice`},
		{"log level", "[log]\nlevel = \"loud\"\n", "debug, info, warn or error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := Read(writeConfig(t, tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestConfigPathsAreRelativeToTheFile(t *testing.T) {
	t.Parallel()
	path := writeConfig(t, "[tls]\ncertificate = \"c.pem\"\nkey = \"/k.pem\"\n[admin]\naddress = \"unix:admin.sock\"\n")
	cfg, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "c.pem"); cfg.TLS.Certificate != want {
		t.Errorf("certificate %s, want %s", cfg.TLS.Certificate, want)
	}
	if want := "unix:" + filepath.Join(filepath.Dir(path), "admin.sock"); cfg.Admin.Address != want {
		t.Errorf("admin at %s, want %s", cfg.Admin.Address, want)
	}
	if cfg.TLS.Key != "/k.pem" {
		t.Errorf("key %s", cfg.TLS.Key)
	}
}

func TestAdminAddresses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"address = \"\"", "address = \"localhost:5878\"", "address = \"[::1]:5878\"", "address = \"127.0.0.2:0\"",
		"address = \"unix:/run/postern/admin.sock\"", "address = \"0.0.0.0:5878\"\ntoken_file = \"token\"",
	} {
		cfg, err := Read(writeConfig(t, "[admin]\n"+text+"\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if cfg.Admin.TokenFile != "" && !filepath.IsAbs(cfg.Admin.TokenFile) {
			t.Errorf("token_file %q is not taken from the folder of the file", cfg.Admin.TokenFile)
		}
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]size{"0": 0, "26214400": 26214400, "25MB": 25e6, "25MiB": 25 << 20, "1 GiB": 1 << 30, "500B": 500} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("size %q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MB", "9223372036854775807KiB", "10 XB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("size %q taken as %d", text, got)
		}
	}
	for text, want := range map[string]time.Duration{"90s": 90 * time.Second, "5d": 120 * time.Hour, "0.5d": 12 * time.Hour, "1h30m": 90 * time.Minute} {
		if got, err := parseDuration(text); err != nil || time.Duration(got) != want {
			t.Errorf("duration %q: %v, %v; want %v", text, time.Duration(got), err, want)
		}
	}
	for _, text := range []string{"", "5", "-1h", "-1d", "xd", "1e9d"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("duration %q taken as %v", text, time.Duration(got))
		}
	}
}

func TestProxyNetworks(t *testing.T) {
	t.Parallel()
	l := Listener{ProxyProtocol: []string{"10.1.2.3/8", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.0/120"}}
	list, err := l.Proxies()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(list); got != "[10.0.0.0/8 192.0.2.7/32 2001:db8::/32 198.51.100.0/24]" {
		t.Errorf("networks %s", got)
	}
}

func TestNameServers(t *testing.T) {
	t.Parallel()
	d := DNS{Servers: []string{"192.0.2.1", "2001:db8::1", "127.0.0.1:5353", "[::1]:53"}}
	if cfg, err := d.Config(); err != nil || fmt.Sprint(cfg.Servers) != "[192.0.2.1:53 [2001:db8::1]:53 127.0.0.1:5353 [::1]:53]" {
		t.Errorf("servers %s, %v", cfg.Servers, err)
	}
}
