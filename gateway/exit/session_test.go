package exit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/destination"
	"ptgate/gateway/lookup"
	"ptgate/gateway/measure"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	sessions "ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/gateway/ways"
	"ptgate/routes"

	"ptgate/gateway/testkit"
)

func target(s string) routes.Target {
	t, err := destination.Parse(s)
	if err != nil {
		panic(err)
	}
	return t
}

type connect = func(context.Context, netip.AddrPort) (net.Conn, error)

// leadsTo connects to serve.
func leadsTo(t testing.TB, serve func(*net.TCPConn)) connect {
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return func(context.Context, netip.AddrPort) (net.Conn, error) {
		near, far := testkit.TCPPair(t)
		wg.Go(func() {
			defer far.Close()
			serve(far)
		})
		return near, nil
	}
}

func fails(err error) connect {
	return func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, err }
}

// serveConn runs a whole session.
func serveConn(ctx context.Context, e *Exit, c net.Conn) {
	if then := e.ServeConn(ctx, stream.From(c), "", everywhere{}, relay.Options{}); then != nil {
		then()
	}
}

const (
	hello   = "\x05\x01\x00"
	v4      = "\x05\x01\x00\x01\x08\x08\x08\x08\x00\x50"
	success = "\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
)

func reply(code byte) string { return detailed(code, 0) }

// detailed is a refusal with the detail of its reason.
func detailed(code, detail byte) string {
	return "\x05" + string([]byte{code, 0, 1, 0, 0, 0, 0, 0, detail})
}

