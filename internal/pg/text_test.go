package pg

import (
	"slices"
	"testing"
	"testing/fstest"
)

func TestTexts(t *testing.T) {
	t.Parallel()
	load := func(text string) *Texts { return Load(fstest.MapFS{"a.sql": {Data: []byte(text)}}) }
	texts := load(`What is before is nobody's.
-- name: first
-- It's a comment, @b.
select @a::int, '@b', @list -- @b
where @a > 0
-- name: second
select 1
-- name: third
select @row where @chosen
-- part: chosen
@a > 0 and @row
-- part: row
x -- of @b
-- part: idle
0
`)
	if got, want := texts.Bind("first", "list", "a"), "\nselect $2::int, '@b', $1 \nwhere $2 > 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := texts.BindWith("first", Constants{"a": "true"}, "list"), "\nselect true::int, '@b', $1 \nwhere true > 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := texts.Bind("third", "a"), "select x  where $1 > 0 and x "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	_, unused := texts.Bound()
	slices.Sort(unused)
	if !slices.Equal(unused, []string{"idle", "second"}) {
		t.Errorf("unused: %q", unused)
	}
	for what, f := range map[string]func(){
		"a name twice":          func() { load("-- name: a\n-- name: a\n") },
		"no statement":          func() { texts.Bind("fourth") },
		"an argument too few":   func() { texts.Bind("first", "a") },
		"an argument too many":  func() { texts.Bind("second", "a") },
		"nothing to be read in": func() { Load(fstest.MapFS{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			f()
		}()
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	add := func(a *Args) { a.Add("x", 1); a.Add("y", "z") }
	var a Args
	add(&a)
	if got := Names(add); !slices.Equal(got, []string{"x", "y"}) || !slices.Equal(a.Values, []any{1, "z"}) {
		t.Errorf("%q, %v", got, a.Values)
	}
}
