package budget

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A censor is a network that limits connections. Zero fields are no limit.
type censor struct {
	freeze int64         // bytes after which nothing comes any more
	age    time.Duration // at which connections are reset
	idle   time.Duration // of silence, after which nothing comes any more
	reset  bool          // silence ends in a reset
	rate   Rate          // more new connections get no answer
	number int           // more connections at once get no answer
}

// A world is a gateway that uses a Learner behind a censor, in steps of a clock of its
// own. The gateway does what one does: it keeps some carriers open, moves bytes on them,
// closes each one before its limits, and gives a carrier up that does not answer.
type world struct {
	censor
	r       *rand.Rand
	l       *Learner
	now     time.Time
	conns   []*link
	started []time.Time // of the connections that the censor let through

	want  int   // carriers
	speed int64 // of each, in bytes a second
	pause func(at time.Duration) bool
	churn time.Duration // one carrier is closed after this time, on average
	blind bool          // the gateway can't count the handshake

	moved  int64
	deaths int // of carriers that the limits should have kept from it
	silent int // dials that nobody answered, and that the limits allowed
	probes int // deaths and dials of carriers that may go past a limit
}

type link struct {
	c       *Carrier
	begun   time.Time
	open    bool
	blocked bool
	dead    bool // nothing comes any more
	bytes   int64
	hidden  int64 // of these, what the gateway can't see
	last    time.Time
	gap     time.Duration
	asked   time.Time
}

const (
	step    = 50 * time.Millisecond
	connect = 200 * time.Millisecond
	giveUp  = 2 * time.Second
	noSyn   = 10 * time.Second
)

func newWorld(seed uint64, c censor) *world {
	return &world{censor: c, r: rand.New(rand.NewPCG(seed, 7)), l: New(Limits{}, 0),
		now: time.Unix(1_000_000_000, 0), want: 2, speed: 100_000}
}

// run lets the time pass until stop says so, or for at most that long.
func (w *world) run(atMost time.Duration, stop func() bool) (took time.Duration) {
	from := w.now
	for w.now.Sub(from) < atMost && !stop() {
		w.step()
	}
	return w.now.Sub(from)
}

func (w *world) step() {
	w.now = w.now.Add(step)
	busy := w.pause == nil || !w.pause(time.Duration(w.now.UnixNano()))
	var kept []*link
	for _, k := range w.conns {
		if w.live(k, busy) {
			kept = append(kept, k)
		}
	}
	w.conns = kept
	for len(w.conns) < w.want {
		if !w.dial() {
			break
		}
	}
}

func (w *world) dial() bool {
	c, wait := w.l.Dial(w.now)
	if c == nil {
		if wait <= 0 {
			panic("no carrier, and no time to wait")
		}
		return false
	}
	k := &link{c: c, begun: w.now, last: w.now}
	alive := 0
	for _, other := range w.conns {
		if !other.blocked {
			alive++
		}
	}
	recent := 0
	for _, at := range w.started {
		if w.now.Sub(at) < w.rate.Per {
			recent++
		}
	}
	k.blocked = w.rate.Count > 0 && recent >= w.rate.Count || w.number > 0 && alive >= w.number
	if k.blocked {
		if c.Probe() == KindNew || c.Probe() == KindAtOnce {
			w.probes++
		} else {
			w.silent++
		}
	} else {
		if w.rate.Count > 0 {
			w.started = append(w.started, w.now)
		}
	}
	w.conns = append(w.conns, k)
	return true
}

// othersAlive tells whether another carrier has got a byte after since.
func (w *world) othersAlive(k *link, since time.Time) bool {
	for _, other := range w.conns {
		if other != k && other.open && other.last.After(since) {
			return true
		}
	}
	return false
}

