package carrier

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"ptgate/adapter"
)

const (
	// KeepAlive is how long a peer is left alone before it is asked for a sign of life.
	KeepAlive = 15 * time.Second
	// DeadAfter is how long a peer may give no sign before the Conn ends.
	DeadAfter = 45 * time.Second
	// An idle peer that does not answer for so long is suspect. A link that was cut may
	// still come back between this time and DeadAfter.
	suspectAfter = 800 * time.Millisecond
	// A peer that has sent bytes and then stopped is asked so soon, if somebody waits for it;
	// so is one that was sent bytes and says nothing. Some networks let a connection die after
	// some bytes.
	askSoon = 300 * time.Millisecond
	// A client that was not heard for so long is gone. A live client asks for a sign of
	// life at least every askAgain, and gives up a cut link after DeadAfter.
	vanishedAfter = 2 * time.Minute
	askAgain      = 30 * time.Second

	tick         = time.Second            // between two checks by a gateway
	quickTick    = 100 * time.Millisecond // the same, while bytes come or an answer is owed
	quickFor     = 2 * time.Second        // after the last byte
	vanishedTick = 10 * time.Second       // between two checks by a server
	// A check that comes so late means that the machine was asleep, or this process was
	// stopped.
	absent = 10 * time.Second
)

var (
	// ErrDead says that the peer has given no sign for DeadAfter.
	ErrDead     = adapter.Constant("carrier: the peer does not answer")
	errVanished = adapter.Constant("carrier: nothing was heard of the client")
)

// life has what is known of the peer. Times are nanoseconds since start; 0: never. They
// are of the monotonic clock, which on most systems stops while the machine sleeps.
type life struct {
	clock func() time.Time // the wall clock; nil: time.Now

	born      int64
	heard     atomic.Int64
	heardWall atomic.Int64 // the same moment by the wall clock, in nanoseconds since 1970
	owes      atomic.Int64 // since when the peer owes an answer
	unheard   atomic.Int64 // when the first byte was written after which the peer was not heard
	moved     atomic.Int64 // when a write that had to wait for room was last done
	pace      atomic.Int64 // how long the last write took if it had to wait; otherwise 0
	rtt       atomic.Int64
	bytes     atomic.Int64 // that have come from the peer
	answered  atomic.Int64 // bytes at the last answer to a question
	longest   atomic.Int64 // the longest silence after which bytes came
	slept     atomic.Int64 // when a check came so late that the machine was asleep
	keepAlive atomic.Int64 // a time.Duration; 0: KeepAlive
	foundAt   atomic.Int64 // when the peer was heard for the first time
}

var start = time.Now()

// since is t as a time of life. It is never 0.
func since(t time.Time) int64 { return int64(t.Sub(start)) + 1 }

func now() int64 { return since(time.Now()) }

func (l *life) init(wall func() time.Time) {
	l.clock = wall
	l.born = now()
	l.moved.Store(l.born)
}

// wall is the time of the wall clock. t is the present time.
func (l *life) wall(t time.Time) int64 {
	if l.clock != nil {
		t = l.clock()
	}
	return t.UnixNano()
}

// hear notes that n bytes have come from the peer.
func (l *life) hear(n int) {
	t := time.Now()
	l.bytes.Add(int64(n))
	last := l.heard.Swap(since(t))
	first := last == 0
	if gap := since(t) - last; !first && gap > l.longest.Load() {
		l.longest.Store(gap)
	}
	l.heardWall.Store(l.wall(t))
	if l.owes.Load() != 0 {
		l.owes.Store(0)
	}
	if l.unheard.Load() != 0 {
		l.unheard.Store(0)
	}
	if first {
		l.foundAt.Store(since(t))
	}
}

// wrote notes that bytes go to the peer.
func (l *life) wrote(at time.Time) {
	if l.unheard.Load() == 0 {
		l.unheard.Store(since(at))
	}
}

// took notes how long a write took. If it had to wait, a full connection has accepted more
// bytes.
func (l *life) took(d time.Duration) {
	if d <= waited {
		d = 0
	} else {
		l.moved.Store(now())
	}
	if l.pace.Load() != int64(d) {
		l.pace.Store(int64(d))
	}
}

