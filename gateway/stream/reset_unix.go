//go:build unix && !linux

package stream

import (
	"net"

	"golang.org/x/sys/unix"
)

// wasReset tells whether the kernel holds an error for a socket. A write may take it away
// before.
func wasReset(fd int) bool {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err != nil || code != 0
}

// Closed is false: this system does not tell whether the kernel has closed c.
func Closed(*net.TCPConn) bool { return false }
