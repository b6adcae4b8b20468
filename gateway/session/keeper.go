package session

import (
	"slices"
	"time"

	"ptgate/gateway/budget"
)

const (
	// A session keeps one carrier ready for this long after its last use.
	warmFor = 10 * time.Minute
	// Other carriers without streams are closed after this time.
	spareFor = time.Minute
	// If the youngest attempt is older than this, another one is started beside it. When a
	// broken link works again, a new connection is made long before TCP repeats the lost
	// packets of an old one.
	attemptAge  = 2 * time.Second
	maxAttempts = 4
	// The same, if the other attempt takes another path.
	otherAge = time.Second
	// With streamsEach streams on every carrier, another carrier is opened. autoMax is the
	// most carriers where Settings.Carriers is 0. While none of them answers, autoSuspect
	// more are allowed. With a budget of bytes, a carrier does not last, and there may be
	// budgetMax.
	streamsEach = 4
	autoMax     = 4
	autoSuspect = 4
	budgetMax   = 32
	// For this long after a failure, a carrier is opened only when a stream needs it: many
	// failing connections are conspicuous, and a burden for the network.
	growPause = 15 * time.Second
	// A carrier that owes an answer for so long is given up if another one works.
	giveUpAfter = time.Second
	// If no other one is allowed, it is given up after this time.
	makeRoomAfter = 3 * time.Second
	// When a carrier owes an answer for too long, the others are asked, and there is no new
	// attempt if one of them answers in this time.
	doubtFor = 300 * time.Millisecond
	// passedEvery is how often the budget hears what a carrier has lived through.
	passedEvery = 200 * time.Millisecond
	// After a failure, the next attempt waits at least firstRetry, then longer, up to
	// lastRetry.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 10 * time.Second
	// While the far end is about to stop, or has just stopped, it may be back at any moment.
	lastRetryLeaving = 500 * time.Millisecond
	// For so long requests wait for a far end that has stopped: long enough to start it again,
	// and not so long that a person wonders.
	restartFor = 10 * time.Second
	// A client that was used lately waits for such a far end also without a request.
	usedLately = time.Minute
	// hopeFor is how long the streams of a session that the far end has never answered wait
	// while some attempts fail and others run. A person has to hear of it some day, and TCP
	// has repeated its first packets four times by then.
	hopeFor = 15 * time.Second
	// hopeForAgain is the same for new streams of a session whose far end has answered before:
	// such a link comes back more often. The streams that are open wait for Settings.Resume.
	hopeForAgain = 30 * time.Second
	// tellAfter is how long a session is without a carrier before the owner is told. Most
	// have another one sooner.
	tellAfter = time.Second
	// noLook is when there is nothing to do.
	noLook = time.Hour
)

// keep opens and closes carriers, as they are needed.
func (c *Client) keep() {
	t := time.NewTimer(noLook)
	defer t.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.wake:
		case <-t.C:
		}
		c.mu.Lock()
		next := noLook
		c.looked = time.Now()
		if !c.closed {
			for _, v := range slices.Clone(c.sessions) {
				next = min(next, c.look(v, time.Now()))
			}
		}
		c.mu.Unlock()
		t.Reset(max(next, time.Millisecond))
	}
}

// needed tells whether the session needs a carrier.
func (c *Client) needed(v *owned, now time.Time) bool {
	return len(v.streams) > 0 || v == c.next || v == c.current && v.stage == 0 && (v.met || v.fails == 0) && c.warm(v, now)
}

// warm tells whether a carrier is kept ready although nobody needs it now. It is not
// replaced again and again where the network lets none live long.
func (c *Client) warm(v *owned, now time.Time) bool {
	limits := v.own.Budget.Limits(now)
	limit := warmFor
	for _, d := range []time.Duration{limits.Age, limits.Idle} {
		if d > 0 {
			limit = min(limit, d)
		}
	}
	return !c.closed && !c.retired && now.Sub(c.lastUse) < limit
}

