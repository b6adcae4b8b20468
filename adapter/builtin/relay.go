package builtin

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// relayBuffer is the size of one direction's buffer in bytes. It is more than
	// obfs4 decodes at a time, 24 KiB: one read takes all of that.
	relayBuffer = 32 << 10

	// lingerTime and lingerBytes bound what is read and thrown away from a
	// program that goes on sending after its far end has gone. Closing with
	// unread input makes the kernel reset the connection, which would destroy
	// what we have written and the program has not read yet.
	lingerTime  = 5 * time.Second
	lingerBytes = 16 << 20

	// pollIdle is how long a transport that can't half-close may stay silent
	// after the program has finished sending.
	pollIdle = 30 * time.Second
)

var relayBuffers = sync.Pool{New: func() any { return new([relayBuffer]byte) }}

// relay copies both ways between local, the TCP connection to the parent or its
// program, and remote, the transport's, until both directions have ended, and
// closes both. A clean end is passed on as one and an error as a reset, so that
// neither side takes a part for the whole. When ctx ends, both are reset.
func relay(ctx context.Context, local *link, remote Conn) error {
	far := &lingering{Conn: remote}
	cut := sync.OnceFunc(func() {
		local.Abort()
		remote.Abort()
	})
	stop := context.AfterFunc(ctx, cut)
	defer stop()

	type outcome struct {
		err  error
		sent bool // err is of writing to the far end
	}
	up := make(chan outcome, 1)
	go func() {
		readErr, writeErr := pump(far, local)
		switch {
		case readErr != nil:
			cut()
		case writeErr != nil:
			// What the far end sent before it went may still be on its way to
			// the program; the other direction finds out by itself.
			remote.Abort()
		default:
			writeErr = far.CloseWrite()
		}
		up <- outcome{errors.Join(readErr, writeErr), writeErr != nil}
	}()

	downErr := errors.Join(pump(local, far))
	if downErr != nil {
		cut()
		return errors.Join(downErr, (<-up).err)
	}
	_ = local.CloseWrite()
	sending := <-up
	if sending.sent {
		discard(local)
	}
	_ = local.Close()
	_ = far.Close()
	return sending.err
}

// pump copies from src to dst until src ends. It holds a buffer only while there
// is something to copy.
func pump(dst io.Writer, src Conn) (readErr, writeErr error) {
	for {
		if err := src.WaitRead(); err != nil {
			return err, nil
		}
		buf := relayBuffers.Get().(*[relayBuffer]byte)
		n, readErr := src.Read(buf[:])
		if n > 0 {
			_, writeErr = dst.Write(buf[:n])
		}
		relayBuffers.Put(buf)
		switch {
		case writeErr != nil:
			return nil, writeErr
		case readErr == io.EOF:
			return nil, nil
		case readErr != nil:
			return readErr, nil
		}
	}
}

// discard reads what still comes, within bounds, so that closing c does not
// destroy what has been written to it.
func discard(c net.Conn) {
	if c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, c, lingerBytes)
	}
}

// A lingering gives a connection that can't half-close the next best thing: after
// CloseWrite it goes on until nothing has come for pollIdle.
type lingering struct {
	Conn

	mu      sync.Mutex
	timer   *time.Timer
	expired bool
}

func (l *lingering) CloseWrite() error {
	if err := l.Conn.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil {
		l.timer = time.AfterFunc(pollIdle, func() {
			l.mu.Lock()
			l.expired = true
			l.mu.Unlock()
			_ = l.Conn.Close()
		})
	}
	return nil
}

func (l *lingering) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && l.expired {
		return n, io.EOF
	}
	if n > 0 && l.timer != nil && !l.expired {
		l.timer.Reset(pollIdle)
	}
	return n, err
}

func (l *lingering) Close() error {
	l.mu.Lock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	return l.Conn.Close()
}
