package debian_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/smtp"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"postern/internal/capture"
	"postern/internal/machine"
)

// live is TestInstall's life, on a machine of its own.
func live() error {
	docs, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		return err
	}
	older, err1 := os.ReadFile(os.Getenv("OLDER"))
	newer, err2 := os.ReadFile(os.Getenv("NEWER"))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	l := life{older: "/run/older.deb", newer: "/run/newer.deb", mail: make(chan capture.Message, 1)}
	if l.machine, err = machine.Enter(); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(l.older, older, 0o644), os.WriteFile(l.newer, newer, 0o644)); err != nil {
		return err
	}
	return l.live(string(docs))
}

// life is what happens to the package.
type life struct {
	machine      *machine.Machine
	older, newer string // packages
	service      *service
	mail         chan capture.Message
	password     string
}

// dpkg is as an admin runs it, but for the manual's index and for what a crash of the
// machine would cost: both take their time.
const dpkg = "dpkg --no-triggers --force-unsafe-io "

const serviceFile = "/usr/lib/systemd/system/postern.service"

func (l *life) live(docs string) error {
	err := machine.Steps([]machine.Step{
		{Name: "database", Do: l.database},
		{Name: "install", Do: l.install},
		{Name: "set up", Do: func() error { return l.setUp(docs) }},
		{Name: "start", Do: l.start},
		{Name: "send", Do: l.send},
		{Name: "reload", Do: func() error { return l.service.reload() }},
		{Name: "update", Do: l.update},
		{Name: "send after the update", Do: l.send},
		{Name: "stop", Do: func() error { return l.service.stop() }},
		{Name: "start with sockets", Do: l.startWithSockets},
		{Name: "send by a socket", Do: l.send},
		{Name: "stop again", Do: func() error { return l.service.stop() }},
		{Name: "remove", Do: l.remove},
		{Name: "purge", Do: l.purge},
		{Name: "purge beside a private database", Do: l.keepDatabase},
		{Name: "update under systemd", Do: l.updateUnderSystemd},
	})
	if err != nil {
		return err
	}
	fmt.Println("nothing is left")
	return nil
}

// database starts PostgreSQL and lets the commands of the page run without sudo.
func (l *life) database() error {
	if err := machine.Postgres(); err != nil {
		return err
	}
	_, err := machine.Shell(`
printf '%s\n' '#!/bin/sh' '[ "$1" = -u ] || exec "$@"' 'user=$2; shift 2; exec runuser -u "$user" -- "$@"' >/run/bin/sudo
chmod 755 /run/bin/sudo
`)
	return err
}

func (l *life) install() error {
	if out, err := machine.Shell(dpkg + "--install " + l.older); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	_, err := machine.Shell(`
eq() { [ "$1" = "$2" ] || { echo "$3 is $1, want $2"; exit 1; }; }
eq "$(stat -c '%U %G %a' /var/lib/postern)" "postern postern 700" /var/lib/postern
eq "$(stat -c '%U %G %a' /var/lib/postern/spool)" "postern postern 700" spool
eq "$(stat -c '%U %G %a' /etc/postern/postern.toml)" "root postern 640" postern.toml
eq "$(getent passwd postern | cut -d: -f6,7)" "/var/lib/postern:/usr/sbin/nologin" "the account"
eq "$(ls /etc/systemd/system/*/postern* 2>/dev/null)" "" "what is enabled"
dpkg --verify postern
`)
	if err != nil {
		return err
	}
	// It says what is missing.
	out, err := machine.Shell("cd /; ! sudo -u postern postern check")
	if err != nil || !regexp.MustCompile(`(?m)^failed\b.*\bcertificate\b`).MatchString(out) {
		return fmt.Errorf("postern check of a new installation: %v\n%s", err, out)
	}
	return nil
}

