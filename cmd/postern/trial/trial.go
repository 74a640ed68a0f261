package trial

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/cmd/postern/check"
	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/relay/connect"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// Config says what is tried, and how it is shown.
type Config struct {
	Source   config.Source // of this machine's configuration and key
	Pool     *pgxpool.Pool
	Upstream string        // its name
	Mail     connect.Trial // the sender and the recipient to name; Run sets its Tell
	Most     time.Duration // that the whole trial may take

	// Out is where each step is printed when it is over; nil: nowhere.
	Out io.Writer
	// Title describes the upstream above the steps.
	Title func(upstream.Account, upstream.Listed) string
}

// Result is a trial for programs.
type Result struct {
	Upstream string `json:"upstream"`
	OK       bool   `json:"ok"`
	Steps    []step `json:"steps"`
}

type step struct {
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

// trial is a run on its way.
type trial struct {
	Config
	account upstream.Account
	result  *Result
}

// Run tries the upstream. The result is nil when there was nothing to try; a trial that
// failed has both, and the error names the step.
func Run(ctx context.Context, c Config) (*Result, error) {
	cfg, _, err := c.Source.Load()
	if err != nil {
		return nil, err
	}
	sealer, keyErr := c.Source.PresentSealer(cfg)
	store := upstream.NewStore(c.Pool, sealer)
	listed, err := store.Named(ctx, c.Upstream)
	if err != nil {
		return nil, err
	}
	t := &trial{Config: c, result: &Result{Upstream: c.Upstream, Steps: []step{}}}
	if t.account, err = store.Open(ctx, c.Upstream); err != nil {
		return nil, errors.Join(keyErr, err)
	}
	dialling, err := check.Dialling(c.Source, c.Most/3)
	if err != nil {
		return nil, err
	}
	sharing := check.Sharing{Pool: c.Pool, Sealer: sealer, Command: "postern upstream test", Most: c.Most, Patience: c.Most / 3}
	end, err := sharing.Share(ctx, &dialling, &cfg.OAuth, []upstream.Account{t.account})
	if err != nil {
		return nil, err
	}
	defer end()
	t.print("%s\n\n", c.Title(t.account, listed))
	return t.result, t.converse(ctx, connect.NewProber(dialling))
}

// converse goes through the steps.
func (t *trial) converse(ctx context.Context, prober *connect.Prober) error {
	ctx, cancel := context.WithTimeout(ctx, t.Most)
	defer cancel()
	t.Mail.Tell = func(s connect.Step) { t.tell(ctx, s) }
	probe := prober.Upstream(ctx, &t.account, t.Mail)
	if probe.Err != nil {
		if !slices.ContainsFunc(t.result.Steps, func(s step) bool { return s.Status == "failed" }) {
			t.tell(ctx, probe.Step) // before the first step, as a host that is this server
		}
		switch probe.Stage {
		case connect.StageBudget:
			return fmt.Errorf("upstream %s was not tried: all sessions of its budget are in use", t.Upstream)
		case smtp.StageMail:
			if upstream.IsSender(probe.Err) {
				return probe.Err
			}
			if as := t.account.RewriteSender; as != "" && !t.Mail.From.IsNull() {
				return fmt.Errorf("upstream %s refuses the sender %s of its --rewrite-sender", t.Upstream, as)
			}
			return fmt.Errorf("upstream %s refuses the sender of --from", t.Upstream)
		case smtp.StageRcpt:
			return fmt.Errorf("upstream %s refuses the recipient of --to", t.Upstream)
		}
		return fmt.Errorf("the test failed at %s: no mail can be sent by upstream %s from here", stepName(probe.Stage), t.Upstream)
	}
	t.result.OK = true
	t.print("\nmail can be sent by upstream %s from here\n", t.Upstream)
	return nil
}

// print prints to Out if there is one.
func (t *trial) print(format string, args ...any) {
	if t.Out != nil {
		fmt.Fprintf(t.Out, format, args...)
	}
}

// tokenEnds is when the access token of the account ends, zero if that is not known.
func (t *trial) tokenEnds(ctx context.Context) time.Time {
	states, err := oauth.States(ctx, t.Pool, []oauth.Account{t.account.OAuth()})
	if err != nil || len(states) == 0 {
		return time.Time{}
	}
	return states[0].ExpiresAt
}

// stepName is a stage as it is shown: TLS may begin without STARTTLS.
func stepName(s smtp.Stage) string {
	if s == smtp.StageTLS {
		return "tls"
	}
	return string(s)
}

// tell shows a step.
func (t *trial) tell(ctx context.Context, s connect.Step) {
	v := step{Status: "ok", Step: stepName(s.Stage), Millis: s.Took.Milliseconds(), Text: s.Text}
	if s.Addr.IsValid() {
		v.Address = s.Addr.String()
	}
	if !s.Reply.IsZero() {
		v.Reply = screen.OneLine(s.Reply.String())
	}
	switch {
	case s.Err != nil:
		v.Status, v.Text, v.Todo = "failed", screen.OneLine(s.Err.Error()), check.Hint(&t.account, s)
		if fault := (*oauth.Fault)(nil); errors.As(s.Err, &fault) && fault.Again > 0 {
			v.Text += "; that was the last answer, the authority is not asked again for " + fault.Again.Truncate(time.Second).String()
		}
		if s.Stage == smtp.StageMail && s.Text != "" {
			v.Text = s.Text + ": " + v.Text
		}
		if refused := (*tls.CertificateVerificationError)(nil); errors.As(s.Err, &refused) && len(refused.UnverifiedCertificates) > 0 {
			v.TLS = shown(refused.UnverifiedCertificates[0])
		}
	case s.Stage == smtp.StageMail && v.Text != "":
		v.Text += ": " + v.Reply
	case s.State != nil:
		v.TLS = t.session(s.State)
		v.Text = v.TLS.Version + " " + v.TLS.Cipher + ", verified by " + cmp.Or(v.TLS.VerifiedBy, "nobody")
	case s.Stage == connect.StageToken:
		v.Text = "received"
		if end := t.tokenEnds(ctx); !end.IsZero() {
			v.Text = "good until " + screen.LocalTime(end)
		}
	case s.Stage == smtp.StageAuth:
		v.Text += ": " + v.Reply
	case s.Stage == smtp.StageHello:
		_, offers, _ := strings.Cut(s.Reply.Text, "\n")
		v.Text = "offers " + screen.OrDash(strings.ReplaceAll(offers, "\n", ", "))
	}
	t.result.Steps = append(t.result.Steps, v)
	t.printStep(v)
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
func (t *trial) printStep(v step) {
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
			t.print("%-6s  %-8s  %6d ms  %s\n", v.Status, v.Step, v.Millis, screen.Printable(line))
		} else {
			t.print("%29s%s\n", "", screen.Printable(line))
		}
	}
}
