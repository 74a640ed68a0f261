package suppression

import (
	"encoding/csv"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/refusal"
)

// columns of the file, in the order of Export. Those after reply are not imported.
var csvColumns = []string{"address", "source", "reason", "added", "expires", "reply", "hits", "last_hit"}

// maxImport bounds the entries of one file.
const maxImport = 2_000_000

// ParseCSV reads the entries of an owner from a CSV file, whose first line names its columns; of several lines
// with one address the last counts. Errors: the reader's, or refusal.ErrInvalid, which says which line is wrong.
func ParseCSV(in io.Reader, o Owner) ([]Entry, error) {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	head, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, refusal.Invalid("the file is empty: its first line names its columns, of which address is one")
	}
	if err != nil {
		return nil, invalidCSV(err)
	}
	columns := slices.Clone(head)
	columns[0] = strings.TrimPrefix(columns[0], "\ufeff")
	for i, name := range columns {
		if columns[i] = strings.ToLower(strings.TrimSpace(name)); !slices.Contains(csvColumns, columns[i]) || slices.Index(columns, columns[i]) < i {
			return nil, refusal.Invalid("line 1: column %q is unknown, or named twice; the columns are %s", name, strings.Join(csvColumns, ", "))
		}
	}
	if !slices.Contains(columns, "address") {
		return nil, refusal.Invalid("line 1: the column address is missing")
	}
	var list []Entry
	now := time.Now()
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return latest(list), nil
		}
		if err != nil {
			return nil, invalidCSV(err)
		}
		line, _ := r.FieldPos(0)
		e, err := entryOf(columns, record)
		if err == nil {
			err = e.check(o, now)
		}
		if err != nil {
			return nil, refusal.Invalid("line %d: %v", line, err)
		}
		if list = append(list, e); len(list) > maxImport {
			return nil, refusal.Invalid("the file has more than %d entries: divide it", maxImport)
		}
	}
}

func invalidCSV(err error) error {
	if wrong, is := errors.AsType[*csv.ParseError](err); is {
		return refusal.Invalid("line %d: %v", wrong.Line, wrong.Err)
	}
	return err
}

func entryOf(columns, record []string) (e Entry, err error) {
	for i, name := range columns {
		value := strings.Clone(strings.TrimSpace(record[i]))
		if value == "" {
			continue
		}
		switch name {
		case "address":
			e.Address = value
		case "source":
			e.Source = value
		case "reason":
			e.Reason = value
		case "reply":
			e.Reply = value
		case "added":
			e.AddedAt, err = time.Parse(time.RFC3339, value)
		case "expires":
			var at time.Time
			at, err = time.Parse(time.RFC3339, value)
			e.ExpiresAt = &at
		}
		if err != nil {
			return e, refusal.Invalid("%s: %q is not a time such as 2027-01-31T12:00:00Z", name, value)
		}
	}
	return e, nil
}

// Writer writes entries as a CSV file.
type Writer struct{ csv *csv.Writer }

// NewWriter writes the first line.
func NewWriter(out io.Writer) (*Writer, error) {
	w := &Writer{csv.NewWriter(out)}
	return w, w.csv.Write(csvColumns)
}

// Write writes entries.
func (w *Writer) Write(list []Entry) error {
	for i := range list {
		e := &list[i]
		expires, hit := "", ""
		if e.ExpiresAt != nil {
			expires = e.ExpiresAt.UTC().Format(time.RFC3339)
		}
		if e.LastHitAt != nil {
			hit = e.LastHitAt.UTC().Format(time.RFC3339)
		}
		err := w.csv.Write([]string{e.Address, e.Source, e.Reason, e.AddedAt.UTC().Format(time.RFC3339), expires, e.Reply, strconv.FormatInt(e.Hits, 10), hit})
		if err != nil {
			return err
		}
	}
	w.csv.Flush()
	return w.csv.Error()
}
