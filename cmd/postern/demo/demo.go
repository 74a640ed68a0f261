package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/cmd/postern/node"
	"postern/cmd/postern/screen"
	"postern/internal/capture"
	"postern/internal/pgserver"
	"postern/internal/refusal"
	"postern/migrations"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

const (
	username  = "alice@example.com"
	recipient = "bob@example.net"
	limit     = time.Minute // for the one message to go in and come out
)

// Config says how a demo runs, and on what.
type Config struct {
	Dir      string // for its files
	Chosen   bool   // Dir was asked for: no other folder will do
	Once     bool   // end after the delivery
	Out      io.Writer
	Database *database.Connector

	// Node is the setup of a node in this process, but for the database's URL.
	Node func(config.Config) node.Setup
	// Trace prints the trace of a message as soon as it is finished.
	Trace func(ctx context.Context, url string, id queue.ID) error
}

// demo is one run of the demo.
type demo struct {
	Config
	folders
	config   string
	password string
	arrived  chan capture.Message
	ports    [2]string               // starttls, implicit
	opened   map[string]net.Listener // by address
}

// Run is the whole demo.
func Run(ctx context.Context, cfg Config) error {
	f, err := findFolders(cfg.Dir, cfg.Chosen)
	if err != nil {
		return err
	}
	defer f.remove()
	d := &demo{Config: cfg, folders: f, config: filepath.Join(f.dir, "postern.toml"), arrived: make(chan capture.Message, 64)}
	if d.why != nil {
		d.say("The demo's files are in %s until it ends: %v", d.made, d.why)
	}
	d.say("Starting a private PostgreSQL server in %s ...", d.postgres)
	server, err := d.startDatabase(ctx)
	if errors.Is(err, pgserver.ErrInUse) {
		return fmt.Errorf("a demo is already running in %s: stop it, or give another folder with --dir", d.dir)
	}
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop() }()
	sink, err := capture.Listen("127.0.0.1:0", d.take)
	if err != nil {
		return err
	}
	defer sink.Close()
	if err := d.listen(); err != nil {
		return err
	}
	defer d.closeListeners()
	if err := d.prepare(ctx, server.URL(), sink.Addr()); err != nil {
		return err
	}
	return d.serve(ctx, server.URL())
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.Out, format+"\n", args...)
}

// take never blocks the capture server: only the first messages are looked at.
func (d *demo) take(m capture.Message) {
	select {
	case d.arrived <- m:
	default:
	}
}

// prepare makes the schema, the user, the upstream, the route and the files.
func (d *demo) prepare(ctx context.Context, url string, sink *net.TCPAddr) error {
	conn, err := d.Database.Connect(ctx, url)
	if err != nil {
		return err
	}
	err = migrations.Apply(ctx, conn, nil)
	_ = conn.Close(context.WithoutCancel(ctx))
	if errors.Is(err, migrations.ErrChanged) || errors.Is(err, migrations.ErrNewer) {
		return fmt.Errorf("the demo's database belongs to another version of this program: remove %s, or give another folder with --dir", d.postgres)
	}
	if err != nil {
		return err
	}
	pool, err := d.Database.OpenPool(ctx, url, "demo", 2, nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := d.provision(ctx, pool); err != nil {
		return err
	}
	if err := d.routeTo(ctx, pool, sink); err != nil {
		return err
	}
	if err := WriteCertificate(d.dir); err != nil {
		return err
	}
	return os.WriteFile(d.config, d.configText(), 0o600)
}

func (d *demo) provision(ctx context.Context, pool *pgxpool.Pool) error {
	d.password = auth.GeneratePassword()
	users := auth.NewStore(pool)
	_, err := users.AddUser(ctx, auth.NewUser{Name: username, Password: d.password, Senders: []string{"*@example.com"}})
	if errors.Is(err, auth.ErrExists) { // from an earlier run
		err = users.SetPassword(ctx, username, d.password)
	}
	return err
}

// routeTo points the default route at this run's capture server.
func (d *demo) routeTo(ctx context.Context, pool *pgxpool.Pool, sink *net.TCPAddr) error {
	routes, accounts := route.NewStore(pool), upstream.NewStore(pool, nil)
	rules, err := routes.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if _, err := routes.Remove(ctx, r.ID); err != nil {
			return err
		}
	}
	if err := accounts.Remove(ctx, "capture"); err != nil && !errors.Is(err, refusal.ErrNotFound) {
		return err
	}
	up := upstream.Account{Name: "capture", Host: sink.IP.String(), Port: sink.Port, TLS: upstream.TLSNone}
	if err := accounts.Add(ctx, up); err != nil {
		return err
	}
	_, err = routes.Add(ctx, route.Rule{Via: []string{"capture"}}, 0)
	return err
}

