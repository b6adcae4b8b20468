package gateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/inbound"
	"ptgate/gateway/session"
	"ptgate/integration/ports"

	"ptgate/gateway/testkit"
)

// The test binary is its own `ptgate pt`.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "slow-pt" {
		slowPT(os.Args[2])
	}
	testkit.PT()
	goleak.VerifyTestMain(m)
}

type box struct {
	*gateway.Gateway
	path string
	log  *testLog
	stop func() error // in order; again: nothing
}

func loadText(t testing.TB, path, text string) *config.Config {
	t.Helper()
	text = fmt.Sprintf("state_dir = %q\n", path+".state") + text
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Load(path)
	if cfg == nil {
		t.Fatalf("configuration: %v", problems)
	}
	return cfg
}

// start runs a box until the test ends.
func start(t testing.TB, name, text string) *box {
	t.Helper()
	return startAt(t, filepath.Join(t.TempDir(), name+".toml"), text)
}

// startAt runs a box with a given file, and the state beside it.
func startAt(t testing.TB, path, text string) *box {
	t.Helper()
	cfg := loadText(t, path, text)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := &testLog{t: t}
	g := gateway.New(cfg, exe, slog.New(slog.NewJSONHandler(log, nil)))
	stop, endStop := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() { failed <- g.Run(stop, context.Background()) }()
	b := &box{Gateway: g, path: path, log: log}
	b.stop = sync.OnceValue(func() error {
		endStop()
		return <-failed
	})
	t.Cleanup(func() { b.stop() })
	select {
	case <-g.Ready():
	case err := <-failed:
		failed <- err
		t.Fatal(err)
	}
	return b
}

type testLog struct {
	t    testing.TB
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if os.Getenv("PTGATE_TEST_LOG") != "" {
		os.Stderr.Write(p)
	}
	return l.text.Write(p)
}

// sums tells what the lines of each message add up to, after the end of the box.
func (l *testLog) sums() map[string]int64 {
	l.t.Helper()
	n := map[string]int64{}
	for lines := json.NewDecoder(&l.text); lines.More(); {
		var line struct {
			Msg  string
			More int64
		}
		if err := lines.Decode(&line); err != nil {
			l.t.Fatal(err)
		}
		n[line.Msg] += max(line.More, 1)
	}
	return n
}

const farEnd = `
[[serve]]
transport = "obfs4"
bind = "127.0.0.1:0"
%s
[exit]
deny = []
[limits]
drain = "1m"
`

// far runs a server and gives the bridge's lines for a client's file.
func far(t testing.TB, more string) (*box, string) {
	t.Helper()
	b := start(t, "server", fmt.Sprintf(farEnd, more))
	return b, bridge(b)
}

func bridge(b *box) string {
	a := b.Announced()[0]
	var args []string
	for _, x := range a.Args {
		args = append(args, fmt.Sprintf("%s = %q", x.Key, x.Value))
	}
	return fmt.Sprintf("transport = %q\naddress = %q\nargs = { %s }\n", a.Transport, a.Address, strings.Join(args, ", "))
}

const nearEnd = `
[listen]
socks5 = "127.0.0.1:0"
http = "127.0.0.1:0"
[bridge.far]
%s
[[route]]
to = "*"
via = "far"
[limits]
drain = "1m"
`

// ask opens addr through a box's SOCKS5 front.
func ask(t testing.TB, near *box, addr string) (*net.TCPConn, error) {
	t.Helper()
	c, err := net.Dial("tcp", near.Addresses(inbound.SOCKS5)[0])
	if err != nil {
		t.Fatal(err)
	}
	target, err := destination.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	if err := session.Handshake(c, target, session.Auth{}); err != nil {
		c.Close()
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), nil
}

func mustAsk(t testing.TB, near *box, addr string) *net.TCPConn {
	t.Helper()
	c, err := ask(t, near, addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// origin serves each connection with serve.
func origin(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
}

func code(err error) byte {
	if r, ok := errors.AsType[*session.Refusal](err); ok {
		return r.Code
	}
	return 0
}

// roundTrip sends size random bytes and wants them back.
func roundTrip(t testing.TB, c *net.TCPConn, size int) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{7}).Read(data)
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Fatalf("%d bytes of %d came back, %v", len(got), size, err)
	}
}

func TestExit(t *testing.T) {
	_, b := far(t, "")
	near := start(t, "client", fmt.Sprintf(nearEnd, b))
	addr := origin(t, echo)
	for range 3 { // the first asks, the others are optimistic
		roundTrip(t, mustAsk(t, near, addr), 3<<20)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c, err := ask(t, near, addr)
			if err != nil {
				t.Error(err)
				return
			}
			roundTrip(t, c, 300<<10)
		})
	}
	wg.Wait()
}