func TestSession(t *testing.T) {
	users := map[string]string{"ann": "secret", "bob": ""}
	login := func(user, password string) string {
		return "\x05\x01\x02\x01" + string(rune(len(user))) + user + string(rune(len(password))) + password
	}
	long := strings.Repeat("a", 255)
	refuse := fails(errRefused)
	echo := leadsTo(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, c := range []struct {
		name    string
		users   map[string]string
		connect connect
		send    string
		want    string
	}{
		{"success", nil, echo, hello + v4, success},
		{"early data", nil, echo, hello + v4 + "to and fro", success + "to and fro"},
		{"a name", nil, echo, hello + "\x05\x01\x00\x03\x08known.to\x00\x50hi", success + "hi"},
		{"an address as a name", nil, echo, hello + "\x05\x01\x00\x03\x078.8.8.8\x00\x50", success},
		{"IPv6", nil, echo, hello + "\x05\x01\x00\x04\x26\x06\x47\x00" + strings.Repeat("\x00", 10) + "\x11\x11\x01\xbb", success},
		{"more methods", nil, echo, "\x05\x03\x01\x02\x00" + v4, success},
		{"255 methods", nil, echo, "\x05\xff" + strings.Repeat("\x00", 255) + v4, success},
		{"reserved byte", nil, echo, hello + "\x05\x01\x77\x01\x08\x08\x08\x08\x00\x50", success},
		{"nothing", nil, refuse, "", ""},
		{"SOCKS4", nil, refuse, "\x04\x01\x00\x50\x08\x08\x08\x08\x00", ""},
		{"HTTP", nil, refuse, "GET / HTTP/1.1\r\n\r\n", ""},
		{"no methods", nil, refuse, "\x05\x00", "\x05\xff"},
		{"only other methods", nil, refuse, "\x05\x02\x01\x02", "\x05\xff"},
		{"cut in the greeting", nil, refuse, "\x05\x04\x00", "\x05\xff"},
		{"cut in the request", nil, refuse, hello + v4[:6], "\x05\x00" + reply(1)},
		{"other version in the request", nil, refuse, hello + "\x04" + v4[1:], "\x05\x00" + reply(1)},
		{"bind", nil, refuse, hello + "\x05\x02" + v4[2:], "\x05\x00" + reply(7)},
		{"associate", nil, refuse, hello + "\x05\x03" + v4[2:], "\x05\x00" + reply(7)},
		{"unknown command", nil, refuse, hello + "\x05\x99" + v4[2:], "\x05\x00" + reply(7)},
		{"unknown address type", nil, refuse, hello + "\x05\x01\x00\x02\x08\x08\x08\x08\x00\x50", "\x05\x00" + reply(8)},
		{"empty name", nil, echo, hello + "\x05\x01\x00\x03\x00\x00\x50", "\x05\x00" + reply(1)},
		{"port 0", nil, echo, hello + v4[:8] + "\x00\x00", "\x05\x00" + reply(1)},
		{"newline in the name", nil, echo, hello + "\x05\x01\x00\x03\x04a\nb.\x00\x50", "\x05\x00" + reply(1)},
		{"NUL in the name", nil, echo, hello + "\x05\x01\x00\x03\x04a\x00.b\x00\x50", "\x05\x00" + reply(1)},
		{"an address in disguise", nil, echo, hello + "\x05\x01\x00\x03\x05127.1\x00\x50", "\x05\x00" + reply(1)},
		{"a zone", nil, echo, hello + "\x05\x01\x00\x03\x0afe80::1%lo\x00\x50", "\x05\x00" + reply(1)},
		{"name too long", nil, echo, hello + "\x05\x01\x00\x03\xff" + long + "\x00\x50", "\x05\x00" + reply(1)},
		{"loopback", nil, echo, hello + "\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16", "\x05\x00" + detailed(2, 1)},
		{"mapped loopback", nil, echo, hello + "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x7f\x00\x00\x01\x00\x16", "\x05\x00" + detailed(2, 1)},
		{"a name that rebinds", nil, echo, hello + "\x05\x01\x00\x03\x0brebind.test\x00\x16", "\x05\x00" + detailed(2, 1)},

		{"user", users, echo, login("ann", "secret") + v4 + "x", "\x05\x02\x01\x00" + success[2:] + "x"},
		{"no user and no-auth first", users, echo, "\x05\x02\x00\x02" + login("ann", "secret")[3:] + v4, "\x05\x02\x01\x00" + success[2:]},
		{"empty password", users, echo, login("bob", "") + v4, "\x05\x02\x01\x00" + success[2:]},
		{"wrong password", users, refuse, login("ann", "Secret") + v4, "\x05\x02\x01\x01"},
		{"unknown user", users, refuse, login("eve", "") + v4, "\x05\x02\x01\x01"},
		{"no user", users, refuse, hello + v4, "\x05\xff"},
		{"other version of RFC 1929", users, refuse, "\x05\x01\x02\x02\x03ann\x06secret", "\x05\x02\x01\x01"},
		{"longest user", users, refuse, "\x05\x01\x02\x01\xff" + long + "\xff" + long, "\x05\x02\x01\x01"},
		{"refused after the user", users, refuse, login("ann", "secret") + v4, "\x05\x02\x01\x00" + reply(5)},
		{"command after the user", users, refuse, login("ann", "secret") + "\x05\x02" + v4[2:], "\x05\x02\x01\x00" + reply(7)},
	} {
		s := &Settings{Policy: Policy{DenyPrivate: true}, Handshake: time.Minute}
		names := map[string]string{"rebind.test": "127.0.0.1", "known.to": "8.8.8.8"}
		e := newExit(s, names, c.connect)
		e.SetUsers(withPasswords(c.users))
		for _, step := range []int{1 << 20, 1} {
			client, server := testkit.TCPPair(t)
			var wg sync.WaitGroup
			wg.Go(func() { serveConn(t.Context(), e, server) })
			wg.Go(func() {
				for p := c.send; p != ""; {
					n := min(step, len(p))
					if _, err := client.Write([]byte(p[:n])); err != nil {
						break // refused already
					}
					p = p[n:]
				}
				client.CloseWrite()
			})
			// Where more was sent than was read, the end may be a reset.
			got, err := io.ReadAll(client)
			if string(got) != c.want || err != nil && c.connect != nil && bytes.HasSuffix(got, []byte(success[2:])) {
				t.Errorf("%s, %d bytes at a time: %q, %v, want %q", c.name, min(step, len(c.send)), got, err, c.want)
			}
			client.Close()
			wg.Wait()
		}
	}
}

// places counts.
type places struct {
	mu                 sync.Mutex
	left, taken, asked int
}

func (p *places) Acquire() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.taken == p.left {
		return false
	}
	p.taken++
	return true
}

func (p *places) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
}

// Only a complete and allowed request takes a place, and it gives the place back.
func TestPlaces(t *testing.T) {
	echo := leadsTo(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, c := range []struct {
		name    string
		connect connect
		send    string
		left    int
		want    string
		asked   int
	}{
		{"half a request", echo, hello + v4[:6], 1, "\x05\x00" + reply(1), 0},
		{"denied", echo, hello + "\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16", 1, "\x05\x00" + detailed(2, 1), 0},
		{"denied, and no place", echo, hello + "\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16", 0, "\x05\x00" + detailed(2, 1), 0},
		{"allowed", echo, hello + v4 + "x", 1, success + "x", 1},
		{"a name", echo, hello + "\x05\x01\x00\x03\x08known.to\x00\x50hi", 1, success + "hi", 1},
		{"a name that does not exist", echo, hello + "\x05\x01\x00\x03\x07no.such\x00\x50", 1, "\x05\x00" + detailed(4, 2), 1},
		{"refused", fails(errRefused), hello + v4, 1, "\x05\x00" + reply(5), 1},
		{"no place", echo, hello + v4, 0, "\x05\x00" + reply(1), 1},
	} {
		s := &Settings{Policy: Policy{DenyPrivate: true}, Handshake: time.Minute}
		e := newExit(s, map[string]string{"known.to": "8.8.8.8"}, c.connect)
		p := &places{left: c.left}
		client, server := testkit.TCPPair(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			if then := e.ServeConn(t.Context(), stream.From(server), "", p, relay.Options{}); then != nil {
				then()
			}
		})
		client.Write([]byte(c.send))
		client.CloseWrite()
		if got, _ := io.ReadAll(client); string(got) != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		client.Close()
		wg.Wait()
		if p.taken != 0 || p.asked != c.asked {
			t.Errorf("%s: asked for a place %d times, want %d; %d are not given back", c.name, p.asked, c.asked, p.taken)
		}
	}
}

