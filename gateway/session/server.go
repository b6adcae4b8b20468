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

// A Server is the far end of all sessions of a process. What its clients have sent and
// nobody has read yet is bounded for all of them together. The zero value is ready to use.
type Server struct{ memory memory }

// ServeOptions are those of one connection.
type ServeOptions struct {
	MaxStreams int // at once
	Traffic    *carrier.Traffic
	Log        *slog.Logger
	Lost       func(silent time.Duration) // as in carrier.Options
}

// Serve serves what a client sends over conn, which comes from carrier.Sniff and is
// Serve's from then on. handle is called for each stream in a goroutine of its own and
// owns the stream. What it returns, if anything, is called in a fresh goroutine, so that a
// long relay need not keep the large stack of a handshake. Serve returns when the
// connection and all handlers have ended. The end of ctx ends the connection, once the
// peer has got what was written.
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

// endGrace bounds how long a peer may take to read to the end.
const endGrace = 3 * time.Second

// endInOrder closes a carrier's streams in order: the peer closes when it has read up to
// here. By force after grace.
func endInOrder(y *yamux.Session, grace time.Duration) {
	t := time.NewTimer(grace)
	defer t.Stop()
	sent := make(chan struct{})
	go func() { // ends with y at the latest
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
