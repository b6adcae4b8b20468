package bridges

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"ptgate/adapter/builtin"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/measure"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// An examination makes so many connections beside the first one, and knows what each is
// for. Two ask for many bytes, one is silent most of the time, and the others see whether
// there may be more.
const (
	firstBulk = iota
	quietOne
	secondBulk
	extraOne
	extraTwo
	trials
)

const (
	bulkSize = 256 << 10
	// slow is the rate, in bytes a second, below which a connection may be throttled. Then it
	// is asked for as much as it takes for all of the times below.
	slow = 640 << 10
	// soloTime is how long the first bulk connection is alone, and duoTime how long both are
	// compared.
	soloTime = 2500 * time.Millisecond
	duoTime  = 3 * time.Second
	// settle is left out of each at the beginning, while TCP finds its pace.
	settle = 500 * time.Millisecond
	bin    = 400 * time.Millisecond
	// stuckTime is when the second bulk connection is begun because the first one is stuck.
	stuckTime = 1500 * time.Millisecond
	extraTime = 3500 * time.Millisecond // when the extra ones are begun
	// shortTime is when most kinds of interference have shown themselves, and longTime when
	// the measurement ends.
	shortTime = 14 * time.Second
	longTime  = 64 * time.Second
	look      = 100 * time.Millisecond
)

// gaps are the silences of the quiet connection.
var gaps = []time.Duration{5 * time.Second, 12 * time.Second, 32 * time.Second}

// A trial is one connection of an examination.
type trial struct {
	e      *examination
	number int
	begun  time.Time

	mu     sync.Mutex
	conn   stream.Conn // nil: it is being opened, or could not be
	err    error       // why it could not be opened, or how it ended
	over   time.Time
	opened bool
	extra  int64 // the most that the transport's handshake has, where only its program sees it
	got    int64 // bytes from the far end since it was opened
	wire   int64 // all of them
	heard  time.Time
	owed   int64         // bytes that were asked for and have not come
	gap    time.Duration // see doctor.Sample
	bins   map[int]int64 // bytes on the wire, by time
	binned int64         // how many of them are in bins

	// Of a polled transport. It gives out what comes in pieces as large as it was asked for,
	// each at its end.
	polled bool
	left   int64 // what is asked for when the present piece has come
	asked  int64 // what was asked for, in all
	piece  int64 // the size of the present one
	since  time.Time
	base   time.Duration // the shortest time of a piece; 0: not known
	pieces []piece

	// The rates, of the bulk ones.
	alone, beside float64
	steady        bool
}

// A piece is what a polled transport was asked for at once, and has brought.
type piece struct {
	size        int64
	begun, over time.Time
}

const (
	// Pieces begin small, so that it shows after how many bytes a connection freezes, and
	// grow. The answer to one poll has at most 64 KiB.
	firstPiece, largestPiece = 2 << 10, 60 << 10
	// timedPiece is the smallest one whose time says something of the rate.
	timedPiece = 48 << 10
	// soloPolled and duoPolled are soloTime and duoTime for polled transports. On a slow way
	// they are longer by morePolled at most, until so many pieces have come as are needed.
	morePolled            = 2 * time.Second
	soloPolled, duoPolled = 4500 * time.Millisecond, 4500 * time.Millisecond
)

// An examination measures one bridge.
type examination struct {
	b      *Bridge
	polled bool // see builtin.Transport
	ctx    context.Context
	begun  time.Time
	wg     sync.WaitGroup
	trials []*trial
}

