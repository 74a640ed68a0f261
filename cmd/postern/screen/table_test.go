package screen

import (
	"strings"
	"testing"
)

// On a terminal that is too narrow, text is cut, then columns go: first those that can be spared.
func TestTableFits(t *testing.T) {
	t.Parallel()
	table := func(wraps bool) *Table {
		table := &Table{Head: []string{"ID", "COUNT", "WHERE", "WHY"}, Spare: []string{"COUNT"}, Wraps: wraps}
		table.Add("0123456789", "12", "smtp.example.net:587", "it was refused for a reason")
		return table
	}
	const last = "smtp.example.net:587  it was refused for a reason\n"
	for _, test := range []struct {
		width int
		wraps bool
		want  string
	}{
		{0, false, "ID          COUNT  WHERE                 WHY\n0123456789  12     " + last},
		{68, false, "ID          COUNT  WHERE                 WHY\n0123456789  12     " + last},
		{60, false, "ID          COUNT  WHERE                WHY\n0123456789  12     smtp.example.net:5…  it was refused for …\n"},
		{44, false, "ID          WHERE            WHY\n0123456789  smtp.example.n…  it was refused…\nnot shown: COUNT; pipe to cat to see them\n"},
		{30, false, "ID          WHERE\n0123456789  smtp.example.net:…\nnot shown: COUNT, WHY; pipe to\ncat to see them\n"},
		{66, true, "ID          COUNT  WHERE                 WHY\n0123456789  12     smtp.example.net:587  it was refused for a\n" + strings.Repeat(" ", 41) + "reason\n"},
	} {
		var out strings.Builder
		if err := table(test.wraps).Print(Writer{&out, test.width}); err != nil || out.String() != test.want {
			t.Errorf("%d columns, wraps %t: %v\n%s\nwant\n%s", test.width, test.wraps, err, out.String(), test.want)
		}
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	if got := Count(1, "row") + " " + Be(1) + ", " + Count(int64(0), "row") + " " + Be(0); got != "1 row is, 0 rows are" {
		t.Error(got)
	}
}

// A long word of the last column fits: other columns give way to it.
func TestLongWord(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	table := Table{Head: []string{"WHEN", "RECIPIENT", "TRIES", "REPLY"}, Spare: []string{"TRIES"}, Wraps: true}
	table.Add("2026-12-01 01:16:53", "bob@example.net", "1", "see https://postgrey.example.net/greylisted")
	if err := table.Print(Writer{Writer: &b, Width: 74}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if len(strings.TrimSuffix(line, "\n")) > 74 {
			t.Errorf("%q", line)
		}
	}
}