func TestHalfCloseAndReset(t *testing.T) {
	const size = 8 << 20
	half := origin(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c) // until the client has shut its side
		c.Write(make([]byte, size))
	})
	reset := origin(t, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	})
	_, b := far(t, "")
	direct := strings.Replace(fmt.Sprintf(nearEnd, b), `via = "far"`, "via = \"direct\"\nprivate = true", 1)
	for name, text := range map[string]string{"exit": fmt.Sprintf(nearEnd, b), "direct": direct} {
		t.Run(name, func(t *testing.T) {
			near := start(t, "client", text)
			c := mustAsk(t, near, half)
			c.CloseWrite()
			if n, err := io.Copy(io.Discard, c); n != size || err != nil {
				t.Errorf("%d bytes of %d after a half-close, %v", n, size, err)
			}
			c = mustAsk(t, near, reset)
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			c.Write([]byte("y"))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a reset at the far end is %v at the near end", err)
			}
		})
	}
}

func TestForward(t *testing.T) {
	addr := origin(t, func(c *net.TCPConn) {
		b := make([]byte, 4)
		io.ReadFull(c, b)
		c.Write(append(b, make([]byte, 1<<20)...))
	})
	for _, isolate := range []bool{false, true} {
		t.Run(fmt.Sprintf("isolate=%v", isolate), func(t *testing.T) {
			pt := fmt.Sprintf("[pt.inside]\ntransports = [\"obfs4\"]\nisolate = %v\n", isolate)
			_, b := far(t, fmt.Sprintf("forward = %q\n%s", addr, pt))
			near := start(t, "client", fmt.Sprintf(nearEnd, b+"far = \"forward\"\n")+pt)
			c := mustAsk(t, near, "any.example:1")
			c.Write([]byte("ping"))
			got, err := io.ReadAll(c)
			if len(got) != 4+1<<20 || string(got[:4]) != "ping" || err != nil {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// A SOCKS5 server behind a PT that knows nothing of carriers: our own exit speaks
// bare SOCKS5, too.
func TestSOCKS5Behind(t *testing.T) {
	_, b := far(t, "")
	near := start(t, "client", fmt.Sprintf(nearEnd, b+"far = \"socks5\"\n"))
	c := mustAsk(t, near, origin(t, func(c *net.TCPConn) {
		c.Write(make([]byte, 1<<20))
	}))
	if n, err := io.Copy(io.Discard, c); n != 1<<20 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func TestAnswers(t *testing.T) {
	refused := ports.Free(t)
	farBox := start(t, "server", strings.Replace(fmt.Sprintf(farEnd, ""), "deny = []", `deny = ["*.denied.example", "127.0.0.2"]`, 1))
	text := fmt.Sprintf(nearEnd, bridge(farBox))
	text = strings.Replace(text, "[[route]]\n", "[[route]]\nto = \".blocked.example\"\nvia = \"block\"\n[[route]]\n", 1)
	text = strings.Replace(text, `to = "*"`, `to = ["127.0.0.0/8", ".example", ".invalid"]`, 1)
	near := start(t, "client", text)
	for addr, want := range map[string]byte{
		refused:               5,
		"a.denied.example:80": 2,
		"127.0.0.2:80":        2,
		"x.blocked.example:1": 2,
		"unrouted.test:443":   2,
	} {
		if _, err := ask(t, near, addr); code(err) != want {
			t.Errorf("%s: %v, want reply %d", addr, err, want)
		}
	}
	// And it goes on.
	roundTrip(t, mustAsk(t, near, origin(t, echo)), 1<<10)

	counted := map[string]int64{}
	for _, v := range near.Status().Outcomes {
		counted[strings.TrimSpace(v.Name+" "+v.Labels["reason"])] = v.Value
	}
	for name, want := range map[string]int64{"accepted": 6, "opened": 1, "refused refused": 1, "refused blocked": 2, "refused exit policy": 2} {
		if counted[name] != want {
			t.Errorf("%s: %d, want %d", name, counted[name], want)
		}
	}
}

// A bridge whose exit refuses everything is no reason to ask the next one; one
// that is not there is.
func TestNextBridge(t *testing.T) {
	_, b := far(t, "")
	dead := strings.Replace(b, "127.0.0.1:", "127.0.0.3:", 1)
	text := strings.Replace(fmt.Sprintf(nearEnd, dead), "[[route]]", "[bridge.second]\n"+b+"[[route]]", 1)
	near := start(t, "client", strings.Replace(text, `via = "far"`, `via = ["far", "second"]`, 1))
	roundTrip(t, mustAsk(t, near, origin(t, echo)), 1<<10)
}

func TestStopDrains(t *testing.T) {
	_, b := far(t, "")
	near := start(t, "client", fmt.Sprintf(nearEnd, b))
	c := mustAsk(t, near, origin(t, echo))
	c.Write([]byte("before"))
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	front := near.Addresses(inbound.SOCKS5)[0]
	go func() { stopped <- near.stop() }()
	for { // the listener closes first
		n, err := net.Dial("tcp", front)
		if err != nil {
			break
		}
		n.Close()
	}
	roundTrip(t, c, 1<<20)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	_, b := far(t, "")
	text := fmt.Sprintf(nearEnd, b)
	near := start(t, "client", text)
	addr := origin(t, echo)
	live := mustAsk(t, near, addr)
	front := near.Addresses(inbound.SOCKS5)

	blocked := strings.Replace(text, `via = "far"`, `via = "block"`, 1)
	if err := near.Reload(loadText(t, near.path, blocked)); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, near, addr); code(err) != 2 {
		t.Errorf("after the reload: %v, want reply 2", err)
	}
	if got := near.Addresses(inbound.SOCKS5); got[0] != front[0] {
		t.Errorf("the listener moved from %v to %v", front, got)
	}
	roundTrip(t, live, 1<<20) // goes on

	// A port that another has: nothing changes.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := strings.Replace(text, `http = "127.0.0.1:0"`, fmt.Sprintf("http = %q", taken.Addr()), 1)
	if err := near.Reload(loadText(t, near.path, bad)); err == nil || !strings.Contains(err.Error(), "a reload can't move") {
		t.Errorf("a reload onto a taken port: %v", err)
	}
	if _, err := ask(t, near, addr); code(err) != 2 {
		t.Errorf("after a failed reload: %v, want reply 2", err)
	}
	if err := near.Reload(loadText(t, near.path, text)); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, mustAsk(t, near, addr), 1<<20)
}

// The same port with other options: the old transport goes, the new one comes,
// and clients that were there stay.
func TestReloadServer(t *testing.T) {
	addr := ports.Free(t)
	text := strings.Replace(fmt.Sprintf(farEnd, ""), `"127.0.0.1:0"`, fmt.Sprintf("%q", addr), 1)
	server := start(t, "server", text)
	near := start(t, "client", fmt.Sprintf(nearEnd, bridge(server)))
	o := origin(t, echo)
	live := mustAsk(t, near, o)
	changed := strings.Replace(text, "[exit]", "allow = [\"127.0.0.0/8\"]\n[exit]", 1)
	if err := server.Reload(loadText(t, server.path, changed)); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, live, 1<<20)
	again := start(t, "client", fmt.Sprintf(nearEnd, bridge(server)))
	roundTrip(t, mustAsk(t, again, o), 1<<20)
}

// BenchmarkIdle tells what an idle connection costs both boxes together, in
// memory that Go has in use.
func BenchmarkIdle(b *testing.B) {
	_, br := far(b, "")
	text := fmt.Sprintf(nearEnd, br)
	direct := strings.Replace(text, `via = "far"`, "via = \"direct\"\nprivate = true", 1)
	for name, text := range map[string]string{"exit": text, "direct": direct} {
		b.Run(name, func(b *testing.B) {
			near := start(b, "client", text)
			addr := origin(b, echo)
			for range 20 {
				mustAsk(b, near, addr)
			}
			before := inUse()
			const n = 500
			conns := make([]*net.TCPConn, n)
			for b.Loop() {
				for i := range conns {
					c := mustAsk(b, near, addr)
					c.Write([]byte("x"))
					io.ReadFull(c, make([]byte, 1))
					conns[i] = c
				}
				after := inUse()
				b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/n, "heap/conn")
				b.ReportMetric(float64(after.StackInuse-before.StackInuse)/n, "stack/conn")
				if f := os.Getenv("PTGATE_IDLE_PROFILE"); f != "" {
					w, _ := os.Create(f + "." + name)
					pprof.Lookup("heap").WriteTo(w, 0)
					w.Close()
					w, _ = os.Create(f + ".goroutines." + name)
					pprof.Lookup("goroutine").WriteTo(w, 1)
					w.Close()
				}
				for _, c := range conns {
					c.Close()
				}
			}
		})
	}
}

func inUse() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m
}