func (d *demo) configText() []byte {
	return fmt.Appendf(nil, `# Made by 'postern demo'; for the commands: postern --config %[1]s queue list
hostname = "localhost"
secret_key_file = "secret.key"
[database]
private = "%[4]s"
[[listener]]
address = "127.0.0.1:%[2]s"
tls = "starttls"
[[listener]]
address = "127.0.0.1:%[3]s"
tls = "implicit"
[tls]
certificate = "cert.pem"
key = "key.pem"
[log]
level = "warn"
[admin]
address = ""
`, d.config, d.ports[0], d.ports[1], d.postgres)
}

// listen opens the two ports before anything else, so that no other demo takes them:
// the ones that are easy to remember, or others when those are taken.
func (d *demo) listen() error {
	d.opened = make(map[string]net.Listener)
	for i, want := range [...]string{"5587", "5465"} {
		ln, err := net.Listen("tcp", "127.0.0.1:"+want)
		if err != nil {
			if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return err
			}
		}
		d.opened[ln.Addr().String()] = ln
		d.ports[i] = strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	}
	return nil
}

// closeListeners is for a demo that fails before its node has the listeners.
func (d *demo) closeListeners() {
	for _, ln := range d.opened {
		_ = ln.Close()
	}
}

// serve runs the node, sends the one message and shows its way; then it stays, but for Once.
func (d *demo) serve(ctx context.Context, url string) error {
	cfg, err := config.Read(d.config)
	if err != nil {
		return err
	}
	s := d.Node(cfg)
	s.URL, s.Opened = url, d.opened
	n, err := node.Build(ctx, s)
	if err != nil {
		return err
	}
	serveCtx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- n.Run(serveCtx, node.Signals{}) }()

	err = d.showOne(ctx, url)
	if err == nil && !d.Once {
		d.settings()
		return d.stay(served)
	}
	stop()
	return errors.Join(err, <-served)
}

// stay shows what else arrives until the server has ended.
func (d *demo) stay(served <-chan error) error {
	for {
		select {
		case m := <-d.arrived:
			d.sayArrived(m)
		case err := <-served:
			return err
		}
	}
}

var receivedID = regexp.MustCompile(`(?s)^Received: .*? id ([0-9a-f-]{36})\s`)

// sayArrived prints one line about a message that the capture server got.
func (d *demo) sayArrived(m capture.Message) {
	to := "<" + screen.Printable(m.To[0].String()) + ">"
	if more := len(m.To) - 1; more > 0 {
		to = fmt.Sprintf("%s and %d more", to, more)
	}
	d.say("Captured from <%s> to %s", screen.Printable(m.From.String()), to)
	if id := receivedID.FindSubmatch(m.Data); id != nil {
		d.say("  %s --config %s trace %s", invokedAs(), d.config, id[1])
	}
}

// invokedAs is the name by which this program was called, so that a command can be
// typed as it is printed.
func invokedAs() string {
	if filepath.Base(os.Args[0]) == "postern" {
		return os.Args[0]
	}
	return "postern"
}

