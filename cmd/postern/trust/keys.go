// Package trust shows people and programs what makes mail trusted on the way: the DKIM keys of
// sender domains, and what mail hosts must prove.
package trust

import (
	"fmt"
	"io"
	"slices"
	"time"

	"postern/cmd/postern/screen"
	"postern/internal/units"
	"postern/relay/dkim/keys"
)

// Key is a DKIM key with its record; --json prints it.
type Key struct {
	keys.Key
	Name   string `json:"record_name"`
	Record string `json:"record"`
	Zone   string `json:"zone_line"`

	next bool // the one after it is there
}

// KeysOf adds their records to keys.
func KeysOf(list []keys.Key) []Key {
	return screen.Each(list, func(k keys.Key) Key {
		next := slices.ContainsFunc(list, func(n keys.Key) bool {
			return n.Domain == k.Domain && n.Algorithm == k.Algorithm && n.State == keys.Pending
		})
		return Key{k, k.Name(), k.Record(), k.Zone(), next}
	})
}

// Note says what is to be done about the key; "": nothing.
func (k Key) Note() string {
	switch {
	case k.Gone && k.State == keys.Active:
		return "signs nothing: its record is gone"
	case k.State == keys.Retired:
		return "its record may be removed"
	case k.Found != "":
		return k.Found
	case k.State == keys.Pending && k.LookedAt.IsZero():
		return "no node has looked at its record yet"
	case k.State == keys.Pending:
		return "published; signs after the next look"
	case k.State == keys.Retiring:
		return "its record has to stay"
	case k.State == keys.Active && k.EveryDays > 0 && !k.next:
		return "next key on " + k.NextMade().Local().Format(time.DateOnly)
	}
	return ""
}

// Print writes the key and its record for people: as a line of a zone file, and for a web panel.
func (k Key) Print(out io.Writer) error {
	t := screen.Table{Head: []string{"KEY", k.Selector}, Wraps: true}
	t.Add("domain", k.Domain)
	t.Add("algorithm", string(k.Algorithm))
	t.Add("state", fmt.Sprintf("%s since %s", k.State, screen.LocalTime(k.Since)))
	if k.EveryDays > 0 {
		t.Add("rotated after", screen.Count(k.EveryDays, "day"))
	}
	t.Add("record looked at", screen.LocalTime(k.LookedAt))
	if note := k.Note(); note != "" {
		t.Add("note", note)
	}
	if err := t.Print(out); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return printRecord(out, &k.Key)
}

// printRecord writes a key's record as a line of a zone file, and for a web panel.
func printRecord(out io.Writer, k *keys.Key) error {
	_, err := fmt.Fprintf(out, "%s\n\nor in a web panel: type TXT, name %s, value\n%s\n", k.Zone(), k.Name(), k.Record())
	return err
}

// PrintRecords writes what is to be published of keys, at least one.
func PrintRecords(out io.Writer, list []keys.Key) error {
	for _, k := range list {
		fmt.Fprintf(out, "key %s of %s is %s\n", k.Selector, k.Domain, k.State)
	}
	fmt.Fprintf(out, "\nto do: publish these records; 'postern dkim list %s' shows what the name servers of the domain answer\n", list[0].Domain)
	for _, k := range list {
		fmt.Fprintln(out)
		if err := printRecord(out, &k); err != nil {
			return err
		}
	}
	return nil
}

// Every reads an age of keys in days, such as 180d; "0" and "" are never.
func Every(text string) (days int, err error) {
	if text == "0" || text == "" {
		return 0, nil
	}
	d, err := units.ParseSpan(text)
	if days = int(d / (24 * time.Hour)); err != nil || time.Duration(days)*24*time.Hour != d || days < 7 || days > 3650 {
		return 0, fmt.Errorf("%q is not a number of days from 7d to 3650d, such as 180d, nor 0", text)
	}
	return days, nil
}
