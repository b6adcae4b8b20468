//go:build unix

package adapter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestServer has what a server child announces.
func TestServer(t *testing.T) {
	h := newHarness(t)
	a := NewServer(ServerConfig{Config: h.config("server"), Forward: "127.0.0.1:22"})
	for _, name := range []string{"fake", "other", "broken", "bare", "unmentioned"} {
		if err := a.AddTransport(name, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	h.start(a)
	for name, want := range map[string]ServerMethod{
		"fake":  {"127.0.0.1:4433", Args{{"cert", `a=b,c\`}, {"k", "1"}, {"k", "2"}, {"plain", "x=y"}}},
		"other": {"[::1]:2", nil},
		"bare":  {"0.0.0.0:443", nil},
	} {
		if got, err := a.Method(name); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("method %s: %+v %v, want %+v", name, got, err, want)
		}
	}
	for name, want := range map[string]error{"broken": ErrRefused, "unmentioned": ErrNotAnnounced, "never": ErrUnknownTransport} {
		if _, err := a.Method(name); !errors.Is(err, want) {
			t.Errorf("method %s: %v, want %v", name, err, want)
		}
	}
	if err := a.AddTransport("late", "", nil); !errors.Is(err, ErrStarted) {
		t.Errorf("add: %v", err)
	}
}

// TestServerEnvironment holds the variables of both kinds of server.
func TestServerEnvironment(t *testing.T) {
	want := []string{
		"TOR_PT_EXIT_ON_STDIN_CLOSE=1", "TOR_PT_MANAGED_TRANSPORT_VER=1",
		"TOR_PT_SERVER_BINDADDR=fake-127.0.0.1:0,other-[2001:db8::1]:443",
		"TOR_PT_SERVER_TRANSPORTS=fake,other",
		`TOR_PT_SERVER_TRANSPORT_OPTIONS=fake:a\:b\=c=d\;e=f\\;fake:a=2;other:k=`,
	}
	run := func(t *testing.T, h *harness, a interface {
		lifecycle
		Start(context.Context) error
		AddTransport(name, bind string, options Args) error
	}) map[string]string {
		if err := errors.Join(
			a.AddTransport("fake", "", Args{{"a:b=c", `d;e=f\`}, {"a", "2"}}),
			a.AddTransport("other", "[2001:db8::1]:443", Args{{"k", ""}}),
		); err != nil {
			t.Fatal(err)
		}
		h.start(a)
		event := h.waitEvent("environment", func(e Event) bool { return strings.HasPrefix(e.Message, "[") })
		var env []string
		if err := json.Unmarshal([]byte(event.Message), &env); err != nil {
			t.Fatal(err)
		}
		vars := map[string]string{}
		var got []string
		for _, v := range env {
			name, value, _ := strings.Cut(v, "=")
			switch name {
			case "TOR_PT_STATE_LOCATION", "TOR_PT_ORPORT", "TOR_PT_EXTENDED_SERVER_PORT", "TOR_PT_AUTH_COOKIE_FILE":
				vars[name] = value
			default:
				if strings.HasPrefix(name, "TOR_PT_") {
					got = append(got, v)
				}
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("environment %q, want %q", got, want)
		}
		return vars
	}
	t.Run("plain", func(t *testing.T) {
		h := newHarness(t)
		vars := run(t, h, NewServer(ServerConfig{Config: h.config("server environment"), Forward: "[::1]:22"}))
		if cookie, ok := vars["TOR_PT_AUTH_COOKIE_FILE"]; ok || vars["TOR_PT_ORPORT"] != "[::1]:22" || vars["TOR_PT_EXTENDED_SERVER_PORT"] != "" {
			t.Errorf("%q %q", vars, cookie)
		}
		info, err := os.Stat(vars["TOR_PT_STATE_LOCATION"])
		if err != nil || !strings.HasPrefix(vars["TOR_PT_STATE_LOCATION"], h.temp) || info.Mode().Perm() != 0o700 {
			t.Errorf("state %v %v", info, err)
		}
	})
	t.Run("ext", func(t *testing.T) {
		h := newHarness(t)
		a := NewExtServer(ExtServerConfig{Config: h.config("server environment")})
		vars := run(t, h, a)
		if port := a.Addr().String(); vars["TOR_PT_ORPORT"] != port || vars["TOR_PT_EXTENDED_SERVER_PORT"] != port {
			t.Errorf("%q, listening on %s", vars, port)
		}
		file, err := os.ReadFile(vars["TOR_PT_AUTH_COOKIE_FILE"])
		if err != nil || !bytes.Equal(file, append([]byte(cookieHeader), a.cookie[:]...)) || len(file) != 64 {
			t.Errorf("cookie file %q %v", file, err)
		}
		info, err := os.Stat(vars["TOR_PT_AUTH_COOKIE_FILE"])
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("cookie file %v %v", info, err)
		}
		info, err = os.Stat(filepath.Dir(vars["TOR_PT_AUTH_COOKIE_FILE"]))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("cookie directory %v %v", info, err)
		}
	})
}

// TestCookieRotates starts twice with one state directory: the second cookie
// is a new one, in a file that owes nothing to the first.
func TestCookieRotates(t *testing.T) {
	h := newHarness(t)
	state := t.TempDir()
	left := filepath.Join(state, "extorport", "extended_orport_auth_cookie")
	if err := errors.Join(os.Mkdir(filepath.Dir(left), 0o755), os.WriteFile(left, []byte("left by a crash"), 0o644)); err != nil {
		t.Fatal(err)
	}
	var cookies []cookie
	for range 2 {
		cfg := h.config("ext server")
		cfg.StateDir = state
		a := NewExtServer(ExtServerConfig{Config: cfg})
		if err := a.AddTransport("fake", "", nil); err != nil {
			t.Fatal(err)
		}
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(left)
		if err != nil || !bytes.HasSuffix(file, a.cookie[:]) {
			t.Errorf("cookie file %q %v", file, err)
		}
		if info, err := os.Stat(left); err != nil || info.Mode() != 0o600 {
			t.Errorf("cookie file %v %v", info, err)
		}
		cookies = append(cookies, a.cookie)
		h.end(a)
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("cookie file stays: %v", err)
		}
	}
	if cookies[0] == cookies[1] {
		t.Error("the cookie is not a new one")
	}
}

// TestCookieOfSuccessor starts a program while the one before still ends, in the same
// directory: the end of the old one leaves the new one's cookie alone.
func TestCookieOfSuccessor(t *testing.T) {
	h := newHarness(t)
	cfg := h.config("ext server")
	cfg.StateDir = t.TempDir()
	start := func() *ExtServerAdapter {
		a := NewExtServer(ExtServerConfig{Config: cfg})
		if err := errors.Join(a.AddTransport("fake", "", nil), a.Start(t.Context())); err != nil {
			t.Fatal(err)
		}
		return a
	}
	old := start()
	next := start()
	h.end(old)
	path := filepath.Join(cfg.StateDir, "extorport", "extended_orport_auth_cookie")
	if file, err := os.ReadFile(path); err != nil || !bytes.HasSuffix(file, next.cookie[:]) {
		t.Errorf("cookie file %q %v", file, err)
	}
	h.end(next)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cookie file stays: %v", err)
	}
}

// TestServerFailures has starts of servers that fail.
func TestServerFailures(t *testing.T) {
	h := newHarness(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		role, forward string
		stage         Stage
	}{
		"args":       {"server bad args", "127.0.0.1:1", StageMethods},
		"name":       {"server with a name", "127.0.0.1:1", StageMethods},
		"dies":       {"exits", "127.0.0.1:1", StageVersion},
		"no forward": {"server", "", StageConfig},
		"host name":  {"server", "localhost:22", StageConfig},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := NewServer(ServerConfig{Config: h.config(tt.role), Forward: tt.forward})
			if err := a.AddTransport("fake", "", nil); err != nil {
				t.Fatal(err)
			}
			err := a.Start(t.Context())
			if failure, ok := errors.AsType[*StartError](err); !ok || failure.Stage != tt.stage {
				t.Errorf("start: %v, want stage %q", err, tt.stage)
			}
		})
	}
	t.Run("ext without transports", func(t *testing.T) {
		a := NewExtServer(ExtServerConfig{Config: h.config("ext server")})
		if failure, ok := errors.AsType[*StartError](a.Start(t.Context())); !ok || failure.Stage != StageConfig {
			t.Errorf("start: %v", failure)
		}
		if _, err := a.Accept(); !errors.Is(err, net.ErrClosed) || !errors.Is(err, a.Err()) {
			t.Errorf("accept: %v", err)
		}
	})
	t.Run("ext dies", func(t *testing.T) {
		a := NewExtServer(ExtServerConfig{Config: h.config("exits after version")})
		a.AddTransport("fake", "", nil)
		if failure, ok := errors.AsType[*StartError](a.Start(t.Context())); !ok || failure.Stage != StageMethods {
			t.Errorf("start: %v", failure)
		}
	})
	t.Run("ext cookie", func(t *testing.T) {
		cfg := h.config("ext server")
		cfg.StateDir = t.TempDir()
		os.WriteFile(filepath.Join(cfg.StateDir, "extorport"), nil, 0o600)
		a := NewExtServer(ExtServerConfig{Config: cfg})
		a.AddTransport("fake", "", nil)
		if failure, ok := errors.AsType[*StartError](a.Start(t.Context())); !ok || failure.Stage != StageListen {
			t.Errorf("start: %v", failure)
		}
	})
	t.Run("transports", func(t *testing.T) {
		a := NewServer(ServerConfig{Config: h.config("server"), Forward: "127.0.0.1:1"})
		if err := a.AddTransport("fake", "127.0.0.1:443", nil); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name, bind string
			options    Args
		}{
			{"fake", "", nil}, {"a-b", "", nil}, {"", "", nil}, {"a", "localhost:1", nil}, {"a", "127.0.0.1", nil},
			{"a", ":1", nil}, {"a", "[fe80::1%lo]:1", nil}, {"a", "", Args{{"", "x"}}}, {"a", "", Args{{"a", "x\ny"}}},
		} {
			if err := a.AddTransport(tt.name, tt.bind, tt.options); err == nil {
				t.Errorf("add %q %q %q: no error", tt.name, tt.bind, tt.options)
			}
		}
		a.Close()
	})
}

// extServer makes a started ext server with the transport fake.
func (h *harness) extServer(change func(*ExtServerConfig)) *ExtServerAdapter {
	h.t.Helper()
	cfg := ExtServerConfig{Config: h.config("ext server")}
	if change != nil {
		change(&cfg)
	}
	a := NewExtServer(cfg)
	if err := a.AddTransport("fake", "", nil); err != nil {
		h.t.Fatal(err)
	}
	h.start(a)
	return a
}

// visit connects to where clients of an ext server do.
func (h *harness) visit(a *ExtServerAdapter) net.Conn {
	h.t.Helper()
	m, err := a.Method("fake")
	if err != nil {
		h.t.Fatal(err)
	}
	return h.connect(m.Addr)
}

func (h *harness) connect(addr string) net.Conn {
	h.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// accept is Accept, but not for ever.
func (h *harness) accept(a *ExtServerAdapter) net.Conn {
	h.t.Helper()
	late := time.AfterFunc(patience, func() { a.Close() })
	defer late.Stop()
	c, err := a.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// closedByPeer says whether all that comes is the end.
func closedByPeer(t *testing.T, c net.Conn) {
	t.Helper()
	got, err := io.ReadAll(c)
	if len(got) > 0 {
		t.Errorf("got %q", got)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Errorf("not closed: %v", err)
	}
}

// TestExtHandler goes the whole way from a client through a child to a handler.
func TestExtHandler(t *testing.T) {
	h := newHarness(t)
	infos := make(chan ClientInfo, 2)
	a := h.extServer(func(c *ExtServerConfig) {
		c.PreConnect = func(info ClientInfo) bool {
			infos <- info
			return info.Addr.Addr().IsLoopback()
		}
		c.Handler = func(_ context.Context, c net.Conn, info ClientInfo) {
			infos <- info
			fmt.Fprintln(c, c.RemoteAddr())
			// Without splice, whose pipes the runtime keeps for later.
			io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		}
	})
	client := h.visit(a)
	if got := readLine(t, client); got != client.LocalAddr().String() {
		t.Errorf("client is %s, seen as %s", client.LocalAddr(), got)
	}
	echoes(t, client)
	want := ClientInfo{"fake", netip.MustParseAddrPort(client.LocalAddr().String())}
	for range 2 {
		if got := await(t, "client info", infos); got != want {
			t.Errorf("info %+v, want %+v", got, want)
		}
	}
}

// TestExtDenied has a client that PreConnect turns away.
func TestExtDenied(t *testing.T) {
	h := newHarness(t)
	a := h.extServer(func(c *ExtServerConfig) {
		c.PreConnect = func(ClientInfo) bool { return false }
	})
	closedByPeer(t, h.visit(a))
	h.waitEvent("denied", onStderr(errDenied.Error()))
}

// TestExtClose expects Close to end handlers, connections that wait for
// Accept, and Accept itself.
func TestExtClose(t *testing.T) {
	t.Run("handlers", func(t *testing.T) {
		h := newHarness(t)
		entered := make(chan struct{})
		a := h.extServer(func(c *ExtServerConfig) {
			c.Handler = func(ctx context.Context, c net.Conn, _ ClientInfo) {
				close(entered)
				c.Read(make([]byte, 1))
				<-ctx.Done()
			}
		})
		h.visit(a)
		await(t, "handler", entered)
		h.end(a)
	})
	t.Run("handler closes", func(t *testing.T) {
		h := newHarness(t)
		var a *ExtServerAdapter
		ready := make(chan struct{})
		a = h.extServer(func(c *ExtServerConfig) {
			c.Handler = func(context.Context, net.Conn, ClientInfo) {
				<-ready
				a.Close()
			}
		})
		close(ready)
		h.visit(a)
		if err := h.wait(a); err != nil {
			t.Errorf("wait: %v", err)
		}
	})
	t.Run("accept", func(t *testing.T) {
		h := newHarness(t)
		a := h.extServer(nil)
		errs := make(chan error)
		go func() {
			_, err := a.Accept()
			errs <- err
		}()
		h.end(a)
		if err := await(t, "accept", errs); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if _, err := a.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
	})
	t.Run("exchange", func(t *testing.T) {
		h := newHarness(t)
		a := h.extServer(nil)
		c := h.connect(a.Addr().String())
		io.ReadFull(c, make([]byte, 2)) // it has begun
		h.end(a)
		closedByPeer(t, c)
	})
}

// TestExtChildDies expects what came in before to be served still.
func TestExtChildDies(t *testing.T) {
	h := newHarness(t)
	a := h.extServer(nil)
	c := h.connect(a.Addr().String())
	if err := extClient(c, a.cookie, "fake", "192.0.2.1:1"); err != nil {
		t.Fatal(err)
	}
	if err := a.proc.signal(kill); err != nil {
		t.Fatal(err)
	}
	await(t, "end", a.Done())
	got := h.accept(a)
	got.Close()
	_, err := a.Accept()
	if _, ok := errors.AsType[*ExitError](err); !ok || !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}

// TestExtTaken lets the child end in the moment in which a client has been told that its
// connection is taken.
func TestExtTaken(t *testing.T) {
	a := NewExtServer(ExtServerConfig{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.listener, a.cookie = ln, newCookie()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	inside, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	a.admit(inside)
	told := make(chan error, 1)
	go func() { told <- extClient(client, a.cookie, "fake", "192.0.2.1:1") }()
	conn, err := a.negotiate(inside.(*net.TCPConn))
	if err := errors.Join(err, <-told); err != nil {
		t.Fatal(err)
	}
	a.stopExchanges(filepath.Join(t.TempDir(), "cookie"))
	io.WriteString(client, "first words\n")
	if words := readLine(t, conn); words != "first words" {
		t.Errorf("got %q", words)
	}
}

// TestExtMany runs 1,000 exchanges at once, while nobody accepts: not one may
// wait for that.
func TestExtMany(t *testing.T) {
	const many = 1000
	h := newHarness(t)
	a := h.extServer(nil)
	start := make(chan struct{})
	errs := make(chan error, many)
	for i := range many {
		go func() {
			<-start
			c, err := net.Dial("tcp", a.Addr().String())
			if err == nil {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				err = extClient(c, a.cookie, "fake", fmt.Sprintf("192.0.2.1:%d", i+1))
			}
			errs <- err
		}()
	}
	close(start)
	for range many {
		if err := await(t, "exchange", errs); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		return
	}
	ports := map[uint16]bool{}
	for range many {
		c := h.accept(a)
		ports[c.(*Conn).ClientInfo().Addr.Port()] = true
		c.Close()
	}
	if len(ports) != many {
		t.Errorf("%d different clients", len(ports))
	}
}

// TestExtBacklog fills the backlog: further clients are denied at once, until
// somebody accepts.
func TestExtBacklog(t *testing.T) {
	h := newHarness(t)
	a := h.extServer(func(c *ExtServerConfig) { c.Backlog = 2 })
	ask := func() error {
		return extClient(h.connect(a.Addr().String()), a.cookie, "fake", "192.0.2.1:1")
	}
	for i, want := range []error{nil, nil, errDenied, errDenied} {
		if err := ask(); err != want {
			t.Errorf("client %d: %v, want %v", i, err, want)
		}
	}
	c := h.accept(a)
	c.Close()
	if err := ask(); err != nil {
		t.Errorf("after accept: %v", err)
	}
}

// TestExtPending has peers that stall: they are bounded in number and in nobody's way.
func TestExtPending(t *testing.T) {
	h := newHarness(t)
	a := h.stalled(patience)
	stalled, another := h.connect(a.Addr().String()), h.connect(a.Addr().String())
	io.ReadFull(stalled, make([]byte, 2))
	io.ReadFull(another, make([]byte, 2))
	good := h.connect(a.Addr().String())
	if err := extAuthenticate(good, a.cookie); err != nil {
		t.Errorf("beside stalled ones: %v", err)
	}
	closedByPeer(t, h.connect(a.Addr().String())) // one too many
	if err := extAsk(good, command(commandDone, "")); err != nil {
		t.Errorf("beside stalled ones: %v", err)
	}
}

// stalled is an ext server for three peers at a time, each of which has that long.
func (h *harness) stalled(limit time.Duration) *ExtServerAdapter {
	h.t.Helper()
	a := NewExtServer(ExtServerConfig{Config: h.config("ext server"), MaxPending: 3})
	a.limit = limit
	if err := a.AddTransport("fake", "", nil); err != nil {
		h.t.Fatal(err)
	}
	h.start(a)
	return a
}

// TestExtCutOff has peers that stall: they are cut off in time.
func TestExtCutOff(t *testing.T) {
	h := newHarness(t)
	a := h.stalled(time.Second)
	// A byte now and then does not prolong the exchange.
	slow := h.connect(a.Addr().String())
	var drip sync.WaitGroup
	defer drip.Wait()
	drip.Go(func() {
		for range time.Tick(20 * time.Millisecond) {
			if _, err := slow.Write([]byte{1}); err != nil {
				return
			}
		}
	})
	stalled := h.connect(a.Addr().String())
	io.ReadFull(stalled, make([]byte, 2))
	closedByPeer(t, stalled)
	if _, err := io.Copy(io.Discard, slow); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("bytes now and then prolong the exchange")
	}
}

// TestExtPeers has peers that do not do as they should.
func TestExtPeers(t *testing.T) {
	h := newHarness(t)
	a := h.extServer(nil)
	authenticated := func(commands ...[]byte) func(*testing.T, net.Conn) {
		return func(t *testing.T, c net.Conn) {
			if err := extAuthenticate(c, a.cookie); err != nil {
				t.Error(err)
			}
			c.Write(bytes.Join(commands, nil))
		}
	}
	done := command(commandDone, "")
	for name, play := range map[string]func(*testing.T, net.Conn){
		"wrong cookie": func(t *testing.T, c net.Conn) {
			if err := extAuthenticate(c, cookie{1}); err == nil || !strings.Contains(err.Error(), "server hash") {
				t.Errorf("authenticate: %v", err)
			}
			c.Write(make([]byte, 32))
			status := []byte{7}
			if _, err := io.ReadFull(c, status); err != nil || status[0] != 0 {
				t.Errorf("status %v %v, want 0", status, err)
			}
		},
		"wrong type":        func(t *testing.T, c net.Conn) { io.CopyN(io.Discard, c, 2); c.Write([]byte{2}) },
		"no type":           func(t *testing.T, c net.Conn) { io.CopyN(io.Discard, c, 2); c.Write([]byte{0}) },
		"gone in the nonce": func(t *testing.T, c net.Conn) { io.CopyN(io.Discard, c, 2); c.Write([]byte{1, 2}); closeWrite(c) },
		"gone in the hash": func(t *testing.T, c net.Conn) {
			io.CopyN(io.Discard, c, 2)
			c.Write(append([]byte{1}, make([]byte, 40)...))
			io.CopyN(io.Discard, c, 64)
			closeWrite(c)
		},
		"gone in a command": func(t *testing.T, c net.Conn) { authenticated([]byte{0, 1, 0, 9, 'x'})(t, c); closeWrite(c) },
		"address a name":    authenticated(command(commandUserAddr, "localhost:1"), done),
		"address empty":     authenticated(command(commandUserAddr, ""), done),
		"address half":      authenticated(command(commandUserAddr, "[::1"), done),
		"address too long":  authenticated(command(commandUserAddr, strings.Repeat("1", 2000)), done),
		"transport empty":   authenticated(command(commandTransport, ""), done),
		"transport name":    authenticated(command(commandTransport, "a b"), done),
		"commands no end":   authenticated(command(9, strings.Repeat("x", 65535)), command(9, strings.Repeat("x", 65535)), command(9, "x"), done),
	} {
		t.Run(name, func(t *testing.T) {
			c := h.connect(a.Addr().String())
			play(t, c)
			closedByPeer(t, c)
		})
	}
	for body, want := range map[string]string{
		"192.0.2.1:5":          "192.0.2.1:5",
		"192.0.2.1":            "192.0.2.1:0",
		"[2001:db8::1]:5":      "[2001:db8::1]:5",
		"[2001:db8::1]":        "[2001:db8::1]:0",
		"2001:db8::1":          "[2001:db8::1]:0",
		"[::ffff:192.0.2.1]:5": "192.0.2.1:5",
	} {
		t.Run(body, func(t *testing.T) {
			c := h.connect(a.Addr().String())
			if err := extClient(c, a.cookie, "fake", body); err != nil {
				t.Fatal(err)
			}
			got := h.accept(a)
			defer got.Close()
			if info := got.(*Conn).ClientInfo(); info.Addr.String() != want || info.Transport != "fake" {
				t.Errorf("info %+v, want %s", info, want)
			}
			// Nothing of what follows the exchange is lost.
			io.WriteString(c, "first words\n")
			if words := readLine(t, got); words != "first words" {
				t.Errorf("got %q", words)
			}
		})
	}
	t.Run("says nothing", func(t *testing.T) {
		c := h.connect(a.Addr().String())
		if err := errors.Join(extAuthenticate(c, a.cookie), extAsk(c, done)); err != nil {
			t.Fatal(err)
		}
		got := h.accept(a)
		defer got.Close()
		if info := got.(*Conn).ClientInfo(); info != (ClientInfo{}) || got.RemoteAddr().String() != c.LocalAddr().String() {
			t.Errorf("info %+v, remote %v", info, got.RemoteAddr())
		}
	})
}

func closeWrite(c net.Conn) { c.(*net.TCPConn).CloseWrite() }
