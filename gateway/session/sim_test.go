package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"ptgate/gateway/carrier"
)

// The simulation runs both ends of a session without goroutines and without a clock. What
// happens next is chosen by a generator of random numbers, so a seed gives the same
// schedule each time.
//
//	SIM_SEED=n       is the first seed, and without SIM_SCHEDULES the only one
//	SIM_SCHEDULES=n  runs so many
//	SIM_TRACE=1      prints what happens
func TestSimulation(t *testing.T) {
	first, n := uint64(1), uint64(10_000)
	if raceEnabled || testing.Short() {
		n = 1000
	}
	if v, err := strconv.ParseUint(os.Getenv("SIM_SEED"), 10, 64); err == nil {
		first, n = v, 1
	}
	if v, err := strconv.ParseUint(os.Getenv("SIM_SCHEDULES"), 10, 64); err == nil {
		n = v
	}
	begin := time.Now()
	var total simCounts
	for seed := first; seed < first+n; seed++ {
		counts, err := simulate(seed)
		if err != nil {
			t.Fatalf("SIM_SEED=%d: %v", seed, err)
		}
		total.add(counts)
	}
	t.Logf("%d schedules from seed %d in %v: %+v", n, first, time.Since(begin).Round(time.Millisecond), total)
}

// simCounts tell what the schedules have reached.
type simCounts struct {
	Steps, Streams, Carriers, Cuts, Replayed, Stalled, Ended int64
}

func (c *simCounts) add(o simCounts) {
	c.Steps += o.Steps
	c.Streams += o.Streams
	c.Carriers += o.Carriers
	c.Cuts += o.Cuts
	c.Replayed += o.Replayed
	c.Stalled += o.Stalled
	c.Ended += o.Ended
}

// A sim is one schedule.
type sim struct {
	*rand.Rand
	seed      uint64
	trace     bool
	gateway   *simSide
	server    *simSide
	conns     []*simConn
	streams   []*simStream // of both sides
	number    uint64       // of the next carrier
	counts    simCounts
	settling  bool // faults are over, everything has to come to its end
	over      bool // a side has ended the session
	resume    bool
	created   bool // the server has the session
	met       bool // and the gateway knows
	sizes     int  // what the sizes of writes are around
	pipeSize  int
	overhead  int // bytes on the wire for each write
	mostConns int
	budgets   bool
	extras    bool
	tight     bool // memory is short from time to time
	sloppy    bool // more is sent again than has to be
	maxWrites int
	failure   error
}

// A simSide is one end, and its owner.
type simSide struct {
	*end
	sim     *sim
	name    string
	done    error
	reason  error // with which this side has ended the session
	streams map[uint64]*simStream
	leaves  uint64
	others  int64 // bytes of memory that other sessions use
}

func (x *simSide) admits() bool         { return true }
func (x *simSide) accept(s *Stream)     { x.sim.stream(x, s) }
func (x *simSide) dropped(*lane)        {}
func (x *simSide) pong(*lane, uint64)   {}
func (x *simSide) peerLeaves(st uint64) { x.leaves = max(x.leaves, st) }
func (x *simSide) news(uint64) error    { return nil }
func (x *simSide) ended(err error)      { x.done = err }

// A simConn is a carrier. Direction 0 is that to the server.
type simConn struct {
	number  uint64
	wire    [2][]byte // in flight
	closed  [2]bool   // nothing follows what is in flight
	frozen  [2]bool   // what is in flight does not arrive
	hello   int       // bytes of the greeting that have not come yet
	reply   int
	near    *simPipe
	far     *simPipe // nil: the server has not seen it
	refused bool
	ended   [2]bool // the side that receives in this direction has noticed the end
}

// A simPipe is to an end what a carrier.Conn is. The bytes that it has gathered go to the
// wire in a step of the schedule, or between two calls of the end, as in the Conn.
type simPipe struct {
	side    *simSide
	conn    *simConn
	lane    *lane
	dir     int // in which it sends
	buf     []byte
	at      int64 // the position of buf
	freed   int64
	kept    []carrier.Piece
	refused bool
	room    bool // the end has to be told of room
	leaving bool
	gone    bool // it takes nothing more, as after an error
	budget  int64
	spent   int64
	lowered bool // the budget became less while the pipe was in use
	wrote   bool
}

func (p *simPipe) Space(want int, control bool) int {
	if p.gone {
		return 0
	}
	s := p.side.sim
	n := s.pipeSize*3/2 - len(p.buf)
	if control {
		n = max(n, want)
	} else if len(p.buf) >= s.pipeSize {
		n = 0
	}
	if p.budget > 0 {
		n = min(n, s.fits(p.budget-p.spent-int64(s.cost(len(p.buf)))))
	}
	if n = max(n, 0); n < want {
		p.refused = true
	}
	return n
}

