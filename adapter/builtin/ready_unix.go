//go:build unix

package builtin

import (
	"net"
	"syscall"
)

// A readiness waits until a connection has something to read, so that an idle
// one needs no buffer.
type readiness struct {
	raw  syscall.RawConn // nil: wait returns at once
	peek func(fd uintptr) bool
	one  [1]byte
	err  error
}

func newReadiness(tcp *net.TCPConn) *readiness {
	r := new(readiness)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return r
	}
	r.raw = raw
	r.peek = func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), r.one[:], syscall.MSG_PEEK)
		if err == syscall.EAGAIN {
			return false
		}
		if err != syscall.EINTR {
			r.err = err
		}
		return true
	}
	return r
}

// wait returns when a read would not block. An error is the connection's: the
// kernel tells of a reset once only, and the read after it would see a clean end.
func (r *readiness) wait() error {
	if r.raw == nil {
		return nil
	}
	// What Read itself can say, a closed connection, the caller's read says, too.
	_ = r.raw.Read(r.peek)
	return r.err
}
