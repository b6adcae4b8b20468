//go:build integration

package integration

import (
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"ptgate/integration/harness"
)

// serveTCP runs a TCP server on loopback until the test's end.
func serveTCP(t testing.TB, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	return serveOn(t, listenIn(t, "", "127.0.0.1:0"), handle)
}

// serveOn runs a TCP server until the test's end.
func serveOn(t testing.TB, ln net.Listener, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	return harness.Serve(t, ln, func(c net.Conn) { handle(c.(*net.TCPConn)) })
}

func serveEcho(t testing.TB) (addr string) {
	t.Helper()
	return serveTCP(t, func(c *net.TCPConn) { io.Copy(c, c) })
}

// dial opens a connection that is closed, and bounded, by the test.
func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// socksOpen asks a SOCKS5 server for a name, RFC 1928 byte by byte, and returns
// the connection and the reply code.
func socksOpen(t testing.TB, server, name, port string) (c *net.TCPConn, reply byte) {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	c = dial(t, server)
	return c, socksRequest(c, []byte(name), uint16(n))
}

// socksRequest does the handshake on c. The name may be anything of up to 255
// bytes. 0xFF stands for a connection that was closed without a reply.
func socksRequest(c net.Conn, name []byte, port uint16) (reply byte) {
	c.Write([]byte{5, 1, 0}) // an error shows in the answer
	var method [2]byte
	if _, err := io.ReadFull(c, method[:]); err != nil {
		return 0xff
	}
	if method != [2]byte{5, 0} {
		return method[1]
	}
	msg := append([]byte{5, 1, 0, 3, byte(len(name))}, name...)
	c.Write(binary.BigEndian.AppendUint16(msg, port))
	var head [10]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0xff
	}
	return head[1]
}
