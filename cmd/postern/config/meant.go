package config

import (
	"fmt"
	"reflect"
	"strings"

	"postern/cmd/postern/screen"
)

// configNames are the sections and keys of a configuration with their path, as
// "queue" and "queue.lifetime".
func configNames(section reflect.Type, prefix string) (names []string) {
	for f := range section.Fields() {
		name, inner := prefix+f.Tag.Get("toml"), f.Type
		names = append(names, name)
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			names = append(names, configNames(inner, name+".")...)
		}
	}
	return names
}

// configMeant is screen.DidYouMean for a key: first by its own name, which may stand in a wrong
// section.
func configMeant(key string) string {
	names := configNames(reflect.TypeFor[Config](), "")
	last := key[strings.LastIndexByte(key, '.')+1:]
	var elsewhere []string
	for _, name := range names {
		if strings.HasSuffix(name, "."+last) || name == last {
			elsewhere = append(elsewhere, name)
		}
	}
	if hint := screen.DidYouMean(key, names); hint != "" || len(elsewhere) == 0 {
		return hint
	}
	return fmt.Sprintf(", did you mean %s?", strings.Join(elsewhere, " or "))
}
