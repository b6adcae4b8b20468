//go:build integration

package lab

import (
	"fmt"
	"net/netip"
	"time"
)

// What a censor does to each TCP connection that crosses the border. All rules hold
// for connections from the client, by the address that they go to.
type rules struct {
	// freeze: after this many bytes from the far end, nothing passes any more, in
	// neither direction. The packet that would go beyond it is lost, too. Every byte
	// above TCP counts, so handshakes do; a byte that is sent again counts once.
	freeze int
	// age: a connection this old is reset.
	age time.Duration
	// silence: a connection that has got no byte from the far end for this long is
	// dropped silently, or reset.
	silence  time.Duration
	silenced fate
	// onSYN: a connection is reset as soon as it is made. onData: when the client sends the
	// first byte.
	onSYN, onData bool
	// rate: bytes a second of each connection in each direction.
	rate int
	// alive: with so many connections at once, a new one is dropped silently.
	alive int
	// opened: with so many new connections let through in the last window, another
	// one is dropped silently. One that is dropped does not count.
	opened int
	window time.Duration
}

// A flow is a TCP connection, seen from inside the border.
type flow struct{ client, far netip.AddrPort }

type flowState struct {
	clientAck, farAck uint32    // what each side acknowledged last
	first             uint32    // the number of the client's SYN
	begun             bool      // the client has sent data
	since             time.Time // the SYN
	heard             time.Time // the last new byte from the far end
	counting          bool      // next is known
	next              uint32    // the number of the next new byte from the far end
	got               int       // bytes from the far end that passed
	in, out           pace
	fate              fate
	done              bool // one of the ends is finished with it
}

// A fate is what the censor does with the packets of a connection.
type fate int

const (
	passes   fate = iota
	opened        // only in events: a new connection was let through
	refused       // by number or rate
	frozen        // by bytes
	tooOld        // by age: reset
	tooQuiet      // by silence: dropped
	wasReset      // by silence, by a word, or by the test
)

func (f fate) String() string {
	return [...]string{"passes", "opened", "refused", "frozen", "too old", "too quiet", "reset"}[f]
}

// resets tells whether both ends hear of it.
func (f fate) resets() bool { return f == tooOld || f == wasReset }

// An event is what became of a connection, and when.
type event struct {
	at   time.Time
	kind fate
	far  netip.AddrPort
	got  int           // bytes from the far end until then
	age  time.Duration // of the connection then
	many int           // connections to all addresses then, if it is a new one
}

// track finds the connection of a packet. Only a SYN makes a new one.
func (c *censor) track(key flow, p packet, fromClient bool, now time.Time) *flowState {
	s := c.flows[key]
	if fromClient && p.flags&(flagSYN|flagACK) == flagSYN && (s == nil || s.first != p.seq) {
		s = &flowState{first: p.seq, since: now, heard: now}
		full := c.full(key.far.Addr(), now)
		c.flows[key] = s
		if full {
			c.end(key, s, refused)
		} else {
			c.seen = append(c.seen, event{at: now, kind: opened, far: key.far, many: c.alive(netip.Addr{})})
		}
	}
	if s == nil {
		return nil
	}
	if p.flags&flagACK != 0 {
		if fromClient {
			s.clientAck = p.ack
		} else {
			s.farAck = p.ack
		}
	}
	if p.flags&(flagRST|flagFIN) != 0 {
		s.done = true
	}
	return s
}

// full tells whether a new connection to an address is one too many.
func (c *censor) full(far netip.Addr, now time.Time) bool {
	r := c.each
	if r.opened > 0 {
		n := 0
		for i := len(c.seen) - 1; i >= 0 && now.Sub(c.seen[i].at) < r.window; i-- {
			if c.seen[i].kind == opened && c.seen[i].far.Addr() == far {
				n++
			}
		}
		if n >= r.opened {
			return true
		}
	}
	return r.alive > 0 && c.alive(far) >= r.alive
}

// alive counts the connections to an address, or to all.
func (c *censor) alive(far netip.Addr) (n int) {
	for key, s := range c.flows {
		if (!far.IsValid() || key.far.Addr() == far) && s.fate == passes && !s.done {
			n++
		}
	}
	return n
}

// pass looks at a packet of a connection and tells whether it may go on.
func (c *censor) pass(key flow, s *flowState, p packet, fromClient bool, now time.Time) bool {
	c.judge(key, s, now)
	if s.fate != passes {
		if s.fate.resets() && p.flags&flagRST == 0 {
			// An end that goes on has not had the reset at the number that it awaits.
			// Its packet has that number.
			c.write(p.src.Addr(), forgeReset(p.dst, p.src, p.ack))
		}
		return false
	}
	if fromClient {
		begins := p.flags&flagSYN == 0 && !s.begun
		if begins && c.each.onSYN {
			s.clientAck, s.farAck = p.ack, p.seq
			c.resetLocked(key, s, wasReset)
			return false
		}
		if len(p.payload) == 0 {
			return true
		}
		bad := c.forbidden(!s.begun, p.payload) || c.each.onData && begins
		s.begun = true
		if bad {
			s.clientAck, s.farAck = p.ack, p.seq
			c.resetLocked(key, s, wasReset)
		}
		return !bad
	}
	if p.flags&flagSYN != 0 {
		s.counting, s.next = true, p.seq+1
		return true
	}
	if !s.counting {
		s.counting, s.next = true, p.seq
	}
	// Numbers wrap around: what counts is the distance.
	if fresh := int(int32(p.seq + uint32(len(p.payload)) - s.next)); fresh > 0 {
		if c.each.freeze > 0 && s.got+fresh > c.each.freeze {
			c.end(key, s, frozen)
			return false
		}
		s.next += uint32(fresh)
		s.got += fresh
		s.heard = now
	}
	return true
}

