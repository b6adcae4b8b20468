package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/budget"
	"ptgate/gateway/carrier"
)

// This file is about one carrier at the gateway's end: how it is opened, becomes part of the session,
// and ends. When that is due is in keeper.go.

// A used is a carrier as the gateway uses it.
type used struct {
	v      *owned
	lane   *lane
	conn   *carrier.Conn
	path   *Path
	budget *budget.Carrier
	begun  time.Time
	epoch  int       // the Client's, when it was begun
	met    bool      // the far end has answered
	base   int64     // bytes that came from the far end before those that it counts
	told   int64     // the limit of bytes that it knows
	passed time.Time // when the budget was last told what it has lived through
	ended  bool
}

// An attempt is a connection that is being opened.
type attempt struct {
	path   *Path
	begun  time.Time
	extra  bool
	epoch  int
	order  uint64 // the number of attempts before it
	cancel context.CancelFunc
	used   *used // nil: there is no connection yet
}

// dial starts an attempt. If the budget does not allow that now, it returns how long to
// wait. The caller holds mu.
func (c *Client) dial(v *owned, p *Path, now time.Time, extra bool) (wait time.Duration) {
	if c.closed {
		return noLook
	}
	b, wait := p.Budget.Dial(now)
	if b == nil {
		return max(wait, time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.settings.Load().Dial)
	a := &attempt{path: p, begun: now, extra: extra, epoch: c.epoch, order: v.begun, cancel: cancel}
	v.attempts = append(v.attempts, a)
	v.begun++
	c.wg.Go(func() {
		defer cancel()
		u, err := c.connect(ctx, v, a, b)
		c.mu.Lock()
		v.attempts = slices.DeleteFunc(v.attempts, func(x *attempt) bool { return x == a })
		if err != nil {
			c.attemptFailed(v, p, b, a, err)
		}
		c.wakeKeeper()
		c.mu.Unlock()
		if err != nil {
			return
		}
		err = readLane(u.conn, u.take)
		u.conn.Close() // it counts until it is closed
		c.mu.Lock()
		v.over(u, err)
		c.mu.Unlock()
	})
	return 0
}

// connect opens a connection and says hello. It returns when the far end has answered.
func (c *Client) connect(ctx context.Context, v *owned, a *attempt, b *budget.Carrier) (*used, error) {
	conn, err := a.path.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if v.err != nil || c.closed {
		c.mu.Unlock()
		conn.Close()
		return nil, errClosed
	}
	number := v.number
	v.number++
	h := hello{features: features, id: v.id, number: number, resume: seconds(c.settings.Load().Resume)}
	if !v.met {
		h.flags |= flagCreate
		h.proof = v.secret
	} else {
		h.proof = mac(v.secret, roleGateway, v.id, number)
	}
	// A carrier that tries whether a limit is still there may be killed: no stream must need
	// it.
	extra := a.extra || b.Probe() != budget.KindNone
	if extra {
		h.flags |= flagExtra
	}
	u := &used{v: v, path: a.path, budget: b, begun: a.begun, epoch: a.epoch}
	var ok bool
	if u.base, ok = conn.Socket().Received(); !ok {
		u.base = a.path.Handshake
	}
	if limit := b.Limits(time.Now()).Bytes; limit > 0 {
		u.told = limit
		h.budget = u.allowance(limit)
	}
	l := &lane{number: number, extra: extra, avoid: true, used: u}
	u.lane = l
	u.conn = carrier.Open(conn, h.append(), carrier.Options{Traffic: c.o.Traffic, Lost: c.o.Lost, Wall: c.o.Wall, Room: func() {
		c.mu.Lock()
		v.feed(l)
		c.mu.Unlock()
	}})
	l.pipe = u.conn
	v.carriers = append(v.carriers, u)
	a.used = u
	// What the streams have to send goes out with the first bytes, which saves a round trip:
	// but only to the box that the session is with.
	l.closed = v.met && a.path.Box() != v.box || !v.met && a.path.Only != (Box{})
	v.add(l)
	c.mu.Unlock()
	u.conn.Start(u.watch())
	stop := context.AfterFunc(ctx, func() { u.conn.Leave(false) })
	r, err := readReply(u.conn)
	if !stop() {
		err = fmt.Errorf("%w: %w", errNoSign, context.Cause(ctx))
	}
	if err == nil {
		c.mu.Lock()
		err = v.welcome(u, &h, &r)
		c.mu.Unlock()
	}
	if err == nil {
		return u, nil
	}
	u.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	v.unuse(u)
	v.drop(l, false)
	return nil, err
}

// watch is what the carrier asks of the session while it lives.
func (u *used) watch() carrier.Watch {
	v, l, c := u.v, u.lane, u.v.c
	return carrier.Watch{
		Ask: func() {
			c.mu.Lock()
			v.ping(l, uint64(time.Now().UnixNano()))
			c.mu.Unlock()
		},
		Waiting: func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(v.streams) > 0
		},
		Turned: func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if u.met {
				l.avoid = u.conn.Suspect()
				if l.avoid {
					v.unhome(l)
				} else {
					v.feed(l)
				}
			}
			c.wakeKeeper()
		},
	}
}

