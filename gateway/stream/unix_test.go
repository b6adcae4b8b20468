//go:build unix

package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// unixPair makes a connection of Unix sockets.
func unixPair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return s.(*net.UnixConn), c.(*net.UnixConn)
}

// A Unix socket can do what a TCP connection can.
func TestUnix(t *testing.T) {
	near, far := unixPair(t)
	c := From(near)
	if s := c.Socket(); s.Unix != near || s.TCP != nil || s.Plain {
		t.Errorf("the socket is %+v", s)
	}
	far.Write([]byte("some words"))
	if err := c.WaitRead(); err != nil {
		t.Errorf("WaitRead: %v", err)
	}
	b := make([]byte, 100)
	if n, err := c.Read(b); string(b[:n]) != "some words" || err != nil {
		t.Errorf("after WaitRead there is %q, %v", b[:n], err)
	}
	c.SetReadDeadline(time.Unix(1, 0))
	if err := c.WaitRead(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})

	far.CloseWrite()
	if err := c.WaitRead(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if n, err := c.Read(b); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	gone := make(chan error, 1)
	go func() { gone <- c.WaitReset() }()
	c.Write([]byte("an answer"))
	if n, err := far.Read(b); string(b[:n]) != "an answer" || err != nil {
		t.Errorf("behind its end it reads %q, %v", b[:n], err)
	}
	select {
	case err := <-gone:
		t.Fatalf("half-closed counts as gone: %v", err)
	default:
	}
	if HungUp(near) {
		t.Error("half-closed counts as closed")
	}
	far.Close()
	if !HungUp(near) {
		t.Error("the peer's close is not seen")
	}
	if err := <-gone; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer is gone: %v", err)
	}
}

func TestUnixCloseWrite(t *testing.T) {
	near, far := unixPair(t)
	c := From(near)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(far); len(b) != 0 || err != nil {
		t.Errorf("the peer reads %q, %v", b, err)
	}
	gone := make(chan error, 1)
	go func() { gone <- c.WaitReset() }()
	c.Close()
	if err := <-gone; !errors.Is(err, net.ErrClosed) {
		t.Errorf("WaitReset after the own close: %v", err)
	}
	near, far = unixPair(t)
	far.Write([]byte("unread"))
	From(near).Reset()
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset with unread bytes: %v", err)
	}
}
