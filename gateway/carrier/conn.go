package carrier

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"sort"
	"sync"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/stream"
)

const (
	// QueueLimit is how many bytes may wait in front of the connection.
	QueueLimit = 128 << 10
	// floodLimit is how many may wait with those that QueueLimit does not hold up. A peer
	// that makes this side send so much, and does not take it, is given up.
	floodLimit = 1 << 20
	// Buffers of about this size are used again.
	bufferSize = QueueLimit + 64<<10
)

var (
	// ErrClosed says that the Conn was closed on this side.
	ErrClosed = adapter.Constant("carrier: closed")
	// ErrRelease says that the peer has confirmed bytes that were never sent.
	ErrRelease = adapter.Constant("carrier: the peer confirms what was never sent")
)

// Options of a Conn.
type Options struct {
	Traffic *Traffic // never nil; may be shared by several connections
	// Lost is called when the Conn ends by itself because the peer was silent for so long.
	// Nil: it is not called.
	Lost func(silent time.Duration)
	// Wall is the wall clock, which goes on while the machine sleeps; nil: time.Now.
	Wall func() time.Time
	// Room is called when there may be space again after Space has said that there is too
	// little. No lock of the Conn is held. Nil: it is not called.
	Room func()
	// Budget is how many bytes this side may put on the wire; 0: any number. Cost tells how
	// many bytes on the wire one write of n bytes may become at most. It is needed if there
	// may be a budget.
	Budget int64
	Cost   func(n int) int
	// Lock is held while the bytes of a write are taken, if there is a budget. So the user,
	// which holds it from Space to Append, knows that both are about the same write. Nil:
	// there is no budget.
	Lock sync.Locker
}

// A Conn is one end of a carrier. One goroutine may read; all other methods may be called
// at any time. Its user has to call Close, also when the Conn has ended by itself.
//
// The bytes that were appended are kept until Release. So the user can take back, with
// Unreleased, what did not arrive. Positions are counted from the first appended byte.
type Conn struct {
	conn   stream.Conn
	o      Options
	unsent *unsent // flush's
	piece  int     // flush's: how many bytes one write has at most
	life   life

	mu       sync.Mutex
	buf      []byte  // gathered, not yet taken by flush
	position int64   // of the first byte of buf; negative if that is of the greeting
	kept     []Piece // taken by flush, not yet released as a whole, in order
	released int64   // see Release
	writing  []byte  // the piece that flush writes at this moment
	refused  bool    // somebody waits for Room
	leaving  bool    // the connection is closed when everything is written
	spent    int64   // bytes on the wire for what flush has taken; 0 without Cost
	size     int     // of the last gathered write
	closed   bool
	err      error
	wake     chan struct{} // flush has work

	ended chan struct{} // closed with err
	leave chan bool     // see Leave
	wg    sync.WaitGroup
}

// A Piece is bytes that were written at once. It has whole appends.
type Piece struct {
	At int64 // the position of its first byte
	B  []byte
}

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Open makes the gateway's end of a carrier from c, and owns c from then on. The greeting
// goes out before all other bytes, and has no position. Call Start next.
func Open(c stream.Conn, greeting []byte, o Options) *Conn { return newConn(c, greeting, o) }

// Accept makes the server's end of a carrier from c, which comes from Sniff. It owns c
// from then on. The greeting is as in Open.
func Accept(c stream.Conn, greeting []byte, o Options) *Conn {
	x := newConn(c, greeting, o)
	x.life.hear(0)
	x.wg.Go(x.watchVanished)
	return x
}

func newConn(c stream.Conn, greeting []byte, o Options) *Conn {
	x := &Conn{conn: c, o: o, piece: leastPiece, wake: make(chan struct{}, 1), ended: make(chan struct{}), leave: make(chan bool, 1)}
	x.life.init(o.Wall)
	x.unsent = newUnsent(c)
	if len(greeting) > 0 {
		x.buf = slices.Clone(greeting)
		x.position = -int64(len(greeting))
		x.wake <- struct{}{}
	}
	x.wg.Go(x.flush)
	return x
}

// Start begins to watch the peer of a gateway's Conn. Call it once at most.
func (c *Conn) Start(w Watch) {
	c.Expect()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.wg.Go(func() { c.watch(w) })
	}
}

// Read implements io.Reader. Its error holds no address.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.conn.Read(p)
	if n > 0 {
		c.o.Traffic.In.Add(int64(n))
		c.life.hear(n)
	}
	if err != nil {
		err = c.cause(err)
	}
	return n, err
}

// WaitRead returns when Read would not wait, so that an idle Conn needs no buffer. It may
// return too early, and does so where there is no socket to wait for. Its error is as that
// of Read.
func (c *Conn) WaitRead() error {
	if c.conn.Socket().TCP == nil {
		return nil
	}
	if err := c.conn.WaitRead(); err != nil {
		return c.cause(err)
	}
	return nil
}

