package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"

	"postern/cmd/postern/config"
)

// sockets are those that the service manager has handed over, by name.
type sockets struct {
	byName map[string][]net.Listener
	names  []string // in their order
	taken  map[string]bool
}

// takeSockets takes the sockets of this process's environment. It is called once.
func takeSockets() (*sockets, error) {
	return openSockets(activation.Files(true))
}

// openSockets makes listeners of files and closes these.
func openSockets(files []*os.File) (*sockets, error) {
	s := &sockets{byName: map[string][]net.Listener{}, taken: map[string]bool{}}
	var bad []error
	for _, f := range files {
		ln, err := net.FileListener(f) // a descriptor of its own
		_ = f.Close()
		if err == nil {
			if _, tcp := ln.(*net.TCPListener); !tcp {
				_ = ln.Close()
				err = errors.New("it is not TCP")
			}
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("the socket %q that was handed over cannot be listened on: %w", f.Name(), err))
			continue
		}
		if s.byName[f.Name()] == nil {
			s.names = append(s.names, f.Name())
		}
		s.byName[f.Name()] = append(s.byName[f.Name()], ln)
	}
	if err := errors.Join(bad...); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// take gives the sockets of one name, of which there may be several: one for each
// address.
func (s *sockets) take(name string) ([]net.Listener, error) {
	list := s.byName[name]
	switch {
	case len(list) > 0:
		s.taken[name] = true
		return list, nil
	case len(s.names) == 0:
		return nil, fmt.Errorf("listener %s%s: no socket was handed over: start the socket unit and not only the service, or write host:port for the address", config.HandedOver, name)
	}
	return nil, fmt.Errorf("listener %s%s: there is no socket of that name, but %s: set FileDescriptorName=%s in the socket unit",
		config.HandedOver, name, strings.Join(s.names, ", "), name)
}

// left is an error when there are sockets that no listener took: clients would
// connect to them and wait for ever.
func (s *sockets) left() error {
	var list []string
	for _, name := range s.names {
		if !s.taken[name] {
			for _, ln := range s.byName[name] {
				list = append(list, fmt.Sprintf("%s (%s)", name, ln.Addr()))
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	slices.Sort(list)
	return fmt.Errorf("sockets were handed over that no [[listener]] uses by an address like %q: %s", config.HandedOver+"NAME", strings.Join(list, ", "))
}

// close closes what was not taken.
func (s *sockets) close() {
	for name, list := range s.byName {
		for _, ln := range list {
			if !s.taken[name] {
				_ = ln.Close()
			}
		}
	}
}