// withPasswords makes users without limits. Nil: nobody is asked.
func withPasswords(passwords map[string]string) (all map[string]User) {
	for name, p := range passwords {
		if all == nil {
			all = map[string]User{}
		}
		all[name] = User{Password: p}
	}
	return all
}

// One user leaves places for the others.
func TestPlacesOfUsers(t *testing.T) {
	echo := leadsTo(t, func(c *net.TCPConn) { io.Copy(c, c) })
	e := newExit(&Settings{UserStreams: 2}, nil, echo)
	e.SetUsers(map[string]User{"ann": {Password: "a"}, "bob": {Password: "b"}})
	p := &places{left: 100}
	var wg sync.WaitGroup
	open := func(user, password, want string) (c *net.TCPConn) {
		t.Helper()
		client, server := testkit.TCPPair(t)
		wg.Go(func() {
			if then := e.ServeConn(t.Context(), stream.From(server), "", p, relay.Options{}); then != nil {
				then()
			}
		})
		io.WriteString(client, "\x05\x01\x02\x01\x03"+user+"\x01"+password+v4)
		got := make([]byte, len(want))
		if io.ReadFull(client, got); string(got) != want {
			t.Errorf("%s: %q, want %q", user, got, want)
		}
		return client
	}
	granted := "\x05\x02\x01\x00" + success[2:]
	refused := "\x05\x02\x01\x00" + reply(1)
	all := []*net.TCPConn{open("ann", "a", granted), open("ann", "a", granted), open("ann", "a", refused), open("bob", "b", granted), open("ann", "x", "\x05\x02\x01\x01")}
	for _, c := range all {
		c.Close()
	}
	wg.Wait()
	if open := e.Usage()["ann"].Streams; p.taken != 0 || open != 0 {
		t.Errorf("%d places are not given back, %d of the user", p.taken, open)
	}
	open("ann", "a", granted).Close()
	wg.Wait()
}

// A user at the limit of its places gets that of a half-closed connection of its own.
func TestUserMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var far []net.Conn
		e := newExit(&Settings{UserStreams: 1}, nil,
			func(context.Context, netip.AddrPort) (net.Conn, error) {
				near, other := net.Pipe()
				far = append(far, other)
				return near, nil
			})
		e.SetUsers(map[string]User{"ann": {Password: "a"}, "bob": {Password: "b"}})
		p := &places{left: 100}
		o := relay.Options{HalfOpen: time.Hour, Halves: relay.NewHalves(nil)}
		open := func(user string) (c net.Conn, granted bool) {
			c, server := net.Pipe()
			go func() {
				if then := e.ServeConn(t.Context(), stream.From(server), "", p, o); then != nil {
					then()
				}
			}()
			go io.WriteString(c, "\x05\x01\x02\x01\x03"+user+"\x01"+user[:1]+v4)
			got := make([]byte, 4+10)
			io.ReadFull(c, got)
			return c, got[5] == 0
		}
		for _, user := range []string{"ann", "bob"} {
			c, _ := open(user)
			defer c.Close()
		}
		far[0].Close() // that of ann is half-closed
		<-time.After(relay.LeastSilence - time.Second)
		for seconds, want := range []bool{false, true, false} {
			c, granted := open("ann")
			defer c.Close()
			if granted != want {
				t.Errorf("after %d seconds more: %v, want %v", seconds, granted, want)
			}
			<-time.After(time.Second)
		}
		if _, granted := open("bob"); granted {
			t.Error("the connection of another user makes room")
		}
		for _, c := range far {
			c.Close()
		}
	})
}

