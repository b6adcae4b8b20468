package serve

import (
	"context"
	"crypto/sha256"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"

	"ptgate/gateway/config"
	"ptgate/gateway/session"
)

// plainPT is a server PT whose transport is no transport at all: what clients send is
// what the parent gets. It dies of SIGINT, as most programs do.
func plainPT() {
	info, err := pt.ServerSetup(nil)
	if err != nil {
		os.Exit(1)
	}
	for _, b := range info.Bindaddrs {
		ln, err := net.ListenTCP("tcp", b.Addr)
		if err != nil {
			pt.SmethodError(b.MethodName, err.Error())
			continue
		}
		pt.Smethod(b.MethodName, ln.Addr())
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					os.Exit(1)
				}
				go func() {
					or, err := pt.DialOr(&info, c.RemoteAddr().String(), b.MethodName)
					if err != nil {
						c.Close()
						return
					}
					var wg sync.WaitGroup
					wg.Go(func() { io.Copy(or, c) })
					io.Copy(c, or)
					c.Close()
					or.Close()
					wg.Wait()
				}()
			}
		}()
	}
	pt.SmethodsDone()
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// plain is a [[serve]] of plainPT that leads to a service.
func plain(t testing.TB, forward string) *config.Serve {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &config.Serve{
		Transport: "plain",
		Bind:      netip.MustParseAddrPort("127.0.0.1:0"),
		Forward:   forward,
		PT:        &config.PT{Name: "plain", Exec: []string{exe, "plain-pt"}, Transports: []string{"plain"}},
	}
}

// reach opens a connection to f, through its transport.
func (f *far) reach() net.Conn {
	f.t.Helper()
	if f.cfg.Transport != "plain" {
		return f.dial()
	}
	c, err := net.Dial("tcp", f.Announced().Address)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(time.Minute))
	return c
}

// A slow service says "begun", and the rest, which is some MiB, when it is told to.
type slow struct {
	addr   string
	finish func()
	rest   []byte
}

func newSlow(t testing.TB, addr string) *slow {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	s := &slow{addr: ln.Addr().String(), finish: sync.OnceFunc(func() { close(told) }), rest: make([]byte, 4<<20)}
	rand.NewChaCha8([32]byte{7}).Read(s.rest)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				io.WriteString(c, "begun")
				<-told
				c.Write(s.rest)
			})
		}
	})
	t.Cleanup(func() {
		s.finish()
		ln.Close()
		wg.Wait()
	})
	return s
}

// begin opens a connection to the service through f and waits until it has begun.
func (s *slow) begin(f *far) net.Conn {
	f.t.Helper()
	c := f.reach()
	begun := make([]byte, 5)
	if _, err := io.ReadFull(c, begun); err != nil {
		f.t.Fatal(err)
	}
	return c
}

// complete wants the rest.
func (s *slow) complete(t testing.TB, c net.Conn) {
	t.Helper()
	s.finish()
	got := make([]byte, len(s.rest))
	n, err := io.ReadFull(c, got)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(s.rest) {
		t.Errorf("%d bytes of %d came, %v", n, len(s.rest), err)
	}
}

// What is live when a server stops is carried to its end, also where the PT connects
// to the service by itself.
func TestStopForward(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	isolated := func(t testing.TB, forward string) *config.Serve {
		c := obfs4(true)
		c.Forward = forward
		return c
	}
	asked := func(make func(testing.TB, string) *config.Serve) func(testing.TB, string) *config.Serve {
		return func(t testing.TB, forward string) *config.Serve {
			c := make(t, forward)
			c.Allow = loopback
			return c
		}
	}
	for _, c := range []struct {
		name    string
		serve   func(t testing.TB, forward string) *config.Serve
		service string // where it listens; "": 127.0.0.1:0
		blind   bool   // connections of the PT can't be counted
		looks   bool   // they are counted
	}{
		{name: "built-in PT in a child", serve: isolated, looks: canCount},
		{name: "to IPv6", serve: isolated, service: "[::1]:0", looks: canCount},
		{name: "asked about each client", serve: asked(isolated)},
		{name: "not to be counted", serve: isolated, blind: true},
		{name: "PT that dies of SIGINT", serve: plain, looks: canCount},
		{name: "PT that dies of SIGINT, asked about each client", serve: asked(plain)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.service == "" {
				c.service = "127.0.0.1:0"
			}
			service := newSlow(t, c.service)
			looks := make(chan struct{}, 100)
			f := start(t, c.serve(t, service.addr), func(f *far) {
				f.count = func(group int, to netip.AddrPort) (int64, bool, error) {
					if c.blind {
						return 0, false, fs.ErrPermission
					}
					n, listening, err := count(group, to)
					select {
					case looks <- struct{}{}:
					default:
					}
					return n, listening, err
				}
			})
			conn := service.begin(f)
			if n := f.Active(); n != 1 {
				t.Errorf("%d are active, want 1", n)
			}
			stopped := make(chan struct{})
			go func() {
				f.Stop(context.Background(), time.Hour)
				close(stopped)
			}()
			<-f.stop.Done()
			if drains(f.cfg.PT) {
				f.Release()
			}
			if c.looks {
				for range 6 { // one at the start, one for Active, and the others before a stop
					<-looks
				}
			}
			select {
			case <-stopped:
				t.Error("stopped although a connection is live")
			default:
			}
			service.complete(t, conn)
			conn.Close()
			<-stopped
		})
	}
	t.Run("cut", func(t *testing.T) {
		service := newSlow(t, "127.0.0.1:0")
		f := start(t, isolated(t, service.addr), nil)
		conn := service.begin(f)
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			f.Stop(ctx, time.Hour)
			close(stopped)
		}()
		cancel()
		<-stopped
		ending(t, conn)
	})
	t.Run("nothing is live", func(t *testing.T) {
		service := newSlow(t, "127.0.0.1:0")
		f := start(t, isolated(t, service.addr), nil)
		f.Stop(context.Background(), time.Hour)
	})
}