// cause is the reason why the Conn has ended if there is one, otherwise err.
func (c *Conn) cause(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return adapter.WithoutAddresses(err)
}

// Space is how many bytes may be appended now. If it is less than want, Room is called
// when there is more. With control, only the budget counts: the bytes belong to frames
// without data, which must not wait.
func (c *Conn) Space(want int, control bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0
	}
	n := bufferSize - len(c.buf)
	if control {
		n = max(n, want)
	} else if len(c.buf) >= QueueLimit {
		n = 0
	}
	if c.o.Budget > 0 {
		n = min(n, c.fits(c.o.Budget-c.spent)-len(c.buf))
	}
	if n = max(n, 0); n < want {
		c.refused = true
	}
	return n
}

// fits is the most bytes that one write may have if it costs at most left.
func (c *Conn) fits(left int64) int {
	n := int(max(0, min(left, bufferSize)))
	return sort.Search(n, func(i int) bool { return int64(c.o.Cost(i+1)) > left })
}

// SetBudget changes Options.Budget. What is on the wire already counts.
func (c *Conn) SetBudget(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.o.Budget = n
}

// Fresh tells whether nothing is gathered, so that what is appended next begins a write.
func (c *Conn) Fresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.buf) == 0
}

// Append queues the bytes of a and b, one after the other, and returns the position after
// the last one. It never waits. The caller has asked Space before. On a Conn that has
// ended the bytes are kept, too, for Unreleased.
func (c *Conn) Append(a, b []byte) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.buf) == 0 {
		if cap(c.buf) == 0 && c.size > bufferSize/8 {
			c.buf = buffers.Get().(*[bufferSize]byte)[:0]
		}
		c.wakeFlush()
	}
	c.buf = append(append(c.buf, a...), b...)
	if len(c.buf) > floodLimit {
		c.Leave(false)
	}
	return c.position + int64(len(c.buf))
}

// wakeFlush tells flush that there is work.
func (c *Conn) wakeFlush() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Position is the position after the last byte that was appended.
func (c *Conn) Position() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.position + int64(len(c.buf))
}

// Release says that the peer has the bytes before the position n. The Conn may forget them.
// It returns how many more these are than before.
func (c *Conn) Release(n int64) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > c.position {
		return 0, ErrRelease
	}
	i := 0
	for i < len(c.kept) && c.kept[i].At+int64(len(c.kept[i].B)) <= n {
		b := c.kept[i].B
		if cap(b) == bufferSize && (len(c.writing) == 0 || &c.writing[0] != &b[0]) {
			buffers.Put((*[bufferSize]byte)(b[:bufferSize]))
		}
		i++
	}
	c.kept = slices.Delete(c.kept, 0, i)
	freed := max(n-c.released, 0)
	c.released += freed
	return freed, nil
}

// Unreleased returns the pieces of which Release has not freed all, in order. The Conn forgets
// them. Call it when the Conn is not used any more.
func (c *Conn) Unreleased() []Piece {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.kept
	if len(c.buf) > 0 {
		rest = append(rest, Piece{c.position, c.buf})
		c.position += int64(len(c.buf))
	}
	for i, p := range rest {
		if p.At < 0 { // the greeting
			rest[i] = Piece{0, p.B[-p.At:]}
		}
	}
	c.kept, c.buf = nil, nil
	return rest
}

// flush writes the gathered bytes. Before each write it lets other goroutines run once,
// so that their bytes go out in the same write.
func (c *Conn) flush() {
	for range c.wake {
		runtime.Gosched()
		unlock := c.lockBudget()
		out := c.buf
		if c.closed {
			unlock()
			return
		}
		if len(out) == 0 { // an empty write would still cost a padded packet
			leaving := c.leaving
			unlock()
			if leaving {
				c.fail(ErrClosed)
				c.conn.Close()
				return
			}
			continue
		}
		if c.o.Cost != nil {
			c.spent += int64(c.o.Cost(len(out)))
		}
		c.keep(out)
		c.position += int64(len(out))
		c.buf, c.writing, c.size = nil, out, len(out)
		refused := c.refused
		c.refused = false
		whole := c.o.Budget > 0
		unlock()
		if refused && c.o.Room != nil {
			c.o.Room()
		}
		err := c.put(out, whole)
		c.mu.Lock()
		c.writing = nil
		switch {
		case c.keeps(out):
		case cap(out) == bufferSize:
			buffers.Put((*[bufferSize]byte)(out[:bufferSize]))
		case len(c.buf) == 0 && cap(out) <= 2*smallPiece:
			c.buf = out[:0]
		}
		if c.leaving {
			c.wakeFlush()
		}
		c.mu.Unlock()
		if err != nil {
			c.fail(adapter.WithoutAddresses(err))
			// What the peer has said before it closed can still be read. Then reading ends, too.
			if errors.Is(err, os.ErrDeadlineExceeded) || c.conn.SetReadDeadline(time.Now().Add(lastWords)) != nil {
				c.conn.Close()
			}
			return
		}
	}
}