// Every reason reaches the client as its code, whatever words are in the error.
func TestReplies(t *testing.T) {
	for r := answer.Internal; r <= answer.NoNames; r++ {
		if r == answer.Credentials {
			continue // answers a greeting
		}
		want := r.SOCKS()
		if r == answer.Internal {
			want = answer.Unreachable.SOCKS()
		}
		e := newExit(&Settings{}, nil, fails(answer.Errorf(r, "policy refused: network is unreachable")))
		client, server := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { serveConn(t.Context(), e, server) })
		wg.Go(func() { io.WriteString(client, hello+v4) })
		got, err := io.ReadAll(client)
		if string(got) != "\x05\x00"+detailed(want, byte(r.Detail())) || err != nil {
			t.Errorf("%v: %q, %v", r, got, err)
		}
		client.Close()
		wg.Wait()
	}
}

func TestBusy(t *testing.T) {
	e := newExit(&Settings{}, nil, nil)
	if got := string(e.Busy()); got != "\x05\x00"+reply(1) {
		t.Errorf("%q", got)
	}
	e.SetUsers(map[string]User{})
	if got := string(e.Busy()); got != "\x05\x02\x01\x00"+reply(1) {
		t.Errorf("with users: %q", got)
	}
}

// Who comes with a wrong secret, or was revoked, is in the log by name. Any other name is not: it may
// be a password in the wrong place.
func TestUserInTheLog(t *testing.T) { synctest.Test(t, testUserInTheLog) }

func testUserInTheLog(t *testing.T) {
	for _, tt := range []struct{ login, want, wantNot string }{
		{"\x03ann\x05wrong", `"user":"ann"`, `"cause"`},
		{"\x03bob\x01b", `"user":"bob","cause":"revoked"`, `"ann"`},
		{"\x07mallory\x01e", "wrong user or password", `"user":`},
	} {
		var log bytes.Buffer
		logger := slog.New(slog.NewJSONHandler(&log, nil))
		book := outcome.New(logger)
		e := New(func() *Settings { return &Settings{} }, book, logger)
		e.SetUsers(map[string]User{"ann": {Password: "a"}, "bob": {Password: "b"}})
		e.SetUsers(map[string]User{"ann": {Password: "a"}})
		client, server := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { serveConn(t.Context(), e, server) })
		wg.Go(func() { io.WriteString(client, "\x05\x01\x02\x01"+tt.login+v4) })
		io.Copy(io.Discard, client)
		client.Close()
		wg.Wait()
		book.Close()
		if text := log.String(); !strings.Contains(text, tt.want) || strings.Contains(text, tt.wantNot) {
			t.Errorf("%q: log: %s", tt.login, text)
		}
	}
}

// Nobody learns from a log who asked for what.
func TestNothingPrivateInTheLog(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	book := outcome.New(logger)
	e := New(func() *Settings { return &Settings{} }, book, logger)
	e.SetUsers(map[string]User{"ann": {Password: "secret"}})
	e.connect = fails(errors.New("dial 8.8.8.8:80: known.to"))
	for _, send := range []string{
		"\x05\x01\x02\x01\x03ann\x06secret" + v4,
		"\x05\x01\x02\x01\x07mallory\x06guess!",
	} {
		client, server := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { serveConn(t.Context(), e, server) })
		wg.Go(func() { io.WriteString(client, send) })
		io.Copy(io.Discard, client)
		client.Close()
		wg.Wait()
	}
	book.Close()
	if !strings.Contains(log.String(), `"reason":"unreachable"`) || !strings.Contains(log.String(), "wrong user or password") {
		t.Errorf("log: %s", &log)
	}
	for _, s := range []string{"8.8.8.8", "known.to", "ann", "mallory", "guess", "secret"} {
		if strings.Contains(log.String(), s) {
			t.Errorf("%q is in the log: %s", s, &log)
		}
	}
}

// What becomes of sessions is counted, and a client that guesses passwords fills no log.
func TestCounts(t *testing.T) { synctest.Test(t, testCounts) }