// cost is how many bytes a write becomes.
func (s *sim) cost(n int) int {
	if n == 0 {
		return 0
	}
	return n + s.overhead*(1+n/1000)
}

// fits is the most bytes that one write may have if it costs at most left.
func (s *sim) fits(left int64) int {
	left = min(left, 1<<30)
	n := int(max(0, left*1000/int64(1000+s.overhead)-int64(s.overhead)))
	for int64(s.cost(n+1)) <= left {
		n++
	}
	return n
}

func (p *simPipe) Fresh() bool { return len(p.buf) == 0 }

func (p *simPipe) Append(a, b []byte) int64 {
	if p.budget == 0 && p.side.sim.IntN(4) == 0 {
		p.flush() // at the same time, in another goroutine
	}
	p.buf = append(append(p.buf, a...), b...)
	return p.Position()
}

func (p *simPipe) Position() int64 { return p.at + int64(len(p.buf)) }

func (p *simPipe) Release(n int64) (int64, error) {
	if n > p.at {
		return 0, carrier.ErrRelease
	}
	for len(p.kept) > 0 && p.kept[0].At+int64(len(p.kept[0].B)) <= n {
		p.kept = p.kept[1:]
	}
	freed := max(n-p.freed, 0)
	p.freed += freed
	return freed, nil
}

func (p *simPipe) Unreleased() []carrier.Piece {
	rest := p.kept
	if len(p.buf) > 0 {
		rest = append(rest, carrier.Piece{At: p.at, B: p.buf})
		p.at += int64(len(p.buf))
	}
	for i, x := range rest {
		if x.At < 0 {
			rest[i] = carrier.Piece{At: 0, B: x.B[-x.At:]}
		}
	}
	p.kept, p.buf = nil, nil
	return rest
}

func (p *simPipe) SetBudget(n int64) {
	p.lowered = p.lowered || n > 0 && (n < p.budget || p.budget == 0)
	p.budget = n
}

func (p *simPipe) Leave(inOrder bool) {
	if inOrder {
		p.leaving = true
		return
	}
	p.leaving = false
	p.gone = true
	p.side.sim.cut(p.conn)
}

// canFlush tells whether flush does something.
func (p *simPipe) canFlush() bool {
	return p != nil && !p.gone && (len(p.buf) > 0 && len(p.conn.wire[p.dir]) < p.side.sim.pipeSize*2 || len(p.buf) == 0 && p.leaving)
}

func (p *simPipe) flush() {
	if !p.canFlush() {
		return
	}
	c, s := p.conn, p.side.sim
	if len(p.buf) == 0 {
		p.gone = true
		c.closed[p.dir] = true
		return
	}
	p.spent += int64(s.cost(len(p.buf)))
	if p.budget > 0 && p.spent > p.budget && !p.lowered && p.wrote {
		s.fail("the far end has put %d bytes on the wire, of %d", p.spent, p.budget)
	}
	p.wrote = true
	if !c.closed[p.dir] {
		c.wire[p.dir] = append(c.wire[p.dir], p.buf...)
	}
	p.kept = append(p.kept, carrier.Piece{At: p.at, B: p.buf})
	p.at += int64(len(p.buf))
	p.buf = nil
	p.room = p.room || p.refused
	p.refused = false
}

// A simStream is one side of a stream, and the program that uses it.
type simStream struct {
	*Stream
	side    *simSide
	writing []byte // of the Write that goes on
	wait    <-chan struct{}
	total   uint64 // bytes that a Write has taken
	writes  int
	got     uint64
	idle    <-chan struct{} // a Read waits
	eof     bool
	err     error // of a Read
	slow    bool  // it does not read before the end
	shut    bool  // CloseWrite, Close or Reset was called
	closed  bool  // Close or Reset was called
}

func (s *sim) stream(x *simSide, st *Stream) *simStream {
	y := &simStream{Stream: st, side: x, slow: s.IntN(8) == 0}
	x.streams[st.id] = y
	s.streams = append(s.streams, y)
	return y
}