// A server that takes the place of another one, with the same port and directory,
// serves on when the old one has drained.
func TestAgainOutlivesOld(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		for _, forward := range []bool{false, true} {
			c := obfs4(isolate)
			service := newSlow(t, "127.0.0.1:0")
			if forward {
				c.Forward = service.addr
			}
			f := start(t, c, nil)
			bind := netip.MustParseAddrPort(f.Announced().Address)
			var old net.Conn
			var at = origin(t)
			if forward {
				old = service.begin(f)
			} else {
				s, err := f.session(session.Auth{}).Open(t.Context(), at)
				if err != nil {
					t.Fatal(err)
				}
				echo(t, s, 10)
				old = s
			}
			f.Release()
			moved := *c
			moved.Bind = bind
			next := start(t, &moved, func(n *far) { n.state = f.state })
			if fresh := next.dial(); forward {
				io.ReadFull(fresh, make([]byte, 5))
				service.complete(t, old)
			} else {
				echo(t, old, 10)
				if err := session.Handshake(fresh, at, session.Auth{}); err != nil {
					t.Errorf("isolate=%v: %v", isolate, err)
				}
				echo(t, fresh, 10)
			}
			old.Close()
			f.Stop(context.Background(), time.Hour)
			// The old program has gone, with all that was its own.
			fresh := next.dial()
			if forward {
				if _, err := io.ReadFull(fresh, make([]byte, 5)); err != nil {
					t.Errorf("isolate=%v: after the old one's end: %v", isolate, err)
				}
			} else if err := session.Handshake(fresh, at, session.Auth{}); err != nil {
				t.Errorf("isolate=%v: after the old one's end: %v", isolate, err)
			}
		}
	}
}

// A stuck limiter holds up whoever asks, until it is released.
type stuckLimiter struct{ entered, release chan struct{} }

func (l *stuckLimiter) Acquire() bool {
	l.entered <- struct{}{}
	<-l.release
	return false
}
func (l *stuckLimiter) Release() {}
func (l *stuckLimiter) Move()    {}

// A PT that has crashed is started again at once, whatever becomes of the connections
// that it had.
func TestRestartWhileStuck(t *testing.T) {
	const request = "\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x09"
	limiter := &stuckLimiter{make(chan struct{}, 10), make(chan struct{})}
	f := start(t, obfs4(true), func(f *far) { f.limit = limiter })
	t.Cleanup(func() { close(limiter.release) }) // before the server's end
	c := f.dial()
	io.WriteString(c, request)
	<-limiter.entered
	pids := children(t)
	if len(pids) != 1 {
		t.Fatalf("children: %v", pids)
	}
	p, err := os.FindProcess(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	f.log.await(t, "pluggable transport ended")
	f.log.await(t, "pluggable transport started")
	c = f.dial()
	io.WriteString(c, request)
	<-limiter.entered
	if st := f.PT(); st.Starts != 2 || st.Failures != 1 {
		t.Errorf("%+v", st)
	}
}

// Nobody who looks at a server waits for a start of its PT.
func TestLookDuringStart(t *testing.T) {
	f := start(t, plain(t, ""), nil)
	before := f.Announced()
	for range 2 {
		for _, pid := range children(t) {
			if p, err := os.FindProcess(pid); err == nil {
				p.Kill()
			}
		}
		f.log.await(t, "pluggable transport ended")
		if st := f.PT(); st.Error == "" || st.Failures == 0 {
			t.Errorf("%+v", st)
		}
		if a := f.Announced(); a.Address != before.Address {
			t.Errorf("announced %v, before %v", a, before)
		}
		f.Active()
		f.log.await(t, "pluggable transport started")
	}
}

func TestDrains(t *testing.T) {
	for exec, want := range map[string]bool{"": true, "/usr/bin/obfs4proxy": true, "lyrebird": true, "obfs4proxy.exe": true,
		"/opt/webtunnel-server": false, "/opt/obfs4proxy/run": false} {
		p := &config.PT{}
		if exec != "" {
			p.Exec = []string{exec, "-x"}
		}
		if drains(p) != want {
			t.Errorf("%q: %v", exec, !want)
		}
	}
}
