package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/outcome"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/integration/ports"
)

// What scanners and clients can cause as often as they like is counted, and fills no
// log: a few lines stand for all of a kind, one at once and then one for each period.
func TestOutcomes(t *testing.T) {
	closed := ports.Free(t)
	const times = 100
	for _, tt := range []struct {
		name    string
		deny    bool
		forward string
		limit   int
		send    string
		want    outcome.Outcome
	}{
		{name: "kept out", deny: true, want: outcome.ServeKeptOut},
		{name: "foreign", send: "GET / HTTP/1.1\r\n\r\n", want: outcome.ServeForeign},
		{name: "forward", forward: closed, want: outcome.ForwardFailed},
		{name: "over the limit", limit: -1, want: outcome.ServeOverLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := obfs4(false)
			c.Forward = tt.forward
			if tt.deny {
				c.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			}
			f := start(t, c, func(f *far) {
				f.level = slog.LevelInfo
				f.open = tt.deny || tt.forward == ""
				f.limits.Connections += tt.limit * f.limits.Connections
			})
			for range times {
				conn, err := f.try()
				if errors.Is(err, syscall.ECONNRESET) {
					continue // turned away already
				}
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(conn, tt.send)
				io.Copy(io.Discard, conn) // until it is turned away
				conn.Close()
			}
			f.Stop(context.Background(), 0)
			f.book.Close()
			if n := f.book.Total(tt.want); n != times {
				t.Errorf("%d are counted, of %d", n, times)
			}
			lines, sum := 0, 0
			for line := range strings.Lines(f.log.String()) {
				if strings.Contains(line, "pluggable transport") {
					continue
				}
				n := 1
				if _, more, ok := strings.Cut(line, " more="); ok {
					fmt.Sscan(more, &n)
				}
				lines, sum = lines+1, sum+n
			}
			if f.open != strings.Contains(f.log.String(), "client=127.0.0.1:") {
				t.Errorf("private %v: %s", !f.open, f.log)
			}
			if lines > times/10 || sum != times {
				t.Errorf("%d lines that stand for %d: %s", lines, sum, f.log)
			}
		})
	}
}

// The server's own numbers are the book's, and what has been moved stays there when
// the server has gone.
func TestNumbers(t *testing.T) {
	f := start(t, obfs4(false), nil)
	c := f.dial()
	io.WriteString(c, "\x05\x01\x00")
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if n := f.book.Total(outcome.ServeClients); n != 1 || f.Clients.Load() != 1 {
		t.Errorf("%d clients in the book, %d of the server", n, f.Clients.Load())
	}
	if n := f.book.Total(outcome.ServeStreams); n != 1 || f.Active() != 1 {
		t.Errorf("%d streams in the book, %d of the server", n, f.Active())
	}
	if n := f.book.Total(outcome.PTStarts); n != 1 {
		t.Errorf("%d starts", n)
	}
	f.Traffic.In.Add(100)
	f.Stop(context.Background(), 0)
	if n := f.book.Total(outcome.ServeIn); n < 100 {
		t.Errorf("%d bytes after the end", n)
	}
	if n := f.book.Total(outcome.ServeClients) + f.book.Total(outcome.ServeStreams); n != 0 {
		t.Errorf("%d clients and streams after the end", n)
	}
}

// What a connection moves is counted, whether it is a carrier or not.
func TestBytesWithoutCarrier(t *testing.T) {
	at := origin(t)
	forward := obfs4(false)
	forward.Forward = destination.Format(at)
	for name, c := range map[string]*config.Serve{"forward": forward, "bare SOCKS5": obfs4(false)} {
		t.Run(name, func(t *testing.T) {
			f := start(t, c, nil)
			conn := f.dial()
			if c.Forward == "" {
				if err := session.Handshake(conn, at, session.Auth{}); err != nil {
					t.Fatal(err)
				}
			}
			const size = 300 << 10
			echo(t, conn, size)
			conn.Close()
			f.Stop(context.Background(), time.Minute)
			in, out := f.book.Total(outcome.ServeIn), f.book.Total(outcome.ServeOut)
			if in != size || out != size {
				t.Errorf("%d bytes in and %d out, want %d", in, out, size)
			}
		})
	}
}

// Clients that a stop cuts off have failed in nothing, and nor has the fixed service.
func TestCutIsNoFailure(t *testing.T) {
	silent := start(t, obfs4(false), nil)
	silent.dial()
	for silent.Clients.Load() == 0 {
		runtime.Gosched()
	}
	silent.Stop(context.Background(), 0)
	if n := silent.book.Total(outcome.ServeHandshakeFailed); n != 0 {
		t.Errorf("%d clients have failed", n)
	}
	cfg := obfs4(false)
	cfg.Forward = "127.0.0.1:1"
	dialling := start(t, cfg, nil)
	c, peer := net.Pipe()
	defer peer.Close()
	dialling.endCut()
	dialling.forward(stream.From(c), "")
	if n := dialling.book.Total(outcome.ForwardFailed); n != 0 {
		t.Errorf("the service has failed %d times", n)
	}
}