// look does what is due for one session, and tells when to look again.
func (c *Client) look(v *owned, now time.Time) (next time.Duration) {
	if v.err != nil {
		return noLook
	}
	if v != c.current && v != c.next && len(v.streams) == 0 {
		v.shut(errClosed)
		return noLook
	}
	next = noLook
	c.follow(v)
	if v.follows && !v.met && !v.expected.IsZero() {
		wait := v.expected.Sub(now)
		if wait <= 0 {
			v.fail(c.cause(c.why))
			return noLook
		}
		next = wait
	}
	if good := v.goodLanes(); len(good) > 0 {
		v.back(false)
		v.tried = 0
		return min(next, v.tend(good, now))
	}
	if v.away.IsZero() {
		v.away = now
	}
	if v.met && len(v.streams) > 0 && !v.noticed && c.o.Detached != nil {
		if wait := tellAfter - now.Sub(v.away); wait > 0 {
			next = min(next, wait)
		} else {
			v.noticed = true
			c.o.Detached()
		}
	}
	if v.met && !slices.ContainsFunc(v.lanes, func(l *lane) bool { return l.used.met }) {
		left := time.Duration(0)
		if v.resume {
			left = c.settings.Load().Resume - now.Sub(v.away)
		}
		switch {
		case left <= 0 && v.resume:
			v.fail(errDetached)
			return noLook
		case left <= 0:
			v.forget(errDetached, now)
			return noLook
		}
		next = min(next, left)
	}
	if !c.needed(v, now) {
		return next
	}
	for _, l := range v.lanes {
		if asked := l.used.conn.Overdue(); asked > 0 && l.used.met && l.open() && asked < doubtFor && !l.used.conn.Suspect() {
			return min(next, doubtFor-asked) // it was asked because of another one
		}
	}
	next = min(next, c.attach(v, now))
	if p := v.path; p != nil && p.Budget.Limits(now).Bytes > 0 {
		next = min(next, v.restock(p, now)) // the stock has run out
	}
	return next
}

// back notes that there is a carrier again. over: it is a new one.
func (v *owned) back(over bool) {
	if away := v.away; !away.IsZero() && (over || v.noticed) && len(v.streams) > 0 && v.c.o.Resumed != nil {
		v.c.o.Resumed(time.Since(away))
	}
	v.away, v.noticed = time.Time{}, false
}

// forget ends a session that can't go on. Another one is begun, so that the next request
// finds a carrier.
func (v *owned) forget(err error, now time.Time) {
	c := v.c
	warm := v == c.current && c.warm(v, now)
	v.fail(err)
	if warm && c.current == nil {
		c.current = c.begin()
	}
}

// goodLanes are the lanes whose peer answers.
func (v *owned) goodLanes() []*lane {
	var good []*lane
	for _, l := range v.lanes {
		if l.open() && !l.avoid {
			good = append(good, l)
		}
	}
	return good
}

// attach starts an attempt for a session that has no carrier that answers, if it is time
// for one.
func (c *Client) attach(v *owned, now time.Time) (next time.Duration) {
	if n := len(v.attempts); n > 0 {
		if wait := v.beside() - now.Sub(v.attempts[n-1].begun); wait > 0 {
			return wait
		}
		if n >= maxAttempts || c.full(v, autoSuspect) {
			// An older attempt is given up to make room: not the oldest, which may succeed on a
			// slow link.
			if n > 1 {
				v.attempts[1].cancel()
			}
			return attemptAge
		}
	} else if wait := v.retryAt.Sub(now); wait > 0 {
		return wait
	}
	if c.full(v, autoSuspect) {
		// No peer answers, and no more connections are allowed. The one that was silent for
		// longest makes room.
		var worst *lane
		for _, l := range v.lanes {
			if l.used != nil && (v.resume || l.homes == 0) && (worst == nil || l.used.conn.LastHeard() < worst.used.conn.LastHeard()) {
				worst = l
			}
		}
		if worst == nil {
			return attemptAge
		}
		if wait := makeRoomAfter - worst.used.conn.Overdue(); wait > 0 {
			return wait // it may only be slow
		}
		v.lose(worst.used, budget.Frozen)
		return attemptAge // sooner, when it is closed
	}
	p := v.nextPath(c.o.Paths())
	if v.tried++; v.tried == 1 {
		v.seeks = now
	}
	if wait := c.dial(v, p, now, false); wait > 0 {
		return wait
	}
	return attemptAge
}

// beside is how long the youngest attempt may give no sign before another one is started
// beside it. It is longer and longer, until there is a new stream: many connections that
// lead nowhere are conspicuous.
func (v *owned) beside() time.Duration {
	last, age := v.attempts[len(v.attempts)-1], attemptAge
	if v.nextPath(v.c.o.Paths()) != last.path {
		age = otherAge
	}
	if v.c.lastUse.After(last.begun) {
		return age
	}
	return min(age<<min(v.tried/maxAttempts, 10), lastRetry)
}