func (s *sim) fail(format string, args ...any) {
	if s.failure == nil {
		s.failure = fmt.Errorf(format, args...)
		s.tracef("FAIL %v", s.failure)
		for _, x := range []*simSide{s.gateway, s.server} {
			s.tracef("%s: held %d, %d frames without a lane", x.name, x.held, len(x.orphans))
			for _, l := range append(slices.Collect(maps.Values(x.parted)), x.lanes...) {
				s.tracef("%s: carrier %d holds %d, received %d told %d waiting %d; avoid %v extra %v budgeted %v lastSent %v lastGot %v gone %v owes %v",
					x.name, l.number, l.held, l.received, l.told, len(l.waiting), l.avoid, l.extra, l.budgeted, l.lastSent, l.lastGot, l.gone, l.owes)
			}
			for _, g := range x.said {
				s.tracef("%s: said %+v", x.name, *g)
			}
		}
	}
}

func (s *sim) tracef(format string, args ...any) {
	if s.trace {
		fmt.Printf("%d: %s\n", s.counts.Steps, fmt.Sprintf(format, args...))
	}
}

// simData is what all streams are made of. Each begins at another place of it.
var simData = func() []byte {
	b := make([]byte, simPrime)
	rand.NewChaCha8([32]byte{}).Read(b)
	return append(b, b...)
}()

const simPrime = 65521

// data returns n bytes of one direction of a stream.
func (x *simStream) data(fromGateway bool, at uint64, n int) []byte {
	begin := at + x.id*7919
	if fromGateway {
		begin += 31337
	}
	return simData[begin%simPrime:][:min(n, simPrime)]
}

// size is a random size around the middle one.
func (s *sim) size() int {
	n := 1 + s.IntN(s.sizes)
	switch s.IntN(8) {
	case 0:
		n = 1 + s.IntN(4)
	case 1:
		n *= 4
	}
	return min(n, simPrime)
}

func simulate(seed uint64) (counts simCounts, err error) {
	s := &sim{Rand: rand.New(rand.NewPCG(seed, 1)), seed: seed, trace: os.Getenv("SIM_TRACE") != ""}
	defer func() {
		if r := recover(); r != nil {
			if s.trace {
				panic(r)
			}
			counts, err = s.counts, fmt.Errorf("panic: %v", r)
		}
	}()
	s.setup()
	s.run()
	s.settle()
	s.counts.Streams = int64(len(s.gateway.streams))
	s.counts.Carriers = int64(s.number)
	s.counts.Replayed = s.gateway.replayed + s.server.replayed
	return s.counts, s.failure
}

func (s *sim) setup() {
	s.resume = s.IntN(10) > 0
	s.sizes = []int{20, 300, 3000, 20000}[s.IntN(4)]
	s.pipeSize = []int{500, 2000, 10000}[s.IntN(3)]
	s.overhead = s.IntN(3) * s.IntN(60)
	s.budgets = s.IntN(3) == 0
	s.extras = s.IntN(3) == 0
	s.mostConns = 1 + s.IntN(5)
	s.maxWrites = 1 + s.IntN(12)
	limit := []int64{600, 5000, 50000, 1 << 20}[s.IntN(4)]
	window := []int64{100, 2000, 20000}[s.IntN(3)]
	start := window * []int64{1, 4, 16}[s.IntN(3)]
	ack := []int64{50, 1000, 20000}[s.IntN(3)]
	s.tight = s.IntN(3) == 0
	s.sloppy = window == 20000 && s.IntN(4) == 0
	maxStreams := 1000
	if s.IntN(10) == 0 {
		maxStreams = 2
	}
	side := func(name string, client bool) *simSide {
		x := &simSide{sim: s, name: name, streams: map[uint64]*simStream{}}
		x.end = newEnd(new(sync.Mutex), client, x, NewMemory(), s.resume, limit, maxStreams)
		x.others = simOthers
		x.memory.used.Add(x.others)
		x.memory.Limit(2*simOthers, 0)
		x.ackEvery, x.window, x.start = ack, window, start
		return x
	}
	s.gateway, s.server = side("gateway", true), side("server", false)
	s.tracef("resume %v sizes %d pipe %d overhead %d budgets %v extras %v conns %d limit %d window %d ack %d", s.resume, s.sizes,
		s.pipeSize, s.overhead, s.budgets, s.extras, s.mostConns, limit, window, ack)
}

// run does random steps, with faults.
func (s *sim) run() {
	steps := 50 + s.IntN(400)
	faults := s.IntN(3) * 4
	end := s.IntN(40) == 0
	for i := 0; i < steps && s.failure == nil && !s.over; i++ {
		s.counts.Steps++
		s.squeeze()
		switch n := s.IntN(100); {
		case n < 5:
			if len(s.gateway.streams) < 6 {
				s.open()
			}
		case n < 10:
			if len(s.live()) < s.mostConns {
				s.dial()
			}
		case n < 40:
			s.use()
		case n < 40+faults:
			s.fault()
		case n == 52 && end:
			s.end()
		case n < 60:
			s.flushOne()
		default:
			s.deliverOne()
		}
		s.check()
	}
}

