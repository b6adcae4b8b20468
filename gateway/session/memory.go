package session

import (
	"errors"
	"sync/atomic"

	"github.com/libp2p/go-yamux/v5"
)

// memory bounds what a server's clients can make it hold. What a client has sent to a
// destination that does not read waits in the server, as much as the stream's window
// allows. A window is a promise, given when the stream begins. The more has been promised
// to all clients of the process, the smaller are the windows of new streams.
type memory struct {
	promised atomic.Int64 // bytes, by the windows of all open streams
}

const (
	// While less than generous bytes are promised, a new stream gets the full window;
	// while less than tight are, a smaller one; then the smallest that yamux knows.
	generous    = 256 << 20
	tight       = 512 << 20
	smallWindow = 1 << 20
	leastWindow = 256 << 10
)

// A share is what one open stream was promised.
type share struct {
	m *memory
	n int64
}

// open takes the share of a new stream.
func (m *memory) open() *share {
	s := &share{m: m, n: streamWindow}
	switch promised := m.promised.Load(); {
	case promised >= tight:
		s.n = leastWindow
	case promised >= generous:
		s.n = smallWindow
	}
	m.promised.Add(s.n)
	return s
}

var errNoGrowth = errors.New("windows do not grow")

// ReserveMemory implements yamux.MemoryManager. It is asked for the stream itself
// (priority 255), and to let its window grow, which is refused; see muxConfig.
func (s *share) ReserveMemory(_ int, priority uint8) error {
	if priority < 255 {
		return errNoGrowth
	}
	return nil
}

// ReleaseMemory implements yamux.MemoryManager, which never calls it.
func (s *share) ReleaseMemory(int) {}

// Done gives the share back. yamux calls it at least once.
func (s *share) Done() {
	s.m.promised.Add(-s.n)
	s.n = 0
}

// managed makes streams take their windows from m. yamux makes the streams that come in
// from one goroutine: it calls the function that it is given here, and then reads the
// setting.
func (m *memory) managed(c *yamux.Config) func() (yamux.MemoryManager, error) {
	return func() (yamux.MemoryManager, error) {
		s := m.open()
		c.InitialStreamWindowSize = uint32(s.n)
		return s, nil
	}
}
