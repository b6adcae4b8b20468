package session

import (
	"io"
	"sync"

	"ptgate/gateway/carrier"
)

// A pipe is what an end needs of a carrier. It is a *carrier.Conn, but for tests. Its
// methods never wait.
type pipe interface {
	Space(want int, control bool) int
	Fresh() bool
	Append(a, b []byte) int64
	Position() int64
	Release(int64) (int64, error)
	Unreleased() []carrier.Piece
	SetBudget(int64)
	Leave(inOrder bool)
}

// A lane is a carrier as one end of a session uses it. The end's mu guards it.
type lane struct {
	number uint64
	pipe   pipe
	in     parser

	received int64  // the position after the last byte that was taken from it
	told     int64  // what the peer was told of received
	arrived  int64  // what the peer has said of the bytes from here
	needed   int64  // the position after the last frame that matters to the peer's streams
	asked    int64  // flush has asked the peer to confirm the bytes before this
	held     int64  // bytes that were appended and not released
	heard    uint64 // the end's count of pieces when the last one came from this lane

	homes    int       // streams that use it; the gateway's end counts them
	waiting  []*Stream // they wait for space, in order
	extra    bool      // only for streams that have more than their own lane takes
	avoid    bool      // the peer owes an answer: no stream uses it if there is another one
	budgeted bool      // the far end may send only so many bytes
	lastSent bool      // nothing more is appended
	lastGot  bool      // nothing more comes
	has      bool      // the peer has said that it takes no more, and that it has all
	gone     bool      // nothing more is taken from it, and received is final
	owes     bool      // the peer has to confirm what it has, and has not answered yet

	used   *used // the gateway's
	closed bool  // the gateway's: nothing is appended before the far end has accepted it
}

// open tells whether frames may be appended.
func (l *lane) open() bool { return !l.gone && !l.lastSent && !l.closed }

// better tells whether l is the better lane for a stream that needs one.
func (l *lane) better(than *lane, client bool) bool {
	switch {
	case than == nil:
		return true
	case l.avoid != than.avoid:
		return than.avoid
	case l.extra != than.extra:
		return than.extra
	case client && l.homes != than.homes:
		return l.homes < than.homes
	}
	return l.heard > than.heard
}

const (
	shortRead = 4 << 10
	busyRead  = 64 << 10
)

var (
	shortBuffers = sync.Pool{New: func() any { return new([shortRead]byte) }}
	readBuffers  = sync.Pool{New: func() any { return new([busyRead]byte) }}
)

// A source is what readLane reads: a *carrier.Conn.
type source interface {
	io.Reader
	WaitRead() error
}

// readLane reads from c until its end. An idle carrier has no buffer.
func readLane(c source, take func([]byte)) error {
	for {
		if err := c.WaitRead(); err != nil {
			return err
		}
		short := shortBuffers.Get().(*[shortRead]byte)
		n, err := c.Read(short[:])
		if n > 0 {
			take(short[:n])
		}
		shortBuffers.Put(short)
		if n == shortRead && err == nil {
			large := readBuffers.Get().(*[busyRead]byte)
			for n >= shortRead && err == nil {
				n, err = c.Read(large[:])
				take(large[:n])
			}
			readBuffers.Put(large)
		}
		if err != nil {
			return err
		}
	}
}
