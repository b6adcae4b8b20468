//go:build !unix

package stream

import (
	"errors"
	"net"
	"syscall"
)

// waitRead can't tell before it reads.
func waitRead(*net.TCPConn) error { return nil }

func waitReset(*net.TCPConn) error { return errors.ErrUnsupported }

// Closed is false: this system does not tell whether the kernel has closed c.
func Closed(*net.TCPConn) bool { return false }

// Quiet is true: this system does not tell whether there is something to read from c.
func Quiet(syscall.Conn) bool { return true }

// ReadReady reads into the buffer that get returns. This system can't wait without one.
func ReadReady(c *net.TCPConn, get func() []byte, _ func()) (int, error) { return c.Read(get()) }
