package http1

import "math"

// maxLine bounds a line with the size of a chunk. It has room for extensions.
const maxLine = 4 << 10

// Chunks follows a chunked coding (RFC 9112 section 7.1) while its bytes are passed on as
// they come. The zero Chunks is at the beginning.
type Chunks struct {
	// Strict is for requests: it refuses a space behind a size, which some origins send.
	Strict bool

	state chunkState
	size  int64
	line  int // bytes of the size's line so far
	left  int64
}

type chunkState uint8

const (
	inSize chunkState = iota
	inSpace
	inExtension
	inSizeEnd
	inData
	inDataEnd
	inDataEnd2
	inTrailer
)

// Next tells what the first bytes of b are: n bytes of the coding's own, or n bytes of
// content. n is 0 if b is empty, or at the end of the last chunk's line. What follows that
// line is the trailer section; see Done.
func (c *Chunks) Next(b []byte) (n int, content bool, err error) {
	if c.state == inData {
		n = int(min(c.left, int64(len(b))))
		if c.left -= int64(n); c.left == 0 {
			c.state = inDataEnd
		}
		return n, true, nil
	}
	for n < len(b) && c.state != inData && c.state != inTrailer {
		if err := c.step(b[n]); err != nil {
			return n, false, err
		}
		n++
	}
	return n, false, nil
}

// Scan goes over as much of b as belongs to the coding, and tells how much that is. whole:
// all of the coding has come, and it has an empty trailer section, which is part of n. The
// coding may be over without that; see Done.
func (c *Chunks) Scan(b []byte) (n int, whole bool, err error) {
	for n < len(b) && !c.Done() {
		m, _, err := c.Next(b[n:])
		if n += m; err != nil {
			return n, false, err
		}
	}
	if c.Done() && len(b) >= n+2 && b[n] == '\r' && b[n+1] == '\n' {
		return n + 2, true, nil
	}
	return n, false, nil
}

// Done tells whether the line of the last chunk has come.
func (c *Chunks) Done() bool { return c.state == inTrailer }

func (c *Chunks) step(b byte) error {
	if c.line++; c.line > maxLine {
		return malformed("the line of a chunk is too long")
	}
	switch c.state {
	case inSize:
		if d := hexDigit(b); d >= 0 {
			if c.size > math.MaxInt64>>4 {
				return malformed("the size of a chunk is too large")
			}
			c.size = c.size<<4 | int64(d)
			return nil
		}
		if c.line == 1 {
			return malformed("a chunk without a size")
		}
		return c.afterSize(b)
	case inSpace:
		if b == '\r' && c.Strict {
			return malformed("a space behind the size of a chunk")
		}
		return c.afterSize(b)
	case inExtension:
		switch {
		case b == '\r':
			c.state = inSizeEnd
		case b < ' ' && b != '\t' || b == 0x7f:
			return malformed("a control character in the line of a chunk")
		}
	case inSizeEnd:
		switch {
		case b != '\n':
			return malformed("a carriage return without a line feed")
		case c.size == 0:
			c.state = inTrailer
		default:
			c.state, c.left = inData, c.size
		}
	case inDataEnd:
		if b != '\r' {
			return malformed("a chunk is longer than its size")
		}
		c.state = inDataEnd2
	case inDataEnd2:
		if b != '\n' {
			return malformed("a carriage return without a line feed")
		}
		c.state, c.size, c.line = inSize, 0, 0
	}
	return nil
}

func (c *Chunks) afterSize(b byte) error {
	switch b {
	case '\r':
		c.state = inSizeEnd
	case ' ', '\t':
		c.state = inSpace
	case ';':
		c.state = inExtension
	default:
		return malformed("the size of a chunk is not a number")
	}
	return nil
}

func hexDigit(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b-'a') + 10
	case 'A' <= b && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}