func testCounts(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	book := outcome.New(logger)
	e := New(func() *Settings { return &Settings{} }, book, logger)
	e.SetUsers(map[string]User{"ann": {Password: "secret"}})
	e.connect = func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
		if a.Port() == 443 {
			c, far := net.Pipe()
			far.Close()
			return c, nil
		}
		return nil, syscall.ECONNREFUSED
	}
	const login = "\x05\x01\x02\x01\x03ann\x06secret"
	for _, c := range []struct {
		send  string
		reply int // bytes, after which the client leaves
		times int
	}{
		{login + v4, 14, 2}, // port 80
		{login + "\x05\x01\x00\x01\x08\x08\x08\x08\x01\xbb", 14, 3}, // port 443
		{login + "\x05\x02" + v4[2:], 14, 1},                        // BIND
		{"\x05\x01\x02\x01\x03ann\x05guess", 4, 9},
		{"\x05\x01\x00", 2, 4}, // without a password
		{"\x05\x01", 0, 1},     // incomplete
	} {
		for range c.times {
			client, server := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() { serveConn(t.Context(), e, server) })
			wg.Go(func() {
				io.WriteString(client, c.send)
				if c.reply == 0 {
					client.Close()
				}
			})
			if n, err := io.CopyN(io.Discard, client, int64(c.reply)); err != nil {
				t.Errorf("%q: %d bytes for an answer, %v", c.send, n, err)
			}
			if c.reply > 0 {
				client.Close()
			}
			wg.Wait()
		}
	}
	book.Close()
	got := map[string]int64{}
	for _, v := range book.Snapshot() {
		if v.Value > 0 {
			got[strings.TrimSpace(v.Name+" "+v.Labels["reason"])] = v.Value
		}
	}
	want := map[string]int64{"exit_opened": 3, "exit_refused refused": 2, "exit_refused command": 1, "exit_bad_credentials": 13}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "more=12") {
		t.Errorf("%d lines: %s", n, &log)
	}
}

// An operator reads of a client whose bridge has no user, where users are asked for.
func TestNoCredentials(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	book := outcome.New(logger)
	e := New(func() *Settings { return &Settings{} }, book, logger)
	e.SetUsers(map[string]User{"ann": {Password: "secret"}})
	client, server := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { serveConn(t.Context(), e, server) })
	wg.Go(func() { io.WriteString(client, "\x05\x01\x00") })
	if got, _ := io.ReadAll(client); string(got) != "\x05\xff" {
		t.Errorf("%q", got)
	}
	client.Close()
	wg.Wait()
	book.Close()
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), `cause="none given"`) {
		t.Errorf("log: %s", &log)
	}
}

func TestHandshakeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newExit(&Settings{Handshake: 10 * time.Second}, nil, nil)
		for _, send := range []string{"", "\x05", hello, hello + v4[:9]} {
			client, server := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := range len(send) {
					client.Write([]byte{send[i]})
				}
			})
			wg.Go(func() { io.Copy(io.Discard, client) })
			begin := time.Now()
			serveConn(t.Context(), e, server)
			if took := time.Since(begin); took != 10*time.Second {
				t.Errorf("after %q: %v", send, took)
			}
			client.Close()
			wg.Wait()
		}
	})
}

// TestPasswordAndHandshake: the time that the check of a password takes is not the
// client's.
func TestPasswordAndHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newExit(&Settings{Handshake: time.Second}, nil, fails(errRefused))
		e.SetUsers(map[string]User{"ann": {Password: "secret"}})
		const address = "192.0.2.1"
		var wg sync.WaitGroup
		begin := func() net.Conn {
			client, server := net.Pipe()
			wg.Go(func() { e.ServeConn(t.Context(), stream.From(server), address, everywhere{}, relay.Options{}) })
			return client
		}
		for i := range byte(3) {
			guesser := begin()
			wg.Go(func() { guesser.Write(append([]byte("\x05\x01\x02\x01\x03ann\x01"), 'a'+i)) })
			wg.Go(func() { io.Copy(io.Discard, guesser) })
		}
		synctest.Wait()
		client := begin()
		wg.Go(func() { io.WriteString(client, "\x05\x01\x02\x01\x03ann\x06secret") })
		got := make([]byte, 4)
		if _, err := io.ReadFull(client, got); string(got) != "\x05\x02\x01\x00" {
			t.Errorf("%q, %v", got, err)
		}
		<-time.After(time.Second / 2)
		wg.Go(func() { io.WriteString(client, v4) })
		if got, err := io.ReadAll(client); string(got) != reply(5) {
			t.Errorf("%q, %v", got, err)
		}
		wg.Wait()
	})
}

// The end of the context ends a session in whichever state it is.
func TestCut(t *testing.T) {
	// In the handshake.
	e := newExit(&Settings{}, nil, nil)
	client, server := testkit.TCPPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { serveConn(ctx, e, server) })
	io.WriteString(client, hello)
	io.ReadFull(client, make([]byte, 2))
	cancel()
	wg.Wait()
	client.Close()

	// In the dial.
	ctx, cancel = context.WithCancel(t.Context())
	dialling := make(chan struct{})
	e.connect = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		close(dialling)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	client, server = testkit.TCPPair(t)
	wg.Go(func() { serveConn(ctx, e, server) })
	io.WriteString(client, hello+v4)
	<-dialling
	cancel()
	wg.Wait()
	client.Close()

	// In the relay: both see a reset.
	ctx, cancel = context.WithCancel(t.Context())
	ended := make(chan error, 1)
	e.connect = leadsTo(t, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	client, server = testkit.TCPPair(t)
	defer client.Close()
	wg.Go(func() { serveConn(ctx, e, server) })
	io.WriteString(client, hello+v4)
	if _, err := io.ReadFull(client, make([]byte, len(success))); err != nil {
		t.Fatal(err)
	}
	cancel()
	wg.Wait()
	if n, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the client got %d bytes, %v", n, err)
	}
	if err := <-ended; err == nil {
		t.Error("the service saw an orderly end")
	}
}

