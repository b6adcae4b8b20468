package session

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// Bytes that come early, in any order and again and again, are kept once, and read in
// order.
func TestEarlyBytes(t *testing.T) {
	const size = 5000
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(r.Uint32())
		}
		s := &Stream{e: &end{memory: NewMemory()}, recvMax: size, window: size, end: never}
		for range 2000 {
			at := 1 + r.IntN(size-1)
			n := 1 + r.IntN(min(size-at, 1+r.IntN(300)))
			if err := s.fill(uint64(at), want[at:at+n]); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			total, end := 0, uint64(0)
			for _, p := range s.parts {
				if p.at < end {
					t.Fatalf("seed %d: two parts have the same bytes", seed)
				}
				end = p.at + uint64(len(p.b))
				total += len(p.b)
			}
			if s.early != total || total >= size {
				t.Fatalf("seed %d: %d bytes in the parts, %d counted", seed, total, s.early)
			}
		}
		if err := s.fill(1, want[1:]); err != nil {
			t.Fatal(err)
		}
		if err := s.fill(0, want[:1]); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if n := s.queue.read(got); n != size || !bytes.Equal(got, want) || len(s.parts) > 0 || s.early != 0 {
			t.Fatalf("seed %d: %d bytes of %d, equal %v, %d parts, %d early", seed, n, size, bytes.Equal(got, want), len(s.parts), s.early)
		}
	}
}
