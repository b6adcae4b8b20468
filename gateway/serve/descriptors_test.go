//go:build unix

package serve

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"ptgate/adapter/descriptors"
	"ptgate/gateway/stream"
)

// inside is a transport that changes no bytes.
type inside struct{ *net.TCPConn }

func (c inside) Abort()                { c.SetLinger(0); c.Close() }
func (c inside) Beneath() *net.TCPConn { return c.TCPConn }
func (c inside) WaitRead() error       { return nil }

// A client that has one of the last descriptors is turned away, however it comes: the
// connections under way need them.
func TestLastDescriptors(t *testing.T) {
	f := start(t, obfs4(false), nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const files = 16 // the new connections have higher numbers
	for range files {
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
	}
	for name, wrap := range map[string]func(*net.TCPConn) stream.Conn{
		"from a program": func(c *net.TCPConn) stream.Conn { return stream.FromProgram(c) },
		"inside":         func(c *net.TCPConn) stream.Conn { return stream.Inside(inside{c}) },
	} {
		t.Run(name, func(t *testing.T) {
			peer, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			peer.(*net.TCPConn).CloseWrite() // nobody waits for a request

			var before syscall.Rlimit
			if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
				t.Fatal(err)
			}
			few := before
			few.Cur = files
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
				t.Fatal(err)
			}
			supply := descriptors.Of(c)
			f.handle(wrap(c.(*net.TCPConn)))
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
				t.Fatal(err)
			}
			if supply != descriptors.Last {
				t.Fatalf("supply %d", supply)
			}
			peer.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := peer.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("%v, want a reset", err)
			}
			f.log.await(t, "few descriptors are left")
		})
	}
}
