package carrier

import (
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func tcpPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func TestSniff(t *testing.T) {
	for first, want := range map[string]Kind{
		Preamble + "rest": Carrier,
		"\x05\x01\x00":    BareSOCKS5,
		"PTG\x02rest":     Unknown,
		"GET / HTTP/1.1":  Unknown,
	} {
		near, far := tcpPair(t)
		near.Write([]byte(first))
		near.(*net.TCPConn).CloseWrite()
		kind, c, err := Sniff(stream.From(far), time.Minute)
		if kind != want || err != nil {
			t.Errorf("%q: %v, %v", first, kind, err)
		}
		if rest, _ := io.ReadAll(c); kind == Carrier && string(rest) != "rest" || kind == BareSOCKS5 && string(rest) != first {
			t.Errorf("%q: %q is left", first, rest)
		}
		near.Close()
		far.Close()
	}
	near, far := tcpPair(t)
	defer near.Close()
	defer far.Close()
	if _, _, err := Sniff(stream.From(far), time.Millisecond); err == nil {
		t.Error("a silent peer is waited for")
	}
}
