// Package testkit has what the tests of several packages need. Only tests import it.
package testkit

import (
	"context"
	"net"
	"os"
	"testing"

	"ptgate/adapter/builtin"
)

// TCPPair is two ends of one TCP connection on loopback, closed at the end of the test.
func TCPPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		c.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// PT plays `ptgate pt` where a test binary was started with "pt" as its only word, as the
// program starts itself. It does not return then. TestMain calls it first.
func PT() {
	if len(os.Args) == 2 && os.Args[1] == "pt" {
		os.Exit(builtin.Main(context.Background(), os.Stdin, os.Stdout))
	}
}

// Root is for a test that only root can run, because it makes files of other users. Another
// user's run goes on without it. Where nothing may be left out, as in integration/test.sh,
// which always runs as root, that is a failure.
func Root(t testing.TB) {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case os.Getenv("PTGATE_TEST_ALL") != "":
		t.Fatal("only root can make files of others, and PTGATE_TEST_ALL is set")
	default:
		t.Skip("only root can make files of others")
	}
}
