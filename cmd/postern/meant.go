package main

import (
	"fmt"
	"reflect"
	"strings"
)

// didYouMean suggests the name most like the typed one, "" when none is close.
func didYouMean(typed string, names []string) string {
	best, least := "", min(2, (len(typed)+2)/3)+1
	for _, name := range names {
		if d := distance(typed, name); d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %s?", best)
}

// distance is how many octets must be inserted, deleted or changed to turn a into b
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

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

// configMeant is didYouMean for a key: first by its own name, which may stand in a wrong
// section.
func configMeant(key string) string {
	names := configNames(reflect.TypeFor[config](), "")
	last := key[strings.LastIndexByte(key, '.')+1:]
	var elsewhere []string
	for _, name := range names {
		if strings.HasSuffix(name, "."+last) || name == last {
			elsewhere = append(elsewhere, name)
		}
	}
	if hint := didYouMean(key, names); hint != "" || len(elsewhere) == 0 {
		return hint
	}
	return fmt.Sprintf(", did you mean %s?", strings.Join(elsewhere, " or "))
}
