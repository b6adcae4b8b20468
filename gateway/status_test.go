package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
)

// slowPT is the server side of a pluggable transport that asks the test at addr
// before it says that it is ready, and again before it closes its port.
func slowPT(addr string) {
	test, err := net.Dial("tcp", addr)
	if err != nil {
		os.Exit(90)
	}
	ask := func(what string) <-chan struct{} {
		may := make(chan struct{})
		fmt.Fprintln(test, what)
		go func() {
			test.Read(make([]byte, 1))
			close(may)
		}()
		return may
	}
	closed := make(chan struct{}) // by signal or end of input, as pt-spec has it
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		<-interrupts
		close(closed)
	}()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		interrupts <- os.Interrupt
	}()
	select {
	case <-ask("start"):
	case <-closed:
		os.Exit(0)
	}
	name, bind, _ := strings.Cut(os.Getenv("TOR_PT_SERVER_BINDADDR"), "-")
	ln, err := net.Listen("tcp", bind)
	if err != nil {
		os.Exit(91)
	}
	fmt.Printf("VERSION 1\nSMETHOD %s %s\nSMETHODS DONE\n", name, ln.Addr())
	<-closed
	<-ask("stop")
	ln.Close()
	os.Exit(0)
}

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
	if runtime.GOOS == "windows" {
		t.Skip("programs can't be asked to let go of a port")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slow{t, ln.Addr().String(), make(chan slowAsk, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					s.asks <- slowAsk{lines.Text(), c}
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
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
	case <-time.After(20 * time.Second):
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
drain = "2s"
`, bind, option, exe, s.addr)
}

// atOnce runs f, which waits for nothing that the test holds up.
func atOnce[T any](t testing.TB, f func() T) (got T) {
	t.Helper()
	done := make(chan T, 1)
	go func() { done <- f() }()
	select {
	case got = <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits")
	}
	return got
}

// Nobody who asks for the status waits for a transport's start or for a port, and a
// stop gives up a start that is under way.
func TestStatusDoesNotWait(t *testing.T) {
	slow := newSlow(t)
	bind := freeAddr(t)
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
	done = reload(slow.text(freeAddr(t), "3"))
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
	bind := freeAddr(t)
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
	addr := freeAddr(t)
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

// While a gateway stops it still says what is live.
func TestStatusWhileStopping(t *testing.T) {
	server, b := far(t, "")
	near := start(t, "client", fmt.Sprintf(nearEnd, b))
	c := mustAsk(t, near, origin(t, echo))
	c.Write([]byte("x")) // what comes back has gone all the way
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 2)
	go func() { stopped <- near.stop() }()
	for near.Status().State != gateway.Stopping {
		runtime.Gosched()
	}
	if s := near.Status(); s.Active != 1 || len(s.Bridges) != 1 || s.Bridges[0].Active != 1 {
		t.Errorf("the near end while stopping: %+v", s)
	}
	go func() { stopped <- server.stop() }()
	for server.Status().State != gateway.Stopping {
		runtime.Gosched()
	}
	if s := server.Status(); len(s.Serve) != 1 || s.Serve[0].Clients < 1 || s.Serve[0].Active != 1 {
		t.Errorf("the far end while stopping: %+v", s)
	}
	roundTrip(t, c, 1<<10)
	for range 2 {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
}

// The status and the log tell the same numbers: both are made from the same book.
func TestOneBook(t *testing.T) {
	closed := freeAddr(t)
	farBox, b := far(t, "")
	text := strings.Replace(fmt.Sprintf(nearEnd, b), "[[route]]\n", "[[route]]\nto = \".blocked.example\"\nvia = \"block\"\n"+
		"[bridge.dead]\n"+strings.Replace(b, "127.0.0.1:", "127.0.0.3:", 1)+"[[route]]\nto = \"dead.example\"\nvia = \"dead\"\n[[route]]\n", 1)
	near := start(t, "client", text)
	o := origin(t, echo)
	for range 3 {
		roundTrip(t, mustAsk(t, near, o), 1<<10)
	}
	live := mustAsk(t, near, o)
	live.Write([]byte("x"))
	if _, err := io.ReadFull(live, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	const times = 40
	for range times {
		for _, addr := range []string{"a.blocked.example:1", closed} {
			if _, err := ask(t, near, addr); err == nil {
				t.Fatalf("%s is no error", addr)
			}
		}
		c, err := net.Dial("tcp", near.Addresses(inbound.SOCKS5)[0])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		io.Copy(io.Discard, c)
		c.Close()
	}
	for range 2 {
		if _, err := ask(t, near, "dead.example:1"); err == nil {
			t.Fatal("a dead bridge is no error")
		}
	}

	s := near.Status()
	for s.Active != 1 || s.Bridges[0].Active != 1 { // the others end beside this
		runtime.Gosched()
		s = near.Status()
	}
	if got := values(s); got["relays"] != 1 || got["bridge_streams"] != 1 || got["bridge_carriers"] == 0 {
		t.Errorf("of one connection there is %v", got)
	}
	live.Close()
	near.stop()
	farBox.stop()
	s = near.Status()
	got := values(s)
	for name, want := range map[string]int64{
		"opened": 4, "relays": s.Active, "up_bytes": s.Up, "down_bytes": s.Down, "bridge_in_bytes": s.Bridges[0].In, "bridge_out_bytes": s.Bridges[0].Out,
		"bridge_streams": s.Bridges[0].Active, "bridge_carriers": int64(s.Bridges[0].Carriers),
		"refused": 2*times + 2, "foreign": times, "bridge_failed": 1,
	} {
		if got[name] != want {
			t.Errorf("%s: %d, want %d", name, got[name], want)
		}
	}
	if s.Up < 3<<10 || s.Bridges[0].In == 0 {
		t.Errorf("%d bytes up, %d over the bridge", s.Up, s.Bridges[0].In)
	}
	far := values(farBox.Status())
	if far["exit_refused"] != times || far["exit_opened"] != 4 || far["serve_in_bytes"] == 0 {
		t.Errorf("the far end: %v", far)
	}
	near.log.add(t, got)
	farBox.log.add(t, far)
}

// values adds up the outcomes of a status by name.
func values(s gateway.Status) map[string]int64 {
	n := map[string]int64{}
	for _, v := range s.Outcomes {
		n[v.Name] += v.Value
	}
	return n
}

// add holds the log's lines against the numbers of the outcomes that have lines.
func (l *testLog) add(t *testing.T, got map[string]int64) {
	t.Helper()
	said := l.sums()
	for _, r := range outcome.Rows() {
		if r.Message != "" && r.Level >= slog.LevelInfo && said[r.Message] != got[r.Name] {
			t.Errorf("%s: the lines add up to %d, the number is %d", r.Name, said[r.Message], got[r.Name])
		}
	}
}

// A server that could not be brought back is started by the next reload, also if its
// settings are the same as before.
func TestReloadAfterFailedReload(t *testing.T) {
	slow := newSlow(t)
	addr := freeAddr(t)
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
