package builtin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// between runs relay between two TCP connections and gives their other ends.
func between(t *testing.T, ctx context.Context) (near, far *net.TCPConn, result chan error) {
	t.Helper()
	near, local := tcpPair(t)
	far, remote := tcpPair(t)
	result = make(chan error, 1)
	go func() { result <- relay(ctx, newLink(local, 0), newLink(remote, 0)) }()
	for _, c := range []*net.TCPConn{near, far} {
		_ = c.SetDeadline(time.Now().Add(limit))
	}
	return near, far, result
}

func TestRelayHalfCloseEitherSideFirst(t *testing.T) {
	for _, nearFirst := range []bool{true, false} {
		near, far, result := between(t, t.Context())
		first, second := near, far
		if !nearFirst {
			first, second = far, near
		}
		data := randomBytes(t, 3<<20)
		_, _ = io.WriteString(first, "first")
		_ = first.CloseWrite()
		if got, err := io.ReadAll(second); err != nil || string(got) != "first" {
			t.Errorf("got %q, %v", got, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := second.Write(data); err != nil {
				t.Errorf("write: %v", err)
			}
			_ = second.CloseWrite()
		})
		if got, err := io.ReadAll(first); err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		wg.Wait()
		if err := <-result; err != nil {
			t.Errorf("relay: %v", err)
		}
	}
}

func TestRelayPassesResets(t *testing.T) {
	for _, fromNear := range []bool{true, false} {
		near, far, result := between(t, t.Context())
		cause, effect := near, far
		if !fromNear {
			cause, effect = far, near
		}
		newLink(cause, 0).Abort()
		if _, err := effect.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("from near %v: the other side sees %v", fromNear, err)
		}
		if err := <-result; !isReset(err) {
			t.Errorf("relay: %v", err)
		}
	}
}

func TestRelayEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	near, far, result := between(t, ctx)
	cancel()
	for _, c := range []net.Conn{near, far} {
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("after the cut: %v", err)
		}
	}
	if err := <-result; err == nil {
		t.Error("no error")
	}
}

// The far end sends all it has and goes; the program has not read a byte of it
// and sends into the void. It still gets everything.
func TestRelaySparesWhatWasWritten(t *testing.T) {
	near, local := tcpPair(t)
	far, remote := tcpPair(t)
	toNear := newLink(local, 0)
	result := make(chan error, 1)
	go func() { result <- relay(t.Context(), toNear, newLink(remote, 0)) }()
	data := randomBytes(t, 64<<10)
	if _, err := far.Write(data); err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	for !toNear.ended.Load() {
		runtime.Gosched()
	}
	for range 100 {
		if _, err := near.Write(make([]byte, 1000)); err != nil {
			t.Fatalf("write: %v", err)
		}
	}
	_ = near.SetDeadline(time.Now().Add(limit))
	if got, err := io.ReadAll(near); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(data), err)
	}
	_ = near.CloseWrite()
	if err := <-result; !isReset(err) {
		t.Errorf("relay: %v", err)
	}
}

// A write may take the one error that a reset leaves; the reader must not see a
// clean end then.
func TestResetTakenByAWriterIsNoEnd(t *testing.T) {
	a, b := tcpPair(t)
	newLink(b, 0).Abort()
	for {
		if _, err := a.Write([]byte("x")); err != nil {
			break
		}
	}
	if _, err := newLink(a, 0).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
}

func TestEndAfterOurOwnIsClean(t *testing.T) {
	a, b := tcpPair(t)
	l := newLink(a, 0)
	_ = l.CloseWrite()
	_, _ = io.ReadAll(b)
	_ = b.Close()
	if _, err := l.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
}

// piped is a transport that can't half-close: io.ErrClosedPipe is its only end.
type piped struct {
	Conn
	in     chan []byte
	closed chan struct{}
	once   sync.Once
}

func (p *piped) Read(b []byte) (int, error) {
	select {
	case in := <-p.in:
		return copy(b, in), nil
	case <-p.closed:
		return 0, io.ErrClosedPipe
	}
}

func (p *piped) CloseWrite() error { return errors.ErrUnsupported }

func (p *piped) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Without half-close, the connection lives on while it has something to say.
func TestLingering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &piped{in: make(chan []byte), closed: make(chan struct{})}
		l := &lingering{Conn: inner}
		begin := time.Now()
		if err := l.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(pollIdle-time.Second, func() { inner.in <- []byte("late") })
		defer timer.Stop()
		got, err := io.ReadAll(l)
		if err != nil || string(got) != "late" {
			t.Errorf("got %q, %v", got, err)
		}
		if took, want := time.Since(begin), 2*pollIdle-time.Second; took != want {
			t.Errorf("lingered for %v, want %v", took, want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	// Its end before that is an error.
	inner := &piped{in: make(chan []byte), closed: make(chan struct{})}
	l := &lingering{Conn: inner}
	_ = inner.Close()
	if _, err := l.Read(make([]byte, 1)); err != io.ErrClosedPipe {
		t.Errorf("read: %v", err)
	}
	_ = l.Close()
}
