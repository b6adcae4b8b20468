package carrier

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	// KeepAlive is how long a peer is left alone before it is asked for a sign of life.
	KeepAlive = 15 * time.Second
	// A peer that gives no sign for so long is given up.
	DeadAfter = 45 * time.Second
	// An idle peer that does not answer for so long is suspect. Between this and DeadAfter
	// lies a cut link that comes back.
	suspectAfter = 1500 * time.Millisecond
	// A client that was not heard for so long is gone. It asks for a sign of life every
	// askAgain at least; a cut link is given up after DeadAfter on its side.
	vanishedAfter = 2 * time.Minute
	askAgain      = 30 * time.Second

	tick         = time.Second      // between two looks of a gateway
	vanishedTick = 10 * time.Second // between two looks of a server
	// A look that comes so much too late means that the machine was asleep, or this
	// process stopped.
	absent = 10 * time.Second
)

var (
	errDead     = errors.New("carrier: the peer does not answer")
	errVanished = errors.New("carrier: nothing was heard of the client")
)

// life is what is known of the peer. Times are nanoseconds since start by the monotonic
// clock, which on most systems stands still while the machine sleeps; 0: never.
type life struct {
	clock func() time.Time // the wall's; nil: time.Now

	born      int64
	heard     atomic.Int64
	heardWall atomic.Int64 // the same moment by the wall clock, since 1970
	owes      atomic.Int64 // since when the peer owes an answer
	moved     atomic.Int64 // when a write that had to wait went on
	rtt       atomic.Int64

	found   chan struct{} // closed when the peer is heard for the first time
	foundAt atomic.Int64
}

var start = time.Now()

// since is the monotonic time, and never 0.
func since(t time.Time) int64 { return int64(t.Sub(start)) + 1 }

func now() int64 { return since(time.Now()) }

func (l *life) init(wall func() time.Time) {
	l.clock = wall
	l.found = make(chan struct{})
	l.born = now()
	l.moved.Store(l.born)
}

// wall is the time by the wall clock; t is the present.
func (l *life) wall(t time.Time) int64 {
	if l.clock != nil {
		t = l.clock()
	}
	return t.UnixNano()
}

// hear notes a byte from the peer.
func (l *life) hear() {
	t := time.Now()
	first := l.heard.Swap(since(t)) == 0
	l.heardWall.Store(l.wall(t))
	if l.owes.Load() != 0 {
		l.owes.Store(0)
	}
	if first {
		l.foundAt.Store(since(t))
		close(l.found)
	}
}

// took notes that a full connection has taken more.
func (l *life) took() { l.moved.Store(now()) }

// Expect notes that the peer owes an answer from now on.
func (c *Conn) Expect() { c.life.owes.CompareAndSwap(0, now()) }

// overdue tells for how long the peer has owed an answer.
func (l *life) overdue() time.Duration {
	if at := l.owes.Load(); at != 0 {
		return time.Duration(now() - at)
	}
	return 0
}

// silence is overdue, but counts from the peer's last sign: on a slow link an answer
// waits for long behind what is to be sent. If a full connection takes more, then
// something has taken what was before it: that is a sign. If one with room takes more,
// that is none.
func (l *life) silence() time.Duration {
	return min(l.overdue(), time.Duration(now()-l.moved.Load()))
}

// Heard is closed when the peer is heard for the first time.
func (c *Conn) Heard() <-chan struct{} { return c.life.found }

// Connecting tells that the peer has not been heard yet.
func (c *Conn) Connecting() bool { return c.life.heard.Load() == 0 }

// Suspect tells that a peer which was heard before owes an answer for longer than it
// should need.
func (c *Conn) Suspect() bool {
	// A round trip that was measured under load can be half a minute.
	return !c.Connecting() && c.life.overdue() > min(max(suspectAfter, 4*c.RTT()), DeadAfter/2)
}

// Trusted tells that the way to the peer can be taken for open without asking: the peer
// was heard within the time after which it would have been asked, and the machine has not
// slept since. A way that was open before a longer silence may be closed now: the network
// in between forgets connections.
func (c *Conn) Trusted() bool {
	if c.Connecting() || c.Suspect() {
		return false
	}
	t := time.Now()
	silent := time.Duration(since(t) - c.life.heard.Load())
	silentByWall := time.Duration(c.life.wall(t) - c.life.heardWall.Load())
	return silent <= KeepAlive+2*tick && silentByWall-silent < absent
}

// RTT is the measured round trip time, 0 while there is none.
func (c *Conn) RTT() time.Duration { return time.Duration(c.life.rtt.Load()) }

// Age tells since when the Conn exists.
func (c *Conn) Age() time.Duration { return time.Duration(now() - c.life.born) }

// Answered notes that an answer to ask, which was called at asked, has taken so long. It
// tells whether that is of use. What was asked before the peer was first heard measures
// how long the transport has searched for its way: then ask again.
func (c *Conn) Answered(asked time.Time, took time.Duration) bool {
	if took > suspectAfter && since(asked) < c.life.foundAt.Load() || took > time.Since(asked) {
		return false
	}
	if old := c.RTT(); old != 0 {
		took = old/2 + took/2
	}
	c.life.rtt.Store(int64(max(took, 1)))
	return true
}

// watch asks the peer for a sign of life when nothing was heard for a while, from time to
// time even so, and at once when the machine has slept. It gives a dead peer up.
func (c *Conn) watch(ask func()) {
	l := &c.life
	t := time.NewTicker(tick)
	defer t.Stop()
	interval := func() time.Duration { return KeepAlive - time.Duration(rand.Int64N(int64(KeepAlive/4))) }
	pause := interval()
	ask()
	last := look{now(), l.wall(time.Now())}
	asked := last.at
	for {
		select {
		case <-c.ended:
			return
		case <-t.C:
		}
		late := last.late(l, time.Now())
		if c.Connecting() {
			continue // the owner bounds that
		}
		if silent := l.silence(); silent > DeadAfter {
			c.giveUp(errDead, silent)
			return
		}
		quiet := time.Duration(last.at - l.heard.Load())
		if quiet < pause && time.Duration(last.at-asked) < askAgain && !late {
			continue
		}
		pause = interval()
		if l.overdue() == 0 || late {
			c.Expect()
			asked = last.at
			ask()
		}
	}
}

// A look is when the peer was last looked at, by both clocks.
type look struct{ at, wall int64 }

// late takes the next look, and tells whether it comes so late that the machine was asleep
// or this process stopped. Then an answer that is owed may wait here, unread: its time
// begins anew.
func (k *look) late(l *life, t time.Time) bool {
	at, wall := since(t), l.wall(t)
	late := time.Duration(max(at-k.at, wall-k.wall)) > absent
	k.at, k.wall = at, wall
	if late && l.owes.Load() != 0 {
		l.owes.Store(at)
	}
	return late
}

// watchVanished gives up a client that is not heard any more. Nothing else would tell of
// it where something in between keeps the connection open: a web server in front of the
// transport may do so for a day. The silence is counted in looks, so that a server that
// was stopped does not take its own absence for the client's.
func (c *Conn) watchVanished() {
	t := time.NewTicker(vanishedTick)
	defer t.Stop()
	last, silent := c.life.heard.Load(), time.Duration(0)
	for {
		select {
		case <-c.ended:
			return
		case <-t.C:
		}
		if heard := c.life.heard.Load(); heard != last {
			last, silent = heard, 0
			continue
		}
		if silent += vanishedTick; silent >= vanishedAfter {
			c.giveUp(errVanished, silent)
			return
		}
	}
}
