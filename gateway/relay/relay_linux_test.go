package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"ptgate/gateway/stream"
	"ptgate/gateway/testkit"
)

// A program that closes its connection ends the pair, also where the far end can't
// be told of half a close; what it sent is delivered.
func TestProgramGone(t *testing.T) {
	for _, halfFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("half first %t", halfFirst), func(t *testing.T) {
			j := join(t, asRaw, Options{})
			j.app.Write([]byte("last words"))
			if halfFirst {
				j.app.CloseWrite()
				j.far.Write([]byte("answer"))
				if _, err := io.ReadFull(j.app, make([]byte, 6)); err != nil {
					t.Fatal(err)
				}
			}
			j.app.Close()
			if b, err := io.ReadAll(j.far); string(b) != "last words" || err != nil {
				t.Errorf("the far end read %q, %v", b, err)
			}
			if err := <-j.done; err != nil {
				t.Error(err)
			}
		})
	}
}

// The kernel tells of both address families.
func TestOwner(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		app, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if o := owner(c.(*net.TCPConn)); o != present {
			t.Errorf("%s: %v while it is open", addr, o)
		}
		app.(*net.TCPConn).CloseWrite()
		if o := owner(c.(*net.TCPConn)); o != present {
			t.Errorf("%s: %v while it reads", addr, o)
		}
		app.Close()
		if o := owner(c.(*net.TCPConn)); o != gone {
			t.Errorf("%s: %v when it is closed", addr, o)
		}
	}
}

// The kernel is asked also while no descriptor is left: just then many programs come, and
// each must be told from those of others.
func TestOwnerWithoutDescriptors(t *testing.T) {
	j := join(t, wraps["tcp"], Options{})
	if o := owner(j.app); o != present {
		t.Fatalf("%v", o)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	next, err := os.Open(os.DevNull) // it has the lowest number that is free
	if err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = uint64(next.Fd())
	next.Close()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	o := owner(j.app)
	_, openErr := os.Open(os.DevNull)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(openErr, syscall.EMFILE) {
		t.Fatalf("there are descriptors: %v", openErr)
	}
	if o != present {
		t.Errorf("%v", o)
	}
}

func descriptors(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// Many pairs, each bulk in its turn: the pipes are shared and given back.
func TestDescriptors(t *testing.T) {
	const pairs = 100
	js := make([]*joined, pairs)
	for i := range js {
		js[i] = join(t, wraps["tcp"], Options{})
	}
	before := descriptors(t)
	buf := make([]byte, 1<<20)
	for _, j := range js {
		go j.app.Write(buf)
		if _, err := io.CopyN(io.Discard, j.far, int64(len(buf))); err != nil {
			t.Fatal(err)
		}
	}
	if after := descriptors(t); after > before+2*poolSize {
		t.Errorf("%d descriptors before, %d after bulk", before, after)
	}
	for _, j := range js {
		j.app.Close()
		j.far.Close()
		<-j.done
	}
}

// A left is a connection whose peer has reset it, and of which a splice has swallowed the
// error: a write says EPIPE, and reading ends as if all were well.
type left struct {
	stream.Conn
	written, ended chan struct{}
	answer         []byte
}

func (l *left) Write([]byte) (int, error) {
	close(l.written)
	return 0, syscall.EPIPE
}

func (l *left) Read(p []byte) (n int, err error) {
	if n = copy(p, l.answer); n == 0 {
		<-l.written
		defer close(l.ended)
		return 0, io.EOF
	}
	l.answer = l.answer[n:]
	return n, nil
}

func (l *left) WaitRead() error { return nil }

func (l *left) Socket() stream.Socket { return stream.Socket{TCP: l.Conn.Socket().TCP} }

// Run returns when both connections are closed, also where the end waits until what was
// sent had time to arrive.
func TestRunWaitsForTheReset(t *testing.T) {
	app, client := testkit.TCPPair(t)
	upstream, far := testkit.TCPPair(t)
	far.SetLinger(0)
	far.Close()
	if err := stream.TCP(upstream).WaitRead(); err == nil || !stream.Closed(upstream) {
		t.Fatalf("after a reset: %v", err)
	}
	l := &left{stream.TCP(upstream), make(chan struct{}), make(chan struct{}), []byte("answer")}
	done := make(chan error, 1)
	p := newPair(context.Background(), stream.TCP(client), l, Options{})
	p.up.spliced = true // so that nobody can tell what EPIPE means
	go func() { done <- p.relay(nil) }()
	app.Write([]byte("request"))
	<-l.ended
	app.CloseWrite()
	if err := <-done; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Run: %v", err)
	}
	for _, c := range []*net.TCPConn{client, upstream} {
		if err := c.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run has returned, and a connection is open: %v", err)
		}
	}
	if b, err := io.ReadAll(app); string(b) != "answer" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the program read %q, %v", b, err)
	}
}

// A slow connection takes nothing until it is let go.
type slow struct {
	stream.Conn
	writes chan struct{} // gets one value when a write begins
	letGo  chan struct{}
}

func (s *slow) Write(b []byte) (int, error) {
	select {
	case s.writes <- struct{}{}:
	default:
	}
	<-s.letGo
	return s.Conn.Write(b)
}

func (*slow) Socket() stream.Socket { return stream.Socket{} }

// When both directions of a connection have ended in order, the kernel closes its socket,
// as after a reset. What came before and was not read yet still reaches a side that reads
// slowly.
func TestEndDuringAWrite(t *testing.T) {
	for name, wrap := range wraps {
		for _, side := range []string{"app", "far"} {
			t.Run(name+"/"+side, func(t *testing.T) {
				app, client := testkit.TCPPair(t)
				upstream, far := testkit.TCPPair(t)
				a, b := wrap(client), wrap(upstream)
				from, source, reader := far, upstream, app
				if side == "app" {
					from, source, reader = app, client, far
				}
				s := &slow{a, make(chan struct{}, 1), make(chan struct{})}
				p := newPair(context.Background(), s, b, Options{})
				d := &p.down
				if side == "app" {
					s.Conn = b
					p = newPair(context.Background(), a, s, Options{})
					d = &p.up
				}
				p.pause = 2 * time.Millisecond
				done := make(chan error, 1)
				go func() { done <- p.relay(nil) }()

				reader.CloseWrite()
				if rest, err := io.ReadAll(from); len(rest) > 0 || err != nil {
					t.Fatalf("%d bytes, %v, want the end", len(rest), err)
				}
				const size = 3*bufferSize + 5
				from.Write(make([]byte, size))
				from.Close()
				<-s.writes
				stream.TCP(source).WaitReset() // returns when the kernel has closed the socket
				for d.stuckFor() < p.pause {
					runtime.Gosched()
				}
				p.lookStuck()
				close(s.letGo)
				if n, err := io.Copy(io.Discard, reader); n != size || err != nil {
					t.Errorf("%d bytes of %d arrived, %v", n, size, err)
				}
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
		}
	}
}