// Expect says that the peer owes an answer from now on, until it is heard.
func (c *Conn) Expect() { c.life.owes.CompareAndSwap(0, now()) }

// overdue is how long the peer has owed an answer.
func (l *life) overdue() time.Duration {
	if at := l.owes.Load(); at != 0 {
		return time.Duration(now() - at)
	}
	return 0
}

// silence is overdue, or the time since a full connection has accepted more bytes, if that
// is shorter. A full connection accepts more only if the bytes before were taken from it,
// so the peer is alive: on a slow link its answer only comes late. A connection with room
// accepts bytes in any case, which shows nothing.
func (l *life) silence() time.Duration {
	return min(l.overdue(), time.Duration(now()-l.moved.Load()))
}

// Connecting tells whether the peer has not been heard yet.
func (c *Conn) Connecting() bool { return c.life.heard.Load() == 0 }

// Suspect tells whether the peer was heard before, and now owes an answer for longer than
// it should need. On a slow link the question waits behind other bytes: while these are
// taken, the peer is not suspect.
func (c *Conn) Suspect() bool {
	// A round trip that was measured under load can be half a minute.
	limit := min(max(suspectAfter, 4*c.RTT(), 2*time.Duration(c.life.pace.Load())), DeadAfter/2)
	return !c.Connecting() && c.life.silence() > limit
}

// Trusted tells whether the way to the peer is very likely open: the peer was heard a
// moment ago (in about KeepAlive), owes no answer for too long, and the machine has not
// slept since. After a longer silence the network in between may have forgotten the
// connection.
func (c *Conn) Trusted() bool {
	if c.Connecting() || c.Suspect() {
		return false
	}
	t := time.Now()
	silent := time.Duration(since(t) - c.life.heard.Load())
	silentByWall := time.Duration(c.life.wall(t) - c.life.heardWall.Load())
	return silent <= KeepAlive+2*tick && silentByWall-silent < absent
}

// Overdue is how long the peer has owed an answer. A peer that answers owes none for
// longer than a round trip.
func (c *Conn) Overdue() time.Duration { return c.life.overdue() }

// LastHeard is when the peer was last heard, as a time since the start of the process.
func (c *Conn) LastHeard() time.Duration { return time.Duration(c.life.heard.Load()) }

// Silent is the time since the last byte from the peer.
func (c *Conn) Silent() time.Duration { return time.Duration(now() - c.life.heard.Load()) }

// Longest is the longest time without a byte from the peer after which bytes came again.
func (c *Conn) Longest() time.Duration { return time.Duration(c.life.longest.Load()) }

// Slept tells whether the machine was asleep, or this process stopped, not long ago.
func (c *Conn) Slept() bool {
	at := c.life.slept.Load()
	return at != 0 && time.Duration(now()-at) < DeadAfter
}

// Received is how many bytes have come from the peer, without what the transport adds.
func (c *Conn) Received() int64 { return c.life.bytes.Load() }

// RTT is the measured round trip time. 0: not known yet.
func (c *Conn) RTT() time.Duration { return time.Duration(c.life.rtt.Load()) }

// Age is the time since the Conn was made.
func (c *Conn) Age() time.Duration { return time.Duration(now() - c.life.born) }

// Answered notes that the question of ask was sent at asked, and that its answer took so
// long. It tells whether the time is a round trip. If not, ask again: the question was
// sent before the peer was first heard, so the time also has the transport's search for
// its way in it.
func (c *Conn) Answered(asked time.Time, took time.Duration) bool {
	if took > suspectAfter && since(asked) < c.life.foundAt.Load() || took > time.Since(asked) {
		return false
	}
	c.life.answered.Store(c.life.bytes.Load())
	if old := c.RTT(); old != 0 {
		// One answer that came very late says more of a pause of a box than of the way.
		took = min(old/2+took/2, 2*old+suspectAfter)
	}
	c.life.rtt.Store(int64(max(took, 1)))
	return true
}

