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

// limit sets a number whose type is not the same on all systems.
func limit(l *syscall.Rlimit, n int) {
	for l.Cur = 0; n > 0; n-- {
		l.Cur++
	}
}

// A client that has one of the last descriptors is turned away, however it comes: the
// connections under way need them. It is served if others have come back meanwhile.
func TestLastDescriptors(t *testing.T) {
	f := start(t, obfs4(false), nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const files = 16 // the new connections have higher numbers
	program := func(c *net.TCPConn) stream.Conn { return stream.FromProgram(c) }
	for _, tt := range []struct {
		name string
		wrap func(*net.TCPConn) stream.Conn
		back bool
	}{
		{"from a program", program, false},
		{"inside", func(c *net.TCPConn) stream.Conn { return stream.Inside(inside{c}) }, false},
		{"others have come back", program, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var others []*os.File
			for range files {
				file, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				others = append(others, file)
			}
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
			if tt.back {
				raw, err := c.(*net.TCPConn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				raw.Control(func(fd uintptr) { limit(&few, int(fd)+1) })
				for _, file := range others {
					file.Close()
				}
			}
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
				t.Fatal(err)
			}
			supply := descriptors.Of(c)
			f.handle(tt.wrap(c.(*net.TCPConn)))
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
				t.Fatal(err)
			}
			if supply != descriptors.Last {
				t.Fatalf("supply %d", supply)
			}
			if tt.back {
				f.log.await(t, "client left")
				return
			}
			peer.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := peer.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("%v, want a reset", err)
			}
			f.log.await(t, "few descriptors are left")
		})
	}
}
