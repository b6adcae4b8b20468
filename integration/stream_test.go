//go:build integration

package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"ptgate/integration/ports"
	"strings"
	"syscall"
	"testing"
)

// A way is one of the roads from an application to a server on loopback.
type way struct {
	name string
	open func(t *testing.T, addr string) *net.TCPConn
}

// httpOpen asks an HTTP proxy for a tunnel.
func httpOpen(t *testing.T, proxy, authority string) *net.TCPConn {
	t.Helper()
	c := dial(t, proxy)
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); { // not a byte beyond it
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("CONNECT: %v after %q", err, head)
		}
		head = append(head, b[0])
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		t.Fatalf("CONNECT: %q", head)
	}
	return c
}

// ways starts a gateway that leads names through an exit and loopback addresses
// directly.
func ways(t *testing.T, more string) []way {
	t.Helper()
	s, c := pairFiles(t, "--address", ports.Free(t))
	run(t, "server", debugLog+s, setting{hosts: originHosts})
	client := run(t, "client", debugLog+more+replace(t, c, "[[route]]\nto  = \"*\"\n", "[[route]]\nto = \"127.0.0.0/8\"\nvia = \"direct\"\n[[route]]\nto  = \"*\"\n"), setting{})
	socks := func(name string) func(*testing.T, string) *net.TCPConn {
		return func(t *testing.T, addr string) *net.TCPConn {
			t.Helper()
			c, reply := socksOpen(t, client.socks(), name, portOf(t, addr))
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			return c
		}
	}
	tunnel := func(name string) func(*testing.T, string) *net.TCPConn {
		return func(t *testing.T, addr string) *net.TCPConn {
			t.Helper()
			return httpOpen(t, client.http(), net.JoinHostPort(name, portOf(t, addr)))
		}
	}
	return []way{
		{"exit, SOCKS5", socks(originName)},
		{"exit, HTTP", tunnel(originName)},
		{"direct, SOCKS5", socks("127.0.0.1")},
		{"direct, HTTP", tunnel("127.0.0.1")},
	}
}

// TestHalfClose has a server that answers only when it has heard everything, and
// then says much.
func TestHalfClose(t *testing.T) {
	const size = 8 << 20
	addr := serveTCP(t, func(c *net.TCPConn) {
		h := sha256.New()
		if _, err := io.Copy(h, c); err != nil {
			return
		}
		io.WriteString(c, sum(h))
		io.CopyN(c, noise("reply"), size)
	})
	for _, w := range ways(t, "") {
		t.Run(w.name, func(t *testing.T) {
			for i := range 3 { // the first is new to the gateway, the others are not
				c := w.open(t, addr)
				if _, err := io.CopyN(c, noise("request"), 1<<20); err != nil {
					t.Fatal(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(c)
				if err != nil {
					t.Fatalf("round %d: %v after %d bytes", i, err, len(got))
				}
				if want := noiseSum("request", 1<<20); !strings.HasPrefix(string(got), want) {
					t.Errorf("round %d: the server heard something else", i)
				} else if got = got[len(want):]; fmt.Sprintf("%x", sha256.Sum256(got)) != noiseSum("reply", size) {
					t.Errorf("round %d: a reply of %d bytes, want %d", i, len(got), size)
				}
				c.Close()
			}
		})
	}
}

// TestReset: what ends in a reset at one end must not look complete at the other.
func TestReset(t *testing.T) {
	sawReset := make(chan error, 1)
	abrupt := serveTCP(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		io.CopyN(c, noise("partial"), 100<<10)
		c.Read(make([]byte, 1)) // until the client has it all
		c.SetLinger(0)
	})
	watching := serveTCP(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		sawReset <- err
	})
	for _, w := range ways(t, "") {
		t.Run(w.name+" by the server", func(t *testing.T) {
			c := w.open(t, abrupt)
			io.WriteString(c, "x")
			got := make([]byte, 100<<10)
			if _, err := io.ReadFull(c, got); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%x", sha256.Sum256(got)) != noiseSum("partial", 100<<10) {
				t.Error("what came before the reset is not what was sent")
			}
			io.WriteString(c, "x")
			if n, err := c.Read(got); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after the server's reset: %d bytes, error %v, want a reset", n, err)
			}
		})
		t.Run(w.name+" by the client", func(t *testing.T) {
			c := w.open(t, watching)
			io.WriteString(c, "x")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			c.SetLinger(0)
			c.Close()
			if err := <-sawReset; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server saw %v, want a reset", err)
			}
		})
	}
}
