package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
)

func (a *app) auditCmd() *cobra.Command {
	var (
		asJSON bool
		since  string
		f      auth.DeedFilter
	)
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "list what admins did, the latest first",
		Long: `Lists the changes that commands made: when, who (the operating system's user), what,
and to whom. They are recorded with the change itself.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Limit < 1 {
				return usagef("--limit must be at least 1")
			}
			if since != "" {
				d, err := parseDuration(since)
				if err != nil || d < duration(time.Microsecond) {
					return usagef("--since: %q is no span of time such as 7d or 2h", since)
				}
				f.Since = time.Duration(d)
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				list, err := users.Audit(ctx, f)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, emptyList(list))
				}
				return a.printDeeds(list, f.Limit)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&since, "since", "", "only what was done within this `span`: 7d, 2h")
	fl.StringVar(&f.Actor, "actor", "", "only what this `user` of the operating system did")
	fl.IntVar(&f.Limit, "limit", 100, "print at most `N` lines")
	fl.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printDeeds(list []auth.Deed, limit int) error {
	t := table{head: []string{"WHEN", "WHO", "WHAT", "TO", "DETAIL"}}
	for _, d := range list {
		t.add(localTime(d.At), d.Actor, d.Action, d.Object, orDash(detailText(d.Detail)))
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if len(list) == limit {
		fmt.Fprintf(a.stderr, "there may be more: --limit %d\n", limit*10)
	}
	return nil
}

// detailText writes a JSON object as "key value, key value".
func detailText(detail json.RawMessage) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(detail, &fields) != nil {
		return string(detail)
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		var text string
		if json.Unmarshal(fields[key], &text) != nil {
			var b bytes.Buffer
			_ = json.Compact(&b, fields[key])
			text = b.String()
		}
		if text != "" && text != "[]" && text != "null" {
			parts = append(parts, key+" "+text)
		}
	}
	return strings.Join(parts, ", ")
}
