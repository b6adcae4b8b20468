package session

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A brittle connection breaks after so many bytes, or swallows all that comes then.
type brittle struct {
	*link
	left   atomic.Int64
	silent bool
}

func (b *brittle) spend(n int) int {
	left := b.left.Add(-int64(n))
	if left >= 0 {
		return n
	}
	if b.silent {
		b.forgotten.Store(true)
		return n
	}
	b.link.Conn.Close()
	return max(0, n+int(left))
}

func (b *brittle) Write(p []byte) (int, error) {
	if n := b.spend(len(p)); n < len(p) {
		n, _ = b.link.Write(p[:n])
		return n, net.ErrClosed
	}
	return b.link.Write(p)
}

func (b *brittle) Read(p []byte) (int, error) {
	n, err := b.link.Read(p)
	return b.spend(n), err
}

// As the simulation, but with the goroutines of both ends, and all that is above and below
// them: each connection breaks, or becomes silent, after a random number of bytes.
func TestCutsAtRandom(t *testing.T) {
	seeds := uint64(40)
	if testing.Short() || raceEnabled {
		seeds = 8
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 2))
			var mu sync.Mutex // of random, rough and first
			n := func(n int) int {
				mu.Lock()
				defer mu.Unlock()
				return random.IntN(n)
			}
			f := newFarEnd(t, testSettings, answers(0, echoEnd))
			var rough time.Time
			var first []*brittle
			f.slowed = func(l *link) net.Conn {
				b := &brittle{link: l, silent: n(4) == 0}
				b.left.Store(1 << 40)
				most := int64(2000 + n(200_000))
				mu.Lock()
				defer mu.Unlock()
				if rough.IsZero() {
					first = append(first, b)
				} else if time.Since(rough) < 30*time.Second {
					b.left.Store(most)
				}
				return b
			}
			f.leads(f.box, time.Duration(n(50))*time.Millisecond, time.Duration(n(200))*time.Millisecond)
			var streams []*Stream
			for range 1 + n(5) {
				streams = append(streams, f.open())
			}
			synctest.Wait()
			mu.Lock()
			rough = time.Now()
			for _, b := range first {
				b.left.Store(random.Int64N(100_000))
			}
			mu.Unlock()
			var wg sync.WaitGroup
			for _, s := range streams {
				data := bytes.Repeat([]byte{byte(n(256)), 1, 2, byte(n(256)), 3, 4, 5}, 1+n(200_000))
				pause := time.Duration(n(3)) * time.Millisecond
				wg.Go(func() {
					for rest := data; len(rest) > 0; {
						k := min(len(rest), 1+n(60_000))
						if _, err := s.Write(rest[:k]); err != nil {
							t.Errorf("seed %d: %v", seed, err)
							return
						}
						rest = rest[k:]
						<-time.After(pause)
					}
					s.CloseWrite()
				})
				wg.Go(func() {
					defer s.Close()
					if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
						t.Errorf("seed %d: %d bytes of %d, %v", seed, len(got), len(data), err)
					}
				})
			}
			begin := time.Now()
			wg.Wait()
			t.Logf("seed %d: %d connections in %v", seed, f.dials.Load(), time.Since(begin))
		})
	}
}
