package session

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"ptgate/gateway/carrier"
)

// someFrames are frames of all types, one after the other.
func someFrames() []byte {
	var b []byte
	for kind := byte(1); kind < frameTypes; kind++ {
		f := frame{kind: kind, id: 300, at: 70000}
		if kind == frameData {
			f.n = 5
		}
		b = f.append(b)
		b = append(b, "bytes"[:f.n]...)
	}
	return b
}

// parsed is what a parser has made of bytes. The pieces of one frameData are one again.
type parsed struct {
	frames []frame
	data   []byte
	used   int
	failed bool
}

func (r *parsed) parse(in *parser, b []byte) {
	for !r.failed {
		f, data, used, ok, err := in.next(&b)
		if r.failed = err != nil; r.failed || !ok {
			return
		}
		r.used += used
		r.data = append(r.data, data...)
		n := len(r.frames)
		if f.kind == frameData && n > 0 && used == len(data) {
			r.frames[n-1].n += f.n
			continue
		}
		r.frames = append(r.frames, f)
	}
}

// The frames are the same however the bytes are split.
func FuzzParser(f *testing.F) {
	f.Add(someFrames(), uint64(1))
	f.Add([]byte{frameWindow, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, uint64(2))
	f.Add([]byte{frameData, 1, 2, 0}, uint64(3))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		var whole, split parsed
		whole.parse(new(parser), b)
		random := rand.New(rand.NewPCG(seed, 0))
		in := new(parser)
		for rest := b; len(rest) > 0; {
			n := 1 + random.IntN(min(len(rest), 40))
			split.parse(in, slices.Clone(rest[:n]))
			rest = rest[n:]
		}
		if !slices.Equal(whole.frames, split.frames) || !bytes.Equal(whole.data, split.data) || whole.failed != split.failed ||
			whole.used != split.used || whole.used > len(b) {
			t.Errorf("whole %+v, split %+v", whole, split)
		}
		if len(in.part) > headerMax {
			t.Errorf("the parser keeps %d bytes", len(in.part))
		}
		for _, x := range whole.frames {
			if y, n, err := parseFrame(x.append(nil)); x.n > 0 && (y != x || n == 0 || err != nil) {
				t.Errorf("%+v becomes %+v, %v", x, y, err)
			}
		}
	})
}

// A frame that is packed again is the same.
func FuzzHello(f *testing.F) {
	h := hello{flags: flagCreate, number: 3, budget: 16 << 10, resume: 3600}
	f.Add(h.append()[len(carrier.Preamble)+2:])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		if again, err := parseHello(h.append()[len(carrier.Preamble)+2:]); again != h || err != nil {
			t.Errorf("%+v becomes %+v, %v", h, again, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	r := reply{answer: answerFull, resume: 60}
	f.Add(r.append()[len(carrier.Preamble)+2:])
	r.key, r.signature = make([]byte, 32), make([]byte, 64)
	f.Add(r.append()[len(carrier.Preamble)+2:])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseReply(b)
		if err != nil {
			return
		}
		r.box(&hello{})
		again, err := parseReply(r.append()[len(carrier.Preamble)+2:])
		if err != nil || again.answer != r.answer || again.resume != r.resume || again.mac != r.mac || !bytes.Equal(again.key, r.key) ||
			!bytes.Equal(again.signature, r.signature) {
			t.Errorf("%+v becomes %+v, %v", r, again, err)
		}
	})
}

// What has arrived before a cut, and what is sent again, is all that was sent.
func FuzzMissing(f *testing.F) {
	f.Add([]byte{1, 200, 2, 3, 1, 1, 5, 4, 1, 90}, uint16(150))
	f.Fuzz(func(t *testing.T, program []byte, cut uint16) {
		var b []byte
		at := uint64(0)
		for i := 0; i+1 < len(program); i += 2 {
			x := frame{kind: 1 + program[i]%(frameTypes-1), id: uint64(program[i+1]), at: uint64(program[i+1]) << (program[i] % 32)}
			if x.kind == frameData {
				x.id, x.at, x.n = 7, at, uint64(program[i+1])+1
				at += x.n
			}
			b = x.append(b)
			for n := range x.n {
				b = append(b, byte(x.at+n))
			}
		}
		n := min(int(cut), len(b))
		var all, got parsed
		all.parse(new(parser), b)
		got.parse(new(parser), b[:n])
		out, _, err := missing(carrier.Piece{At: 0, B: b}, int64(got.used), true)
		if err != nil {
			t.Fatal(err)
		}
		var again parsed
		again.parse(new(parser), out)
		if again.failed || again.used != len(out) {
			t.Fatalf("what is sent again is no frames: %+v", again)
		}
		if !bytes.Equal(append(got.data, again.data...), all.data) {
			t.Errorf("%d bytes have come and %d are sent again, of %d", len(got.data), len(again.data), len(all.data))
		}
		offset := uint64(len(got.data))
		for _, x := range again.frames {
			if x.kind == frameData {
				if x.at != offset {
					t.Errorf("bytes at %d, want %d", x.at, offset)
				}
				offset += x.n
			}
		}
		same := func(x frame) bool {
			switch x.kind {
			case frameFin, frameStop, frameReset, frameWindow, frameLeaving, frameClose:
				return false
			}
			return true
		}
		want := slices.DeleteFunc(slices.Clone(all.frames), same)
		have := slices.DeleteFunc(append(got.frames, again.frames...), same)
		if !slices.Equal(want, have) {
			t.Errorf("frames %v, want %v", have, want)
		}
	})
}

// Whatever a peer sends, an end keeps its bounds.
func FuzzEnd(f *testing.F) {
	f.Add(someFrames(), true, uint64(1))
	f.Add(someFrames(), false, uint64(2))
	f.Add(frame{kind: frameGone, id: 0, at: 3}.append(frame{kind: frameData, id: 1, at: 0, n: 3}.append(nil)), false, uint64(3))
	f.Fuzz(func(t *testing.T, b []byte, client bool, seed uint64) {
		h := newHostile(client, 2)
		h.sim.Rand = rand.New(rand.NewPCG(seed, 0))
		if client {
			h.sim.stream(h.simSide, h.end.open())
			h.sim.stream(h.simSide, h.end.open())
		}
		for len(b) > 0 && h.end.err == nil {
			n := 1 + h.sim.IntN(min(len(b), 50))
			h.send(h.sim.IntN(2), b[:n])
			b = b[n:]
		}
		h.check(t)
	})
}
