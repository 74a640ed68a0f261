package screen

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Table prints rows in aligned columns under a head. Cells are made printable, lest what
// came from the network makes rows and columns.
type Table struct {
	Head    []string
	Columns []int // to be printed, by their places in Head; none for all

	rows [][]string
}

// TableOf has a row for each of a list.
func TableOf[T any](head []string, row func(T) []string, list []T) Table {
	t := Table{Head: head}
	for _, one := range list {
		t.Add(row(one)...)
	}
	return t
}

// Add adds a row, with a cell for each column.
func (t *Table) Add(cells ...string) { t.rows = append(t.rows, cells) }

// Print writes the table. Errors: w's.
func (t *Table) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.chosen(t.Head), "\t"))
	for _, row := range t.rows {
		for i := range row {
			row[i] = Printable(row[i])
		}
		fmt.Fprintln(tw, strings.Join(t.chosen(row), "\t"))
	}
	return tw.Flush()
}

func (t *Table) chosen(row []string) (cells []string) {
	if len(t.Columns) == 0 {
		return row
	}
	for _, i := range t.Columns {
		cells = append(cells, row[i])
	}
	return cells
}