// showOne submits a message and prints what became of it.
func (d *demo) showOne(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	reply, err := d.submit(ctx)
	if err != nil {
		return fmt.Errorf("submit a message: %w", err)
	}
	d.say("Submitted over STARTTLS and AUTH PLAIN as %s; the relay says:\n  %s", username, reply)
	var got capture.Message
	select {
	case got = <-d.arrived:
	case <-ctx.Done():
		return errors.New("the message did not arrive at the capture server in time")
	}
	d.say("The capture server has it, from <%s> to <%s>:", got.From, got.To[0])
	for line := range bytes.Lines(got.Data) {
		d.say("  %s", screen.Printable(strings.ReplaceAll(strings.TrimRight(string(line), "\r\n"), "\t", "    ")))
	}
	id, err := queuedID(reply)
	if err != nil {
		return err
	}
	d.say("Its trace ('%s --config %s trace %s'):", invokedAs(), d.config, id)
	return d.Trace(ctx, url, id)
}

// submit sends one message as a mail client would.
func (d *demo) submit(ctx context.Context) (smtp.Reply, error) {
	pem, err := os.ReadFile(filepath.Join(d.dir, "cert.pem"))
	if err != nil {
		return smtp.Reply{}, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn, err := dialUntil(ctx, "127.0.0.1:"+d.ports[0])
	if err != nil {
		return smtp.Reply{}, err
	}
	c := smtp.NewClient(conn, smtp.ClientConfig{Hello: "localhost"})
	defer c.Close()
	if err := c.Greet(ctx); err != nil {
		return smtp.Reply{}, err
	}
	if err := c.StartTLS(ctx, &tls.Config{ServerName: "localhost", RootCAs: roots}); err != nil {
		return smtp.Reply{}, err
	}
	if err := c.Auth(ctx, sasl.NewPlainClient("", username, d.password)); err != nil {
		return smtp.Reply{}, err
	}
	from, _ := smtp.ParseAddress(username)
	to, _ := smtp.ParseAddress(recipient)
	body := "From: Alice <" + username + ">\r\nTo: Bob <" + recipient + ">\r\nSubject: Postern works\r\n\r\nThis message went the whole way.\r\n"
	res := c.Send(ctx, smtp.Transaction{
		Mail: smtp.MailCommand{From: from}, Rcpts: []smtp.RcptCommand{{To: to}},
		Body: strings.NewReader(body), Size: int64(len(body)),
	})
	if res.Err != nil {
		return smtp.Reply{}, res.Err
	}
	if !res.Replies[0].IsPositive() {
		return smtp.Reply{}, fmt.Errorf("refused: %s", res.Replies[0])
	}
	return res.Replies[0], c.Quit(ctx)
}

// dialUntil tries until the listener of the server that starts meanwhile is there.
func dialUntil(ctx context.Context, addr string) (net.Conn, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// queuedID takes the queue id out of "Ok: queued as ID".
func queuedID(r smtp.Reply) (queue.ID, error) {
	i := strings.LastIndexByte(r.Text, ' ')
	id, err := uuid.Parse(r.Text[i+1:])
	if err != nil {
		return id, fmt.Errorf("no queue id in %q", r.Text)
	}
	return id, nil
}

func (d *demo) settings() {
	d.say(`
Settings for a mail client or a program:
  server     127.0.0.1 (certificate for localhost and 127.0.0.1: %[1]s)
  port       %[2]s with STARTTLS, or %[3]s with TLS
  user       %[4]s
  password   %[5]s
  senders    any address at example.com
For example:
  printf 'From: %[4]s\nTo: %[6]s\nSubject: Hello\n\nHello.\n' |
  curl -sS --ssl-reqd --cacert %[1]s --url smtp://localhost:%[2]s --user '%[4]s:%[5]s' \
       --mail-from %[4]s --mail-rcpt %[6]s --crlf --upload-file -
  %[8]s --config %[7]s queue list
Mail goes to the capture server and no further. Stop with Ctrl-C.`,
		filepath.Join(d.dir, "cert.pem"), d.ports[0], d.ports[1], username, d.password, recipient, d.config, invokedAs())
}
