package bridges

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/race"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const (
	// A bridge that has failed rests: others are asked first. The first rest is this
	// long, each further one twice as long as the one before, up to maxRest.
	firstRest = 5 * time.Second
	maxRest   = 5 * time.Minute
	// measuredFor is how long a measured time counts under pick = "fastest".
	measuredFor = 5 * time.Minute
	// mostLate is how many requests in a row may be without an answer for too long before
	// the bridge rests, although its far end is there. One may be the destination's fault.
	mostLate = 3
	// A bridge that took so long to fail answers nothing, whatever its transport says.
	longFailure = 10 * time.Second
)

// health has what the requests over a bridge have shown.
type health struct {
	mu       sync.Mutex
	fails    int  // since the last success
	worked   bool // there was a success, and no failure since
	resting  bool
	until    time.Time     // the end of the rest
	trial    bool          // tryAgain runs
	tried    time.Time     // when it last began
	silent   bool          // if resting: nothing answers, so another request would only wait
	why      error         // the failure for which it rests
	lates    int           // requests since the last answer that had none for too long
	answer   time.Duration // from a request to its answer; 0: not known
	measured time.Time     // when answer was
}

// ok notes that a request was answered after took. It tells whether the bridge rested.
func (h *health) ok(took time.Duration) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	news = h.resting
	h.fails, h.lates, h.resting, h.why, h.worked = 0, 0, false, nil, true
	if h.answer == 0 || time.Since(h.measured) > measuredFor {
		h.answer = took
	} else {
		h.answer += (took - h.answer) / 4
	}
	h.measured = time.Now()
	return news
}

// recovered ends the bridge's rest, and tells whether it rested. It says nothing of how
// long an answer takes. So the next rest of a bridge that stays late is longer, whatever
// it says when nothing is asked.
func (h *health) recovered() (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	news = h.resting
	h.resting, h.why, h.worked = false, nil, true
	if h.lates < mostLate {
		h.fails = 0
	}
	return news
}

// late notes that a request had no answer for longer than it may take. It tells whether
// the bridge stays late, with one request after the other.
func (h *health) late() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lates++
	return h.lates >= mostLate
}

// bad makes the bridge rest, and tells whether it did not rest before. If the bridge
// rests already, only the error is noted: many requests may have met the same failure. took
// is how long it took to fail.
func (h *health) bad(err error, took time.Duration) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.resting && time.Now().Before(h.until) {
		h.why = err
		return false
	}
	pause := min(firstRest<<min(h.fails, 10), maxRest)
	h.fails++
	h.resting, h.why, h.worked = true, err, false
	h.silent = took >= longFailure || answer.Of(err) == answer.Timeout
	h.until = time.Now().Add(pause - time.Duration(rand.Int64N(int64(pause/4))))
	return true
}

// slow notes that an answer takes longer than the time than. How much longer is not
// known. It is counted as twice the time, so that the bridge comes after the faster
// one.
func (h *health) slow(than time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = max(h.answer, 2*than)
	h.measured = time.Now()
}

// dead tells whether the bridge is known to answer nothing.
func (h *health) dead() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.resting && h.silent
}

// sinceTrial is the time since the last trial began.
func (h *health) sinceTrial() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.tried)
}

// cause is the failure for which the bridge rests; nil: it does not rest.
func (h *health) cause() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.resting {
		return nil
	}
	return h.why
}

// reviveEvery is the shortest time between two trials of a bridge that answers nothing.
const reviveEvery = 3 * time.Second

// reviveWait is how long a request waits for such a trial. A bridge that works again
// answers in a few round trips.
const reviveWait = time.Second