// live moves a carrier on by one step; false: it is over.
func (w *world) live(k *link, busy bool) bool {
	age := w.now.Sub(k.begun)
	if !k.open {
		switch {
		case k.blocked && age >= noSyn:
			k.c.Failed(w.now, true, w.othersAlive(k, k.begun))
			return false
		case k.blocked || age < connect:
			return true
		}
		k.open, k.last = true, w.now
		k.bytes = 600 + w.r.Int64N(8192-600)
		if w.blind {
			k.hidden = k.bytes
		}
		k.c.Opened(w.now)
	}
	quiet := w.now.Sub(k.last)
	switch {
	case w.age > 0 && age >= w.age+time.Duration(w.r.IntN(60))*time.Millisecond,
		w.idle > 0 && w.reset && quiet >= w.idle:
		w.died(k, Reset)
		return false
	case w.freeze > 0 && k.bytes >= w.freeze, w.idle > 0 && quiet >= w.idle:
		k.dead = true
	}
	limits := k.c.Limits(w.now)
	need := busy
	if limits.Idle > 0 && quiet >= limits.Idle-step {
		need = true // something small, so that the network sees life
	}
	if need && !k.dead {
		n := int64(60)
		if busy {
			n = int64(float64(w.speed) * step.Seconds() * (0.5 + w.r.Float64()))
		}
		if w.freeze > 0 {
			n = min(n, w.freeze-k.bytes)
		}
		if limits.Bytes > 0 {
			n = min(n, limits.Bytes-(k.bytes-k.hidden))
		}
		k.bytes += n
		w.moved += n
		if quiet > time.Second {
			k.gap = max(k.gap, quiet)
			k.c.Passed(w.now, k.life())
		}
		k.last = w.now
	}
	if need && k.dead {
		if k.asked.IsZero() {
			k.asked = w.now
		} else if w.now.Sub(k.asked) >= giveUp {
			w.died(k, Frozen)
			return false
		}
	}
	churn := w.churn > 0 && w.r.Int64N(int64(w.churn)) < int64(step)
	if limits.Bytes > 0 && k.bytes-k.hidden >= limits.Bytes || limits.Age > 0 && age >= limits.Age || churn && !k.dead {
		k.c.Closed(w.now, k.life())
		return false
	}
	if w.r.IntN(20) == 0 {
		k.c.Passed(w.now, k.life())
	}
	return true
}

func (k *link) life() Life {
	return Life{Bytes: k.bytes - k.hidden, Age: k.last.Sub(k.begun), Silent: k.gap}
}

func (w *world) died(k *link, how How) {
	if k.c.Probe() != KindNone {
		w.probes++
	} else {
		w.deaths++
	}
	d := Death{Bytes: k.bytes - k.hidden, Age: w.now.Sub(k.begun), Silent: w.now.Sub(k.last), How: how,
		OthersAlive: w.othersAlive(k, k.last)}
	if !k.asked.IsZero() {
		d.Asked = w.now.Sub(k.asked)
	}
	k.c.Passed(w.now, k.life())
	k.c.Died(w.now, d)
}

// learned is the one learned limit of a kind.
func (w *world) learned(kind Kind) bool {
	for _, e := range w.l.Why(w.now) {
		if e.Kind == kind {
			return true
		}
	}
	return false
}

