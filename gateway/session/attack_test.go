package session

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
)

// A hostile is the peer of an end.
type hostile struct {
	*simSide
	all []*lane
}

// newHostile makes an end with so many lanes.
func newHostile(client bool, lanes int) *hostile {
	s := &sim{Rand: rand.New(rand.NewPCG(1, 1)), pipeSize: 10_000}
	x := &simSide{sim: s, name: "end", streams: map[uint64]*simStream{}}
	x.end = newEnd(new(sync.Mutex), client, x, NewMemory(), true, 100_000, 10)
	x.end.window = startWindow
	s.gateway, s.server = x, x
	h := &hostile{simSide: x}
	for i := range lanes {
		n := uint64(i)
		p := &simPipe{side: x, conn: &simConn{number: n}}
		p.lane = &lane{number: n, pipe: p}
		h.all = append(h.all, p.lane)
		if !client {
			x.carriers.use(n)
		}
		x.add(p.lane)
	}
	return h
}

// send gives bytes to the end as if they came from a lane.
func (h *hostile) send(i int, b []byte) { h.take(h.all[i], b) }

// frames sends frames over the first lane.
func (h *hostile) frames(all ...frame) {
	for _, f := range all {
		h.send(0, append(f.append(nil), make([]byte, f.n)...))
	}
}

// check looks at the bounds.
func (h *hostile) check(t *testing.T) {
	t.Helper()
	h.reason = h.err
	if h.simSide.check(); h.sim.failure != nil {
		t.Error(h.sim.failure)
	}
	for _, s := range h.simSide.streams {
		if s.queue.size+s.early > startWindow || len(s.parts) > maxParts {
			t.Errorf("%d bytes in order, %d in %d parts", s.queue.size, s.early, len(s.parts))
		}
	}
	if len(h.seen.gaps) > maxGaps+1 || len(h.carriers.gaps) > maxGaps+1 || len(h.said) > maxSaid {
		t.Errorf("%d and %d gaps, %d said", len(h.seen.gaps), len(h.carriers.gaps), len(h.said))
	}
	if n := h.memory.promised.Load(); n < 0 || h.err != nil && n != 0 {
		t.Errorf("%d bytes are promised", n)
	}
}

