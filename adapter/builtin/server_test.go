package builtin

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter"
)

func TestListenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		cfg  ServerConfig
		want string
	}{
		"unknown":     {ServerConfig{Transport: "obfs9", Bind: "127.0.0.1:0"}, ErrUnknownTransport.Error()},
		"client only": {ServerConfig{Transport: nameMeekLite, Bind: "127.0.0.1:0"}, ErrUnknownTransport.Error()},
		"bind":        {ServerConfig{Transport: nameObfs4, Bind: "localhost:0"}, "bind address"},
		"no state":    {ServerConfig{Transport: nameObfs4, Bind: "127.0.0.1:0"}, "state directory"},
		"state":       {ServerConfig{Transport: nameObfs4, Bind: "127.0.0.1:0", StateDir: file + "/x"}, "state directory"},
		"half a key": {ServerConfig{Transport: nameObfs4, Bind: "127.0.0.1:0", StateDir: t.TempDir(),
			Options: argsOf("node-id", strings.Repeat("00", 20))}, "private-key"},
		"no url": {ServerConfig{Transport: nameWebtunnel, Bind: "127.0.0.1:0"}, "url"},
		"in use": {ServerConfig{Transport: nameWebtunnel, Bind: serverFor(t, nameWebtunnel, nil).Addr().String(),
			Options: argsOf("url", "http://x/")}, "in use"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Listen(tt.cfg)
			if err == nil {
				_ = l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// The keys outlive a restart and are for us alone.
func TestObfs4State(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	cfg := ServerConfig{Transport: nameObfs4, StateDir: dir, Bind: "127.0.0.1:0"}
	var before adapter.Args
	for range 2 {
		l, err := Listen(cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		if before != nil && !slices.Equal(before, l.Args()) {
			t.Errorf("args %v, then %v", before, l.Args())
		}
		before = l.Args()
	}
	if len(before) != 2 || before[0].Key != "cert" || before[1] != (adapter.Arg{Key: "iat-mode", Value: "0"}) {
		t.Errorf("args %v", before)
	}
	for name, want := range map[string]os.FileMode{
		"": os.ModeDir | 0o700, "obfs4_state.json": 0o600, "obfs4_bridgeline.txt": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%q: %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
}

func TestIATModes(t *testing.T) {
	for _, mode := range []string{"1", "2"} {
		l := serverFor(t, nameObfs4, func(c *ServerConfig) { c.Options = argsOf("iat-mode", mode) })
		if !slices.Contains(l.Args(), adapter.Arg{Key: "iat-mode", Value: mode}) {
			t.Errorf("args %v", l.Args())
		}
		client, server := connect(t, l, clientFor(t, nameObfs4, nil))
		data := randomBytes(t, 20_000)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = client.Write(data)
			_ = client.CloseWrite()
		})
		if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, data) {
			t.Errorf("mode %s: got %d bytes, %v", mode, len(got), err)
		}
		wg.Wait()
	}
}

// A prober that sends garbage is read from and not answered, until Close; it
// holds no place among the handshakes.
func TestProberIsKept(t *testing.T) {
	l := serverFor(t, nameObfs4, func(c *ServerConfig) { c.Handshakes = 1; c.Delayed = 2 })
	probe := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write(bytes.Repeat([]byte("x"), 9000)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := probe(), probe()
	// The one beyond the bound is closed.
	third := probe()
	_ = third.SetReadDeadline(time.Now().Add(limit))
	if n, err := third.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("beyond the bound: %d, %v", n, err)
	}
	// With the one place free again, others get in.
	client, server := connect(t, l, clientFor(t, nameObfs4, nil))
	_, _ = io.WriteString(client, "in")
	if _, err := io.ReadFull(server, make([]byte, 2)); err != nil {
		t.Error(err)
	}
	// The two are still read from.
	for _, c := range []net.Conn{first, second} {
		_ = c.SetDeadline(time.Now().Add(limit))
		if _, err := c.Write(make([]byte, 8<<20)); err != nil {
			t.Errorf("write: %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []net.Conn{first, second} {
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after Close: %d, %v", n, err)
		}
	}
}

func TestAdmit(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			asked := make(chan netip.AddrPort, 1)
			l := serverFor(t, transport, func(c *ServerConfig) {
				c.Admit = func(a netip.AddrPort) bool { asked <- a; return false }
			})
			addr, args := bridge(l)
			conn, err := clientFor(t, transport, nil).Dial(t.Context(), addr, args)
			if a := <-asked; !a.Addr().IsLoopback() {
				t.Errorf("asked for %v", a)
			}
			if err == nil {
				// webtunnel knows its client only after it has answered.
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			if err == nil {
				t.Error("let in")
			}
		})
	}
}

// What is no request, and what never ends, does not get in and does not grow.
func TestWebtunnelGarbage(t *testing.T) {
	l := serverFor(t, nameWebtunnel, nil)
	for name, request := range map[string]string{
		"garbage":   "\x16\x03\x01\x00\x00\r\n\r\n",
		"plain":     "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"endless":   "GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 1<<16),
		"long line": "GET /" + strings.Repeat("x", 1<<20),
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(limit))
		_, _ = io.WriteString(c, request)
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d, %v", name, n, err)
		}
		_ = c.Close()
	}
}

// Silent clients of one network leave places for the others.
func TestNetworkLimit(t *testing.T) {
	c := networkLimit{max: 2, count: make(map[netip.Prefix]int)}
	a := netip.MustParseAddr
	for i, step := range []struct {
		addr string
		want bool
	}{
		{"192.0.2.1", true}, {"192.0.2.1", true}, {"192.0.2.1", false}, {"192.0.2.2", true},
		{"2001:db8::1", true}, {"2001:db8::2", true}, {"2001:db8::3", false}, {"2001:db8:1::", true},
		{"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", true},
	} {
		if got := c.enter(a(step.addr)); got != step.want {
			t.Errorf("step %d, %s: %v", i, step.addr, got)
		}
	}
	c.leave(a("192.0.2.1"))
	if !c.enter(a("192.0.2.1")) {
		t.Error("no place after one has left")
	}
	for _, addr := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::", "127.0.0.1"} {
		c.leave(a(addr))
	}
	if len(c.count) != 0 {
		t.Errorf("left over: %v", c.count)
	}
}

// Handshakes that nobody accepts end with Close, as does a blocked Accept.
func TestCloseEndsEverything(t *testing.T) {
	for _, transport := range halfClosing {
		l := serverFor(t, transport, func(c *ServerConfig) { c.Handshakes = 2 })
		addr, args := bridge(l)
		c := clientFor(t, transport, nil)
		waiting, err := c.Dial(t.Context(), addr, args)
		if err != nil {
			t.Fatal(err)
		}
		silent, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: close: %v", transport, err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: accept: %v", transport, err)
		}
		for _, conn := range []net.Conn{waiting, silent} {
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%s: read %d, %v", transport, n, err)
			}
			_ = conn.Close()
		}
	}
}

// Where accept fails again and again, for want of descriptors, the log gets a line a
// minute.
func TestListenerWithoutDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l, err := Listen(ServerConfig{
			Transport: nameObfs4,
			StateDir:  t.TempDir(),
			Bind:      "127.0.0.1:0",
			Logger:    slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		// Every accept fails at once.
		if err := l.tcp.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		<-time.After(90 * time.Second)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines:\n%s", n, log.String())
		}
	})
}
