//go:build unix

package builtin

import (
	"net"
	"syscall"
)

// A readiness waits until a connection has something to read, so that an idle
// one needs no buffer.
type readiness struct {
	link *link
	raw  syscall.RawConn
	peek func(fd uintptr) bool
	one  [1]byte
	err  error
}

// newReadiness makes c's readiness; where c might hold input of its own that the
// socket does not show, wait returns at once.
func newReadiness(c net.Conn) *readiness {
	r := new(readiness)
	switch c := c.(type) {
	case *link:
		r.link = c
	case *conn:
		// TLS reads ahead.
		if !c.drains && c.inner != net.Conn(c.link) {
			return r
		}
		r.link = c.link
	default:
		return r
	}
	raw, err := r.link.tcp.SyscallConn()
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
	if r.raw == nil || r.link.prime || len(r.link.rest) > 0 {
		return nil
	}
	// What Read itself can say, a closed connection, the caller's read says, too.
	_ = r.raw.Read(r.peek)
	return r.err
}
