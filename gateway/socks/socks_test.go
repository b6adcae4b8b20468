package socks

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// refusing is a Dial that fails for a reason.
func refusing(r answer.Reason) func(string, int) (stream.Conn, error) {
	return func(string, int) (stream.Conn, error) { return nil, answer.New(r, errors.New("no")) }
}

// input is a connection whose peer has sent everything and ended its direction.
type input struct {
	net.Conn
	r io.Reader
}

func (i *input) Read(p []byte) (int, error) { return i.r.Read(p) }

func TestSession(t *testing.T) {
	const (
		hello   = "\x05\x01\x00"
		login   = "\x05\x02\x00\x02" + "\x01\x03ann\x06secret"
		wrong   = "\x05\x02\x00\x02" + "\x01\x03ann\x05guess"
		name    = "\x05\x01\x00\x03\x09a.example\x01\xbb"
		address = "\x05\x01\x00\x01\x08\x08\x08\x08\x00\x35"
		success = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	)
	for _, tt := range []struct {
		name, in, out string
		users         bool
		dial          func(host string, port int) (stream.Conn, error) // nil: succeeds
		host          string                                           // as dialled, with the port
		early         string
		ahead         int
	}{
		{name: "a name", in: hello + name, out: "\x05\x00" + success, host: "a.example:443"},
		{name: "an address, and more", in: hello + address + "early", out: "\x05\x00" + success, host: "8.8.8.8:53", early: "early", ahead: 5},
		{name: "with a password", in: login + name + "x", users: true, out: "\x05\x02\x01\x00" + success, host: "a.example:443", early: "x", ahead: 1},
		{name: "a password that nobody asks for", in: "\x05\x01\x02" + login[4:] + name + "x", out: "\x05\x02\x01\x00" + success, host: "a.example:443", early: "x", ahead: 1},
		{name: "a password, or none", in: "\x05\x02\x02\x00" + name, out: "\x05\x00" + success, host: "a.example:443"},
		{name: "a password, and only none is taken", in: "\x05\x01\x02" + login[4:] + name, out: "\x05\xff"},
		{name: "GSSAPI", in: "\x05\x01\x01" + name, out: "\x05\xff"},
		{name: "cut in the greeting", in: "\x05\x02\x00", out: "\x05\xff"},
		{name: "SOCKS4", in: "\x04\x01", out: ""},
		{name: "a wrong password", in: wrong + name, users: true, out: "\x05\x02\x01\x01"},
		{name: "no method that fits", in: hello + name, users: true, out: "\x05\xff"},
		{name: "refused by the destination", in: hello + name, dial: refusing(answer.Refused), out: "\x05\x00\x05\x05" + success[2:], host: "a.example:443"},
		{name: "no bridge", in: hello + name, dial: refusing(answer.NoBridge), out: "\x05\x00\x05\x03" + success[2:], host: "a.example:443"},
		{name: "BIND", in: hello + strings.Replace(name, "\x05\x01", "\x05\x02", 1), out: "\x05\x00\x05\x07" + success[2:]},
		{name: "cut in the password", in: login[:9], users: true, out: "\x05\x02\x01\x01"},
		{name: "another version of user and password", in: "\x05\x01\x02\x02\x03ann", users: true, out: "\x05\x02\x01\x01"},
		{name: "cut behind the greeting", in: hello, out: "\x05\x00\x05\x01" + success[2:]},
		{name: "cut in the request", in: hello + name[:6], out: "\x05\x00\x05\x01" + success[2:]},
		{name: "nothing", out: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			app, conn := net.Pipe()
			upstream, far := net.Pipe()
			defer far.Close()
			defer upstream.Close()
			var host string
			s := Session{AnyPassword: tt.name != "a password, and only none is taken"}
			s.Dial = func(h string, port int) (stream.Conn, error) {
				host = net.JoinHostPort(h, map[int]string{443: "443", 53: "53"}[port])
				if n := s.Ahead(); n != tt.ahead {
					t.Errorf("%d bytes ahead, want %d", n, tt.ahead)
				}
				if tt.dial != nil {
					return tt.dial(h, port)
				}
				return stream.From(upstream), nil
			}
			if tt.users {
				s.Valid = func(user, password string) bool { return user == "ann" && password == "secret" }
			}
			got := make(chan string)
			go func() {
				b, _ := io.ReadAll(app)
				got <- string(b)
			}()
			err := s.Serve(&input{conn, strings.NewReader(tt.in)})
			s.Refuse() // of no effect where there was an answer
			conn.Close()
			if out := <-got; out != tt.out {
				t.Errorf("answered %q, want %q", out, tt.out)
			}
			granted := strings.HasSuffix(tt.out, success)
			if s.Granted != granted || (s.Upstream != nil) != granted || granted && err != nil {
				t.Errorf("granted %t, upstream %v, error %v; want granted %t", s.Granted, s.Upstream, err, granted)
			}
			if host != tt.host || string(s.Early) != tt.early {
				t.Errorf("dialled %q with %q ahead, want %q and %q", host, s.Early, tt.host, tt.early)
			}
		})
	}
}

// The library stays behind this package.
func TestOnlyImporter(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-e", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "ptgate/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var importers []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 && slices.Contains(f[1:], "github.com/armon/go-socks5") {
			importers = append(importers, f[0])
		}
	}
	if !slices.Equal(importers, []string{"ptgate/gateway/socks"}) {
		t.Errorf("go-socks5 is imported by %q", importers)
	}
}
