package session

import (
	"sync"
	"sync/atomic"
)

// memory bounds the bytes that peers can make this process hold for programs that do not
// read. Each stream has a window: so many bytes may wait for its reader. Every stream
// begins with a small one. It grows while the reader takes what comes, unless too much is
// promised to all streams of the process.
type memory struct {
	promised atomic.Int64 // bytes: the sum of the windows beyond the first
	kept     atomic.Int64 // bytes that may have to be sent again
}

// A peer is one client of a server, as far as its address tells. The Server's mu guards
// sessions.
type peer struct {
	sessions int
	kept     atomic.Int64 // bytes that may have to be sent again to it
	parted   atomic.Int64 // carriers in all its sessions' parted
}

const (
	// While more bytes are kept for sending them again, for all sessions or for those of one
	// client, each session may keep only leastKept.
	mostKept     = 192 << 20
	mostKeptPeer = 64 << 20
	leastKept    = 64 << 10
)

const (
	firstWindow  = 256 << 10 // of each stream, in both directions; part of the protocol
	streamWindow = 8 << 20   // the most: enough for 30 MiB/s at 250 ms
	mostPromised = 256 << 20
)

// grow asks for n more bytes.
func (m *memory) grow(n int64) bool {
	if m.promised.Add(n) > mostPromised {
		m.promised.Add(-n)
		return false
	}
	return true
}

func (m *memory) give(n int64) { m.promised.Add(-n) }

// A queue has bytes that wait for a reader. The zero value is empty.
type queue struct {
	chunks [][]byte // none is empty
	off    int      // so much of the first one is read
	size   int      // bytes that are not read
}

const (
	chunkSize  = 32 << 10
	leastChunk = 512
)

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// add copies p to the end.
func (q *queue) add(p []byte) {
	q.size += len(p)
	if n := len(q.chunks); n > 0 {
		last := q.chunks[n-1]
		room := min(len(p), cap(last)-len(last))
		q.chunks[n-1] = append(last, p[:room]...)
		p = p[room:]
	}
	for len(p) > 0 {
		var c []byte
		if q.size <= chunkSize/4 {
			c = make([]byte, 0, max(leastChunk, len(p)))
		} else {
			c = chunks.Get().(*[chunkSize]byte)[:0]
		}
		n := min(len(p), cap(c))
		q.chunks = append(q.chunks, append(c, p[:n]...))
		p = p[n:]
	}
}

// read moves bytes to p.
func (q *queue) read(p []byte) int {
	total := 0
	for len(p) > 0 && len(q.chunks) > 0 {
		c := q.chunks[0]
		n := copy(p, c[q.off:])
		total += n
		p = p[n:]
		if q.off += n; q.off == len(c) {
			q.drop()
		}
	}
	q.size -= total
	return total
}

// drop gives the first chunk back.
func (q *queue) drop() {
	c := q.chunks[0]
	q.chunks[0], q.off = nil, 0
	if q.chunks = q.chunks[1:]; len(q.chunks) == 0 {
		q.chunks = nil
	}
	if cap(c) == chunkSize {
		chunks.Put((*[chunkSize]byte)(c[:chunkSize]))
	}
}

// clear forgets all bytes.
func (q *queue) clear() {
	for len(q.chunks) > 0 {
		q.drop()
	}
	q.size = 0
}
