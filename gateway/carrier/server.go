package carrier

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/gateway/stream"
)

// Serve is the server's end of a carrier on conn, which comes from Sniff and is
// Serve's from then on. windows is shared by all carriers of the process. handle is called for each stream in a goroutine of its
// own and owns the stream; what it returns, if anything, is called in a fresh one,
// so that a long relay need not keep the large stack of a handshake. Serve returns when the carrier and all handlers have
// ended; the end of ctx ends the carrier, once the peer has got what was written.
func Serve(ctx context.Context, conn stream.Conn, maxStreams int, windows *Windows, traffic *Traffic, log *slog.Logger, handle func(*Stream) (then func())) error {
	l := newLink(conn, "", traffic)
	c := settings(maxStreams, log)
	s, err := yamux.Server(l, c, windows.managed(c))
	if err != nil {
		l.Close()
		return err
	}
	var wg sync.WaitGroup
	ended := make(chan struct{})
	wg.Go(func() {
		select {
		case <-ended:
		case <-ctx.Done():
			end(s, endGrace)
		}
	})
	for {
		ys, err := s.AcceptStream()
		if err != nil {
			close(ended)
			s.Close()
			l.Close()
			wg.Wait()
			if err == yamux.ErrRemoteGoAway || err == yamux.ErrSessionShutdown {
				return nil
			}
			return err
		}
		wg.Go(func() {
			if then := handle(&Stream{s: ys, l: l}); then != nil {
				wg.Go(then)
			}
		})
	}
}

// endGrace bounds how long a peer may take to read to the end.
const endGrace = 3 * time.Second

// end closes a session in order: its peer closes when it has read up to here. By
// force after grace.
func end(s *yamux.Session, grace time.Duration) {
	t := time.NewTimer(grace)
	defer t.Stop()
	sent := make(chan struct{})
	go func() { // ends with the session at the latest
		s.GoAway()
		close(sent)
	}()
	select {
	case <-s.CloseChan():
	case <-t.C:
	}
	s.Close()
	<-sent
}
