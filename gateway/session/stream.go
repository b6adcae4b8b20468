package session

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/adapter/socks5"
	"ptgate/gateway/stream"
)

// errReset says that the peer has reset a stream, or is gone.
var errReset error = yamux.ErrStreamReset

// A Stream is one application's connection in a session. Reset and CloseWrite reach the
// other end. Close ends both directions, and what was written before still arrives. One
// goroutine may read while another one writes.
type Stream struct {
	s      *yamux.Stream
	f      *frames
	pacer  pacer
	open   *atomic.Int64 // the client's count of streams; nil at the server
	closed atomic.Bool   // by this side

	// Of a client's stream whose application was told of success in advance: the exit's
	// answer is still to be read, by whoever reads first. Only the reader touches these.
	owed     bool
	method   socks5.Method
	err      error
	answered func(error)
}

var _ stream.Conn = (*Stream)(nil)

// readOwed reads the exit's answer, where it is still to be read.
func (s *Stream) readOwed() error {
	if !s.owed {
		return s.err
	}
	s.owed = false
	s.err = readAnswers(s.s, s.method)
	if s.err == nil {
		s.s.SetReadDeadline(time.Time{})
	}
	// If the application has left before the answer, nothing is known of it.
	if s.answered != nil && (s.err == nil || isRefusal(s.err) || !s.closed.Load()) {
		s.answered(s.err)
	}
	s.answered = nil
	return s.err
}

// Read is that of net.Conn. On a stream whose application was told of success in advance
// the first call may return the exit's refusal, an *answer.Error.
func (s *Stream) Read(p []byte) (int, error) {
	if err := s.readOwed(); err != nil {
		return 0, err
	}
	n, err := s.s.Read(p)
	if n > 0 {
		// The error is that of a window that could not be sent: the carrier may have
		// ended since. There may be more to read.
		err = nil
	}
	return n, err
}

// WaitRead returns when Read won't block, so that an idle stream needs no buffer.
func (s *Stream) WaitRead() error {
	if err := s.readOwed(); err != nil {
		return err
	}
	_, err := s.s.Read(nil)
	switch {
	case err == nil, err == io.EOF, errors.Is(err, yamux.ErrStreamReset), errors.Is(err, yamux.ErrTimeout):
		return err
	}
	return nil // as in Read: there is something to read, or Read has the error
}

// Write is that of net.Conn. It returns when p is queued, with at most
// carrier.QueueLimit bytes before it.
func (s *Stream) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n, err := s.s.Write(p[:min(len(p), maxMessage-frameHeader)])
		total += n
		if err != nil {
			s.f.pace.queued.Add(int64(n))
			return total, err
		}
		s.f.pace.put(&s.pacer, n)
		p = p[n:]
	}
	return total, nil
}

// CloseWrite ends this side's direction.
func (s *Stream) CloseWrite() error { return s.s.CloseWrite() }

// Reset ends both directions at once; the peer sees a reset.
func (s *Stream) Reset() {
	s.end()
	_ = s.s.Reset()
}

// WaitReset is that of stream.Conn. The end of the carrier counts as a reset.
func (s *Stream) WaitReset() error {
	return s.f.resets.wait(s.s.StreamID(), &s.closed, s.s.Session().CloseChan())
}

// Socket is none: the carrier's belongs to all of its streams.
func (s *Stream) Socket() stream.Socket { return stream.Socket{} }

// end notes that this side has closed the stream.
func (s *Stream) end() {
	if s.closed.Swap(true) {
		return
	}
	if s.open != nil {
		s.open.Add(-1)
	}
	s.f.resets.closed(s.s.StreamID())
}

// Close ends this side's direction in order and the other by a reset: a peer
// that still writes has to be told, or it would wait for window for ever.
func (s *Stream) Close() error {
	err := s.s.CloseWrite()
	s.Reset()
	return err
}

// LocalAddr is the carrier's.
func (s *Stream) LocalAddr() net.Addr { return s.s.LocalAddr() }

// RemoteAddr is the carrier's.
func (s *Stream) RemoteAddr() net.Addr { return s.s.RemoteAddr() }

// SetDeadline is that of net.Conn.
func (s *Stream) SetDeadline(t time.Time) error { return s.s.SetDeadline(t) }

// SetReadDeadline is that of net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.s.SetReadDeadline(t) }

// SetWriteDeadline is that of net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }
