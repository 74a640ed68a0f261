package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/pflag"

	"postern/auth"
	"postern/cmd/postern/story"
	"postern/relay/queue/desk"
	"postern/relay/smtp"
)

// selection is the flags that choose recipients of the queue.
type selection struct {
	flags *pflag.FlagSet
	given map[string]*string // by flag
	doubt bool
}

// selectionFlags are the filters, with what their help says.
var selectionFlags = []struct{ name, help string }{
	{"user", "only mail of user `NAME`"},
	{"credential", "only mail sent with credential `ID`"},
	{"sender", "only mail from envelope `ADDRESS`; <> is the null sender"},
	{"recipient", "only recipient `ADDRESS`"},
	{"domain", "only recipients in `DOMAIN`"},
	{"upstream", "only recipients last tried through, or waiting for, the upstream `NAME` (or mx)"},
	{"reply", "only recipients whose last reply begins with `TEXT`"},
	{"state", "only recipients in `STATE`"},
	{"older-than", "only mail accepted longer ago than `SPAN`, such as 90m, 4h or 5d"},
}

func selectionOf(flags *pflag.FlagSet) *selection {
	s := &selection{flags: flags, given: map[string]*string{}}
	for _, f := range selectionFlags {
		s.given[f.name] = flags.String(f.name, "", f.help)
	}
	flags.BoolVar(&s.doubt, "in-doubt", false, "only recipients that may have been delivered")
	return s
}

// any reports a filter other than those named.
func (s *selection) any(except ...string) bool {
	for name := range s.given {
		if s.flags.Changed(name) && !slices.Contains(except, name) {
			return true
		}
	}
	return s.doubt && !slices.Contains(except, "in-doubt")
}

// filter checks what needs no database; errors are of wrong use.
func (s *selection) filter() (f desk.Filter, err error) {
	for _, flag := range selectionFlags {
		// An empty one is a mistake in a script, and must not choose everything.
		if s.flags.Changed(flag.name) && *s.given[flag.name] == "" {
			return f, usagef("--%s is empty", flag.name)
		}
	}
	f.InDoubt = s.doubt
	f.State, f.Upstream, f.Reply = desk.State(*s.given["state"]), *s.given["upstream"], *s.given["reply"]
	if f.State != "" && !slices.Contains(story.States(), f.State) {
		return f, usagef("--state is waiting, sending, held, failed or delivered, not %q", f.State)
	}
	if name := *s.given["user"]; name != "" {
		if _, err := auth.CanonicalName(name); err != nil {
			return f, usagef("--user: %v", err)
		}
	}
	if n := *s.given["credential"]; n != "" {
		if f.CredentialID, err = strconv.ParseInt(n, 10, 64); err != nil || f.CredentialID < 1 {
			return f, usagef("--credential is the number of a credential, not %q", n)
		}
	}
	if f.OlderThan, err = spanFlag("older-than", *s.given["older-than"]); err != nil {
		return f, err
	}
	return f, s.addresses(&f)
}

func (s *selection) addresses(f *desk.Filter) error {
	for name, to := range map[string]*string{"sender": &f.Sender, "recipient": &f.Recipient} {
		text := *s.given[name]
		if text == "" || text == "<>" && name == "sender" {
			*to = text
			continue
		}
		a, err := smtp.ParseRecipient(strings.TrimSuffix(strings.TrimPrefix(text, "<"), ">"))
		if err != nil {
			return usagef("--%s: %q: %v", name, text, err)
		}
		*to = a.Local + "@" + a.Domain // as stored, without the quotes of the wire
	}
	if text := *s.given["domain"]; text != "" {
		a, err := smtp.ParseAddress("postmaster@" + text)
		if err != nil {
			return usagef("--domain: %q is not a domain: %v", text, err)
		}
		f.Domain = a.DomainKey()
	}
	return nil
}

// resolve fills in what only the database knows.
func (s *selection) resolve(ctx context.Context, pool *pgxpool.Pool, f *desk.Filter) (err error) {
	if name := *s.given["user"]; name != "" {
		if f.UserID, f.UserName, err = userNamed(ctx, pool, name); err != nil {
			return err
		}
	}
	if f.CredentialID != 0 {
		if _, err = auth.NewStore(pool).Credential(ctx, f.CredentialID); err != nil {
			return err
		}
	}
	if f.Upstream != "" {
		return upstreamNamed(ctx, pool, f.Upstream)
	}
	return nil
}
