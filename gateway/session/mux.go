package session

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// Settings found by measurement; see the benchmarks of this package.
const (
	maxMessage   = 32 << 10 // of yamux, header and all
	streamWindow = 8 << 20  // bytes: enough for 30 MiB/s at 100 ms; as much is held for an application that does not read
	backlog      = 1024     // streams opened and not yet accepted
)

// muxConfig is yamux's configuration.
func muxConfig(maxStreams int, log *slog.Logger) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.EnableKeepAlive = false // the carrier asks the peer itself
	c.ConnectionWriteTimeout = carrier.DeadAfter
	c.MaxIncomingStreams = uint32(max(maxStreams, 0))
	// Windows must not grow: when yamux 5.1.0 doubles a window, it grants the sender
	// fewer bytes than it counts as granted. After a few doublings the stream stops for
	// ever.
	c.InitialStreamWindowSize, c.MaxStreamWindowSize = streamWindow, streamWindow
	c.ReadBufSize = 64 << 10
	c.MaxMessageSize = maxMessage
	c.LogOutput = &logWriter{log}
	return c
}

// logWriter passes yamux's log lines to slog. They name frames, never destinations.
type logWriter struct{ log *slog.Logger }

func (w *logWriter) Write(p []byte) (int, error) {
	_, text, _ := bytes.Cut(p, []byte("yamux: "))
	w.log.Debug("carrier", "yamux", string(bytes.TrimSpace(text)))
	return len(p), nil
}

// A mux is the client's end of the streams on one carrier.
type mux struct {
	yamux  *yamux.Session
	frames *frames

	open atomic.Int64 // open streams; yamux's own number counts some lost ones, too

	closing sync.Once
	mu      sync.Mutex
	closed  bool // wg takes no more
	wg      sync.WaitGroup
}

// newMux makes a carrier from conn, and owns conn also after an error.
func newMux(conn stream.Conn, o carrier.Options, log *slog.Logger) (*mux, error) {
	f := newFrames(carrier.Open(conn, o))
	y, err := yamux.Client(f, muxConfig(0, log), nil)
	if err != nil {
		f.Close()
		return nil, err
	}
	m := &mux{yamux: y, frames: f}
	f.Start(m.ask)
	return m, nil
}

// spawn runs f in a goroutine that close waits for. False: m is closed, and f does not
// run.
func (m *mux) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Go(f)
	return true
}

// ask sends a ping, and reports its answer to the carrier.
func (m *mux) ask() {
	m.spawn(func() {
		for range 2 {
			asked := time.Now()
			took, err := m.yamux.Ping()
			if err != nil || m.frames.Answered(asked, took) {
				return
			}
		}
	})
}

// done is closed when the carrier has ended.
func (m *mux) done() <-chan struct{} { return m.yamux.CloseChan() }

func (m *mux) streams() int { return int(m.open.Load()) }

// usable tells whether the peer of m answers, so that a new stream may use m.
func (m *mux) usable() bool {
	return !m.yamux.IsClosed() && !m.frames.Connecting() && !m.frames.Suspect()
}

// early has the arguments of OpenEarly for a request.
type early struct {
	answered func(error) // see OpenEarly
	limit    time.Duration
}

// request opens a stream and asks the exit for a connection to t. If e is nil, it waits
// for the exit's answer, and errors are as those of Client.Open. ctx bounds the call
// only.
func (m *mux) request(ctx context.Context, t routes.Target, a Auth, e *early) (*Stream, error) {
	message, err := request(t, a).Append(make([]byte, 0, 64))
	if err != nil {
		return nil, err
	}
	ys, err := m.openStream(ctx)
	if err != nil {
		return nil, lost("stream", err)
	}
	m.open.Add(1)
	s := &Stream{s: ys, f: m.frames, open: &m.open, method: a.Method()}
	undo := func(err error) (*Stream, error) {
		s.end()
		m.drop(ys)
		return nil, err
	}
	cancelled := context.AfterFunc(ctx, func() { ys.SetDeadline(time.Unix(1, 0)) })
	n, err := ys.Write(message)
	m.frames.pace.queued.Add(int64(n))
	if err != nil {
		cancelled()
		if errors.Is(err, yamux.ErrStreamReset) {
			// An exit that is at its limit answers before it reads the request.
			if answer := readAnswers(ys, s.method); isRefusal(answer) {
				return undo(answer)
			}
		}
		return undo(lost("request", err))
	}
	m.frames.Expect()
	if e != nil {
		if !cancelled() {
			return undo(lost("request", context.Cause(ctx)))
		}
		s.owed, s.answered = true, e.answered
		ys.SetReadDeadline(time.Now().Add(e.limit))
		return s, nil
	}
	err = readAnswers(ys, s.method)
	if !cancelled() || err != nil && ctx.Err() != nil {
		err = lost("reply", context.Cause(ctx))
	}
	if err != nil {
		return undo(err)
	}
	return s, nil
}

// drop resets a stream in a goroutine of its own. On a connection that does not move,
// the reset has to wait, but the caller must not.
func (m *mux) drop(s *yamux.Stream) {
	if !m.spawn(func() { s.Reset() }) {
		s.Reset()
	}
}

// openStream opens a stream of yamux. It gives yamux no context: if one ends in the
// middle of a call, yamux keeps the stream until the carrier ends.
func (m *mux) openStream(ctx context.Context) (*yamux.Stream, error) {
	type opened struct {
		s   *yamux.Stream
		err error
	}
	result := make(chan opened)
	if !m.spawn(func() {
		s, err := m.yamux.OpenStream(context.Background()) // ends with the carrier at the latest
		select {
		case result <- opened{s, err}:
		case <-ctx.Done():
			if err == nil {
				s.Reset()
			}
		}
	}) {
		return nil, carrier.ErrClosed
	}
	select {
	case o := <-result:
		return o.s, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// greet returns nil if the exit answers and accepts a.
func (m *mux) greet(ctx context.Context, a Auth) error {
	s, err := m.openStream(ctx)
	if err != nil {
		return lost("stream", err)
	}
	defer m.drop(s)
	defer context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })()
	m.frames.Expect()
	return Greet(s, a)
}

// close ends the carrier. All bytes that streams have written still arrive if the peer
// answers within grace. After grace, the connection is closed at once.
func (m *mux) close(grace time.Duration) {
	m.closing.Do(func() {
		if grace > 0 {
			endInOrder(m.yamux, grace)
		}
		m.yamux.Close()
		m.frames.Close()
		m.mu.Lock()
		m.closed = true
		m.mu.Unlock()
	})
	m.wg.Wait()
}
