package carrier

import (
	"errors"
	"sync/atomic"

	"github.com/libp2p/go-yamux/v5"
)

// Windows bounds what a server's clients can make it hold: what a client has sent
// to a destination that does not read waits here, up to a stream's window. All
// carriers of a process share one, so that many connections of one client, or many
// clients, get no more. The zero value is ready to use.
type Windows struct {
	promised atomic.Int64 // bytes, by the windows of all open streams
}

const (
	// Up to generous bytes of promises every stream gets the full window, up to
	// tight a smaller one, and then the least that yamux knows.
	generous    = 256 << 20
	tight       = 512 << 20
	smallWindow = 1 << 20
	leastWindow = 256 << 10
)

// A share is one open stream's share.
type share struct {
	w *Windows
	n int64
}

// open takes the share of a new stream.
func (w *Windows) open() *share {
	s := &share{w: w, n: streamWindow}
	switch promised := w.promised.Load(); {
	case promised >= tight:
		s.n = leastWindow
	case promised >= generous:
		s.n = smallWindow
	}
	w.promised.Add(s.n)
	return s
}

var errNoGrowth = errors.New("windows do not grow")

// ReserveMemory implements yamux.MemoryManager. It is asked for the stream itself
// (priority 255), and to let its window grow, which is refused; see settings.
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
	s.w.promised.Add(-s.n)
	s.n = 0
}

// managed makes a session's streams take their windows from w. A server's session
// makes streams in one goroutine only, the one that calls the function it is given
// and then reads the setting.
func (w *Windows) managed(c *yamux.Config) func() (yamux.MemoryManager, error) {
	return func() (yamux.MemoryManager, error) {
		s := w.open()
		c.InitialStreamWindowSize = uint32(s.n)
		return s, nil
	}
}
