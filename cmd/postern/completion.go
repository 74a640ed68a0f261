package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/smarthost"
	"postern/cmd/postern/story"
	"postern/internal/pgserver"
	"postern/relay/queue/desk"
	"postern/relay/route"
	"postern/relay/upstream"
)

func (a *app) completionCmd() *cobra.Command {
	shell := func(name, how string, write func(root *cobra.Command) error) *cobra.Command {
		return &cobra.Command{
			Use:   name,
			Short: "completion for " + name,
			Long:  "Prints a script that completes commands, flags, and the names of users and upstreams.\n\n" + how,
			Args:  noArguments,
			RunE:  func(cmd *cobra.Command, _ []string) error { return write(cmd.Root()) },
		}
	}
	return noun("completion", "print completion scripts for the shell",
		shell("bash", "It needs the package bash-completion. Install it with:\n\n  postern completion bash >/etc/bash_completion.d/postern",
			func(root *cobra.Command) error { return root.GenBashCompletionV2(a.stdout, true) }),
		shell("zsh", "Install it with:\n\n  postern completion zsh >\"${fpath[1]}/_postern\"",
			func(root *cobra.Command) error { return root.GenZshCompletion(a.stdout) }),
		shell("fish", "Install it with:\n\n  postern completion fish >~/.config/fish/completions/postern.fish",
			func(root *cobra.Command) error { return root.GenFishCompletion(a.stdout, true) }))
}

// completionTime is short, for a shell that waits for a completion stands still.
const completionTime = 2 * time.Second

const completionMost = 100

// ask finds the values that begin with prefix, in one bounded query.
type ask func(ctx context.Context, pool *pgxpool.Pool, prefix string) ([]string, error)

// complete gives every command of a tree the completion of its arguments and flags,
// by what they are called in its usage line.
func (a *app) complete(cmd *cobra.Command) {
	for flag, values := range map[string]ask{
		"user": usersLike, "credential": credentialsLike, "upstream": upstreamsOrMX, "via": upstreamsOrMX, "before": routesLike,
	} {
		if cmd.Flags().Lookup(flag) != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag, a.completer(values, false))
		}
	}
	for flag, values := range map[string][]string{"state": stateNames(), "tls": smarthost.TLSModes(), "preset": upstream.Presets(), "only": serveHalves} {
		if cmd.Flags().Lookup(flag) != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	_, arguments, _ := strings.Cut(cmd.Use, " ")
	what, _, _ := strings.Cut(strings.Trim(arguments, "["), " ")
	what, _, _ = strings.Cut(what, "|")
	switch under := cmd.Parent(); {
	case cmd.ValidArgsFunction != nil || under == nil:
	case what == "USER", under.Name() == "user" && what == "NAME" && cmd.Name() != "add":
		cmd.ValidArgsFunction = a.completer(usersLike, true)
	case under.Name() == "credential" && strings.TrimSuffix(what, "...") == "ID":
		cmd.ValidArgsFunction = a.completer(secretsLike, false)
	case (under.Name() == "upstream" || under.Name() == "reply") && what == "NAME" && (cmd.Name() != "add" || under.Name() == "reply"):
		cmd.ValidArgsFunction = a.completer(upstreamsLike, true)
	case under.Name() == "route" && what == "ID":
		cmd.ValidArgsFunction = a.completer(routesLike, true)
	case under.Name() == "certificate" && what == "NAME":
		cmd.ValidArgsFunction = a.completer(certificatesLike, true)
	case under.Name() == "dkim" && strings.Trim(what, "]") == "DOMAIN" && cmd.Name() != "add":
		cmd.ValidArgsFunction = a.completer(signedDomainsLike, true)
	case what == "FILE":
	default:
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		a.complete(sub)
	}
}

