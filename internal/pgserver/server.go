// Package pgserver runs a private PostgreSQL server for this process alone:
// for the demo, for a machine whose owner does not want to run a database
// server, and for tests.
//
// The server lives in one folder, listens on a unix socket inside it and on
// nothing else, and ends when this process ends, also when it is killed. Its
// data are durable unless the caller says that they need not be. A process that
// runs as root starts it as the user postgres, or else nobody, because
// PostgreSQL refuses to run as root.
//
// One process at a time may use a folder; a second one fails immediately. A
// folder whose server was killed is recovered by the next Start. The folder's
// contents belong to this package: data/ is the cluster, socket/ the socket,
// postgres.log its log, lock its user.
//
// It does not migrate, back up or upgrade, and knows nothing of what is stored.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Config says what server to run. Dir is the only field that must be set.
type Config struct {
	// Dir is the folder that holds the server and its data. It is made when it
	// is missing; its parents must exist. A folder that holds anything but an
	// earlier server is refused.
	Dir string

	// Unsafe turns off every guarantee that data survive a crash of the
	// operating system, for speed. Only tests may set it.
	Unsafe bool

	// Temporary removes Dir when the server stops or this process ends.
	Temporary bool

	// Settings are parameters of postgresql.conf that replace the defaults of
	// this package, which are those of a small server.
	Settings map[string]string
}

// Server is a running PostgreSQL server.
type Server struct {
	config Config
	owner  account
	folder *os.Root
	socket socket
	lock   *os.File
	guard  *guard
	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has ended
	end    error         // why it ended; read it after done

	release sync.Once
}

// role is the superuser and database the one that every cluster has.
const (
	role     = "postern"
	database = "postgres"
)

// stopTime is how long a fast shutdown may take before it is made an immediate
// one, after which the next start recovers from the log.
const stopTime = time.Minute

// Start makes the cluster when Dir has none, starts the server and returns when
// it accepts connections. The context bounds the start only, which after a
// crash includes recovery.
func Start(ctx context.Context, config Config) (*Server, error) {
	s, err := start(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("private PostgreSQL in %s: %w", config.Dir, err)
	}
	return s, nil
}

func start(ctx context.Context, config Config) (_ *Server, err error) {
	if config.Dir, err = filepath.Abs(config.Dir); err != nil {
		return nil, err
	}
	s := &Server{config: config}
	if s.owner, err = serverAccount(); err != nil {
		return nil, err
	}
	if s.folder, err = makeFolder(config.Dir, s.owner); err != nil {
		return nil, err
	}
	s.config.Dir = s.folder.Name() // without the links of its path
	if s.lock, err = claimFolder(ctx, s.folder, s.owner); err != nil {
		s.folder.Close()
		return nil, err
	}
	defer func() {
		if err != nil {
			s.free()
		}
	}()
	if s.guard, err = startGuard(s.config); err != nil {
		return nil, err
	}
	programs, err := everywhere().find(clusterVersion(s.folder, s.owner))
	if err != nil {
		return nil, err
	}
	if err = s.prepare(ctx, programs); err != nil {
		return nil, err
	}
	if err = s.launch(ctx, programs); err != nil {
		return nil, err
	}
	return s, nil
}

// prepare brings the folder to where the server can be started on it.
func (s *Server) prepare(ctx context.Context, programs programs) error {
	if err := awaitOrphan(ctx, s.folder, s.owner); err != nil {
		return err
	}
	if err := s.initCluster(ctx, programs); err != nil {
		return err
	}
	var err error
	if s.socket, err = newSocket(s.folder, s.owner); err != nil {
		return err
	}
	if err := s.guard.remove(s.socket); err != nil {
		return err
	}
	return s.writeSettings()
}

func (s *Server) data() string { return filepath.Join(s.config.Dir, "data") }

// URL is where to connect: a superuser's access to the server's first database.
func (s *Server) URL() string { return s.DatabaseURL(database) }

// DatabaseURL is URL for another database on this server.
func (s *Server) DatabaseURL(name string) string { return socketURL(s.socket.dir, name) }

func socketURL(dir, name string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.User(role),
		Path:     "/" + name,
		RawQuery: url.Values{"host": {dir}}.Encode(),
	}
	return u.String()
}

// Dir is the server's folder, as an absolute path.
func (s *Server) Dir() string { return s.config.Dir }

// Done is closed when the server has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} { return s.done }

