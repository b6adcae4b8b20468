//go:build !unix

package stream

import "net"

func unixSocket(c *net.UnixConn) Conn { return &foreign{Conn: c} }
