package upstream

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/refusal"
	"postern/relay/dkim"
)

// Generic is the preset of a server of which nothing is known. Its rows come last in the
// table of every upstream.
const Generic = "generic"

// Preset is what is known of a provider.
type Preset struct {
	Host           string    `toml:"host"`      // "": each customer has another one
	HostForm       string    `toml:"host_form"` // and it looks like this
	Port           int       `toml:"port"`
	TLS            TLSMode   `toml:"tls"`
	MaxConnections int       `toml:"connections"`
	MaxMessages    int       `toml:"messages_per_connection"`
	MaxRecipients  int       `toml:"recipients_per_transaction"`
	Budget         string    `toml:"budget"`
	DKIM           dkim.Mode `toml:"dkim"` // "": off, as the provider signs itself

	Replies []Row `toml:"reply"`

	table *Replies // its rows, then those of Generic
}

//go:embed presets.toml
var presetsFile []byte

// presets are read once. The file is part of the program, and a test reads it.
var presets = sync.OnceValue(func() map[string]*Preset {
	all, err := parsePresets(presetsFile)
	if err != nil {
		panic("upstream: presets: " + err.Error())
	}
	return all
})

func parsePresets(file []byte) (map[string]*Preset, error) {
	all := map[string]*Preset{}
	if err := toml.NewDecoder(bytes.NewReader(file)).DisallowUnknownFields().Decode(&all); err != nil {
		return nil, err
	}
	for name, p := range all {
		for i := range p.Replies {
			if err := p.Replies[i].ofPreset(name); err != nil {
				return nil, fmt.Errorf("%s, row %d: %w", name, i+1, err)
			}
		}
	}
	for name, p := range all {
		p.table = &Replies{p.Replies}
		if name != Generic {
			p.table = &Replies{slices.Concat(p.Replies, all[Generic].Replies)}
		}
	}
	return all, nil
}

func (w *Row) ofPreset(name string) (err error) {
	w.From = name
	w.Result = cmp.Or(w.Result, Later)
	if w.WaitText != "" {
		if w.Wait, err = time.ParseDuration(w.WaitText); err != nil {
			return err
		}
	}
	return w.normalise()
}

// mailHosts is the table of MX: there we have no account.
var mailHosts = sync.OnceValue(func() *Replies {
	t := &Replies{}
	for _, row := range presets()[Generic].Replies {
		if row.Scope != ScopeAccount {
			t.rows = append(t.rows, row)
		}
	}
	return t
})

// Presets lists the names.
func Presets() []string { return slices.Sorted(maps.Keys(presets())) }

// presetNamed returns what is known of a provider. Errors: refusal.ErrInvalid.
func presetNamed(name string) (Preset, error) {
	if p := presets()[name]; p != nil {
		return *p, nil
	}
	return Preset{}, refusal.Invalid("preset %q is none of %s", name, strings.Join(Presets(), ", "))
}

// Table is the table of a preset.
func Table(preset string) *Replies { return tableOf(preset, nil) }

// tableOf is the table of an upstream: rows that an admin has added, then the preset's. A preset
// that this program does not know, of a newer one, is Generic.
func tableOf(preset string, added []Row) *Replies {
	p := presets()[preset]
	if p == nil {
		p = presets()[Generic]
	}
	if len(added) == 0 {
		return p.table
	}
	return &Replies{slices.Concat(added, p.table.rows)}
}
