package builtin

import (
	"net"

	"golang.org/x/sys/unix"
)

// socketClosed reports whether the kernel has nothing more to do for c: both ends
// have been exchanged, or a reset has come.
func socketClosed(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return closed
}
