package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
)

// errUnsound ends a command whose figures are not to be trusted.
var errUnsound = errors.New("not everything was accepted, or not everything that was accepted arrived as it must")

// loadFlags are the flags of load.
type loadFlags struct {
	to, tls, user, password string
	passwordStdin           bool
	connections, messages   int
	size                    octets
	recipients              int
	from, domain            string
	reconnect               bool
	caFile                  string
	insecure                bool
	sink                    string
	noSink, asJSON          bool
	pids                    []int
}

// octets is a size such as 5KB or 10MB, in powers of 1024.
type octets int

func (o *octets) String() string { return strconv.Itoa(int(*o)) }
func (o *octets) Type() string   { return "size" }

func (o *octets) Set(text string) error {
	number, unit := strings.TrimRight(strings.ToUpper(text), "KMB"), 1
	switch strings.TrimSuffix(strings.ToUpper(text)[len(number):], "B") {
	case "":
	case "K":
		unit = 1 << 10
	case "M":
		unit = 1 << 20
	default:
		return errors.New("a size is a number with KB, MB or nothing")
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || n > 1<<30 {
		return errors.New("a size is a number with KB, MB or nothing")
	}
	*o = octets(n * unit)
	return nil
}

func loadCommand() *cobra.Command {
	f := &loadFlags{size: 5 << 10}
	cmd := &cobra.Command{
		Use:   "load --to HOST:PORT --user NAME",
		Short: "send mail into a server and verify it at the sink",
		Long: `Sends mail over TLS with AUTH PLAIN and takes it again at the sink, to which the
server must forward everything in clear. With --no-sink only the sending is
measured and nothing is verified.

--cpu-of measures processes with all their children: the server's and, for one
that keeps its queue in a database server, that one's too.`,
		Example: `  smtpbench load --to 127.0.0.1:5587 --user alice@example.com --password-stdin --ca cert.pem \
      --connections 20 --messages 100 --size 5KB --sink 127.0.0.1:2600 --cpu-of 4711,4712 <password.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.to, "to", "", "the server's `host:port`")
	flags.StringVar(&f.tls, "tls", "starttls", "starttls or implicit")
	flags.StringVar(&f.user, "user", "", "login `name`, also the sender's address")
	flags.StringVar(&f.password, "password", "", "its password")
	flags.BoolVar(&f.passwordStdin, "password-stdin", false, "read the password from standard input")
	flags.IntVar(&f.connections, "connections", 20, "concurrent connections")
	flags.IntVar(&f.messages, "messages", 100, "messages for each connection")
	flags.Var(&f.size, "size", "of each message, such as 5KB or 10MB")
	flags.IntVar(&f.recipients, "recipients", 1, "recipients of each message")
	flags.StringVar(&f.from, "from", "", "sender's `address`, if it is not the login name")
	flags.StringVar(&f.domain, "domain", "bench.example.net", "`domain` of the recipients")
	flags.BoolVar(&f.reconnect, "reconnect", false, "a new connection for each message, with TLS and AUTH")
	flags.StringVar(&f.caFile, "ca", "", "PEM `file` of the authorities to trust")
	flags.BoolVar(&f.insecure, "insecure", false, "trust any certificate")
	flags.StringVar(&f.sink, "sink", "127.0.0.1:2600", "`address` of the sink, where the server sends everything")
	flags.BoolVar(&f.noSink, "no-sink", false, "only send")
	flags.IntSliceVar(&f.pids, "cpu-of", nil, "process `ids` to measure, with their children")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

func (f *loadFlags) run(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	to, err := f.target(cmd.InOrStdin())
	if err != nil {
		return err
	}
	var at *exchange
	if !f.noSink {
		if at, err = newExchange(f.sink); err != nil {
			return err
		}
		defer at.sink.Close()
	}
	var meters []meter
	for _, pid := range f.pids {
		meters = append(meters, treeMeter("process "+strconv.Itoa(pid), pid))
	}
	r, err := f.plan().run(cmd.Context(), to, at, meters)
	if err != nil {
		return err
	}
	if f.asJSON {
		err = printJSON(cmd.OutOrStdout(), r)
	} else {
		r.print(cmd.OutOrStdout(), !f.noSink)
	}
	if err == nil && !r.Sound {
		err = errUnsound
	}
	return err
}

func (f *loadFlags) check() error {
	switch {
	case f.to == "" || f.user == "":
		return usagef("load needs --to and --user")
	case f.tls != "starttls" && f.tls != "implicit":
		return usagef("--tls is starttls or implicit, not %q", f.tls)
	case f.connections < 1 || f.messages < 1 || f.connections*f.messages > 1e7:
		return usagef("--connections and --messages are at least 1, and ten million messages at most")
	case f.recipients < 1 || f.recipients > 999:
		return usagef("--recipients is 1 to 999")
	}
	return nil
}

func (f *loadFlags) plan() plan {
	from := f.from
	if from == "" {
		from = f.user
	}
	return plan{
		connections: f.connections, reconnect: f.reconnect,
		corpus: corpusConfig{from, f.domain, f.connections * f.messages, f.recipients, int(f.size)},
	}
}

func (f *loadFlags) target(stdin io.Reader) (*target, error) {
	config, err := tlsConfig(f.to, f.caFile, f.insecure)
	if err != nil {
		return nil, err
	}
	password := f.password
	if f.passwordStdin {
		line, err := bufio.NewReader(stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read the password: %w", err)
		}
		password = strings.TrimRight(line, "\r\n")
	}
	return &target{
		address: f.to, implicit: f.tls == "implicit", tls: config, user: f.user, password: password,
	}, nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func sinkCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "sink",
		Short: "take mail, check each message's digest, count copies",
		Long: `Takes mail from another machine's 'smtpbench load --no-sink', checks the digest
that each message carries and counts copies of the same message. On SIGINT or
SIGTERM it says what it has seen.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			seen := &census{copies: make(map[string]int)}
			s, err := startSink(listen, seen.arrive)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "smtpbench: the sink listens on %s\n", s.Addr().String())
			<-cmd.Context().Done()
			s.Close()
			return seen.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:2600", "`address` to listen on")
	return cmd
}

// census is what a sink without a sender can know.
type census struct {
	mu         sync.Mutex
	messages   int
	altered    int
	recipients int
	doubled    int
	copies     map[string]int // by run and recipient, which names the message
}

func (c *census) arrive(a arrival) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.messages++
	if !a.intact {
		c.altered++
		return
	}
	for _, rcpt := range a.rcpts {
		key := string(a.run) + " " + string(rcpt)
		c.recipients++
		if c.copies[key]++; c.copies[key] > 1 {
			c.doubled++
		}
	}
}

func (c *census) print(w io.Writer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(w, "%d messages to %d recipients, %d doubled, %d messages altered\n", c.messages, c.recipients, c.doubled, c.altered)
	if c.doubled > 0 || c.altered > 0 {
		return errUnsound
	}
	return nil
}
