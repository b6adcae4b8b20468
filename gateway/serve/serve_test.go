package serve

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/builtin/website"
	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/exit"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/integration/ports"
	"ptgate/routes"

	"ptgate/gateway/testkit"
)

// The test binary is its own `ptgate pt`.
func TestMain(m *testing.M) {
	if file := os.Getenv("SERVE_TEST_MARK"); file != "" {
		os.WriteFile(file, nil, 0o600)
	}
	testkit.PT()
	if len(os.Args) == 2 && os.Args[1] == "plain-pt" {
		plainPT()
	}
	goleak.VerifyTestMain(m)
}

// A journal keeps what is logged, and tells of each line.
type journal struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines chan string // full: the reader has seen enough
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Write(p)
	select {
	case j.lines <- string(p):
	default:
	}
	return len(p), nil
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// await waits for a line with words in it.
func (j *journal) await(t testing.TB, words string) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case line := <-j.lines:
			if strings.Contains(line, words) {
				return
			}
		case <-limit:
			t.Fatalf("the log never said %q: %s", words, j)
		}
	}
}

type far struct {
	*Server
	t      testing.TB
	log    *journal
	limit  Limiter
	limits *config.Limits
	exit   *exit.Settings
	users  map[string]exit.User
	state  string
	count  counter
	book   *outcome.Book
	level  slog.Level
	trial  bool // nothing is behind it
	open   bool // the log is not private
}

func obfs4(isolate bool) *config.Serve {
	return &config.Serve{
		Transport: "obfs4",
		Bind:      netip.MustParseAddrPort("127.0.0.1:0"),
		PT:        &config.PT{Name: "obfs4", Isolate: isolate},
	}
}

// start serves c until the test ends. change, which may be nil, sees everything
// before.
func start(t testing.TB, c *config.Serve, change func(*far)) *far {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &far{
		t:      t,
		log:    &journal{lines: make(chan string, 4096)},
		limit:  inbound.NewLimiter(100),
		limits: &config.Limits{Connections: 100, Handshake: time.Minute, Dial: time.Minute},
		exit:   &exit.Settings{Handshake: time.Minute},
		state:  filepath.Join(t.TempDir(), "state"),
		level:  slog.LevelDebug,
	}
	if change != nil {
		change(f)
	}
	log := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: f.level}))
	f.book = outcome.New(log)
	t.Cleanup(f.book.Close)
	behind := exit.New(func() *exit.Settings { return f.exit }, f.book, log)
	behind.SetUsers(f.users)
	if f.trial {
		behind = nil
	}
	f.Server, err = Start(t.Context(), c, f.state, Deps{
		Exe:      exe,
		Exit:     behind,
		Limit:    f.limit,
		Limits:   func() *config.Limits { return f.limits },
		Sessions: session.NewServer(nil, nil, func() session.ServerSettings { return session.ServerSettings{Resume: f.limits.Resume} }),
		Book:     f.book,
		Logger:   log,
		Private:  func() bool { return !f.open },
		count:    f.count,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Stop(context.Background(), 0) })
	return f
}

// dial opens a connection through the transport.
func (f *far) dial() net.Conn {
	f.t.Helper()
	c, err := f.try()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(time.Minute))
	return c
}

func (f *far) try() (net.Conn, error) {
	f.t.Helper()
	client, err := builtin.NewClient(builtin.ClientConfig{Transport: "obfs4", StateDir: f.t.TempDir()})
	if err != nil {
		f.t.Fatal(err)
	}
	a := f.Announced()
	return client.Dial(f.t.Context(), a.Address, a.Args)
}

func (f *far) session(a session.Auth) *session.Client {
	f.t.Helper()
	c := session.Over(stream.From(f.dial()), session.Settings{Auth: a}, session.Options{})
	f.t.Cleanup(func() { c.Close(0) })
	return c
}

// origin echoes, each direction to its end.
func origin(t testing.TB) routes.Target {
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
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	target, err := destination.Parse(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// echo sends size bytes and wants them back.
func echo(t testing.TB, c net.Conn, size int) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{3}).Read(data)
	var wg sync.WaitGroup
	wg.Go(func() { c.Write(data) })
	got := make([]byte, size)
	n, err := io.ReadFull(c, got)
	wg.Wait()
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("%d bytes of %d came back, %v", n, size, err)
	}
}

func ending(t testing.TB, c net.Conn) []byte {
	t.Helper()
	b, err := io.ReadAll(c)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Error("the connection does not end")
	}
	return b
}

func TestExit(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		t.Run(fmt.Sprintf("isolate=%v", isolate), func(t *testing.T) {
			f := start(t, obfs4(isolate), nil)
			at := origin(t)
			client := f.session(session.Auth{})
			for range 3 {
				s, err := client.Open(t.Context(), at)
				if err != nil {
					t.Fatal(err)
				}
				echo(t, s, 1<<20)
				s.CloseWrite()
				if b, err := io.ReadAll(s); len(b) > 0 || err != nil {
					t.Errorf("behind the end: %q, %v", b, err)
				}
				s.Close()
			}
			// And any SOCKS5 client.
			c := f.dial()
			if err := session.Handshake(c, at, session.Auth{}); err != nil {
				t.Fatal(err)
			}
			echo(t, c, 100<<10)
		})
	}
}

func TestForward(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	others := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	at := origin(t)
	for _, c := range []struct {
		name        string
		isolate     bool
		allow, deny []netip.Prefix
		host        string // of the service; "": its address
		denied      bool
	}{
		{name: "inside"},
		{name: "inside, allowed", allow: loopback},
		{name: "inside, not allowed", allow: others, denied: true},
		{name: "inside, denied", allow: loopback, deny: loopback, denied: true},
		{name: "inside, a name", host: "localhost"},
		{name: "child leads there itself", isolate: true},
		{name: "child, allowed", isolate: true, allow: loopback, deny: others},
		{name: "child, not allowed", isolate: true, allow: others, denied: true},
		{name: "child, denied", isolate: true, deny: loopback, denied: true},
		{name: "child, a name", isolate: true, host: "localhost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := obfs4(c.isolate)
			cfg.Allow, cfg.Deny, cfg.Forward = c.allow, c.deny, destination.Format(at)
			if c.host != "" {
				cfg.Forward = net.JoinHostPort(c.host, strconv.Itoa(int(at.Port)))
			}
			f := start(t, cfg, nil)
			if !c.denied {
				echo(t, f.dial(), 300<<10)
				return
			}
			conn, err := f.try()
			if err != nil {
				return // refused before its handshake
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			io.WriteString(conn, "let me in")
			if b := ending(t, conn); len(b) > 0 {
				t.Errorf("a denied client got %q", b)
			}
		})
	}
}

// Who may come in, and that an address which nobody knows is in no network that is
// let in, and not beyond those that are kept out.
func TestLets(t *testing.T) {
	nets := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	in, out := nets("192.0.2.0/24", "2001:db8::/32"), nets("192.0.2.128/25")
	for _, tt := range []struct {
		allow, deny []netip.Prefix
		addr        string // "": not known
		want        bool
	}{
		{nil, nil, "", true},
		{nil, nil, "203.0.113.1:1", true},
		{in, nil, "192.0.2.1:1", true},
		{in, nil, "[::ffff:192.0.2.1]:1", true},
		{in, nil, "[2001:db8::1%eth0]:0", true},
		{in, nil, "203.0.113.1:1", false},
		{in, out, "192.0.2.129:1", false},
		{nil, out, "203.0.113.1:1", true},
		{in, nil, "", false},
		{nil, out, "", false},
		{nets("0.0.0.0/0", "::/0"), nil, "", false},
	} {
		var a netip.AddrPort
		if tt.addr != "" {
			a = netip.MustParseAddrPort(tt.addr)
		}
		s := &Server{cfg: &config.Serve{Allow: tt.allow, Deny: tt.deny}}
		if got := s.allowed(a); got != tt.want {
			t.Errorf("allow %v, deny %v: %q is let in: %v", tt.allow, tt.deny, tt.addr, got)
		}
	}
}

