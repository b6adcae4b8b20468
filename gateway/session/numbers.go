package session

import (
	"slices"

	"ptgate/gateway/carrier"
)

// maxGaps is how many gaps a peer may leave in the numbers that it uses.
const maxGaps = 1 << 12

// numbers is a set of numbers that a peer uses in about their order: those of streams, or
// of carriers.
type numbers struct {
	next uint64 // all from here on are unused
	gaps []gap  // the others that are unused, in order
}

// A gap is the numbers from, …, to-1.
type gap struct{ from, to uint64 }

// use notes that n is used, and tells whether it was unused before.
func (s *numbers) use(n uint64) (fresh bool, err error) {
	switch {
	case n == s.next:
		s.next++
		return true, nil
	case n > maxOffset:
		return false, broken("the number %d is too large", n)
	}
	var left []gap // what is left of the gap with n
	i := len(s.gaps)
	if n > s.next {
		left = append(left, gap{s.next, n})
		s.gaps = append(s.gaps, gap{s.next, n + 1})
		s.next = n + 1
	} else {
		i, _ = slices.BinarySearchFunc(s.gaps, n, func(g gap, n uint64) int {
			if g.to <= n {
				return -1
			}
			return 1
		})
		if i == len(s.gaps) || n < s.gaps[i].from {
			return false, nil
		}
		left = append(left, gap{s.gaps[i].from, n}, gap{n + 1, s.gaps[i].to})
	}
	left = slices.DeleteFunc(left, func(g gap) bool { return g.from == g.to })
	if s.gaps = slices.Replace(s.gaps, i, i+1, left...); len(s.gaps) > maxGaps {
		return false, broken("there are too many gaps before the number %d", s.next)
	}
	return true, nil
}

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
