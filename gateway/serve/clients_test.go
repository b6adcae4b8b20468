package serve

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/exit"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
)

// A named is a connection of a client with that address.
type named struct {
	stream.Conn
	addr net.Addr
}

func (c named) RemoteAddr() net.Addr { return c.addr }

// A client whose connections fail keeps a place for each as long as for one that says
// nothing, so it fails no more often than the limit says. Others don't notice, and who has
// had a session keeps nothing.
func TestFailuresKeepPlaces(t *testing.T) {
	const most, limit = 3, 10 * time.Second
	hello := func(size byte) string {
		// Features, flags: a new session, its number and its secret; then three numbers.
		return carrier.Preamble + "\x00" + string(rune(size)) + "\x00\x00\x00\x00\x01" + strings.Repeat("i", 16) + strings.Repeat("s", 16) + "\x00\x00\x00"
	}
	for name, c := range map[string]struct {
		say   string
		keeps bool
	}{
		"leaves at once":          {"", true},
		"junk":                    {"junk", true},
		"half a hello":            {hello(40)[:20], true},
		"a hello without sense":   {hello(9)[:len(carrier.Preamble)+2+9], true},
		"a frame that is none":    {hello(40) + "\xff", true},
		"a session and then ends": {hello(40), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := slog.New(slog.DiscardHandler)
				book := outcome.New(log)
				s := &Server{cfg: obfs4(false), log: log, label: outcome.By("obfs4", "1"), deps: Deps{Exit: new(exit.Exit), Book: book,
					Limits: func() *config.Limits {
						return &config.Limits{Connections: 100, Handshake: limit, ClientCarriers: most}
					}}}
				s.stop, s.endStop = context.WithCancel(t.Context())
				s.cut, s.gone = s.stop, s.stop
				s.sessions = session.NewServer(nil, nil, func() session.ServerSettings { return session.ServerSettings{} }).
					Group(func() int { return 100 }, log, func(*session.Stream) func() { return nil })
				over := func(client string) int64 {
					before := book.Total(outcome.ServeOverLimit)
					near, far := net.Pipe()
					var wg sync.WaitGroup
					wg.Go(func() { s.handle(named{stream.From(far), &net.TCPAddr{IP: net.ParseIP(client)}}) })
					wg.Go(func() { io.Copy(io.Discard, near) })
					io.WriteString(near, c.say)
					<-time.After(time.Second)
					near.Close()
					wg.Wait()
					return book.Total(outcome.ServeOverLimit) - before
				}
				for range most {
					if over("192.0.2.1") != 0 {
						t.Error("too early, there is no place")
					}
				}
				if kept := over("192.0.2.1") == 1; kept != c.keeps {
					t.Errorf("its place is kept: %v", kept)
				}
				if over("192.0.2.2") != 0 {
					t.Error("another client has no place")
				}
				<-time.After(limit)
				if over("192.0.2.1") != 0 {
					t.Error("a place is kept for too long")
				}
				<-time.After(limit)
				s.clients.mu.Lock()
				if len(s.clients.count) != 0 {
					t.Errorf("%v are left", s.clients.count)
				}
				s.clients.mu.Unlock()
				s.sessions.Close()
				s.endStop()
				book.Close()
			})
		})
	}
}

// A client at client_streams gets the place of a half-closed connection of its own, but none
// for a carrier.
func TestClientMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{cfg: obfs4(false), deps: Deps{Halves: relay.NewHalves(nil),
			Limits: func() *config.Limits { return &config.Limits{HalfOpen: time.Hour} }}}
		for _, is := range []use{carriers, streams} {
			if !s.enterClient("x", is, 1) || s.enterClient("x", is, 1) {
				t.Fatal("there is not one place")
			}
		}
		app, near := net.Pipe()
		origin, far := net.Pipe()
		defer app.Close()
		done := make(chan error, 1)
		go func() { done <- relay.Run(t.Context(), stream.From(near), stream.From(far), s.relayOptions("x")) }()
		origin.Close()
		<-time.After(relay.LeastSilence)
		if s.enterClient("x", carriers, 1) || s.enterClient("y", streams, 0) && s.enterClient("y", streams, 1) {
			t.Error("a place of something else")
		}
		if !s.enterClient("x", streams, 1) || s.enterClient("x", streams, 1) {
			t.Error("not the place of one half-closed connection")
		}
		if err := <-done; !errors.Is(err, relay.ErrRoom) {
			t.Errorf("the half-closed connection: %v", err)
		}
	})
}
