package builtin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/adapter"
)

// rotate gives a Listener a new secret.
func rotate(t testing.TB, l *Listener, until time.Time) {
	t.Helper()
	if err := Rotate(l.cfg.Transport, l.cfg.StateDir, l.cfg.Options, until); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(rotationPath(l.cfg.Transport, l.cfg.StateDir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := l.ReadKeys(); err != nil {
		t.Fatal(err)
	}
}

// enters tells whether a client with these args gets through to the Listener.
func enters(t *testing.T, l *Listener, args adapter.Args) bool {
	t.Helper()
	if l.cfg.Transport == nameObfs4 { // a client that fails would be kept for a minute
		cert, _ := args.Get("cert")
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, kept := sizes(l)
		if _, err := c.Write(clientHello(t, cert, 0)); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		go func() {
			if s, err := l.Accept(); err == nil {
				_ = s.Close()
			}
		}()
		got, _ := io.ReadAll(c)
		untilSizes(t, l, 0, kept)
		return len(got) > 0
	}
	raw, _ := args.Get("url")
	path := raw[strings.LastIndex(raw, "/"):]
	args = argsOf("url", fmt.Sprintf("http://%s%s", l.Addr(), path), "utls", "none")
	go func() {
		if s, err := l.Accept(); err == nil {
			_ = s.Close()
		}
	}()
	c, err := clientFor(t, l.cfg.Transport, nil).Dial(t.Context(), l.Addr().String(), args)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// Old bridge lines are good beside the new one until their time, and after a new start of
// the server. Then, or at once if it is asked for, they are not.
func TestRotate(t *testing.T) {
	keys, _, err := pairObfs4("")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		transport string
		options   adapter.Args
	}{
		{"obfs4", nameObfs4, nil},
		{"obfs4, keys in the options", nameObfs4, keys},
		{"webtunnel", nameWebtunnel, argsOf("url", "https://example.com/first-path")},
		{"webtunnel, path in the state directory", nameWebtunnel, argsOf("url", "https://example.com")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			change := func(c *ServerConfig) { c.Options = tt.options }
			if tt.transport == nameWebtunnel {
				change = func(c *ServerConfig) { c.Options, c.TrustedProxies = tt.options, []netip.Prefix{} }
			}
			l := serverFor(t, tt.transport, change)
			expect := func(what string, args adapter.Args, want bool) {
				t.Helper()
				if got := enters(t, l, args); got != want {
					t.Errorf("%s: the client gets in: %v, want %v", what, got, want)
				}
			}
			first := l.Args()
			expect("before", first, true)
			later := time.Now().Add(time.Hour)
			rotate(t, l, later)
			second := l.Args()
			if fmt.Sprint(first) == fmt.Sprint(second) {
				t.Errorf("the args are the same: %v", second)
			}
			now, until := Present(tt.transport, l.cfg.StateDir, tt.options, first)
			if fmt.Sprint(now) != fmt.Sprint(second) || !until.Equal(later) {
				t.Errorf("Present tells %v until %v", now, until)
			}
			expect("the first beside the second", first, true)
			expect("the second", second, true)
			rotate(t, l, later.Add(time.Hour))
			third := l.Args()
			for i, args := range []adapter.Args{first, second, third} {
				expect(fmt.Sprint("of three, ", i), args, true)
			}

			// A new start.
			state := l.cfg.StateDir
			l = serverFor(t, tt.transport, func(c *ServerConfig) {
				change(c)
				c.StateDir = state
			})
			if fmt.Sprint(l.Args()) != fmt.Sprint(third) {
				t.Errorf("after a new start: %v, want %v", l.Args(), third)
			}
			expect("the first after a new start", first, true)

			// The end comes without a call.
			if sets := l.sets.Load(); sets != nil {
				ended := *sets.old[0]
				ended.until = time.Now()
				l.sets.Store(&obfs4Sets{sets.newest, []*obfs4Set{&ended, sets.old[1]}})
			}
			if paths := l.paths.Load(); paths != nil {
				ended := paths.old[0]
				ended.Until = time.Now()
				l.paths.Store(&secretPaths{paths.newest, []oldSecret{ended, paths.old[1]}})
			}
			expect("the first after its time", first, false)
			expect("the second, whose time is later", second, true)

			rotate(t, l, time.Now())
			fourth := l.Args()
			for i, args := range []adapter.Args{first, second, third} {
				expect(fmt.Sprint("ended at once, ", i), args, false)
			}
			expect("the fourth", fourth, true)
			if now, until := Present(tt.transport, state, tt.options, first); fmt.Sprint(now) != fmt.Sprint(fourth) || !until.IsZero() {
				t.Errorf("Present tells %v until %v", now, until)
			}
			// They stay ended, whatever clock a new start finds.
			if r, err := l.row.readRotation(state, tt.options); err != nil || len(r.Old) != 3 || r.Old[0].good(time.Unix(0, 0)) || r.Old[2].good(time.Unix(0, 0)) {
				t.Errorf("of three that have ended: %v, %v", r.Old, err)
			}
			l = serverFor(t, tt.transport, func(c *ServerConfig) {
				change(c)
				c.StateDir = state
			})
			for i, args := range []adapter.Args{first, second, third} {
				expect(fmt.Sprint("ended, after a new start, ", i), args, false)
			}
			expect("the fourth, after a new start", fourth, true)

			// What can't be read changes nothing.
			if err := os.WriteFile(rotationPath(tt.transport, state), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := l.ReadKeys(); err == nil || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("a damaged file: %v", err)
			}
			expect("the fourth, after that", fourth, true)
		})
	}
}

// Another secret in the configuration counts, whatever was rotated before.
func TestRotationOfAnother(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	rotate(t, l, time.Now().Add(time.Hour))
	if err := os.Remove(filepath.Join(l.cfg.StateDir, obfs4State)); err != nil {
		t.Fatal(err)
	}
	rotated := l.Args()
	other := serverFor(t, nameObfs4, func(c *ServerConfig) { c.StateDir = l.cfg.StateDir })
	if fmt.Sprint(other.Args()) == fmt.Sprint(rotated) {
		t.Error("keys that were made anew are followed by those of an earlier rotation")
	}
	if args, until := Present(nameObfs4, l.cfg.StateDir, nil, other.Args()); fmt.Sprint(args) != fmt.Sprint(other.Args()) || !until.IsZero() {
		t.Errorf("%v until %v", args, until)
	}
	rotate(t, other, time.Now().Add(time.Hour))
}

// The mode that obfs4's own file has stays.
func TestRotateKeepsMode(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	path := filepath.Join(l.cfg.StateDir, obfs4State)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`"iat-mode":0`), []byte(`"iat-mode":1`), 1)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	rotate(t, l, time.Now().Add(time.Hour))
	if mode, _ := l.Args().Get("iat-mode"); mode != "1" {
		t.Errorf("mode %s", mode)
	}

	// The mode is no key: who changes it has the rotated keys still.
	text = bytes.Replace(text, []byte(`"iat-mode":1`), []byte(`"iat-mode":2`), 1)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	again := serverFor(t, nameObfs4, func(c *ServerConfig) { c.StateDir = l.cfg.StateDir })
	if want := replaced(l.Args(), argsOf("iat-mode", "2")); fmt.Sprint(again.Args()) != fmt.Sprint(want) {
		t.Errorf("with another mode: %v, want %v", again.Args(), want)
	}
}

