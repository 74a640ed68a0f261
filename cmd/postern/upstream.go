package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/explain"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/secret"
	"postern/internal/refusal"
	"postern/internal/units"
	"postern/relay/keyring"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
	"postern/relay/upstream/oauth"
)

func (a *app) upstreamCmd() *cobra.Command {
	return noun("upstream", "the smarthosts that mail is forwarded to",
		a.upstreamAddCmd(), a.upstreamSetCmd(), a.upstreamListCmd(), a.upstreamShowCmd(), a.upstreamPauseCmd(true), a.upstreamPauseCmd(false),
		a.upstreamTestCmd(), a.upstreamClassifyCmd(), a.replyCmd(), a.upstreamLoginCmd(), a.upstreamRemoveCmd())
}

// tlsModes are the values of --tls.
var tlsModes = []string{string(upstream.TLSNone), string(upstream.TLSOpportunistic), string(upstream.TLSRequire), string(upstream.TLSImplicit)}

// upstreamFlags are the settings of an upstream.
type upstreamFlags struct {
	host, mode, preset, username, caFile, expires string
	tlsName, mechanism, idle, inDoubt             string
	pins                                          []string
	origin                                        upstream.Origin
	from                                          secret.Source
	tokens                                        grantFlags
	connections, messages, recipients             int
	senders                                       []string
	rewriteSender, budget                         string
}

func (u *upstreamFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&u.preset, "preset", "", "provider: "+strings.Join(upstream.Presets(), ", "))
	f.StringVar(&u.host, "host", "", "`HOST[:PORT]` (default port 465 for implicit, 587 for require, else 25)")
	f.StringVar(&u.mode, "tls", "", "none, opportunistic, require (the default) or implicit")
	f.StringVar(&u.username, "username", "", "account name at the smarthost")
	u.from.Flags(cmd, "password")
	u.tokens.flags(cmd)
	f.StringVar(&u.expires, "secret-expires", "", "last valid `day` of the password or secret, such as 2027-01-31; you are warned before it (default: the certificate's)")
	f.StringVar(&u.caFile, "ca-file", "", "PEM `file` of the authorities to trust instead of the system's")
	f.StringVar(&u.tlsName, "tls-name", "", "`name` that the server's certificate must have (default: that of --host)")
	f.StringSliceVar(&u.pins, "tls-pin", nil, "`sha256:HASH` of the certificate's public key, instead of authority and name; again for the next key")
	f.StringVar(&u.mechanism, "auth-mechanism", "auto", "plain, login, xoauth2, oauthbearer or auto: what the server takes")
	f.StringVar(&u.origin.Source, "source", "", "our `address`, or IPv4,IPv6 (default: delivery.source)")
	f.StringVar(&u.origin.IP, "ip", "", "4, 6 or both (default: those of the source)")
	f.StringVar(&u.origin.Hello, "hello", "", "our `name` in EHLO (default: delivery.hello)")
	f.StringVar(&u.idle, "idle", "", "`time` that an unused connection is kept, such as 30s (default: delivery.idle_time)")
	_ = cmd.RegisterFlagCompletionFunc("auth-mechanism", cobra.FixedCompletions([]string{"auto", "plain", "login", "xoauth2", "oauthbearer"}, cobra.ShellCompDirectiveNoFileComp))
	f.IntVar(&u.connections, "connections", 0, "concurrent connections from each node (default: delivery.connections)")
	f.IntVar(&u.messages, "messages-per-connection", 0, "messages over one connection (default: delivery.messages_per_connection)")
	doubtFlag(cmd, &u.inDoubt)
	f.StringSliceVar(&u.senders, "senders", nil, "`patterns` of addresses that it may send as, like those of 'postern sender allow', or domains (default: all)")
	f.StringVar(&u.rewriteSender, "rewrite-sender", "", "`address` that sends instead, in the envelope and in From")
	f.IntVar(&u.recipients, "recipients-per-transaction", 0, "recipients of one transaction (default: delivery.recipients_per_transaction)")
	f.StringVar(&u.budget, "budget", "", "the most that all nodes together give it, such as `'messages 30/m, recipients 10000/d, sessions 3'`; or none")
}

