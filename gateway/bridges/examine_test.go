package bridges

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/measure"
	"ptgate/gateway/outcome"
)

// A netRule is what a network does to each connection.
type netRule struct {
	freeze int           // nothing comes after so many bytes
	age    time.Duration // a connection this old is reset
	reset  time.Duration // one that was silent for so long is reset
	drop   time.Duration // nothing comes on one that was silent for so long
	rate   int           // bytes a second of each
	shared int           // bytes a second of all together
	jitter bool          // with rate: now fast, now slow
	most   int64         // connections at once; a new one beyond that gets no answer
	old    bool          // the far end can't measure
}

// A rulePT is a PT client whose connections lead to an exit through such a network.
type rulePT struct {
	netRule
	wg    sync.WaitGroup
	live  atomic.Int64
	line  chan struct{} // holds one while shared is in use
	done  chan struct{}
	dials atomic.Int64
}

func (p *rulePT) Done() <-chan struct{} { return p.done }
func (p *rulePT) Err() error            { return nil }
func (p *rulePT) Close() error          { return nil }

func (p *rulePT) DialTransport(ctx context.Context, _, _ string, _ adapter.Args) (net.Conn, error) {
	p.dials.Add(1)
	<-time.After(20 * time.Millisecond)
	if p.most > 0 && p.live.Load() >= p.most {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	p.live.Add(1)
	near, far := net.Pipe()
	c := &ruledConn{Conn: near, p: p, begun: time.Now(), heard: time.Now(), closed: make(chan struct{})}
	p.wg.Go(func() {
		defer far.Close()
		defer p.live.Add(-1)
		b := make([]byte, 300)
		if _, err := io.ReadFull(far, b[:3]); err != nil {
			return
		}
		far.Write([]byte{5, 0})
		if _, err := io.ReadFull(far, b[:5]); err != nil {
			return
		}
		io.ReadFull(far, b[:int(b[4])+2])
		if p.old {
			far.Write([]byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 0})
			return
		}
		far.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		measure.Serve(far)
	})
	if p.age > 0 {
		p.wg.Go(func() { c.after(p.age, syscall.ECONNRESET) })
	}
	return c, nil
}

type ruledConn struct {
	net.Conn
	p     *rulePT
	begun time.Time
	got   int

	mu     sync.Mutex
	heard  time.Time
	err    error
	once   sync.Once
	closed chan struct{}
}

// after ends the connection when it is that old.
func (c *ruledConn) after(d time.Duration, err error) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		c.fail(err)
	case <-c.closed:
	}
}

func (c *ruledConn) fail(err error) {
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	c.Conn.Close()
}

func (c *ruledConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *ruledConn) Read(b []byte) (int, error) {
	r := c.p.netRule
	if r.reset > 0 {
		stop := make(chan struct{})
		defer close(stop)
		c.p.wg.Go(func() {
			t := time.NewTimer(r.reset)
			defer t.Stop()
			select {
			case <-t.C:
				c.fail(syscall.ECONNRESET)
			case <-stop:
			case <-c.closed:
			}
		})
	}
	n, err := c.Conn.Read(b[:min(len(b), 1400)])
	c.mu.Lock()
	silent := time.Since(c.heard)
	if c.err != nil {
		err = c.err
	}
	c.heard = time.Now()
	c.mu.Unlock()
	c.got += n
	if err == nil && (r.freeze > 0 && c.got > r.freeze || r.drop > 0 && silent >= r.drop) {
		<-c.closed
		return 0, net.ErrClosed
	}
	pace := func(rate int) {
		if r.jitter && int(time.Since(c.begun)/(500*time.Millisecond))%2 == 0 {
			rate /= 4
		}
		<-time.After(time.Duration(n) * time.Second / time.Duration(rate))
	}
	if r.rate > 0 {
		pace(r.rate)
	}
	if r.shared > 0 {
		c.p.line <- struct{}{}
		pace(r.shared)
		<-c.p.line
	}
	return n, err
}

func (c *ruledConn) Write(b []byte) (int, error) {
	if c.p.drop > 0 {
		c.mu.Lock()
		lost := time.Since(c.heard) >= c.p.drop
		c.mu.Unlock()
		if lost {
			return len(b), nil
		}
	}
	return c.Conn.Write(b)
}