func TestForwardToNobody(t *testing.T) {
	cfg := obfs4(false)
	cfg.Forward = ports.Free(t)
	f := start(t, cfg, nil)
	if b := ending(t, f.dial()); len(b) > 0 {
		t.Errorf("%q", b)
	}
	f.log.await(t, "connection refused")
	if strings.Contains(f.log.String(), cfg.Forward) {
		t.Errorf("the log names the service: %s", f.log)
	}
}

func TestLimit(t *testing.T) {
	at := origin(t)
	full := func(f *far) {
		f.limit = inbound.NewLimiter(1)
		f.limit.Acquire()
	}
	t.Run("stream", func(t *testing.T) {
		f := start(t, obfs4(false), full)
		client := f.session(session.Auth{})
		_, err := client.Open(t.Context(), at)
		if r, ok := errors.AsType[*session.Refusal](err); !ok || r.Code != 1 || answer.Of(err) != answer.Limit {
			t.Errorf("%v", err)
		}
		f.limit.Release()
		s, err := client.Open(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		echo(t, s, 10)
	})
	t.Run("stream with a user", func(t *testing.T) {
		f := start(t, obfs4(false), func(f *far) {
			full(f)
			f.users = map[string]exit.User{"ann": {Password: "secret"}}
		})
		_, err := f.session(session.Auth{User: "ann", Password: "secret"}).Open(t.Context(), at)
		if r, ok := errors.AsType[*session.Refusal](err); !ok || r.Code != 1 {
			t.Errorf("%v", err)
		}
	})
	t.Run("bare SOCKS5", func(t *testing.T) {
		c := start(t, obfs4(false), full).dial()
		if err := session.Handshake(c, at, session.Auth{}); answer.Of(err) != answer.Limit {
			t.Errorf("%v", err)
		}
	})
	t.Run("forward", func(t *testing.T) {
		cfg := obfs4(false)
		cfg.Forward = destination.Format(at)
		if b := ending(t, start(t, cfg, full).dial()); len(b) > 0 {
			t.Errorf("%q", b)
		}
	})
	t.Run("clients", func(t *testing.T) {
		f := start(t, obfs4(false), func(f *far) { f.limits.Connections = 1 })
		s, err := f.session(session.Auth{}).Open(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if b := ending(t, f.dial()); len(b) > 0 {
			t.Errorf("%q", b)
		}
		echo(t, s, 10)
	})
}

func TestStop(t *testing.T) {
	at := origin(t)
	for _, isolate := range []bool{false, true} {
		t.Run(fmt.Sprintf("drain, isolate=%v", isolate), func(t *testing.T) {
			f := start(t, obfs4(isolate), nil)
			client := f.session(session.Auth{})
			s, err := client.Open(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			echo(t, s, 10)
			stopped := make(chan struct{})
			go func() {
				f.Stop(context.Background(), time.Hour)
				close(stopped)
			}()
			<-f.stop.Done()
			// The client is told, but has no other way. What it opens still works.
			late, err := client.Open(t.Context(), at)
			if err != nil {
				t.Fatalf("a new stream: %v", err)
			}
			defer late.Close()
			echo(t, late, 10)
			if !client.Status().Leaving {
				t.Error("the client was not told")
			}
			f.Release()
			if c, err := net.Dial("tcp", f.Announced().Address); err == nil {
				c.Close()
				t.Error("the port is open")
			}
			echo(t, s, 100<<10)
			select {
			case <-stopped:
				t.Error("stopped although a stream is open")
			default:
			}
			// When the last old stream has ended, a new one waits for the box that follows.
			s.Close()
			for old := f.Active(); old > 1; old = f.Active() {
				runtime.Gosched()
			}
			ctx, cancel := context.WithCancel(t.Context())
			waits := make(chan error, 1)
			go func() {
				for {
					s, err := client.Open(ctx, at)
					if err != nil {
						waits <- err
						return
					}
					s.Close() // it came before the news
				}
			}()
			echo(t, late, 10)
			late.Close()
			<-stopped
			select {
			case err := <-waits:
				t.Errorf("a stream during the end does not wait: %v", err)
				waits <- err
			default:
			}
			cancel()
			<-waits // the server may have gone meanwhile: then the error says that
		})
	}
	t.Run("cut", func(t *testing.T) {
		f := start(t, obfs4(false), nil)
		s, err := f.session(session.Auth{}).Open(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f.Stop(ctx, time.Hour)
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("the stream lives")
		}
		if n := f.Active(); n != 0 {
			t.Errorf("%d are active", n)
		}
		if n := f.Clients.Load(); n != 0 {
			t.Errorf("%d clients are there", n)
		}
	})
	// A client that says nothing does not hold up the end.
	for _, say := range []string{"", carrier.Preamble[:1], carrier.Preamble, "\x05", "\x05\x01\x00", "\x05\x01\x00\x05\x01\x00\x01"} {
		t.Run(fmt.Sprintf("silent client after %q", say), func(t *testing.T) {
			f := start(t, obfs4(false), func(f *far) { f.limits.Handshake, f.exit.Handshake = time.Hour, time.Hour })
			c := f.dial()
			io.WriteString(c, say)
			if strings.HasPrefix(say, "\x05\x01\x00") {
				io.ReadFull(c, make([]byte, 2)) // it is in the middle of the session
			}
			f.Stop(context.Background(), 0)
			ending(t, c)
		})
	}
}

// children lists the child processes of this one.
func children(t testing.TB) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatalf("no list of children: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for s := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestRestart(t *testing.T) {
	at := origin(t)
	f := start(t, obfs4(true), nil)
	before := f.Announced()
	s, err := f.session(session.Auth{}).Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	pids := children(t)
	if len(pids) != 1 {
		t.Fatalf("children: %v", pids)
	}
	p, err := os.FindProcess(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a stream has outlived the transport")
	}
	f.log.await(t, "pluggable transport ended")
	f.log.await(t, "pluggable transport started")
	if after := f.Announced(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("announced %v, before %v", after, before)
	}
	s, err = f.session(session.Auth{}).Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, s, 10)
	s.Close()
}

// One who speaks something else, or nothing, is let go. Half a greeting gets the refusal of
// its protocol.
func TestOthers(t *testing.T) {
	for _, c := range []struct{ name, say, answer string }{
		{"nothing", "", ""},
		{"half a preamble", carrier.Preamble[:3], ""},
		{"HTTP", "GET / HTTP/1.1\r\n\r\n", ""},
		{"another version", "PTG\x7f", ""},
		{"SOCKS4", "\x04\x01", ""},
		{"half a greeting", "\x05\x04\x00", "\x05\xff"},
		{"NUL", "\x00", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := 50 * time.Millisecond
			if c.answer != "" {
				limit = 3 * time.Second // what is answered must come within it
			}
			f := start(t, obfs4(false), func(f *far) { f.limits.Handshake, f.exit.Handshake = limit, limit })
			conn := f.dial()
			io.WriteString(conn, c.say)
			if b := ending(t, conn); string(b) != c.answer {
				t.Errorf("%q, want %q", b, c.answer)
			}
		})
	}
}

// A trial start has nothing behind it.
func TestTrial(t *testing.T) {
	for _, forward := range []string{"", "127.0.0.1:1"} {
		cfg := obfs4(false)
		cfg.Forward = forward
		f := start(t, cfg, func(f *far) { f.trial = true })
		c := f.dial()
		io.WriteString(c, "\x05\x01\x00")
		if b := ending(t, c); len(b) > 0 {
			t.Errorf("%q", b)
		}
	}
}

// The log of a server does not tell who its clients are, even where they end in
// disorder.
func TestNoClientsInTheLog(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		f := start(t, obfs4(isolate), nil)
		for _, say := range []string{"", "GET / HTTP/1.1\r\n", carrier.Preamble, carrier.Preamble + "garbage that is no frame"} {
			c := f.dial()
			io.WriteString(c, say)
			if a, ok := c.(interface{ Abort() }); ok {
				a.Abort()
			}
			c.Close()
		}
		if !isolate { // and one that does not even speak the transport
			c, err := net.Dial("tcp", f.Announced().Address)
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte("hello"))
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
			f.log.await(t, "handshake failed")
		}
		f.Stop(context.Background(), 0)
		if strings.Contains(f.log.String(), "127.0.0.1") {
			t.Errorf("isolate=%v: %s", isolate, f.log)
		}
	}
}