// A Watch is what Start needs to watch a peer.
type Watch struct {
	// Ask is called when the peer should give a sign of life. It sends a question that the
	// peer answers at once, and does not wait for the answer. When the answer comes,
	// Answered has to be called.
	Ask func()
	// Waiting tells whether somebody waits for the peer's bytes. Then the peer is asked
	// soon after it has stopped to send, and soon after bytes that it does not answer.
	Waiting func() bool
	// Turned is called when the peer has become suspect, and when it is not so any more.
	Turned func()
}

// SetKeepAlive changes how long a peer is left alone before it is asked for a sign of
// life. 0: KeepAlive.
func (c *Conn) SetKeepAlive(d time.Duration) { c.life.keepAlive.Store(int64(d)) }

// interval is the time of SetKeepAlive, made a little shorter by chance.
func (l *life) interval() time.Duration {
	d := KeepAlive
	if k := time.Duration(l.keepAlive.Load()); k > 0 {
		d = min(d, k)
	}
	return d - time.Duration(rand.Int64N(int64(d/4)+1))
}

// watch asks the peer for a sign of life: after the time of SetKeepAlive without a byte, at
// least every askAgain, soon after bytes for which somebody waits have stopped to come or
// were not answered, and at once when the machine has slept. It ends the Conn when the peer is dead.
func (c *Conn) watch(w Watch) {
	l := &c.life
	t := time.NewTimer(quickTick)
	defer t.Stop()
	pause := l.interval()
	w.Ask()
	last := look{now(), l.wall(time.Now())}
	asked := last.at
	suspect := false
	for {
		select {
		case <-c.ended:
			return
		case inOrder := <-c.leave:
			c.left(inOrder)
			return
		case <-t.C:
		}
		late := last.late(l, time.Now())
		heard := l.heard.Load()
		quiet := time.Duration(last.at - heard)
		if heard != 0 && l.owes.Load() == 0 && quiet > quickFor {
			t.Reset(min(tick, max(quickTick, pause-quiet)))
		} else {
			t.Reset(quickTick)
		}
		if c.Connecting() {
			continue // the owner limits the time of that
		}
		if silent := l.silence(); silent > DeadAfter {
			c.giveUp(ErrDead, silent)
			return
		}
		if s := c.Suspect(); s != suspect {
			suspect = s
			w.Turned()
		}
		if k := time.Duration(l.keepAlive.Load()); k > 0 {
			pause = min(pause, k)
		}
		soon := max(askSoon, 2*c.RTT())
		unheard := l.unheard.Load()
		stopped := (quiet >= soon && l.bytes.Load() > l.answered.Load() || unheard != 0 && time.Duration(last.at-unheard) >= soon) && w.Waiting()
		if quiet < pause && time.Duration(last.at-asked) < askAgain && !late && !stopped {
			continue
		}
		pause = l.interval()
		if l.overdue() == 0 || late {
			c.Expect()
			asked = last.at
			t.Reset(quickTick)
			w.Ask()
		}
	}
}

// A look is the time of a check, by both clocks.
type look struct{ at, wall int64 }

// late sets k to the present time, and tells whether this check comes so late that the
// machine was asleep or this process was stopped. Then an answer that is owed may have
// come and not been read, so the time for it begins anew.
func (k *look) late(l *life, t time.Time) bool {
	at, wall := since(t), l.wall(t)
	late := time.Duration(max(at-k.at, wall-k.wall)) > absent
	k.at, k.wall = at, wall
	if late {
		l.slept.Store(at)
	}
	if late && l.owes.Load() != 0 {
		l.owes.Store(at)
	}
	return late
}

// watchVanished ends the Conn when its client is not heard any more. Nothing else would
// end it if a web server in front of the transport keeps the connection open, which may
// take a day. The silence is counted in checks: the time in which this process was stopped
// does not count.
func (c *Conn) watchVanished() {
	t := time.NewTicker(vanishedTick)
	defer t.Stop()
	last, silent := c.life.heard.Load(), time.Duration(0)
	for {
		select {
		case <-c.ended:
			return
		case inOrder := <-c.leave:
			c.left(inOrder)
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
