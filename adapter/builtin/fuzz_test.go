package builtin

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
)

// A script is a peer whose answers are known before the questions.
type script struct {
	*bytes.Reader
	sent int
}

func (s *script) Write(p []byte) (int, error) {
	s.sent += len(p)
	return len(p), nil
}

// FuzzProxyAnswers: whatever a proxy says, it is read within bounds, and what
// follows an acceptance is left for the tunnel.
func FuzzProxyAnswers(f *testing.F) {
	schemes := []string{"http://127.0.0.1:1", "http://a:b@127.0.0.1:1", "socks4a://127.0.0.1:1", "socks5://127.0.0.1:1", "socks5://a:b@127.0.0.1:1"}
	for i, answer := range []string{
		"HTTP/1.1 200 fine\r\n\r\n", "HTTP/1.0 299 \r\nA: b\r\n\r\n", "\x00\x5a\x00\x00\x00\x00\x00\x00",
		"\x05\x00\x05\x00\x00\x03\x04name\x00\x50", "\x05\x02\x01\x00\x05\x00\x00\x04................\x00\x50",
	} {
		f.Add(byte(i), []byte(answer))
		f.Add(byte(i), []byte(answer[:len(answer)-1]))
	}
	const tunnel = "tunnel"
	f.Fuzz(func(t *testing.T, which byte, answer []byte) {
		u, err := url.Parse(schemes[int(which)%len(schemes)])
		if err != nil {
			t.Fatal(err)
		}
		s := &script{Reader: bytes.NewReader(answer)}
		if err := askProxy(s, u, "bridge.example:443"); err != nil {
			if len(answer)-s.Len() > maxHead {
				t.Errorf("read %d bytes", len(answer)-s.Len())
			}
			return
		}
		// The same answer with more behind it leaves exactly that.
		used := len(answer) - s.Len()
		again := &script{Reader: bytes.NewReader(append(bytes.Clone(answer[:used]), tunnel...))}
		if err := askProxy(again, u, "bridge.example:443"); err != nil {
			t.Fatalf("the same answer: %v", err)
		}
		if rest, _ := io.ReadAll(again); string(rest) != tunnel {
			t.Errorf("left %q", rest)
		}
	})
}

// FuzzUpgradeAnswers: whatever a web server says, in whatever pieces, nothing that
// follows its head is lost or moved.
func FuzzUpgradeAnswers(f *testing.F) {
	f.Add([]byte(switching), uint8(0))
	f.Add([]byte(switching+"rest\r\n\r\n"), uint8(3))
	f.Add([]byte(switching[:len(switching)-1]), uint8(100))
	f.Add([]byte("HTTP/1.1 404 Not Found\r\n\r\n"), uint8(100))
	u := &url.URL{Scheme: "https", Host: "front.example", Path: "/secret"}
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		in := bytes.NewReader(stream)
		c, err := askUpgrade(&pieces{in: in, size: int(size) + 1}, u)
		if err != nil {
			return
		}
		var rest []byte
		if a, ok := c.(*aheadConn); ok {
			rest = a.ahead
		}
		left, _ := io.ReadAll(in)
		rest = append(rest, left...)
		head, ok := bytes.CutSuffix(stream, rest)
		if !ok || !bytes.HasSuffix(head, []byte("\n\r\n")) && !bytes.HasSuffix(head, []byte("\n\n")) {
			t.Errorf("head %q, rest %q of %q", head, rest, stream)
		}
	})
}

// FuzzForwardedFor: the last entries decide, whatever stands before them.
func FuzzForwardedFor(f *testing.F) {
	f.Add("192.0.2.1, x", ",", "192.0.2.7")
	f.Add("", "", "[2001:db8::1]:4")
	f.Fuzz(func(t *testing.T, a, b, last string) {
		if strings.Contains(last, ",") {
			return // that is more than one entry
		}
		want := forwardedFor([]string{last}, 1)
		if got := forwardedFor([]string{a, b, last}, 1); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
		if got := forwardedFor([]string{a + "," + b + "," + last + ",192.0.2.9"}, 2); got != want {
			t.Errorf("with two hops: got %v, want %v", got, want)
		}
	})
}

// A pieces is a connection that gives size bytes at a time and takes everything.
type pieces struct {
	net.Conn
	in   *bytes.Reader
	size int
}

func (p *pieces) Read(b []byte) (int, error)  { return p.in.Read(b[:min(len(b), p.size)]) }
func (p *pieces) Write(b []byte) (int, error) { return len(b), nil }