func TestRotateErrors(t *testing.T) {
	if err := Rotate("obfs3", t.TempDir(), nil, time.Now()); !errors.Is(err, ErrNoRotation) {
		t.Errorf("obfs3: %v", err)
	}
	if err := Rotate(nameObfs4, t.TempDir(), nil, time.Now()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no keys: %v", err)
	}
	l := serverFor(t, nameObfs4, nil)
	for range mostOld {
		rotate(t, l, time.Now().Add(time.Hour))
	}
	if err := Rotate(nameObfs4, l.cfg.StateDir, nil, time.Now().Add(time.Hour)); !errors.Is(err, errManyOld) {
		t.Errorf("too many: %v", err)
	}
	w := serverFor(t, nameWebtunnel, nil)
	for range mostOld + 3 {
		rotate(t, w, time.Now())
	}
	if r, err := w.row.readRotation(w.cfg.StateDir, w.cfg.Options); err != nil || len(r.Old) != mostOld {
		t.Errorf("%d ended paths are kept, %v", len(r.Old), err)
	}
}

// A probed is what a prober sees: whether there is an answer, and after how many whole seconds
// obfs4 closes. On a busy machine that is known only roughly, as its clock begins after ours.
type probed struct {
	answered    bool
	least, most int
}

// like tells whether a prober may have seen the same.
func (p probed) like(o probed) bool {
	return p.answered == o.answered && p.least <= o.most && o.least <= p.most
}

