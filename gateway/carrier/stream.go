package carrier

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A Stream is one application's connection over a carrier. Reset and CloseWrite
// reach the other end; Close ends both directions, and what was written before
// still arrives. One goroutine may read while another writes.
type Stream struct {
	s     *yamux.Stream
	l     *link
	pacer pacer
	open  *atomic.Int64 // the client's count of streams; nil at the server
	ended atomic.Bool

	// Of a client's stream whose application was told of success in advance:
	// the reply is still to be read, by whoever reads first. Only the reader
	// touches these.
	pending bool
	auth    bool
	err     error
	settled func(error)
}

var _ stream.Conn = (*Stream)(nil)

// settle reads the reply that an optimistic stream still owes.
func (s *Stream) settle() error {
	if !s.pending {
		return s.err
	}
	s.pending = false
	s.err = readAnswers(s.s, s.auth)
	if s.err == nil {
		s.s.SetReadDeadline(time.Time{})
	}
	if s.settled != nil {
		s.settled(s.err)
		s.settled = nil
	}
	return s.err
}

// Read is that of net.Conn. On an optimistic stream the first call may return
// the far end's refusal, an *answer.Error.
func (s *Stream) Read(p []byte) (int, error) {
	if err := s.settle(); err != nil {
		return 0, err
	}
	n, err := s.s.Read(p)
	if n > 0 {
		// What could not be sent is news for the peer, who may have ended the
		// carrier since: there may be more to read.
		err = nil
	}
	return n, err
}

// WaitRead returns when Read won't block, so that an idle stream needs no buffer.
func (s *Stream) WaitRead() error {
	if err := s.settle(); err != nil {
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
// queueLimit bytes before it.
func (s *Stream) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n, err := s.s.Write(p[:min(len(p), maxMessage-frameHeader)])
		total += n
		if err != nil {
			s.l.queued.Add(int64(n))
			return total, err
		}
		s.l.pace(&s.pacer, n)
		p = p[n:]
	}
	return total, nil
}

// CloseWrite ends this side's direction.
func (s *Stream) CloseWrite() error { return s.s.CloseWrite() }

// Reset ends both directions at once; the peer sees a reset.
func (s *Stream) Reset() {
	s.forget()
	_ = s.s.Reset()
}

// WaitReset can't tell.
func (s *Stream) WaitReset() error { return errors.ErrUnsupported }

// Socket is none: the carrier's belongs to all of its streams.
func (s *Stream) Socket() stream.Socket { return stream.Socket{} }