func TestEvents(t *testing.T) {
	for _, private := range []bool{true, false} {
		j := &journal{}
		s := &Server{log: slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		s.deps.Private = func() bool { return private }
		s.event(adapter.Event{Kind: adapter.EventLog, Message: "client 203.0.113.7"})
		if has := strings.Contains(j.String(), "203.0.113.7"); has == private {
			t.Errorf("private %v: %s", private, j)
		}
	}
}

func TestStartErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, isolate := range []bool{false, true} {
		cfg := obfs4(isolate)
		cfg.Bind = netip.MustParseAddrPort(ln.Addr().String())
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		_, err = Start(t.Context(), cfg, t.TempDir(), Deps{Exe: exe, Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), "serve obfs4 on 127.0.0.1:") || !strings.Contains(err.Error(), "in use") {
			t.Errorf("isolate=%v: %v", isolate, err)
		}
	}
}

func TestAgain(t *testing.T) {
	at := origin(t)
	f := start(t, obfs4(false), nil)
	old, err := f.session(session.Auth{}).Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	f.Release()
	again, err := f.Again(t.Context(), f.deps)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop(context.Background(), 0)
	if again.Key() != f.Key() || fmt.Sprint(again.Announced().Args) != fmt.Sprint(f.Announced().Args) {
		t.Errorf("%v became %v", f.Announced(), again.Announced())
	}
	echo(t, old, 10)
	old.Close()
}

