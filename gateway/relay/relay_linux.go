package relay

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const canWait = true

const (
	// After this many full buffers in a row a direction counts as bulk.
	bulkAfter = 3
	// A round, from one wait to the next, that moves less than this is not bulk.
	bulkRound = 16 << 10
	// What one splice asks for; the pipe's size bounds what it gets.
	spliceMax = 1 << 20
)

// moveTCP reads from the socket only when it is readable, so that an idle
// direction holds no buffer, and lets the kernel move bulk data to another
// socket.
//
// net.TCPConn.ReadFrom splices as well, but it keeps a pipe, four descriptors a
// pair, for as long as the connection lives.
func (m *mover) moveTCP(src *net.TCPConn) (readErr, writeErr error) {
	in, err := src.SyscallConn()
	if err != nil {
		return err, nil
	}
	var out syscall.RawConn
	if s := m.dst.Socket(); s.Plain {
		if out, err = s.TCP.SyscallConn(); err != nil {
			return nil, err
		}
	}

	r := rawReader{conn: in}
	r.read = r.tryRead
	full := 0
	for m.left != 0 {
		n, err := r.next(m.next(bufferSize))
		if n == 0 || err != nil {
			r.release()
			return noEOF(err), nil
		}
		_, err = m.write(r.buf[:n])
		r.release()
		if err != nil {
			return nil, err
		}
		if n < bufferSize {
			full = 0
			continue
		}
		if full++; full < bulkAfter || out == nil {
			continue
		}
		for bulk := true; bulk && m.left != 0; {
			var eof bool
			bulk, eof, readErr, writeErr = m.spliceRound(in, out)
			if eof || readErr != nil || writeErr != nil {
				return readErr, writeErr
			}
		}
		full = 0
	}
	return nil, nil
}

// A rawReader reads a socket. It takes a buffer only when there are bytes to
// read.
type rawReader struct {
	conn syscall.RawConn
	read func(fd uintptr) bool // tryRead, bound once
	buf  *[bufferSize]byte
	most int
	n    int
	err  error
}

// next waits for bytes and reads them, at most so many. They stay in buf until
// release. At the end of the stream, n is 0 and the error is io.EOF.
func (r *rawReader) next(most int) (int, error) {
	r.most, r.n, r.err = most, 0, nil
	if err := r.conn.Read(r.read); err != nil {
		return 0, err
	}
	if r.err != nil {
		return 0, os.NewSyscallError("read", r.err)
	}
	if r.n == 0 {
		return 0, io.EOF
	}
	return r.n, nil
}

func (r *rawReader) tryRead(fd uintptr) bool {
	if r.buf == nil {
		r.buf = buffers.Get().(*[bufferSize]byte)
	}
	for {
		n, err := syscall.Read(int(fd), r.buf[:r.most])
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			r.release()
			return false
		}
		r.n, r.err = max(n, 0), err
		return true
	}
}

func (r *rawReader) release() {
	if r.buf != nil {
		buffers.Put(r.buf)
		r.buf = nil
	}
}

// spliceRound waits for data and splices until the source has no more for now.
// bulk tells whether the round moved enough bytes to go on with splice.
func (m *mover) spliceRound(in, out syscall.RawConn) (bulk, eof bool, readErr, writeErr error) {
	var p *pipe
	defer func() { p.release() }()
	moved := 0
	for m.left != 0 {
		var n int
		var opErr error
		dry := false
		err := in.Read(func(fd uintptr) bool {
			if p == nil {
				if p, opErr = getPipe(); opErr != nil {
					return true
				}
			}
			n, opErr = splice(int(fd), p.w, m.next(spliceMax))
			if opErr != syscall.EAGAIN {
				return true
			}
			opErr = nil
			if moved > 0 {
				dry = true
				return true
			}
			// Nothing yet in this round: wait without holding the pipe.
			p.release()
			p = nil
			return false
		})
		if err != nil {
			return false, false, err, nil
		}
		if dry {
			return moved >= bulkRound, false, nil, nil
		}
		if p == nil || opErr != nil && p.empty() && isPipeTrouble(opErr) {
			return false, false, nil, nil // there is no pipe, or no splice between these two: copy
		}
		if opErr != nil {
			return false, false, os.NewSyscallError("splice", opErr), nil
		}
		if n == 0 {
			return false, true, nil, nil
		}
		p.held = n
		for p.held > 0 {
			var w int
			m.writing.Lock()
			m.begins()
			err := out.Write(func(fd uintptr) bool {
				m.spliced = true
				w, opErr = splice(p.r, int(fd), p.held)
				return opErr != syscall.EAGAIN
			})
			if err == nil && opErr != nil {
				err = os.NewSyscallError("splice", opErr)
			}
			m.begun.Store(0)
			m.wrote(err)
			m.writing.Unlock()
			if err != nil {
				return false, false, nil, err
			}
			p.held -= w
			m.add(w)
		}
		moved += n
	}
	return false, false, nil, nil
}

func isPipeTrouble(err error) bool {
	return err == syscall.EINVAL || err == syscall.EMFILE || err == syscall.ENFILE
}

func splice(from, to, limit int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, limit, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != syscall.EINTR {
			return int(max(n, 0)), err
		}
	}
}

// A pipe is the kernel's buffer between two sockets. Directions take one for a
// round only, so a few serve thousands of connections.
type pipe struct {
	r, w int
	held int // bytes in it
}

// Idle pipes, at most poolSize. A channel, and not a sync.Pool, because a pipe
// that the collector dropped would leave its descriptors open.
const poolSize = 32

var (
	pipes = make(chan *pipe, poolSize)
)

func getPipe() (*pipe, error) {
	select {
	case p := <-pipes:
		return p, nil
	default:
	}
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	// A larger pipe saves system calls. The system grants it to the first few of
	// a user without privileges; a small one works as well.
	unix.FcntlInt(uintptr(fd[0]), unix.F_SETPIPE_SZ, spliceMax)
	return &pipe{r: fd[0], w: fd[1]}, nil
}

func (p *pipe) empty() bool { return p.held == 0 }

// release gives the pipe back, or closes it if it still holds bytes of a broken
// connection. A nil pipe is none.
func (p *pipe) release() {
	if p == nil {
		return
	}
	if p.empty() {
		select {
		case pipes <- p:
			return
		default:
		}
	}
	unix.Close(p.r)
	unix.Close(p.w)
}
