package stream

import (
	"io"
	"net"
	"testing"
)

// What one end has sent, the other one has received, also where nobody has read it.
func TestReceivedAndSent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	near, far := From(c).Socket(), From(s).Socket()
	check := func(what string, get func() (int64, bool), least, most int64) {
		t.Helper()
		if n, ok := get(); !ok || n < least || n > most {
			t.Errorf("%s: %d, %v, want %d to %d", what, n, ok, least, most)
		}
	}
	check("received at first", near.Received, 0, 0)
	// The kernel counts the SYN as a byte.
	check("sent at first", far.Sent, 0, 1)
	for total := int64(0); total < 100_000; total += 10_000 {
		if _, err := s.Write(make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		check("received", near.Received, total+10_000, total+10_000)
		check("sent", far.Sent, total+10_000, total+10_001)
	}
	// The other direction, which nobody reads.
	if _, err := c.Write(make([]byte, 777)); err != nil {
		t.Fatal(err)
	}
	check("sent the other way", near.Sent, 777, 778)
	if err := From(s).WaitRead(); err != nil {
		t.Fatal(err)
	}
	check("received the other way", far.Received, 777, 777)

	c.Close()
	if n, ok := near.Received(); ok {
		t.Errorf("a closed connection has received %d", n)
	}
	if n, ok := (Socket{}).Sent(); ok {
		t.Errorf("no connection has sent %d", n)
	}
}
