package socks5_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"ptgate/adapter/socks5"
)

// addresses are all kinds, with their encoding.
var addresses = []struct {
	addr socks5.Addr
	wire string
}{
	{socks5.Addr{}, "\x01\x00\x00\x00\x00\x00\x00"},
	{socks5.Addr{IP: netip.MustParseAddr("192.0.2.1"), Port: 443}, "\x01\xc0\x00\x02\x01\x01\xbb"},
	{socks5.Addr{IP: netip.MustParseAddr("::ffff:192.0.2.1"), Port: 443}, "\x01\xc0\x00\x02\x01\x01\xbb"},
	{socks5.Addr{IP: netip.MustParseAddr("2001:db8::1"), Port: 1}, "\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01"},
	{socks5.Addr{Name: "example.com", Port: 80}, "\x03\x0bexample.com\x00\x50"},
	{socks5.Addr{Name: strings.Repeat("a", 255), Port: 80}, "\x03\xff" + strings.Repeat("a", 255) + "\x00\x50"},
}

func TestAddr(t *testing.T) {
	for _, a := range addresses {
		b, err := a.addr.Append([]byte("before"))
		if string(b) != "before"+a.wire || err != nil {
			t.Errorf("%+v: % x, %v", a.addr, b, err)
			continue
		}
		want := a.addr
		if want.IP = want.IP.Unmap(); want == (socks5.Addr{}) {
			want.IP = netip.IPv4Unspecified()
		}
		got, rest, err := socks5.ParseAddr([]byte(a.wire + "rest"))
		if got != want || string(rest) != "rest" || err != nil {
			t.Errorf("% x: %+v, %q, %v", a.wire, got, rest, err)
		}
		for n := range len(a.wire) {
			if _, _, err := socks5.ParseAddr([]byte(a.wire[:n])); err != io.ErrUnexpectedEOF {
				t.Errorf("% x: %v", a.wire[:n], err)
			}
		}
	}
	for _, bad := range []socks5.Addr{
		{Name: strings.Repeat("a", 256)}, {Name: "a\x00b"}, {IP: netip.MustParseAddr("fe80::1%eth0")},
	} {
		if b, err := bad.Append(nil); err == nil {
			t.Errorf("%+v: % x", bad, b)
		}
	}
	if _, _, err := socks5.ParseAddr([]byte("\x02\x00\x00\x00\x00\x00\x00")); !errors.Is(err, socks5.ErrMalformed) {
		t.Errorf("address type 2: %v", err)
	}
}

// script plays a server that has answered already, and keeps what it hears.
type script struct {
	io.Reader
	heard bytes.Buffer
}

func (s *script) Write(b []byte) (int, error) { return s.heard.Write(b) }

// What a server may answer, to a client with a password or without.
func TestAnswers(t *testing.T) {
	isMethod := func(chosen socks5.Method) func(error) bool {
		return func(err error) bool {
			e, ok := errors.AsType[*socks5.MethodError](err)
			return ok && e.Chosen == chosen
		}
	}
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	for _, tt := range []struct {
		user, says string
		stage      socks5.Stage
		want       func(error) bool
	}{
		{"", "\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50", "", nil},
		{"", "\x05\x00\x05\x00\x00\x03\x00\x00\x50", "", nil},
		{"u", "\x05\x02\x01\x00\x05\x00\x00\x03\x04name\x00\x50", "", nil},
		{"u", "\x05\x02\x05\x00\x05\x00\x00\x04................\x00\x50", "", nil},
		{"", "\x05\xff", socks5.StageMethod, isMethod(socks5.NoMethod)},
		{"u", "\x05\x00", socks5.StageMethod, isMethod(socks5.NoAuth)},
		{"", "HT", socks5.StageMethod, is(socks5.ErrMalformed)},
		{"", "\x05", socks5.StageMethod, is(io.ErrUnexpectedEOF)},
		{"", "", socks5.StageMethod, is(io.ErrUnexpectedEOF)},
		{"u", "\x05\x02\x01\x07", socks5.StageAuth, is(socks5.StatusError(7))},
		{"u", "\x05\x02\x01", socks5.StageAuth, is(io.ErrUnexpectedEOF)},
		{"", "\x05\x00\x05\x05", socks5.StageRequest, is(socks5.ReplyError(5))},
		{"", "\x05\x00\x05\x05\x00\x01\x00\x00", socks5.StageRequest, is(socks5.ReplyError(5))},
		{"", "\x05\x00\x04\x00", socks5.StageRequest, is(socks5.ErrMalformed)},
		{"", "\x05\x00\x05\x00\x00\x02", socks5.StageRequest, is(socks5.ErrMalformed)},
		{"", "\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00", socks5.StageRequest, is(io.ErrUnexpectedEOF)},
		{"", "\x05\x00\x05\x00\x00", socks5.StageRequest, is(io.ErrUnexpectedEOF)},
		{"", "\x05\x00", socks5.StageRequest, is(io.ErrUnexpectedEOF)},
	} {
		c := socks5.Client{Auth: socks5.Auth{User: tt.user}, Command: socks5.Connect, Addr: socks5.Addr{Name: "example.com", Port: 443}}
		check := func(how string, err error, rest io.Reader) {
			if tt.want == nil {
				if left, _ := io.ReadAll(rest); err != nil || string(left) != "rest" {
					t.Errorf("%s, %q: %v, %q is left", how, tt.says, err, left)
				}
				return
			}
			if e, ok := errors.AsType[*socks5.Error](err); !ok || e.Stage != tt.stage || !tt.want(err) {
				t.Errorf("%s, %q: %v", how, tt.says, err)
			}
		}
		says := tt.says
		if tt.want == nil {
			says += "rest"
		}
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"at once":      func(r io.Reader) io.Reader { return r },
			"byte by byte": iotest.OneByteReader,
		} {
			r := wrap(strings.NewReader(says))
			_, err := socks5.ReadAnswers(r, c.Auth.Method())
			check(name, err, r)
			s := &script{Reader: wrap(strings.NewReader(says))}
			_, err = c.Do(s)
			check("step by step, "+name, err, s)
			// Message by message is the same as all at once.
			if all, _ := c.Append(nil); tt.want == nil && s.heard.String() != string(all) {
				t.Errorf("said %q, want %q", &s.heard, all)
			}
		}
	}
	strict := socks5.Client{Auth: socks5.Auth{User: "u", Password: "p"}, Strict: true}
	if err := strict.Greet(&script{Reader: strings.NewReader("\x05\x02\x05\x00")}); !errors.Is(err, socks5.ErrMalformed) {
		t.Errorf("another version of user and password: %v", err)
	}
}

