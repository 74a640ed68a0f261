package screen

import (
	"encoding/json"
	"io"
	"reflect"
	"time"
)

// JSON writes v as indented JSON with a final newline; a list without anything in it is [],
// not null. Errors: w's.
func JSON(w io.Writer, v any) error {
	if list := reflect.ValueOf(v); list.Kind() == reflect.Slice && list.IsNil() {
		v = []struct{}{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Each has a view of each of a list; it is never nil, so that JSON writes [] for none.
func Each[T, V any](list []T, view func(T) V) []V {
	views := make([]V, 0, len(list))
	for _, one := range list {
		views = append(views, view(one))
	}
	return views
}

// OrNull is a time for JSON: none is null.
func OrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