// A client that shuts its side early still gets everything, and so does one whose
// whole exchange fits into one segment.
func TestHalfClose(t *testing.T) {
	const size = 4 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	var sum [32]byte
	e := newExit(&Settings{}, nil, leadsTo(t, func(c *net.TCPConn) {
		h := sha256.New()
		io.Copy(h, c) // to the end, and only then
		sum = [32]byte(h.Sum(nil))
		c.Write(data)
	}))
	client, server := testkit.TCPPair(t)
	defer client.Close()
	var wg sync.WaitGroup
	wg.Go(func() { serveConn(t.Context(), e, server) })
	wg.Go(func() {
		client.Write(append([]byte(hello+v4), data...))
		client.CloseWrite()
	})
	got, err := io.ReadAll(client)
	wg.Wait()
	if err != nil || string(got[:len(success)]) != success || !bytes.Equal(got[len(success):], data) {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
	if sum != sha256.Sum256(data) {
		t.Error("the service got something else")
	}
}

// Over a carrier the dial ends soon after its client has left.
func TestClientLeavesDuringDial(t *testing.T) {
	dialling, ended := make(chan struct{}), make(chan struct{})
	e := newExit(&Settings{}, nil, func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		close(dialling)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	near, far := testkit.TCPPair(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, c, err := carrier.Sniff(stream.From(far), time.Minute)
		if err != nil {
			t.Error(err)
			return
		}
		server := sessions.NewServer(nil, nil, func() sessions.ServerSettings { return sessions.ServerSettings{} })
		group := server.Group(func() int { return 10 }, quiet, func(s *sessions.Stream) func() {
			return e.ServeConn(t.Context(), s, s.Client(), everywhere{}, relay.Options{})
		})
		defer group.Close()
		group.Serve(t.Context(), c, sessions.ServeOptions{Handshake: time.Minute, Traffic: new(carrier.Traffic)})
	})
	client := sessions.Over(stream.From(near), sessions.Settings{}, sessions.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		if _, err := client.Open(ctx, target("8.8.8.8:80")); err == nil {
			t.Error("opened")
		}
	})
	<-dialling
	cancel()
	<-ended
	client.Close(time.Second)
	wg.Wait()
}

// A scripted connection gives its bytes, then the end, and keeps what it gets.
type scripted struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *scripted) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *scripted) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) CloseWrite() error                { return nil }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

func FuzzSession(f *testing.F) {
	for _, s := range []string{
		"", hello, hello + v4, hello + v4 + "early", "\x05\x01\x02\x01\x01u\x01p" + v4,
		hello + "\x05\x01\x00\x03\x0brebind.test\x00\x50",
		hello + "\x05\x01\x00\x03\x08known.to\x00\x50x",
		hello + "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x7f\x00\x00\x01\x00\x16",
		"\x05\x01\x02\x01\x01u\x01q", "PTG\x01", "\x04\x01",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, asks bool) {
		s := &Settings{Policy: Policy{DenyPrivate: true}}
		upstream := &scripted{in: bytes.NewReader([]byte("from the service"))}
		dialled := false
		e := newExit(s, map[string]string{"rebind.test": "127.0.0.1", "known.to": "8.8.8.8"},
			func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
				dialled = true
				if !public(a.Addr()) || a.Port() == 0 {
					t.Errorf("dialled %v", a)
				}
				return upstream, nil
			})
		if asks {
			e.SetUsers(map[string]User{"u": {Password: "p"}})
		}
		e.resolver.net.Dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no name server")
		}
		c := &scripted{in: bytes.NewReader(in)}
		serveConn(t.Context(), e, c)
		out := c.out.Bytes()
		if len(out) > 0 && out[0] != 5 {
			t.Errorf("answer %q", out)
		}
		if asks && dialled && !bytes.Contains(in, []byte("\x01\x01u\x01p")) {
			t.Errorf("dialled without the password: %q", in)
		}
		if !dialled {
			if upstream.out.Len() > 0 || len(out) > 14 {
				t.Errorf("%q and %q although nothing was dialled", upstream.out.Bytes(), out)
			}
			return
		}
		if !bytes.HasSuffix(out, []byte(success[2:]+"from the service")) {
			t.Errorf("answer %q", out)
		}
		if !bytes.HasSuffix(in, upstream.out.Bytes()) {
			t.Errorf("the service got %q of %q", upstream.out.Bytes(), in)
		}
	})
}