// What breaks the protocol ends the session, with a reason. What only looks odd does not.
func TestHostileFrames(t *testing.T) {
	stop := frame{kind: frameStop, id: 0, at: 10}
	data := func(at, n uint64) frame { return frame{kind: frameData, id: 0, at: at, n: n} }
	var parts, few []frame
	for i := range uint64(maxParts + 1) {
		parts = append(parts, data(1+2*i, 1))
	}
	few = parts[:maxParts]
	gaps := func(n uint64) (all []frame) {
		for i := range n {
			all = append(all, frame{kind: frameReset, id: 2*i + 1})
		}
		return all
	}
	for _, c := range []struct {
		name   string
		client bool
		frames []frame
		want   error // nil: the session goes on
	}{
		{"bytes beyond the window", false, []frame{data(startWindow, 1)}, errFrame},
		{"bytes up to the window", false, []frame{data(startWindow-1, 1)}, nil},
		{"the largest offset", false, []frame{data(maxOffset-1, 1)}, errFrame},
		{"an offset that is too large", false, []frame{{kind: frameWindow, id: 0, at: maxOffset + 1}}, errFrame},
		{"a window that is too large", false, []frame{{kind: frameWindow, id: 0, at: 1<<64 - 1}}, errFrame},
		{"no bytes", false, []frame{data(0, 0)}, errFrame},
		{"more bytes than a frame has", false, []frame{{kind: frameData, n: maxData + 1}}, errFrame},
		{"bytes after the end", false, []frame{stop, data(10, 1)}, errFrame},
		{"bytes beyond an end that waits", false, []frame{data(11, 1), stop}, errFrame},
		{"bytes beyond the end", false, []frame{{kind: frameFin, at: 10}, data(9, 2)}, errFrame},
		{"two ends", false, []frame{{kind: frameFin, at: 10}, {kind: frameFin, at: 11}}, errFrame},
		{"the same end again", false, []frame{{kind: frameFin, at: 10}, {kind: frameFin, at: 10}, data(0, 10), {kind: frameFin, at: 10}}, nil},
		{"too many parts", false, parts, errFrame},
		{"many parts", false, few, nil},
		{"the same bytes too early, again and again", false, slices.Repeat([]frame{data(maxData, maxData)}, 5), nil},
		{"a confirmation of what was never sent", false, []frame{{kind: frameAck, id: 0, at: 1 << 40}}, carrier.ErrRelease},
		{"a confirmation beyond all numbers", false, []frame{{kind: frameAck, id: 0, at: maxOffset}}, carrier.ErrRelease},
		{"a confirmation for another carrier", false, []frame{{kind: frameAck, id: 1, at: 0}}, errFrame},
		{"a lost carrier that has more than was sent", false, []frame{{kind: frameGone, id: 1, at: 1 << 40}}, carrier.ErrRelease},
		{"a lost carrier twice", false, []frame{{kind: frameGone, id: 1, at: 0}, {kind: frameGone, id: 1, at: 0}}, nil},
		{"a carrier that never came", false, []frame{{kind: frameGone, id: 1 << 40, at: 5}}, nil},
		{"a carrier with too large a number", false, []frame{{kind: frameGone, id: maxOffset + 1, at: 0}}, errFrame},
		{"the gateway does not know such a carrier", true, []frame{{kind: frameGone, id: 1 << 40, at: 5}}, nil},
		{"a frame after the last one", false, []frame{{kind: frameLast}, {kind: framePing}}, nil}, // nothing is read there
		{"a stream that was never opened", true, []frame{{kind: frameData, id: 7, n: 1}}, errFrame},
		{"a budget from the far end", true, []frame{{kind: frameBudget, id: 7}}, errFrame},
		{"a stream with too large a number", false, []frame{{kind: frameData, id: 1 << 63, n: 1}}, errFrame},
		{"many gaps between streams", false, gaps(maxGaps), nil},
		{"too many gaps between streams", false, gaps(maxGaps + 1), errFrame},
		{"too many streams", false, slices.Repeat([]frame{{kind: frameFin, id: 1}}, 3), nil},
		{"a code that nobody knows", false, []frame{data(0, 1), {kind: frameReset, at: 1 << 50}}, nil},
		{"a stage that nobody knows", true, []frame{{kind: frameLeaving, id: 1 << 50}}, nil},
		{"the end of the session", false, []frame{{kind: frameClose, id: 9}}, errPeerClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHostile(c.client, 2)
			h.frames(c.frames...)
			if c.want == nil && h.err != nil || !errors.Is(h.err, c.want) {
				t.Errorf("%v, want %v", h.err, c.want)
			}
			h.check(t)
		})
	}
	for name, b := range map[string]string{
		"no type":                       "\x00",
		"a type that nobody knows":      string([]byte{frameTypes}),
		"a number of more than 64 bits": "\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
		"a number of 11 bytes":          "\x09\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",
	} {
		h := newHostile(false, 2)
		for i := range b {
			h.send(0, []byte{b[i]})
		}
		if !errors.Is(h.err, errFrame) {
			t.Errorf("%s: %v", name, h.err)
		}
		h.check(t)
	}
}

