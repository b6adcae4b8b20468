package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"ptgate/adapter"
)

// gone tells from WaitRead's error whether the peer has gone away.
func gone(err error, endIsGone bool) bool {
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return false
	case err == io.EOF:
		return endIsGone
	}
	return true
}

// From adapts a connection from a listener or a dialer. Only here are type assertions
// used to find out what such a connection can do.
func From(c net.Conn) Conn {
	switch c := c.(type) {
	case Conn:
		return c
	case *net.TCPConn:
		return TCP(c)
	case *net.UnixConn:
		return unixSocket(c)
	}
	return &foreign{Conn: c}
}

// foreign is any other connection, such as the pipe of a test.
type foreign struct {
	net.Conn
	wait   sync.Mutex // held while WaitRead reads
	mu     sync.Mutex
	peeked []byte // what WaitRead has read
	err    error  // and the error that came with it
}

func (f *foreign) Read(p []byte) (int, error) {
	f.mu.Lock()
	n, err := copy(p, f.peeked), f.err
	f.peeked, f.err = f.peeked[n:], nil
	f.mu.Unlock()
	if n > 0 || err != nil {
		return n, err
	}
	return f.Conn.Read(p)
}

// WaitRead reads a byte and keeps it.
func (f *foreign) WaitRead() error {
	f.wait.Lock()
	defer f.wait.Unlock()
	f.mu.Lock()
	ready := len(f.peeked) > 0
	f.mu.Unlock()
	if ready {
		return nil
	}
	var one [1]byte
	n, err := f.Conn.Read(one[:])
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.peeked = append(f.peeked, one[:n]...); n > 0 {
		if err != nil {
			f.err = err
		}
		return nil
	}
	return err
}

func (f *foreign) WaitReset() error { return errors.ErrUnsupported }

func (f *foreign) Peer() Peer { return Here }

func (f *foreign) CloseWrite() error {
	if w, ok := f.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return ErrNoCloseWrite
}

func (f *foreign) Reset() { _ = f.Conn.Close() }

func (f *foreign) Socket() Socket { return Socket{} }

// tcp is a TCP connection whose bytes are the stream's.
type tcp struct {
	*net.TCPConn
	ended atomic.Bool // this side has ended its direction
}

// TCP adapts a TCP connection.
func TCP(c *net.TCPConn) Conn { return &tcp{TCPConn: c} }

func (c *tcp) Reset() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func (c *tcp) CloseWrite() error {
	c.ended.Store(true) // before the kernel may close the socket
	return c.TCPConn.CloseWrite()
}

func (c *tcp) WaitRead() error  { return waitRead(c.TCPConn) }
func (c *tcp) WaitReset() error { return waitReset(c.TCPConn) }
func (c *tcp) Peer() Peer       { return peerOf(c.TCPConn, &c.ended) }
func (c *tcp) Socket() Socket   { return Socket{TCP: c.TCPConn, Plain: true} }

// peerOf tells what is known of the peer if the kernel has closed a socket. The peer may
// have ended in order. If this side has not, a reset has closed the socket. If it has, that
// can't be told from the end of both directions, and nobody may throw away bytes that wait
// in the socket.
func peerOf(c *net.TCPConn, ended *atomic.Bool) Peer {
	switch {
	case c == nil || !Closed(c):
		return Here
	case ended.Load():
		return Left
	}
	return WasReset
}

// toProgram is a connection into the client side of a transport program.
type toProgram struct{ Conn }

// ToProgram adapts a connection to a client's transport program
// (adapter.ClientAdapter.DialTransport). It has no CloseWrite: when one direction ends,
// such a program ends both, and loses the bytes under way.
func ToProgram(c net.Conn) Conn { return toProgram{beneath(c)} }

func (toProgram) CloseWrite() error { return ErrNoCloseWrite }

// fromProgram is a connection out of the server side of a transport program.
type fromProgram struct {
	Conn
	remote net.Addr
}

// FromProgram adapts a connection from a server's transport program
// (adapter.ExtServerAdapter.Accept). Its RemoteAddr is the client's. It has CloseWrite,
// because a client may wait for the end of the server's direction. The program has read
// all bytes of that direction when it sees the end.
func FromProgram(c net.Conn) Conn { return fromProgram{beneath(c), c.RemoteAddr()} }

func (c fromProgram) RemoteAddr() net.Addr { return c.remote }

func beneath(c net.Conn) Conn {
	if a, ok := c.(*adapter.Conn); ok {
		return TCP(a.TCP())
	}
	return From(c)
}

// A Transport is a connection of a transport inside this process (builtin.Conn).
type Transport interface {
	net.Conn
	CloseWrite() error     // as of Conn; the error wraps errors.ErrUnsupported if it can't
	Abort()                // as Conn.Reset
	Beneath() *net.TCPConn // the TCP connection; nil: there is not exactly one
	WaitRead() error       // as of Conn, but nil also at the end
}

type transport struct {
	Transport
	ended atomic.Bool // this side has ended its direction
}

// Inside adapts a connection of a transport inside this process.
func Inside(c Transport) Conn { return &transport{Transport: c} }

func (c *transport) CloseWrite() error {
	c.ended.Store(true)
	err := c.Transport.CloseWrite()
	if errors.Is(err, errors.ErrUnsupported) {
		return ErrNoCloseWrite
	}
	return err
}

func (c *transport) Reset() { c.Abort() }

func (c *transport) WaitReset() error {
	if t := c.Beneath(); t != nil {
		return waitReset(t)
	}
	return errors.ErrUnsupported
}

func (c *transport) Peer() Peer { return peerOf(c.Beneath(), &c.ended) }

func (c *transport) Socket() Socket { return Socket{TCP: c.Beneath()} }