// apply puts the flags that are given into an account, and what is not set then as the preset
// has it.
func (u *upstreamFlags) apply(cmd *cobra.Command, to *upstream.Account) error {
	given := cmd.Flags().Changed
	if given("preset") {
		to.Preset = u.preset
	}
	if given("tls") {
		to.SetTLS(upstream.TLSMode(u.mode))
	}
	if given("host") {
		if err := splitHost(u.host, to); err != nil {
			return err
		}
	}
	if given("username") {
		to.Username = u.username
	}
	if given("ca-file") {
		to.CA = ""
		if u.caFile != "" {
			pem, err := os.ReadFile(u.caFile)
			if err != nil {
				return fmt.Errorf("--ca-file: %w", err)
			}
			if to.CA = string(pem); to.CA == "" {
				return refusal.Invalid("--ca-file: %s is empty", u.caFile)
			}
		}
	}
	if given("senders") {
		var err error
		if to.Senders, err = upstream.ParseSenders(u.senders); err != nil {
			return fmt.Errorf("--senders: %w", err)
		}
	}
	if given("rewrite-sender") {
		to.RewriteSender = u.rewriteSender
	}
	if given("secret-expires") {
		if day, err := time.Parse(time.DateOnly, u.expires); err == nil && time.Now().UTC().After(day.AddDate(0, 0, 1)) {
			return usagef("--secret-expires: %s is over: give the last day on which the secret is valid", u.expires)
		}
		to.SecretExpires = u.expires
	}
	if given("budget") {
		to.Budget = u.budget
	}
	if given("tls-pin") {
		pins, err := upstream.PinsFrom(u.pins)
		if err != nil {
			return err
		}
		to.TLSPins = pins
	}
	if given("auth-mechanism") {
		to.Mechanism = strings.TrimPrefix(strings.ToUpper(u.mechanism), "AUTO")
	}
	if given("idle") {
		if err := u.setIdle(to); err != nil {
			return err
		}
	}
	for name, value := range map[string]struct{ from, to *string }{
		"tls-name": {&u.tlsName, &to.TLSName}, "source": {&u.origin.Source, &to.Source}, "ip": {&u.origin.IP, &to.IP}, "hello": {&u.origin.Hello, &to.Hello},
		"in-doubt": {&u.inDoubt, &to.InDoubt},
	} {
		if given(name) {
			*value.to = *value.from
		}
	}
	for name, value := range map[string]struct{ from, to *int }{
		"connections": {&u.connections, &to.MaxConnections}, "messages-per-connection": {&u.messages, &to.MaxMessages},
		"recipients-per-transaction": {&u.recipients, &to.MaxRecipients},
	} {
		if given(name) {
			*value.to = *value.from
		}
	}
	return to.Fill()
}

// setIdle puts --idle, in whole seconds, into an account.
func (u *upstreamFlags) setIdle(to *upstream.Account) error {
	to.IdleSeconds = 0
	if u.idle == "" || u.idle == "0" {
		return nil
	}
	span, err := units.ParseSpan(u.idle)
	if err != nil || span < time.Second || span%time.Second != 0 {
		return usagef("--idle: %q is not a time of whole seconds, such as 30s", u.idle)
	}
	to.IdleSeconds = int(span / time.Second)
	return nil
}

// proof reads what the account is to be proved by, if the flags say where, and returns what
// puts it there.
func (u *upstreamFlags) proof(a *app) (put func(*upstream.Account) error, err error) {
	switch {
	case u.from.Given():
		password, err := a.readSecret(&u.from)
		return func(to *upstream.Account) error {
			to.Password, to.Grant = password, oauth.Grant{}
			if u.expires == "" {
				to.SecretExpires = "" // that was the former one's
			}
			return nil
		}, err
	case u.tokens.given():
		grant, err := u.tokens.read(a)
		return func(to *upstream.Account) error {
			to.Password, to.Grant = "", grant
			if u.expires == "" {
				to.SecretExpires = ""
				if ends := grant.CertificateExpires(); !ends.IsZero() {
					to.SecretExpires = ends.UTC().Format(time.DateOnly)
				}
			}
			return nil
		}, err
	}
	return func(*upstream.Account) error { return nil }, nil
}

