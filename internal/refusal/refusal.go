// Package refusal has the refusals of stores: sentences for the person who asked, of kinds
// that programs distinguish with errors.Is.
package refusal

import (
	"errors"
	"fmt"
)

// Kinds of refusals.
var (
	ErrExists   = errors.New("exists already")
	ErrNotFound = errors.New("not found")
	ErrInvalid  = errors.New("invalid")
)

// refused is a sentence of a kind.
type refused struct {
	kind error
	text string
}

func (r *refused) Error() string { return r.text }
func (r *refused) Unwrap() error { return r.kind }

// Exists, NotFound and Invalid make a refusal of their kind.
func Exists(format string, args ...any) error {
	return &refused{ErrExists, fmt.Sprintf(format, args...)}
}
func NotFound(format string, args ...any) error {
	return &refused{ErrNotFound, fmt.Sprintf(format, args...)}
}
func Invalid(format string, args ...any) error {
	return &refused{ErrInvalid, fmt.Sprintf(format, args...)}
}

// Is reports that an error is, or wraps, a refusal.
func Is(err error) bool {
	_, is := errors.AsType[*refused](err)
	return is
}
