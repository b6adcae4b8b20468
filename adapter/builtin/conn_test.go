package builtin

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// halfClosing is every transport whose both ends we have.
var halfClosing = []string{nameObfs4, nameWebtunnel}

// Each end sends 32 MiB while it receives as much, and closes its write side at
// once: nothing is lost and nothing is added.
func TestBulkBothWaysWithHalfClose(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			client, server := pair(t, transport)
			data := randomBytes(t, 4<<20)
			const times = 8
			want, _, _ := sum(io.MultiReader(repeat(data, times)...))
			var wg sync.WaitGroup
			for _, end := range []Conn{client, server} {
				wg.Go(func() {
					for range times {
						if _, err := end.Write(data); err != nil {
							t.Errorf("write: %v", err)
						}
					}
					if err := end.CloseWrite(); err != nil {
						t.Errorf("close write: %v", err)
					}
				})
				wg.Go(func() {
					got, n, err := sum(end)
					if err != nil || got != want {
						t.Errorf("got %d bytes with sum %s, error %v; want %d with %s", n, got, err, times*len(data), want)
					}
				})
			}
			wg.Wait()
		})
	}
}

func repeat(b []byte, n int) []io.Reader {
	rs := make([]io.Reader, n)
	for i := range rs {
		rs[i] = bytes.NewReader(b)
	}
	return rs
}

// A request that ends with the write side, then the whole answer.
func TestHalfCloseThenAnswer(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			client, server := pair(t, transport)
			answer := randomBytes(t, 8<<20)
			if _, err := io.WriteString(client, "ask"); err != nil {
				t.Fatal(err)
			}
			if err := client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := client.CloseWrite(); err != nil {
				t.Errorf("close write again: %v", err)
			}
			if _, err := client.Write([]byte("x")); !errors.Is(err, errWriteClosed) {
				t.Errorf("write after the end: %v", err)
			}
			asked, err := io.ReadAll(server)
			if err != nil || string(asked) != "ask" {
				t.Fatalf("asked %q, %v", asked, err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := server.Write(answer); err != nil {
					t.Errorf("answer: %v", err)
				}
				_ = server.Close()
			})
			got, err := io.ReadAll(client)
			wg.Wait()
			if err != nil || !bytes.Equal(got, answer) {
				t.Errorf("got %d bytes of %d, %v", len(got), len(answer), err)
			}
		})
	}
}

// A server that speaks first, at once: its words share segments with the
// handshake and must not be lost or held back.
func TestServerSpeaksFirst(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			l := serverFor(t, transport, nil)
			const greeting = "SSH-2.0-server\r\n\r\nmore"
			const n = 50
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				for range n {
					s, err := l.Accept()
					if err != nil {
						t.Errorf("accept: %v", err)
						return
					}
					_, _ = io.WriteString(s, greeting)
					wg.Go(func() {
						_, _ = io.Copy(io.Discard, s)
						_ = s.Close()
					})
				}
			})
			c := clientFor(t, transport, nil)
			addr, args := bridge(l)
			for range n {
				conn, err := c.Dial(t.Context(), addr, args)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(greeting))
				_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != greeting {
					t.Errorf("got %q, %v", got, err)
				}
				_ = conn.Close()
			}
		})
	}
}

// An aborted connection is an error for the peer, never io.EOF.
func TestAbortIsNoCleanEnd(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			client, server := pair(t, transport)
			if _, err := io.WriteString(server, "part"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 4)
			if _, err := io.ReadFull(client, got); err != nil {
				t.Fatal(err)
			}
			server.Abort()
			if _, err := client.Read(got); !isReset(err) {
				t.Errorf("after a reset: %v", err)
			}
		})
	}
}