// judge applies what time brings.
func (c *censor) judge(key flow, s *flowState, now time.Time) {
	switch {
	case s.fate != passes || s.done:
	case c.each.age > 0 && now.Sub(s.since) >= c.each.age:
		c.resetLocked(key, s, tooOld)
	case c.each.silence > 0 && now.Sub(s.heard) >= c.each.silence:
		if c.each.silenced.resets() {
			c.resetLocked(key, s, c.each.silenced)
		} else {
			c.end(key, s, tooQuiet)
		}
	}
}

// end decides on a connection for good.
func (c *censor) end(key flow, s *flowState, kind fate) {
	now := time.Now()
	s.fate = kind
	c.seen = append(c.seen, event{at: now, kind: kind, far: key.far, got: s.got, age: now.Sub(s.since)})
}

// resetOldest resets the oldest of the connections to an address.
func (c *censor) resetOldest(far netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var oldest flow
	var since time.Time
	for key, s := range c.flows {
		if key.far.Addr() == far && s.fate == passes && !s.done && (since.IsZero() || s.since.Before(since)) {
			oldest, since = key, s.since
		}
	}
	if !since.IsZero() {
		c.resetLocked(oldest, c.flows[oldest], wasReset)
	}
}

// watch resets in time what has no packets, and forgets what is over.
func (c *censor) watch() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-c.stop:
			return
		case now := <-tick.C:
			c.mu.Lock()
			for key, s := range c.flows {
				c.judge(key, s, now)
				if s.done && now.Sub(s.heard) > 2*time.Minute {
					delete(c.flows, key)
				}
			}
			c.mu.Unlock()
		}
	}
}

// A tally is what the censor has seen of connections in a time.
type tally struct {
	opened, refused, frozen, tooOld, tooQuiet, reset int
	peak                                             int // new ones within one second, at most
	alive                                            int // at once, at most
	most                                             int // bytes that one got from the far end before it was frozen, at most
	span                                             time.Duration
}

func (t tally) String() string {
	return fmt.Sprintf("%d connections opened in %.1f s (%.1f a second, at most %d within one, %d alive), refused %d, frozen %d at %d bytes at most, too old %d, too quiet %d, reset %d",
		t.opened, t.span.Seconds(), float64(t.opened)/t.span.Seconds(), t.peak, t.alive, t.refused, t.frozen, t.most, t.tooOld, t.tooQuiet, t.reset)
}

// tally counts from a time on.
func (c *censor) tally(from time.Time) (t tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.span = time.Since(from)
	var last []time.Time
	for _, e := range c.seen {
		if e.at.Before(from) {
			continue
		}
		switch e.kind {
		case opened:
			t.opened++
			last = append(last, e.at)
			for e.at.Sub(last[0]) > time.Second {
				last = last[1:]
			}
			t.peak, t.alive = max(t.peak, len(last)), max(t.alive, e.many)
		case refused:
			t.refused++
		case frozen:
			t.frozen++
			t.most = max(t.most, e.got)
		case tooOld:
			t.tooOld++
		case tooQuiet:
			t.tooQuiet++
		case wasReset:
			t.reset++
		}
	}
	return t
}

// busy counts the connections that have got bytes from the far end lately.
func (c *censor) busy(lately time.Duration) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.flows {
		if s.fate == passes && s.got > 0 && time.Since(s.heard) < lately {
			n++
		}
	}
	return n
}

// busyFrom counts the bytes that living connections have got from an address and port.
func (c *censor) busyFrom(far netip.AddrPort) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, s := range c.flows {
		if key.far == far && s.fate == passes && !s.done && time.Since(s.heard) < time.Second {
			n += s.got
		}
	}
	return n
}

// move gives the client another address. Its connections from the old one go nowhere.
func (l *lab) move(last byte) {
	l.t.Helper()
	from := l.client.addr
	to := netip.AddrFrom4([4]byte{10, 77, 0, last})
	must(l.t, "ip", "-n", l.client.ns, "address", "del", from.String()+"/24", "dev", "net0")
	l.censor.set(func(c *censor) {
		c.tuns[to] = c.tuns[from]
		delete(c.tuns, from)
		c.client = to
	})
	must(l.t, "ip", "-n", l.client.ns, "address", "add", to.String()+"/24", "dev", "net0")
	l.client.addr = to
}
