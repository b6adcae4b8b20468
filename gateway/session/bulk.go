package session

import (
	"math"
	"time"
)

// A bulk finds out whether another carrier makes a transfer faster.
type bulk struct {
	at     time.Time // of the last measurement
	total  int64     // bytes, at that time
	rate   float64   // bytes a second, up to that time
	recent []float64 // the last rates that were about the same, with as many carriers as now

	trial bool      // another carrier is being tried
	base  float64   // the rate before the trial
	count int       // how many carriers there were then
	begun time.Time // when the trial's carrier was there, or gone; zero: not yet
	from  int64     // bytes, at that time

	fewer  *lane         // it goes, to see whether one carrier less does, too; nil: no such trial
	review time.Time     // no such trial before
	calm   time.Duration // between two of them

	pause time.Duration // between two trials
	until time.Time     // no trial before
}

const (
	bulkLook = 500 * time.Millisecond
	// No carrier is added for a transfer that is slower, or faster: the one is no bulk, the
	// other needs no help.
	bulkLeast = 32 << 10
	bulkMost  = 8 << 20
	// bulkRecent is how many measurements the rate before a trial is taken from.
	bulkRecent = 4
	// A trial needs more than so many measurements before that were about the same, and lasts
	// so long.
	bulkSteady = 2
	bulkTrial  = time.Second
	// How many carriers more than autoMax there may be.
	bulkExtra = 2

	// After a trial that shows no help there is another one soon, for links are not steady,
	// and then less and less often.
	firstPause = 5 * time.Second
	lastPause  = 10 * time.Minute
	// An extra carrier that has helped is doubted again after firstCalm, then less often.
	firstCalm = 15 * time.Second
	lastCalm  = 2 * time.Minute
)

// more adds a carrier where a transfer is slow and steady, as if each connection were
// slowed. If the transfer does not become faster, the carrier goes again.
func (v *owned) more(p *Path, good []*lane, now time.Time) (next time.Duration) {
	b := &v.bulk
	took := now.Sub(b.at)
	if took < bulkLook {
		return bulkLook - took
	}
	total := v.c.o.Traffic.In.Load() + v.c.o.Traffic.Out.Load()
	old := b.rate
	b.rate = float64(total-b.total) / took.Seconds()
	b.at, b.total = now, total
	if took > 4*bulkLook { // nobody looked for a while
		b.recent = nil
		return bulkLook
	}
	b.recent = append(b.recent, b.rate)
	if n := len(b.recent); n > bulkRecent {
		b.recent = b.recent[n-bulkRecent:]
	}
	extra := newestExtra(good)
	switch {
	case b.trial:
		v.tryMore(good, now)
	case b.fewer != nil:
		v.tryFewer(p, now)
	case extra != nil && b.rate >= bulkLeast && !b.review.IsZero() && now.After(b.review) && len(good) > 1:
		b.fewer, b.base, b.count, b.begun = extra, b.mean(), len(good), time.Time{}
		v.last(extra)
	case b.rate < bulkLeast || b.rate > bulkMost:
		b.recent = nil
		if b.rate == 0 {
			return 2 * bulkLook
		}
	case math.Abs(b.rate-old) > b.rate/5:
		b.recent = []float64{b.rate}
	case len(b.recent) <= bulkSteady, now.Before(b.until), len(v.attempts) > 0, v.c.full(v, bulkExtra):
	case v.c.dial(v, p, now, true) == 0:
		b.trial, b.base, b.count, b.begun = true, b.mean(), len(good), time.Time{}
	}
	return bulkLook
}

// tryMore looks at a trial.
func (v *owned) tryMore(good []*lane, now time.Time) {
	b := &v.bulk
	switch {
	case len(v.attempts) > 0:
		return
	case b.begun.IsZero():
		b.begun, b.from = now, b.total
		return
	case now.Sub(b.begun) < bulkTrial:
		return
	}
	rate := b.measured(now)
	b.trial = false
	if rate >= b.base*(1+0.5/float64(max(b.count, 1))) {
		b.pause = 0
		b.recent = append(b.recent, rate) // it helps: perhaps one more does, too, at the next look
		b.calm = firstCalm
		b.review = now.Add(b.calm)
		return
	}
	b.noHelp(now)
	if extra := newestExtra(good); extra != nil && len(good) > 1 {
		v.last(extra)
	}
}

// tryFewer looks whether the transfer has become slower since a carrier went. The link may
// be slow now, and not each connection.
func (v *owned) tryFewer(p *Path, now time.Time) {
	b := &v.bulk
	switch {
	case !b.fewer.gone: // it brings what is under way
		return
	case b.begun.IsZero():
		b.begun, b.from = now, b.total
		return
	case now.Sub(b.begun) < 2*bulkTrial:
		return
	}
	rate := b.measured(now)
	b.fewer = nil
	switch {
	case rate < bulkLeast: // the transfer has ended
		b.recent = nil
	case rate >= b.base*(1-0.5/float64(max(b.count, 1))):
		b.noHelp(now) // perhaps one less does, too: review is over
	default:
		b.calm = min(2*b.calm, lastCalm)
		b.review = now.Add(b.calm)
		v.c.dial(v, p, now, true)
	}
}

// measured ends a trial, and returns the rate in it. The next one begins with that.
func (b *bulk) measured(now time.Time) (rate float64) {
	rate = float64(b.total-b.from) / now.Sub(b.begun).Seconds()
	b.recent = []float64{rate}
	return rate
}

// noHelp notes that another carrier makes the transfer no faster.
func (b *bulk) noHelp(now time.Time) {
	b.pause = min(max(firstPause, 3*b.pause), lastPause)
	b.until = now.Add(b.pause)
}

// mean is the rate before a trial.
func (b *bulk) mean() float64 {
	sum := 0.0
	for _, r := range b.recent {
		sum += r
	}
	return sum / float64(len(b.recent))
}

// newestExtra is the youngest extra carrier of good; nil: there is none.
func newestExtra(good []*lane) (newest *lane) {
	for _, l := range good {
		if l.extra && (newest == nil || l.number > newest.number) {
			newest = l
		}
	}
	return newest
}
