package session

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Memory bounds what peers can make a process hold: bytes that wait for programs that do
// not read, and bytes that may have to be sent again. It is counted as the memory that they
// take. All Clients and the Server of a process share one.
//
// Three things keep it small. While much is held, each window and each session's bytes that
// may have to be sent again become fewer, down to little, so that every stream goes on. The
// windows that have grown are bounded by their sum. And if peers use the windows that they
// got before, and nobody reads, streams of the session that holds much are reset: those
// first that hold most.
type Memory struct {
	// Reset is called when so many streams are reset because too much is held. gateway says
	// at which end. Session locks are held: it must not wait. It is set before the Memory is
	// used; nil: it is not called.
	Reset func(gateway bool, streams int)

	limit, share atomic.Int64

	used     atomic.Int64 // bytes of memory
	promised atomic.Int64 // bytes: the sum of the windows beyond startWindow
}

const (
	// DefaultMemory and DefaultShare fit a machine with 512 MiB.
	DefaultMemory = 128 << 20
	DefaultShare  = 64 << 20
)

// NewMemory makes a Memory with the default limits.
func NewMemory() *Memory {
	m := new(Memory)
	m.Limit(0, 0)
	return m
}

// Limit changes the limits: of the process, and of each client of a Server. 0: the default.
func (m *Memory) Limit(all, share int64) {
	all = cmp.Or(all, DefaultMemory)
	m.limit.Store(all)
	m.share.Store(min(cmp.Or(share, DefaultShare), all))
}

// Used is how much is held now.
func (m *Memory) Used() int64 { return m.used.Load() }

// A peer is one client of a server, as far as its address tells. The Server's mu guards
// sessions.
type peer struct {
	sessions int
	used     atomic.Int64 // as in Memory
	promised atomic.Int64
	parted   atomic.Int64 // carriers in all its sessions' parted
	streams  atomic.Int64 // whose handlers have not returned
	fresh    rate         // of new streams
}

// idle tells whether nothing is left of what the peer has asked for. The caller holds the
// Server's mu.
func (p *peer) idle() bool {
	return p.sessions == 0 && p.used.Load() == 0 && p.streams.Load() == 0
}

// A rate lets so many things pass in a second.
type rate struct {
	mu   sync.Mutex
	left float64
	last time.Time
}

// take takes one, of perSecond in a second. False: there is none.
func (r *rate) take(perSecond int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left = min(r.left+now.Sub(r.last).Seconds()*float64(perSecond), float64(perSecond)); r.last.IsZero() {
		r.left = float64(perSecond)
	}
	r.last = now
	if r.left < 1 {
		return false
	}
	r.left--
	return true
}

const (
	// leastKept is how many bytes each session may keep in any case, to send them again.
	leastKept = 64 << 10

	firstWindow  = 16 << 10  // of each stream, in both directions; part of the protocol
	startWindow  = 256 << 10 // what a stream gets with the first bytes from here
	streamWindow = 8 << 20   // the most: enough for 30 MiB/s at 250 ms
	// A window has at most this part of the memory that is free.
	windowPart = 8
	// The windows that have grown have at most this part of the memory. The rest is for
	// those that have not: 256 programs that stop to read lose nothing. Few streams have
	// the largest windows all the same.
	grownPart = 2
	// A session may hold this part of the memory even while it is used up.
	sessionPart = 16
	// What holds less than this is not worth the reset of a stream.
	leastCulled = 4 << 10
)

// use counts n more bytes of memory.
func (e *end) use(n int64) {
	e.uses.Add(n)
	e.memory.used.Add(n)
	if e.peer != nil {
		e.peer.used.Add(n)
	}
}

// free is how much memory is left for the session.
func (e *end) free() int64 {
	free := e.memory.limit.Load() - e.memory.used.Load()
	if e.peer != nil {
		free = min(free, e.memory.share.Load()-e.peer.used.Load())
	}
	return free
}

