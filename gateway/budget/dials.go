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
	log    []*attempt // in their order
	starts []time.Time
	silent int  // attempts in log that nobody answered
	cut    bool // log does not go back to the first attempt
	rate   learnedRate
	atOnce learnedNumber
}

// An attempt is one dial.
type attempt struct {
	at     time.Time
	number int // in the order
	alive  int // other carriers at that time, without those that came to nothing
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
	deaths int       // dials that nobody answered
	broken int       // of these, dials that kept to the limit
	since  time.Time // zero: there is no limit
	probe
}

func (d *dials) forget() {
	d.log, d.silent, d.cut = nil, 0, false
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
	if n := len(d.log); n > 0 {
		a.number = d.log[n-1].number + 1
	}
	d.log = append(d.log, a)
	for len(d.log) > dialsKept || now.Sub(d.log[0].at) > dialsFor {
		if d.log[0].result == silent {
			d.silent--
		}
		d.log, d.cut = d.log[1:], true
	}
	d.starts = append(d.starts, now)
	if n := len(d.starts); n > 2*dialsKept {
		d.starts = slices.Clone(d.starts[n-dialsKept:])
	}
	return a
}

// opened notes that a dial has worked. probe is the limit that it went past.
func (d *dials) opened(a *attempt, probe Kind) {
	a.result = worked
	if probe != KindNew && probe != KindAtOnce {
		return
	}
	if took := d.took(a); probe == KindNew && took > d.rate.Per*2/3 {
		// The limit is there, but the time is shorter.
		d.rate.Per = min(d.rate.Per, took)
		return
	}
	// The limit is no more, and the dials that nobody answered are no evidence any longer.
	d.rate, d.atOnce = learnedRate{}, learnedNumber{}
	d.log = slices.DeleteFunc(d.log, func(a *attempt) bool { return a.result == silent })
	d.silent = 0
}

// took is the time in which as many carriers were begun as the learned rate allows, before
// a.
func (d *dials) took(a *attempt) time.Duration {
	n := 0
	for _, before := range slices.Backward(d.log) {
		if before.number < a.number && before.result == worked {
			if n++; n == d.rate.Count {
				return a.at.Sub(before.at)
			}
		}
	}
	return 0
}

// nothing notes that a has come to nothing: those that were begun later had one less
// beside them.
func (d *dials) nothing(a *attempt) {
	for _, later := range slices.Backward(d.log) {
		if later.number <= a.number {
			break
		}
		later.alive--
	}
}

// failed notes that nobody has answered a dial.
func (d *dials) failed(now time.Time, a *attempt, probe Kind) {
	a.result = silent
	if len(d.log) > 0 && a.number >= d.log[0].number {
		d.silent++
	}
	for _, limit := range []*dialLimit{&d.rate.dialLimit, &d.atOnce.dialLimit} {
		switch {
		case limit.since.IsZero(), a.at.Before(limit.since):
		case probe == KindNew && limit == &d.rate.dialLimit, probe == KindAtOnce && limit == &d.atOnce.dialLimit:
			limit.deaths++
			limit.confirm(now)
		default:
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
	wait := d.wait(now, d.rate.Rate)
	if wait > 0 && d.rate.due(now) && d.full(now) {
		return KindNew, 0
	}
	return KindNone, wait
}

// full tells whether one more dial goes past the learned rate, if the network counts
// neither the dials that it does not let through nor what the slack is for.
func (d *dials) full(now time.Time) bool {
	n := 0
	for _, a := range slices.Backward(d.log) {
		if now.Sub(a.at) >= d.rate.Per-d.rate.Per/10 {
			break
		}
		if a.result == worked {
			n++
		}
	}
	return n >= d.rate.Count
}

// learnDials looks for a limit on new carriers in the attempts so far.
func (l *Learner) learnDials(now time.Time) {
	d := &l.dials
	if d.silent < 2 {
		return
	}
	var failures, successes []*attempt
	for _, a := range d.log {
		switch a.result {
		case worked:
			successes = append(successes, a)
		case silent:
			// It takes the successes before a failure to say what it is about.
			if !d.cut || a.at.Sub(d.log[0].at) > rateMost {
				failures = append(failures, a)
			}
		}
	}
	if len(failures) < 2 {
		return
	}
	rate, number := Rate{}, 0
	if l.configured.New == (Rate{}) {
		rate = findRate(successes, failures, d.rate.Rate)
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
func findRate(successes, failures []*attempt, known Rate) Rate {
	for count := 1; count <= min(countMost, len(successes)); count++ {
		above, below := time.Duration(0), time.Duration(math.MaxInt64) // the time is between them
		for _, f := range failures {
			above = max(above, sinceNth(successes, f, count))
		}
		if above > rateMost {
			continue
		}
		for i := count; i < len(successes) && below > above; i++ {
			below = min(below, successes[i].at.Sub(successes[i-count].at))
		}
		// By chance, above may be a little less than below. What is believed already needs
		// no distance.
		share := 0.8
		if count == known.Count {
			share = 1
		}
		if float64(above) < share*float64(below) {
			return Rate{count, min(max(rateGuess, above+above/4), below)}
		}
	}
	return Rate{}
}

// sinceNth is the time from the nth last success before a. If there are fewer, it is very
// long.
func sinceNth(successes []*attempt, a *attempt, n int) time.Duration {
	i, _ := slices.BinarySearchFunc(successes, a.number, func(s *attempt, number int) int { return s.number - number })
	if i < n {
		return math.MaxInt64
	}
	return a.at.Sub(successes[i-n].at)
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
		again = again || s.number > failures[0].number
	}
	if least < 1 || most >= least || !again {
		return 0
	}
	return least
}