// readReply reads the far end's first words.
func readReply(c io.Reader) (reply, error) {
	var p [len(carrier.Preamble)]byte
	if n, err := io.ReadFull(c, p[:]); err != nil {
		switch {
		case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, carrier.ErrClosed):
			err = ErrEnded
		case n == 0 && errors.Is(err, syscall.ECONNRESET):
			err = fmt.Errorf("%w: %w", ErrEnded, err)
		}
		return reply{}, err
	}
	if string(p[:]) != carrier.Preamble {
		return reply{}, fmt.Errorf("%w: is it a ptgate server of this version?", errHello)
	}
	body, err := readBody(c)
	if err != nil {
		return reply{}, err
	}
	return parseReply(body)
}

// welcome makes u part of the session if the far end agrees.
func (v *owned) welcome(u *used, h *hello, r *reply) error {
	box, err := r.box(h)
	if err != nil {
		return err
	}
	if only := u.path.Only; only != (Box{}) && box != only && (box != (Box{}) || v.box != only) {
		return errOtherBox
	}
	if box != (Box{}) {
		u.path.Met(box)
	}
	switch {
	case v.err != nil:
		return errClosed
	case u.lane.gone:
		return ErrEnded // the far end has lost it, and has said so over another one
	case r.answer == answerUnknown && v.met && box == v.box:
		// The box has forgotten the session, or another process has taken its place, and the
		// old one still lives with its carriers.
		if !slices.ContainsFunc(v.carriers, func(x *used) bool { return x.met && !x.lane.gone }) {
			v.forget(errUnknown, time.Now())
		}
		return errUnknown
	case r.answer == answerUnknown && box != v.box:
		v.elsewhere(u.path)
		return errOtherBox
	case r.answer != answerWelcome:
		return answerError(r.answer)
	case r.mac != mac(v.secret, roleBox, v.id, h.number):
		return fmt.Errorf("%w: it does not know the session", errHello)
	case h.flags&flagCreate != 0 && box == (Box{}), v.met && box != (Box{}) && box != v.box:
		return fmt.Errorf("%w: it does not say which box it is", errHello)
	}
	again := v.met
	if !v.met {
		v.met, v.box, v.names = true, box, r.features&featureNames != 0
		v.kept = time.Duration(min(r.resume, 1<<20)) * time.Second
	}
	v.c.returned()
	u.met, v.path = true, u.path
	u.budget.Opened(time.Now())
	u.lane.avoid = u.conn.Suspect()
	u.lane.closed = false
	v.sayAgain(nil)
	v.feed(u.lane)
	for _, l := range slices.Clone(v.lanes) {
		switch {
		case !l.avoid:
		case l.used.met:
			v.unhome(l)
		case l.held > 0 && time.Since(l.used.begun) > attemptAge:
			// What waits for an answer there goes over this carrier, too.
			v.drop(l, false)
		}
	}
	v.back(again)
	v.tried, v.fails, v.c.why, v.c.seeks = 0, 0, nil, time.Time{}
	v.stock.joined(time.Since(u.begun))
	if v.c.next == v {
		v.c.current, v.c.next = v, nil
	}
	return nil
}

// elsewhere notes that a path leads to another box than that of the session. If it is the
// session's own path, new streams begin another session.
func (v *owned) elsewhere(p *Path) {
	if p == v.own && v.c.current == v {
		v.c.current = nil
	}
}