// A client that goes step by step never sends a byte before its turn.
func TestStepByStep(t *testing.T) {
	for _, auth := range []socks5.Auth{{}, {User: "user", Password: "secret"}} {
		near, far := net.Pipe() // a write ends when it was read, so messages show
		var wg sync.WaitGroup
		wg.Go(func() {
			defer far.Close()
			b := make([]byte, 512)
			next := func(want string, reply ...byte) {
				if n, _ := far.Read(b); string(b[:n]) != want {
					t.Errorf("said %q, want %q", b[:n], want)
				}
				far.Write(reply)
			}
			next(string([]byte{5, 1, byte(auth.Method())}), 5, byte(auth.Method()))
			if auth.User != "" {
				next("\x01\x04user\x06secret", 1, 0)
			}
			next("\x05\x03\x00\x03\x0bexample.com\x01\xbb", 5, 0, 0, 1, 1, 2, 3, 4, 0, 80)
			far.Write([]byte("data"))
		})
		c := socks5.Client{Auth: auth, Command: socks5.UDPAssociate, Addr: socks5.Addr{Name: "example.com", Port: 443}}
		bound, err := c.Do(near)
		if err != nil || bound != (socks5.Addr{IP: netip.MustParseAddr("1.2.3.4"), Port: 80}) {
			t.Fatalf("%+v, %v", bound, err)
		}
		if b, _ := io.ReadAll(near); string(b) != "data" {
			t.Errorf("after the handshake: %q", b)
		}
		near.Close()
		wg.Wait()
	}
}

// What can't be said is not begun.
func TestNothingIsSent(t *testing.T) {
	long := strings.Repeat("a", 256)
	for _, c := range []socks5.Client{
		{Addr: socks5.Addr{Name: long}}, {Auth: socks5.Auth{User: long}}, {Auth: socks5.Auth{User: "u", Password: long}},
	} {
		s := &script{Reader: strings.NewReader("")}
		if _, err := c.Do(s); err == nil || s.heard.Len() > 0 {
			t.Errorf("%v after %q", err, &s.heard)
		}
		if _, err := c.Append(nil); err == nil {
			t.Error("appended")
		}
	}
}

func TestServer(t *testing.T) {
	b := socks5.AppendMethod(nil, socks5.UserPassword)
	b = socks5.AppendStatus(b, 0)
	b = socks5.AppendFailure(b, 5)
	if string(b) != "\x05\x02\x01\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00" {
		t.Errorf("% x", b)
	}
	r := bytes.NewReader(b)
	if _, err := socks5.ReadAnswers(r, socks5.UserPassword); !errors.Is(err, socks5.ReplyError(5)) {
		t.Error(err)
	}
	for _, a := range addresses {
		b, err := socks5.AppendReply(nil, 0, a.addr)
		if string(b) != "\x05\x00\x00"+a.wire || err != nil {
			t.Errorf("% x, %v", b, err)
		}
	}
}

func FuzzReadAnswers(f *testing.F) {
	f.Add([]byte("\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"), false)
	f.Add([]byte("\x05\x02\x01\x00\x05\x05\x00\x03\x04name\x00\x50"), true)
	f.Fuzz(func(t *testing.T, b []byte, auth bool) {
		m, head := socks5.NoAuth, 2
		if auth {
			m, head = socks5.UserPassword, 4
		}
		r := bytes.NewReader(b)
		bound, err := socks5.ReadAnswers(r, m)
		if err != nil {
			return
		}
		// A success is as long as it says, and its address can be said again.
		again, rest, err := socks5.ParseAddr(b[head+3:])
		if err != nil || again != bound || len(rest) != r.Len() {
			t.Fatalf("%+v, then %+v, %v; %d and %d bytes left", bound, again, err, r.Len(), len(rest))
		}
	})
}

func Example() {
	near, far := net.Pipe()
	go func() { // a server that says yes to everything
		defer far.Close()
		b := make([]byte, 64)
		far.Read(b)
		far.Write(socks5.AppendMethod(nil, socks5.NoAuth))
		far.Read(b)
		reply, _ := socks5.AppendReply(nil, 0, socks5.Addr{IP: netip.MustParseAddr("192.0.2.1"), Port: 4711})
		far.Write(reply)
	}()
	c := socks5.Client{Command: socks5.Connect, Addr: socks5.Addr{Name: "example.com", Port: 443}}
	bound, err := c.Do(near)
	fmt.Println(bound.IP, bound.Port, err)
	// Output: 192.0.2.1 4711 <nil>
}