func (a *app) upstreamAddCmd() *cobra.Command {
	var flags upstreamFlags
	var ifMissing bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a smarthost",
		Long: `Adds a smarthost under a name that routes refer to.

--preset says which provider it is: its host, port, TLS mode and limits are used where no
flag sets another, and its replies are known ('postern upstream reply list NAME').

--tls says how the connection is protected:
  none           never
  opportunistic  STARTTLS when it is offered, whatever the certificate
  require        STARTTLS with a verified certificate, or the mail waits
  implicit       TLS from the start with a verified certificate, or the mail waits

The certificate must have the host's name, or --tls-name, from a known authority or
one of --ca-file. With --tls-pin it must have one of the keys given, whoever certifies
it and whatever its name and dates are.

--source is an address of this machine, or of each node's: mail waits at a node without it.

--budget is the most that all nodes together give it: messages and recipients in a window
of s, m, h or d, which rolls unless a day begins at midnight in a zone
(10000/d@Europe/Berlin), and sessions, which are connections. Mail over it takes the next
way of its route, or waits for its turn; 'postern upstream show' shows what is used.

An account (--username with a password) needs require or implicit. Its
password is sealed with the key in secret_key_file before it is stored. With
--oauth it uses access tokens from Microsoft or Google instead of a password.

Mail whose sender is not among --senders goes another way of its route. With
--rewrite-sender the address takes the place of the sender in the envelope and of the
address in From, whose name stays. Replies still go to the author: Reply-To gets the former
From unless there is one, and Sender is removed. Bounces from later servers go to the new
address. The null sender of notices stays.

--in-doubt is the policy for mail that may have been delivered, because the connection
broke before the smarthost confirmed it. A policy of the mail's user goes before it:
` + doubtPoliciesHelp[1:],
		Example: `  postern upstream add out --host smtp.example.net:587 --tls require
  postern upstream add m365 --preset m365 --username relay@example.com --password-stdin <password.txt
  postern upstream add m365 --preset m365 --username relay@example.com --oauth client-credentials --tenant example.com --client-id ID --client-secret-stdin <secret.txt
  postern upstream add ses --preset ses --host email-smtp.eu-central-1.amazonaws.com --username AKIA1 --password-stdin <secret.txt`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			up := upstream.Account{Name: args[0]}
			if flags.host == "" && flags.preset == "" {
				return usagef("'%s' needs --host or --preset", cmd.CommandPath())
			}
			if err := flags.apply(cmd, &up); err != nil {
				return invalidUse(err)
			}
			if (up.Username != "") != (flags.from.Given() || flags.tokens.given()) {
				return usagef("--username and --password-stdin, --password-file or --oauth go together")
			}
			put, err := flags.proof(a)
			if err == nil {
				err = put(&up)
			}
			if err != nil {
				return err
			}
			err = a.addUpstream(cmd.Context(), up)
			if ifMissing && errors.Is(err, refusal.ErrExists) {
				return a.thereAlready("upstream", up.Name)
			}
			return err
		},
	}
	flags.flags(cmd)
	cmd.Flags().BoolVar(&ifMissing, "if-missing", false, ifMissingUsage)
	return cmd
}

// invalidUse marks what cannot be stored as wrong use.
func invalidUse(err error) error {
	if errors.Is(err, refusal.ErrInvalid) {
		return usageError{err.Error()}
	}
	return err
}

// splitHost takes HOST, HOST:PORT, [IPv6]:PORT or a bare IPv6 address. Without a port it leaves
// that of the account.
func splitHost(host string, up *upstream.Account) error {
	if strings.Contains(host, "://") {
		return usagef("--host: %q is a URL: write HOST[:PORT]", host)
	}
	up.Host = host
	if inner, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inner, "]") {
		up.Host = strings.TrimSuffix(inner, "]")
	}
	if h, p, err := net.SplitHostPort(host); err == nil {
		port, err := strconv.Atoi(p)
		if err != nil {
			return usagef("--host: port %q is not a number", p)
		}
		if port == 0 {
			return usagef("--host: port 0 is not between 1 and 65535")
		}
		up.Host, up.Port = h, port
	}
	return nil
}