// examine measures what the network does to connections to the bridge.
func (b *Bridge) examine(ctx context.Context, o ProbeOptions, p *Probe) {
	c := b.config()
	if c.Far == config.FarForward {
		b.askForward(ctx, o, p)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	row, _ := builtin.Lookup(c.Transport)
	e := &examination{b: b, polled: row.Polled, ctx: ctx, begun: time.Now()}
	defer e.wg.Wait()
	defer func() {
		cancel()
		for _, t := range e.trials {
			t.close()
		}
	}()
	p.Verdict = e.run(o)
	p.Connections += len(e.trials)
}

// askForward looks whether a bridge that is said to lead to a fixed service leads to an exit.
func (b *Bridge) askForward(ctx context.Context, o ProbeOptions, p *Probe) {
	o.Tell("asking whether an exit stands behind it")
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p.Connections++
	conn, err := b.dial(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	timer := time.AfterFunc(2*time.Second, func() { conn.Close() }) // a service that waits for more says nothing
	defer timer.Stop()
	if err := session.Greet(conn, session.Auth{}); err == nil || doctor.Diagnose(doctor.Case{Err: err}).Kind == doctor.User {
		p.Verdict = doctor.IsExit()
	}
}

// run makes the connections one after the other, asks on them, and looks at what comes of
// it, until something is seen or the time is over.
func (e *examination) run(o ProbeOptions) doctor.Verdict {
	tick := time.NewTicker(look)
	defer tick.Stop()
	a, q := e.start(firstBulk), e.start(quietOne)
	var second *trial
	var solo, duo time.Time // when one bulk connection was asked, and when both were
	soloTime, duoTime := soloTime, duoTime
	if e.polled {
		soloTime, duoTime = soloPolled, duoPolled
	}
	var asked, quietAsks int
	for {
		o.Tell(e.progress())
		select {
		case <-e.ctx.Done():
			return doctor.Healthy(e.samples(), time.Since(e.begun))
		case <-tick.C:
		}
		now := time.Now()
		since := now.Sub(e.begun)
		if err := a.refusal(); err != nil {
			return doctor.NotMeasured(err)
		}
		if asked == 0 && a.isOpen() {
			a.ask(bulkSize)
			asked, solo = 1, now
		}
		if quietAsks == 0 && q.isOpen() {
			q.ask(1)
			quietAsks++
		}
		if quietAsks > 0 && quietAsks <= len(gaps) && q.isIdle(gaps[quietAsks-1]) {
			q.ask(1)
			quietAsks++
		}
		if asked == 1 && a.isDone() {
			asked++
			if rate, ok := a.rate(solo, now); ok {
				a.ask(int(rate * (soloTime - now.Sub(solo)).Seconds()))
			}
		}
		if second == nil && asked > 0 && (a.isDone() || a.silence() > stuckTime || a.isOver(solo, now, soloTime, 1)) {
			a.measure(&a.alone, solo, now)
			second = e.start(secondBulk)
		}
		if second != nil && duo.IsZero() && second.isOpen() {
			duo = now
			size := bulkSize
			if rate, ok := a.rate(solo, now); ok {
				size = max(size, int(rate*(duoTime+settle).Seconds()))
			}
			if !a.isStuck() {
				second.after(a)
				a.ask(size)
			}
			second.ask(size)
		}
		if !duo.IsZero() && second.beside == 0 && (a.isOver(duo, now, duoTime, 2) && second.isOver(duo, now, duoTime, 2) || second.isDone() || a.isDone()) {
			a.measure(&a.beside, duo, now)
			second.measure(&second.beside, duo, now)
		}
		if len(e.trials) == secondBulk+1 && since > extraTime {
			e.start(extraOne)
			e.start(extraTwo)
		}
		for _, t := range e.trials {
			t.sample(now)
			// One question a second keeps them busy, and shows that the way works.
			if t != q && (t.number > secondBulk || !duo.IsZero() && t.beside > 0) && t.isIdle(time.Second) {
				t.ask(1)
			}
		}
		if v, ok := doctor.Infer(e.samples()); ok {
			return v
		}
		if since > longTime {
			return doctor.Healthy(e.samples(), since)
		}
	}
}

func (e *examination) progress() string {
	since := time.Since(e.begun)
	if since > shortTime {
		return fmt.Sprintf("^C to stop, up to %v: nothing yet, looking for later cuts", longTime)
	}
	return fmt.Sprintf("^C to stop, up to a minute: measuring over %d connections", len(e.trials))
}

// start begins a connection and its reader.
func (e *examination) start(number int) *trial {
	t := &trial{e: e, number: number, polled: e.polled, begun: time.Now(), bins: map[int]int64{}}
	e.trials = append(e.trials, t)
	e.wg.Go(t.run)
	return t
}

// run opens the connection and reads what comes.
func (t *trial) run() {
	e, c := t.e, t.e.b.config()
	conn, err := e.b.dial(e.ctx)
	if err != nil {
		t.fail(err)
		return
	}
	defer context.AfterFunc(e.ctx, func() { conn.Close() })()
	t.mu.Lock()
	t.conn, t.heard = conn, time.Now()
	t.mu.Unlock()
	to := routes.Target{Name: measure.Name, Port: measure.Port}
	if err := session.Handshake(conn, to, authOf(c)); err != nil {
		t.fail(err)
		conn.Close()
		return
	}
	t.mu.Lock()
	t.opened, t.heard = true, time.Now()
	if !inside(c.PT, c.Transport) {
		t.extra = int64(builtin.HandshakeCost(c.Transport))
	}
	t.count()
	t.mu.Unlock()
	buf := make([]byte, 16<<10)
	for {
		n, err := conn.Read(buf)
		t.mu.Lock()
		if n > 0 {
			t.heard = time.Now()
			t.got += int64(n)
			t.owed = max(0, t.owed-int64(n))
		}
		t.count()
		if t.polled && n > 0 && t.owed == 0 {
			t.came()
		}
		t.mu.Unlock()
		if err != nil {
			t.fail(err)
			return
		}
	}
}

// count takes the bytes on the wire. The caller holds mu.
func (t *trial) count() {
	n, ok := t.conn.Socket().Received()
	if !ok {
		n = t.got
	}
	t.wire = t.extra + n
}

// sample puts the bytes that have come into bins. A transport gives them out in pieces, so
// what it gives out says little of how steadily they come.
func (t *trial) sample(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.opened || t.err != nil {
		return
	}
	t.count()
	t.bins[int(now.Sub(t.begun)/bin)] += t.wire - t.binned
	t.binned = t.wire
}

func (t *trial) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err, t.over = err, time.Now()
}

func (t *trial) close() {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// ask asks for n bytes, if that is any: who asks for what fits into the time that is left may
// have none.
func (t *trial) ask(n int) {
	t.mu.Lock()
	conn := t.conn
	if n <= 0 || t.err != nil || !t.opened {
		t.mu.Unlock()
		return
	}
	t.gap = time.Since(t.heard)
	switch {
	case !t.polled:
		t.owed += int64(n)
	case t.owed > 0:
		t.left += int64(n)
		n = 0
	default:
		t.left = int64(n)
		n = t.next()
	}
	t.mu.Unlock()
	if n > 0 {
		t.e.wg.Go(func() { _ = measure.Ask(conn, n) }) // it may wait; the reader sees an error, too
	}
}

// after lets t ask for pieces as large as those of another trial now are. It is known that
// they come, and how long a small one takes.
func (t *trial) after(other *trial) {
	other.mu.Lock()
	asked, base := other.asked, other.base
	other.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked, t.base = asked, base
}

// next takes the next piece of what is left. The caller holds mu, and asks for it.
func (t *trial) next() (n int) {
	n = int(min(t.left, max(firstPiece, min(t.asked/2, largestPiece))))
	t.left -= int64(n)
	t.asked += int64(n)
	t.owed, t.piece, t.since = int64(n), int64(n), time.Now()
	return n
}

// came notes that a piece has come, and asks for the next one. The caller holds mu.
func (t *trial) came() {
	now := time.Now()
	took := now.Sub(t.since)
	t.pieces = append(t.pieces, piece{t.piece, t.since, now})
	if t.base == 0 || took < t.base {
		t.base = took
	}
	if n := t.next(); n > 0 {
		t.e.wg.Go(func() { _ = measure.Ask(t.conn, n) })
	}
}

func (t *trial) isOpen() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.opened
}

// isDone tells whether all has come that was asked for.
func (t *trial) isDone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.opened && t.err == nil && t.owed == 0
}

