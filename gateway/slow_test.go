//go:build !windows

// On Windows a program can't be asked to let go of its port.

package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/inbound"
	"ptgate/gateway/supervise"
	"ptgate/integration/ports"
)

// A slow is the test's side of all slowPTs.
type slow struct {
	t    testing.TB
	addr string
	asks chan slowAsk
}

type slowAsk struct {
	what string
	conn net.Conn
}

func newSlow(t testing.TB) *slow {
	s := &slow{t: t, asks: make(chan slowAsk, 100)}
	s.addr = origin(t, func(c *net.TCPConn) {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			s.asks <- slowAsk{lines.Text(), c}
		}
	})
	return s
}

// next waits until a program asks for what, and returns what lets it go on.
func (s *slow) next(what string) (release func()) {
	s.t.Helper()
	select {
	case a := <-s.asks:
		if a.what != what {
			s.t.Fatalf("the program asks to %s, not to %s", a.what, what)
		}
		return func() { a.conn.Write([]byte("\n")) }
	case <-time.After(time.Minute):
		s.t.Fatalf("no program asks to %s", what)
		return nil
	}
}

// text is a configuration that serves the slow transport.
func (s *slow) text(bind, option string) string {
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf(`
[listen]
socks5 = "127.0.0.1:0"
[[serve]]
transport = "slow"
bind = %q
options = { x = %q }
[pt.slow]
exec = [%q, "slow-pt", %q]
transports = ["slow"]
[[route]]
to = "*"
via = "direct"
[limits]
drain = "1m"
`, bind, option, exe, s.addr)
}

// Nobody who asks for the status waits for a transport's start or for a port, and a
// stop gives up a start that is under way.
func TestStatusDoesNotWait(t *testing.T) {
	slow := newSlow(t)
	bind := ports.Free(t)
	path := filepath.Join(t.TempDir(), "server.toml")
	cfg := loadText(t, path, slow.text(bind, "1"))
	g := gateway.New(cfg, "", slog.New(slog.NewTextHandler(&testLog{t: t}, nil)))
	status := func(state string, listeners, served int) {
		t.Helper()
		s := atOnce(t, g.Status)
		if s.State != state || s.Stopping != (state == gateway.Stopping) || len(s.Listeners) != listeners || len(s.Serve) != served {
			t.Errorf("%s, stopping %v, %d listeners and %d served; want %s, %d and %d", s.State, s.Stopping, len(s.Listeners), len(s.Serve), state, listeners, served)
		}
		if n := len(atOnce(t, func() []string { return g.Addresses(inbound.SOCKS5) })); n != listeners {
			t.Errorf("%s: %d addresses, want %d", state, n, listeners)
		}
		atOnce(t, g.Announced)
	}
	status(gateway.Starting, 0, 0)
	stop, endStop := context.WithCancel(context.Background())
	defer endStop()
	ran := make(chan error, 1)
	go func() { ran <- g.Run(stop, context.Background()) }()

	release := slow.next("start")
	status(gateway.Starting, 0, 0)
	if err := atOnce(t, func() error { return g.Reload(cfg) }); err == nil {
		t.Error("a reload before the start is through is no error")
	}
	release()
	<-g.Ready()
	status(gateway.Running, 1, 1)

	reload := func(text string) <-chan error {
		next := loadText(t, path, text)
		done := make(chan error, 1)
		go func() { done <- g.Reload(next) }()
		return done
	}
	// The same port with other options: the old program has to let go of it first.
	done := reload(slow.text(bind, "2"))
	release = slow.next("stop")
	status(gateway.Reloading, 1, 1)
	release()
	release = slow.next("start")
	status(gateway.Reloading, 1, 1)
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	status(gateway.Running, 1, 1)

	// Another port: both programs run for a moment.
	done = reload(slow.text(ports.Free(t), "3"))
	slow.next("start")
	status(gateway.Reloading, 1, 1)
	second := reload(slow.text(bind, "4")) // waits for its turn
	endStop()
	if err := <-done; err == nil {
		t.Error("a reload that the stop has broken off is no error")
	}
	if err := <-second; err == nil {
		t.Error("a reload after the stop is no error")
	}
	slow.next("stop")()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	status(gateway.Stopping, 0, 1)
}