// The program of a [[serve]] gets the env of its PT.
func TestEnv(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	c := obfs4(true)
	c.PT.Env = []string{"SERVE_TEST_MARK=" + mark}
	start(t, c, nil)
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
}

// Behind a web server deny is evaded with nothing that a client can put into
// X-Forwarded-For, whether the transport runs in this process or in a child.
func TestDenyBehindFront(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		at := netip.MustParseAddrPort(ports.Free(t))
		start(t, &config.Serve{
			Transport:   "webtunnel",
			Bind:        at,
			PT:          &config.PT{Name: "webtunnel", Isolate: isolate},
			Options:     adapter.Args{{Key: "url", Value: "https://example.com/x"}},
			Deny:        []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
			TrustedHops: 1,
		}, nil)
		for header, let := range map[string]bool{
			"X-Forwarded-For: 198.51.100.1\r\n":                                 true,
			"X-Forwarded-For: 203.0.113.5, 198.51.100.1\r\n":                    true, // who writes first is not believed
			"X-Forwarded-For: 203.0.113.5\r\n":                                  false,
			"X-Forwarded-For: 203.0.113.5:4711\r\n":                             false,
			"X-Forwarded-For: a.name, 203.0.113.5\r\n":                          false,
			"X-Forwarded-For: 198.51.100.1, 203.0.113.5\r\n":                    false,
			"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.5\r\n": false,
			"X-Forwarded-For: a.name\r\n":                                       false,
			"":                                                                  false,
		} {
			c, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(time.Minute))
			// The greeting of a SOCKS5 client goes to the exit behind.
			fmt.Fprintf(c, "GET /x HTTP/1.1\r\nHost: h\r\n%sConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n\x05\x01\x00", header)
			in := bufio.NewReader(c)
			answer := make([]byte, 2)
			if _, err = http.ReadResponse(in, nil); err == nil {
				_, err = io.ReadFull(in, answer)
			}
			if let != (err == nil) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("isolate %v, %q: %v, want it let in: %v", isolate, header, err, let)
			}
			c.Close()
		}
	}
}

