package config

import (
	"reflect"
	"slices"
)

// Adopt takes the keys of next that a reload applies into running, and names the keys that
// differ: those that it took, and those that need a restart. docs/operate.md says from when
// on each acts.
func Adopt(running *Config, next Config) (applied, restart []string) {
	a := adoption{}
	a.table("", reflect.ValueOf(running).Elem(), reflect.ValueOf(&next).Elem())
	return a.applied, a.restart
}

type adoption struct{ applied, restart []string }

// table compares two tables of the configuration by their keys.
func (a *adoption) table(prefix string, have, want reflect.Value) {
	for i := range have.NumField() {
		tag := have.Type().Field(i).Tag
		key := prefix + tag.Get("toml")
		switch h, w := have.Field(i), want.Field(i); {
		case h.Kind() == reflect.Struct:
			a.table(key+".", h, w)
		case key == "listener":
			a.listeners(h.Interface().([]Listener), w.Interface().([]Listener))
		default:
			a.value(key, h, w, tag.Get("reload") != "")
		}
	}
}

func (a *adoption) value(key string, have, want reflect.Value, reloads bool) {
	if have.Kind() == reflect.Slice && have.Len()+want.Len() == 0 || reflect.DeepEqual(have.Interface(), want.Interface()) {
		return
	}
	if !reloads {
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
