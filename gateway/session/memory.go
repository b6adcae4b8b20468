package session

import (
	"errors"
	"sync/atomic"

	"github.com/libp2p/go-yamux/v5"
)

// memory bounds the bytes that clients can make a server hold. If a destination does not
// read, the bytes for it wait in the server, at most the stream's window of them. The
// window is promised to the client when the stream begins. The more bytes have been
// promised to all clients of the process, the smaller is the window of a new stream.
type memory struct {
	promised atomic.Int64 // bytes: the sum of the windows of all open streams
}

const (
	// A new stream gets the full window while less than generous bytes are promised. Then
	// it gets a smaller one while less than tight bytes are. After that, it gets the
	// smallest window that yamux has.
	generous    = 256 << 20
	tight       = 512 << 20
	smallWindow = 1 << 20
	leastWindow = 256 << 10
)

// A share is the bytes that were promised to one open stream.
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

// ReserveMemory implements yamux.MemoryManager. yamux calls it for a new stream (priority
// 255), which is allowed, and for a larger window, which is refused; see muxConfig.
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

// managed makes each new stream get the window that m allows. yamux accepts streams in
// one goroutine. For each it calls the function that managed sets, and then reads the
// window's size from its configuration.
func (m *memory) managed(c *yamux.Config) func() (yamux.MemoryManager, error) {
	return func() (yamux.MemoryManager, error) {
		s := m.open()
		c.InitialStreamWindowSize = uint32(s.n)
		return s, nil
	}
}
