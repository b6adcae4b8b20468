package builtin

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// A counter passes connections on to a server, and counts what comes back from it. It
// stands where the network does.
type counter struct {
	addr string
	back atomic.Int64
}

func countTo(t *testing.T, server string) *counter {
	t.Helper()
	c := new(counter)
	c.addr = orPort(t, func(from *net.TCPConn) {
		to, err := net.Dial("tcp", server)
		if err != nil {
			t.Errorf("dial the server: %v", err)
			return
		}
		defer to.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.Copy(to, from)
			_ = to.(*net.TCPConn).CloseWrite()
		})
		_, _ = io.Copy(from, io.TeeReader(to, c))
		_ = from.CloseWrite()
		wg.Wait()
	})
	return c
}

// Write counts what the TeeReader hands on next.
func (c *counter) Write(p []byte) (int, error) {
	c.back.Add(int64(len(p)))
	return len(p), nil
}

// What crosses the wire is never more than what the table says. Each connection has one
// write, because the end of a write does not show on the wire.
func TestCosts(t *testing.T) {
	for _, tt := range []struct {
		name, transport string
		tls             bool
	}{
		{"obfs4", nameObfs4, false},
		{"webtunnel over TLS", nameWebtunnel, true},
		{"webtunnel without TLS", nameWebtunnel, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := serverFor(t, tt.transport, nil)
			client := clientFor(t, tt.transport, nil)
			addr, args := bridge(l)
			count := countTo(t, addr)
			switch {
			case tt.tls:
				front, hash := tlsFront(t, l)
				count = countTo(t, front)
				args = argsOf("url", "https://front.example/secret", "addr", count.addr, "cert", hash)
			case tt.transport == nameWebtunnel:
				args = argsOf("url", "http://"+count.addr+"/secret")
			}
			// measure gives what one connection took, with writes of n bytes.
			measure := func(n ...int) int {
				count.back.Store(0)
				c, err := client.Dial(t.Context(), count.addr, args)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				s, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					for _, n := range n {
						if _, err := s.Write(make([]byte, n)); err != nil {
							t.Errorf("write: %v", err)
						}
					}
					_ = s.CloseWrite()
				})
				if _, err := io.Copy(io.Discard, c); err != nil {
					t.Errorf("read: %v", err)
				}
				wg.Wait()
				_ = s.Close()
				return int(count.back.Load())
			}
			handshake := 0
			for range 60 {
				handshake = max(handshake, measure())
			}
			if handshake > HandshakeCost(tt.transport) {
				t.Errorf("a handshake took %d bytes, more than %d", handshake, HandshakeCost(tt.transport))
			}
			for _, n := range []int{1, 100, 1426, 1427, 1428, 10_000, 64 << 10, 64<<10 + 1, 200_000} {
				took, limit := measure(n), HandshakeCost(tt.transport)+WireCost(tt.transport, n)
				if took > limit || took < n {
					t.Errorf("%d bytes took %d, want at most %d", n, took, limit)
				}
			}
			// Many writes: what is random in each is not hidden by the handshake.
			writes, limit, payload := make([]int, 300), HandshakeCost(tt.transport), 0
			for i := range writes {
				writes[i] = 1 + 17*i%3000
				limit += WireCost(tt.transport, writes[i])
				payload += writes[i]
			}
			took := measure(writes...)
			if took > limit {
				t.Errorf("%d writes took %d bytes, more than %d", len(writes), took, limit)
			}
			t.Logf("handshake up to %d, at most %d; each write %d bytes more than its payload, at most %d",
				handshake, HandshakeCost(tt.transport), (took-handshake-payload)/len(writes), (limit-HandshakeCost(tt.transport)-payload)/len(writes))
		})
	}
}

// The costs of all rows make sense, and so do those of a transport that is not known.
func TestCostsOfAll(t *testing.T) {
	for _, row := range append(Transports(), Transport{Name: "dust"}) {
		if h := HandshakeCost(row.Name); h < 1<<10 || h > 16<<10 {
			t.Errorf("%s: a handshake of %d bytes", row.Name, h)
		}
		if c := WireCost(row.Name, 0); c != 0 {
			t.Errorf("%s: nothing costs %d", row.Name, c)
		}
		last := 0
		for n := 1; n < 300_000; n += 997 {
			c := WireCost(row.Name, n)
			if c < n || c <= last {
				t.Fatalf("%s: %d bytes cost %d, fewer cost %d", row.Name, n, c, last)
			}
			last = c
		}
	}
}
