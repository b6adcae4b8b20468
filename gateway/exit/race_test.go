package exit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func ports(s string) (out []netip.AddrPort) {
	for _, a := range addrs(s) {
		out = append(out, netip.AddrPortFrom(a, 80))
	}
	return out
}

func TestInterleave(t *testing.T) {
	for _, c := range [][2]string{
		{"", ""},
		{"1.1.1.1", "1.1.1.1"},
		{"1.1.1.1 2.2.2.2", "1.1.1.1 2.2.2.2"},
		{"1.1.1.1 2.2.2.2 ::1", "1.1.1.1 ::1 2.2.2.2"},
		{"::1 ::2 ::3 1.1.1.1", "::1 1.1.1.1 ::2 ::3"},
		{"::1 1.1.1.1 ::2 2.2.2.2 3.3.3.3", "::1 1.1.1.1 ::2 2.2.2.2 3.3.3.3"},
	} {
		var got []string
		for _, a := range interleave(ports(c[0])) {
			got = append(got, a.Addr().String())
		}
		if s := strings.Join(got, " "); s != c[1] {
			t.Errorf("%s: %s, want %s", c[0], s, c[1])
		}
	}
}

// A runner answers after a time, with a connection or an error.
type runner struct {
	after time.Duration
	err   error
}

// A closeCounter counts the connections that are closed.
type closeCounter struct {
	net.Conn
	name   string
	closed *atomic.Int64
}

func (c closeCounter) Close() error {
	c.closed.Add(1)
	return nil
}

func TestRace(t *testing.T) {
	const ms = time.Millisecond
	one, two := errors.New("one"), errors.New("two")
	never := time.Hour
	for _, c := range []struct {
		name    string
		runners []runner
		stop    time.Duration // the caller's; 0: never
		won     int           // 0: nobody
		err     error
		took    time.Duration
		begun   []time.Duration
		closed  int64
	}{
		{"one", []runner{{30 * ms, nil}}, 0, 1, nil, 30 * ms, []time.Duration{0}, 0},
		{"one fails", []runner{{30 * ms, one}}, 0, 0, one, 30 * ms, []time.Duration{0}, 0},
		{"the first is quick", []runner{{100 * ms, nil}, {0, nil}}, 0, 1, nil, 100 * ms, []time.Duration{0}, 0},
		{"the first fails", []runner{{10 * ms, one}, {20 * ms, nil}}, 0, 2, nil, 30 * ms, []time.Duration{0, 10 * ms}, 0},
		{"the first is slow", []runner{{never, nil}, {20 * ms, nil}}, 0, 2, nil, 270 * ms, []time.Duration{0, 250 * ms}, 0},
		{"the first wins beside the second", []runner{{300 * ms, nil}, {never, nil}}, 0, 1, nil, 300 * ms, []time.Duration{0, 250 * ms}, 0},
		{"stagger", []runner{{never, nil}, {never, nil}, {never, nil}, {ms, nil}}, 0, 4, nil, 751 * ms,
			[]time.Duration{0, 250 * ms, 500 * ms, 750 * ms}, 0},
		{"a failure starts the delay anew", []runner{{never, nil}, {100 * ms, two}, {never, nil}, {ms, nil}}, 0, 4, nil, 601 * ms,
			[]time.Duration{0, 250 * ms, 350 * ms, 600 * ms}, 0},
		{"all fail", []runner{{10 * ms, one}, {10 * ms, two}, {10 * ms, two}}, 0, 0, one, 30 * ms, []time.Duration{0, 10 * ms, 20 * ms}, 0},
		{"the caller leaves", []runner{{never, nil}, {never, nil}, {never, nil}}, 300 * ms, 0, context.DeadlineExceeded, 300 * ms,
			[]time.Duration{0, 250 * ms}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				ctx := t.Context()
				if c.stop > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.stop)
					defer cancel()
				}
				var mu sync.Mutex
				var begun []time.Duration
				var closed atomic.Int64
				list := make([]netip.AddrPort, len(c.runners))
				for i := range list {
					list[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 80)
				}
				conn, err := race(ctx, list, func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
					mu.Lock()
					begun = append(begun, time.Since(begin))
					mu.Unlock()
					r := c.runners[a.Addr().As4()[3]]
					select {
					case <-time.After(r.after):
						if r.err != nil {
							return nil, r.err
						}
						return closeCounter{name: a.Addr().String(), closed: &closed}, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				})
				if took := time.Since(begin); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				if !errors.Is(err, c.err) || (err == nil) != (c.won > 0) {
					t.Errorf("error %v, want %v", err, c.err)
				}
				if c.won > 0 && conn.(closeCounter).name != list[c.won-1].Addr().String() {
					t.Errorf("%s has won", conn.(closeCounter).name)
				}
				if fmt.Sprint(begun) != fmt.Sprint(c.begun) {
					t.Errorf("begun at %v, want %v", begun, c.begun)
				}
				if closed.Load() != c.closed {
					t.Errorf("%d connections were closed", closed.Load())
				}
			})
		})
	}
}

// One that connects although it has lost is closed, and so are all of them but
// the one that is given out.
func TestRaceClosesLosers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed, made atomic.Int64
		conn, err := race(t.Context(), ports("192.0.2.1 192.0.2.2 192.0.2.3"), func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			<-time.After(time.Second) // deaf to the context
			made.Add(1)
			return closeCounter{closed: &closed}, nil
		})
		if err != nil || conn == nil {
			t.Fatal(err)
		}
		if made.Load() != 3 || closed.Load() != 2 {
			t.Errorf("%d connections were made, %d closed", made.Load(), closed.Load())
		}
	})
}
