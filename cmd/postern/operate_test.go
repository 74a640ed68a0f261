package main

import "testing"

func TestChanged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		n    int
		dry  bool
		want string
	}{
		{0, false, "0 held recipients are released"}, {1, false, "1 held recipient is released"}, {2, false, "2 held recipients are released"},
		{1, true, "1 held recipient would be released"}, {2, true, "2 held recipients would be released"},
	} {
		if got := changed(c.n, "held recipient", "released", c.dry); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