// ask lets the server read first, then rest, and then the end.
func ask(t *testing.T, l *Listener, first, rest []byte) probed {
	t.Helper()
	client, server := tcpPair(t)
	g := newGuest(server, loopback[0].Addr(), true)
	c := newLink(server, 0)
	c.guest, c.ahead = g, first
	if _, err := client.Write(rest); err != nil {
		t.Fatal(err)
	}
	_ = client.CloseWrite()
	begun := time.Now()
	_, _, err := l.accept(c)
	if err == nil && !g.until.IsZero() || err != nil && g.until.IsZero() {
		t.Errorf("%v, and it closes at %v", err, g.until)
	}
	if err != nil {
		return probed{least: int(math.Ceil(time.Until(g.until).Seconds())), most: int(g.until.Sub(begun).Seconds())}
	}
	return probed{answered: true}
}

// With earlier keys beside the newest, a prober sees what it sees of a server that has one
// set of keys: whoever it is, and whatever it has recorded of clients of either set.
func TestRotatedLooksLikeOne(t *testing.T) {
	two := serverFor(t, nameObfs4, nil)
	before, _ := two.Args().Get("cert")
	rotate(t, two, time.Now().Add(time.Hour))
	after, _ := two.Args().Get("cert")

	// The same newest keys, alone.
	r, err := two.row.readRotation(two.cfg.StateDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	one := serverFor(t, nameObfs4, func(c *ServerConfig) { c.Options = r.New })
	if cert, _ := one.Args().Get("cert"); cert != after || len(two.sets.Load().old) != 1 {
		t.Fatal("other keys")
	}

	garbage := randomBytes(t, 20000)
	for _, tt := range []struct {
		name  string
		hello func(cert string) []byte // nil: garbage
		cuts  []int                    // where the first read ends
		again bool                     // the same once more
		want  bool                     // it is answered
	}{
		{"much garbage", nil, []int{1, 8191, 8192, 20000}, false, false},
		{"a handshake", func(cert string) []byte { return clientHello(t, cert, 0) }, []int{1, 31, 40, 147, 160, 163, 164}, false, true},
		{"the longest", func(cert string) []byte { return paddedHello(t, cert, 8192-64, 0) }, []int{1, 8000, 8191, 8192}, false, true},
		{"longer than the longest", func(cert string) []byte { return paddedHello(t, cert, 8193-64, 0) }, []int{1, 8000, 8192}, false, false},
		{"a handshake, recorded", func(cert string) []byte { return clientHello(t, cert, 0) }, []int{100, 164}, true, false},
		{"more behind it", func(cert string) []byte { return append(clientHello(t, cert, 0), garbage[:9000]...) }, []int{100, 163, 165, 9000}, false, false},
		{"more behind the longest", func(cert string) []byte { return append(paddedHello(t, cert, 8192-64, 0), garbage[:300]...) }, []int{8000, 8191}, false, false},
		{"more behind the longest, which is read apart", func(cert string) []byte { return append(paddedHello(t, cert, 8192-64, 0), garbage[:300]...) }, []int{8192, 8193, 8492}, false, true},
		{"of another day", func(cert string) []byte { return clientHello(t, cert, -24) }, []int{100, 164}, false, false},
		{"a wrong MAC", func(cert string) []byte {
			hello := clientHello(t, cert, 0)
			hello[len(hello)-1] ^= 1
			return hello
		}, []int{100, 164}, false, false},
		{"too little padding", func(cert string) []byte { return paddedHello(t, cert, 20, 0) }, []int{1, 60, 84}, false, false},
	} {
		for _, cut := range tt.cuts {
			var got [3]probed
			for i, to := range []struct {
				l    *Listener
				cert string
			}{{one, after}, {two, after}, {two, before}} {
				text := garbage
				if tt.hello != nil {
					text = tt.hello(to.cert)
				}
				got[i] = ask(t, to.l, text[:cut], text[cut:])
				if tt.again {
					got[i] = ask(t, to.l, text[:cut], text[cut:])
				}
			}
			for i, p := range got {
				if p.answered != tt.want || !p.like(got[0]) {
					t.Errorf("%s, first read of %d, case %d: %v; a server with one set: %v", tt.name, cut, i, p, got[0])
				}
			}
		}
	}
}

// A client of keys that have ended is to a prober what a stranger is.
func TestEndedLooksLikeStranger(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	before, _ := l.Args().Get("cert")
	rotate(t, l, time.Now())
	after, _ := l.Args().Get("cert")
	hello := clientHello(t, before, 0)
	stranger := randomBytes(t, len(hello))
	for _, cut := range []int{1, 100, len(hello)} {
		want := ask(t, l, stranger[:cut], stranger[cut:])
		if got := ask(t, l, hello[:cut], hello[cut:]); !got.like(want) || got.answered {
			t.Errorf("first read of %d: %v, and a stranger %v", cut, got, want)
		}
	}
	if hello := clientHello(t, after, 0); !ask(t, l, hello, nil).answered {
		t.Error("the newest keys are not good")
	}
}

// What was recorded of a client before a rotation is not answered after it.
func TestRotationRemembers(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	cert, _ := l.Args().Get("cert")
	hello := clientHello(t, cert, 0)
	for i, want := range []bool{true, false, false} {
		if got := ask(t, l, hello, nil); got.answered != want {
			t.Errorf("after %d rotations: answered: %v", i, got.answered)
		}
		rotate(t, l, time.Now().Add(time.Hour))
	}
}

// A client of an earlier set is told late that it has failed: not later than others.
func TestAgainIsNotLate(t *testing.T) {
	_, server := tcpPair(t)
	a := &again{link: newLink(server, 0), late: 10 * time.Second}
	a.guest = newGuest(server, loopback[0].Addr(), true)
	at := time.Now().Add(time.Minute)
	if err := a.SetReadDeadline(at); err != nil || !a.guest.until.Equal(at.Add(-a.late)) {
		t.Errorf("closes at %v, want 10 s before %v; %v", a.guest.until, at, err)
	}
	if got := a.early(at); !got.Equal(at.Add(-a.late)) || !a.early(time.Time{}).IsZero() {
		t.Errorf("a handshake may last until %v", got)
	}
	a.guest = nil
	if got := a.early(at); !got.Equal(at) {
		t.Errorf("after the handshake: %v", got)
	}
}

// A Listener that nobody tells of a rotation sees it when the next client comes: a process of
// its own, or one that has started in the same moment. So it is if the file is taken away.
func TestListenerLooks(t *testing.T) {
	for _, transport := range []string{nameObfs4, nameWebtunnel} {
		l := serverFor(t, transport, func(c *ServerConfig) {
			if transport == nameWebtunnel {
				c.Options, c.TrustedProxies = argsOf("url", "https://example.com/a"), []netip.Prefix{}
			}
		})
		first := l.Args()
		if err := Rotate(transport, l.cfg.StateDir, l.cfg.Options, time.Now()); err != nil {
			t.Fatal(err)
		}
		if enters(t, l, first) {
			t.Errorf("%s: the first is good still", transport)
		}
		args, _ := Present(transport, l.cfg.StateDir, l.cfg.Options, first)
		if !enters(t, l, args) {
			t.Errorf("%s: the second is not known", transport)
		}
		if err := os.Remove(rotationPath(transport, l.cfg.StateDir)); err != nil {
			t.Fatal(err)
		}
		if !enters(t, l, first) || enters(t, l, args) {
			t.Errorf("%s: without the file, the first is not good again", transport)
		}
	}
}

// Clients that come in the middle of rotations get in, whichever of the good lines they have.
func TestClientsWhileRotating(t *testing.T) {
	for _, transport := range []string{nameObfs4, nameWebtunnel} {
		l := serverFor(t, transport, func(c *ServerConfig) {
			if transport == nameWebtunnel {
				c.Options, c.TrustedProxies = argsOf("url", "http://192.0.2.1/a"), []netip.Prefix{}
			}
		})
		var accepting, clients sync.WaitGroup
		accepting.Go(func() {
			for {
				s, err := l.Accept()
				if err != nil {
					return
				}
				_ = s.Close()
			}
		})
		done := make(chan struct{})
		for range 3 {
			client := clientFor(t, transport, nil)
			clients.Go(func() {
				for ; ; runtime.Gosched() {
					select {
					case <-done:
						return
					default:
					}
					args := l.Args()
					if transport == nameWebtunnel {
						raw, _ := args.Get("url")
						args = argsOf("url", strings.Replace(raw, "192.0.2.1", l.Addr().String(), 1), "utls", "none")
					}
					c, err := client.Dial(t.Context(), l.Addr().String(), args)
					if err != nil {
						t.Errorf("%s: %v", transport, err)
						return
					}
					_ = c.Close()
				}
			})
		}
		for range mostOld {
			rotate(t, l, time.Now().Add(time.Hour))
		}
		close(done)
		clients.Wait()
		_ = l.Close()
		accepting.Wait()
	}
}

// New keys that can't be read at once are taken when they can. The log is not flooded.
func TestListenerLooksAgain(t *testing.T) {
	log := &journal{news: make(chan struct{})}
	l := serverFor(t, nameObfs4, func(c *ServerConfig) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	first := l.Args()
	if err := Rotate(nameObfs4, l.cfg.StateDir, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(l.cfg.StateDir, obfs4State)
	keys, err := os.ReadFile(state)
	if err := errors.Join(err, os.Remove(state), os.Mkdir(state, 0o700)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !enters(t, l, first) {
			t.Error("the keys are gone")
		}
	}
	if got := log.String(); strings.Count(got, "can't be taken") != 1 {
		t.Errorf("log: %s", got)
	}
	if err := errors.Join(os.Remove(state), os.WriteFile(state, keys, 0o600)); err != nil {
		t.Fatal(err)
	}
	if enters(t, l, first) {
		t.Error("the new keys are not taken")
	}
}

// What is wrong with files of keys is found without a server.
func TestCheckKeys(t *testing.T) {
	for _, transport := range []string{nameObfs4, nameWebtunnel} {
		l := serverFor(t, transport, nil)
		check := func(want string) {
			t.Helper()
			if err := CheckKeys(transport, l.cfg.StateDir, l.cfg.Options); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", transport, err, want)
			}
		}
		check("")
		rotate(t, l, time.Now().Add(time.Hour))
		check("")
		if err := os.WriteFile(rotationPath(transport, l.cfg.StateDir), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		check("is damaged")
		if transport == nameObfs4 {
			if err := os.WriteFile(filepath.Join(l.cfg.StateDir, obfs4State), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			check("node-id is missing")
		}
	}
	if err := CheckKeys("obfs3", t.TempDir(), nil); err != nil {
		t.Error(err)
	}
	if err := CheckKeys(nameObfs4, t.TempDir(), nil); err != nil {
		t.Errorf("no keys yet: %v", err)
	}
}

// A date that has come while no server ran is kept by the next one. One that is in the
// future again, because the clock was wrong, is kept as well.
func TestEndedWhileDown(t *testing.T) {
	for _, transport := range []string{nameObfs4, nameWebtunnel} {
		change := func(c *ServerConfig) {
			if transport == nameWebtunnel {
				c.Options, c.TrustedProxies = argsOf("url", "https://example.com/a"), []netip.Prefix{}
			}
		}
		l := serverFor(t, transport, change)
		first := l.Args()
		rotate(t, l, time.Now().Add(time.Hour))
		second, state := l.Args(), l.cfg.StateDir
		file := rotationPath(transport, state)
		var r rotation
		set := func(until time.Time) {
			t.Helper()
			text, err := os.ReadFile(file)
			if err == nil {
				err = json.Unmarshal(text, &r)
			}
			if err == nil {
				r.Old[0].Until = until
				text, err = json.Marshal(r)
			}
			if err := errors.Join(err, os.WriteFile(file, text, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		set(time.Now().Add(-time.Second))
		l = serverFor(t, transport, func(c *ServerConfig) {
			change(c)
			c.StateDir = state
		})
		if enters(t, l, first) || !enters(t, l, second) {
			t.Errorf("%s: the date that has come is not kept", transport)
		}
		set(time.Now().Add(time.Hour))
		if err := l.ReadKeys(); err != nil || !enters(t, l, first) {
			t.Errorf("%s: a date in the future is not kept, %v", transport, err)
		}
	}
}

// Who comes with a line that has ended is told from strangers in the log, as is the end.
func TestEndedIsLogged(t *testing.T) {
	for _, tt := range []struct {
		transport string
		site      bool
	}{{nameObfs4, false}, {nameWebtunnel, false}, {nameWebtunnel, true}} {
		log := &journal{news: make(chan struct{}, 100)}
		l := serverFor(t, tt.transport, func(c *ServerConfig) {
			c.Logger = slog.New(slog.NewTextHandler(log, nil))
			if tt.transport == nameWebtunnel {
				c.Options = argsOf("url", "https://example.com/first-path")
			}
		})
		first := l.Args()
		cert, _ := first.Get("cert")
		until := time.Now().Add(time.Hour)
		rotate(t, l, until)
		l.tellEnd(time.Now(), until.Add(-time.Second))
		if got := log.String(); got != "" {
			t.Errorf("%s: before the end: %s", tt.transport, got)
		}
		l.tellEnd(until.Add(-time.Second), until)
		l.tellEnd(until, until.Add(time.Minute))
		if got := log.String(); strings.Count(got, "old bridge lines have ended") != 1 {
			t.Errorf("%s: the end: %s", tt.transport, got)
		}
		rotate(t, l, time.Now())
		if tt.site {
			request, _ := http.NewRequest(http.MethodGet, "http://x/first-path", nil)
			request.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
			if _, ok := l.tunnel(nil, request); ok {
				t.Error("the website opens a tunnel at a path that has ended")
			}
		} else if enters(t, l, first) {
			t.Errorf("%s: it is good still", tt.transport)
		}
		for !strings.Contains(log.String(), "turned away") { // webtunnel's client is answered first
			select {
			case <-log.news:
			case <-time.After(time.Minute):
				t.Fatalf("%s, site %v: the log: %s", tt.transport, tt.site, log.String())
			}
		}
		got := log.String()
		if !strings.Contains(got, "level=WARN") || strings.Count(got, "turned away") != 1 || !strings.Contains(got, "ptgate bridges") {
			t.Errorf("%s, site %v: a client with an old line: %s", tt.transport, tt.site, got)
		}
		for _, secret := range []string{"first-path", cert, "127.0.0.1"} {
			if secret != "" && strings.Contains(got, secret) {
				t.Errorf("%s: the log has %q: %s", tt.transport, secret, got)
			}
		}
	}
}

// A rotation with a part missing is told as damaged, whatever that part is.
func TestRotationIsWhole(t *testing.T) {
	for _, tt := range []struct{ transport, old, new string }{
		{nameObfs4, `"node-id"`, `"node"`},
		{nameObfs4, `"drbg-seed"`, `"seed"`},
		{nameWebtunnel, `"path"`, `"way"`},
	} {
		l := serverFor(t, tt.transport, nil)
		rotate(t, l, time.Now().Add(time.Hour))
		file := rotationPath(tt.transport, l.cfg.StateDir)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 2} { // of the new secret, of all
			if err := os.WriteFile(file, bytes.Replace(text, []byte(tt.old), []byte(tt.new), n), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := l.ReadKeys(); err == nil || !strings.Contains(err.Error(), file+" is damaged") {
				t.Errorf("%s without %s: %v", tt.transport, tt.old, err)
			}
		}
	}
}

// A web server in front asks with what path it likes, but not with one that has ended: that is
// answered like one that is not there.
func TestEndedPath(t *testing.T) {
	l := serverFor(t, nameWebtunnel, func(c *ServerConfig) { c.Options = argsOf("url", "https://example.com/a") })
	rotate(t, l, time.Now())
	for path, want := range map[string]bool{"/a": false, "/other": true} {
		go func() {
			if s, err := l.Accept(); err == nil {
				_ = s.Close()
			}
		}()
		c, err := clientFor(t, nameWebtunnel, nil).Dial(t.Context(), l.Addr().String(), argsOf("url", fmt.Sprintf("http://%s%s", l.Addr(), path), "utls", "none"))
		if err == nil {
			_ = c.Close()
		}
		status, _ := errors.AsType[*StatusError](err)
		if (err == nil) != want || !want && (status == nil || status.Status != http.StatusNotFound) {
			t.Errorf("%s: %v", path, err)
		}
	}

	// Past the web server, it is answered as little as any other.
	past := serverFor(t, nameWebtunnel, func(c *ServerConfig) {
		c.Options, c.TrustedProxies = argsOf("url", "https://example.com/a"), []netip.Prefix{}
	})
	rotate(t, past, time.Now())
	for _, path := range []string{"/a", "/other"} {
		c, err := net.Dial("tcp", past.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", path)
		if got, err := io.ReadAll(c); len(got) > 0 {
			t.Errorf("%s, past the web server: %q, %v", path, got, err)
		}
	}

	// A request as the site asks about it.
	request, _ := http.NewRequest(http.MethodGet, "http://x/a", nil)
	if l.isSecret(request) {
		t.Error("/a is secret still")
	}
}

// The file that is written can be read by people, who copy it to another box.
func TestRotationFile(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	rotate(t, l, time.Now().Add(time.Hour))
	text, err := os.ReadFile(rotationPath(nameObfs4, l.cfg.StateDir))
	if err != nil {
		t.Fatal(err)
	}
	var r rotation
	if err := json.Unmarshal(text, &r); err != nil || len(r.Old) != 1 || len(r.New) != 3 {
		t.Errorf("%v\n%s", err, text)
	}
}

// How long a client waits for the answer: of a server with one set, and of one with two.
func BenchmarkRotated(b *testing.B) {
	l := serverFor(b, nameObfs4, nil)
	before, _ := l.Args().Get("cert")
	bench := func(name, cert string) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				client, server := tcpPair(b)
				c := newLink(server, 0)
				c.guest = newGuest(server, loopback[0].Addr(), true)
				c.ahead = paddedHello(b, cert, 4000, 0)
				b.StartTimer()
				if _, _, err := l.accept(c); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = client.Close()
				_ = server.Close()
				b.StartTimer()
			}
		})
	}
	bench("one set", before)
	rotate(b, l, time.Now().Add(time.Hour))
	after, _ := l.Args().Get("cert")
	bench("two sets, the newest", after)
	bench("two sets, the old one", before)
}

// What the search for marks costs a client's handshake.
func BenchmarkSorter(b *testing.B) {
	for _, n := range []int{1, mostOld} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var old []*obfs4Set
			for range n {
				old = append(old, &obfs4Set{mark: make([]byte, 52)})
			}
			in := make([]byte, 4000)
			c := &link{}
			for b.Loop() {
				c.ahead = in
				s := &sorter{link: c, sets: old}
				if _, err := s.Read(make([]byte, obfs4Longest)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