// forget takes the stream out of the client's count.
func (s *Stream) forget() {
	if !s.ended.Swap(true) && s.open != nil {
		s.open.Add(-1)
	}
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

// readAnswers reads the exit's side of a SOCKS5 session.
func readAnswers(r io.Reader, auth bool) error {
	if err := readGreeting(r, auth); err != nil {
		return err
	}
	return readReply(r)
}

// An AuthError says that the user and password of the bridge are not what the far
// end wants.
type AuthError struct{ What string }

func (e *AuthError) Error() string { return "the far end " + e.What }

func badAuth(what string) error { return answer.New(answer.NoBridge, &AuthError{what}) }

// readGreeting reads the method (RFC 1928 section 3) and status (RFC 1929 section 2).
func readGreeting(r io.Reader, auth bool) error {
	var b [2]byte
	method := byte(0)
	if auth {
		method = 2
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return lost("method", err)
	}
	switch {
	case b[0] != 5:
		return answer.Errorf(answer.NoBridge, "the far end gives no SOCKS5 answer: version %d", b[0])
	case b[1] != method && auth:
		return badAuth("takes no user and password: remove them from the bridge")
	case b[1] == 0xff:
		return badAuth("asks for a user and password: set them in the bridge")
	case b[1] != method:
		return answer.Errorf(answer.NoBridge, "the far end chooses an unknown method, %d", b[1])
	case !auth:
		return nil
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return lost("authentication", err)
	}
	if b[1] != 0 {
		return badAuth("says that user or password of the bridge are wrong")
	}
	return nil
}

// readReply reads the reply to a request (RFC 1928 section 6).
func readReply(r io.Reader) error {
	var b [4 + 1 + 255 + 2]byte
	if _, err := io.ReadFull(r, b[:5]); err != nil {
		return lost("reply", err)
	}
	rest := 0
	switch b[3] {
	case 1:
		rest = 4 + 2 - 1
	case 3:
		rest = int(b[4]) + 2
	case 4:
		rest = 16 + 2 - 1
	default:
		return answer.Errorf(answer.NoBridge, "the far end's reply has an unknown address type, %d", b[3])
	}
	if _, err := io.ReadFull(r, b[5:5+rest]); err != nil {
		return lost("reply", err)
	}
	if reason := answer.FromSOCKS(b[1]); reason != answer.Success {
		return answer.New(reason, &Refusal{b[1]})
	}
	return nil
}

// A Refusal is the far end's own answer to a request: no other bridge to the
// same box would do better.
type Refusal struct {
	Code byte // RFC 1928 section 6
}

func (e *Refusal) Error() string {
	return fmt.Sprintf("the far end answers %#02x, %v", e.Code, answer.FromSOCKS(e.Code))
}

// Lost says that a carrier ended, or fell silent, before the answer came.
type Lost struct {
	Stage string
	Err   error
}

func (e *Lost) Error() string { return fmt.Sprintf("carrier lost, awaiting %s: %v", e.Stage, e.Err) }

func (e *Lost) Unwrap() error { return e.Err }

func lost(stage string, err error) error {
	reason := answer.NoBridge
	if t, ok := err.(interface{ Timeout() bool }); ok && t.Timeout() {
		reason, err = answer.Timeout, os.ErrDeadlineExceeded
	}
	return answer.New(reason, &Lost{stage, err})
}

// Handshake is the client's side of a SOCKS5 session with a server that need not
// be ours: one message a round trip, as such servers may expect. The caller
// bounds it with c's deadline. Errors are those of Open.
func Handshake(c net.Conn, t routes.Target, a Auth) error {
	request, err := appendRequest(nil, t, a)
	if err != nil {
		return err
	}
	r := newStepReader(c, request, a)
	if err := readGreeting(r, a.User != ""); err != nil {
		return err
	}
	return readReply(r)
}

// Greet is the part of Handshake before the request: it shows that the far end
// answers and takes a.
func Greet(c net.Conn, a Auth) error {
	greeting, err := appendGreeting(nil, a)
	if err != nil {
		return err
	}
	return readGreeting(newStepReader(c, greeting, a), a.User != "")
}

func newStepReader(c net.Conn, out []byte, a Auth) *stepReader {
	steps := []int{3} // greeting; what is left is the request
	if a.User != "" {
		steps = append(steps, 1+1+len(a.User)+1+len(a.Password))
	}
	return &stepReader{c: c, out: out, steps: steps}
}

// A stepReader writes the next message whenever the last one's answer, two
// bytes, has been read.
type stepReader struct {
	c     net.Conn
	out   []byte
	steps []int
	owed  int // bytes of answer still to be read before the next message
	last  bool
}

func (r *stepReader) Read(p []byte) (int, error) {
	if r.owed == 0 && !r.last {
		n := len(r.out)
		if len(r.steps) > 0 {
			n, r.steps = r.steps[0], r.steps[1:]
			r.owed = 2
		} else {
			r.last = true
		}
		if _, err := r.c.Write(r.out[:n]); err != nil {
			return 0, err
		}
		r.out = r.out[n:]
	}
	if !r.last {
		p = p[:min(len(p), r.owed)]
	}
	n, err := r.c.Read(p)
	if !r.last {
		r.owed -= n
	}
	return n, err
}