// A stop waits neither for the first start, nor for a port that a reload waits for.
func TestStopWhileStarting(t *testing.T) {
	slow := newSlow(t)
	path := filepath.Join(t.TempDir(), "server.toml")
	cfg := loadText(t, path, slow.text("127.0.0.1:0", "1"))
	g := gateway.New(cfg, "", slog.New(slog.NewTextHandler(&testLog{t: t}, nil)))
	stop, endStop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- g.Run(stop, context.Background()) }()
	slow.next("start")
	endStop()
	if err := <-ran; err != nil {
		t.Errorf("a stop while starting: %v", err)
	}
}

func TestStopWhileReleasing(t *testing.T) {
	slow := newSlow(t)
	bind := ports.Free(t)
	path := filepath.Join(t.TempDir(), "server.toml")
	g := gateway.New(loadText(t, path, slow.text(bind, "1")), "", slog.New(slog.NewTextHandler(&testLog{t: t}, nil)))
	stop, endStop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- g.Run(stop, context.Background()) }()
	slow.next("start")()
	<-g.Ready()
	next := loadText(t, path, slow.text(bind, "2"))
	done := make(chan error, 1)
	go func() { done <- g.Reload(next) }()
	release := slow.next("stop")
	endStop()
	if err := <-done; err == nil {
		t.Error("a reload that the stop has broken off is no error")
	}
	if ln, err := net.Listen("tcp", bind); err == nil {
		ln.Close()
		t.Error("the reload has waited until the port was free")
	}
	release()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// A reload that fails after the port was given up for it brings back what was there.
func TestReloadFailsAfterRelease(t *testing.T) {
	addr := ports.Free(t)
	text := strings.Replace(fmt.Sprintf(farEnd, ""), `"127.0.0.1:0"`, fmt.Sprintf("%q", addr), 1)
	server := start(t, "server", text)
	near := start(t, "client", fmt.Sprintf(nearEnd, bridge(server)))
	o := origin(t, echo)
	live := mustAsk(t, near, o)
	before := server.Announced()
	changed := strings.Replace(text, "[exit]", "allow = [\"127.0.0.0/8\"]\n[[serve]]\ntransport = \"slow\"\nbind = \"127.0.0.1:0\"\n"+
		"[pt.slow]\nexec = [\"/does/not/exist\"]\ntransports = [\"slow\"]\n[exit]", 1)
	if err := server.Reload(loadText(t, server.path, changed)); err == nil {
		t.Fatal("a transport that does not start is no error")
	}
	if after := server.Announced(); len(after) != 1 || after[0].Address != before[0].Address || !slices.Equal(after[0].Args, before[0].Args) {
		t.Errorf("after the failed reload %v is served, before it was %v", after, before)
	}
	roundTrip(t, live, 1<<20)
	again := start(t, "client", fmt.Sprintf(nearEnd, bridge(server)))
	roundTrip(t, mustAsk(t, again, o), 1<<20)
}

// A server that could not be brought back is started by the next reload, also if its
// settings are the same as before.
func TestReloadAfterFailedReload(t *testing.T) {
	slow := newSlow(t)
	addr := ports.Free(t)
	text := strings.Replace(fmt.Sprintf(farEnd, ""), `"127.0.0.1:0"`, fmt.Sprintf("%q", addr), 1)
	server := start(t, "server", text)
	changed := loadText(t, server.path, slow.text(addr, "1"))
	done := make(chan error, 1)
	go func() { done <- server.Reload(changed) }()
	begin := slow.next("start") // the old server has let go of its port
	taken, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	begin()
	if err := <-done; err == nil {
		t.Fatal("a transport whose port is taken is no error")
	}
	if state := server.Status().Serve[0].PT.State; state != supervise.Stopped {
		t.Fatalf("with its port taken, the old server is %s", state)
	}
	taken.Close()
	if err := server.Reload(loadText(t, server.path, text)); err != nil {
		t.Fatal(err)
	}
	near := start(t, "client", fmt.Sprintf(nearEnd, bridge(server)))
	roundTrip(t, mustAsk(t, near, origin(t, echo)), 1<<10)
}