// What each kind of network looks like from here, after how long, and over how many
// connections.
func TestExamine(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rule  netRule
		kind  doctor.Kind
		value string
		most  time.Duration
	}{
		{"nothing", netRule{}, doctor.Works, "", 65 * time.Second},
		{"slow line", netRule{shared: 200 << 10}, doctor.Works, "", 70 * time.Second},
		{"ups and downs", netRule{rate: 200 << 10, jitter: true}, doctor.Works, "", 70 * time.Second},
		{"freeze after 16 KiB", netRule{freeze: 16 << 10}, doctor.Frozen, "KiB", 10 * time.Second},
		{"freeze after 100 KiB", netRule{freeze: 100 << 10}, doctor.Frozen, "KiB", 10 * time.Second},
		{"cut after 5 s", netRule{age: 5 * time.Second}, doctor.Cut, "5s", 12 * time.Second},
		{"cut after a minute", netRule{age: 58 * time.Second}, doctor.Cut, "58s", 65 * time.Second},
		{"reset after 4 s of silence", netRule{reset: 4 * time.Second}, doctor.Silenced, "4s", 10 * time.Second},
		{"dropped after 4 s of silence", netRule{drop: 4 * time.Second}, doctor.Silenced, "at most 5", 13 * time.Second},
		{"dropped after 10 s of silence", netRule{drop: 10 * time.Second}, doctor.Silenced, "at most 12s", 30 * time.Second},
		{"dropped after 30 s of silence", netRule{drop: 30 * time.Second}, doctor.Silenced, "at most 32s", 65 * time.Second},
		{"64 KiB/s each", netRule{rate: 64 << 10}, doctor.Throttled, "KiB/s", 10 * time.Second},
		{"300 KiB/s each", netRule{rate: 300 << 10}, doctor.Throttled, "KiB/s", 10 * time.Second},
		{"three at once", netRule{most: 3}, doctor.Crowded, "3 connections", 12 * time.Second},
		{"an old far end", netRule{old: true}, doctor.Unmeasured, "", time.Second},
	} {
		for _, transport := range []string{"fake", "meek_lite"} { // the second one is asked in pieces
			if transport != "fake" {
				tt.most += 5 * time.Second
			}
			t.Run(tt.name+", "+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := &rulePT{netRule: tt.rule, done: make(chan struct{}), line: make(chan struct{}, 1)}
					m := NewManager("", outcome.New(quiet), quiet)
					m.startPT = func(context.Context, adapter.ClientConfig) (clientPT, error) { return p, nil }
					pt := &config.PT{Name: "fake", Exec: []string{"fake"}, Transports: []string{"fake"}}
					cfg := &config.Config{StateDir: t.TempDir(), Limits: config.Limits{Dial: time.Minute}, Bridges: []*config.Bridge{
						{Name: "a", Transport: transport, Address: "a", Far: config.FarSOCKS5, PT: pt, Optimistic: config.OptimisticNever}}}
					b := m.Apply(cfg).bridge("a")
					begin := time.Now()
					var told []string
					got := b.Probe(t.Context(), ProbeOptions{Deep: true, Tell: func(text string) { told = append(told, text) }})
					took := time.Since(begin)
					for _, text := range told {
						if len(text) > 62 { // beside a short name, a terminal's line has no more room
							t.Errorf("%q is too long for a line", text)
						}
					}
					m.Close()
					p.wg.Wait()
					if got.Err != nil || got.Verdict.Kind != tt.kind || !strings.Contains(got.Verdict.Value, tt.value) {
						t.Errorf("%v, %+v; want %s %s", got.Err, got.Verdict, tt.kind, tt.value)
					}
					if took > tt.most || got.Connections > trials+1 || int64(got.Connections) != p.dials.Load() || len(told) == 0 {
						t.Errorf("it took %v, said %d connections and made %d, told %d times", took, got.Connections, p.dials.Load(), len(told))
					}
				})
			})
		}
	}
}

// A connection that is asked for less than nothing, because no time is left for more, owes
// nothing: what is asked for next is waited for to its end.
func TestAskForNothing(t *testing.T) {
	for _, polled := range []bool{false, true} {
		x := &trial{opened: true, polled: polled, heard: time.Now()}
		x.ask(-100_000)
		if x.owed != 0 || x.left != 0 || !x.isDone() {
			t.Errorf("polled %v: it owes %d and %d", polled, x.owed, x.left)
		}
	}
}