// setUp runs the commands of docs/install.md from the empty database to the check, with
// a capturing upstream in place of the example's.
func (l *life) setUp(docs string) error {
	sink, err := capture.Listen("127.0.0.1:2525", func(m capture.Message) { l.mail <- m })
	if err != nil {
		return err
	}
	_ = sink // ends with the machine
	_, docs, _ = strings.Cut(docs, "\n## The database\n")
	docs, _, ok := strings.Cut(docs, "\n```sh\nsudo systemctl enable --now postern\n")
	if !ok {
		return errors.New("docs/install.md: the commands are not where they were")
	}
	script := "cd /\nsed -i 's|^#certificate = .*|self_signed = true|' /etc/postern/postern.toml\n"
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(docs, -1) {
		script += block[1]
	}
	script = strings.NewReplacer(
		"--host smtp.example.net:587 --tls require \\\n    --username relay@example.com --password-stdin <password.txt", "--host 127.0.0.1:2525 --tls none",
		" postern check\n", " postern check || [ $? = 1 ]\n", // a machine without a network has faults
	).Replace(script)
	out, err := machine.Shell(script)
	if err != nil {
		return err
	}
	if !regexp.MustCompile(`(?m)^ok\b.*\bdurab`).MatchString(out) {
		return fmt.Errorf("postern check does not see the database:\n%s", out)
	}
	m := regexp.MustCompile(`(?m)^echo '(.+)' \| .*user add alice@example.com`).FindStringSubmatch(script)
	if m == nil {
		return fmt.Errorf("no password in\n%s", script)
	}
	l.password = m[1]
	return nil
}

func (l *life) start() (err error) {
	l.service, err = startService(serviceFile)
	return err
}

// startWithSockets lets the ports be systemd's, as the package's socket units say.
func (l *life) startWithSockets() (err error) {
	if _, err := machine.Shell(`
sed -i 's|^address = ":587"$|address = "systemd:submission"|; s|^address = ":465"$|address = "systemd:submissions"|' /etc/postern/postern.toml
grep -q systemd:submissions /etc/postern/postern.toml
`); err != nil {
		return err
	}
	const folder = "/usr/lib/systemd/system/postern-"
	l.service, err = startService(serviceFile, folder+"submission.socket", folder+"submissions.socket")
	return err
}

// send submits a message as a mail client does and waits until it is through.
func (l *life) send() error {
	client, err := smtp.Dial("127.0.0.1:587")
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.StartTLS(&tls.Config{InsecureSkipVerify: true}); err != nil { // its certificate is its own
		return err
	}
	err = client.Auth(smtp.PlainAuth("", "alice@example.com", l.password, "127.0.0.1"))
	if err := errors.Join(err, client.Mail("alice@example.com"), client.Rcpt("bob@example.net")); err != nil {
		return err
	}
	data, err := client.Data()
	if err != nil {
		return err
	}
	const text = "From: alice@example.com\r\nTo: bob@example.net\r\nSubject: packaged\r\n\r\nGood morning.\r\n"
	_, err = data.Write([]byte(text))
	if err := errors.Join(err, data.Close(), client.Quit()); err != nil {
		return err
	}
	select {
	case m := <-l.mail:
		if !strings.HasSuffix(string(m.Data), "\r\nSubject: packaged\r\n\r\nGood morning.\r\n") {
			return fmt.Errorf("what arrived is %q", m.Data)
		}
		return nil
	case <-time.After(machine.Patience):
		return errors.New("the message does not arrive")
	}
}

// update installs a newer version over the running one, which goes on, and restarts.
func (l *life) update() error {
	if _, err := machine.Shell(dpkg + "--install " + l.newer + "; dpkg-query --show postern | grep -q 1.3.0"); err != nil {
		return err
	}
	if err := l.send(); err != nil {
		return fmt.Errorf("before the restart: %w", err)
	}
	if err := l.service.stop(); err != nil {
		return err
	}
	text, err := os.ReadFile("/etc/postern/postern.toml")
	if err != nil || !strings.Contains(string(text), "\nself_signed = true\n") {
		return fmt.Errorf("the configuration was not kept: %v\n%s", err, text)
	}
	return l.start()
}