// smallPiece is how large a piece may be to which the bytes of the next small write are
// added, so that many small ones take little more memory than they have bytes.
const smallPiece = 4 << 10

// keep keeps the bytes of a write until they are released. The caller holds mu.
func (c *Conn) keep(out []byte) {
	if n := len(c.kept); n > 0 {
		last := &c.kept[n-1]
		if last.At >= 0 && len(last.B)+len(out) <= smallPiece && cap(last.B) <= 2*smallPiece {
			last.B = append(last.B, out...)
			return
		}
	}
	if len(out) < cap(out)/2 || len(out) <= smallPiece {
		out = slices.Clone(out) // a large buffer is not kept for few bytes
	}
	c.kept = append(c.kept, Piece{c.position, out})
}

// keeps tells whether out itself was kept. If it was, it may have been released meanwhile:
// see Release. The caller holds mu.
func (c *Conn) keeps(out []byte) bool { return len(out) > smallPiece && len(out) >= cap(out)/2 }

// lockBudget locks mu, and with a budget Options.Lock before.
func (c *Conn) lockBudget() (unlock func()) {
	c.mu.Lock()
	if c.o.Budget == 0 || c.o.Lock == nil {
		return c.mu.Unlock
	}
	c.mu.Unlock()
	c.o.Lock.Lock()
	c.mu.Lock()
	return func() {
		c.mu.Unlock()
		c.o.Lock.Unlock()
	}
}

const (
	// The bytes of one write. The write may take DeadAfter: a link that is slower is as
	// good as dead, but one that was cut for less may come back.
	pieceSize = 64 << 10
	// On a slow link it is less, down to leastPiece, so that a write takes about pieceTime:
	// it is seen sooner that bytes are taken.
	leastPiece = 4 << 10
	pieceTime  = 400 * time.Millisecond
	// If a write took longer than this, it had to wait for room.
	waited = 100 * time.Millisecond
)

// lastWords is how long reading goes on after writing has failed.
const lastWords = time.Second

// put writes b to the connection. If the deadline passes, the connection can't be used
// any more: some transports can't go on after half a write.
// With whole, there are no more writes than Cost reckons with: each costs padding.
func (c *Conn) put(b []byte, whole bool) error {
	for len(b) > 0 {
		size := c.piece
		if whole {
			size = pieceSize
		}
		piece := b[:min(len(b), size)]
		b = b[len(piece):]
		begin := time.Now()
		var deadline time.Time // none: the owner limits the wait for the peer's first sign
		if !c.Connecting() {
			deadline = begin.Add(DeadAfter)
		}
		if err := c.conn.SetWriteDeadline(deadline); err != nil {
			return err
		}
		c.life.wrote(begin)
		if _, err := c.conn.Write(piece); err != nil {
			return err
		}
		end := time.Now()
		took := end.Sub(begin)
		c.life.took(took)
		switch {
		case took > waited:
			c.piece = min(max(int(time.Duration(len(piece))*pieceTime/took), leastPiece), pieceSize)
		case len(piece) >= leastPiece:
			c.piece = pieceSize
		}
		c.o.Traffic.Out.Add(int64(len(piece)))
		c.unsent.wrote(len(piece), end)
	}
	return nil
}

// fail keeps the first error. After it, nothing more is written.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.ended)
	}
}

// giveUp ends the connection because the peer was silent for so long.
func (c *Conn) giveUp(err error, silent time.Duration) {
	if c.o.Lost != nil {
		c.o.Lost(silent)
	}
	c.fail(err)
	c.conn.Reset()
}

// Leave ends the connection soon, without waiting. The reader gets an error then, and has
// to call Close. In order, what was appended is written before; otherwise the peer may see
// an error.
func (c *Conn) Leave(inOrder bool) {
	select {
	case c.leave <- inOrder:
	default:
	}
}

// leaveLimit is how long the last bytes may take.
const leaveLimit = 3 * time.Second

// left ends the connection for Leave.
func (c *Conn) left(inOrder bool) {
	if inOrder {
		c.mu.Lock()
		c.leaving = true
		c.wakeFlush()
		c.mu.Unlock()
		t := time.NewTimer(leaveLimit)
		defer t.Stop()
		select {
		case <-c.ended:
			return
		case <-t.C:
		}
	}
	c.fail(ErrClosed)
	c.conn.Reset()
}

// Close closes the connection and returns when the Conn's goroutines have ended.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.wg.Wait()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.fail(ErrClosed)
	err := c.conn.Close() // ends a Write, too
	c.wakeFlush()
	c.wg.Wait()
	return err
}

// Socket is the TCP connection beneath the carrier.
func (c *Conn) Socket() stream.Socket { return c.conn.Socket() }
