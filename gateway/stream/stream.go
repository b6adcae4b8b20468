// Package stream has the one type of connection that a program's bytes go through.
//
// Connections come from many places: a listener, a dialled socket, a pluggable
// transport, a session with another box. What they can do differs, and the code that
// moves bytes has to know: can one direction end alone, can the peer be told of an
// error, may the kernel move the bytes? Each connection is turned into a Conn once,
// where it is made. From there on nobody asks a connection what else it can do: a
// wrapper embeds the Conn and so passes everything on.
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
// one writes; all other methods may be called at any time, from anywhere.
type Conn interface {
	net.Conn

	// CloseWrite ends this side's direction: the peer reads all that was written, and
	// then the end. Reading goes on. It is ErrNoCloseWrite where the peer can't be told
	// of the end of one direction: then nothing has happened.
	CloseWrite() error

	// Reset ends both directions at once, so that the peer sees an error and does not
	// take what it has got for everything.
	Reset()

	// WaitRead waits until Read does not block. It takes no bytes and holds no buffer.
	// Nil: there are bytes. io.EOF: the peer has ended its direction. Any other error is
	// the connection's, or that of a read deadline. Some connections can't tell before
	// they read: they return nil at once.
	WaitRead() error

	// WaitReset waits, after Read has met the end of the peer's direction, until the
	// peer resets the connection, or is gone: the error says so. It ends with
	// net.ErrClosed when this side closes the connection, and with errors.ErrUnsupported,
	// at once, where nothing can be known.
	WaitReset() error

	// Socket is the TCP connection that carries the stream.
	Socket() Socket
}

// A Socket is the TCP connection beneath a stream.
type Socket struct {
	// TCP is nil where the stream has no TCP connection for itself, or has one that
	// can't be known.
	TCP *net.TCPConn
	// Plain says that the stream's bytes are those of the TCP connection, so that the
	// kernel may move them; else they are a transport's.
	Plain bool
}

// ErrNoCloseWrite says that a connection can't end one direction alone.
var ErrNoCloseWrite = fmt.Errorf("the connection can't end one direction alone: %w", errors.ErrUnsupported)

// ahead gives back what was read before.
type ahead struct {
	Conn
	mu   sync.Mutex
	rest []byte
}

// Ahead is c, with bytes that were read from it already in front of the others.
func Ahead(c Conn, bytes []byte) Conn {
	if len(bytes) == 0 {
		return c
	}
	return &ahead{Conn: c, rest: bytes}
}

func (a *ahead) Read(p []byte) (int, error) {
	a.mu.Lock()
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
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
