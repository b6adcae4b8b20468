package session

import (
	"encoding/binary"
	"fmt"

	"ptgate/adapter"
)

// The types of frames; see the package comment.
const (
	frameData    = 1 + iota // stream, offset, length, bytes
	frameFin                // stream, offset
	frameStop               // stream, offset
	frameReset              // stream, code
	frameWindow             // stream, offset
	frameAck                // carrier, position
	frameGone               // carrier, position
	frameLast               //
	framePing               // token
	framePong               // token
	frameLeaving            // stage
	frameClose              // code
	frameBudget             // bytes
	frameNews               // serial
	frameTypes
)

// fields is how many numbers follow the type of a frame.
var fields = [frameTypes]int{
	frameData: 3, frameFin: 2, frameStop: 2, frameReset: 2, frameWindow: 2, frameAck: 2, frameGone: 2,
	frameLast: 0, framePing: 1, framePong: 1, frameLeaving: 1, frameClose: 1, frameBudget: 1, frameNews: 1,
}

const (
	// maxData is the most bytes that one frameData may have.
	maxData = 64 << 10
	// maxOffset is the most bytes that one direction of a stream may have.
	maxOffset = 1 << 60
	// headerMax is the most bytes of a frame before its data.
	headerMax = 1 + 3*binary.MaxVarintLen64
)

// A frame is the header of one frame. What the fields mean depends on the type.
type frame struct {
	kind byte
	id   uint64 // stream, carrier, token, stage, code, bytes, serial
	at   uint64 // offset, position, code
	n    uint64 // length
}

// errFrame says that the peer has broken the protocol. The session ends.
var errFrame = adapter.Constant("the peer breaks the protocol")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errFrame, fmt.Sprintf(format, args...))
}

// append appends the header to b.
func (f frame) append(b []byte) []byte {
	b = append(b, f.kind)
	for i, v := range [3]uint64{f.id, f.at, f.n} {
		if i < fields[f.kind] {
			b = binary.AppendUvarint(b, v)
		}
	}
	return b
}

// parseFrame reads a header. n is its length; 0: there are more bytes to come.
func parseFrame(b []byte) (f frame, n int, err error) {
	if len(b) == 0 {
		return f, 0, nil
	}
	f.kind = b[0]
	if f.kind == 0 || f.kind >= frameTypes {
		return f, 0, broken("unknown frame %d", f.kind)
	}
	n = 1
	for i := range fields[f.kind] {
		v, size := binary.Uvarint(b[n:])
		if size == 0 {
			return f, 0, nil
		}
		if size < 0 {
			return f, 0, broken("a number of more than 64 bits")
		}
		n += size
		switch i {
		case 0:
			f.id = v
		case 1:
			f.at = v
		default:
			f.n = v
		}
	}
	switch {
	case f.kind == frameData && (f.n == 0 || f.n > maxData):
		return f, 0, broken("%d bytes of data", f.n)
	case f.kind == frameData && f.at > maxOffset-f.n, f.at > maxOffset:
		return f, 0, broken("offset %d", f.at)
	}
	return f, n, nil
}

// A parser finds the frames in bytes that come in pieces of any size.
type parser struct {
	data frame // the frame whose bytes come now: at and n are those that are still to come
	part []byte
}

// next takes bytes from p. If it finds a frame, ok is true; of a frameData it returns some
// bytes of the data, never none. used is how many bytes of the carrier are done with,
// which may be more than it takes from p: those of a header that has come in pieces.
func (r *parser) next(p *[]byte) (f frame, data []byte, used int, ok bool, err error) {
	b := *p
	if r.data.n == 0 {
		if len(r.part) > 0 {
			// Some bytes of the header have come before.
			old := len(r.part)
			r.part = append(r.part, b[:min(len(b), headerMax-old)]...)
			f, used, err = parseFrame(r.part)
			if err != nil {
				return f, nil, 0, false, err
			}
			if used == 0 {
				*p = nil
				return f, nil, 0, false, nil
			}
			b = b[used-old:]
			r.part = r.part[:0]
		} else {
			f, used, err = parseFrame(b)
			if err != nil {
				return f, nil, 0, false, err
			}
			if used == 0 {
				r.part = append(r.part, b...)
				*p = nil
				return f, nil, 0, false, nil
			}
			b = b[used:]
		}
		if f.kind != frameData {
			*p = b
			return f, nil, used, true, nil
		}
		r.data = f
	}
	n := min(len(b), int(r.data.n))
	f = r.data
	f.n = uint64(n)
	r.data.at += uint64(n)
	r.data.n -= uint64(n)
	*p = b[n:]
	return f, b[:n], used + n, n > 0 || used > 0, nil
}
