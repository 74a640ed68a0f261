package config

import (
	"reflect"
	"slices"
)

// reloadable are the keys that a reload applies; docs/operate.md says from when on
// each acts. All others need a restart.
var reloadable = map[string]bool{
	"drain_time": true,

	"listener.normalize_bare_lf": true,
	"listener.tolerate":          true,
	"listener.proxy_protocol":    true,

	"submission.connections":             true,
	"submission.connections_per_address": true,
	"submission.commands":                true,
	"submission.bad_commands":            true,
	"submission.auth_failures":           true,
	"submission.recipients":              true,
	"submission.message_size":            true,
	"submission.header_size":             true,
	"submission.session_time":            true,
	"submission.idle_time":               true,
	"submission.min_data_rate":           true,
	"submission.memory":                  true,
	"submission.spool":                   true,
	"submission.show_client_address":     true,

	"queue.lifetime":     true,
	"queue.delay_notice": true,
	"queue.history":      true,

	"delivery.connections":             true,
	"delivery.memory":                  true,
	"delivery.idle_time":               true,
	"delivery.messages_per_connection": true,

	"log.format": true,
	"log.level":  true,
}

// Adopt takes the reloadable keys of next into running, and names the keys that differ:
// those that it took, and those that need a restart.
func Adopt(running *Config, next Config) (applied, restart []string) {
	a := adoption{}
	a.table("", reflect.ValueOf(running).Elem(), reflect.ValueOf(&next).Elem())
	return a.applied, a.restart
}

type adoption struct{ applied, restart []string }

// table compares two tables of the configuration by their keys.
func (a *adoption) table(prefix string, have, want reflect.Value) {
	for i := range have.NumField() {
		key := prefix + have.Type().Field(i).Tag.Get("toml")
		switch h, w := have.Field(i), want.Field(i); {
		case h.Kind() == reflect.Struct:
			a.table(key+".", h, w)
		case key == "listener":
			a.listeners(h.Interface().([]Listener), w.Interface().([]Listener))
		default:
			a.value(key, h, w)
		}
	}
}

func (a *adoption) value(key string, have, want reflect.Value) {
	if have.Kind() == reflect.Slice && have.Len()+want.Len() == 0 || reflect.DeepEqual(have.Interface(), want.Interface()) {
		return
	}
	if !reloadable[key] {
		a.note(&a.restart, key)
		return
	}
	have.Set(want)
	a.note(&a.applied, key)
}

// note lists a key once: several listeners may differ in it.
func (a *adoption) note(list *[]string, key string) {
	if !slices.Contains(*list, key) {
		*list = append(*list, key)
	}
}

// listeners compares those of equal address and tls. One that has no counterpart, or
// an address that is there more often than before, needs a restart.
func (a *adoption) listeners(have, want []Listener) {
	type socket struct{ address, tls string }
	left := map[socket][]int{}
	for i, l := range have {
		s := socket{l.Address, l.TLS}
		left[s] = append(left[s], i)
	}
	same := len(have) == len(want)
	for i := range want {
		s := socket{want[i].Address, want[i].TLS}
		if len(left[s]) == 0 {
			same = false
			continue
		}
		at := left[s][0]
		left[s] = left[s][1:]
		a.table("listener.", reflect.ValueOf(&have[at]).Elem(), reflect.ValueOf(&want[i]).Elem())
	}
	if !same {
		a.note(&a.restart, "listener")
	}
}
