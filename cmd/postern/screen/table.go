package screen

import (
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Table prints rows in aligned columns under a head. Cells are made printable, lest what
// came from the network makes rows and columns.
//
// On a terminal that is too narrow, columns of text other than the first are cut, then columns are
// left out and named below. Where the last column wraps, it goes on in further lines.
type Table struct {
	Head    []string
	Columns []int    // to be printed, by their places in Head; none for all
	Spare   []string // of Head, that are left out first; then those on the right
	Wraps   bool     // the last column does; that of a table of two always does

	rows [][]string
}

const (
	gap      = 2  // blanks between columns
	leastCut = 12 // runes of a column that is cut
	leastRun = 24 // runes of a column that wraps
	mostRun  = 40 // or of its longest word, up to these
)

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
	columns := t.Columns
	if len(columns) == 0 {
		for i := range t.Head {
			columns = append(columns, i)
		}
	}
	room := 0
	if s, ok := w.(Writer); ok {
		room = s.Width
	}
	wraps := t.Wraps || len(columns) == 2
	cells, widths := t.cells(columns)
	var hidden []string
	kept := 1
	if wraps {
		kept = 2
	}
	for room > 0 && !fit(cells, widths, room, wraps) && len(columns) > kept {
		gone := t.dispensable(columns, len(columns)-kept)
		hidden = append(hidden, t.Head[columns[gone]])
		columns = slices.Delete(slices.Clone(columns), gone, gone+1)
		cells, widths = t.cells(columns)
	}
	var text strings.Builder
	for _, row := range cells {
		printRow(&text, row, widths, room, wraps)
	}
	if len(hidden) > 0 {
		said := "not shown: " + strings.Join(hidden, ", ") + "; pipe to cat to see them"
		text.WriteString(strings.Join(folded(said, room), "\n") + "\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// cells are the head and the rows with the chosen columns, and how wide each column is.
func (t *Table) cells(columns []int) (cells [][]string, widths []int) {
	widths = make([]int, len(columns))
	for i, row := range slices.Concat([][]string{t.Head}, t.rows) {
		chosen := make([]string, len(columns))
		for k, column := range columns {
			if chosen[k] = row[column]; i > 0 {
				chosen[k] = Printable(chosen[k])
			}
			widths[k] = max(widths[k], utf8.RuneCountInString(chosen[k]))
		}
		cells = append(cells, chosen)
	}
	return cells, widths
}

// fit makes columns of text narrower until a row has room, and reports whether it has. The last
// column, if it wraps, needs little.
func fit(cells [][]string, widths []int, room int, wraps bool) bool {
	if last := len(widths) - 1; wraps {
		run := leastRun
		for _, row := range cells[1:] {
			for word := range strings.FieldsSeq(row[last]) {
				run = max(run, min(utf8.RuneCountInString(word), mostRun))
			}
		}
		widths[last] = min(widths[last], run)
	}
	isText := make([]bool, len(widths))
	for _, row := range cells[1:] {
		for k, cell := range row {
			isText[k] = isText[k] || k > 0 && (!wraps || k < len(widths)-1) && strings.ContainsFunc(cell, unicode.IsLetter)
		}
	}
	over := gap*(len(widths)-1) - room
	for _, width := range widths {
		over += width
	}
	for ; over > 0; over-- {
		widest := -1
		for k, width := range widths {
			if isText[k] && width > leastCut && (widest < 0 || width > widths[widest]) {
				widest = k
			}
		}
		if widest < 0 {
			return false
		}
		widths[widest]--
	}
	return true
}

// dispensable is the column that is left out next: one that can be spared, or else that one.
func (t *Table) dispensable(columns []int, orElse int) int {
	for _, name := range t.Spare {
		if i := slices.Index(columns, slices.Index(t.Head, name)); i > 0 {
			return i
		}
	}
	return orElse
}

// printRow prints a row.
func printRow(to *strings.Builder, row []string, widths []int, room int, wraps bool) {
	line, indent, last := "", 0, len(row)-1
	for k, cell := range row[:last] {
		cell = Shorten(cell, widths[k])
		line += cell + strings.Repeat(" ", widths[k]-utf8.RuneCountInString(cell)+gap)
		indent += widths[k] + gap
	}
	texts := []string{row[last]}
	if !wraps {
		texts[0] = Shorten(row[last], widths[last])
	} else if room > 0 {
		texts = folded(row[last], max(room-indent, leastRun))
	}
	for i, text := range texts {
		if i > 0 {
			line = strings.Repeat(" ", indent)
		}
		to.WriteString(strings.TrimRight(line+text, " ") + "\n")
	}
}

// folded breaks text between words into lines of at most that width. A longer word stays whole, to be
// copied.
func folded(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
