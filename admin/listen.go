package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// socketMode lets the group of the relay's user read the pages over a unix socket.
const socketMode = 0o660

// unixPrefix marks the address of a unix socket.
const unixPrefix = "unix:"

// CheckAddress reports what is wrong with an address: "host:port", or "unix:" and a path.
func CheckAddress(address string) error {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		if path == "" {
			return errors.New(`address "unix:" must name a file: "unix:/run/postern/admin.sock"`)
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
		return fmt.Errorf(`address %q must be host:port, "unix:" and a path, or ""`, address)
	}
	return nil
}

// AddressFrom is an address whose path, of a unix socket, is taken from dir if it is
// relative.
func AddressFrom(dir, address string) string {
	path, ok := strings.CutPrefix(address, unixPrefix)
	if !ok || path == "" || filepath.IsAbs(path) {
		return address
	}
	return unixPrefix + filepath.Join(dir, path)
}

// IsLocal reports that only this machine can reach an address.
func IsLocal(address string) bool {
	if strings.HasPrefix(address, unixPrefix) {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// listen opens the address. One that is in use is syscall.EADDRINUSE.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var open net.ListenConfig
	path, ok := strings.CutPrefix(address, unixPrefix)
	if !ok {
		return open.Listen(ctx, "tcp", address)
	}
	// In a folder that others may write to, a link may come into the place of the socket:
	// none that leads out of it is followed.
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := clearSocket(ctx, dir, path); err != nil {
		return nil, err
	}
	ln, err := open.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// Until here nobody but us could connect: that takes the right to write.
	if err := dir.Chmod(filepath.Base(path), socketMode); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// clearSocket removes the socket of a process that was killed. One that somebody
// listens on is in use, and another kind of file is not ours to remove.
func clearSocket(ctx context.Context, dir *os.Root, path string) error {
	st, err := dir.Lstat(filepath.Base(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists already and is not a socket", path)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var dial net.Dialer
	conn, err := dial.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return dir.Remove(filepath.Base(path))
}
