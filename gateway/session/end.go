package session

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/gateway/carrier"
)

const (
	// maxMessage is the most bytes of one stream that are sent at once, when others wait.
	maxMessage = 32 << 10
	// ackEvery is how many bytes may come before they are confirmed. Most confirmations go
	// with other frames.
	ackEvery = 512 << 10
	// maxBeyond is how many bytes may be held for a peer beyond the limit: frames without
	// data do not wait. A peer that asks for more of them and confirms nothing is given up.
	maxBeyond = 1 << 20
	// floodPart of a share may be held beyond the limits. Then sessions end that do more than
	// read and write slowly.
	floodPart = 4
	// maxSaid is how many frameGone may wait for the peer's confirmation before no more are
	// added for carriers that never came.
	maxSaid = 1 << 14
	// maxParted is how many carriers may be gone of which the peer has not said what it has
	// got. Each takes some KiB.
	maxParted = 1 << 10
	// maxPartedPeer is the same for all sessions of one client.
	maxPartedPeer = 1 << 13
	// With a budget, a carrier is used up when it has room for less data than this.
	leastData = 300
	// controlRoom is kept free for frames without data in a write with a budget: a
	// confirmation, another header, and a frameLast.
	controlRoom = 2*headerMax + 2
)

// An owner is told what happens to an end. All its methods are called with the end's mu
// held, and never wait.
type owner interface {
	admits() bool              // whether the peer may open one stream more
	accept(*Stream)            // the peer has opened a stream
	dropped(*lane)             // the end does not use this lane any more
	pong(l *lane, sent uint64) // the answer to a ping that was sent at that time
	peerLeaves(stage uint64)   // see stageSoon and stageNow
	news(serial uint64) error  // the peer has said the serial of its news, or of those that it has
	ended(error)               // the session is over
}

// The stages of a peer that is about to stop.
const (
	stageSoon = 1 // new streams had better go elsewhere
	stageNow  = 2 // new streams are refused
)

// Codes of frameReset.
const (
	codeReset   = 0 // the program has reset its connection, or is gone
	codeLimit   = 1 // too many streams; this one was not looked at
	codeLeaving = 2 // the box is about to stop; this stream was not looked at
)

// An end is one end of a session: the streams, the lanes, and what has to be sent again.
// It has no goroutine and no clock. All fields are guarded by mu.
type end struct {
	client bool
	owner  owner
	memory *Memory
	uses   atomic.Int64 // of memory; counted in memory and peer, too
	peer   *peer        // whose session it is; nil: not known
	// resume says that streams outlive their lanes.
	resume bool
	// limit is how many bytes are kept for sending them again before writers wait.
	limit      int64
	maxStreams int // that the peer may open at the same time
	ackEvery   int64
	window     int64 // the first one of a stream
	start      int64 // what a stream gets with the first bytes from here

	mu       *sync.Mutex // the ends of one Client have the same
	err      error
	over     chan struct{} // closed when the session is over
	cut      int           // how many streams were open then
	refuse   uint64        // if not 0: the code with which new streams are refused
	streams  map[uint64]*Stream
	ended    map[uint64]*Stream // both directions have ended, but not all was read that has come
	next     uint64             // the gateway's: number of the next stream
	seen     numbers            // the server's: of the streams
	lanes    []*lane
	parted   map[uint64]*lane    // gone, and the peer has not said yet what it has got from them
	carriers numbers             // the server's: of the carriers
	said     []*saidGone         // what the peer may not have heard yet
	homeless []*Stream           // writers that have no lane, in order
	stalled  []*Stream           // writers that wait because held is at its limit, in order
	orphans  [][]byte            // frames that have no lane, in order
	orphan   orphan              // comes before them
	aborted  map[uint64]struct{} // streams that this side has reset
	held     int64               // bytes in lanes and orphans that may have to be sent again
	pieces   uint64              // how many pieces have come from all lanes
	replayed int64               // bytes that were sent again

	flushed chan struct{} // closed when the peer has all that matters; nil: nobody waits
	scratch [headerMax]byte
}

// A saidGone is a frameGone that the peer has not confirmed. It is not sent again with the
// other frames of a lost lane: these wait for the peer's frameGone, which may wait for
// this one.
type saidGone struct {
	number, received uint64
	on               *lane // nil: there was no lane
	at               int64 // the position after it
}

// maxAborted is how many streams that were reset here are remembered.
const maxAborted = 1 << 12

// abort notes that this side has reset a stream. What it has sent need not arrive any
// more, and had better not: the program may have made its request again elsewhere.
func (e *end) abort(id uint64) {
	if e.held == 0 {
		return // all of it has arrived
	}
	if e.aborted == nil || len(e.aborted) >= maxAborted {
		e.aborted = map[uint64]struct{}{} // those from long before have nothing under way
	}
	e.aborted[id] = struct{}{}
}

// An orphan is a frame that has no lane, or the rest of one.
type orphan struct {
	frame         // kind 0: there is none
	header int64  // of it, as it is counted in held
	data   []byte // of a frameData
}

func newEnd(mu *sync.Mutex, client bool, o owner, m *Memory, resume bool, limit int64, maxStreams int) *end {
	return &end{mu: mu, client: client, owner: o, memory: m, resume: resume, limit: limit, maxStreams: maxStreams,
		ackEvery: ackEvery, window: firstWindow, start: startWindow, over: make(chan struct{}), streams: map[uint64]*Stream{}, parted: map[uint64]*lane{}}
}

// fail ends the session at once. All streams are reset. The caller holds mu.
func (e *end) fail(err error) {
	if e.err != nil {
		return
	}
	e.err, e.cut = err, len(e.streams)
	close(e.over)
	for _, s := range e.streams {
		s.broke(err)
	}
	clear(e.streams)
	for _, l := range e.lanes {
		l.gone = true
		l.pipe.Leave(false)
		e.owner.dropped(l)
	}
	e.lanes, e.homeless, e.stalled, e.orphans, e.orphan, e.said = nil, nil, nil, nil, orphan{}, nil
	e.hold(-e.held)
	e.partedOfPeer(-len(e.parted))
	clear(e.parted)
	e.isFlushed()
	e.owner.ended(err)
}

// shut ends the session in order: the peer is told. The caller holds mu.
func (e *end) shut(err error) {
	if e.err != nil {
		return
	}
	bye := frame{kind: frameClose}.append(nil)
	lanes := e.lanes
	e.lanes = nil
	for _, l := range lanes {
		if l.open() && l.pipe.Space(len(bye), true) >= len(bye) {
			l.pipe.Append(bye, nil)
		}
		l.gone = true
		l.pipe.Leave(true)
		e.owner.dropped(l)
	}
	e.fail(err)
}

// add makes a lane part of the session. The caller holds mu.
func (e *end) add(l *lane) {
	e.lanes = append(e.lanes, l)
	e.sayAgain(nil)
	e.feed(l)
}

// open opens a stream. The caller holds mu, and has seen that err is nil.
func (e *end) open() *Stream {
	s := newStream(e, e.next)
	e.next++
	e.streams[s.id] = s
	return s
}

// pick returns the lane for the next frame of s; nil: there is none.
func (e *end) pick(s *Stream) *lane {
	if s != nil && s.home != nil && s.home.open() && !s.home.avoid {
		return s.home
	}
	var best *lane
	for _, l := range e.lanes {
		if l.open() && l.better(best, e.client) {
			best = l
		}
	}
	if s != nil && best != nil {
		e.move(s, best)
	}
	return best
}

// move makes l the home of s; nil: it has none.
func (e *end) move(s *Stream, l *lane) {
	if old := s.home; old != nil {
		old.homes--
		if i := slices.Index(old.waiting, s); i >= 0 {
			old.waiting = slices.Delete(old.waiting, i, i+1)
			s.queued = false
		}
	}
	if s.home = l; l != nil {
		l.homes++
	}
}

// hold counts n bytes more that may have to be sent again.
func (e *end) hold(n int64) {
	e.held += n
	e.use(n)
}

// partedOfPeer counts n more carriers in parted, of all sessions of the peer, and returns
// how many there are.
func (e *end) partedOfPeer(n int) int64 {
	if e.peer == nil {
		return 0
	}
	return e.peer.parted.Add(int64(n))
}

// most is how many bytes may be held before writers wait. It is little while much memory is
// used: each session goes on, but slowly.
func (e *end) most() int64 { return min(e.limit, max(leastKept, e.free()/2)) }

// push sends the bytes that s has to send, or makes s wait for room.
func (e *end) push(s *Stream) {
	for len(s.out) > 0 && !s.sendOver && s.sent < s.sendMax {
		if e.held >= e.most() {
			e.queue(&e.stalled, s)
			e.ask()
			return
		}
		l := e.pick(s)
		if l == nil {
			e.queue(&e.homeless, s)
			return
		}
		if e.send(l, s) {
			if len(l.waiting) > 0 && len(s.out) > 0 {
				e.queue(&l.waiting, s)
				return
			}
			continue
		}
		if !l.open() {
			continue // it is used up
		}
		sent := false
		for _, x := range e.lanes {
			if x.extra && x != l && x.open() && !x.avoid && e.send(x, s) {
				sent = true
				break
			}
		}
		if !sent {
			e.queue(&l.waiting, s)
			return
		}
	}
	if len(s.out) == 0 {
		s.wakeWriter()
	}
}

// queue adds s to writers that wait. A stream waits in one place only.
func (e *end) queue(q *[]*Stream, s *Stream) {
	if !s.queued {
		s.queued = true
		*q = append(*q, s)
	}
}

// send puts one frame with bytes of s on l. False: there is no room.
func (e *end) send(l *lane, s *Stream) bool {
	n := e.room(l)
	if n == 0 {
		return false
	}
	n = min(n, len(s.out), maxMessage, int(min(s.sendMax-s.sent, maxMessage)))
	at := e.put(l, frame{frameData, s.id, s.sent, uint64(n)}, s.out[:n])
	if s.sent == 0 {
		s.firstOn, s.firstAt = l, at
	}
	first := s.sent == 0
	s.sent += uint64(n)
	s.out = s.out[n:]
	if first {
		if f, ok := s.begin(); ok && !e.try(l, f) {
			e.control(nil, f)
		}
	}
	e.used(l)
	return true
}

// room is how many bytes of data one frame on l may have now.
func (e *end) room(l *lane) int {
	space := l.pipe.Space(leastData+controlRoom, false) - controlRoom
	if l.budgeted && space < leastData {
		if l.pipe.Space(leastData+controlRoom, true) < leastData+controlRoom {
			e.last(l)
		}
		return 0
	}
	return max(space, 0)
}

// used ends the use of l if its budget is used up. What was appended and this fit into one
// write.
func (e *end) used(l *lane) {
	if l.budgeted && l.open() && l.pipe.Space(leastData+controlRoom, true) < leastData+controlRoom {
		e.last(l)
	}
}

// put appends a frame, and before it a confirmation if it begins a write or is an answer.
// It returns the position after the frame.
func (e *end) put(l *lane, f frame, data []byte) int64 {
	if l.received > l.told && f.kind != frameLast && (f.kind == framePong || l.pipe.Fresh()) {
		e.ack(l)
	}
	h := f.append(e.scratch[:0])
	n := int64(len(h) + len(data))
	l.held += n
	e.hold(n)
	at := l.pipe.Append(h, data)
	if f.kind != framePing && f.kind != framePong {
		l.needed = at
	}
	return at
}

// ack confirms what has come from l.
func (e *end) ack(l *lane) {
	l.told = l.received
	h := frame{kind: frameAck, id: l.number, at: uint64(l.received)}.append(make([]byte, 0, headerMax))
	l.held += int64(len(h))
	e.hold(int64(len(h)))
	l.pipe.Append(h, nil)
}

// try puts a frame without data on l. False: l takes no more.
func (e *end) try(l *lane, f frame) bool {
	if !l.open() {
		return false
	}
	if l.pipe.Space(controlRoom, true) < controlRoom {
		e.used(l)
		return false
	}
	e.put(l, f, nil)
	return true
}

// control sends a frame without data that must arrive: over the home of s if it can, where
// it comes after all earlier frames of s.
func (e *end) control(s *Stream, f frame) {
	if e.err != nil {
		return
	}
	if l := e.tell(e.pick(s), f); l != nil {
		e.used(l)
	} else {
		e.orphaned(f)
	}
	if s != nil && len(s.out) > 0 && !s.queued {
		e.push(s) // it has waited for another lane
	}
}

// smallOrphan is how long an entry of orphans may become by frames that are added to it, so
// that many small ones take little more memory than they have bytes.
const smallOrphan = 4 << 10

// orphaned keeps a frame without data until there is a lane.
func (e *end) orphaned(f frame) {
	b := f.append(e.scratch[:0])
	e.hold(int64(len(b)))
	if n := len(e.orphans); n > 0 && len(e.orphans[n-1]) < smallOrphan {
		e.orphans[n-1] = append(e.orphans[n-1], b...)
		return
	}
	e.orphans = append(e.orphans, slices.Clone(b))
}

// tell puts a frame without data on best, or on another lane if best takes no more. It
// returns the lane; nil: there is none. The caller calls used next.
func (e *end) tell(best *lane, f frame) *lane {
	if best == nil || e.try(best, f) {
		return best
	}
	for _, l := range e.lanes {
		if e.try(l, f) {
			return l
		}
	}
	return nil
}

// last says that nothing more will be appended to l.
func (e *end) last(l *lane) {
	if !l.open() {
		return
	}
	if l.pipe.Space(1, true) < 1 {
		e.drop(l, true) // the budget does not even allow that: the peer hears it over another lane
		return
	}
	e.put(l, frame{kind: frameLast}, nil)
	l.lastSent = true
	e.unhome(l)
	if l.lastGot {
		e.drop(l, true)
	}
}

// unhome finds other lanes for the streams that wait for l.
func (e *end) unhome(l *lane) {
	waiting := l.waiting
	l.waiting = nil
	for _, s := range waiting {
		s.queued = false
		e.push(s)
	}
}

// drop ends the use of l. Nothing more is taken from it, and the peer is told how much was.
func (e *end) drop(l *lane, inOrder bool) {
	if l.gone {
		return
	}
	l.gone = true
	// The callers may go through the old list.
	e.lanes = slices.DeleteFunc(slices.Clone(e.lanes), func(x *lane) bool { return x == l })
	if !l.has {
		e.parted[l.number] = l
		e.partedOfPeer(1)
	}
	l.pipe.Leave(inOrder)
	if len(e.parted) > maxParted || len(e.parted) > maxParted/16 && e.partedOfPeer(0) > maxPartedPeer {
		e.owner.dropped(l)
		e.fail(broken("too many carriers are gone, and it does not say what it has got"))
		return
	}
	if !e.resume && !(l.lastSent && l.lastGot) {
		for _, id := range slices.Sorted(maps.Keys(e.streams)) {
			if s := e.streams[id]; s != nil && s.home == l { // telling it may end another lane
				e.breakStream(id, errCarrier) // it has lost bytes, or may have
			}
		}
	}
	e.announce(l.number, uint64(l.received))
	e.sayAgain(l)
	e.unhome(l)
	e.owner.dropped(l)
}

// announce tells the peer that nothing more is taken from a lane, and what was.
func (e *end) announce(number, received uint64) {
	g := &saidGone{number: number, received: received}
	e.said = append(e.said, g)
	e.say(g)
}

// say sends a frameGone.
func (e *end) say(g *saidGone) {
	g.on = e.tell(e.pick(nil), frame{kind: frameGone, id: g.number, at: g.received})
	if g.on != nil {
		g.at = g.on.pipe.Position()
		e.used(g.on)
	}
}

// sayAgain repeats what was said on a lane that is gone, or on none.
func (e *end) sayAgain(on *lane) {
	for _, g := range slices.Clone(e.said) {
		if g.on == on || g.on == nil {
			e.say(g)
		}
	}
}

// breakStream resets a stream that can't go on. The peer may have it still.
func (e *end) breakStream(id uint64, err error) {
	if s := e.streams[id]; s != nil {
		delete(e.streams, id)
		s.broke(err)
	}
	e.abort(id)
	e.control(nil, frame{kind: frameReset, id: id, at: codeReset})
}

// feed uses the space of l: for frames that have no lane, and for writers that wait.
func (e *end) feed(l *lane) {
	if e.err != nil || !l.open() {
		return
	}
	if l.avoid && !e.pick(nil).avoid {
		return // another one is better
	}
	if !l.avoid {
		for _, x := range e.lanes {
			if x.avoid && len(x.waiting) > 0 {
				e.unhome(x) // they had no better one
			}
		}
	}
	all := e.adopt(l)
	e.unstall()
	if !all {
		return
	}
	for l.open() {
		var q *[]*Stream
		switch {
		case len(e.homeless) > 0:
			// First, and one turn each: then they wait for l like the others, whose queue
			// need never be empty.
			q = &e.homeless
		case len(l.waiting) > 0:
			q = &l.waiting
		case l.extra && !l.avoid:
			for _, x := range e.lanes {
				if len(x.waiting) > 0 {
					q = &x.waiting
					break
				}
			}
		}
		if q == nil || e.room(l) == 0 {
			return
		}
		s := (*q)[0]
		*q = slices.Delete(*q, 0, 1)
		s.queued = false
		e.push(s)
	}
}

// adopt sends orphans over l. False: l has no room for all of them.
func (e *end) adopt(l *lane) bool {
	for {
		o := &e.orphan
		if o.kind == 0 {
			if len(e.orphans) == 0 {
				return true
			}
			b := e.orphans[0]
			f, n, err := parseFrame(b)
			if err != nil || n == 0 {
				panic("session: an orphan is no frame") // it was made here
			}
			o.frame, o.header = f, int64(n)
			if f.kind == frameData {
				o.data = b[n:][:f.n]
				n += len(o.data)
			}
			if b = b[n:]; len(b) > 0 {
				e.orphans[0] = b
			} else {
				e.orphans = slices.Delete(e.orphans, 0, 1)
			}
		}
		if _, aborted := e.aborted[o.id]; aborted && (o.kind == frameData || o.kind == frameFin || o.kind == frameWindow) {
			e.hold(-(o.header + int64(len(o.data))))
			*o = orphan{}
			continue
		}
		if o.kind != frameData {
			if !e.try(l, o.frame) {
				return false
			}
			e.hold(-o.header)
			*o = orphan{}
			e.used(l)
			continue
		}
		room := e.room(l)
		if room == 0 || !l.open() {
			return false
		}
		n := min(len(o.data), room)
		f := o.frame
		f.n = uint64(n)
		at := e.put(l, f, o.data[:n])
		if f.at == 0 {
			if s := e.streams[f.id]; s != nil {
				s.firstOn, s.firstAt = l, at
			}
		}
		e.hold(-(o.header + int64(n)))
		e.replayed += int64(n)
		o.at, o.header = o.at+uint64(n), 0
		if o.data = o.data[n:]; len(o.data) == 0 {
			*o = orphan{}
		}
		e.used(l)
	}
}

// released notes that the peer has the bytes of l before n.
func (e *end) released(l *lane, n uint64) error {
	if n > maxOffset {
		return carrier.ErrRelease
	}
	freed, err := l.pipe.Release(int64(n))
	if err != nil {
		return err
	}
	l.arrived = max(l.arrived, int64(n))
	l.held -= freed
	e.hold(-freed)
	e.said = slices.DeleteFunc(e.said, func(g *saidGone) bool { return g.on == l && g.at <= int64(n) })
	e.unstall()
	e.isFlushed()
	return nil
}

// unstall lets writers go on if fewer bytes are held, and otherwise asks for that.
func (e *end) unstall() {
	for len(e.stalled) > 0 && e.held < e.most() {
		s := e.stalled[0]
		e.stalled = slices.Delete(e.stalled, 0, 1)
		s.queued = false
		e.push(s)
	}
	if len(e.stalled) > 0 {
		e.ask()
	}
}

// ask asks the peer to confirm what it has: writers wait for that. The peer may have got
// less than what it confirms unasked.
func (e *end) ask() {
	for _, l := range e.lanes {
		if !l.owes && l.held > 0 {
			l.owes = e.ping(l, 0)
		}
	}
}

// isFlushed ends the wait of flush if the peer has all that matters: confirmations and
// signs of life don't.
func (e *end) isFlushed() {
	if e.flushed == nil {
		return
	}
	missing := e.err == nil && (e.orphan.kind != 0 || len(e.orphans) > 0)
	for _, l := range e.parted {
		missing = missing || l.arrived < l.needed
	}
	for _, l := range e.lanes {
		if l.arrived >= l.needed {
			continue
		}
		missing = true
		if l.needed > l.asked && e.ping(l, 0) {
			l.asked = l.needed
		}
	}
	if !missing {
		close(e.flushed)
		e.flushed = nil
	}
}

// peerGone notes that the peer takes nothing more from the lane with that number, and has
// its bytes before n. The others are sent again.
func (e *end) peerGone(number, n uint64) error {
	if i := slices.IndexFunc(e.lanes, func(l *lane) bool { return l.number == number }); i >= 0 {
		l := e.lanes[i]
		if !e.resume && l.lastSent && !l.lastGot && n == uint64(l.pipe.Position()) {
			// The carrier ends in order, and this has overtaken the peer's last bytes there. It may
			// come twice.
			l.has = true
			return e.released(l, n)
		}
		e.drop(l, false)
	}
	l := e.parted[number]
	if l == nil {
		if e.client {
			return nil // it was said before
		}
		// A carrier that never came. It must not come any more.
		fresh, err := e.carriers.use(number)
		if fresh && len(e.said) >= maxSaid {
			return broken("too many carriers that never came")
		}
		if fresh {
			e.announce(number, 0)
		}
		return err
	}
	delete(e.parted, number)
	e.partedOfPeer(-1)
	e.hold(-l.held)
	l.held = 0
	if int64(n) < 0 || int64(n) > l.pipe.Position() {
		return carrier.ErrRelease
	}
	l.arrived = max(l.arrived, int64(n))
	for _, p := range l.pipe.Unreleased() {
		b, lost, err := missing(p, int64(n), e.resume)
		for _, id := range lost {
			e.breakStream(id, errCarrier)
		}
		if err != nil {
			return err
		}
		if len(b) > 0 {
			e.orphans = append(e.orphans, b)
			e.hold(int64(len(b)))
		}
	}
	for _, l := range slices.Clone(e.lanes) {
		e.feed(l)
	}
	e.unstall()
	e.isFlushed()
	return nil
}

// missing returns the frames of p that have to be sent again if the peer has the bytes
// before n. Frames that were about p's own carrier are left out. Without resume, only the
// resets of streams are sent again. Other streams of which frames are missing are lost.
func missing(p carrier.Piece, n int64, resume bool) (out []byte, lost []uint64, err error) {
	for at, b := p.At, p.B; len(b) > 0; {
		f, size, err := parseFrame(b)
		if err != nil || size == 0 {
			panic("session: a piece is no frame") // it was made here
		}
		if f.kind == frameData {
			size += int(f.n)
		}
		whole := b[:size]
		begin := at
		at, b = at+int64(size), b[size:]
		switch f.kind {
		case frameAck, framePing, framePong, frameLast, frameBudget, frameGone:
			continue
		case frameLeaving, frameClose, frameReset, frameNews:
		default:
			if !resume {
				if at > n && !slices.Contains(lost, f.id) {
					lost = append(lost, f.id)
				}
				continue
			}
		}
		switch {
		case at <= n:
		case begin >= n:
			out = append(out, whole...)
		default: // some of it has arrived
			left := uint64(at - n)
			if f.kind != frameData || left > f.n {
				return out, lost, broken("it has half a frame")
			}
			f.at += f.n - left
			f.n = left
			out = append(f.append(out), whole[size-int(left):]...)
		}
	}
	return out, lost, nil
}

// take takes bytes that have come from l. The caller does not hold mu.
func (e *end) take(l *lane, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pieces++
	l.heard = e.pieces
	for !l.gone && e.err == nil {
		f, data, used, ok, err := l.in.next(&p)
		if err == nil && ok {
			l.received += int64(used)
			err = e.frame(l, f, data)
		}
		if err == nil && e.floods() {
			if e.free() < 0 {
				e.wereReset(len(e.streams))
			}
			err = broken("it makes this side keep too much, and confirms nothing")
		}
		if err != nil {
			e.shut(err)
			return
		}
		if !ok {
			break
		}
	}
	e.cull()
	if !l.gone && l.received-l.told >= e.ackEvery && l.open() && l.pipe.Space(controlRoom, true) >= controlRoom {
		e.ack(l)
		e.used(l)
	}
}

// floods tells whether the peer makes this side keep more than it may.
func (e *end) floods() bool {
	return e.held > e.limit+maxBeyond || e.held > leastKept && -e.free() > e.memory.share.Load()/floodPart
}

// frame does what a frame says.
func (e *end) frame(l *lane, f frame, data []byte) error {
	if l.lastGot && f.kind != frameClose {
		return broken("a frame after the last one")
	}
	switch f.kind {
	case frameAck:
		if f.id != l.number {
			return broken("a confirmation for another carrier")
		}
		return e.released(l, f.at)
	case frameGone:
		return e.peerGone(f.id, f.at)
	case frameLast:
		l.lastGot = true
		e.last(l)
		if l.lastSent {
			e.drop(l, true)
		}
	case framePing:
		if e.try(l, frame{kind: framePong, id: f.id}) {
			e.used(l)
		}
	case framePong:
		if f.id == 0 {
			l.owes = false
			e.unstall()
		}
		e.owner.pong(l, f.id)
	case frameLeaving:
		e.owner.peerLeaves(f.id)
	case frameClose:
		e.fail(errPeerClosed)
	case frameNews:
		return e.owner.news(f.id)
	case frameBudget:
		if e.client {
			return broken("a budget from the far end")
		}
		l.budgeted = f.id > 0
		l.pipe.SetBudget(int64(min(f.id, maxOffset)))
		e.used(l)
	default:
		s, err := e.stream(l, f)
		if s == nil {
			return err
		}
		return s.frame(f, data)
	}
	return nil
}

// stream returns the stream that f is about, and opens it if the peer just does. Nil: it
// has ended, or was refused.
func (e *end) stream(l *lane, f frame) (*Stream, error) {
	id := f.id
	s := e.streams[id]
	if e.client {
		if s == nil && id >= e.next {
			return nil, broken("stream %d was never opened", id)
		}
		return s, nil
	}
	if s == nil {
		fresh, err := e.seen.use(id)
		if err != nil || !fresh || f.kind == frameReset {
			return nil, err
		}
		code := e.refuse
		if code == 0 && (len(e.streams) >= e.maxStreams || !e.owner.admits()) {
			code = codeLimit
		}
		if code != 0 {
			e.control(nil, frame{kind: frameReset, id: id, at: code})
			return nil, nil
		}
		s = newStream(e, id)
		e.streams[id] = s
		e.move(s, l)
		e.owner.accept(s)
	}
	if s.home != l && !l.extra && l.open() {
		e.move(s, l) // what the gateway uses, the answers use, too
		e.push(s)
	}
	return s, nil
}

// ping asks the peer for a sign of life over l, and to confirm what it has. now is in
// nanoseconds, or 0 if only the confirmation matters.
func (e *end) ping(l *lane, now uint64) bool {
	ok := e.try(l, frame{kind: framePing, id: now})
	if ok {
		e.used(l)
	}
	return ok
}

// leaving tells the peer the stage of the stop. The caller holds mu.
func (e *end) leaving(stage uint64) {
	if stage == stageNow {
		e.refuse = codeLeaving
	}
	e.control(nil, frame{kind: frameLeaving, id: stage})
}

// flush waits until the peer has all that was sent, or the time limit or the session is
// over. It asks the peer to confirm.
func (e *end) flush(limit time.Duration) {
	e.mu.Lock()
	if e.flushed == nil {
		e.flushed = make(chan struct{})
	}
	done := e.flushed
	e.isFlushed()
	e.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	case <-e.over:
	}
}