// A peer that asks again and again, and takes no answer, is given up.
func TestHostileFloods(t *testing.T) {
	for name, next := range map[string]func(i uint64) frame{
		"refused streams":           func(i uint64) frame { return frame{kind: frameData, id: i, n: 1} },
		"signs of life":             func(i uint64) frame { return frame{kind: framePing, id: 1 << 63} },
		"carriers that never came":  func(i uint64) frame { return frame{kind: frameGone, id: i + 2} },
		"frameGone with large gaps": func(i uint64) frame { return frame{kind: frameGone, id: i*1000 + 2} },
	} {
		h := newHostile(false, 2)
		h.refuse = codeLeaving
		i, held, said := uint64(0), int64(0), 0
		for ; i < 300_000 && h.err == nil; i++ {
			h.frames(next(i))
			held, said = max(held, h.held), max(said, len(h.said))
		}
		if !errors.Is(h.err, errFrame) {
			t.Errorf("%s: %d bytes are held after %d frames, %v", name, h.held, i, h.err)
		}
		if held > h.limit+maxBeyond+1000 {
			t.Errorf("%s: %d bytes were held", name, held)
		}
		// Each confirmation looks at all of them, and each lost carrier repeats them.
		if said > 20_000 {
			t.Errorf("%s: %d frames waited to be confirmed one by one", name, said)
		}
		t.Logf("%s: given up after %d frames, with %d bytes", name, i, held)
	}
}

// The sessions of one client together are bounded, too: one that keeps more than its share
// is given up, one that keeps little goes on.
func TestHostileFloodsOfManySessions(t *testing.T) {
	h := newHostile(false, 2)
	h.peer = new(peer)
	const used = DefaultShare + DefaultShare/floodPart
	h.peer.used.Store(used)
	h.frames(frame{kind: frameData, id: 0, n: 1})
	told := 0
	h.memory.Reset = func(_ bool, streams int) { told += streams }
	ping := frame{kind: framePing, id: 1 << 63}
	for h.held < leastKept-100 {
		if h.frames(ping); h.err != nil {
			t.Fatalf("%v, with %d bytes", h.err, h.held)
		}
	}
	for range 100 {
		h.frames(ping)
	}
	if !errors.Is(h.err, errFrame) {
		t.Errorf("%v, with %d bytes", h.err, h.held)
	}
	if told != 1 {
		t.Errorf("it is told of %d resets", told)
	}
	if n := h.peer.used.Load(); n != used {
		t.Errorf("%d bytes are counted after it has ended", n)
	}
}

// part makes a carrier come and go. Its answer is what the end says of it.
func (h *hostile) part(number uint64) {
	p := &simPipe{side: h.simSide, conn: &simConn{number: number}}
	p.lane = &lane{number: number, pipe: p}
	h.carriers.use(number)
	h.add(p.lane)
	h.drop(p.lane, false)
}

// A peer whose carriers come and go must say what it has got from them. If it does not, it
// is given up before it costs much memory.
func TestHostilePartedCarriers(t *testing.T) {
	const first = 2
	h := newHostile(false, first)
	n := 0
	for ; n < 10*maxParted && h.err == nil; n++ {
		h.part(uint64(first + n))
	}
	if !errors.Is(h.err, errFrame) || n > maxParted+1 || len(h.parted) != 0 {
		t.Errorf("%v after %d carriers, %d are kept", h.err, n, len(h.parted))
	}

	// One that says so goes on.
	h = newHostile(false, first)
	h.peer = new(peer)
	for i := range uint64(3 * maxParted) {
		h.part(first + i)
		h.frames(frame{kind: frameGone, id: first + i, at: 0})
		h.frames(frame{kind: frameAck, id: 0, at: uint64(h.all[0].pipe.(*simPipe).at)})
	}
	if n := h.peer.parted.Load(); h.err != nil || n != 0 || len(h.parted) != 0 {
		t.Errorf("%v, %d carriers are counted, %d kept", h.err, n, len(h.parted))
	}

	// All sessions of one client are bounded together. One with few such carriers goes on.
	client := new(peer)
	var many []*hostile
	for range maxPartedPeer / (maxParted - 1) {
		h := newHostile(false, first)
		h.peer = client
		for i := range uint64(maxParted - 1) {
			h.part(first + i)
		}
		many = append(many, h)
	}
	few, last := newHostile(false, first), newHostile(false, first)
	few.peer, last.peer = client, client
	few.part(first)
	for i := uint64(0); i < maxParted/2 && last.err == nil; i++ {
		last.part(first + i)
	}
	for _, h := range append(many, few) {
		if h.err != nil {
			t.Error(h.err)
		}
	}
	if !errors.Is(last.err, errFrame) || client.parted.Load() > maxPartedPeer {
		t.Errorf("%v, %d carriers of one client", last.err, client.parted.Load())
	}
	for _, h := range append(many, few) {
		h.fail(errClosed)
	}
	if n := client.parted.Load(); n != 0 {
		t.Errorf("%d carriers are counted at the end", n)
	}
}

