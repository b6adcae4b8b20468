package serve

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
)

// breaksOff is an origin that sends a few bytes and then resets the connection, when it
// is told that they have arrived.
func breaksOff(t *testing.T) (addr netip.AddrPort, arrived chan<- struct{}) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	told, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, "half a ")
		<-told
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().(*net.TCPAddr).AddrPort(), told
}

// A program that asks without a carrier, as any SOCKS5 client behind any parent of a PT,
// must not take half a download for the whole.
func TestBareClientSeesReset(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		t.Run(fmt.Sprintf("isolate %t", isolate), func(t *testing.T) {
			f := start(t, obfs4(isolate), nil)
			addr, arrived := breaksOff(t)
			c := f.dial()
			c.Write([]byte{5, 1, 0})
			if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
				t.Fatal(err)
			}
			ip := addr.Addr().As4()
			c.Write(append(append([]byte{5, 1, 0, 1}, ip[:]...), byte(addr.Port()>>8), byte(addr.Port())))
			if _, err := io.ReadFull(c, make([]byte, 10+len("half a "))); err != nil {
				t.Fatal(err)
			}
			close(arrived)
			if n, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after half of it: %d bytes, %v; want a reset", n, err)
			}
		})
	}
}
