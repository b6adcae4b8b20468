package adapter

import (
	"io"
	"net"
	"time"
)

// Conn is a connection through a transport program: the loopback connection to
// the program, after the handshake.
//
// It has no CloseWrite on purpose: after a FIN, a transport program closes
// both directions and loses the bytes under way.
type Conn struct {
	tcp  *net.TCPConn
	info ClientInfo // server side only
}

var (
	_ net.Conn      = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
)

// NetConn returns the *net.TCPConn beneath, for a relay that splices. The
// rules of Conn hold for it, too: do not half-close it.
func (c *Conn) NetConn() net.Conn { return c.tcp }

// TCP is the same as NetConn.
func (c *Conn) TCP() *net.TCPConn { return c.tcp }

// ClientInfo returns what a server's transport program has told about the
// client. It is zero on a connection from DialTransport.
func (c *Conn) ClientInfo() ClientInfo { return c.info }

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) { return c.tcp.Read(b) }

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) { return c.tcp.Write(b) }

// ReadFrom implements io.ReaderFrom.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return c.tcp.ReadFrom(r) }

// WriteTo implements io.WriterTo.
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return c.tcp.WriteTo(w) }

// Close implements net.Conn.
func (c *Conn) Close() error { return c.tcp.Close() }

// LocalAddr is our side of the loopback connection.
func (c *Conn) LocalAddr() net.Addr { return c.tcp.LocalAddr() }

// RemoteAddr is the client's address, if a server's transport program has told
// it. Otherwise it is the program's side of the loopback connection.
func (c *Conn) RemoteAddr() net.Addr {
	if c.info.Addr.IsValid() {
		return net.TCPAddrFromAddrPort(c.info.Addr)
	}
	return c.tcp.RemoteAddr()
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.tcp.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.tcp.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.tcp.SetWriteDeadline(t) }