// A carrier that ends in order breaks no stream, also where streams do not outlive their
// carriers. Gone comes over another carrier, and may overtake the last bytes of this one.
func TestGoneOvertakesLast(t *testing.T) {
	for _, all := range []bool{true, false} {
		h := newHostile(false, 2)
		h.resume = false
		h.frames(frame{kind: frameData, id: 0, n: 1})
		old := h.all[0]
		h.last(old)
		for range 10 { // all of it leaves
			old.pipe.(*simPipe).flush()
		}
		n := uint64(old.pipe.Position())
		if !all {
			n-- // the carrier was lost
		}
		for range 2 { // it is said again when the carrier is lost that it came with
			h.send(1, frame{kind: frameGone, id: 0, at: n}.append(nil))
		}
		if lives := h.end.streams[0] != nil; lives != all || h.err != nil {
			t.Errorf("the peer has all: %v, and the stream lives: %v, %v", all, lives, h.err)
		}
		if !all {
			continue
		}
		h.frames(frame{kind: frameData, id: 0, at: 1, n: 1}, frame{kind: frameLast})
		if s := h.end.streams[0]; s == nil || s.queue.size != 2 || len(h.parted) != 0 || !old.gone || h.err != nil {
			t.Errorf("after the last bytes: %+v, %d carriers are kept, %v", s, len(h.parted), h.err)
		}
		h.check(t)
	}
}

// A server is a Server without a network.
type attacked struct {
	*Server
	group *Group
}

func newAttacked(t *testing.T, resume time.Duration, handle func(*Stream)) *attacked {
	s := NewServer(nil, nil, func() ServerSettings { return ServerSettings{Resume: resume} })
	g := s.Group(func() int { return 10 }, slog.New(slog.DiscardHandler), func(s *Stream) func() { handle(s); return nil })
	t.Cleanup(g.Close)
	return &attacked{s, g}
}

// attach sends a hello and frames, and returns what the server answers with, and how many
// bytes it has sent in all when the connection ends.
func (a *attacked) attach(t *testing.T, client string, h *hello, frames []byte, stay bool) (answer byte, sent int) {
	t.Helper()
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, c, err := carrier.Sniff(stream.From(far), time.Minute)
		if err == nil {
			a.group.Serve(context.Background(), c, ServeOptions{Handshake: time.Minute, Client: client, Traffic: new(carrier.Traffic)})
		}
	})
	wg.Go(func() { near.Write(append(h.append(), frames...)) })
	head := make([]byte, len(carrier.Preamble))
	if _, err := io.ReadFull(near, head); err != nil {
		t.Fatal(err)
	}
	body, err := readBody(near)
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseReply(body)
	if err != nil {
		t.Fatal(err)
	}
	if !stay {
		near.SetReadDeadline(time.Now().Add(time.Second))
	}
	n, _ := io.Copy(io.Discard, near)
	near.Close()
	wg.Wait()
	return r.answer, len(r.append()) + int(n)
}

func (a *attacked) counts() (sessions, detached int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.sessions), len(a.detached)
}