func TestKey(t *testing.T) {
	base := Key(obfs4(false), "/state")
	for _, c := range []struct {
		name   string
		change func(*config.Serve)
		same   bool
	}{
		{"nothing", func(*config.Serve) {}, true},
		{"public", func(c *config.Serve) { c.Public = "192.0.2.1:443" }, true},
		{"its line", func(c *config.Serve) { c.Line = 7 }, true},
		{"the line of its PT", func(c *config.Serve) { c.PT.Line = 7 }, true},
		{"transport", func(c *config.Serve) { c.Transport = "webtunnel" }, false},
		{"bind", func(c *config.Serve) { c.Bind = netip.MustParseAddrPort("127.0.0.2:0") }, false},
		{"options", func(c *config.Serve) { c.Options = adapter.Args{{Key: "iat-mode", Value: "1"}} }, false},
		{"allow", func(c *config.Serve) { c.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }, false},
		{"deny", func(c *config.Serve) { c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }, false},
		{"forward", func(c *config.Serve) { c.Forward = "127.0.0.1:22" }, false},
		{"program", func(c *config.Serve) { c.PT.Exec = []string{"/usr/bin/obfs4proxy"} }, false},
		{"isolate", func(c *config.Serve) { c.PT.Isolate = true }, false},
		{"env", func(c *config.Serve) { c.PT.Env = []string{"A=b"} }, false},
		{"trusted_hops", func(c *config.Serve) { c.TrustedHops = 2 }, false},
		{"no trusted_proxies", func(c *config.Serve) { c.TrustedProxies = []netip.Prefix{} }, false},
		{"trusted_proxies", func(c *config.Serve) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("::1/128")} }, false},
		{"tls", func(c *config.Serve) { c.Site = &website.Config{CertFile: "c", KeyFile: "k"} }, false},
		{"decoy", func(c *config.Serve) { c.Site = &website.Config{Decoy: "/var/www/html"} }, false},
		{"proxy_from", func(c *config.Serve) { c.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("::1/128")} }, false},
		{"limits.handshake with proxy_from", func(c *config.Serve) { c.ProxyWait = time.Second }, false},
		{"proxy_protocol", func(c *config.Serve) { c.ProxyProtocol = 2 }, false},
	} {
		s := obfs4(false)
		c.change(s)
		if same := Key(s, "/state") == base; same != c.same {
			t.Errorf("%s: the same key: %v", c.name, same)
		}
	}
	if Key(obfs4(false), "/other") == base {
		t.Error("state: the same key")
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "serve-example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	quiet := slog.New(slog.DiscardHandler)
	book := outcome.New(quiet)
	defer book.Close()
	limits := &config.Limits{Connections: 100, Handshake: 10 * time.Second, Dial: time.Minute}
	s, err := Start(context.Background(), &config.Serve{
		Transport: "obfs4",
		Bind:      netip.MustParseAddrPort("127.0.0.1:0"),
		PT:        &config.PT{Name: "obfs4"},
	}, dir, Deps{
		Exit:     exit.New(func() *exit.Settings { return &exit.Settings{Policy: exit.Policy{DenyPrivate: true}} }, book, quiet),
		Book:     book,
		Limit:    inbound.NewLimiter(100),
		Limits:   func() *config.Limits { return limits },
		Sessions: session.NewServer(nil, nil, func() session.ServerSettings { return session.ServerSettings{} }),
		Logger:   quiet,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	a := s.Announced()
	fmt.Println(a.Transport, "with", a.Args[0].Key, "and", a.Args[1].Key)
	s.Stop(context.Background(), limits.Drain)
	// Output:
	// obfs4 with cert and iat-mode
}

// The clients of one network of IPv6 count as one: whoever has one address there has all
// of them.
// Shared addresses are no client.
func TestClientOf(t *testing.T) {
	l := &config.Limits{Shared: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("2001:db8:9::/48")}}
	for at, want := range map[string]string{
		"192.0.2.7:1":              "192.0.2.7/32",
		"192.0.2.8:1":              "192.0.2.8/32",
		"[::ffff:192.0.2.7]:2":     "192.0.2.7/32",
		"[2001:db8:1:2::1]:3":      "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::9]:4": "2001:db8:1:2::/64",
		"[2001:db8:1:3::1]:5":      "2001:db8:1:3::/64",
		"[fe80::1%eth0]:6":         "fe80::/64",
		"no address":               "",
		"127.0.0.1:8":              "",
		"[::ffff:127.0.0.1]:9":     "",
		"127.0.0.2:8":              "127.0.0.2/32",
		"[2001:db8:9::1]:5":        "",
		"client.example.com:7":     "client.example.com",
	} {
		if got := clientOf(address(at), l); got != want {
			t.Errorf("%s: %q, want %q", at, got, want)
		}
	}
	if got := clientOf(nil, l); got != "" {
		t.Errorf("nobody: %q", got)
	}
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