// isIdle tells whether nothing is owed, and nothing has come for so long.
func (t *trial) isIdle(d time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.opened && t.err == nil && t.owed == 0 && time.Since(t.heard) >= d
}

func (t *trial) silence() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.heard)
}

func (t *trial) isStuck() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.owed > 0 && time.Since(t.heard) > stuckTime
}

// rate is how many bytes a second have come since from; ok is false if it is fast, or not
// known.
func (t *trial) rate(from, now time.Time) (rate float64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owed == 0 {
		now = t.heard
	}
	rate = float64(t.got) / max(now.Sub(from), time.Millisecond).Seconds()
	return rate, t.got > 0 && rate < slow
}

// refusal is why the far end can't measure; nil: it can, or nothing is known yet.
func (t *trial) refusal() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := errors.AsType[*session.Refusal](t.err); ok {
		return r
	}
	return nil
}

// measure sets the rate in a time, and whether it was steady.
func (t *trial) measure(rate *float64, from, to time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.heard.Before(to) && t.owed == 0 {
		to = t.heard
	}
	first, last := int(from.Add(settle).Sub(t.begun)/bin)+1, int(to.Sub(t.begun)/bin)
	*rate = 1 // it was looked at, and there is too little to say
	if t.polled {
		if r, steady := t.pace(from, to); r > 0 {
			*rate, t.steady = r, steady
		}
		return
	}
	if last-first < 3 {
		return
	}
	sum, squares, n := 0.0, 0.0, float64(last-first)
	for i := first; i < last; i++ {
		x := float64(t.bins[i])
		sum += x
		squares += x * x
	}
	mean := sum / n
	*rate = max(1, mean/bin.Seconds())
	t.steady = mean > 0 && math.Sqrt(max(0, squares/n-mean*mean)) < 0.3*mean
}

