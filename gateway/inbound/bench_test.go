package inbound

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"

	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// sink is an upstream without a network: it takes everything and has nothing.
type sink struct{ net.Conn }

func (sink) Close() error { return nil }

// BenchmarkConnection is one connection from dial to close, with the front alone:
// the Dialer costs nothing and the Relay closes at once. "bare" is the same
// without a front.
func BenchmarkConnection(b *testing.B) {
	accept := serve(b, func(c *net.TCPConn) {
		var buf [256]byte
		c.Read(buf[:])
		c.Write([]byte(noAuth + granted))
	})
	b.Run("bare", func(b *testing.B) {
		benchmark(b, accept, socksRequest("www.example.com", 443), len(noAuth+granted))
	})
	front := func(f Front) string {
		return start(b, f, dialFunc(func(context.Context, routes.Target) (net.Conn, error) { return sink{}, nil }),
			func(_ *Settings, c *Config) {
				c.Book = outcome.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
				c.Relay = func(_ context.Context, client, _ stream.Conn, _ []byte) { client.Close() }
			}).addr
	}
	b.Run("socks5", func(b *testing.B) {
		benchmark(b, front(SOCKS5), socksRequest("www.example.com", 443), len(noAuth+granted))
	})
	b.Run("connect", func(b *testing.B) {
		benchmark(b, front(HTTP), connectRequest("www.example.com:443"), len(established))
	})
	b.Run("mixed socks5", func(b *testing.B) {
		benchmark(b, front(Mixed), socksRequest("www.example.com", 443), len(noAuth+granted))
	})
	b.Run("mixed socks4a", func(b *testing.B) {
		benchmark(b, front(Mixed), socks4a("www.example.com", 443), len(granted4))
	})
	b.Run("mixed connect", func(b *testing.B) {
		benchmark(b, front(Mixed), connectRequest("www.example.com:443"), len(established))
	})
}

func benchmark(b *testing.B, addr, request string, reply int) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, reply)
		for pb.Next() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			io.WriteString(c, request)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Error(err)
			}
			c.Close()
		}
	})
}

// BenchmarkPlain is one request on a kept-alive connection.
func BenchmarkPlain(b *testing.B) {
	const response = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
	up := serve(b, func(c *net.TCPConn) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			io.WriteString(c, response)
		}
	})
	p := connect(b, start(b, HTTP, to(up), nil).addr)
	for b.Loop() {
		p.send(plainRequest)
		p.expect("HTTP/1.1 200 OK\r\n")
		for {
			line, err := p.r.ReadString('\n')
			if err != nil {
				b.Fatal(err)
			}
			if line == "\r\n" {
				break
			}
		}
		p.expect("hello")
	}
	b.ReportAllocs()
}