// revive tells whether a request over these bridges has a chance. If none of them answered
// anything lately, they are tried in the background, and the request waits for that only
// for a short time.
func revive(ctx context.Context, order []*Bridge, patience time.Duration) bool {
	alive := func() bool {
		return slices.ContainsFunc(order, func(b *Bridge) bool { return !b.health.dead() })
	}
	if alive() {
		return true
	}
	for _, b := range order {
		if b.health.sinceTrial() > reviveEvery {
			b.tryAgain()
		}
	}
	limit := time.NewTimer(min(patience, reviveWait))
	defer limit.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			if alive() {
				return true
			}
		case <-limit.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// askedFor is for how long after its last request a bridge that has failed is tried without
// one. It is as long as a session keeps a carrier ready.
const askedFor = 10 * time.Minute

// due is the bridge of the route that is tried now without a request; nil: none. There is one
// only while none of the route's bridges works. People and monitors then see that a way is
// back, also if no program asks for anything. A bridge that was not asked lately is left
// alone: a censor would learn of it.
func (r *Route) due() (next *Bridge) {
	now := time.Now()
	var first time.Time
	for _, b := range r.via {
		if since := b.dueSince(now); !since.IsZero() && (next == nil || since.Before(first)) {
			next, first = b, since
		}
	}
	if next == nil || slices.ContainsFunc(r.via, func(b *Bridge) bool { return b.Status().Worked }) {
		return nil
	}
	return next
}

// dueSince is since when a trial of the bridge without a request is due; zero: it is not.
func (b *Bridge) dueSince(now time.Time) time.Time {
	if now.Sub(time.Unix(0, b.asked.Load())) > askedFor {
		return time.Time{}
	}
	far := b.sessionStatus()
	h := &b.health
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.trial:
	case h.resting && now.After(h.until):
		return h.until
	case !h.resting && !far.Seeks.IsZero() && !far.Seeking && now.Sub(far.Seeks) >= silentFor:
		return far.Seeks // its session has given up
	}
	return time.Time{}
}

// A verdict is a bridge's health at one moment.
type verdict struct {
	resting bool
	until   time.Time
	answer  time.Duration
	fresh   bool // answer is known, and was measured lately
}

func (h *health) verdict() verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	return verdict{h.resting, h.until, h.answer, h.answer > 0 && time.Since(h.measured) < measuredFor}
}

// choose puts a route's bridges in the order in which they are asked. First come the
// bridges that work, by the route's preference. Then come the bridges that rest: the
// one whose rest ends first is the first of them. A bridge whose rest is over is tried
// in the background, beside the request.
func choose(via []*Bridge, pick config.Pick) []*Bridge {
	if len(via) == 1 {
		return via
	}
	type candidate struct {
		b       *Bridge
		v       verdict
		streams int64
		leaving bool
		told    bool
	}
	cs := make([]candidate, len(via))
	for i, b := range via {
		far := b.sessionStatus()
		cs[i] = candidate{b, b.health.verdict(), b.active.Load(), far.Leaving, b.config().Told != ""}
		if !cs[i].v.resting && (far.Suspect || !far.Detached.IsZero()) {
			cs[i].v.resting, cs[i].v.until = true, time.Now()
		}
	}
	now := time.Now()
	// While what the user wrote works, nobody needs to know whether another way works again.
	works := slices.ContainsFunc(cs, func(c candidate) bool { return !c.told && !c.v.resting })
	for _, c := range cs {
		if c.v.resting && now.After(c.v.until) && !(c.told && works) {
			c.b.tryAgain()
		}
	}
	slices.SortStableFunc(cs, func(x, y candidate) int {
		if x.v.resting && y.v.resting {
			return x.v.until.Compare(y.v.until)
		}
		order := cmp.Or(
			falseFirst(x.v.resting, y.v.resting),
			falseFirst(x.leaving, y.leaving), // its box is about to stop
			falseFirst(x.told, y.told))       // what the user wrote comes first
		switch pick {
		case config.PickFastest: // the one that is not known is measured
			return cmp.Or(order, falseFirst(x.v.fresh, y.v.fresh), cmp.Compare(x.v.answer, y.v.answer))
		case config.PickSpread:
			return cmp.Or(order, cmp.Compare(x.streams, y.streams))
		}
		return order
	})
	out := make([]*Bridge, len(cs))
	for i, c := range cs {
		out[i] = c.b
	}
	return out
}