// PID is the process id of the postmaster.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Stop ends the server: open connections are cut, what is committed is written
// out. It returns when the server has ended and its folder can be used again.
// Stopping a server that has ended is no error.
func (s *Server) Stop() error {
	defer s.free()
	s.signal(syscall.SIGINT)
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTime):
	}
	s.signal(syscall.SIGQUIT)
	<-s.done
	return fmt.Errorf("private PostgreSQL in %s did not stop in %s and was cut off", s.config.Dir, stopTime)
}

// Kill ends the server and all its processes as a crash would, with SIGKILL,
// and returns when they have ended. The folder can be started again, which
// recovers it.
func (s *Server) Kill() error {
	defer s.free()
	// Stopped first, so that it neither makes nor reaps children meanwhile.
	s.signal(syscall.SIGSTOP)
	family := children(s.PID())
	s.signal(syscall.SIGKILL)
	<-s.done
	for _, child := range family {
		if err := child.kill(); err != nil {
			return fmt.Errorf("kill private PostgreSQL in %s: %w", s.config.Dir, err)
		}
	}
	return nil
}

// Pause stops the server and all its processes where they are, as a machine that
// hangs: connections stay open and say nothing. Kill ends it.
func (s *Server) Pause() {
	s.signal(syscall.SIGSTOP) // first, so that it makes no more children
	for _, child := range children(s.PID()) {
		_ = syscall.Kill(child.pid, syscall.SIGSTOP)
	}
}

// signal is not sent to a process that was waited for: the number may be
// another's by now. os.Process knows.
func (s *Server) signal(sig syscall.Signal) {
	_ = s.cmd.Process.Signal(sig)
}

// free gives back what the running server held, once it has ended.
func (s *Server) free() {
	s.release.Do(func() {
		s.socket.remove()
		if s.config.Temporary {
			_ = os.RemoveAll(s.config.Dir)
		}
		if s.guard != nil {
			s.guard.dismiss()
		}
		_ = s.lock.Close()
		_ = s.folder.Close()
	})
}

// errRetry means that a process of the crashed server still holds its shared
// memory; it is about to notice that its postmaster is gone.
var errRetry = errors.New("processes of the crashed server are still there")

// orphanTime is how long the processes of a crashed server may take to notice.
const orphanTime = 5 * time.Second

// launch runs the postmaster until it accepts connections. A process of the crashed
// server that waits for a lock which a dead one had notices nothing for ever: it is
// killed, as it would be if its postmaster lived.
func (s *Server) launch(ctx context.Context, programs programs) error {
	began := time.Now()
	for {
		err := s.launchOnce(ctx, programs)
		if !errors.Is(err, errRetry) {
			return err
		}
		if time.Since(began) > orphanTime {
			if err := killOrphans(s.data()); err != nil {
				return fmt.Errorf("end the processes of the crashed server: %w", err)
			}
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func (s *Server) launchOnce(ctx context.Context, programs programs) error {
	log, err := openLog(s.folder, s.owner)
	if err != nil {
		return err
	}
	defer log.Close()
	said, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	s.cmd = exec.Command(programs.postgres, "-D", s.data())
	s.cmd.Env = environment()
	s.cmd.Dir = s.data()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = s.owner.attributes()
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", programs.postgres, err)
	}
	s.done = make(chan struct{})
	go s.wait()
	if err := s.guard.watch(s.PID()); err != nil {
		s.abort()
		return err
	}
	if err := s.awaitReady(ctx); err != nil {
		s.abort()
		return whatItSaid(log, said, err)
	}
	return nil
}

// wait reaps the postmaster, after which the guard must not signal its number.
func (s *Server) wait() {
	s.end = s.cmd.Wait()
	s.guard.forget()
	close(s.done)
}

func (s *Server) abort() {
	s.signal(syscall.SIGQUIT)
	<-s.done
}

// awaitReady returns when the server accepts connections, which it writes into
// its pid file.
func (s *Server) awaitReady(ctx context.Context) error {
	for {
		if note := readPIDFile(s.folder, s.owner); note.pid == s.PID() && (note.status == ready || note.status == standby) {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("it ended while starting: %w", s.end)
		default:
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for it to start: %w", err)
		}
	}
}

// pollTime is the rhythm in which files and processes are looked at that cannot
// be waited for.
const pollTime = 5 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollTime):
		return nil
	}
}
