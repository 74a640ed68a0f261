package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// supervisor is the service manager that runs this process, told of its states by
// sd_notify(3). Without one nothing is said.
type supervisor struct {
	socket string        // NOTIFY_SOCKET, "" for none
	watch  time.Duration // WATCHDOG_USEC, 0 for none
	log    *slog.Logger
}

// newSupervisor is the one that listens at a socket, "" for none.
func newSupervisor(socket string, log *slog.Logger) *supervisor {
	s := &supervisor{socket: socket, log: log}
	if s.socket == "" {
		return s
	}
	watch, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("cannot serve the service manager's watchdog", "error", err)
	}
	s.watch = watch
	return s
}

// tell sends assignments. Trouble is logged; the work goes on.
func (s *supervisor) tell(assignments ...string) {
	if s.socket == "" {
		return
	}
	if err := s.send(strings.Join(assignments, "\n")); err != nil {
		s.log.Warn("cannot report the state to the service manager", "error", err)
	}
}

func (s *supervisor) send(text string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(text))
	return err
}

func (s *supervisor) status(text string) { s.tell("STATUS=" + text) }

func (s *supervisor) ready(text string) { s.tell(sd.SdNotifyReady, "STATUS="+text) }

// reloading begins what ready ends. The time is how the manager tells this reload from
// one before (Type=notify-reload).
func (s *supervisor) reloading() {
	s.tell(sd.SdNotifyReloading, strings.TrimSpace(sd.SdNotifyMonotonicUsec()), "STATUS=reloading the configuration")
}

// stopping says for how long the process may still need.
func (s *supervisor) stopping(most time.Duration) {
	s.tell(sd.SdNotifyStopping, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", most.Microseconds()), "STATUS=draining")
}

// watchdog says that the process is alive, twice in the time in which the manager wants
// to hear it, until ctx ends. alive may hang when the process does.
func (s *supervisor) watchdog(ctx context.Context, alive func() error) {
	if s.watch <= 0 {
		return
	}
	tick := time.NewTicker(s.watch / 2)
	defer tick.Stop()
	for {
		if err := alive(); err != nil {
			s.log.Error("the process hangs; the service manager's watchdog will end it", "error", err)
		} else {
			s.tell(sd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