func (s *sim) open() {
	y := s.stream(s.gateway, s.gateway.open())
	s.tracef("open %d", y.id)
}

// live are the carriers that the gateway may use.
func (s *sim) live() []*simConn {
	return slices.DeleteFunc(slices.Clone(s.conns), func(c *simConn) bool { return c.near.lane.gone || c.ended[1] })
}

func pick[T any](s *sim, all []T) (v T) {
	if len(all) > 0 {
		v = all[s.IntN(len(all))]
	}
	return v
}

// Bytes of the greetings.
const (
	simHello = 7
	simReply = 11
)

func (s *sim) dial() {
	c := &simConn{number: s.number, hello: simHello, reply: simReply}
	s.number++
	s.conns = append(s.conns, c)
	c.near = &simPipe{side: s.gateway, conn: c, dir: 0, buf: make([]byte, simHello), at: -simHello}
	l := &lane{number: c.number, avoid: true, pipe: c.near, extra: s.extras && s.IntN(3) == 0}
	c.near.lane = l
	s.tracef("dial %d extra %v", c.number, l.extra)
	l.closed = s.met && s.IntN(2) == 0
	s.gateway.add(l)
}

// attach is the server's part.
func (s *sim) attach(c *simConn) {
	if s.server.err != nil {
		s.refuse(c)
		if s.gateway.err == nil {
			s.gateway.end.fail(errUnknown)
		}
		return
	}
	fresh, err := s.server.carriers.use(c.number)
	if err != nil {
		s.fail("number %d of a carrier: %v", c.number, err)
	}
	if !fresh {
		s.refuse(c)
		return
	}
	s.created = true
	c.far = &simPipe{side: s.server, conn: c, dir: 1, buf: make([]byte, simReply), at: -simReply}
	if s.budgets && (!s.settling || s.IntN(2) == 0) {
		c.far.budget = int64(1 + s.IntN(6*s.pipeSize))
		if s.settling {
			c.far.budget += 1000 + int64(s.overhead)*10
		}
	}
	l := &lane{number: c.number, pipe: c.far, extra: c.near.lane.extra, budgeted: c.far.budget > 0}
	c.far.lane = l
	s.tracef("attach %d budget %d", c.number, c.far.budget)
	s.server.add(l)
}

func (s *sim) refuse(c *simConn) {
	s.tracef("refuse %d", c.number)
	c.refused = true
	c.ended[0] = true
	c.wire = [2][]byte{}
	c.closed = [2]bool{true, true}
}

// welcome is the gateway's part.
func (s *sim) welcome(c *simConn) {
	s.tracef("welcome %d", c.number)
	s.met = true
	l := c.near.lane
	if s.gateway.err != nil {
		s.noticed(c, 1)
		s.cut(c)
		return
	}
	if l.gone {
		return
	}
	l.avoid = false
	l.closed = false
	s.gateway.sayAgain(nil)
	s.gateway.feed(l)
	for _, c := range s.conns {
		if l := c.near.lane; l.avoid && c.reply == 0 && !l.gone {
			s.gateway.unhome(l)
		}
	}
}

// noticed is what a side does when a carrier has ended.
func (s *sim) noticed(c *simConn, dir int) {
	if c.ended[dir] {
		return
	}
	c.ended[dir] = true
	defer s.cut(c) // it is closed
	if dir == 1 {
		s.tracef("gateway: %d has ended", c.number)
		c.near.gone = true
		s.gateway.drop(c.near.lane, false)
		return
	}
	s.tracef("server: %d has ended", c.number)
	if c.far != nil {
		c.far.gone = true
		s.server.drop(c.far.lane, false)
	}
}

// cut ends a carrier. Some of what is in flight still arrives.
func (s *sim) cut(c *simConn) {
	for d := range c.wire {
		if !c.closed[d] {
			c.closed[d] = true
			c.wire[d] = c.wire[d][:s.IntN(len(c.wire[d])+1)]
		}
	}
}

// pipes are all that still send.
func (s *sim) pipes() []*simPipe {
	var all []*simPipe
	for _, c := range s.conns {
		all = append(all, c.near)
		if c.far != nil {
			all = append(all, c.far)
		}
	}
	return all
}

func (s *sim) flushOne() {
	p := pick(s, s.pipes())
	if p == nil {
		return
	}
	if p.room && s.IntN(2) == 0 {
		s.tellRoom(p)
	} else {
		p.flush()
	}
}

func (s *sim) tellRoom(p *simPipe) bool {
	if p == nil || !p.room {
		return false
	}
	p.room = false
	p.side.feed(p.lane)
	return true
}