func (a *app) addUpstream(ctx context.Context, up upstream.Account) error {
	if err := up.Validate(); err != nil {
		return usageError{err.Error()}
	}
	return a.withUpstreams(ctx, up.Username != "", func(ctx context.Context, _ *accounts, store *upstream.Store) error {
		if err := store.Add(ctx, up); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "added upstream %s\n", upstreamText(up))
		a.hintLogin(up)
		return err
	})
}

// withUpstreams runs do with the store of accounts, which has the key only if it is needed.
func (a *app) withUpstreams(ctx context.Context, key bool, do func(ctx context.Context, users *accounts, store *upstream.Store) error) error {
	cfg, _, err := a.source.Load()
	if err != nil {
		return err
	}
	return a.withUsers(ctx, func(ctx context.Context, users *accounts) error {
		var sealer *seal.Sealer
		if key {
			if sealer, err = a.source.Sealer(cfg); err != nil {
				return err
			}
			if err := keyring.Follow(ctx, users.pool, sealer); err != nil {
				return err
			}
		}
		return do(ctx, users, users.upstreams(sealer))
	})
}

func upstreamText(up upstream.Account) string {
	return fmt.Sprintf("%s: %s, TLS %s", up.Name, net.JoinHostPort(up.Host, strconv.Itoa(up.Port)), up.TLS)
}

func (a *app) upstreamSetCmd() *cobra.Command {
	var flags upstreamFlags
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "change a smarthost's settings",
		Long: `Changes the settings whose flags are given, as 'postern upstream add' describes them; all
nodes follow within two seconds, and mail that waits uses them at its next attempt. A smarthost
that all nodes leave alone is probed then. 0 and '' stand for the default, which is the preset's
if it has one.

A new --username also needs its password, or --oauth with the flags that go with it.`,
		Example: `  postern upstream set out --password-stdin <password.txt
  postern upstream set out --preset google --connections 2`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 {
				return usagef("'%s' needs a flag that says what to change", cmd.CommandPath())
			}
			put, err := flags.proof(a)
			if err != nil {
				return err
			}
			return a.withUpstreams(cmd.Context(), flags.from.Given() || flags.tokens.given(), func(ctx context.Context, users *accounts, store *upstream.Store) error {
				up, err := store.Change(ctx, args[0], func(up *upstream.Account) error {
					if err := flags.apply(cmd, up); err != nil {
						return err
					}
					return put(up)
				})
				if err != nil {
					return invalidUse(err)
				}
				fmt.Fprintf(a.stdout, "changed upstream %s\n", upstreamText(up))
				if flags.tokens.given() {
					a.hintLogin(up)
				}
				if cmd.Flags().Changed("senders") || cmd.Flags().Changed("budget") {
					if err := a.retryWaiting(ctx, users); err != nil {
						return err
					}
				}
				// A probe that succeeds lets its mail go: by then the nodes know of the change.
				_, err = a.probeOpen(ctx, users, args[0], route.TableAge+brief)
				return err
			})
		},
	}
	flags.flags(cmd)
	return cmd
}

func (a *app) upstreamListCmd() *cobra.Command {
	return listing[listedUpstream]{
		head: []string{"NAME", "HOST", "TLS", "ACCOUNT", "CONNECTIONS", "PRESET", "STATE"},
		row: func(u listedUpstream) []string {
			return []string{u.Name, net.JoinHostPort(u.Host, strconv.Itoa(u.Port)), string(u.TLS), screen.OrDash(u.Username),
				orDefault(u.MaxConnections), screen.OrDash(u.Preset), u.state()}
		},
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]listedUpstream, error) {
			list, err := users.upstreams(nil).List(ctx)
			if err != nil {
				return nil, err
			}
			breakers, err := breaker.List(ctx, users.pool)
			return screen.Each(list, func(u upstream.Listed) listedUpstream { return listedUpstream{u, breakers.Of(u.Name)} }), err
		},
	}.command(a, &cobra.Command{Use: "list", Short: "list the smarthosts", Args: noArguments})
}