// falseFirst compares two conditions. The one that is false comes first.
func falseFirst(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// unmeasured tells how many bridges at the head of order are asked at once under
// pick = "fastest": all whose time is not known, and the first one whose time is known.
// So a bridge is measured, and no request waits longer for that.
func unmeasured(order []*Bridge) int {
	n := 0
	for n < len(order) {
		if v := order[n].health.verdict(); v.fresh || v.resting || order[n].config().Told != "" {
			break
		}
		n++
	}
	if n > 0 && n < len(order) && !order[n].health.verdict().resting && order[n].config().Told == "" {
		n++
	}
	return max(n, 1)
}

// openFirst opens t over the first bridge that answers. The first bridges of order, as
// many as together says, are asked at once. The next one is asked when a bridge has
// failed, or when none has answered for stagger. The first answer of a far end ends the
// search, also a refusal. An answer about the far end itself does not.
func openFirst(ctx context.Context, order []*Bridge, together int, stagger time.Duration, t routes.Target) (stream.Conn, error) {
	r := race.Race[*Bridge, stream.Conn]{
		Try:      func(ctx context.Context, b *Bridge) (stream.Conn, error) { return b.open(ctx, t) },
		Drop:     func(c stream.Conn) { c.Close() },
		Go:       order[0].m.spawn, // the manager waits for the attempts that are given up
		Stagger:  stagger,
		Together: together,
		Final:    answered,
	}
	o := r.Run(ctx, order, nil)
	switch {
	case o.Err == nil || answered(o.Err):
		for _, a := range o.Running {
			a.Candidate.beaten(time.Since(a.Since), stagger)
		}
		return o.Value, o.Err
	case errors.Is(o.Err, race.ErrNone):
		reason := reasonOf(o.Failed)
		if reason == answer.Timeout && ctx.Err() == nil && !slices.ContainsFunc(order, (*Bridge).alive) {
			reason = answer.NoBridge // it is not the destination that has not answered
		}
		return nil, answer.New(reason, errors.Join(o.Failed...))
	}
	return nil, answer.New(answer.Timeout, o.Err)
}

// answered tells whether err is a far end's answer about the destination. Another answer is
// about the far end: that it is at its limit, can't do what it is asked for, or makes no
// sense.
func answered(err error) bool {
	if _, ok := errors.AsType[*session.Refusal](err); !ok {
		return false
	}
	switch answer.Of(err) {
	case answer.ExitPolicy, answer.Unreachable, answer.NotFound, answer.NoNames, answer.NameFailed, answer.Refused, answer.Timeout:
		return true
	}
	return false
}

// judge updates the health of b after a request that took so long and ended with err.
// It tells whether the bridge begins to rest.
func (b *Bridge) judge(ctx context.Context, err error, took time.Duration) (rests bool) {
	if err == nil || answered(err) {
		b.works(b.health.ok(took))
		return false
	}
	if _, ok := errors.AsType[*session.Refusal](err); ok {
		switch answer.Of(err) {
		case answer.Limit: // it is about to stop, or at its limit
			return false
		case answer.BadRequest: // it does not know this kind of address
			return false
		}
		return b.health.bad(err, took)
	}
	if ctx.Err() != nil {
		l := b.settings.Load().limits
		switch {
		case !errors.Is(ctx.Err(), context.DeadlineExceeded) && (b.session == nil || errors.Is(err, context.Cause(ctx))):
			return false // the client has left, or another bridge was faster: no failure is known
		case took < min(l.Stagger, l.Dial/2):
			return false // most of the time went to the bridges before it
		case b.alive():
			return false // the destination does not answer, and the bridge does
		}
	}
	return b.health.bad(err, took)
}

// beaten updates the health of b when another bridge was faster. b had the request for
// took.
func (b *Bridge) beaten(took, stagger time.Duration) {
	if took < stagger {
		b.health.slow(took)
		return
	}
	stays := b.health.late()
	err := answer.Errorf(answer.Timeout, "no answer for %v", took.Round(100*time.Millisecond))
	if b.alive() {
		b.health.slow(took)
		if !stays {
			return
		}
		b.learned.forget()
		err = answer.Errorf(answer.NoBridge, "the far end is there, and has not answered any of the last %d requests", mostLate)
	}
	if b.health.bad(err, took) {
		b.failed(err, took)
	}
}

// reasonOf returns the reason of all errors if it is the same for all, and is Timeout,
// Limit, BadRequest or User. Otherwise it returns NoBridge.
func reasonOf(errs []error) answer.Reason {
	reason := answer.Of(errs[0])
	for _, err := range errs {
		if answer.Of(err) != reason {
			return answer.NoBridge
		}
	}
	switch reason {
	case answer.Timeout, answer.Limit, answer.BadRequest, answer.User:
		return reason
	}
	return answer.NoBridge
}
