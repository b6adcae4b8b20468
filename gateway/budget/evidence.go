package budget

import (
	"math"
	"slices"
	"time"
)

const (
	// agree is how far the values of deaths may lie apart, as a share.
	agree = 0.25
	// past is how far beyond a learned limit a carrier must have lived to show that it is no
	// longer there. Networks count packets, and clocks are read late.
	past = 1.15
	// burst is how many bytes may be lost with the packets that cross a limit on bytes, so
	// that a carrier dies of it with so many less than another one.
	burst = 4 << 10
	// leastBytes is the smallest number of bytes that can be a limit: with fewer, no
	// transport could finish its handshake.
	leastBytes = 8 << 10
	// leastIdle and leastAge are the shortest times that can be a limit, in seconds.
	leastIdle = 4
	leastAge  = 2
	// inUse is the silence, in seconds, up to which a carrier was in use when it died.
	inUse = 4
	// evidenceKept bounds the deaths that are remembered for each kind.
	evidenceKept = 24
	// evidenceFor is how long they are remembered.
	evidenceFor = 3 * time.Hour
)

// Limits on how likely chance may be. See chance.
const (
	sure    = 2e-4 // any limit
	freeze  = 0.5  // frozen in the middle of a transfer, after few bytes
	mostFew = 64 << 10
)

// One freeze is enough in this range: it is what is seen in the wild (15 to 20 KB), with
// room for the handshake.
const (
	typicalLow  = 12 << 10
	typicalHigh = 24 << 10
)

// The first time after which a limit is tried again, and the longest. A limit that is not
// sure is tried sooner.
const (
	probeUnsure = time.Minute
	probeFirst  = 5 * time.Minute
	probeMost   = time.Hour
)

// formerFor is how long a forgotten limit is remembered: one more death brings it back.
const formerFor = time.Hour

// A probe is when a learned limit is tried again.
type probe struct {
	next    time.Time
	pause   time.Duration
	probing *Carrier
}

func (p *probe) start(now time.Time, pause time.Duration) {
	p.pause, p.next = pause, now.Add(pause)
}

func (p *probe) due(now time.Time) bool { return p.probing == nil && !now.Before(p.next) }

// begin lets c go past the limit. If nothing comes of it, the next one has to wait, too.
func (p *probe) begin(now time.Time, c *Carrier) {
	p.probing = c
	p.start(now, p.pause)
}

func (p *probe) release(c *Carrier) {
	if p.probing == c {
		p.probing = nil
	}
}

// confirm says that the limit is still there: the next try is later.
func (p *probe) confirm(now time.Time) {
	p.start(now, min(max(2*p.pause, probeFirst), probeMost))
}

// A limit is a learned limit of one kind, and the deaths that may teach another one.
// Bytes are a number, times are seconds.
type limit struct {
	at     float64 // the least value at which a carrier died of it; 0: none is learned
	share  float64 // of at, which carriers may use
	deaths int
	unsure bool
	since  time.Time
	probe

	evidence []sign
	seen     int     // how many deaths were looked at for evidence
	gap      float64 // the longest silence that a carrier has lived through since the first of these

	former   float64 // what at was before the limit was forgotten
	formerAt time.Time
}

// A sign is what one death says about one kind of limit.
type sign struct {
	value float64
	at    time.Time
	seen  int // limit.seen, at this death
	// atMost says that the limit may lie anywhere below value. Otherwise it is at value.
	atMost bool
	frozen bool
	// typical says that this one death is as the best known limit shows itself.
	typical bool
}

func (m *limit) found() bool { return m.at > 0 }

// use is what a carrier may use; 0: as much as it likes.
func (m *limit) use() float64 { return m.at * m.share }

// forget drops the limit after a carrier has lived past it.
func (m *limit) forget(now time.Time) {
	*m = limit{former: m.at, formerAt: now, gap: m.gap}
}

// lived notes what a carrier has lived through: no limit below that is believed.
func (l *Learner) lived(now time.Time, life Life) {
	for i, v := range [lifeKinds]float64{float64(life.Bytes), life.Age.Seconds(), life.Silent.Seconds()} {
		m := &l.lives[i]
		noise, beyond := 0.0, m.at*past
		switch kindOf[i] {
		case KindBytes:
			noise = l.noise
			beyond += burst
		case KindIdle:
			m.gap = max(m.gap, v)
		}
		m.evidence = slices.DeleteFunc(m.evidence, func(s sign) bool { return s.value < (1-agree)*v-noise })
		if m.found() && beyond < v-noise {
			m.forget(now)
		}
	}
}

