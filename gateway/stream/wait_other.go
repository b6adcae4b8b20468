//go:build !unix

package stream

import (
	"errors"
	"net"
)

// waitRead can't tell before it reads.
func waitRead(*net.TCPConn) error { return nil }

func waitReset(*net.TCPConn) error { return errors.ErrUnsupported }

// Closed tells whether the kernel has nothing more to do for c. It can't be known here.
func Closed(*net.TCPConn) bool { return false }
