package image_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"postern/internal/capture"
	"postern/internal/machine"
)

// An engine runs the services of a project on the machine: the database and the capture
// are programs of the machine, which a container's hosts file leads to; the others run
// in the image.
type engine struct {
	project project
	image   *image
	box     string // the root of containers
	mail    chan capture.Message
}

// up is TestUp's life, on a machine of its own.
func up() error {
	text, err := os.ReadFile(os.Getenv("FILES"))
	if err != nil {
		return err
	}
	var f files
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	checkout, err := os.Open("../..") // wherever it is, the machine reaches it by this
	if err != nil {
		return err
	}
	context := fmt.Sprintf("/proc/1/fd/%d", checkout.Fd())
	if _, err := machine.Enter(); err != nil {
		return err
	}
	e := engine{project: f.Compose, box: "/run/box", mail: make(chan capture.Message, 1)}
	err = machine.Steps([]machine.Step{
		{Name: "build", Do: func() (err error) {
			e.image, err = built(f.Dockerfile, context, map[string]string{"VERSION": "v1.2.0"})
			return err
		}},
		{Name: "start what is not ours", Do: e.surroundings},
		{Name: "make the container", Do: e.container},
		{Name: "up", Do: func() error { return e.serve(e.healthy) }},
		{Name: "up again", Do: func() error { return e.serve(e.send) }},
	})
	if err != nil {
		return err
	}
	fmt.Println("it is up")
	return nil
}

// surroundings starts what the images of others would: PostgreSQL with the account that
// the file asks for, and a capture in Mailpit's place.
func (e *engine) surroundings() error {
	postgres, ok := e.project.Services["postgres"]
	if _, mailpit := e.project.Services["mailpit"]; !ok || !mailpit {
		return errors.New("the services postgres and mailpit are not there")
	}
	if err := machine.Postgres(); err != nil {
		return err
	}
	_, err := machine.Shell(fmt.Sprintf(`cd /
runuser -u postgres -- /run/bin/psql -q -c "create role \"%[1]s\" superuser login password '%[2]s'"
runuser -u postgres -- /run/bin/createdb --owner='%[1]s' '%[3]s'`,
		postgres.Environment["POSTGRES_USER"], postgres.Environment["POSTGRES_PASSWORD"], postgres.Environment["POSTGRES_DB"]))
	if err != nil {
		return err
	}
	_, err = capture.Listen("127.0.0.1:1025", func(m capture.Message) { e.mail <- m })
	return err // it ends with the machine
}

// container makes the root that the services' containers have, one after the other: the
// image, read-only, with what engines add, a volume and a tmpfs.
func (e *engine) container() error {
	s := e.project.Services["postern"]
	if !s.ReadOnly || len(s.Volumes) != 1 || len(s.Tmpfs) != 1 {
		return fmt.Errorf("this engine knows containers that are read-only, with one volume and one tmpfs: %+v", s)
	}
	dir, options, _ := strings.Cut(s.Tmpfs[0], ":")
	if err := os.WriteFile(filepath.Join(e.image.root, "etc/hosts"), []byte("127.0.0.1 localhost postgres mailpit\n"), 0o644); err != nil {
		return err
	}
	volume := s.Volumes[0].Target
	state := "/run/volume" // a new volume has what the image has there
	if out, err := exec.Command("cp", "-a", e.image.root+volume, state).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, d := range []string{e.image.root + "/proc", e.box} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
		options              string
	}{
		{e.image.root, "", "", syscall.MS_BIND, ""},
		{"", "", "", syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_RDONLY, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"tmpfs", dir, "tmpfs", 0, options},
		{state, volume, "", syscall.MS_BIND, ""},
	} {
		if err := syscall.Mount(m.source, e.box+m.target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// As engines do: a container's own ports are nobody's privilege.
	return os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0o644)
}

