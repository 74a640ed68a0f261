package config

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// ListenReason is the system's word for it, with what to do about the usual ones.
func ListenReason(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errors.New("the address is in use by another program")
	case errors.Is(err, syscall.EACCES):
		return errors.New("ports below 1024 need root or CAP_NET_BIND_SERVICE")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		var sys *os.SyscallError
		if errors.As(op.Err, &sys) {
			return sys.Err
		}
		return op.Err
	}
	return err
}
