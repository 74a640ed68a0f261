package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/check"
	"postern/cmd/postern/screen"
	"postern/internal/units"
	"postern/relay/delivery"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

func (a *app) upstreamTestCmd() *cobra.Command {
	var from, to, timeout string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test NAME",
		Short: "try a smarthost step by step, without sending mail",
		Long: `Converses with a smarthost from this machine as its nodes do: DNS, connection, TLS,
access token, login. With --from and --to it names this sender and recipient too, and
takes that back; no message is sent. Each step is shown with its time, and with what
to do where it fails. A paused smarthost is tried as well. The exit status is 1 when
mail could not be sent.`,
		Example: `  postern upstream test m365
  postern upstream test m365 --from alice@example.com --to bob@example.net`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t := &trial{app: a, quiet: asJSON, view: trialView{Upstream: args[0], Steps: []stepView{}}}
			if err := t.read(cmd, from, to, timeout); err != nil {
				return err
			}
			err := a.withPool(cmd.Context(), t.run)
			if asJSON && t.over {
				if err := screen.JSON(a.stdout, t.view); err != nil {
					return err
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "name this `sender` too; with --to")
	cmd.Flags().StringVar(&to, "to", "", "name this `recipient` too; with --from")
	cmd.Flags().StringVar(&timeout, "timeout", "30s", "`time` that the whole test may take")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// trial is one run of 'postern upstream test'.
type trial struct {
	app     *app
	quiet   bool // nothing is printed on the way
	most    time.Duration
	mail    delivery.Trial
	account upstream.Account
	until   func(context.Context) time.Time // the end of its token
	over    bool
	view    trialView
}

// trialView is a trial for programs.
type trialView struct {
	Upstream string     `json:"upstream"`
	OK       bool       `json:"ok"`
	Steps    []stepView `json:"steps"`
}

type stepView struct {
	Status  string   `json:"status"` // ok or failed
	Step    string   `json:"step"`
	Millis  int64    `json:"milliseconds"`
	Address string   `json:"address,omitempty"`
	Reply   string   `json:"reply,omitempty"`
	Text    string   `json:"text,omitempty"` // what came of it, or what went wrong
	Todo    string   `json:"todo,omitempty"`
	TLS     *tlsView `json:"tls,omitempty"`
}

// tlsView is a TLS session, or what is known of one that failed.
type tlsView struct {
	Version    string    `json:"version,omitempty"`
	Cipher     string    `json:"cipher,omitempty"`
	VerifiedBy string    `json:"verified_by,omitempty"` // "" for by nobody
	Names      []string  `json:"names,omitempty"`
	Issuer     string    `json:"issuer"`
	Until      time.Time `json:"until"`
	Pin        string    `json:"pin"`
}

func (t *trial) read(cmd *cobra.Command, from, to, timeout string) (err error) {
	if t.most, err = units.ParseSpan(timeout); err != nil || t.most < time.Second || t.most > time.Hour {
		return usagef("--timeout: %q is not a time between 1s and 1h", timeout)
	}
	given := cmd.Flags().Changed
	if given("from") != given("to") {
		return usagef("--from and --to go together")
	}
	if t.mail.Rehearse = given("to"); !t.mail.Rehearse {
		return nil
	}
	if from != "" { // else the null sender of notices
		if t.mail.From, err = smtp.ParseAddress(from); err != nil {
			return usagef("--from: %v", err)
		}
	}
	if t.mail.To, err = smtp.ParseRecipient(to); err != nil {
		return usagef("--to: %v", err)
	}
	return nil
}

func (t *trial) run(ctx context.Context, pool *pgxpool.Pool) error {
	cfg, _, err := t.app.source.Load()
	if err != nil {
		return err
	}
	sealer, keyErr := t.app.source.PresentSealer(cfg)
	store := upstream.NewStore(pool, sealer)
	listed, err := store.Named(ctx, t.view.Upstream)
	if err != nil {
		return err
	}
	if t.account, err = store.Open(ctx, listed.Name); err != nil {
		return errors.Join(keyErr, err)
	}
	var tokens delivery.Tokens
	if t.account.Grant.Kind != "" {
		by, err := cfg.OAuth.Config()
		if err != nil {
			return err
		}
		by.DB, by.Sealer, by.Node = pool, sealer, "postern upstream test"
		shared := oauth.New(by)
		defer func() { _ = shared.Close(context.WithoutCancel(ctx)) }() // what it asked for is for the nodes as well
		tokens = shared
	}
	t.until = func(ctx context.Context) (end time.Time) {
		if states, err := oauth.States(ctx, pool, []oauth.Account{t.account.OAuth()}); err == nil && len(states) > 0 {
			end = states[0].ExpiresAt
		}
		return end
	}
	prober, err := check.Prober(t.app.source, tokens, t.most/3)
	if err != nil {
		return err
	}
	if !t.quiet {
		fmt.Fprintf(t.app.stdout, "%s, account %s, %s\n\n", upstreamText(t.account), screen.OrDash(t.account.Username), upstreamState(listed))
	}
	ctx, cancel := context.WithTimeout(ctx, t.most)
	defer cancel()
	t.mail.Tell = func(s delivery.Step) { t.tell(ctx, s) }
	probe := prober.Upstream(ctx, &t.account, t.mail)
	t.over, t.view.OK = true, probe.Err == nil
	if probe.Err != nil {
		return fmt.Errorf("the test failed at %s: no mail can be sent by upstream %s from here", stepName(probe.Stage), listed.Name)
	}
	if !t.quiet {
		fmt.Fprintf(t.app.stdout, "\nmail can be sent by upstream %s from here\n", listed.Name)
	}
	return nil
}

// stepName is a stage as it is shown: TLS may begin without STARTTLS.
func stepName(s smtp.Stage) string {
	if s == smtp.StageTLS {
		return "tls"
	}
	return string(s)
}

// tell shows a step.
func (t *trial) tell(ctx context.Context, s delivery.Step) {
	v := stepView{Status: "ok", Step: stepName(s.Stage), Millis: s.Took.Milliseconds(), Text: s.Text}
	if s.Addr.IsValid() {
		v.Address = s.Addr.String()
	}
	if !s.Reply.IsZero() {
		v.Reply = screen.OneLine(s.Reply.String())
	}
	switch {
	case s.Err != nil:
		v.Status, v.Text, v.Todo = "failed", screen.OneLine(s.Err.Error()), check.Hint(&t.account, s)
		if refused := (*tls.CertificateVerificationError)(nil); errors.As(s.Err, &refused) && len(refused.UnverifiedCertificates) > 0 {
			v.TLS = shown(refused.UnverifiedCertificates[0])
		}
	case s.State != nil:
		v.TLS = t.session(s.State)
		v.Text = v.TLS.Version + " " + v.TLS.Cipher + ", verified by " + cmp.Or(v.TLS.VerifiedBy, "nobody")
	case s.Stage == delivery.StageToken:
		v.Text = "good until " + screen.LocalTime(t.until(ctx))
	case s.Stage == smtp.StageAuth:
		v.Text += ": " + v.Reply
	case s.Stage == smtp.StageHello:
		_, offers, _ := strings.Cut(s.Reply.Text, "\n")
		v.Text = "offers " + screen.OrDash(strings.ReplaceAll(offers, "\n", ", "))
	}
	t.view.Steps = append(t.view.Steps, v)
	if !t.quiet {
		t.app.printStep(v)
	}
}

// session describes a TLS session.
func (t *trial) session(state *tls.ConnectionState) *tlsView {
	v := shown(state.PeerCertificates[0])
	v.Version, v.Cipher = tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite)
	switch chains := state.VerifiedChains; {
	case !t.account.Verified():
	case t.account.TLSPins != "":
		v.VerifiedBy = "its pin"
	case len(chains) > 0:
		root := chains[0][len(chains[0])-1]
		v.VerifiedBy = cmp.Or(root.Subject.CommonName, root.Subject.String())
	}
	return v
}

func shown(c *x509.Certificate) *tlsView {
	return &tlsView{Names: check.CertificateNames(c), Issuer: cmp.Or(c.Issuer.CommonName, c.Issuer.String()), Until: c.NotAfter.UTC(), Pin: upstream.Pin(c)}
}

// printStep prints a step, with further lines under its text.
func (a *app) printStep(v stepView) {
	lines := []string{cmp.Or(v.Text, v.Address, v.Reply)}
	if v.Text != "" && v.Status == "failed" && v.Address != "" && !strings.Contains(v.Text, v.Address) {
		lines[0] = v.Address + ": " + v.Text
	}
	if v.TLS != nil {
		lines = append(lines, fmt.Sprintf("certificate for %s until %s, by %s", screen.OrDash(screen.Few(v.TLS.Names)), screen.LocalTime(v.TLS.Until), v.TLS.Issuer),
			"key "+v.TLS.Pin)
	}
	if v.Todo != "" {
		lines = append(lines, "to do: "+v.Todo)
	}
	for i, line := range lines {
		if i == 0 {
			fmt.Fprintf(a.stdout, "%-6s  %-8s  %6d ms  %s\n", v.Status, v.Step, v.Millis, screen.Printable(line))
		} else {
			fmt.Fprintf(a.stdout, "%29s%s\n", "", screen.Printable(line))
		}
	}
}
