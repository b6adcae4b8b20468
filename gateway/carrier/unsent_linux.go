package carrier

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsent is how much the kernel takes ahead of the network. A send buffer grows
// to megabytes, which on a slow link is seconds that an interactive stream waits
// behind a bulk one; what is in flight is not counted, so that a long fast link is
// still filled.
const unsent = 128 << 10

// limitUnsent sets TCP_NOTSENT_LOWAT (tcp(7)) on the connection to the bridge, or
// to the PT's process.
func limitUnsent(c net.Conn) {
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			raw, err := v.SyscallConn()
			if err == nil {
				raw.Control(func(fd uintptr) {
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
				})
			}
			return
		case interface{ Beneath() *net.TCPConn }:
			c = v.Beneath()
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return
		}
	}
}