// attemptFailed notes that a connection was not made, or that the far end has not taken
// it. The caller holds mu.
func (c *Client) attemptFailed(v *owned, p *Path, b *budget.Carrier, a *attempt, err error) {
	now := time.Now()
	if errors.Is(err, context.Canceled) || errors.Is(err, errClosed) || errors.Is(err, carrier.ErrClosed) {
		b.Closed(now, budget.Life{}) // this side has given it up
		return
	}
	c.failed, c.why = now, err
	silent := answer.Of(err) == answer.Timeout
	alive := slices.ContainsFunc(v.carriers, func(u *used) bool {
		return u.met && u.path == p && u.conn.Silent() < now.Sub(a.begun)
	})
	if p.Excuse != nil && p.Excuse(a.begun) {
		b.Closed(now, budget.Life{})
	} else {
		b.Failed(now, silent, alive)
	}
	v.fails++
	limit := lastRetry
	if v.stage != 0 || v.awaits(now) || len(v.streams) > 0 && time.Since(v.away) < time.Minute {
		limit = lastRetryLeaving
	}
	pause := min(firstRetry<<min(v.fails-1, 10), limit)
	v.retryAt = now.Add(pause - time.Duration(rand.Int64N(int64(pause/2))))
	if v.err != nil || len(v.goodLanes()) > 0 || len(v.attempts) > 0 && !v.hopeless(now) {
		return
	}
	if v.stage != 0 || v.awaits(now) {
		return // it may be about to come back
	}
	if !v.met {
		v.fail(c.cause(err))
		return
	}
	// Streams that the far end has not answered yet may take another bridge. One that came
	// after this attempt had begun waits for the next.
	for id, s := range v.streams {
		if s.opening && s.since <= a.order {
			delete(v.streams, id)
			v.abort(id)
			v.control(nil, frame{kind: frameReset, id: id, at: codeReset})
			s.broke(err)
		}
	}
}

// hopeless tells whether nothing is to be expected of the attempts that run: nobody has
// answered for a long time, and each of them would have had an answer by now on a way that
// works. The caller holds mu.
func (v *owned) hopeless(now time.Time) bool {
	hope := hopeFor
	if v.met {
		hope = hopeForAgain
	}
	young := slices.ContainsFunc(v.attempts, func(a *attempt) bool { return now.Sub(a.begun) < otherAge })
	return !young && v.tried > 0 && now.Sub(v.seeks) >= hope
}

// take takes bytes from the carrier.
func (u *used) take(p []byte) { u.v.take(u.lane, p) }

// bytes is how many bytes have come from the far end on the carrier's connection.
func (u *used) bytes() int64 {
	if n, ok := u.conn.Socket().Received(); ok {
		return n
	}
	return u.path.Handshake + u.conn.Received()
}

func (u *used) life() budget.Life {
	return budget.Life{Bytes: u.bytes(), Age: time.Since(u.begun) - u.conn.Silent(), Silent: u.conn.Longest()}
}

// leastUse is the fewest bytes for which a carrier is worth its handshake.
const leastUse = 3 << 10

// allowance is how many bytes the far end may put on the wire on this carrier, if the
// network allows so many on a connection; 0: any number. A learned limit that leaves
// nothing is no limit: a carrier after the other would be used up at once.
func (u *used) allowance(limit int64) uint64 {
	left := limit - u.base
	switch {
	case limit == 0, left < leastUse && u.path.Budget.Configured().Bytes == 0:
		return 0
	}
	return uint64(max(1, left))
}

// lose gives a carrier up. The caller holds mu.
func (v *owned) lose(u *used, how budget.How) {
	v.died(u, how)
	if !u.lane.gone {
		v.drop(u.lane, false)
	}
}

// died tells the budget how a carrier has died.
func (v *owned) died(u *used, how budget.How) {
	if u.ended {
		return
	}
	u.ended = true
	now := time.Now()
	if u.path.Excuse != nil && u.path.Excuse(u.begun) || u.conn.Slept() {
		u.budget.Closed(now, u.life())
		return
	}
	heard := u.conn.LastHeard()
	u.budget.Died(now, budget.Death{Bytes: u.bytes(), Age: now.Sub(u.begun), Silent: u.conn.Silent(), Asked: u.conn.Overdue(), How: how,
		OthersAlive: slices.ContainsFunc(v.carriers, func(x *used) bool { return x != u && x.path == u.path && x.met && x.conn.LastHeard() > heard })})
}

// over notes that a carrier has ended. The caller holds mu.
func (v *owned) over(u *used, err error) {
	switch {
	case u.lane.gone: // this side has ended it
		if !u.ended {
			u.ended = true
			u.budget.Closed(time.Now(), u.life())
		}
	case err == io.EOF:
		v.lose(u, budget.Ended)
	case errors.Is(err, carrier.ErrDead):
		v.lose(u, budget.Frozen)
	default:
		v.lose(u, budget.Reset)
	}
	v.unuse(u)
	v.c.wakeKeeper()
}

// unuse takes u out of the list.
func (v *owned) unuse(u *used) {
	v.carriers = slices.DeleteFunc(v.carriers, func(x *used) bool { return x == u })
	v.c.sweep()
	v.c.isRenewed()
}