// deliverOne moves bytes of one carrier.
func (s *sim) deliverOne() {
	c := pick(s, s.conns)
	if c == nil {
		return
	}
	d := s.IntN(2)
	s.sender(c, d).flush()
	n := len(c.wire[d])
	if n > 0 && s.IntN(2) == 0 {
		n = 1 + s.IntN(n)
	}
	s.deliver(c, d, n)
}

func (s *sim) sender(c *simConn, dir int) *simPipe {
	if dir == 0 {
		return c.near
	}
	return c.far
}

// deliver gives n bytes in flight to the other side, or the end of them. It tells whether
// it has done something.
func (s *sim) deliver(c *simConn, d, n int) bool {
	if c.frozen[d] || c.ended[d] {
		return false
	}
	if len(c.wire[d]) == 0 {
		if c.closed[d] {
			s.noticed(c, d)
			return true
		}
		return false
	}
	b := c.wire[d][:n]
	c.wire[d] = c.wire[d][n:]
	greeting := &c.hello
	if d == 1 {
		greeting = &c.reply
	}
	if *greeting > 0 {
		skip := min(*greeting, len(b))
		b = b[skip:]
		if *greeting -= skip; *greeting > 0 {
			return true
		}
		if d == 0 {
			s.attach(c)
		} else {
			s.welcome(c)
		}
	}
	x, l := s.gateway, c.near.lane
	if d == 0 {
		x, l = s.server, nil
		if c.far != nil {
			l = c.far.lane
		}
	}
	if l == nil || len(b) == 0 {
		return true
	}
	if s.trace {
		s.traceFrames(x, l, b)
	}
	x.take(l, slices.Clone(b))
	return true
}

// traceFrames prints the frames that do not come in pieces.
func (s *sim) traceFrames(x *simSide, l *lane, b []byte) {
	in := l.in
	in.part = slices.Clone(in.part)
	for {
		f, data, _, ok, err := in.next(&b)
		if !ok || err != nil {
			return
		}
		s.tracef("%s: from %d: %s %d at %d, %d bytes", x.name, l.number, simFrames[f.kind], f.id, f.at, len(data))
	}
}

var simFrames = [frameTypes]string{"", "data", "fin", "stop", "reset", "window", "ack", "gone", "last", "ping", "pong", "leaving", "close", "budget"}

// use does what a program may do.
func (s *sim) use() {
	y := pick(s, s.streams)
	if y == nil {
		return
	}
	switch n := s.IntN(40); {
	case n < 18:
		if y.writing == nil && !y.shut && y.writes < s.maxWrites {
			s.write(y, s.size())
		} else {
			s.writeOn(y, n == 0)
		}
	case n < 36:
		if !y.slow {
			s.read(y, s.size())
		}
	case n == 36:
		s.closeWrite(y)
	case n == 37 && s.IntN(4) == 0:
		s.close(y, false)
	case n == 38 && s.IntN(6) == 0:
		s.close(y, true)
	}
}

// write does what Stream.Write does before it waits.
func (s *sim) write(y *simStream, n int) {
	y.writes++
	if y.sendErr != nil {
		return
	}
	s.tracef("%s: write %d bytes on %d", y.side.name, n, y.id)
	y.writing = y.data(y.side.client, y.total, n)
	y.out = y.writing
	y.e.push(y.Stream)
	s.written(y)
}

// written does what Stream.Write does when it has waited, or before.
func (s *sim) written(y *simStream) {
	if len(y.out) > 0 && y.sendErr == nil {
		if y.wait = y.wrote.wait(); y.side.held >= y.side.limit {
			s.counts.Stalled++
		}
		return
	}
	s.endWrite(y)
}

func (s *sim) endWrite(y *simStream) {
	y.total += uint64(len(y.writing) - len(y.out))
	y.writing, y.out, y.wait = nil, nil, nil
	if y.total != y.sent {
		s.fail("%s: a Write of stream %d says %d bytes, and %d were sent", y.side.name, y.id, y.total, y.sent)
	}
}

// writeOn goes on with a Write if it was woken. With late, its deadline has passed.
func (s *sim) writeOn(y *simStream, late bool) bool {
	if y.writing == nil {
		return false
	}
	select {
	case <-y.wait:
		s.written(y)
		return true
	default:
	}
	if late {
		s.tracef("%s: the Write of %d is late", y.side.name, y.id)
		s.endWrite(y)
	}
	return false
}

