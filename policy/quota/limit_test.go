package quota

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const day = 24 * time.Hour

func TestParseLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		kind Kind
		in   string
		want []Limit // nil: refused
	}{
		{Messages, "100/m,1000/d, 20000/30d", []Limit{
			{Kind: Messages, Window: time.Minute, Max: 100},
			{Kind: Messages, Window: day, Max: 1000},
			{Kind: Messages, Window: 30 * day, Max: 20000}}},
		{Recipients, "5/90s", []Limit{{Kind: Recipients, Window: 90 * time.Second, Max: 5}}},
		{Recipients, "0/366d", []Limit{{Kind: Recipients, Window: 366 * day}}},
		{Bytes, "1GB/d", []Limit{{Kind: Bytes, Window: day, Max: 1e9}}},
		{Bytes, "3kib/2h", []Limit{{Kind: Bytes, Window: 2 * time.Hour, Max: 3072}}},
		{Size, "25MB", []Limit{{Kind: Size, Max: 25e6}}},
		{Size, "25MiB", []Limit{{Kind: Size, Max: 25 << 20}}},
		{Size, "1000", []Limit{{Kind: Size, Max: 1000}}},
		{Size, "0", []Limit{{Kind: Size}}},
		{RecipientsOfMessage, "100", []Limit{{Kind: RecipientsOfMessage, Max: 100}}},
		{Sessions, "10", []Limit{{Kind: Sessions, Max: 10}}},

		{Messages, "", nil}, {Messages, "100", nil}, {Messages, "100/", nil},
		{Messages, "/m", nil}, {Messages, "100/0d", nil}, {Messages, "100/367d", nil},
		{Messages, "100/31622401s", nil}, {Messages, "100/99999999999999999999d", nil},
		{Messages, "100/w", nil}, {Messages, "100/-1d", nil}, {Messages, "-1/d", nil},
		{Messages, "+1/d", nil}, {Messages, "1e3/d", nil}, {Messages, "100/m,", nil},
		{Messages, "100/m,200/60s", nil}, {Messages, "1KB/d", nil}, {Messages, "1/d/d", nil},
		{Bytes, "1GB", nil}, {Bytes, "GB/d", nil}, {Bytes, "1.5GB/d", nil},
		{Bytes, "9223372036854775807GB/d", nil}, {Bytes, "99999999999999999999/d", nil},
		{Size, "25MB/d", nil}, {Size, "25 MB", nil}, {Size, "1,2", nil},
		{RecipientsOfMessage, "1KB", nil}, {Sessions, "many", nil},
	}
	for _, tt := range tests {
		got, err := Parse(tt.kind, tt.in)
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != (tt.want == nil) {
			t.Errorf("%s %q: %v %s", tt.kind, tt.in, err, diff)
		}
		if err != nil && !strings.Contains(err.Error(), "write") {
			t.Errorf("%s %q: %v does not say what to write", tt.kind, tt.in, err)
		}
	}
}

func TestFormatLimit(t *testing.T) {
	t.Parallel()
	for kind, list := range map[Kind][]string{
		Messages: {"100/m", "0/s", "7/90s", "1/11m", "20000/30d", "1/h", "5/36h"},
		Bytes:    {"1GB/d", "1GiB/d", "1500MB/d", "1025/10m", "3KiB/s", "0/d", "9223372036854775807/d"},
		Size:     {"25MB", "25MiB", "1", "0"},
		Sessions: {"10", "1000"},
	} {
		for _, s := range list {
			l, err := Parse(kind, s)
			if err != nil {
				t.Fatal(err)
			}
			if got := l[0].Text(); got != s {
				t.Errorf("%q comes back as %q", s, got)
			}
		}
	}
}

func FuzzLimit(f *testing.F) {
	f.Add("100/m,1GB/30d")
	f.Add("25MiB")
	kinds := []Kind{Messages, Bytes, Size, Sessions}
	f.Fuzz(func(t *testing.T, s string) {
		for _, kind := range kinds {
			limits, err := Parse(kind, s)
			if err != nil {
				continue
			}
			for _, l := range limits {
				again, err := Parse(kind, l.Text())
				if err != nil || len(again) != 1 || again[0] != l || l.Max < 0 {
					t.Fatalf("%q: %+v is written %q and read %+v, %v", s, l, l.Text(), again, err)
				}
			}
		}
	})
}

func TestWindows(t *testing.T) {
	t.Parallel()
	limit := func(kind Kind, w time.Duration, most int64, from Scope) Limit {
		return Limit{Kind: kind, Window: w, Max: most, Scope: from}
	}
	limits := []Limit{
		limit(Messages, time.Minute, 100, Default),
		limit(Size, 0, 1, User),
		limit(Messages, time.Minute, 50, User),
		limit(Messages, time.Minute, 70, Credential),
		limit(Messages, day, 10, User),
		limit(Messages, day, 5, Default),
		limit(Bytes, day, 0, User),
		limit(Recipients, day, 7, Default),
		limit(Recipients, day, 7, User),
	}
	want := []Limit{
		limit(Messages, time.Minute, 50, User),
		limit(Messages, time.Minute, 70, Credential),
		limit(Messages, day, 5, Default),
		limit(Bytes, day, 0, User),
		limit(Recipients, day, 7, User),
	}
	if diff := cmp.Diff(want, Windows(limits)); diff != "" {
		t.Error(diff)
	}
	if got := Windows(limits[1:2]); got != nil {
		t.Errorf("without windows: %v", got)
	}
}

// Of all that a user is under, the tightest of each count binds, wherever it was set, and of
// what is of one message the tightest of all.
func TestTightestWins(t *testing.T) {
	t.Parallel()
	limit := func(kind Kind, w time.Duration, most int64, scope Scope, subject string) Limit {
		return Limit{kind, w, most, scope, subject}
	}
	limits := []Limit{
		limit(Messages, day, 30, Default, "7"), limit(Messages, day, 20, Domain, "example.com"),
		limit(Messages, day, 40, User, "7"), limit(Messages, day, 50, Credential, "9"),
		limit(Bytes, day, 100, Default, "7"), limit(Bytes, day, 100, Domain, "example.com"),
		limit(Size, 0, 7, Default, "7"), limit(Size, 0, 7, Domain, "example.com"), limit(Size, 0, 9, Credential, "9"),
		limit(Sessions, 0, 5, Domain, "example.com"), limit(Sessions, 0, 4, Default, "7"), limit(Sessions, 0, 3, User, "7"),
	}
	want := []Limit{limits[0], limits[1], limits[3], limits[4], limits[5]}
	if diff := cmp.Diff(want, Windows(limits)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Limit{limits[9], limits[11]}, sessionLimits(limits)); diff != "" {
		t.Error(diff)
	}
	for i, l := range limits[6:9] {
		if Binds(limits, l) != (i == 1) {
			t.Errorf("%+v binds: %v", l, i != 1)
		}
	}
	if l, ok := Smallest(limits, Size, Bytes); !ok || l != limits[7] {
		t.Errorf("the smallest is %+v", l)
	}
}