// Whoever does not know the secret gets the same answer as for a session that there is
// not, and nothing remains of it.
func TestHostileHellos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAttacked(t, time.Minute, func(s *Stream) { s.WaitReset(); s.Close() })
		open := frame{kind: frameData, id: 0, n: 1}.append(nil)
		good := &hello{flags: flagCreate, id: sessionID{1}, proof: [secretSize]byte{2}, resume: 3600}
		if answer, _ := a.attach(t, "x", good, append(open, 0), false); answer != answerWelcome {
			t.Fatal(answer)
		}
		with := func(change func(h *hello)) *hello {
			h := &hello{id: good.id, number: 5}
			change(h)
			return h
		}
		right := func(h *hello) { h.proof = mac(good.proof, roleGateway, h.id, h.number) }
		for _, c := range []struct {
			name string
			h    *hello
			want byte
		}{
			{"no such session", with(func(h *hello) { h.id[5] = 1; right(h) }), answerUnknown},
			{"no proof", with(func(*hello) {}), answerUnknown},
			{"the proof of another number", with(func(h *hello) { right(h); h.number++ }), answerUnknown},
			{"the proof of the box", with(func(h *hello) { h.proof = mac(good.proof, roleBox, h.id, h.number) }), answerUnknown},
			{"another secret", with(func(h *hello) { h.flags = flagCreate; h.proof[0] = 9 }), answerUnknown},
			{"the same hello again", good, answerRefused},
			{"a new carrier", with(right), answerWelcome},
			{"the same carrier again", with(right), answerRefused},
		} {
			answer, _ := a.attach(t, "x", c.h, nil, false)
			if answer != c.want {
				t.Errorf("%s: answer %d, want %d", c.name, answer, c.want)
			}
			if n, _ := a.counts(); n != 1 {
				t.Errorf("%s: %d sessions", c.name, n)
			}
		}
		if _, err := parseHello(with(func(h *hello) { h.number = maxOffset + 1 }).append()[len(carrier.Preamble)+2:]); err == nil {
			t.Error("a number is too large")
		}
	})
}

// A client that asks for signs of life and takes them, but confirms nothing, is given up
// before the far end keeps much for it.
func TestPingsWithoutConfirmation(t *testing.T) {
	const buffer = 1 << 20
	s := NewServer(nil, nil, func() ServerSettings { return ServerSettings{Resume: time.Hour, Buffer: buffer} })
	g := s.Group(func() int { return 10 }, quiet, func(*Stream) func() { return nil })
	defer g.Close()
	a := &attacked{s, g}
	near, far := tcpPair()
	var wg sync.WaitGroup
	wg.Go(func() { (&box{group: a.group}).serve(far) })
	h := hello{flags: flagCreate, id: sessionID{1}, resume: 3600}
	near.Write(h.append())
	ping := frame{kind: framePing, id: 1 << 63}.append(nil)
	many := slices.Repeat(ping, 60_000/len(ping))
	var sent, most int64
	for err := error(nil); err == nil; {
		var n int
		n, err = near.Write(many)
		sent += int64(n)
		if err == nil {
			_, err = io.CopyN(io.Discard, near, int64(n)) // an answer is as long
		}
		most = max(most, a.memory.Used())
		if sent > 4*(buffer+maxBeyond) {
			t.Errorf("it goes on after %d bytes, and keeps %d", sent, most)
			break
		}
	}
	near.Close()
	wg.Wait()
	if sessions, _ := a.counts(); sessions != 0 { // it is not even resumed
		t.Errorf("%d sessions are left", sessions)
	}
	t.Logf("given up after %d bytes, when %d were kept", sent, most)
}

// With a budget of one byte, only the answer is sent, and the session ends as any other.
func TestBudgetOfOneByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAttacked(t, time.Minute, func(s *Stream) {
			s.Write(make([]byte, 100_000))
			s.Close()
		})
		first := &hello{flags: flagCreate, id: sessionID{1}, budget: 1, resume: 3600}
		open := append(frame{kind: frameData, id: 0, n: 1}.append(nil), 0)
		_, greeting := a.attach(t, "x", &hello{flags: flagCreate, id: sessionID{2}, resume: 0}, nil, false)
		for i := range uint64(20) {
			h := *first
			if h.number = i; i > 0 {
				h.flags, h.proof = 0, mac(h.proof, roleGateway, h.id, i)
			}
			answer, sent := a.attach(t, "x", &h, open, false)
			if answer != answerWelcome || sent > greeting {
				t.Errorf("answer %d, %d bytes, want %d", answer, sent, greeting)
			}
			if synctest.Wait(); i > 0 {
				if n, detached := a.counts(); n != 1 || detached != 1 {
					t.Errorf("%d sessions, %d of them are detached", n, detached)
				}
			}
		}
		<-time.After(2 * time.Minute)
		if n, detached := a.counts(); n != 0 || detached != 0 {
			t.Errorf("%d sessions are left, %d of them are detached", n, detached)
		}
	})
}