// grow asks for n more bytes of window.
func (e *end) grow(n int64) bool {
	all := e.memory.promised.Add(n) <= e.memory.limit.Load()/grownPart
	own := e.peer == nil || e.peer.promised.Add(n) <= e.memory.share.Load()/grownPart
	if !all || !own {
		e.promise(-n)
		return false
	}
	return true
}

// promise counts n more bytes of window, whatever the limit.
func (e *end) promise(n int64) {
	e.memory.promised.Add(n)
	if e.peer != nil {
		e.peer.promised.Add(n)
	}
}

// cull resets streams whose bytes nobody reads, if too much memory is used and the session
// has a large part of it. The more is used, the smaller is the part that it may have. The
// caller holds mu.
func (e *end) cull() {
	over := -e.free()
	if over <= 0 {
		return
	}
	limit := e.memory.limit.Load()
	if e.peer != nil {
		limit = min(limit, e.memory.share.Load())
	}
	may := max(limit/sessionPart-over/2, 0)
	if e.uses.Load() <= may {
		return
	}
	type held struct {
		s *Stream
		n int64
	}
	var all []held
	for _, streams := range []map[uint64]*Stream{e.streams, e.ended} {
		for _, s := range streams {
			s.in.Lock()
			n := s.uses
			s.in.Unlock()
			if n >= leastCulled {
				all = append(all, held{s, n})
			}
		}
	}
	slices.SortFunc(all, func(a, b held) int { return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.s.id, b.s.id)) })
	freed, n := int64(0), 0
	for _, x := range all {
		if freed > over+limit/64 || e.uses.Load() <= may {
			break
		}
		freed += x.n
		n++
		if e.ended[x.s.id] == x.s {
			delete(e.ended, x.s.id)
			x.s.in.Lock()
			x.s.drop(errMemory)
			x.s.in.Unlock()
			continue
		}
		e.breakStream(x.s.id, errMemory)
	}
	e.wereReset(n)
}

// wereReset tells of streams that are reset because too much is held.
func (e *end) wereReset(n int) {
	if n > 0 && e.memory.Reset != nil {
		e.memory.Reset(e.client, n)
	}
}

// A queue has bytes that wait for a reader. The zero value is empty.
type queue struct {
	chunks [][]byte // none is empty
	off    int      // so much of the first one is read
	size   int      // bytes that are not read
	memory int64    // that the chunks take
}

const (
	chunkSize  = 32 << 10
	smallChunk = 16 << 10
	leastChunk = 512
	chunkCost  = 24 // of a chunk in the list
)

// Chunks of these sizes are used again.
var (
	chunks      = sync.Pool{New: func() any { return new([chunkSize]byte) }}
	smallChunks = sync.Pool{New: func() any { return new([smallChunk]byte) }}
)

// newChunk makes a chunk for at least so many bytes, if that is not more than chunkSize.
func newChunk(n int) []byte {
	switch {
	case n > smallChunk:
		return chunks.Get().(*[chunkSize]byte)[:0]
	case n > smallChunk/2:
		return smallChunks.Get().(*[smallChunk]byte)[:0]
	}
	return make([]byte, 0, max(leastChunk, n))
}

// add copies p to the end. A new chunk is as large as what waits already, so that little
// memory is unused.
func (q *queue) add(p []byte) {
	waits := q.size
	q.size += len(p)
	if n := len(q.chunks); n > 0 {
		last := q.chunks[n-1]
		room := min(len(p), cap(last)-len(last))
		q.chunks[n-1] = append(last, p[:room]...)
		p = p[room:]
	}
	for len(p) > 0 {
		c := newChunk(max(len(p), waits))
		n := min(len(p), cap(c))
		q.chunks = append(q.chunks, append(c, p[:n]...))
		q.memory += int64(cap(c)) + chunkCost
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
	q.memory -= int64(cap(c)) + chunkCost
	switch cap(c) {
	case chunkSize:
		chunks.Put((*[chunkSize]byte)(c[:chunkSize]))
	case smallChunk:
		smallChunks.Put((*[smallChunk]byte)(c[:smallChunk]))
	}
}

// clear forgets all bytes.
func (q *queue) clear() {
	for len(q.chunks) > 0 {
		q.drop()
	}
	q.size = 0
}
