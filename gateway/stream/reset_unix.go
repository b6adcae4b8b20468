//go:build unix && !linux

package stream

import "net"

func wasReset(fd int) bool { return pendingError(fd) }

// Closed is false: this system does not tell whether the kernel has closed c.
func Closed(*net.TCPConn) bool { return false }