// nextPath is the path of the next attempt: the own one and the others in turn. A session
// that the far end does not have yet begins on the own path, or on one that has to lead to
// the same box.
func (v *owned) nextPath(paths []*Path) *Path {
	own := paths[0]
	var other []*Path
	for _, p := range paths[1:] {
		b := p.Box()
		if v.met && (b == v.box || b == (Box{})) || !v.met && p.Only != (Box{}) && p.Only == own.Box() {
			other = append(other, p)
		}
	}
	lost := v.met && own.Box() != v.box && own.Box() != (Box{})
	if len(other) > 0 && (v.tried%2 == 1 || lost) {
		return other[v.tried/2%len(other)]
	}
	return own
}

// count is how many connections the session has.
func (v *owned) count() int {
	n := len(v.carriers)
	for _, a := range v.attempts {
		if a.used == nil {
			n++
		}
	}
	return n
}

// full tells whether no more connections are allowed. more are allowed where the
// configuration sets no number.
func (c *Client) full(v *owned, more int) bool {
	limit := c.settings.Load().Carriers
	if limit == 0 {
		limit = autoMax + more
		if v.own.Budget.Limits(time.Now()).Bytes > 0 {
			limit = budgetMax
		}
	}
	if len(c.sessions) > 1 && v.count() == 0 {
		return false // each session needs one of its own, also while another one ends
	}
	n := 0
	c.sweep()
	for _, x := range slices.Concat(c.sessions, c.ending) {
		n += x.count()
	}
	return n >= limit
}

// sweep takes the sessions out of ending that have no connection left.
func (c *Client) sweep() {
	c.ending = slices.DeleteFunc(c.ending, func(v *owned) bool { return v.count() == 0 })
}

// tend looks after a session with carriers that answer.
func (v *owned) tend(good []*lane, now time.Time) (next time.Duration) {
	c := v.c
	next = noLook
	streams := len(v.streams)
	for _, u := range slices.Clone(v.carriers) {
		next = min(next, v.check(u, good, now))
	}
	if good = v.goodLanes(); len(good) == 0 {
		return 0
	}
	limits := good[0].used.budget.Limits(now)
	path := good[0].used.path
	if len(v.attempts) == 0 && !c.retired {
		switch least := slices.MinFunc(good, func(a, b *lane) int { return a.homes - b.homes }); {
		case c.full(v, 0), now.Sub(c.failed) < growPause, v.stage != 0:
		case v.count() == 1 && streams > 0, least.homes >= streamsEach:
			if wait := c.dial(v, path, now, false); wait > 0 {
				next = min(next, wait)
			}
		}
	}
	if limits.Bytes > 0 {
		next = min(next, v.restock(path, now))
	} else if streams > 0 {
		next = min(next, v.more(path, good, now))
	}
	return next
}

// check looks at one carrier, and tells when to look again.
func (v *owned) check(u *used, good []*lane, now time.Time) (next time.Duration) {
	next = noLook
	if !u.met || u.lane.gone {
		return next
	}
	owes := u.conn.Overdue()
	if u.lane.avoid {
		// It is given up if another one has been heard since it owes an answer. Streams that
		// would die with it wait: it may come back. Carriers that had no reason to say anything
		// are asked, and not used before they answer.
		for _, l := range good {
			switch c := l.used.conn; {
			case c.Silent() < owes:
				if owes > giveUpAfter && !u.lane.gone && (v.resume || u.lane.homes == 0) {
					v.lose(u, budget.Frozen)
					return noLook
				}
			case u.conn.Suspect() && c.Overdue() == 0 && l.open():
				c.Expect()
				v.ping(l, uint64(now.UnixNano()))
				l.avoid = true
			}
		}
		next = 100 * time.Millisecond
	}
	if now.Sub(u.passed) > passedEvery {
		u.passed = now
		u.budget.Passed(now, u.life())
	}
	limits := u.budget.Limits(now)
	streams := len(v.streams) > 0
	if limits.Bytes != u.told && u.lane.open() {
		u.told = limits.Bytes
		v.try(u.lane, frame{kind: frameBudget, id: u.allowance(limits.Bytes)})
		u.lane.budgeted = false // only the far end counts
	}
	if old := u.epoch != v.c.epoch; old && u.lane.open() {
		if slices.ContainsFunc(good, func(l *lane) bool { return l.used.epoch == v.c.epoch }) || len(v.streams) == 0 {
			v.last(u.lane)
			return 0
		}
		if len(v.attempts) == 0 {
			if wait := v.c.dial(v, v.own, now, false); wait > 0 {
				next = min(next, wait)
			}
		}
	}
	if limits.Age > 0 {
		next = min(next, v.checkAge(u, limits.Age, now))
		if !u.lane.open() {
			return next
		}
	}
	if limits.Idle > 0 {
		if streams {
			u.conn.SetKeepAlive(limits.Idle * 6 / 10)
			return next
		}
		u.conn.SetKeepAlive(0)
		if idle := limits.Idle*8/10 - u.conn.Silent(); idle <= 0 {
			v.last(u.lane)
		} else {
			next = min(next, idle)
		}
	} else {
		u.conn.SetKeepAlive(0)
	}
	return next
}