// Sessions that are opened and dropped take bounded memory.
func TestManySessions(t *testing.T) {
	n := 10_000
	if testing.Short() || raceEnabled {
		n = 1000
	}
	for _, clients := range []int{1, n} {
		synctest.Test(t, func(t *testing.T) {
			a := newAttacked(t, 24*time.Hour, func(s *Stream) { s.WaitReset(); s.Close() })
			begin := heap()
			open := append(frame{kind: frameData, id: 0, n: 1}.append(nil), 0)
			for i := range n {
				h := &hello{flags: flagCreate, resume: 24 * 3600}
				binary.BigEndian.PutUint64(h.id[:], uint64(i))
				client := strconv.Itoa(i % clients)
				if answer, _ := a.attach(t, client, h, open, false); answer != answerWelcome {
					t.Fatal(answer)
				}
			}
			synctest.Wait()
			sessions, detached := a.counts()
			most := maxDetachedClient
			if clients > 1 {
				most = min(maxDetached, n)
			}
			if sessions > most || detached > most {
				t.Errorf("%d sessions, %d of them are detached, want at most %d", sessions, detached, most)
			}
			t.Logf("%d clients: %d sessions of %d are kept, with %d bytes each", clients, sessions, n, (heap()-begin)/int64(max(sessions, 1)))
		})
	}
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// Peers fill the memory. Streams of the session that holds much are reset, those that hold
// most first. A session that holds little goes on, and so do small streams.
func TestHostileFillsMemory(t *testing.T) {
	const limit = 4 << 20
	for name, peers := range map[string]bool{"a client": true, "the process": false} {
		hog, other := newHostile(false, 2), newHostile(false, 2)
		m := NewMemory()
		told := 0
		m.Reset = func(gateway bool, streams int) {
			if gateway {
				t.Errorf("%s: a stream was reset at the gateway", name)
			}
			told += streams
		}
		if m.Limit(limit, 0); peers {
			m.Limit(10*limit, limit)
			p := new(peer)
			hog.end.peer, other.end.peer = p, p
		}
		hog.end.memory, other.end.memory = m, m
		hog.maxStreams = 1000
		data := func(id, at, n uint64) frame { return frame{kind: frameData, id: id, at: at, n: n} }
		other.frames(data(0, 0, 1000))
		for id := range uint64(500) {
			hog.frames(data(id, 0, 100)) // small
		}
		most := int64(0)
		for id := uint64(500); id < 700; id++ {
			for at := uint64(0); at < startWindow; at += maxData {
				hog.frames(data(id, at, maxData))
				most = max(most, m.Used())
			}
			if most > limit+limit/8 {
				t.Fatalf("%s: %d bytes are used, of %d", name, most, limit)
			}
		}
		if hog.err != nil || other.err != nil {
			t.Errorf("%s: %v, %v", name, hog.err, other.err)
		}
		if s := other.end.streams[0]; s == nil || s.queue.size != 1000 {
			t.Errorf("%s: a stream of another session was reset", name)
		}
		small, large := 0, 0
		for id := range hog.end.streams {
			if id < 500 {
				small++
			} else {
				large++
			}
		}
		if small != 500 || large == 0 || large > limit/startWindow {
			t.Errorf("%s: %d small streams and %d large ones are left", name, small, large)
		}
		if told != 200-large {
			t.Errorf("%s: it is told of %d resets, not of %d", name, told, 200-large)
		}
		for _, h := range []*hostile{hog, other} {
			h.fail(errClosed)
		}
		if n := m.Used(); n != 0 {
			t.Errorf("%s: %d bytes are used at the end", name, n)
		}
		if n := m.promised.Load(); n != 0 {
			t.Errorf("%s: %d bytes are promised at the end", name, n)
		}
	}
}

// Windows that have grown leave room for those that have not.
func TestGrownWindows(t *testing.T) {
	for name, peers := range map[string]bool{"a client": true, "the process": false} {
		h := newHostile(false, 2)
		most := int64(DefaultMemory / 2)
		if peers {
			h.end.peer = new(peer)
			most = DefaultShare / 2
		}
		if !h.end.grow(most) || h.end.grow(1) {
			t.Errorf("%s: the sum of the windows is not %d", name, most)
		}
		h.end.promise(-most)
	}
}

// Bytes that nobody has read count until they are dropped, also those of a stream that has
// ended, and may be dropped for others.
func TestEndedStreamsHoldMemory(t *testing.T) {
	h := newHostile(false, 2)
	h.frames(frame{kind: frameData, id: 0, n: maxData}, frame{kind: frameFin, id: 0, at: maxData})
	s := h.end.streams[0]
	s.CloseWrite()
	if len(h.end.streams) != 0 || len(h.end.ended) != 1 || h.memory.Used() < maxData {
		t.Errorf("%d streams, %d have ended, %d bytes are used", len(h.end.streams), len(h.end.ended), h.memory.Used())
	}
	h.memory.Limit(maxData/2, 0)
	h.frames(frame{kind: frameData, id: 1, n: 1})
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, errMemory) {
		t.Errorf("read: %v", err)
	}
	if len(h.end.ended) != 0 {
		t.Error("it is not forgotten")
	}
	s.Close()
}

