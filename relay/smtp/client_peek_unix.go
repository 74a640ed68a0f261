//go:build unix

package smtp

import "syscall"

// readable reports that a read of the socket would not wait: octets are there, or
// the end, or an error.
func readable(fd uintptr) bool {
	var buf [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), buf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return err != syscall.EAGAIN
		}
	}
}
