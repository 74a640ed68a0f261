package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"postern/cmd/postern/screen"
)

// printJSON writes v as indented JSON with a final newline.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints rows in aligned columns under a head. Cells are made printable, lest what
// came from the network makes rows and columns.
type table struct {
	head    []string
	rows    [][]string
	columns []int // to be printed; none for all
}

// tableOf has a row for each of a list.
func tableOf[T any](head []string, row func(T) []string, list []T) table {
	t := table{head: head}
	for _, one := range list {
		t.add(row(one)...)
	}
	return t
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.chosen(t.head), "\t"))
	for _, row := range t.rows {
		for i := range row {
			row[i] = screen.Printable(row[i])
		}
		fmt.Fprintln(tw, strings.Join(t.chosen(row), "\t"))
	}
	return tw.Flush()
}

func (t *table) chosen(row []string) (cells []string) {
	if len(t.columns) == 0 {
		return row
	}
	for _, i := range t.columns {
		cells = append(cells, row[i])
	}
	return cells
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