// A client may have so many streams, and may open so many in a second. Those that are
// refused cost nothing, and places are given back when the handlers have returned.
func TestStreamsOfAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, perSecond = 5, 8
		spare := 0 // so many streams end soon
		s := NewServer(nil, nil, func() ServerSettings {
			return ServerSettings{ClientStreams: most, ClientNew: perSecond, Spare: func(client string) bool {
				if client != "x" {
					t.Errorf("who makes room is %q", client)
				}
				spare--
				return spare >= 0
			}}
		})
		var began atomic.Int64
		done := make(chan struct{})
		g := s.Group(func() int { return 1000 }, quiet, func(s *Stream) func() {
			began.Add(1)
			return func() { <-done; s.Close() }
		})
		defer g.Close()
		a := &attacked{s, g}
		open := func(id byte, n uint64) (opened int64) {
			var all []byte
			for i := range n {
				all = append(frame{kind: frameData, id: i, n: 1}.append(all), 0)
			}
			before := began.Load()
			a.attach(t, "x", &hello{flags: flagCreate, id: sessionID{id}}, all, false)
			synctest.Wait()
			return began.Load() - before
		}
		if n := open(1, 20); n != most {
			t.Errorf("%d streams, want %d", n, most)
		}
		if n := open(2, 20); n != 0 { // the session has ended, and its handlers have not
			t.Errorf("%d streams more", n)
		}
		<-time.After(time.Second)
		spare = 2
		if n := open(3, 5); n != 2 {
			t.Errorf("%d streams for the 2 that end soon", n)
		}
		close(done)
		synctest.Wait()
		<-time.After(time.Minute)
		done = make(chan struct{})
		close(done)
		if n := open(3, 20); n < most || n > perSecond {
			t.Errorf("%d streams at once, want at most %d", n, perSecond)
		}
	})
}

// The reset of a stream that a box has not looked at, because it is about to stop, shows that
// it is. The frame that says so may be late, and each new stream would be lost before it comes.
func TestResetShowsLeaving(t *testing.T) {
	for code, want := range map[uint64]uint64{codeLimit: 0, codeLeaving: stageNow} {
		h := newHostile(true, 2)
		h.mu.Lock()
		s := h.open()
		h.mu.Unlock()
		h.frames(frame{kind: frameReset, id: s.id, at: code})
		if h.leaves != want {
			t.Errorf("reset with code %d: the box leaves in stage %d, want %d", code, h.leaves, want)
		}
	}
}
