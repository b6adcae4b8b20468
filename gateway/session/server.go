package session

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
)

// A Server is the far end of all sessions of a process. It bounds the bytes that all its
// clients together have sent and that nobody has read yet. The zero value is ready to use.
type Server struct{ memory memory }

// ServeOptions are the options of one connection. Each has to be set.
type ServeOptions struct {
	MaxStreams int // streams at the same time
	Traffic    *carrier.Traffic
	Log        *slog.Logger
	Lost       func(silent time.Duration) // as in carrier.Options
}

// Serve serves the streams of one client. It owns conn, which comes from carrier.Sniff. It
// calls handle for each stream, in a goroutine of its own; handle owns the stream. If
// handle returns a function, Serve calls it in a new goroutine, so that a long relay does
// not keep the large stack of a handshake. Serve returns when the connection and all these
// goroutines have ended. When ctx ends, Serve closes the connection as soon as the peer
// has read all bytes that were written, or after a short time.
func (s *Server) Serve(ctx context.Context, conn stream.Conn, o ServeOptions, handle func(*Stream) (then func())) error {
	f := newFrames(carrier.Accept(conn, carrier.Options{Traffic: o.Traffic, Lost: o.Lost}))
	c := muxConfig(o.MaxStreams, o.Log)
	y, err := yamux.Server(f, c, s.memory.managed(c))
	if err != nil {
		f.Close()
		return err
	}
	var wg sync.WaitGroup
	ended := make(chan struct{})
	wg.Go(func() {
		select {
		case <-ended:
		case <-ctx.Done():
			endInOrder(y, endGrace)
		}
	})
	for {
		ys, err := y.AcceptStream()
		if err != nil {
			close(ended)
			y.Close()
			f.Close()
			wg.Wait()
			if err == yamux.ErrRemoteGoAway || err == yamux.ErrSessionShutdown {
				return nil
			}
			return err
		}
		wg.Go(func() {
			if then := handle(&Stream{s: ys, f: f}); then != nil {
				wg.Go(then)
			}
		})
	}
}

// endGrace is how long a peer may take to read the last bytes.
const endGrace = 3 * time.Second

// endInOrder asks the peer to close the connection when it has read all bytes. After
// grace, it closes the connection itself.
func endInOrder(y *yamux.Session, grace time.Duration) {
	t := time.NewTimer(grace)
	defer t.Stop()
	sent := make(chan struct{})
	go func() { // ends when y ends, at the latest
		y.GoAway()
		close(sent)
	}()
	select {
	case <-y.CloseChan():
	case <-t.C:
	}
	y.Close()
	<-sent
}