// A machine that has no name server that answers says so, to the client and in its log.
func TestNoNames(t *testing.T) {
	for _, tt := range []struct {
		err  *net.DNSError
		code string
		log  bool
	}{
		{&net.DNSError{Err: "read udp 127.0.0.1:9->127.0.0.1:53: read: connection refused", IsTemporary: true}, detailed(4, 3), true},
		{&net.DNSError{Err: "i/o timeout", IsTimeout: true}, detailed(4, 3), true},
		{&net.DNSError{Err: "server misbehaving", IsTemporary: true}, detailed(4, 4), false},
	} {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		book := outcome.New(logger)
		e := New(func() *Settings { return new(Settings) }, book, logger)
		e.resolver.ask = func(context.Context, string, family) ([]netip.Addr, error) { return nil, tt.err }
		client, server := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { serveConn(t.Context(), e, server) })
		wg.Go(func() { io.WriteString(client, hello+"\x05\x01\x00\x03\x09some.test\x00\x50") })
		got, _ := io.ReadAll(client)
		client.Close()
		wg.Wait()
		book.Close()
		if string(got) != "\x05\x00"+tt.code {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.code)
		}
		if said := strings.Contains(log.String(), "names can't be looked up") && strings.Contains(log.String(), "resolv.conf"); said != tt.log {
			t.Errorf("%v: in the log: %v, want %v\n%s", tt.err, said, tt.log, &log)
		}
	}
}

// An exit gives the list of the ways to its box to its users, and to nobody else. A client
// all of whose places are taken gets it, too.
func TestWays(t *testing.T) {
	asks := "\x05\x01\x00\x03" + string(rune(len(ways.Name))) + ways.Name + "\x00\x01"
	list := func() []byte { return []byte("the list") }
	for _, tt := range []struct {
		users map[string]string
		ways  func() []byte
		send  string
		want  string
	}{
		{nil, list, hello + asks, success + "the list"},
		{nil, func() []byte { return nil }, hello + asks, success},
		{map[string]string{"u": "p"}, list, "\x05\x01\x02\x01\x01u\x01p" + asks, "\x05\x02\x01\x00" + success[2:] + "the list"},
		{map[string]string{"u": "p"}, list, "\x05\x01\x02\x01\x01u\x01x" + asks, "\x05\x02\x01\x01"},
		{map[string]string{"u": "p"}, list, hello + asks, "\x05\xff"},
	} {
		synctest.Test(t, func(t *testing.T) {
			set := &Settings{Policy: Policy{DenyPrivate: true}, Ways: tt.ways}
			e := newExit(set, nil, fails(errRefused))
			if tt.users != nil {
				e.SetUsers(withPasswords(tt.users))
			}
			client, server := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() {
				if then := e.ServeConn(t.Context(), stream.From(server), "", &places{}, relay.Options{}); then != nil {
					then()
				}
			})
			wg.Go(func() { io.WriteString(client, tt.send) })
			got, _ := io.ReadAll(client)
			if string(got) != tt.want {
				t.Errorf("%q: %q, want %q", tt.send, got, tt.want)
			}
			client.Close()
			wg.Wait()
			if n := e.asides.Load(); n != 0 {
				t.Errorf("%q: %d places are taken", tt.send, n)
			}
		})
	}
}

// Clients that don't take the list can't be more than a bound.
func TestManyWays(t *testing.T) {
	e := newExit(&Settings{Ways: func() []byte { return []byte("the list") }}, nil, fails(errRefused))
	all := aside{&e.asides}
	for range mostAsides {
		if !all.Acquire() {
			t.Fatal("no place is free")
		}
	}
	client, server := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { e.ServeConn(t.Context(), stream.From(server), "", &places{left: 1}, relay.Options{}) })
	wg.Go(func() {
		io.WriteString(client, hello+"\x05\x01\x00\x03"+string(rune(len(ways.Name)))+ways.Name+"\x00\x01")
	})
	if got, _ := io.ReadAll(client); len(got) != 12 || got[3] != 1 {
		t.Errorf("%q", got)
	}
	wg.Wait()
	if n := e.asides.Load(); n != mostAsides {
		t.Errorf("%d places are taken", n)
	}
}

