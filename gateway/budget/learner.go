package budget

import (
	"sync"
	"time"
)

// A Learner has the limits of one bridge. All methods may be called from any goroutine.
// The time that is passed must have a monotonic reading, or come from one clock.
type Learner struct {
	mu         sync.Mutex
	configured Limits
	noise      float64 // of Death.Bytes
	network    string
	moves      int // how often the network was another one

	lives   [lifeKinds]limit // what one carrier may use
	pending []pending
	dials   dials
	alive   int // carriers that are open
	dialing int // carriers that are being opened
}

// lifeKinds are KindBytes, KindAge and KindIdle, which are about the life of one carrier.
const lifeKinds = 3

var kindOf = [lifeKinds]Kind{KindBytes, KindAge, KindIdle}

// pending is a death that counts if a new carrier works soon.
type pending struct {
	at    time.Time
	death Death
	probe Kind
}

// soon is how long after a death a new carrier may take to work.
const soon = 20 * time.Second

// New returns a Learner for a bridge. noise is how many bytes the Bytes of deaths may be
// off by, because nobody can see what the transport really sends and receives. 0: they are
// exact.
func New(configured Limits, noise int64) *Learner {
	return &Learner{configured: configured, noise: float64(noise)}
}

// Configured returns the configured limits.
func (l *Learner) Configured() Limits {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.configured
}

// Update sets other configured limits, after a reload.
func (l *Learner) Update(configured Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.configured = configured
	for i, kind := range kindOf {
		if l.isConfigured(kind) {
			l.lives[i] = limit{}
		}
	}
	l.dials.forgetConfigured(configured)
}

func (l *Learner) isConfigured(kind Kind) bool {
	switch kind {
	case KindBytes:
		return l.configured.Bytes != 0
	case KindAge:
		return l.configured.Age != 0
	case KindIdle:
		return l.configured.Idle != 0
	case KindNew:
		return l.configured.New != Rate{}
	}
	return l.configured.AtOnce != 0
}

// Network says in which network this box is; see package network. If it is another one
// than before, what was learned is forgotten. "" is not known, and changes nothing.
func (l *Learner) Network(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id == "" || id == l.network {
		return
	}
	if l.network != "" {
		l.moves++
		l.lives = [lifeKinds]limit{}
		l.pending = nil
		l.dials.forget()
	}
	l.network = id
}

// Limits returns the limits that are kept to now: the configured ones, else the learned
// ones. Only New is never empty.
func (l *Learner) Limits(now time.Time) Limits {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limits(nil)
}

// limits returns the limits for c; nil: for any carrier.
func (l *Learner) limits(c *Carrier) Limits {
	limits := l.configured
	for i, kind := range kindOf {
		use := l.lives[i].use()
		if use == 0 || l.isConfigured(kind) || c != nil && l.lives[i].probing == c {
			continue
		}
		switch kind {
		case KindBytes:
			limits.Bytes = int64(use)
		case KindAge:
			limits.Age = seconds(use)
		case KindIdle:
			limits.Idle = seconds(use)
		}
	}
	if limits.New == (Rate{}) {
		limits.New = DefaultNew
		if l.dials.rate.Count > 0 {
			limits.New = l.dials.rate.Rate
		}
	}
	if limits.AtOnce == 0 {
		limits.AtOnce = l.dials.atOnce.count
	}
	return limits
}

// A Carrier is one connection to the bridge, from the moment when it is begun. Each one
// ends with exactly one call of Failed, Died or Closed; what is called after that does
// nothing.
type Carrier struct {
	l       *Learner
	attempt *attempt
	state   carrierState
	probe   Kind // that this carrier may go past
	moves   int  // l.moves when it was begun
}

// moved tells whether the carrier was begun in another network. What becomes of it says
// nothing of this one.
func (c *Carrier) moved() bool { return c.moves != c.l.moves }

type carrierState uint8

const (
	stateDialing carrierState = iota
	stateOpen
	stateOver
)

// Dial begins a carrier. If the limits don't allow that now, it returns nil, and how long
// to wait before it is called again; when a carrier ends, it may be called sooner.
func (l *Learner) Dial(now time.Time) (*Carrier, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	probe, wait := l.mayDial(now)
	if wait > 0 {
		return nil, wait
	}
	c := &Carrier{l: l, probe: probe, moves: l.moves}
	c.attempt = l.dials.begin(now, l.alive+l.dialing)
	l.dialing++
	switch probe {
	case KindNew:
		l.dials.rate.begin(now, c)
	case KindAtOnce:
		l.dials.atOnce.begin(now, c)
	case KindNone:
		// One kind at a time: otherwise nobody knows which limit a death is about.
		for i, kind := range kindOf {
			if p := &l.lives[i]; p.found() && p.due(now) {
				c.probe = kind
				p.begin(now, c)
				break
			}
		}
	}
	return c, 0
}

