package main

import (
	"encoding/json"
	"io"
	"strconv"
)

// printJSON writes v as indented JSON with a final newline.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func orDefault(n int) string {
	if n == 0 {
		return "default"
	}
	return strconv.Itoa(n)
}

// emptyList makes an empty listing [] in JSON, not null.
func emptyList[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
