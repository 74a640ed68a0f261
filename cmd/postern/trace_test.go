package main

import (
	"testing"

	"postern/relay/queue/desk"
)

func TestUsageText(t *testing.T) {
	t.Parallel()
	for usage, want := range map[string]string{
		"":                                     "",
		"messages 12/100 in 60s":               "messages 12/100 in 1m",
		"recipients 1/20000 in 2592000s":       "recipients 1/20000 in 30d",
		"bytes 999/1000 in 7200s":              "bytes 999B/1KB in 2h",
		"bytes 1549999/25000000000 in 90s":     "bytes 1.5MB/25GB in 90s",
		"messages 1/2 in 86400s by credential": "messages 1/2 in 1d by credential",
		"messages 1/2 in 1s, bytes 99999999999999999999/1 in 60s": "messages 1/2 in 1s, bytes 9223372TB/1B in 1m",
		"as nobody writes it": "as nobody writes it",
	} {
		if got := usageText(usage); got != want {
			t.Errorf("%q: %q, want %q", usage, got, want)
		}
	}
}

func TestFateText(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]desk.Summary{
		"-":                                {Recipients: 1},
		"delivered":                        {Recipients: 2, Delivered: 2},
		"1 delivered, 1 failed, 1 waiting": {Recipients: 3, Delivered: 1, Failed: 1, Waiting: 1},
		"1 cancelled, 2 held":              {Recipients: 3, Cancelled: 1, Held: 2},
		"refused after all":                {Recipients: 1, Voided: true, Waiting: 1},
	} {
		if got := fateText(s); got != want {
			t.Errorf("%+v: %q, want %q", s, got, want)
		}
	}
}

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
