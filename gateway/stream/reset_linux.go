package stream

import (
	"net"

	"golang.org/x/sys/unix"
)

// wasReset tells whether the kernel has nothing more to do for a socket.
func wasReset(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == unix.BPF_TCP_CLOSE
}

// Closed tells whether the kernel has closed c: both directions have ended, or an
// error, such as a reset, has ended it. It is false on systems that do not tell.
func Closed(c *net.TCPConn) (is bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		is = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return is || err != nil
}
