package serve

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"ptgate/gateway/outcome"
)

// What scanners and clients can cause as often as they like is counted, and fills no
// log: each kind is one line, and one more that sums up.
func TestOutcomes(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	const times = 100
	for _, tt := range []struct {
		name    string
		deny    bool
		forward string
		limit   int
		send    string
		want    outcome.Outcome
		lines   int
	}{
		{name: "kept out", deny: true, want: outcome.ServeKeptOut, lines: 2},
		{name: "foreign", send: "GET / HTTP/1.1\r\n\r\n", want: outcome.ServeForeign, lines: 2},
		{name: "forward", forward: closed.Addr().String(), want: outcome.ForwardFailed, lines: 2},
		{name: "over the limit", limit: -1, want: outcome.ServeOverLimit, lines: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := obfs4(false)
			c.Forward = tt.forward
			if tt.deny {
				c.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			}
			f := start(t, c, func(f *far) {
				f.level = slog.LevelInfo
				f.limits.Connections += tt.limit * f.limits.Connections
			})
			for range times {
				var conn net.Conn
				if tt.deny {
					conn, err = net.Dial("tcp", f.Announced().Address)
				} else {
					conn, err = f.try()
				}
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
			log := f.log.String()
			lines := strings.Count(log, "\n") - strings.Count(log, "pluggable transport")
			if lines != tt.lines || !strings.Contains(log, "more=99 ") && !strings.Contains(log, "more=99\n") {
				t.Errorf("%d lines: %s", lines, log)
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