// command is a process in a container of the service.
func (e *engine) command(s service, args []string) (*exec.Cmd, error) {
	for _, c := range s.Configs {
		content := e.project.Configs[c.Source].Content
		if err := os.WriteFile(filepath.Join(e.image.root, c.Target), []byte(content), 0o444); err != nil {
			return nil, err
		}
	}
	uid, gid, err := e.image.ids()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, e.image.env...)
	for key, value := range s.Environment {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	cmd.Dir = e.image.workdir
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: e.box, Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return cmd, nil
}

// args are what a service's container runs.
func (e *engine) args(s service) []string {
	entrypoint, command := e.image.entrypoint, e.image.cmd
	if s.Entrypoint != nil {
		entrypoint = s.Entrypoint
	}
	if s.Command != nil {
		command = s.Command
	}
	return append(append([]string{}, entrypoint...), command...)
}

// once runs what a service depends on and then the service, to its end.
func (e *engine) once(name string, done map[string]bool) error {
	s, ok := e.project.Services[name]
	if !ok || done[name] || s.Image != "postern" {
		return nil
	}
	done[name] = true
	if err := e.before(s, done); err != nil {
		return err
	}
	cmd, err := e.command(s, e.args(s))
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("service %s: %w: %s", name, err, out)
	}
	return nil
}

func (e *engine) before(s service, done map[string]bool) error {
	for name, d := range s.DependsOn {
		if ours := e.project.Services[name].Image == "postern"; ours != (d.Condition == "service_completed_successfully") {
			return fmt.Errorf("a service waits for %s until it is %s", name, d.Condition)
		}
		if err := e.once(name, done); err != nil {
			return err
		}
	}
	return nil
}

// serve brings the relay up with all that it depends on, does something and takes it
// down again.
func (e *engine) serve(meanwhile func() error) error {
	s := e.project.Services["postern"]
	if err := e.before(s, map[string]bool{}); err != nil {
		return err
	}
	cmd, err := e.command(s, e.args(s))
	if err != nil {
		return err
	}
	logs, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	watchdog := time.AfterFunc(2*machine.Patience, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	var said bytes.Buffer
	var failed error
	ready := false
	for lines := bufio.NewScanner(logs); lines.Scan(); {
		fmt.Fprintln(&said, lines.Text())
		if !ready && strings.Contains(lines.Text(), "postern is ready") {
			ready = true
			failed = meanwhile()
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	if err := errors.Join(failed, cmd.Wait()); err != nil || !ready {
		return fmt.Errorf("ready %v: %w\n%s", ready, err, &said)
	}
	return nil
}

// healthy asks as the engine does, in the container, and again until it is.
func (e *engine) healthy() error {
	for end := time.Now().Add(machine.Patience / 2); ; {
		cmd, err := e.command(e.project.Services["postern"], e.image.health)
		if err != nil {
			return err
		}
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("health: %w: %s", err, out)
		}
	}
}

// send submits a message with the account that the files make.
func (e *engine) send() error {
	client, err := smtp.Dial("127.0.0.1:587")
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.StartTLS(&tls.Config{InsecureSkipVerify: true}); err != nil { // its certificate is its own
		return err
	}
	err = client.Auth(smtp.PlainAuth("", "demo@example.com", e.project.Configs["password"].Content, "127.0.0.1"))
	if err := errors.Join(err, client.Mail("demo@example.com"), client.Rcpt("bob@example.net")); err != nil {
		return err
	}
	data, err := client.Data()
	if err != nil {
		return err
	}
	_, err = data.Write([]byte("From: demo@example.com\r\nSubject: contained\r\n\r\nGood morning.\r\n"))
	if err := errors.Join(err, data.Close(), client.Quit()); err != nil {
		return err
	}
	select {
	case m := <-e.mail:
		if !bytes.HasSuffix(m.Data, []byte("\r\nSubject: contained\r\n\r\nGood morning.\r\n")) {
			return fmt.Errorf("what arrived is %q", m.Data)
		}
		return nil
	case <-time.After(machine.Patience):
		return errors.New("the message does not arrive")
	}
}