// checkAge replaces a carrier before it is too old, and tells when to look again.
func (v *owned) checkAge(u *used, limit time.Duration, now time.Time) (next time.Duration) {
	left := limit - now.Sub(u.begun)
	lead := min(max(time.Second, 2*v.stock.lead), limit/2)
	// The last bytes need some time, too.
	end := min(lead, max(limit/10, 250*time.Millisecond))
	switch {
	case left <= 0:
		u.ended = true
		u.budget.Closed(now, u.life())
		v.drop(u.lane, false)
		return noLook
	case !u.lane.open():
		return left
	case left <= end:
		v.last(u.lane)
		v.c.wakeKeeper()
		return left
	case left > lead:
		return left - lead
	}
	next = left - end
	for _, l := range v.goodLanes() {
		if l.used != u && limit-now.Sub(l.used.begun) > lead {
			return next // it can take over
		}
	}
	if len(v.attempts) == 0 && v.c.needed(v, now) && !v.c.full(v, 0) {
		if wait := v.c.dial(v, u.path, now, false); wait > 0 {
			next = min(next, wait)
		}
	}
	return next
}

// pong implements owner.
func (v *owned) pong(l *lane, sent uint64) {
	if u := l.used; u != nil && u.met && l.avoid && !u.conn.Suspect() {
		l.avoid = false
		v.feed(l)
		v.c.wakeKeeper()
	}
	asked := time.Unix(0, int64(sent))
	took := time.Since(asked)
	if u := l.used; u != nil && sent > 0 && took >= 0 {
		if !u.conn.Answered(time.Now().Add(-took), took) {
			v.ping(l, uint64(time.Now().UnixNano()))
		}
	}
}

// dropped implements owner.
func (v *owned) dropped(l *lane) {
	if v.away.IsZero() && len(v.goodLanes()) == 0 {
		v.away = time.Now()
	}
	if l.used != nil && !l.used.ended && l.lastGot {
		l.used.ended = true
		l.used.budget.Closed(time.Now(), l.used.life())
	}
	v.stock.dropped(l)
	v.c.stopped(v)
	v.c.wakeKeeper()
}

// admits and accept implement owner. They are not called: the far end opens no streams.
func (v *owned) admits() bool   { return true }
func (v *owned) accept(*Stream) {}

// ended implements owner.
func (v *owned) ended(err error) {
	c := v.c
	c.stopped(v)
	if v.met && v.cut > 0 && err != errClosed && c.o.Ended != nil {
		c.o.Ended(v.cut, err)
	}
	for _, a := range v.attempts {
		a.cancel()
	}
	c.sessions = slices.DeleteFunc(c.sessions, func(x *owned) bool { return x == v })
	c.ending = append(c.ending, v)
	c.sweep()
	if c.next == v {
		c.next = nil
	}
	if c.current == v {
		c.current, c.next = c.next, nil
		if v.tried > 0 && c.seeks.IsZero() { // the next session has no carrier, either
			c.seeks = v.seeks
		}
	}
	c.wakeKeeper()
}

// peerLeaves implements owner.
func (v *owned) peerLeaves(stage uint64) {
	if v.stage == 0 && v.c.o.Leaves != nil {
		v.c.o.Leaves()
	}
	v.stage = max(v.stage, min(stage, stageNow))
	v.retryAt = time.Time{}
	v.c.follow(v)
	v.c.wakeKeeper()
}

// follow makes the session that follows v, if the far end of v is about to stop and v is in
// use.
func (c *Client) follow(v *owned) {
	if v == c.current && v.stage != 0 && c.next == nil && !c.closed && (len(v.streams) > 0 || time.Since(c.lastUse) < usedLately) {
		c.succeed()
	}
}

// Tidy closes the carriers that are no longer needed. Call it from time to time.
func (c *Client) Tidy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	idle := time.Since(c.lastUse)
	for _, v := range slices.Clone(c.sessions) {
		if len(v.streams) > 0 || idle <= spareFor {
			continue
		}
		if idle > warmFor {
			v.shut(errClosed)
			continue
		}
		left := len(v.goodLanes())
		for _, u := range slices.Clone(v.carriers) {
			if left > 1 && u.met && u.lane.open() && u.conn.Age() > spareFor {
				left--
				v.last(u.lane)
			}
		}
	}
	c.wakeKeeper()
}