// completer is silent when there is no database, or none that answers soon.
func (a *app) completer(values ask, once bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if once && len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), a.completionTime)
		defer cancel()
		var found []string
		_ = a.withRunningPool(ctx, func(pool *pgxpool.Pool) (err error) {
			found, err = values(ctx, pool, prefix)
			return err
		})
		return offered(found, args, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// offered are the candidates that begin with prefix and are not among the arguments yet.
// It leaves out those that a shell reads as more than a word: the shell puts them into the
// line unquoted, and cobra's scripts evaluate the line at the next TAB.
func offered(found, args []string, prefix string) (list []string) {
	for _, candidate := range found {
		value, about, described := strings.Cut(candidate, "\t")
		if !strings.HasPrefix(value, prefix) || slices.Contains(args, value) || !isWord(value) {
			continue
		}
		if described {
			value += "\t" + strings.Map(harmless, about)
		}
		list = append(list, value)
	}
	return list
}

// isWord reports that text is the same in a shell's line, in every shell.
func isWord(text string) bool {
	return text != "" && strings.IndexFunc(text, func(r rune) bool { return !wordRune(r) }) < 0
}

func wordRune(r rune) bool {
	return 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || strings.ContainsRune("@%+=:,./_-", r)
}

// harmless keeps letters, in any script, and what may stand in a word.
func harmless(r rune) rune {
	if r == ' ' || wordRune(r) || unicode.IsLetter(r) {
		return r
	}
	return '?'
}

// warnOfNames says of users' names which the completion leaves out.
func (a *app) warnOfNames(names ...string) {
	var odd []string
	for _, name := range names {
		if !isWord(name) {
			odd = append(odd, name)
		}
	}
	if len(odd) > 0 {
		a.warn(fmt.Errorf("quote %s in commands; completion does not offer it: to a shell, characters other than A-Z a-z 0-9 @ %% + = : , . / _ - may mean something", screen.Few(odd)))
	}
}

// withRunningPool is withPool for a database that is up: none is started.
func (a *app) withRunningPool(ctx context.Context, do func(pool *pgxpool.Pool) error) error {
	cfg, _, err := a.source.Load()
	if err != nil {
		return err
	}
	url := cfg.Database.URL
	if cfg.Database.Private != "" {
		url, _ = pgserver.Running(cfg.Database.Private)
	}
	if url == "" {
		return nil
	}
	pool, err := a.database.OpenPool(ctx, url, "completion", 1, database.PrepareNothing)
	if err != nil {
		return err
	}
	defer pool.Close()
	return do(pool)
}

func usersLike(ctx context.Context, pool *pgxpool.Pool, prefix string) ([]string, error) {
	list, err := auth.NewStore(pool).ListUsers(ctx, prefix, completionMost)
	return screen.Each(list, func(u auth.User) string { return u.Name }), err
}

func credentialsLike(ctx context.Context, pool *pgxpool.Pool, prefix string) ([]string, error) {
	list, err := auth.NewStore(pool).FindCredentials(ctx, prefix, completionMost)
	return credentialValues(list), err
}

// secretsLike leaves passwords out: 'user passwd' and 'user disable' are for those.
func secretsLike(ctx context.Context, pool *pgxpool.Pool, prefix string) ([]string, error) {
	list, err := auth.NewStore(pool).FindCredentials(ctx, prefix, completionMost)
	list = slices.DeleteFunc(list, func(c auth.Credential) bool { return c.Kind != auth.KindSecret })
	return credentialValues(list), err
}

func credentialValues(list []auth.Credential) (numbers []string) {
	for _, c := range list {
		label := c.Label
		if c.Kind == auth.KindPassword {
			label = "password"
		}
		numbers = append(numbers, strconv.FormatInt(c.ID, 10)+"\t"+screen.OneLine(screen.Printable(c.User+" "+label)))
	}
	return numbers
}

func stateNames() []string {
	return screen.Each(story.States(), func(s desk.State) string { return string(s) })
}

// upstreamsOrMX are the ways that mail can go.
func upstreamsOrMX(ctx context.Context, pool *pgxpool.Pool, prefix string) ([]string, error) {
	names, err := upstreamsLike(ctx, pool, prefix)
	return append(names, route.MX), err
}

func routesLike(ctx context.Context, pool *pgxpool.Pool, _ string) ([]string, error) {
	rules, who, err := readRoutes(ctx, &accounts{Store: auth.NewStore(pool), pool: pool})
	return screen.Each(rules, func(r route.Rule) string {
		return strconv.FormatInt(r.ID, 10) + "\t" + screen.OneLine(ruleText(r, who))
	}), err
}

func upstreamsLike(ctx context.Context, pool *pgxpool.Pool, _ string) ([]string, error) {
	list, err := upstream.NewStore(pool, nil).List(ctx)
	return screen.Each(list, func(u upstream.Listed) string { return u.Name }), err
}
