//go:build !unix

package stream

import "net"

func unixSocket(c *net.UnixConn) Conn { return &foreign{Conn: c} }

// HungUp is false: this system does not tell whether the peer has closed c.
func HungUp(*net.UnixConn) bool { return false }