// Each kind of censor is found within a few deaths. From then on no limit is touched,
// except by the carriers that try whether it is still there.
func TestCensors(t *testing.T) {
	every := func(period, busy time.Duration) func(time.Duration) bool {
		return func(at time.Duration) bool { return at%period >= busy }
	}
	mixed := censor{freeze: 400_000, age: 20 * time.Second, idle: 10 * time.Second, rate: Rate{12, 20 * time.Second}}
	for _, tt := range []struct {
		name   string
		censor censor
		change func(*world)
		kind   Kind
		deaths int // or unanswered dials, that it may take
		after  int // deaths that there may be later, in an hour
	}{
		{name: "freeze after 16 KiB", censor: censor{freeze: 16 << 10}, kind: KindBytes, deaths: 3},
		{name: "freeze after 16 KiB, one carrier", censor: censor{freeze: 16 << 10}, change: func(w *world) { w.want = 1 }, kind: KindBytes, deaths: 2},
		{name: "freeze after 16 KiB, eight carriers", censor: censor{freeze: 16 << 10}, change: func(w *world) { w.want = 8 }, kind: KindBytes, deaths: 10},
		{name: "freeze after 20 KB", censor: censor{freeze: 20_000}, kind: KindBytes, deaths: 3},
		{name: "freeze after 48 KiB", censor: censor{freeze: 48 << 10}, kind: KindBytes, deaths: 4},
		{name: "freeze after 1 MiB", censor: censor{freeze: 1 << 20}, kind: KindBytes, deaths: 6},
		{name: "freeze after 16 KiB, seen without the handshake", censor: censor{freeze: 16 << 10},
			change: func(w *world) { w.blind, w.l = true, New(Limits{}, 8192) }, kind: KindBytes, deaths: 4, after: 6},
		{name: "reset after 5 s", censor: censor{age: 5 * time.Second}, kind: KindAge, deaths: 10},
		{name: "reset after a minute", censor: censor{age: time.Minute}, kind: KindAge, deaths: 8},
		{name: "reset after a minute, one carrier", censor: censor{age: time.Minute}, change: func(w *world) { w.want = 1 }, kind: KindAge, deaths: 4},
		{name: "reset after 8 s of silence", censor: censor{idle: 8 * time.Second, reset: true},
			change: func(w *world) { w.churn, w.pause = 3*time.Minute, every(25*time.Second, 2*time.Second) }, kind: KindIdle, deaths: 10},
		{name: "frozen after 8 s of silence", censor: censor{idle: 8 * time.Second},
			change: func(w *world) { w.want, w.churn, w.pause = 1, 3*time.Minute, every(25*time.Second, 2*time.Second) }, kind: KindIdle, deaths: 5, after: 2},
		{name: "frozen after 60 s of silence", censor: censor{idle: time.Minute},
			change: func(w *world) { w.want, w.churn, w.pause = 1, 20*time.Minute, every(5*time.Minute, 20*time.Second) }, kind: KindIdle, deaths: 5, after: 3},
		{name: "3 new in 30 s", censor: censor{rate: Rate{3, 30 * time.Second}}, change: func(w *world) { w.want, w.churn = 5, 2*time.Minute }, kind: KindNew, deaths: 4},
		{name: "10 new in 20 s", censor: censor{rate: Rate{10, 20 * time.Second}}, change: func(w *world) { w.want, w.churn = 14, time.Minute }, kind: KindNew, deaths: 8},
		{name: "all of it: freeze", censor: mixed, change: func(w *world) { w.want = 4 }, kind: KindBytes, deaths: 20},
		{name: "all of it: age", censor: mixed, change: func(w *world) { w.want, w.speed = 4, 5_000 }, kind: KindAge, deaths: 20},
		{name: "6 at once", censor: censor{number: 6, age: 40 * time.Second}, change: func(w *world) { w.want = 9 }, kind: KindAtOnce, deaths: 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(4) {
				w := newWorld(seed, tt.censor)
				if tt.change != nil {
					tt.change(w)
				}
				took := w.run(2*time.Hour, func() bool { return w.learned(tt.kind) })
				if !w.learned(tt.kind) {
					t.Fatalf("seed %d: nothing is learned of %d deaths and %d dials in %v: %v", seed, w.deaths, w.silent, took, w.l.Why(w.now))
				}
				if w.deaths > tt.deaths || w.silent > tt.deaths {
					t.Errorf("seed %d: learned after %d deaths and %d unanswered dials, want at most %d", seed, w.deaths, w.silent, tt.deaths)
				}
				if seed == 0 {
					t.Logf("after %v, %d deaths, %d unanswered dials: %s", took, w.deaths, w.silent, w.l.Why(w.now)[0].Text)
				}
				// What was under way may still die.
				w.run(time.Minute, func() bool { return false })
				w.deaths, w.silent, w.probes = 0, 0, 0
				w.run(time.Hour, func() bool { return false })
				if w.deaths > tt.after || w.silent > tt.after {
					t.Errorf("seed %d: then %d deaths and %d unanswered dials: %v", seed, w.deaths, w.silent, w.l.Why(w.now))
				}
				if w.probes == 0 || w.probes > 12 {
					t.Errorf("seed %d: it was tried again %d times in an hour", seed, w.probes)
				}
				if seed == 0 {
					t.Logf("an hour later: %d tries; %v", w.probes, w.l.Why(w.now))
				}
			}
		})
	}
}
