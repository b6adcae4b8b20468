package session

import (
	"maps"
	"slices"
	"time"

	"ptgate/gateway/carrier"
)

// This file is about the lanes that are lost, and what arrives all the same: each side tells the
// other one how much it has got, and what is missing is sent again over other lanes.

const (
	// maxSaid is how many frameGone may wait for the peer's confirmation before no more are
	// added for carriers that never came.
	maxSaid = 1 << 14
	// maxParted is how many carriers may be gone of which the peer has not said what it has
	// got. Each takes some KiB.
	maxParted = 1 << 10
	// maxPartedPeer is the same for all sessions of one client.
	maxPartedPeer = 1 << 13
)

// A saidGone is a frameGone that the peer has not confirmed. It is not sent again with the
// other frames of a lost lane: these wait for the peer's frameGone, which may wait for
// this one.
type saidGone struct {
	number, received uint64
	on               *lane // nil: there was no lane
	at               int64 // the position after it
}

// An orphan is a frame that has no lane, or the rest of one.
type orphan struct {
	frame         // kind 0: there is none
	header int64  // of it, as it is counted in held
	data   []byte // of a frameData
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

// partedOfPeer counts n more carriers in parted, of all sessions of the peer, and returns
// how many there are.
func (e *end) partedOfPeer(n int) int64 {
	if e.peer == nil {
		return 0
	}
	return e.peer.parted.Add(int64(n))
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
