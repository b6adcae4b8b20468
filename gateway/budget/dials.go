package budget

import (
	"math"
	"slices"
	"time"
)

const (
	// dialsKept and dialsFor bound what is remembered of attempts.
	dialsKept = 1024
	dialsFor  = 15 * time.Minute
	// rateGuess is the time of a rate until more is known, rateMost the longest one
	// that is believed, and countMost the greatest number.
	rateGuess = 30 * time.Second
	rateMost  = 2 * time.Minute
	countMost = 64
	// asksAgain is how long to wait where only the end of a carrier helps.
	asksAgain = time.Second
)

// dials has the attempts to open carriers, and the limits that they have shown.
type dials struct {
	log    []*attempt // by time
	starts []time.Time
	rate   learnedRate
	atOnce learnedNumber
}

// An attempt is one dial.
type attempt struct {
	at     time.Time
	alive  int // other carriers at that time
	result result
}

type result uint8

const (
	unknown result = iota
	worked
	silent
)

// A learnedRate is a limit on new carriers in a time. Count 0: none is learned.
type learnedRate struct {
	Rate
	dialLimit
}

// A learnedNumber is a limit on carriers at a time. count 0: none is learned.
type learnedNumber struct {
	count int
	dialLimit
}

// A dialLimit is what the two have in common.
type dialLimit struct {
	deaths int // dials that nobody answered
	broken int // of these, dials that kept to the limit
	since  time.Time
	probe
}

func (d *dials) forget() {
	d.log = nil
	d.rate, d.atOnce = learnedRate{}, learnedNumber{}
}

func (d *dials) forgetConfigured(c Limits) {
	if c.New != (Rate{}) {
		d.rate = learnedRate{}
	}
	if c.AtOnce != 0 {
		d.atOnce = learnedNumber{}
	}
}

func (d *dials) begin(now time.Time, alive int) *attempt {
	a := &attempt{at: now, alive: alive}
	d.log = append(d.log, a)
	for len(d.log) > dialsKept || now.Sub(d.log[0].at) > dialsFor {
		d.log = d.log[1:]
	}
	d.starts = append(d.starts, now)
	if n := len(d.starts); n > 2*dialsKept {
		d.starts = slices.Clone(d.starts[n-dialsKept:])
	}
	return a
}

// opened notes that a dial has worked. probe is the limit that it went past.
func (d *dials) opened(now time.Time, a *attempt, probe Kind) {
	a.result = worked
	if probe != KindNew && probe != KindAtOnce {
		return
	}
	// The limit is no more, and the dials that nobody answered are no evidence any longer.
	d.rate, d.atOnce = learnedRate{}, learnedNumber{}
	d.log = slices.DeleteFunc(d.log, func(a *attempt) bool { return a.result == silent })
}

// failed notes that nobody has answered a dial.
func (d *dials) failed(now time.Time, a *attempt, probe Kind) {
	a.result = silent
	for kind, limit := range map[Kind]*dialLimit{KindNew: &d.rate.dialLimit, KindAtOnce: &d.atOnce.dialLimit} {
		if probe == kind {
			limit.deaths++
			limit.confirm(now)
		} else {
			limit.broken++
		}
	}
}

// wait is how long it takes until one more start keeps to r. A start reaches the network a
// little later or sooner than the one before: that is what slack is for.
func (d *dials) wait(now time.Time, r Rate) time.Duration {
	if r.Count <= 0 || len(d.starts) < r.Count {
		return 0
	}
	slack := min(r.Per/20, time.Second)
	return max(0, r.Per+slack-now.Sub(d.starts[len(d.starts)-r.Count]))
}