// An exit tells which addresses of a name it would connect to, and no others.
func TestLookup(t *testing.T) {
	names := map[string]string{
		"home.example.net": "8.8.8.8 2606:4700::1111", "lan.example.net": "10.0.0.1",
		"both.example.net": "10.0.0.1 8.8.4.4", "own.example.net": "9.9.9.9", "none.example.net": "",
	}
	own := func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:443")} }
	public := Policy{DenyPrivate: true}
	for _, tt := range []struct {
		policy Policy
		name   string
		want   string
		code   byte
	}{
		{public, "home.example.net", "8.8.8.8\n2606:4700::1111\n", 0},
		{public, "both.example.net", "8.8.4.4\n", 0},
		{public, "lan.example.net", "", 2},
		{Policy{}, "lan.example.net", "10.0.0.1\n", 0},
		{public, "own.example.net", "9.9.9.9\n", 0}, // the box itself, by its name
		{Policy{DenyNets: table(t, "9.9.9.9")}, "own.example.net", "", 2},
		{public, "none.example.net", "", 4},
		{Policy{Allow: new(routes.Table)}, "home.example.net", "", 2},
		{public, "127.0.0.1", "", 1},
		{public, "127.1", "", 1},
		{public, "x" + lookup.Suffix, "", 4}, // no question about a question
	} {
		synctest.Test(t, func(t *testing.T) {
			e := newExit(&Settings{Policy: tt.policy, Own: own}, names, fails(errRefused))
			e.isLocal = func(a netip.Addr) (bool, error) { return a.String() == "9.9.9.9", nil }
			e.resolver.ask = func(context.Context, string, family) ([]netip.Addr, error) { return nil, nil }
			client, server := net.Pipe()
			var wg sync.WaitGroup
			p := &places{left: 1}
			wg.Go(func() {
				if then := e.ServeConn(t.Context(), stream.From(server), "", p, relay.Options{}); then != nil {
					then()
				}
			})
			full := tt.name + lookup.Suffix
			wg.Go(func() { io.WriteString(client, hello+"\x05\x01\x00\x03"+string(rune(len(full)))+full+"\x01\xbb") })
			got, _ := io.ReadAll(client)
			ok := string(got) == success+tt.want
			if tt.code != 0 {
				ok = len(got) > 3 && got[3] == tt.code
			}
			if !ok {
				t.Errorf("%s: %q, want %q, code %d", tt.name, got, tt.want, tt.code)
			}
			client.Close()
			wg.Wait()
			if p.taken != 0 {
				t.Error("a place is not given back")
			}
		})
	}
}

// A look-up takes a place, as a connection does, and ends when its client leaves.
func TestLookupPlace(t *testing.T) {
	for _, left := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			e := newExit(&Settings{Policy: Policy{DenyPrivate: true}}, nil, fails(errRefused))
			var asked atomic.Bool
			e.resolver.ask = func(ctx context.Context, _ string, _ family) ([]netip.Addr, error) {
				asked.Store(true)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			begun := time.Now()
			client, server := net.Pipe()
			var wg sync.WaitGroup
			p := &places{left: left}
			var ended time.Time
			wg.Go(func() {
				if then := e.ServeConn(t.Context(), stream.From(server), "", p, relay.Options{}); then != nil {
					then()
				}
				ended = time.Now()
			})
			full := "home.example.net" + lookup.Suffix
			wg.Go(func() { io.WriteString(client, hello+"\x05\x01\x00\x03"+string(rune(len(full)))+full+"\x01\xbb") })
			wg.Go(func() { io.Copy(io.Discard, client) })
			<-time.After(5 * time.Second)
			client.Close()
			wg.Wait()
			if asked.Load() != (left > 0) || ended.Sub(begun) > 6*time.Second || p.taken != 0 {
				t.Errorf("with %d places: asked %v, until %v; %d places taken", left, asked.Load(), ended.Sub(begun), p.taken)
			}
		})
	}
}

// An exit gives bytes for measurements, whatever its policy is, and no more than it has
// places.
func TestMeasure(t *testing.T) {
	asks := "\x05\x01\x00\x03" + string(rune(len(measure.Name))) + measure.Name + "\x00\x01"
	e := newExit(&Settings{Policy: Policy{DenyPrivate: true, Allow: new(routes.Table)}}, nil, fails(errRefused))
	for _, left := range []int{1, 0} {
		p := &places{left: left}
		client, server := testkit.TCPPair(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			if then := e.ServeConn(t.Context(), stream.From(server), "", p, relay.Options{}); then != nil {
				then()
			}
		})
		io.WriteString(client, hello+asks+"\x00\x00\x00\x05")
		client.CloseWrite()
		want := success + "\x00\x00\x00\x00\x00"
		if left == 0 {
			want = "\x05\x00" + reply(1)
		}
		if got, _ := io.ReadAll(client); string(got) != want {
			t.Errorf("%d places: %q, want %q", left, got, want)
		}
		client.Close()
		wg.Wait()
		if p.taken != 0 {
			t.Errorf("%d places are not given back", p.taken)
		}
	}
}
