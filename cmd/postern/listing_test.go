package main

import (
	"bytes"
	"errors"
	"testing"

	"postern/cmd/postern/screen"
)

func TestColumnsOfAListing(t *testing.T) {
	t.Parallel()
	head := []string{"ID", "STATE", "LAST REPLY"}
	row := func(id string) []string { return []string{id, "held", "451 later"} }
	for _, test := range []struct {
		names []string
		want  string
	}{
		{nil, "ID  STATE  LAST REPLY\na   held   451 later\n"},
		{[]string{"last-reply", "id"}, "LAST REPLY  ID\n451 later   a\n"},
	} {
		table := screen.TableOf(head, row, []string{"a"})
		var err error
		if table.Columns, err = chooseColumns(head, test.names); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := table.Print(&out); err != nil || out.String() != test.want {
			t.Errorf("%q: %q, %v; want %q", test.names, &out, err, test.want)
		}
	}
	var usage usageError
	if _, err := chooseColumns(head, []string{"reply"}); !errors.As(err, &usage) {
		t.Errorf("a column that is not there: %v", err)
	}
}
