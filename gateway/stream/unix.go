//go:build unix

package stream

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unixConn is a connection of a Unix socket, whose bytes are the stream's.
type unixConn struct{ *net.UnixConn }

func unixSocket(c *net.UnixConn) Conn { return unixConn{c} }

// Reset can only close: a Unix socket has no reset. The peer sees one if it has sent bytes
// that were not read.
func (c unixConn) Reset() { _ = c.Close() }

func (c unixConn) WaitRead() error { return waitRead(c.UnixConn) }

// WaitReset waits for the peer's close, which ends both directions.
func (c unixConn) WaitReset() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Read(func(fd uintptr) bool { return hungUp(int(fd)) }); err != nil {
		return err
	}
	return syscall.ECONNRESET
}

// Peer tells whether the program has closed the connection, or has ended.
func (c unixConn) Peer() Peer {
	gone := false
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { gone = hungUp(int(fd)) })
	}
	if err != nil || !gone {
		return Here
	}
	return Left
}

func (c unixConn) Socket() Socket { return Socket{Unix: c.UnixConn} }

// hungUp tells whether both directions of a Unix socket have ended.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return err != nil || p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	}
}

// HungUp tells whether the peer of a Unix socket has closed it. It does not wait.
func HungUp(c *net.UnixConn) (is bool) {
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { is = hungUp(int(fd)) })
	}
	return is || err != nil
}
