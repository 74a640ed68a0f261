package screen

import "testing"

func TestDidYouMean(t *testing.T) {
	t.Parallel()
	names := []string{"check", "queue", "lost", "list", "at"}
	for typed, want := range map[string]string{
		"chekc": ", did you mean check?", "ueue": ", did you mean queue?", "lits": ", did you mean list?", "lsot": ", did you mean lost?",
		"cheque": "", "x": "", "it": ", did you mean at?", "weather": "", "": "",
	} {
		if got := DidYouMean(typed, names); got != want {
			t.Errorf("%q: %q, want %q", typed, got, want)
		}
	}
}