// read does one Read if it would not wait, or does not wait any more.
func (s *sim) read(y *simStream, n int) bool {
	if y.eof || y.err != nil || y.closed {
		return false
	}
	if y.idle != nil {
		select {
		case <-y.idle:
			y.idle = nil
		default:
			return false
		}
	}
	if y.readErr == nil && y.queue.size == 0 && y.Stream.read != y.Stream.end {
		y.idle = y.ready.wait()
		return false
	}
	p := make([]byte, min(n, simPrime)) // data has no more
	n, err := y.Read(p)
	if !bytes.Equal(p[:n], y.data(!y.side.client, y.got, n)) {
		s.fail("%s: wrong bytes of stream %d at %d", y.side.name, y.id, y.got)
	}
	y.got += uint64(n)
	if err == io.EOF {
		y.eof = true
		s.tracef("%s: end of %d at %d", y.side.name, y.id, y.got)
	} else if err != nil {
		y.err = err
		s.tracef("%s: read of %d: %v", y.side.name, y.id, err)
	}
	return true
}

func (s *sim) closeWrite(y *simStream) {
	if !y.shut {
		s.tracef("%s: CloseWrite %d", y.side.name, y.id)
		y.shut = true
		y.CloseWrite()
	}
}

func (s *sim) close(y *simStream, reset bool) {
	s.tracef("%s: Close %d reset %v", y.side.name, y.id, reset)
	y.shut, y.closed = true, true
	if reset {
		y.Reset()
	} else {
		y.Close()
	}
}

// fault does what a network does, and what the owners of an end do because of it.
func (s *sim) fault() {
	c := pick(s, s.conns)
	if c == nil {
		return
	}
	l := c.near.lane
	switch s.IntN(16) {
	case 0, 1, 2:
		s.tracef("cut %d", c.number)
		s.counts.Cuts++
		s.cut(c)
	case 3: // each end notices at another time, or not at all
		s.tracef("cut and freeze %d", c.number)
		s.counts.Cuts++
		s.cut(c)
		c.frozen[s.IntN(2)] = true
	case 4:
		s.tracef("freeze %d", c.number)
		c.frozen[s.IntN(2)] = true
	case 5:
		c.frozen = [2]bool{true, true}
	case 6:
		c.frozen = [2]bool{}
	case 7: // the gateway has heard nothing for too long
		s.noticed(c, 1)
	case 8: // the server, too
		if c.far != nil {
			s.noticed(c, 0)
		}
	case 9, 10:
		if !l.closed {
			s.tracef("gateway: last %d", c.number)
			s.gateway.last(l)
		}
	case 11:
		if c.far != nil && s.IntN(4) == 0 {
			s.tracef("server: last %d", c.number)
			s.server.last(c.far.lane)
		}
	case 12: // as in Turned
		if c.reply == 0 && !l.gone {
			l.avoid = !l.avoid
			s.tracef("gateway: %d avoid %v", c.number, l.avoid)
			if l.avoid {
				s.gateway.unhome(l)
			} else {
				s.gateway.feed(l)
			}
		}
	case 13:
		if !l.gone {
			s.gateway.ping(l, 1)
		}
		if c.far != nil && !c.far.lane.gone {
			s.server.ping(c.far.lane, 1)
		}
	case 14: // a frameGone comes twice
		x := pick(s, []*simSide{s.gateway, s.server})
		if x.err == nil && len(x.said) > 0 {
			g := *pick(s, x.said)
			x.say(&g)
		}
	case 15: // it is sent again, although it has come
		x, y := s.gateway, s.server
		if s.IntN(2) == 0 {
			x, y = y, x
		}
		if s.sloppy && x.err == nil && y.err == nil {
			for _, number := range slices.Sorted(maps.Keys(x.parted)) {
				p := x.parted[number]
				if q := y.parted[number]; q != nil && q.received > p.arrived {
					n := p.arrived + s.Int64N(q.received-p.arrived)
					s.tracef("%s: %d has got only %d of %d", x.name, number, n, q.received)
					if err := x.peerGone(number, uint64(n)); err != nil { // it is within a header
						x.reason, s.over = err, true
						x.shut(err)
						return
					}
				}
			}
		} else if s.budgets && l.open() {
			n := uint64(0)
			if s.IntN(4) > 0 {
				n = uint64(1 + s.IntN(8*s.pipeSize))
			}
			s.tracef("gateway: budget of %d is %d", c.number, n)
			s.gateway.try(l, frame{kind: frameBudget, id: n})
		} else if s.IntN(4) == 0 {
			s.server.leaving(stageSoon)
		}
	}
}

