package builtin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"ptgate/adapter"
)

func TestMain(m *testing.M) {
	if os.Getenv("BUILTIN_TEST_ROLE") == "pt" {
		os.Exit(Main(context.Background(), os.Stdin, os.Stdout))
	}
	goleak.VerifyTestMain(m)
}

// serverFor listens on loopback; the test closes it.
func serverFor(t testing.TB, transport string, change func(*ServerConfig)) *Listener {
	t.Helper()
	cfg := ServerConfig{Transport: transport, StateDir: t.TempDir(), Bind: "127.0.0.1:0"}
	if change != nil {
		change(&cfg)
	}
	if transport == nameWebtunnel && cfg.Options == nil {
		cfg.Options = argsOf("url", "http://127.0.0.1/secret")
	}
	l, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the listener: %v", err)
		}
	})
	return l
}

// bridge is what a client needs to reach l.
func bridge(l *Listener) (addr string, args adapter.Args) {
	args = l.Args()
	if l.cfg.Transport == nameWebtunnel {
		args = argsOf("url", fmt.Sprintf("http://%s/secret", l.Addr()), "utls", "none")
	}
	return l.Addr().String(), args
}

func clientFor(t testing.TB, transport string, change func(*ClientConfig)) *Client {
	t.Helper()
	cfg := ClientConfig{Transport: transport}
	if change != nil {
		change(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pair gives both ends of a connection.
func pair(t testing.TB, transport string) (client, server Conn) {
	t.Helper()
	l := serverFor(t, transport, nil)
	return connect(t, l, clientFor(t, transport, nil))
}

func connect(t testing.TB, l *Listener, c *Client) (client, server Conn) {
	t.Helper()
	accepted := make(chan Conn, 1)
	go func() {
		s, err := l.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- s
	}()
	addr, args := bridge(l)
	client, err := c.Dial(t.Context(), addr, args)
	if err != nil {
		t.Fatal(err)
	}
	if server = <-accepted; server == nil {
		t.FailNow()
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server
}

// randomBytes has n bytes that no compression or repetition could hide a fault in.
func randomBytes(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// sum reads r to its end.
func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), n, err
}

// argsOf makes args of keys and values in turn.
func argsOf(pairs ...string) (args adapter.Args) {
	for i := 0; i < len(pairs); i += 2 {
		args.Add(pairs[i], pairs[i+1])
	}
	return args
}

// isReset reports whether err is a peer's way to end a connection abruptly.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