// mayDial returns how long to wait before a carrier may be begun, and the kind of the
// limit that a carrier begun now goes past on purpose.
func (l *Learner) mayDial(now time.Time) (Kind, time.Duration) {
	d := &l.dials
	number := l.alive + l.dialing
	if n := l.configured.AtOnce; n > 0 && number >= n {
		return KindNone, asksAgain
	}
	if l.configured.New != (Rate{}) {
		if wait := d.wait(now, l.configured.New); wait > 0 {
			return KindNone, wait
		}
	} else if wait := d.wait(now, DefaultNew); wait > 0 {
		return KindNone, wait
	}
	if n := d.atOnce.count; n > 0 && number >= n {
		if number > n || !d.atOnce.due(now) {
			return KindNone, asksAgain
		}
		return KindAtOnce, 0
	}
	if wait := d.wait(now, d.rate.Rate); wait > 0 {
		if !d.rate.due(now) {
			return KindNone, min(wait, max(d.rate.next.Sub(now), time.Millisecond))
		}
		return KindNew, 0
	}
	return KindNone, 0
}

// learnDials looks for a limit on new carriers in the attempts so far.
func (l *Learner) learnDials(now time.Time) {
	d := &l.dials
	var failures []*attempt
	var successes []*attempt
	for _, a := range d.log {
		switch a.result {
		case worked:
			successes = append(successes, a)
		case silent:
			failures = append(failures, a)
		}
	}
	if len(failures) < 2 {
		return
	}
	rate, number := Rate{}, 0
	if l.configured.New == (Rate{}) {
		rate = findRate(successes, failures)
	}
	if l.configured.AtOnce == 0 {
		number = findNumber(successes, failures)
	}
	// One explanation is enough. A limit that was kept to while dials went unanswered gives
	// way to the other one.
	switch {
	case rate == Rate{} || number == 0:
	case d.atOnce.count > 0 && d.atOnce.broken < 2, d.rate.Count > 0 && d.rate.broken >= 2:
		rate = Rate{}
	default:
		number = 0
	}
	fresh := dialLimit{deaths: len(failures), since: now}
	fresh.start(now, probeFirst)
	switch {
	case rate == Rate{}:
		d.rate = learnedRate{}
	case d.rate.Count == 0:
		d.rate = learnedRate{rate, fresh}
	default:
		d.rate.Rate = rate
	}
	switch {
	case number == 0:
		d.atOnce = learnedNumber{}
	case d.atOnce.count == 0:
		d.atOnce = learnedNumber{number, fresh}
	default:
		d.atOnce.count = number
	}
}

// findRate looks for a rate that explains all: before each dial that nobody answered there
// were count successes within the time, before each success there were fewer.
func findRate(successes, failures []*attempt) Rate {
	for count := 1; count <= min(countMost, len(successes)); count++ {
		above, below := time.Duration(0), time.Duration(math.MaxInt64) // the time is between them
		for _, f := range failures {
			above = max(above, sinceNth(successes, f.at, count))
		}
		for _, s := range successes {
			below = min(below, sinceNth(successes, s.at, count))
		}
		if above <= rateMost && float64(above) <= 0.8*float64(below) {
			return Rate{count, min(max(rateGuess, above+above/4), below)}
		}
	}
	return Rate{}
}

// sinceNth is the time from the nth last success before at. If there are fewer, it is very
// long.
func sinceNth(successes []*attempt, at time.Time, n int) time.Duration {
	i, _ := slices.BinarySearchFunc(successes, at, func(a *attempt, at time.Time) int { return a.at.Compare(at) })
	if i < n {
		return math.MaxInt64
	}
	return at.Sub(successes[i-n].at)
}

// findNumber looks for a number that explains all: no dial with fewer carriers went
// unanswered, no dial with as many worked, and one with fewer worked afterwards.
func findNumber(successes, failures []*attempt) int {
	least, most := math.MaxInt, 0
	for _, f := range failures {
		least = min(least, f.alive)
	}
	again := false
	for _, s := range successes {
		most = max(most, s.alive)
		again = again || s.at.After(failures[0].at)
	}
	if least < 1 || most >= least || !again {
		return 0
	}
	return least
}