// pace is the rate of the pieces that a polled transport has brought within a time, without
// what each takes by itself. It is 0 if there are too few, or if they take so little longer
// than the smallest ones that the rate is that of the polls. The caller holds mu.
func (t *trial) pace(from, to time.Time) (rate float64, steady bool) {
	var rates []float64
	for _, p := range t.pieces {
		took := p.over.Sub(p.begun)
		if p.size < timedPiece || p.begun.Before(from) || p.over.After(to) {
			continue
		}
		if took < t.base*7/4 {
			return 0, false
		}
		rates = append(rates, float64(p.size)/(took-t.base).Seconds())
	}
	if len(rates) == 0 {
		return 0, false
	}
	// One piece in four may have been late, as on a busy machine.
	slices.Sort(rates)
	median, like := rates[len(rates)/2], 0
	for _, r := range rates {
		if math.Abs(r-median) < 0.15*median {
			like++
		}
	}
	return median, len(rates) > 1 && 4*like >= 3*len(rates)
}

// isOver tells whether the time of a measurement is over, at now.
func (t *trial) isOver(from, now time.Time, limit time.Duration, pieces int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	late := now.Sub(from) - limit
	if !t.polled || late <= 0 || late > morePolled {
		return late > 0
	}
	for _, p := range t.pieces {
		if p.size >= timedPiece && !p.begun.Before(from) {
			pieces--
		}
	}
	return pieces <= 0
}

// samples is what is known of the connections now.
func (e *examination) samples() (all []doctor.Sample) {
	now := time.Now()
	for _, t := range e.trials {
		t.mu.Lock()
		s := doctor.Sample{Opened: t.opened, Bulk: t.number == firstBulk || t.number == secondBulk, Bytes: t.wire, Owed: t.owed > 0, Gap: t.gap,
			Since: t.begun.Sub(e.begun), Alone: t.alone, Beside: t.beside, Steady: t.steady, Polled: t.polled}
		end := now
		if t.err != nil {
			end = t.over
			if !t.opened || !errors.Is(t.err, net.ErrClosed) { // this side closes them at the end
				s.End = doctor.Reset
			}
		}
		s.Age = end.Sub(t.begun)
		if t.opened {
			s.Silent, s.Heard = end.Sub(t.heard), t.heard.Sub(e.begun)
		}
		t.mu.Unlock()
		all = append(all, s)
	}
	return all
}
