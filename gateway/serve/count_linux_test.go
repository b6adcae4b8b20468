package serve

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

// The connections are this process's own, which has a group to itself for a while.
func TestCount(t *testing.T) {
	before := syscall.Getpgrp()
	if err := syscall.Setpgid(0, 0); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setpgid(0, before)
	group := os.Getpid()
	for _, c := range []struct{ listen, dial string }{
		{"127.0.0.1:0", "127.0.0.1"},
		{"[::1]:0", "::1"},
		{"[::]:0", "::ffff:127.0.0.1"},
	} {
		ln, err := net.Listen("tcp", c.listen)
		if err != nil {
			t.Log(err) // no IPv6 here
			continue
		}
		port := uint16(ln.Addr().(*net.TCPAddr).Port)
		to := netip.AddrPortFrom(netip.MustParseAddr(c.dial), port)
		want := func(want int64, when string) {
			t.Helper()
			n, listening, err := count(group, to)
			if n != want || !listening || err != nil {
				t.Errorf("%s, %s: %d, %v, %v; want %d", to, when, n, listening, err, want)
			}
		}
		want(0, "before")
		near, err := net.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		want(1, "connected") // the other end is no connection to the address
		far.Close()
		want(1, "the service has ended it")
		near.Close()
		want(0, "closed")
		ln.Close()
	}
	if _, _, err := count(1<<30, netip.AddrPort{}); !os.IsNotExist(err) {
		t.Errorf("no such process: %v", err)
	}
}
