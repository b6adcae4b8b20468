// Package stream has Conn, the one type for all connections whose bytes the gateway
// moves.
//
// Connections come from many places: a listener, a dialled socket, a pluggable transport,
// a session with another box. What they can do differs, and the code that moves bytes has
// to know: can one direction end alone, can the peer be told of an error, may the kernel
// move the bytes? Each connection is turned into a Conn once, where it is made. After
// that, no code uses type assertions to find out what a connection can do. A wrapper
// embeds the Conn, so it keeps all methods.
//
// The package opens no connection, copies no bytes and has no goroutine that outlives
// a call.
package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// A Conn is a stream of bytes in both directions. One goroutine may read while another
// one writes; all other methods may be called at any time, from any goroutine.
type Conn interface {
	net.Conn

	// CloseWrite ends this side's direction: the peer reads all that was written, and
	// then the end. Reading goes on. The error wraps ErrNoCloseWrite if the connection
	// can't end one direction alone; then it is unchanged.
	CloseWrite() error

	// Reset closes the connection so that the peer sees an error. Otherwise the peer
	// could think that it has got all bytes.
	Reset()

	// WaitRead waits until Read would not block. It reads no bytes and needs no buffer.
	// Nil: there are bytes. io.EOF: the peer has ended its direction. Any other error is
	// that of the connection or of a read deadline. A connection that can't wait returns
	// nil at once.
	WaitRead() error

	// WaitReset is called after Read has returned io.EOF. It waits until the peer resets
	// the connection or is gone, and returns an error that says so. The error is
	// net.ErrClosed when this side closes the connection. It is errors.ErrUnsupported, at
	// once, if the connection can't see a reset.
	WaitReset() error

	// Peer tells what is known of the peer. It does not wait.
	Peer() Peer

	// Socket returns the connection of the system beneath the stream.
	Socket() Socket
}

// A Peer is what is known of a connection's peer.
type Peer int

// What is known of a peer.
const (
	Here     Peer = iota // it has not left, as far as is known
	Left                 // it has closed the connection, and may have done so in order; what it has sent can be read
	WasReset             // it has reset the connection, or is lost
)

// A Socket is the connection of the system beneath a stream.
type Socket struct {
	// TCP is nil where the stream has no TCP connection for itself, or has one that
	// can't be known.
	TCP *net.TCPConn
	// Unix is the Unix socket that has the stream's own bytes; nil: there is none.
	Unix *net.UnixConn
	// Plain says that the TCP connection has the stream's own bytes, so that the kernel
	// may move them. Otherwise a transport has changed the bytes.
	Plain bool
	// Queued says that WaitRead returns at once if bytes have come, also after a read
	// deadline has passed.
	Queued bool
}

// ErrNoCloseWrite says that a connection can't end one direction alone.
var ErrNoCloseWrite = fmt.Errorf("the connection can't end one direction alone: %w", errors.ErrUnsupported)

// ahead gives back what was read before.
type ahead struct {
	Conn
	mu   sync.Mutex
	rest []byte
}

// Ahead returns c with bytes put back: Read returns bytes first. They were read from c
// before.
func Ahead(c Conn, bytes []byte) Conn {
	if len(bytes) == 0 {
		return c
	}
	return &ahead{Conn: c, rest: bytes}
}

func (a *ahead) Read(p []byte) (int, error) {
	a.mu.Lock()
	n := copy(p, a.rest)
	if a.rest = a.rest[n:]; len(a.rest) == 0 {
		a.rest = nil // frees its memory
	}
	a.mu.Unlock()
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return a.Conn.Read(p)
}

func (a *ahead) left() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.rest) > 0
}

func (a *ahead) WaitRead() error {
	if a.left() {
		return nil
	}
	return a.Conn.WaitRead()
}

func (a *ahead) Socket() Socket {
	s := a.Conn.Socket()
	s.Plain = s.Plain && !a.left()
	return s
}

// past is a deadline that wakes whoever reads or writes.
var past = time.Unix(1, 0)

// Watch returns a context for a dial on behalf of c's peer. The context ends when the
// peer goes away. The watch begins after delay, because most dials are done before and
// need none. With endIsGone the end of the peer's direction counts as going away, too;
// otherwise it only says that the peer has no more to send.
//
// While it watches, nobody else may read from c or set its read deadline. The function
// that it returns ends the watch, waits for it and leaves c without a read deadline.
func Watch(ctx context.Context, c Conn, delay time.Duration, endIsGone bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	var looking sync.WaitGroup
	looking.Add(1)
	t := time.AfterFunc(delay, func() {
		defer looking.Done()
		if err := c.WaitRead(); gone(err, endIsGone) {
			cancel()
		}
	})
	return ctx, func() {
		if t.Stop() {
			looking.Done()
		} else {
			_ = c.SetReadDeadline(past)
			looking.Wait()
			_ = c.SetReadDeadline(time.Time{})
		}
		cancel()
	}
}