// end ends the session.
func (s *sim) end() {
	x := s.gateway
	if s.created && s.IntN(2) == 0 {
		x = s.server
	}
	s.counts.Ended++
	x.reason = errClosed
	if s.IntN(2) == 0 {
		s.tracef("%s: shut", x.name)
		x.shut(errClosed)
	} else {
		s.tracef("%s: fail", x.name)
		x.end.fail(errDetached)
	}
	s.over = true
}

// settle ends all faults, and lets everything happen that still has to.
func (s *sim) settle() {
	for _, x := range []*simSide{s.gateway, s.server} {
		x.memory.Limit(2*simOthers, 0)
	}
	s.settling = true
	s.tracef("settle")
	for _, c := range s.conns {
		if c.frozen[0] || c.frozen[1] || c.closed[0] || c.closed[1] {
			if s.IntN(2) == 0 {
				s.cut(c)
			}
			c.frozen = [2]bool{}
			if c.near.lane.avoid {
				s.noticed(c, 1) // the gateway gives it up
			}
		}
	}
	for _, y := range s.streams {
		y.slow = false
	}
	s.quiet("the writes")
	if s.failure == nil && s.gateway.err == nil && s.server.err == nil {
		s.compare()
	}
	for _, i := range s.Perm(len(s.streams)) {
		if y := s.streams[i]; !y.closed {
			s.close(y, s.IntN(3) == 0)
		}
	}
	s.quiet("the end of all streams")
	for range 20 {
		if len(s.gateway.said)+len(s.server.said)+len(s.gateway.parted)+len(s.server.parted) == 0 && max(s.gateway.held, s.server.held) < 500 {
			break
		}
		for _, x := range []*simSide{s.gateway, s.server} {
			for _, l := range slices.Clone(x.lanes) {
				x.ping(l, 0)
			}
		}
		s.quiet("confirmation")
	}
	if s.failure == nil {
		s.empty()
	}
}

// quiet does all that can happen. The order is that of the lists: that of the schedule is
// random enough.
func (s *sim) quiet(what string) {
	for rounds := 0; s.failure == nil; rounds++ {
		if rounds > 20_000 {
			s.fail("no end of %s", what)
			return
		}
		busy := false
		s.counts.Steps++
		if s.gateway.err == nil && !slices.ContainsFunc(s.live(), func(c *simConn) bool { return c.near.lane.open() }) {
			s.dial()
			busy = true
		}
		s.conns = slices.DeleteFunc(s.conns, func(c *simConn) bool { return c.ended[0] && c.ended[1] })
		if s.gateway.err != nil && s.server.err == nil && len(s.server.lanes) == 0 {
			s.server.end.fail(errDetached) // as when nobody comes back
		}
		for _, c := range s.conns {
			for d := range c.wire {
				p := s.sender(c, d)
				if p.canFlush() {
					p.flush()
					busy = true
				}
				busy = s.tellRoom(p) || busy
				n := len(c.wire[d])
				if n > 1 && s.IntN(4) == 0 {
					n = 1 + s.IntN(n)
				}
				busy = s.deliver(c, d, n) || busy
			}
		}
		for _, y := range s.streams {
			busy = s.writeOn(y, false) || busy
			busy = s.read(y, 4*s.sizes) || busy
		}
		s.check()
		if !busy {
			return
		}
	}
}

// check holds what is true at any time.
func (s *sim) check() {
	for _, x := range []*simSide{s.gateway, s.server} {
		x.check()
	}
}

func (x *simSide) check() {
	s := x.sim
	if err := x.err; err != nil {
		switch {
		case x.reason != nil, s.over && (err == errPeerClosed || err == errUnknown || err == errDetached):
		default:
			s.fail("%s: %v", x.name, err)
		}
		s.over = true
		return
	}
	held := int64(0)
	for _, b := range x.orphans {
		held += int64(len(b))
	}
	if x.orphan.kind != 0 {
		held += x.orphan.header + int64(len(x.orphan.data))
	}
	lanes := func(l *lane) {
		if n := l.pipe.Position() - l.pipe.(*simPipe).freed; l.held != n {
			s.fail("%s: carrier %d holds %d bytes and says %d", x.name, l.number, n, l.held)
		}
		held += l.held
	}
	for _, l := range x.lanes {
		lanes(l)
	}
	for _, l := range x.parted {
		lanes(l)
	}
	if held != x.held {
		s.fail("%s: %d bytes are held, it says %d", x.name, held, x.held)
	}
	if most := x.limit + maxMessage + 20_000; held > most {
		s.fail("%s: %d bytes are held, of %d", x.name, held, most)
	}
	if n := x.memory.promised.Load(); n < 0 {
		s.fail("%s: %d bytes are promised", x.name, n)
	}
	uses := held
	for _, y := range x.streams {
		uses += y.uses
		if y.uses != y.takes() || y.uses < int64(y.queue.size+y.early) {
			s.fail("%s: stream %d uses %d bytes, has %d and %d", x.name, y.id, y.uses, y.queue.size, y.early)
		}
	}
	if used := x.memory.Used() - x.others; uses != x.uses.Load() || uses != used {
		s.fail("%s: %d bytes of memory are used, it says %d and %d", x.name, uses, x.uses.Load(), used)
	}
}

