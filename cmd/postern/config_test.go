package main

import (
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
	walk(reflect.TypeFor[config]())
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

func TestConfigErrorsSayWhere(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "hostname = \"x\"\nhostnme = \"y\"\n", `line 2: unknown key "hostnme"`},
		{"unknown key in a table", "[tls]\ncert = \"y\"\n", `line 2: unknown key "tls.cert"`},
		{"a hostname that is none", "hostname = \"bad host\"\n", `hostname: "bad host" is no domain name`},
		{"one address twice", "[[listener]]\naddress = \":587\"\ntls = \"starttls\"\n[[listener]]\naddress = \":587\"\ntls = \"implicit\"\n",
			"listener 2: there is one at :587 already"},
		{"no TOML", "hostname = \n", "line 1"},
		{"wrong type", "[database]\nmax_connections = \"many\"\n", "line 2"},
		{"listener without port", "[[listener]]\naddress = \"127.0.0.1\"\ntls = \"starttls\"\n", "host:port"},
		{"listener without tls", "[[listener]]\naddress = \"127.0.0.1:587\"\n", `"starttls" or "implicit"`},
		{"certificate without key", "[tls]\ncertificate = \"c.pem\"\n", "go together"},
		{"two kinds of certificate", "[tls]\nself_signed = true\ncertificate = \"c\"\nkey = \"k\"\n", "not both"},
		{"two databases", "[database]\nurl = \"postgres://x\"\nprivate = \"d\"\n", "not both"},
		{"gate", "[queue]\ngate = \"open\"\n", `"local" or "strict"`},
		{"zero", "[submission]\nrecipients = 0\n", "submission.recipients must be more than 0"},
		{"size", "[submission]\nmessage_size = \"25 elephants\"\n", "is no size"},
		{"duration", "[queue]\nlifetime = \"soon\"\n", "is no duration"},
		{"too few connections", "[database]\nmax_connections = 1\n", "at least 2"},
		{"port", "[delivery]\nmx_port = 70000\n", "at most 65535"},
		{"no data rate", "[submission]\nmin_data_rate = \"0\"\n", "submission.min_data_rate must be more than 0"},
		{"log level", "[log]\nlevel = \"loud\"\n", "debug, info, warn or error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := readConfig(writeConfig(t, tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestConfigPathsAreRelativeToTheFile(t *testing.T) {
	t.Parallel()
	path := writeConfig(t, "[tls]\ncertificate = \"c.pem\"\nkey = \"/k.pem\"\n")
	cfg, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "c.pem"); cfg.TLS.Certificate != want {
		t.Errorf("certificate %s, want %s", cfg.TLS.Certificate, want)
	}
	if cfg.TLS.Key != "/k.pem" {
		t.Errorf("key %s", cfg.TLS.Key)
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]size{"0": 0, "26214400": 26214400, "25MB": 25e6, "25MiB": 25 << 20, "1 GiB": 1 << 30, "500B": 500} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("size %q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MB", "9223372036854775807KiB", "10 XB"} {
		if got, err := parseSize(text); err == nil {
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
