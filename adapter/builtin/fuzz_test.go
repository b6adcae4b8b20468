package builtin

import (
	"bytes"
	"io"
	"net/url"
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

// FuzzCutHead: in whatever pieces a stream comes, the head ends where it ends and
// not a byte is lost or moved.
func FuzzCutHead(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\nrest"), uint8(3))
	f.Add([]byte("\r\n\r\r\n\r\n"), uint8(1))
	f.Add([]byte("no end\r\n\r"), uint8(2))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		l := &link{inHead: true}
		var head []byte
		left := stream
		for len(left) > 0 && l.inHead {
			piece := left[:min(len(left), int(size)+1)]
			left = left[len(piece):]
			head = append(head, piece[:l.cutHead(piece)]...)
		}
		want := len(stream)
		if i := bytes.Index(stream, endOfHead); i >= 0 {
			want = i + len(endOfHead)
		}
		if !bytes.Equal(head, stream[:want]) {
			t.Errorf("head %q of %q", head, stream)
		}
		if !bytes.Equal(append(bytes.Clone(l.rest), left...), stream[want:]) {
			t.Errorf("rest %q, left %q of %q", l.rest, left, stream)
		}
	})
}