func (l *life) remove() error {
	_, err := machine.Shell(dpkg + "--remove postern" + `
[ ! -e /usr/bin/postern ] && [ ! -e /usr/lib/systemd/system/postern.service ]
[ -f /etc/postern/postern.toml ] && [ -d /var/lib/postern/spool ]
`)
	return err
}

// purge takes the rest but the account.
func (l *life) purge() error {
	if _, err := machine.Shell(dpkg + "--purge postern; getent passwd postern; ! passwd --status postern | grep -q ' P '"); err != nil {
		return err
	}
	left, err := l.machine.Left()
	if err != nil || len(left) > 0 {
		return fmt.Errorf("left are %v\n%s", err, strings.Join(left, "\n"))
	}
	return nil
}

// keepDatabase purges where a private database is: mail may be in it.
func (l *life) keepDatabase() error {
	if _, err := machine.Shell(dpkg + "--install " + l.older); err != nil {
		return err
	}
	const mark = "/var/lib/postern/db/data/PG_VERSION"
	if err := errors.Join(os.MkdirAll(filepath.Dir(mark), 0o700), os.WriteFile(mark, []byte("15\n"), 0o600),
		os.WriteFile("/var/lib/postern/secret.key", []byte("key"), 0o600)); err != nil {
		return err
	}
	out, err := machine.Shell(dpkg + "--purge postern; [ -f " + mark + " ]; [ -f /var/lib/postern/secret.key ]; [ ! -d /var/lib/postern/spool ]; [ ! -e /etc/postern ]")
	if err != nil || !strings.Contains(out, "rm -rf /var/lib/postern") {
		return fmt.Errorf("%v\n%s", err, out)
	}
	return nil
}

// updateUnderSystemd installs and updates where systemd runs, or seems to: what is asked
// of it is written down. A node that runs is restarted when the new version can start.
func (l *life) updateUnderSystemd() error {
	out, err := machine.Shell(`
mkdir -p /run/systemd/system
for name in systemctl deb-systemd-invoke; do
	printf '#!/bin/sh\necho %s "$@" >>/run/asked\n' $name >/run/bin/$name
	chmod 755 /run/bin/$name
done
asked() { cat /run/asked; : >/run/asked; echo "-- $1"; }
` + dpkg + `--install ` + l.older + `
asked "first installation"
` + dpkg + `--install ` + l.newer + `
asked "update"
cd /
runuser -u postgres -- psql -q -d postern -c 'delete from schema_migration where version = (select max(version) from schema_migration)'
` + dpkg + `--install ` + l.older + ` 2>&1 | grep '^postern: '
asked "update without its schema"
` + dpkg + `--remove postern
asked "removal"
`)
	if err != nil {
		return err
	}
	var asked []string
	for line := range strings.Lines(out) {
		if regexp.MustCompile(`^(systemctl|deb-systemd-invoke|--|postern:) `).MatchString(line) {
			asked = append(asked, strings.TrimSpace(line))
		}
	}
	const want = `systemctl --system daemon-reload
-- first installation
systemctl --system daemon-reload
systemctl --quiet is-active postern.service
deb-systemd-invoke try-restart postern.service
-- update
postern: the version before is still running. To go over to this one:
postern:   sudo -u postern postern migrate && sudo systemctl restart postern
systemctl --system daemon-reload
systemctl --quiet is-active postern.service
-- update without its schema
deb-systemd-invoke stop postern-submission.socket postern-submissions.socket postern.service
systemctl --system daemon-reload
-- removal`
	if got := strings.Join(asked, "\n"); got != want {
		return fmt.Errorf("what was asked of systemd:\n%s", got)
	}
	return nil
}
