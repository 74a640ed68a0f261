package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// reloadableKeys lists the keys of the configuration, with their tables, that a reload applies.
func reloadableKeys() map[string]bool {
	keys := map[string]bool{}
	var walk func(string, reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for f := range typ.Fields() {
			key, inner := prefix+f.Tag.Get("toml"), f.Type
			if inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				walk(key+".", inner)
				continue
			}
			if f.Tag.Get("reload") != "" {
				keys[key] = true
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	return keys
}

// TestReloadableKeysAreDocumented: the table of docs/operate.md has what a reload
// applies, and nothing else.
func TestReloadableKeysAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| setting | takes effect |")
	table, _, _ = strings.Cut(table, "\n\n")
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`.+`) \\| .+ \\|$").FindAllStringSubmatch(table, -1) {
		for _, m := range regexp.MustCompile("`([a-z_.]+)`").FindAllStringSubmatch(row[1], -1) {
			listed = append(listed, m[1])
		}
	}
	reloadable := reloadableKeys()
	for key := range reloadable {
		if !slices.Contains(listed, key) {
			t.Errorf("docs/operate.md does not say when %s takes effect", key)
		}
	}
	for _, key := range listed {
		if !reloadable[key] {
			t.Errorf("docs/operate.md lists %s, which needs a restart", key)
		}
	}
}

// TestAdopt changes each key alone: it is applied or needs a restart, by the table,
// and the running configuration changes only by what is applied.
func TestAdopt(t *testing.T) {
	t.Parallel()
	base := func() Config {
		cfg := Defaults()
		cfg.Listeners = []Listener{{Address: ":587", TLS: "starttls"}, {Address: ":465", TLS: "implicit"}}
		return cfg
	}
	reloadable, seen := reloadableKeys(), map[string]bool{}
	var walk func(prefix string, of func(*Config) reflect.Value)
	walk = func(prefix string, of func(*Config) reflect.Value) {
		cfg := base()
		v := of(&cfg)
		for i := range v.NumField() {
			key := prefix + v.Type().Field(i).Tag.Get("toml")
			field := func(cfg *Config) reflect.Value { return of(cfg).Field(i) }
			switch {
			case v.Field(i).Kind() == reflect.Struct:
				walk(key+".", field)
			case key == "listener":
				walk("listener.", func(cfg *Config) reflect.Value { return reflect.ValueOf(&cfg.Listeners[1]).Elem() })
			default:
				seen[key] = true
				changeOne(t, key, base(), base(), field)
			}
		}
	}
	walk("", func(cfg *Config) reflect.Value { return reflect.ValueOf(cfg).Elem() })
	for key := range reloadable {
		if !seen[key] {
			t.Errorf("%s was not tried", key)
		}
	}
}

// changeOne changes the key in next and adopts it into running.
func changeOne(t *testing.T, key string, running, next Config, field func(*Config) reflect.Value) {
	t.Helper()
	before := running
	before.Listeners = slices.Clone(running.Listeners)
	switch v := field(&next); v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	default:
		t.Fatalf("%s is a %v: teach this test to change it", key, v.Kind())
	}
	name := key
	if key == "listener.address" || key == "listener.tls" { // it is another listener then
		name = "listener"
	}
	reloads := reloadableKeys()[key]
	applied, restart := Adopt(&running, next)
	want := next
	if !reloads {
		want = before
		applied, restart = restart, applied
	}
	if !slices.Equal(applied, []string{name}) || len(restart) > 0 {
		t.Errorf("%s: named %q, and %q on the wrong list", key, applied, restart)
	}
	if !reflect.DeepEqual(running, want) {
		t.Errorf("%s: running is %+v", key, running)
	}
	// What needs a restart is named again, what was applied is not.
	applied, restart = Adopt(&running, next)
	if again := len(applied)+len(restart) > 0; again == reloads {
		t.Errorf("%s: the next reload names %q and %q", key, applied, restart)
	}
}

// TestAdoptListeners: listeners are known by address and tls, in whatever order.
func TestAdoptListeners(t *testing.T) {
	t.Parallel()
	a, b, c := Listener{Address: ":587", TLS: "starttls"}, Listener{Address: ":465", TLS: "implicit"}, Listener{Address: ":2525", TLS: "starttls"}
	aProxied := a
	aProxied.ProxyProtocol = []string{"10.0.0.0/8"}
	for name, tc := range map[string]struct {
		next, after []Listener
		says        string
	}{
		"another order":          {[]Listener{b, a}, []Listener{a, b}, ""},
		"another order, changed": {[]Listener{b, aProxied}, []Listener{aProxied, b}, "listener.proxy_protocol"},
		"one more":               {[]Listener{a, b, c}, []Listener{a, b}, "/listener"},
		"one less, one changed":  {[]Listener{aProxied}, []Listener{aProxied, b}, "listener.proxy_protocol/listener"},
		"one for another":        {[]Listener{a, c}, []Listener{a, b}, "/listener"},
		"one of them twice":      {[]Listener{a, a}, []Listener{a, b}, "/listener"},
	} {
		running, next := Defaults(), Defaults()
		running.Listeners, next.Listeners = []Listener{a, b}, tc.next
		applied, restart := Adopt(&running, next)
		says := strings.Join(applied, " ")
		if len(restart) > 0 {
			says += "/" + strings.Join(restart, " ")
		}
		if says != tc.says || !reflect.DeepEqual(running.Listeners, tc.after) {
			t.Errorf("%s: %q, listeners %+v; want %q, %+v", name, says, running.Listeners, tc.says, tc.after)
		}
	}
}
