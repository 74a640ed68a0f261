package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/auth/audit"
	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
)

func (a *app) auditCmd() *cobra.Command {
	var (
		since string
		user  string
		f     audit.Filter
		who   names
	)
	cmd := listing[audit.Entry]{
		head: []string{"WHEN", "WHO", "WHAT", "TO", "DETAIL"},
		row: func(d audit.Entry) []string {
			return []string{screen.LocalTime(d.At), d.Actor, d.Action, deedObject(d.Object, who), screen.OrDash(detailText(d.Detail))}
		},
		check: func() error {
			if since == "" {
				return nil
			}
			d, err := config.ParseDuration(since)
			if err != nil || d < config.Duration(time.Microsecond) {
				return usagef("--since: %q is not a span of time such as 7d or 2h", since)
			}
			f.Since = time.Duration(d)
			return nil
		},
		load: func(ctx context.Context, users *accounts, _ []string, limit int) (list []audit.Entry, err error) {
			if f.Limit = limit; user != "" {
				if f.User, err = auth.CanonicalName(user); err != nil {
					return nil, err
				}
			}
			if list, err = audit.List(ctx, users.pool, f); err != nil {
				return nil, err
			}
			if len(list) == 0 {
				return nil, concernsSomebody(ctx, users, f.User)
			}
			who, err = userNames(ctx, users.pool, deedUsers(list)...)
			return list, err
		},
		limit: 100, of: "lines", next: larger[audit.Entry],
	}.command(a, &cobra.Command{
		Use:   "audit",
		Short: "list what admins did, the latest first",
		Long: `Lists the changes that commands made: when, who (the operating system's user), what,
and to whom. They are recorded with the change itself, and kept for the time of audit
in [retention] of the configuration.`,
		Args: noArguments,
	})
	fl := cmd.Flags()
	fl.StringVar(&since, "since", "", "only what was done within this `span`: 7d, 2h")
	fl.StringVar(&user, "user", "", "only what concerns the user of this `NAME`, and its mail")
	fl.StringVar(&f.Actor, "actor", "", "only what this `user` of the operating system did")
	return cmd
}

// concernsSomebody fails when the name is not a user's and never was, as far back as the
// audit goes.
func concernsSomebody(ctx context.Context, users *accounts, name string) error {
	if name == "" {
		return nil
	}
	past, err := audit.List(ctx, users.pool, audit.Filter{User: name, Limit: 1})
	if err != nil || len(past) > 0 {
		return err
	}
	_, _, err = userNamed(ctx, users.pool, name)
	return err
}

// numbered finds a user that the queue knew by number only.
var numbered = regexp.MustCompile(`(^|, )user ([0-9]{1,18})($|,)`)

func deedUsers(list []audit.Entry) (ids []int64) {
	for _, d := range list {
		if m := numbered.FindStringSubmatch(d.Object); m != nil {
			id, _ := strconv.ParseInt(m[2], 10, 64)
			ids = append(ids, id)
		}
	}
	return ids
}

// deedObject adds the name to the number of a user.
func deedObject(object string, who names) string {
	return numbered.ReplaceAllStringFunc(object, func(s string) string {
		m := numbered.FindStringSubmatch(s)
		id, _ := strconv.ParseInt(m[2], 10, 64)
		if who[id] == "" {
			return s
		}
		return m[1] + "user " + m[2] + " (" + who[id] + ")" + m[3]
	})
}

// detailText writes a JSON object as "key value, key value", and limits as they are set.
func detailText(detail json.RawMessage) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(detail, &fields) != nil {
		return string(detail)
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		var text string
		if key == "limits" && limitsText(fields[key], &text) {
			parts = append(parts, text)
			continue
		}
		if json.Unmarshal(fields[key], &text) != nil {
			var b bytes.Buffer
			_ = json.Compact(&b, fields[key])
			text = b.String()
		}
		if text != "" && text != "[]" && text != "null" {
			parts = append(parts, strings.ReplaceAll(key, "_", " ")+" "+text)
		}
	}
	return strings.Join(parts, ", ")
}

// limitsText is limits as the audit has them, quota.Limit's String, by the names of their flags.
func limitsText(list json.RawMessage, text *string) bool {
	var words []string
	if json.Unmarshal(list, &words) != nil {
		return false
	}
	*text = strings.ReplaceAll(strings.Join(words, ", "), "_", "-")
	return true
}
