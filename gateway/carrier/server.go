package carrier

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"github.com/libp2p/go-yamux/v5"
)

// Serve is the server's end of a carrier on conn, which comes from Sniff and is
// Serve's from then on. handle is called for each stream in a goroutine of its
// own and owns the stream. Serve returns when the carrier and all handlers have
// ended; the end of ctx ends the carrier.
func Serve(ctx context.Context, conn net.Conn, maxStreams int, traffic *Traffic, log *slog.Logger, handle func(*Stream)) error {
	l := newLink(conn, "", traffic)
	s, err := yamux.Server(l, settings(maxStreams, log), nil)
	if err != nil {
		l.Close()
		return err
	}
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { s.Close() })
	for {
		ys, err := s.AcceptStream()
		if err != nil {
			stop()
			s.Close()
			l.Close()
			wg.Wait()
			if err == yamux.ErrRemoteGoAway || err == yamux.ErrSessionShutdown {
				return nil
			}
			return err
		}
		wg.Go(func() { handle(&Stream{s: ys, l: l}) })
	}
}