// listedUpstream is an upstream with its breaker.
type listedUpstream struct {
	upstream.Listed
	Breaker breaker.State `json:"breaker"`
}

func (u *listedUpstream) state() string {
	switch {
	case u.PausedAt != nil:
		return "paused since " + screen.LocalTime(*u.PausedAt)
	case u.Breaker.Open:
		return u.Breaker.Phase + " since " + screen.LocalTime(u.Breaker.Since)
	}
	return "active"
}

// upstreamView is an upstream as 'upstream show --json' prints it.
type upstreamView struct {
	listedUpstream
	Used    []budget.Usage `json:"used,omitempty"` // one, if it has a budget
	Replies []upstream.Row `json:"replies"`
}

func (a *app) upstreamShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "show a smarthost's settings, budget, and what its replies mean",
		Long: `Shows the settings of a smarthost, and why all nodes leave it alone, if they do. Of its
budget it shows what is used (with what nodes have leased), what is left, when more is
free, and how many recipients wait for it. Then comes the table by which its replies are
judged, as 'postern upstream reply list' shows it.`,
		Args: one("name", "the upstream's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			store := users.upstreams(nil)
			listed, err := store.Named(ctx, args[0])
			if err != nil {
				return err
			}
			breakers, err := breaker.List(ctx, users.pool)
			if err != nil {
				return err
			}
			u := listedUpstream{listed, breakers.Of(args[0])}
			replies, err := store.Replies(ctx, args[0])
			if err != nil {
				return err
			}
			used, err := budget.Read(ctx, users.pool, map[string]string{u.Name: u.Budget})
			if err != nil {
				return err
			}
			if asJSON {
				return screen.JSON(a.stdout, upstreamView{u, used, replies.Rows()})
			}
			if err := a.printUpstream(u); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout)
			for _, u := range used {
				if err := a.printBudget(u); err != nil {
					return err
				}
				fmt.Fprintln(a.stdout)
			}
			t := screen.TableOf(replyHead, replyRow, replies.Rows())
			return t.Print(a.stdout)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printUpstream(u listedUpstream) error {
	t := screen.Table{Head: []string{"UPSTREAM", u.Name}}
	t.Add("host", net.JoinHostPort(u.Host, strconv.Itoa(u.Port)))
	t.Add("TLS", string(u.TLS))
	if u.CustomCA {
		t.Add("CA", "its own")
	}
	if u.TLSName != "" {
		t.Add("TLS name", u.TLSName)
	}
	if u.TLSPins != "" {
		for pin := range strings.SplitSeq(u.TLSPins, ",") {
			t.Add("TLS pin", pin)
		}
	}
	t.Add("account", screen.OrDash(u.Username))
	if u.OAuth != "" {
		t.Add("tokens by", string(u.OAuth))
	}
	if u.Username != "" {
		t.Add("mechanism", cmp.Or(strings.ToLower(u.Mechanism), "auto"))
	}
	if u.SecretExpires != "" {
		t.Add("secret expires", u.SecretExpires)
	}
	t.Add("preset", screen.OrDash(u.Preset))
	t.Add("connections", orDefault(u.MaxConnections))
	t.Add("messages per connection", orDefault(u.MaxMessages))
	t.Add("recipients per transaction", orDefault(u.MaxRecipients))
	idle := "default"
	if u.IdleSeconds > 0 {
		idle = units.FormatSpan(time.Duration(u.IdleSeconds) * time.Second)
	}
	t.Add("idle time", idle)
	t.Add("source", cmp.Or(u.Source, "default"))
	t.Add("IP", cmp.Or(u.IP, "default"))
	t.Add("EHLO name", cmp.Or(u.Hello, "default"))
	t.Add("senders", screen.OrDash(strings.Join(u.Senders, ", ")))
	if u.RewriteSender != "" {
		t.Add("sends as", u.RewriteSender)
	}
	t.Add("budget", screen.OrDash(u.Budget))
	t.Add("in doubt", cmp.Or(u.InDoubt, auth.DoubtPolicies()[0]))
	t.Add("state", u.state())
	if b := &u.Breaker; b.Open {
		t.Add("opened by node", b.Node)
		t.Add("cause", b.Why())
		t.Add("next probe", explain.NextProbe(b))
	}
	t.Add("added", screen.LocalTime(u.CreatedAt))
	return t.Print(a.stdout)
}

