package inbound

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"ptgate/routes"
)

// A few requests at a time may have a large head, and their places are given back.
func TestLargeHead(t *testing.T) {
	long := "X: " + strings.Repeat("x", largeHeader*3/4) + "\r\n"
	connect100 := strings.Replace(connectRequest("a.example:80"), "\r\n\r\n", "\r\n"+long+"\r\n", 1)
	get := strings.Replace(plainRequest, "\r\n\r\n", "\r\n"+long+"\r\n", 1)
	g := start(t, HTTP, dialFunc(func(ctx context.Context, rt routes.Target) (net.Conn, error) {
		return to(serve(t, func(c *net.TCPConn) {
			buf := make([]byte, 32<<10)
			for n := 0; n < len(long); {
				m, err := c.Read(buf)
				if err != nil {
					return
				}
				n += m
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			c.Read(buf) // until the other side leaves
		})).Dial(ctx, rt)
	}), nil)
	g.large.SetMax(1)
	taken := func(want int64) {
		for g.large.n.Load() != want {
			<-g.large.Moved()
		}
	}
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for range 3 {
		taken(0)
		p := connect(t, g.addr)
		for range 2 {
			p.send(get)
			p.expect(ok)
		}
		p.send(connect100)
		p.expect(established)
	}
	taken(0) // a tunnel needs none
	holds := connect(t, g.addr)
	holds.send(get[:len(get)-2])
	taken(1)
	second := connect(t, g.addr)
	second.send(get)
	second.expect("HTTP/1.1 431 ")
	holds.send(get[len(get)-2:] + "GET ") // half a request more
	holds.expect(ok)
	taken(0)
	third := connect(t, g.addr)
	third.send(get)
	third.expect(ok)
	taken(0)
}
