package relay

import (
	"bytes"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/stream"
	"ptgate/gateway/testkit"
)

// Copy moves just as many bytes as it should, by whatever means, and leaves the rest.
func TestCopy(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB, so that the kernel moves some
	for name, adapt := range wraps {
		for _, n := range []int{0, 1, bufferSize, bufferSize + 1, 1 << 20, len(content), -1} {
			src, from := testkit.TCPPair(t)
			dst, to := testkit.TCPPair(t)
			go func() {
				from.Write(content)
				from.CloseWrite()
			}()
			got := make(chan []byte, 1)
			go func() {
				b, _ := io.ReadAll(to)
				got <- b
			}()
			var count, moved atomic.Int64
			left, rerr, werr := Copy(adapt(dst), adapt(src), int64(n), &count, &moved)
			dst.CloseWrite()
			want := content
			if n >= 0 {
				want = content[:n]
			}
			if b := <-got; !bytes.Equal(b, want) || rerr != nil || werr != nil || left > 0 {
				t.Errorf("%s, %d: %d bytes, %d left, %v, %v", name, n, len(b), left, rerr, werr)
			}
			if int(count.Load()) != len(want) || int(moved.Load()) != len(want) {
				t.Errorf("%s, %d: counted %d and %d", name, n, count.Load(), moved.Load())
			}
			if rest, err := io.ReadAll(src); len(rest) != len(content)-len(want) || err != nil {
				t.Errorf("%s, %d: then %d bytes, %v", name, n, len(rest), err)
			}
		}
	}
}

// Where the source ends too early, something is left.
func TestCopyShort(t *testing.T) {
	src, from := testkit.TCPPair(t)
	dst, _ := testkit.TCPPair(t)
	io.WriteString(from, "abc")
	from.CloseWrite()
	var count atomic.Int64
	if left, rerr, werr := Copy(stream.TCP(dst), stream.TCP(src), 5, &count, new(atomic.Int64)); left != 2 || rerr != nil || werr != nil {
		t.Errorf("%d left, %v, %v", left, rerr, werr)
	}
}

func TestLeft(t *testing.T) {
	mine, peer := testkit.TCPPair(t)
	c := stream.TCP(mine)
	peer.CloseWrite()
	if Left(c) {
		t.Error("a program that has ended its direction has left")
	}
	peer.Close()
	if known := runtime.GOOS == "linux"; Left(c) != known {
		t.Errorf("a program that has closed its connection has left: %v", !known)
	}
}

// A resetter is reset.
type resetter struct{ stream.Conn }

func (resetter) Peer() stream.Peer { return stream.WasReset }

// A write that blocks does not hold up a Copy whose source is gone.
func TestCopyFromNobody(t *testing.T) {
	for limit, from := range map[time.Duration]func(stream.Conn) stream.Conn{
		2 * stuckLook:                 func(c stream.Conn) stream.Conn { return resetter{c} },
		DefaultHalfOpen + 2*stuckLook: func(c stream.Conn) stream.Conn { return departed{c} },
	} {
		synctest.Test(t, func(t *testing.T) {
			app, client := bubblePipe()
			far, upstream := bubblePipe()
			go app.Write([]byte("nobody reads this"))
			begin := time.Now()
			_, readErr, writeErr := Copy(upstream, from(client), 100, nil, new(atomic.Int64))
			if took := time.Since(begin); writeErr == nil || took > limit {
				t.Errorf("%v, %v after %v, want %v", readErr, writeErr, took, limit)
			}
			for _, c := range []io.Closer{app, client, far, upstream} {
				c.Close()
			}
		})
	}
}
