//go:build unix

package stream

import (
	"io"
	"net"
	"os"
	"syscall"
)

// waitRead peeks, and so takes nothing.
func waitRead(c syscall.Conn) error {
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
func Quiet(c syscall.Conn) (is bool) {
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

// ReadReady waits until there is something to read from c, and only then calls get for a
// buffer and reads into it. If there is nothing after all, it calls drop and waits again.
// So a connection that waits needs no buffer, and no further system call.
func ReadReady(c *net.TCPConn, get func() []byte, drop func()) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		b := get()
		for {
			n, readErr = syscall.Read(int(fd), b)
			if readErr == syscall.EINTR {
				continue
			}
			if readErr == syscall.EAGAIN {
				drop()
				return false
			}
			return true
		}
	})
	switch {
	case err != nil:
		return 0, err
	case readErr != nil:
		return 0, os.NewSyscallError("read", readErr)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
