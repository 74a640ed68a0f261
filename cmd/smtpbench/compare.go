package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"postern/internal/peers"
)

// compareFlags are the flags of compare.
type compareFlags struct {
	names     []string
	rounds    int
	relay     relayConfig
	beside    []string
	dir       string
	profile   string
	noPostfix bool
	asJSON    bool
}

func compareCommand() *cobra.Command {
	f := &compareFlags{}
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "measure Postern, and Postfix beside it when it can be had",
		Long: `Starts a private PostgreSQL server with full durability, Postern on it and, from
.cache/peers ('make peers'), a Postfix with the same job: STARTTLS and AUTH in, the
sink as the next hop. Each round sends the same load through all of them, one after the
other; the table has the medians of the rounds, and of the ratios of the first to each
of the others in the same round.

Everything runs in a folder that is removed at the end, on loopback addresses.
docs/benchmark.md says how to read the figures.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.names, "workload", nil, "`names` out of "+workloadNames()+" (default: burst, single, many, large)")
	flags.IntVar(&f.rounds, "rounds", 5, "how often each load is sent")
	flags.StringVar(&f.dir, "dir", ".cache", "`folder` for the servers' files, on the file system to measure")
	flags.StringVar(&f.profile, "profile", "", "existing `folder` for a CPU profile of Postern over the whole run")
	flags.BoolVar(&f.noPostfix, "no-postfix", false, "measure Postern alone")
	flags.StringArrayVar(&f.beside, "beside", nil, "measure Postern with other `flags` in place of Postfix, such as '--dkim both'; may be repeated")
	f.relay.flags(flags)
	flags.BoolVar(&f.asJSON, "json", false, "print every round as JSON")
	return cmd
}

// flags are those that one Postern of several can have for itself.
func (c *relayConfig) flags(flags *pflag.FlagSet) {
	flags.StringVar(&c.program, "postern", c.program, "the `program` to measure (default: postern beside smtpbench)")
	flags.StringToStringVar(&c.settings, "postgres", c.settings, "`setting=value` of PostgreSQL to try out; may be repeated")
	flags.BoolVar(&c.secret, "secret", c.secret, "log in to Postern with a generated secret instead of a password")
	flags.StringVar(&c.limits, "limit", c.limits, "messages over time that Postern holds the account to, such as `1000000/h,5000000/d`")
	flags.StringVar(&c.dkim, "dkim", c.dkim, "have Postern sign with these keys: rsa or both")
	flags.StringVar(&c.copies, "duplicates", c.copies, "`span` for which Postern recognises copies of a message, 0 to turn it off (default: Postern's)")
	flags.BoolVar(&c.events, "events", c.events, "have a program read the feed of events, and a webhook wait for failures")
}

func (f *compareFlags) run(ctx context.Context, stdout, stderr io.Writer) error {
	chosen, err := choose(f.names)
	if err != nil {
		return err
	}
	if f.rounds < 1 {
		return usagef("--rounds is at least 1")
	}
	l, err := newLab(f.dir)
	if err != nil {
		return err
	}
	defer l.close()
	contenders, err := f.start(ctx, l, stderr)
	for _, c := range contenders {
		defer c.close()
	}
	if err != nil {
		return err
	}
	var all []series
	for _, w := range chosen {
		s, err := f.measure(ctx, l, w, contenders, stderr)
		if err != nil {
			return err
		}
		all = append(all, s...)
	}
	if f.asJSON {
		err = printJSON(stdout, all)
	} else {
		err = printTable(stdout, all)
	}
	return errors.Join(err, judge(all))
}

// start starts the servers; those that run are returned with an error too.
func (f *compareFlags) start(ctx context.Context, l *lab, stderr io.Writer) ([]*contender, error) {
	if f.relay.program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find postern: %w", err)
		}
		f.relay.program = filepath.Join(filepath.Dir(self), "postern")
	}
	relay := f.relay
	if f.profile != "" {
		relay.profile = filepath.Join(f.profile, "postern.pprof")
	}
	postern, err := l.postern(ctx, relay)
	if err != nil {
		return nil, err
	}
	contenders := []*contender{postern}
	for i, text := range f.beside {
		other, err := f.other(ctx, l, i+1, text)
		if err != nil {
			return contenders, err
		}
		contenders = append(contenders, other)
	}
	if f.noPostfix || len(f.beside) > 0 {
		return contenders, nil
	}
	postfix, err := l.postfix(ctx, false)
	if err != nil {
		fmt.Fprintf(stderr, "smtpbench: measuring Postern alone: %v\n", withAdvice(err))
		return contenders, nil
	}
	return append(contenders, postfix), nil
}

// other starts the n-th Postern beside the first, with flags of its own, in a folder of its own.
func (f *compareFlags) other(ctx context.Context, l *lab, n int, text string) (*contender, error) {
	relay := f.relay
	relay.settings = maps.Clone(relay.settings)
	flags := pflag.NewFlagSet("--beside", pflag.ContinueOnError)
	relay.flags(flags)
	if err := flags.Parse(strings.Fields(text)); err != nil {
		return nil, usagef("--beside %q: %v", text, err)
	}
	own := *l
	own.dir = filepath.Join(l.dir, strconv.Itoa(n))
	if err := os.Mkdir(own.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for %s: %w", text, err)
	}
	c, err := own.postern(ctx, relay)
	if err != nil {
		return nil, err
	}
	c.name = "postern " + text
	return c, nil
}

// withAdvice says how to get Postfix.
func withAdvice(err error) error {
	if errors.Is(err, peers.ErrUnavailable) {
		return fmt.Errorf("%w; Postfix comes from Debian's packages, on a machine with apt-get and dpkg-deb", err)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w; run `make bench` as root to have Postfix beside it", err)
	}
	return err
}

// A series is the rounds of one workload with one server.
type series struct {
	Workload string  `json:"workload"`
	Server   string  `json:"server"`
	Rounds   []round `json:"rounds"`
	what     string
	shape    workload
}

// measure alternates between the servers, each time in the other order, so that what else the machine
// does hits all of them.
func (f *compareFlags) measure(ctx context.Context, l *lab, w workload, contenders []*contender, stderr io.Writer) ([]series, error) {
	l.exchange.slowDot.Store(int64(w.slowDot))
	if w.untuned && len(contenders) > 1 && len(f.beside) == 0 {
		untuned, err := l.postfix(ctx, true)
		if err != nil {
			return nil, fmt.Errorf("start Postfix with its defaults: %w", err)
		}
		defer untuned.close()
		contenders = []*contender{contenders[0], untuned}
	}
	all := make([]series, len(contenders))
	for i, c := range contenders {
		all[i] = series{Workload: w.name, Server: c.name, what: w.what, shape: w}
	}
	for n := range f.rounds {
		for i := range contenders {
			if n%2 == 1 {
				i = len(contenders) - 1 - i
			}
			c := contenders[i]
			r, err := c.round(ctx, l.exchange, w)
			if err != nil {
				return nil, fmt.Errorf("%s with %s: %w", w.name, c.name, err)
			}
			fmt.Fprintf(stderr, "%s %d/%d %s: %.4g messages/s, %.3f ms CPU each and %.3f for load and sink, %s\n",
				w.name, n+1, f.rounds, c.name, r.Rate, r.cpu(), r.Own, r.Tally)
			printProblems(stderr, r.Problems)
			all[i].Rounds = append(all[i].Rounds, r)
		}
	}
	return all, nil
}

// A round is the passes of a workload, added up.
type round struct {
	result
	passes int
}

// cpu is the processor time of a message in all parts of the server, in ms.
func (r round) cpu() float64 {
	sum := 0.0
	for _, ms := range r.CPU {
		sum += ms
	}
	return sum
}

// round measures one round. The first one of a workload is preceded by one that
// does not count: processes are made, caches filled, files grown, the password is verified.
func (c *contender) round(ctx context.Context, at *exchange, w workload) (round, error) {
	if c.warm != w.name {
		for range w.passes {
			r, err := w.plan().run(ctx, c.target, at, c.meters)
			if err != nil {
				return round{}, err
			}
			if !r.Sound {
				return round{}, fmt.Errorf("%s: the round that does not count was not sound either: %v", c.name, r.Problems)
			}
		}
		c.warm = w.name
	}
	if c.pid != 0 {
		if err := forgetPeak(c.pid); err != nil {
			return round{}, err
		}
	}
	var sum round
	for range w.passes {
		r, err := w.plan().run(ctx, c.target, at, c.meters)
		if err != nil {
			return round{}, err
		}
		sum.add(r)
	}
	var err error
	if c.pid != 0 {
		sum.Peak, err = peakMemory(c.pid)
	}
	return sum, err
}

// add adds a pass. Latencies are those of the worst pass.
func (r *round) add(p result) {
	if r.passes++; r.passes == 1 {
		r.result = p
		return
	}
	a, b := float64(r.Tally.Accepted), float64(p.Tally.Accepted)
	for name := range r.CPU {
		r.CPU[name] = (r.CPU[name]*a + p.CPU[name]*b) / max(1, a+b)
	}
	r.Own = (r.Own*a + p.Own*b) / max(1, a+b)
	r.Messages += p.Messages
	r.Accept += p.Accept
	r.EndToEnd += p.EndToEnd
	r.P50, r.P99, r.Max = max(r.P50, p.P50), max(r.P99, p.P99), max(r.Max, p.Max)
	r.Sound = r.Sound && p.Sound
	r.Tally.add(p.Tally)
	for text, n := range p.Problems {
		r.Problems[text] += n
	}
	if r.Accept > 0 && r.EndToEnd > 0 {
		r.AcceptRate = float64(r.Tally.Accepted) / float64(r.Accept)
		r.Rate = float64(r.Tally.Arrived) / float64(r.Recipients) / float64(r.EndToEnd)
	}
}

func (t *tally) add(u tally) {
	t.Accepted += u.Accepted
	t.Refused += u.Refused
	t.Arrived += u.Arrived
	t.Lost += u.Lost
	t.Doubled += u.Doubled
	t.Altered += u.Altered
	t.Envelope += u.Envelope
	t.Refuted += u.Refuted
}

// judge is an error when a figure is not to be trusted.
func judge(all []series) error {
	for _, s := range all {
		for _, r := range s.Rounds {
			if !r.Sound {
				return fmt.Errorf("%s with %s: %w", s.Workload, s.Server, errUnsound)
			}
		}
	}
	return nil
}
