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
// other end. Whoever has got the Stream closes it. One goroutine may read while another
// one writes.
type Stream struct {
	s      *yamux.Stream
	f      *frames
	pacer  pacer
	open   *atomic.Int64 // the client's count of streams; nil at the server
	closed atomic.Bool   // this side has closed the stream

	// For a stream of OpenEarly: owed says that the exit's answer has not been read yet.
	// The first Read reads it. Only the reader uses these fields.
	owed     bool
	method   socks5.Method
	err      error
	answered func(error)
}

var _ stream.Conn = (*Stream)(nil)

// readOwed reads the exit's answer if that has not been read yet.
func (s *Stream) readOwed() error {
	if !s.owed {
		return s.err
	}
	s.owed = false
	s.err = readAnswers(s.s, s.method)
	if s.err == nil {
		s.s.SetReadDeadline(time.Time{})
	}
	// If the application has left before the answer, the error may come from that.
	if s.answered != nil && (s.err == nil || isRefusal(s.err) || !s.closed.Load()) {
		s.answered(s.err)
	}
	s.answered = nil
	return s.err
}

// Read implements net.Conn. On a stream of OpenEarly, the first call may return the
// exit's refusal, an *answer.Error.
func (s *Stream) Read(p []byte) (int, error) {
	if err := s.readOwed(); err != nil {
		return 0, err
	}
	n, err := s.s.Read(p)
	if n > 0 {
		// yamux could not send a window update, because the carrier has ended. There may
		// be more bytes to read.
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

// Write implements net.Conn. It returns when p is in the queue and at most
// carrier.QueueLimit bytes are in front of its end.
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

// WaitReset implements stream.Conn. The end of the carrier counts as a reset.
func (s *Stream) WaitReset() error {
	return s.f.resets.wait(s.s.StreamID(), &s.closed, s.s.Session().CloseChan())
}

// Socket returns the zero Socket: the TCP connection of the carrier belongs to all its
// streams.
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

// Close ends this side's direction in order, so that all written bytes arrive. It ends
// the other direction by a reset: otherwise a peer that still writes would wait for
// ever.
func (s *Stream) Close() error {
	err := s.s.CloseWrite()
	s.Reset()
	return err
}

// LocalAddr is the local address of the carrier.
func (s *Stream) LocalAddr() net.Addr { return s.s.LocalAddr() }

// RemoteAddr is the remote address of the carrier.
func (s *Stream) RemoteAddr() net.Addr { return s.s.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error { return s.s.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.s.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }
