package session

import (
	"slices"
	"sync"
	"sync/atomic"
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