// count learns from a death that is the network's. probe is what its carrier was allowed to
// go past.
func (l *Learner) count(now time.Time, d Death, probe Kind) {
	// What the carrier lived through before it died.
	life := Life{Bytes: d.Bytes, Age: d.Age}
	if d.How == Frozen {
		life.Age = d.Age - d.Silent
	}
	l.lived(now, life)

	var signs [lifeKinds]*sign
	explained := false
	for i, kind := range kindOf {
		s := l.signOf(kind, d)
		signs[i] = s
		m := &l.lives[i]
		// A death much below the limit has another cause, or the limit has become lower.
		// Several of them will tell.
		near := 0.9 * m.at
		switch kind {
		case KindBytes:
			near = 0.9*m.at - l.noise/4
		case KindIdle:
			near = 0.9 * m.use()
		}
		if s == nil || l.isConfigured(kind) || !m.found() || s.value < near {
			continue
		}
		explained = true
		m.deaths++
		m.at = min(m.at, s.value)
		if probe == kind {
			m.confirm(now)
		} else if m.pause < probeFirst {
			m.start(now, probeFirst) // it is no longer unsure
		}
	}
	if explained {
		return
	}
	best, bestSpread := -1, math.Inf(1)
	for i, kind := range kindOf {
		s := signs[i]
		if s == nil || l.isConfigured(kind) {
			continue
		}
		m := &l.lives[i]
		m.seen++
		s.seen, s.at = m.seen, now
		m.evidence = slices.DeleteFunc(m.evidence, func(s sign) bool { return now.Sub(s.at) > evidenceFor })
		if len(m.evidence) == 0 {
			m.gap = 0
		}
		m.evidence = append(m.evidence, *s)
		if len(m.evidence) > evidenceKept {
			m.evidence = m.evidence[1:]
		}
		if f := l.find(now, m); f.deaths > 0 && f.spread < bestSpread {
			best, bestSpread = i, f.spread
		}
	}
	if best < 0 {
		return
	}
	m := &l.lives[best]
	f := l.find(now, m)
	*m = limit{at: f.at, share: f.share, deaths: f.deaths, unsure: f.unsure, since: now, gap: m.gap}
	pause := probeFirst
	if f.unsure {
		pause = probeUnsure
	}
	m.start(now, pause)
	for i := range l.lives {
		l.lives[i].evidence = nil // it is explained
	}
}

// signOf says what a death tells about a kind of limit; nil: nothing.
func (l *Learner) signOf(kind Kind, d Death) *sign {
	quiet := (d.Silent - d.Asked).Seconds()
	frozen := d.How == Frozen
	if frozen && d.Asked == 0 {
		// It is not known since when the far end was needed. It takes some seconds to
		// notice that a carrier is frozen, so a short silence says nothing.
		if quiet > 4*inUse {
			return nil
		}
		quiet = 0
	}
	s := &sign{frozen: frozen}
	switch kind {
	case KindBytes:
		s.value = float64(d.Bytes)
		fast := d.Age-d.Silent < 15*time.Second && d.Silent < 15*time.Second
		s.typical = frozen && fast && d.Bytes >= typicalLow && d.Bytes <= typicalHigh
		if d.Bytes < leastBytes || quiet >= inUse || d.How == Ended {
			return nil
		}
	case KindAge:
		s.value = d.Age.Seconds()
		if frozen {
			s.value -= d.Silent.Seconds()
		}
		if s.value < leastAge || frozen && quiet >= inUse {
			return nil
		}
	case KindIdle:
		s.value, s.atMost = quiet, frozen
		if quiet < leastIdle {
			return nil
		}
	}
	return s
}

// found is a limit that evidence shows.
type found struct {
	at, share float64
	deaths    int
	unsure    bool
	spread    float64
}

// find looks for a limit in the evidence. A limit has two marks: some deaths agree, and no
// carrier has lived longer, because lived takes away what is below. So only the greatest
// values can be a limit. Smaller ones are deaths from other causes.
func (l *Learner) find(now time.Time, m *limit) found {
	kind := KindNone
	for i := range l.lives {
		if m == &l.lives[i] {
			kind = kindOf[i]
		}
	}
	var exact []sign
	atMost, atMostLeast, atMostFirst := 0, math.Inf(1), m.seen
	for _, s := range m.evidence {
		if !s.atMost {
			exact = append(exact, s)
			continue
		}
		atMost++
		atMostLeast, atMostFirst = min(atMostLeast, s.value), min(atMostFirst, s.seen)
	}
	if atMost >= 4 && atMost == m.seen-atMostFirst+1 {
		return found{at: atMostLeast, share: max(0.5, min(0.75, m.gap/atMostLeast)), deaths: atMost, unsure: atMost < 6, spread: agree}
	}
	slices.SortFunc(exact, func(a, b sign) int { return int(math.Copysign(1, b.value-a.value)) })
	noise, share := 0.0, 0.9
	switch kind {
	case KindBytes:
		noise, share = l.noise, 15.0/16
	case KindIdle:
		share = 0.75
	}
	n := len(exact)
	if n == 0 {
		return found{}
	}
	most := exact[0].value
	if last := m.evidence[len(m.evidence)-1]; m.former > 0 && !last.atMost && now.Sub(m.formerAt) < formerFor &&
		math.Abs(last.value-m.former) <= agree/2*m.former {
		return found{at: min(last.value, m.former), share: share, deaths: 1, unsure: true, spread: 0}
	}
	frozen, first := true, m.seen
	best := found{}
	for k := 1; k <= n; k++ {
		s := exact[k-1]
		frozen, first = frozen && s.frozen, min(first, s.seen)
		apart := max(most-s.value-noise, 0) / most
		if apart > agree {
			break
		}
		f := found{at: s.value, share: share, deaths: k, spread: apart}
		// Of the deaths since the first of these, k agree.
		p := chance(m.seen-first+1, k, max(apart, 0.01))
		switch {
		case p <= sure:
		case kind == KindBytes && frozen && most <= mostFew && k >= 2 && p <= freeze:
			f.unsure = true
		case kind == KindBytes && k == 1 && s.typical:
			f.unsure = true
		default:
			continue
		}
		best = f
	}
	return best
}

// chance is about the probability that k of n values that have nothing to do with each
// other lie within the share apart below the greatest.
func chance(n, k int, apart float64) float64 {
	choose := 1.0
	for i := range k {
		choose = choose * float64(n-i) / float64(i+1)
	}
	return min(1, float64(k)*choose*math.Pow(apart, float64(k-1)))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