func (a *app) upstreamPauseCmd(pause bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "resume NAME",
		Short: "send mail to a paused smarthost again, or try one that failed",
		Long: `Ends a pause. The mail that waits for it is due immediately. A smarthost that all nodes
leave alone is probed by a running server within seconds, and again soon if that fails;
when a probe gets through, its mail goes.`,
		Args: one("name", "the upstream's name"),
	}
	if pause {
		cmd.Use, cmd.Short = "pause NAME", "let the mail for a smarthost wait"
		cmd.Long = `Lets the mail for a smarthost wait until 'postern upstream resume': it uses no attempts,
its lifetime keeps running, and 'postern queue show' says why it waits. All nodes follow
within two seconds; mail that a node has started or queued by then is still sent.`
	}
	cmd.RunE = a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
		changed, err := users.upstreams(nil).Pause(ctx, args[0], pause)
		if err != nil {
			return err
		}
		if !pause {
			if open, err := a.probeOpen(ctx, users, args[0], 0); err != nil || open && !changed {
				return err
			}
		}
		said := map[bool]string{true: "paused", false: "resumed"}[pause]
		if !changed {
			_, err = fmt.Fprintf(a.stdout, "upstream %s was %s already; nothing is changed\n", args[0], said)
			return err
		}
		fmt.Fprintf(a.stdout, "%s upstream %s\n", said, args[0])
		if pause {
			return nil
		}
		return a.retryWaiting(ctx, users)
	})
	return cmd
}

// probeOpen has an upstream that all nodes leave alone probed after a time, and says so.
func (a *app) probeOpen(ctx context.Context, users *accounts, name string, after time.Duration) (open bool, err error) {
	all, err := breaker.List(ctx, users.pool)
	if err != nil || !all.Of(name).Open {
		return false, err
	}
	if err := pause(ctx, after); err != nil {
		return true, err
	}
	if _, err := breaker.Hurry(ctx, users.pool, name); err != nil {
		return true, err
	}
	fmt.Fprintf(a.stdout, "upstream %s is open: a running server probes it within seconds; 'postern upstream show %[1]s' has the result\n", name)
	return true, nil
}

func (a *app) upstreamRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a smarthost that no route uses",
		Args:  one("name", "the upstream's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			staying, err := users.queue().Staying(ctx, args[0])
			if err != nil {
				return err
			}
			if staying > 0 {
				return refusal.Invalid("%s, which may have delivered to them: list them with 'postern queue list --upstream %s --in-doubt', "+
					"and end the doubt with 'postern queue resolve'", changed(staying, "recipient", fmt.Sprintf("staying with upstream %q", args[0]), false), args[0])
			}
			if err := unrouted(ctx, users, args[0]); err != nil {
				return err
			}
			if err := users.upstreams(nil).Remove(ctx, args[0]); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "removed upstream %s\n", args[0])
			return err
		}),
	}
}

// unrouted refuses an upstream that routes name.
func unrouted(ctx context.Context, users *accounts, name string) error {
	rules, err := route.NewStore(users.pool).List(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for _, r := range rules {
		if slices.Contains(r.Via, name) {
			ids = append(ids, strconv.FormatInt(r.ID, 10))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return refusal.Invalid("upstream %q is used by a route: number %s of 'postern route list'; give that another upstream first, with 'postern route add --replace', or remove it", name, strings.Join(ids, ", "))
}

func orDefault(n int) string {
	if n == 0 {
		return "default"
	}
	return strconv.Itoa(n)
}
