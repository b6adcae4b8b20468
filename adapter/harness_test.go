//go:build unix

package adapter

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience bounds every wait for something that ought to happen.
const patience = time.Minute

// harness gives a test what it needs around an adapter, and checks at the end
// that nothing was left behind: no goroutine, descriptor, process or file.
type harness struct {
	t      *testing.T
	tag    string
	temp   string
	cover  string       // where roles leave coverage data, in a test run that gathers it
	notify net.Listener // where roles report that they live

	mu     sync.Mutex
	events []Event
	seen   chan struct{} // one for each event, as long as there is room
}

var harnesses atomic.Int64

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, seen: make(chan struct{}, 10_000)}
	h.tag = strconv.Itoa(os.Getpid()) + "." + strconv.FormatInt(harnesses.Add(1), 10)
	h.temp = t.TempDir()
	h.cover = t.TempDir()
	t.Setenv("TMPDIR", h.temp)
	before := descriptors()
	running := goleak.IgnoreCurrent()
	var err error
	if h.notify, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the first registered, so it runs last
		h.notify.Close()
		goleak.VerifyNone(t, running)
		if left := processes(h.tag); len(left) > 0 {
			t.Errorf("processes left: %v", left)
		}
		if after := descriptors(); after > before {
			t.Errorf("%d descriptors, before %d", after, before)
		}
		files, err := os.ReadDir(h.temp)
		if err != nil || len(files) > 0 {
			t.Errorf("temporary files left: %v %v", files, err)
		}
	})
	return h
}

// config runs the test binary in a role.
func (h *harness) config(role string) Config {
	return Config{
		Exec: []string{os.Args[0]},
		Env: []string{
			roleVariable + "=" + role,
			tagVariable + "=" + h.tag,
			notifyVariable + "=" + h.notify.Addr().String(),
			"GORACE=atexit_sleep_ms=0",
			"GOCOVERDIR=" + h.cover,
		},
		StopGrace: patience, // no test waits for it unless it says so
		OnEvent: func(e Event) {
			h.mu.Lock()
			h.events = append(h.events, e)
			h.mu.Unlock()
			select {
			case h.seen <- struct{}{}:
			default:
			}
		},
	}
}

// waitEvent waits until an event fits.
func (h *harness) waitEvent(what string, fits func(Event) bool) Event {
	h.t.Helper()
	limit := time.After(patience)
	for from := 0; ; {
		h.mu.Lock()
		events := h.events[from:]
		h.mu.Unlock()
		for _, e := range events {
			if fits(e) {
				return e
			}
		}
		from += len(events)
		select {
		case <-h.seen:
		case <-limit:
			h.t.Fatalf("no event %s", what)
		}
	}
}

func onStderr(text string) func(Event) bool {
	return func(e Event) bool { return e.Kind == EventStderr && e.Message == text }
}

// await is a receive that does not wait for ever.
func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s: still waiting", what)
	}
	return v
}

// fellow is a process that told us it lives.
func (h *harness) fellow() net.Conn {
	h.t.Helper()
	h.notify.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := h.notify.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// gone waits until a fellow has ended.
func (h *harness) gone(c net.Conn) {
	h.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	if timeout, ok := errors.AsType[net.Error](err); err == nil || ok && timeout.Timeout() {
		h.t.Fatalf("process still lives: %v", err)
	}
}

// client makes a client adapter for a role.
func (h *harness) client(role string, transports ...string) *ClientAdapter {
	if len(transports) == 0 {
		transports = []string{"fake"}
	}
	return NewClient(ClientConfig{Config: h.config(role), Transports: transports})
}

// running is client, started, and ended with the test.
func (h *harness) running(role string, transports ...string) *ClientAdapter {
	h.t.Helper()
	a := h.client(role, transports...)
	h.start(a)
	return a
}

type lifecycle interface {
	Close() error
	Wait() error
	Done() <-chan struct{}
	Err() error
}

func (h *harness) start(a interface {
	lifecycle
	Start(context.Context) error
}) {
	h.t.Helper()
	if err := a.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { h.end(a) })
}

// end closes an adapter and expects a clean end, unless it had ended before.
func (h *harness) end(a lifecycle) {
	h.t.Helper()
	var before error
	select {
	case <-a.Done():
		before = a.Err()
	default:
	}
	if err := a.Close(); err != nil {
		h.t.Errorf("close: %v", err)
	}
	if err := h.wait(a); err != before {
		h.t.Errorf("wait after close: %v, want %v", err, before)
	}
}

// wait is Wait, but not for ever.
func (h *harness) wait(a lifecycle) error {
	h.t.Helper()
	result := make(chan error, 1)
	go func() { result <- a.Wait() }()
	return await(h.t, "end of the adapter", result)
}

// dial dials through the role and returns what it told of the session.
func (h *harness) dial(a *ClientAdapter, addr string, args Args) (net.Conn, session) {
	h.t.Helper()
	c, err := a.DialTransport(h.t.Context(), "fake", addr, args)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	var s session
	if err := json.Unmarshal([]byte(readLine(h.t, c)), &s); err != nil {
		h.t.Fatal(err)
	}
	return c, s
}

// readLine reads up to a newline and not one byte further.
func readLine(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	defer c.SetReadDeadline(time.Time{})
	var line strings.Builder
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("read after %q: %v", line.String(), err)
		}
		if b[0] == '\n' {
			return line.String()
		}
		line.WriteByte(b[0])
	}
}

// echoes says whether what is sent comes back.
func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if got := readLine(t, c); got != "hello" {
		t.Errorf("echo %q", got)
	}
}
