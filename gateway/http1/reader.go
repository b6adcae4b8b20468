package http1

import (
	"bytes"
	"io"
	"sync"
)

// bufferSize is that of one read. It is as large as the largest message of a carrier.
const bufferSize = 32<<10 - 12

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// A Reader reads messages from a connection. Set Src before its first use, and do not copy
// it.
type Reader struct {
	Src io.Reader
	// ReadReady is for reads that may wait for long: it waits until there is something to
	// read, and only then calls get for a buffer, and reads into it. If there is nothing
	// after all, it calls drop, and waits again. Nil: Src is read, with a buffer.
	ReadReady func(get func() []byte, drop func()) (int, error)
	// Begins is what each head has at its beginning. A head that has something else is an error
	// at once, without its end. Empty: anything.
	Begins []byte

	get    func() []byte // bound once
	drop   func()
	buf    []byte
	pooled *[bufferSize]byte // what buf is made of; nil: it is larger
	r, w   int               // the bytes are buf[r:w]
}

// Buffered returns the bytes that have been read. They are good until the next call of
// Fill, ReadHead, ReadTrailer or Release.
func (r *Reader) Buffered() []byte { return r.buf[r.r:r.w] }

// Discard forgets the first n bytes.
func (r *Reader) Discard(n int) { r.r += n }

// Release gives the buffer back if it has no bytes.
func (r *Reader) Release() {
	if r.r < r.w || r.buf == nil {
		return
	}
	if r.pooled != nil {
		buffers.Put(r.pooled)
	}
	r.buf, r.pooled, r.r, r.w = nil, nil, 0, 0
}

// Fill reads once, and returns no error if there were bytes.
func (r *Reader) Fill() error { return r.fill(bufferSize) }

// fill is Fill with a buffer of at most so many bytes.
func (r *Reader) fill(most int) error {
	var n int
	var err error
	if r.r == r.w && r.ReadReady != nil {
		if r.get == nil {
			r.get, r.drop = r.newBuffer, r.Release
		}
		r.Release()
		n, err = r.ReadReady(r.get, r.drop)
	} else {
		if err := r.room(most); err != nil {
			return err
		}
		n, err = r.Src.Read(r.buf[r.w:])
	}
	r.w += n
	if n > 0 {
		return nil
	}
	r.Release()
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// newBuffer takes a buffer. There is none.
func (r *Reader) newBuffer() []byte {
	r.pooled = buffers.Get().(*[bufferSize]byte)
	r.buf = r.pooled[:]
	return r.buf
}

// room makes sure that there is room for another read, in a buffer of at most so many
// bytes.
func (r *Reader) room(most int) error {
	switch {
	case r.buf == nil:
		r.newBuffer()
	case r.r == r.w:
		r.r, r.w = 0, 0
	case r.w <= len(r.buf)/2 || r.r == 0 && r.w < len(r.buf):
	case r.r > 0:
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	case len(r.buf) >= most:
		return ErrTooLarge
	default:
		larger := make([]byte, min(2*len(r.buf), most))
		copy(larger, r.buf)
		if r.pooled != nil {
			buffers.Put(r.pooled)
		}
		r.buf, r.pooled = larger, nil
	}
	return nil
}

// ReadHead returns a message's head with its empty line, and forgets it. The bytes are
// good until the next call. most bounds them. With skip, empty lines before the message
// are left out (RFC 9112 section 2.2). At an error the bytes stay where they are.
func (r *Reader) ReadHead(most int, skip bool) ([]byte, error) {
	seen := 0 // no head ends before
	skipped := 0
	for {
		if skip {
			n := emptyLines(r.Buffered())
			if skipped += n; skipped > most {
				return nil, ErrTooLarge
			}
			r.Discard(n)
		}
		b := r.Buffered()
		n := headEnd(b, seen)
		switch {
		case n > most || n == 0 && len(b) >= most:
			return nil, ErrTooLarge
		case n > 0:
			r.Discard(n)
			return b[:n:n], nil
		case !bytes.HasPrefix(b, r.Begins[:min(len(b), len(r.Begins))]):
			return nil, malformed("it does not begin with %q", r.Begins)
		}
		if seen = max(len(b)-2, 0); skip && len(b) > 0 && !(len(b) == 1 && b[0] == '\r') {
			skip = false
		}
		r.shrink()
		if err := r.fill(max(most, bufferSize)); err != nil {
			return nil, err
		}
	}
}

// smallBuffer holds the beginning of a head whose rest has not come.
const smallBuffer = 2 << 10

// shrink changes a large buffer with few bytes for a small one: the peer may take its time
// with the next byte, and there may be many such peers.
func (r *Reader) shrink() {
	if b := r.Buffered(); r.pooled != nil && len(b) > 0 && len(b) <= smallBuffer/2 {
		small := make([]byte, smallBuffer)
		r.r, r.w = 0, copy(small, b)
		buffers.Put(r.pooled)
		r.buf, r.pooled = small, nil
	}
}

// Trim gives a buffer back that is larger than most, and tells whether there is none any
// more: the bytes that it has may be too many.
func (r *Reader) Trim() bool {
	b := r.Buffered()
	switch {
	case r.pooled != nil || len(r.buf) <= bufferSize:
		return true
	case len(b) > bufferSize:
		return false
	}
	n := copy(r.newBuffer(), b)
	r.r, r.w = 0, n
	r.Release() // if there are none
	return true
}

// ReadTrailer returns a trailer section with its empty line, and forgets it.
func (r *Reader) ReadTrailer(most int) ([]byte, error) {
	for {
		b := r.Buffered()
		n := trailerEnd(b)
		switch {
		case n > most || n == 0 && len(b) >= most:
			return nil, ErrTooLarge
		case n > 0:
			r.Discard(n)
			return b[:n:n], nil
		}
		if err := r.fill(max(most, bufferSize)); err != nil {
			return nil, err
		}
	}
}

func emptyLines(b []byte) (n int) {
	for {
		switch {
		case n < len(b) && b[n] == '\n':
			n++
		case n+1 < len(b) && b[n] == '\r' && b[n+1] == '\n':
			n += 2
		default:
			return n
		}
	}
}

// headEnd finds the end of the first empty line behind another line; 0: there is none. It
// looks from the byte from on.
func headEnd(b []byte, from int) int {
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return 0
		}
		from += i + 1
		switch {
		case from < len(b) && b[from] == '\n':
			return from + 1
		case from+1 < len(b) && b[from] == '\r' && b[from+1] == '\n':
			return from + 2
		}
	}
}

// trailerEnd is headEnd for a section that may be empty.
func trailerEnd(b []byte) int {
	switch {
	case len(b) > 0 && b[0] == '\n':
		return 1
	case len(b) > 1 && b[0] == '\r' && b[1] == '\n':
		return 2
	}
	return headEnd(b, 0)
}