// Probe returns the kind of the learned limit that this carrier may go past, to see
// whether it is still there. KindNone: none. Such a carrier may be killed: carry nothing
// on it that must not wait.
func (c *Carrier) Probe() Kind {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return c.probe
}

// Limits returns the limits for this carrier now. They can change while it lives.
func (c *Carrier) Limits(now time.Time) Limits {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return c.l.limits(c)
}

// Opened says that the carrier works: the far box has answered on it.
func (c *Carrier) Opened(now time.Time) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.state != stateDialing {
		return
	}
	c.state = stateOpen
	l.dialing--
	l.alive++
	if c.moved() {
		return
	}
	l.dials.opened(c.attempt, c.probe)
	l.learnDials(now)
	l.settle(now)
}

// Failed says that the carrier did not come up. silent: nothing came back, as when the
// network drops the packets; otherwise the attempt was refused or reset. othersAlive:
// another carrier of this bridge has got a byte since this one was begun.
func (c *Carrier) Failed(now time.Time, silent, othersAlive bool) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.state != stateDialing {
		return
	}
	l.dialing--
	c.over()
	if c.moved() {
		return
	}
	l.dials.nothing(c.attempt)
	if !othersAlive {
		// The way to the bridge may be broken: deaths before that say nothing.
		l.pending = nil
		return
	}
	if silent {
		l.dials.failed(now, c.attempt, c.probe)
		l.learnDials(now)
	}
}

// Died says that the carrier was lost.
func (c *Carrier) Died(now time.Time, d Death) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.state != stateOpen {
		return
	}
	l.alive--
	c.over()
	switch {
	case c.moved():
	case d.OthersAlive:
		l.count(now, d, c.probe)
	default:
		l.pending = append(l.pending, pending{now, d, c.probe})
	}
}

// Passed says what the carrier has lived through so far. It needs no call for every byte:
// once a second is enough, when bytes come again after a silence, and before Died.
func (c *Carrier) Passed(now time.Time, life Life) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.state == stateOpen && !c.moved() {
		c.l.lived(now, life)
	}
}

// Closed says that the carrier was closed in order, by this side or the other, or is given
// up for a reason that is not the network's: the transport's program has crashed, or this
// box has slept.
func (c *Carrier) Closed(now time.Time, life Life) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	switch c.state {
	case stateDialing:
		l.dialing--
		if !c.moved() {
			l.dials.nothing(c.attempt)
		}
	case stateOpen:
		l.alive--
		if !c.moved() {
			l.lived(now, life)
		}
	}
	c.over()
}

// over ends the carrier, and its probe.
func (c *Carrier) over() {
	c.state = stateOver
	for i := range c.l.lives {
		c.l.lives[i].release(c)
	}
	c.l.dials.rate.release(c)
	c.l.dials.atOnce.release(c)
}

// settle decides on the pending deaths, now that a new carrier works.
func (l *Learner) settle(now time.Time) {
	list := l.pending
	l.pending = nil
	for len(list) > 0 && now.Sub(list[0].at) > soon {
		list = list[1:]
	}
	if len(list) == 0 {
		return
	}
	// Carriers that die together, with none left, have most likely died of one cause that
	// has nothing to do with how much each has used. If all of them agree, it may be a
	// limit, which carriers reach together that are used alike. That is one death, then.
	least := list[0]
	most := list[0].death
	for _, p := range list[1:] {
		if p.death.Bytes < least.death.Bytes {
			least = p
		}
		most.Bytes = max(most.Bytes, p.death.Bytes)
		most.Age = max(most.Age, p.death.Age)
	}
	sameBytes, sameAge := true, true
	for _, p := range list {
		sameBytes = sameBytes && float64(p.death.Bytes) >= (1-agree)*float64(most.Bytes)-l.noise
		sameAge = sameAge && float64(p.death.Age) >= (1-agree)*float64(most.Age)
	}
	if sameBytes || sameAge {
		l.count(now, least.death, least.probe)
	}
}