// simOthers is how much memory other sessions use. It is so much that no stream of this one
// is reset.
const simOthers = 1 << 30

// squeeze leaves so much memory that windows change.
func (s *sim) squeeze() {
	if !s.tight {
		return
	}
	for _, x := range []*simSide{s.gateway, s.server} {
		free := int64(1<<10) << s.IntN(14)
		x.memory.Limit(x.memory.Used()+free-(4<<10), 0)
	}
}

// compare looks at both sides of each stream when nothing more happens.
func (s *sim) compare() {
	for _, a := range s.streams {
		if a.side == s.server {
			continue
		}
		id := a.id
		b := s.server.streams[id]
		if b == nil {
			if a.total > 0 && a.err == nil && !a.closed {
				s.fail("stream %d has not come to the server", id)
			}
			continue
		}
		for range 2 {
			s.compareOne(a, b)
			a, b = b, a
		}
	}
}

// compareOne looks at what a has sent to b.
func (s *sim) compareOne(a, b *simStream) {
	dead := a.closed || b.closed
	aHas, bHas := a.e.streams[a.id] == a.Stream, b.e.streams[b.id] == b.Stream
	switch {
	case b.got > a.sent:
		s.fail("%s: %d bytes of stream %d, and %d were sent", b.side.name, b.got, a.id, a.sent)
	case a.writing != nil:
		s.fail("%s: a Write of stream %d waits for ever at %d; held %d of %d, window %d, queued %v", a.side.name, a.id, a.sent, a.side.held,
			a.side.limit, a.sendMax, a.queued)
	case bHas && !b.recvOver && (!aHas || a.sendOver):
		s.fail("%s: stream %d waits for ever for bytes, it has %d; the other side has ended it", b.side.name, b.id, b.came)
	case !dead && s.resume && (a.err == nil && b.err == nil) && b.got != a.sent:
		s.fail("%s: %d bytes of stream %d have come, of %d", b.side.name, b.got, a.id, a.sent)
	case !dead && s.resume && b.err != nil && !errors.Is(b.err, errLimit):
		s.fail("%s: stream %d: %v", b.side.name, b.id, b.err)
	case !dead && a.shut && a.err == nil && b.err == nil && !b.eof:
		s.fail("%s: stream %d has no end", b.side.name, b.id)
	case a.closed && !a.gaveUp() && !b.closed && s.resume && b.err == nil && !(b.eof && b.got == a.sent):
		s.fail("%s: stream %d was closed at %d, and %d have come, end %v", b.side.name, b.id, a.sent, b.got, b.eof)
	}
}

// gaveUp tells whether the stream was reset by this side or the other one.
func (y *simStream) gaveUp() bool { return y.err != nil }

// empty looks at what is left when all streams have ended and all is confirmed.
func (s *sim) empty() {
	for _, x := range []*simSide{s.gateway, s.server} {
		if n := x.memory.promised.Load(); n != 0 {
			s.fail("%s: %d bytes are promised at the end", x.name, n)
		}
		if x.err != nil {
			continue
		}
		if len(x.lanes) == 0 {
			s.fail("%s: no carrier", x.name)
		}
		waiting := 0
		for _, l := range x.lanes {
			waiting += len(l.waiting)
		}
		for _, left := range []struct {
			n    int
			what string
		}{
			{len(x.end.streams), "streams"}, {len(x.parted), "lost carriers"}, {len(x.said), "frameGone"},
			{len(x.homeless), "writers without a lane"}, {len(x.stalled), "writers at the limit"}, {waiting, "writers on lanes"},
			{len(x.orphans) + int(x.orphan.kind), "frames without a lane"}, {len(x.seen.gaps), "gaps between streams"},
			{len(x.carriers.gaps), "gaps between carriers"},
		} {
			if left.n != 0 {
				s.fail("%s: %d %s are left", x.name, left.n, left.what)
			}
		}
		if x.held > 1000 {
			s.fail("%s: %d bytes are held at the end", x.name, x.held)
		}
	}
	for _, y := range s.streams {
		if y.queue.size != 0 || y.early != 0 || y.parts != nil {
			s.fail("%s: bytes of stream %d are left", y.side.name, y.id)
		}
	}
}
