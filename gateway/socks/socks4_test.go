package socks

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
)

var (
	long4     = strings.Repeat("u", maxText4)
	head4     = "\x04\x01\x01\xbb\x08\x08\x08\x08" // to 8.8.8.8:443
	named4    = "\x04\x01\x01\xbb\x00\x00\x00\x01" // to a name
	requests4 = []struct {
		name, in string
		want     request4
		reason   answer.Reason // Success: served
		short    bool          // more bytes are needed
	}{
		{name: "an address", in: head4 + "ann\x00", want: request4{"8.8.8.8", 443, 12}},
		{name: "no user", in: head4 + "\x00", want: request4{"8.8.8.8", 443, 9}},
		{name: "bytes behind", in: head4 + "ann\x00early", want: request4{"8.8.8.8", 443, 12}},
		{name: "0.0.0.0", in: "\x04\x01\x01\xbb\x00\x00\x00\x00\x00", want: request4{"0.0.0.0", 443, 9}},
		{name: "the network 0.0.1.0", in: "\x04\x01\x01\xbb\x00\x00\x01\x00\x00", want: request4{"0.0.1.0", 443, 9}},
		{name: "a name", in: named4 + "ann\x00a.example\x00early", want: request4{"a.example", 443, 22}},
		{name: "a name, 0.0.0.255", in: named4[:7] + "\xff\x00a\x00", want: request4{"a", 443, 11}},
		{name: "the longest", in: named4 + long4 + "\x00" + long4 + "\x00", want: request4{long4, 443, maxRequest4}},
		{name: "an empty name", in: named4 + "\x00\x00", want: request4{"", 443, 10}}, // refused as a destination
		{name: "nothing", in: "", short: true},
		{name: "no user's end", in: head4 + long4, short: true},
		{name: "no name", in: named4 + "ann\x00", short: true},
		{name: "no name's end", in: named4 + "\x00" + long4, short: true},
		{name: "SOCKS5", in: "\x05", reason: answer.BadRequest},
		{name: "BIND", in: "\x04\x02", reason: answer.Command},
		{name: "command 0", in: "\x04\x00" + head4[2:] + "\x00", reason: answer.Command},
		{name: "a user too long", in: head4 + long4 + "u", reason: answer.BadRequest},
		{name: "a user too long, with its end", in: head4 + long4 + "u\x00", reason: answer.BadRequest},
		{name: "a name too long", in: named4 + "\x00" + long4 + "u", reason: answer.BadRequest},
	}
)

func TestParse4(t *testing.T) {
	for _, tt := range requests4 {
		r, err := parse4([]byte(tt.in))
		switch {
		case tt.short:
			if err != io.ErrUnexpectedEOF {
				t.Errorf("%s: %v, want a wish for more", tt.name, err)
			}
		case tt.reason != answer.Success:
			if got := answer.Of(err); got != tt.reason {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.reason)
			}
		case err != nil || r != tt.want:
			t.Errorf("%s: %+v, %v, want %+v", tt.name, r, err, tt.want)
		default:
			// Each beginning of a request is too short, and refused by nobody.
			for i := range r.size {
				if _, err := parse4([]byte(tt.in[:i])); err != io.ErrUnexpectedEOF {
					t.Errorf("%s, %d bytes: %v", tt.name, i, err)
				}
			}
		}
	}
}

func FuzzParse4(f *testing.F) {
	for _, tt := range requests4 {
		f.Add([]byte(tt.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parse4(b)
		switch {
		case err == io.ErrUnexpectedEOF && len(b) >= maxRequest4:
			t.Errorf("%d bytes are not enough", len(b))
		case err == io.ErrUnexpectedEOF:
		case err != nil:
			if reason := answer.Of(err); reason != answer.BadRequest && reason != answer.Command {
				t.Errorf("%q: %v is %v", b, err, reason)
			}
		case r.size > len(b) || r.size > maxRequest4 || b[r.size-1] != 0 || len(r.host) > maxText4:
			t.Errorf("%q: %+v", b, r)
		}
	})
}

func TestServe4(t *testing.T) {
	reply := func(code byte) string { return "\x00" + string([]byte{code}) + strings.Repeat("\x00", 6) }
	for _, tt := range []struct {
		name, in, out string
		users         bool
		dial          func(host string, port int) (stream.Conn, error) // nil: succeeds
		host          string                                           // as dialled
		early         string
	}{
		{name: "an address, and more", in: head4 + "ann\x00early", out: reply(0x5a), host: "8.8.8.8", early: "early"},
		{name: "a name", in: named4 + "\x00a.example\x00", out: reply(0x5a), host: "a.example"},
		{name: "refused by the destination", in: head4 + "\x00", dial: refusing(answer.Refused), out: reply(0x5b), host: "8.8.8.8"},
		{name: "BIND", in: "\x04\x02" + head4[2:] + "\x00", out: reply(0x5b)},
		{name: "where a password is wanted", in: head4 + "\x00", users: true, out: reply(0x5d)},
		{name: "cut off", in: head4 + "ann", out: reply(0x5b)},
		{name: "nothing", out: ""},
		{name: "SOCKS5", in: "\x05", out: reply(0x5b)},
	} {
		for how, reader := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "with the end": iotest.DataErrReader,
		} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				app, conn := net.Pipe()
				upstream, far := net.Pipe()
				defer far.Close()
				defer upstream.Close()
				early := tt.early
				if how == "byte by byte" {
					early = "" // nothing is read behind the request
				}
				var host string
				s := Session{}
				s.Dial = func(h string, port int) (stream.Conn, error) {
					if host = h; port != 443 || s.Ahead() != len(early) {
						t.Errorf("port %d with %d bytes ahead, want 443 with %d", port, s.Ahead(), len(early))
					}
					if tt.dial != nil {
						return tt.dial(h, port)
					}
					return stream.From(upstream), nil
				}
				if tt.users {
					s.Valid = func(string, string) bool { t.Error("asked for a password"); return true }
				}
				got := make(chan string)
				go func() {
					b, _ := io.ReadAll(app)
					got <- string(b)
				}()
				err := s.Serve4(&input{conn, reader(strings.NewReader(tt.in))})
				s.Refuse() // of no effect where there was an answer
				conn.Close()
				if out := <-got; out != tt.out {
					t.Errorf("answered %q, want %q", out, tt.out)
				}
				granted := tt.out == reply(0x5a)
				if s.Granted != granted || (s.Upstream != nil) != granted || (err == nil) != granted || s.Answered != (tt.out != "") {
					t.Errorf("granted %t, answered %t, upstream %v, error %v", s.Granted, s.Answered, s.Upstream, err)
				}
				if tt.out != "" && s.Reason.SOCKS4() != tt.out[1] {
					t.Errorf("the reason is %v", s.Reason)
				}
				if host != tt.host || string(s.Early) != early {
					t.Errorf("dialled %q with %q ahead, want %q and %q", host, s.Early, tt.host, early)
				}
			})
		}
	}
	t.Run("a client that takes no answer", func(t *testing.T) {
		_, conn := net.Pipe()
		upstream, far := net.Pipe()
		defer far.Close()
		defer upstream.Close()
		s := Session{Dial: func(string, int) (stream.Conn, error) {
			conn.Close()
			return stream.From(upstream), nil
		}}
		if err := s.Serve4(&input{conn, strings.NewReader(head4 + "\x00")}); !errors.Is(err, io.ErrClosedPipe) || s.Granted || s.Upstream == nil {
			t.Errorf("%v, granted %t, upstream %v", err, s.Granted, s.Upstream)
		}
	})
}
