//go:build unix && !linux

package stream

import "net"

func wasReset(fd int) bool { return pendingError(fd) }

// Closed tells whether the kernel has nothing more to do for c. It can't be known here.
func Closed(*net.TCPConn) bool { return false }
