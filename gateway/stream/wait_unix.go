//go:build unix

package stream

import (
	"io"
	"net"
	"os"
	"syscall"
)

// waitRead peeks, and so takes nothing.
func waitRead(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var one [1]byte
	var n int
	var peekErr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, peekErr = syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
			if peekErr != syscall.EINTR {
				return peekErr != syscall.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return err
	case peekErr != nil:
		return os.NewSyscallError("recvfrom", peekErr)
	case n == 0:
		return io.EOF
	}
	return nil
}

// waitReset relies on the poller: a reset makes a socket ready for reading, also one
// whose peer has ended its direction.
func waitReset(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Read(func(fd uintptr) bool { return wasReset(int(fd)) }); err != nil {
		return err
	}
	return syscall.ECONNRESET
}

// Quiet tells whether there is nothing to read from c: no bytes, no end and no error. It
// does not wait. It is true on systems that can't tell.
func Quiet(c *net.TCPConn) (is bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		for {
			_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
			if err != syscall.EINTR {
				is = err == syscall.EAGAIN
				return
			}
		}
	})
	return is && err == nil
}