// WaitRead returns where Read has something, and never sleeps on input that a Read
// with a small buffer has left in the transport.
func TestWaitRead(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			client, server := pair(t, transport)
			_ = client.SetReadDeadline(time.Now().Add(limit))
			data := randomBytes(t, 3000)
			if _, err := server.Write(data); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for buf := make([]byte, 7); len(got) < len(data); {
				if err := client.WaitRead(); err != nil {
					t.Fatal(err)
				}
				n, err := client.Read(buf)
				if err != nil {
					t.Fatalf("after %d bytes: %v", len(got), err)
				}
				got = append(got, buf[:n]...)
			}
			if !bytes.Equal(got, data) {
				t.Error("other bytes")
			}
			// A deadline that has passed is Read's to tell.
			_ = client.SetReadDeadline(time.Unix(1, 0))
			if err := client.WaitRead(); err != nil {
				t.Errorf("deadline: %v", err)
			}
			_ = client.SetReadDeadline(time.Now().Add(limit))
			server.Abort()
			if err := client.WaitRead(); err != nil && !isReset(err) {
				t.Errorf("reset: %v", err)
			}
			// Whoever has been told of the reset, it is no clean end.
			if _, err := client.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("read after the reset: %v", err)
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			client, server := pair(t, transport)
			past := time.Unix(1, 0)
			if err := client.SetReadDeadline(past); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("read: %v", err)
			}
			// Reading goes on after it.
			if err := client.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(server, "later"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(client, got); err != nil || string(got) != "later" {
				t.Fatalf("got %q, %v", got, err)
			}
			// A write deadline ends the connection for good.
			if err := client.SetWriteDeadline(past); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("write: %v", err)
			}
			_ = client.SetDeadline(time.Time{})
			if _, err := client.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("write after a broken one: %v", err)
			}
			if _, err := client.Read(got); err == nil || err == io.EOF {
				t.Errorf("read after a broken write: %v", err)
			}
		})
	}
}

// Close unblocks a reader, and a writer whose peer does not read.
func TestCloseUnblocks(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			client, server := pair(t, transport)
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := client.Read(make([]byte, 1)); err == nil {
					t.Error("read succeeded")
				}
			})
			full := make(chan struct{})
			wg.Go(func() {
				b := make([]byte, 1<<20)
				for i := 0; ; i++ {
					if i == 4 {
						close(full)
					}
					if _, err := client.Write(b); err != nil {
						return
					}
				}
			})
			// The peer takes a part and stops: the writer is soon blocked.
			if _, err := io.CopyN(io.Discard, server, 5<<20); err != nil {
				t.Fatal(err)
			}
			<-full
			if err := client.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			wg.Wait()
		})
	}
}

// explosive is a transport's connection that panics.
type explosive struct{ net.Conn }

func (explosive) Read([]byte) (int, error)  { panic("read") }
func (explosive) Write([]byte) (int, error) { panic("write") }
func (explosive) Close() error              { panic("close") }

func TestPanicIsAnError(t *testing.T) {
	a, b := tcpPair(t)
	c := newConn(&Transport{Name: "test"}, explosive{}, newLink(a, 0))
	for what, call := range map[string]func() error{
		"close": c.Close,
		"read":  func() error { _, err := c.Read(make([]byte, 1)); return err },
		"write": func() error { _, err := c.Write(make([]byte, 1)); return err },
	} {
		perr, ok := errors.AsType[*PanicError](call())
		// The first panic ends the connection; later calls report it.
		if !ok || perr.Transport != "test" || len(perr.Stack) == 0 {
			if what != "close" || c.broken.Load() == nil {
				t.Errorf("%s: %v", what, perr)
			}
		}
	}
	if _, err := b.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("the peer sees %v", err)
	}
}

// tcpPair is a TCP connection over loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = s.Close()
	})
	return c, s
}

func TestHandshakeIsBounded(t *testing.T) {
	a, b := tcpPair(t)
	if _, err := b.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	l := newLink(a, 1<<16)
	l.expect(60)
	if n, err := io.Copy(io.Discard, l); n != 60 || !errors.Is(err, errHandshakeTooLong) {
		t.Errorf("read %d, %v", n, err)
	}
	l.handshakeDone()
	if _, err := io.ReadFull(l, make([]byte, 40)); err != nil {
		t.Errorf("after the handshake: %v", err)
	}
}

// A write that has failed makes the end that the reader sees an error.
func TestEndAfterFailedWriteIsAnError(t *testing.T) {
	a, b := tcpPair(t)
	l := newLink(a, 0)
	var broken error = syscall.EPIPE
	l.failed.Store(&broken)
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(make([]byte, 1)); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("read: %v", err)
	}
}
