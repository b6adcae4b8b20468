package budget

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

var epoch = time.Unix(1_000_000_000, 0)

// A clock is the time of a test without a world.
type clock struct {
	t   *testing.T
	l   *Learner
	now time.Time
}

func newClock(t *testing.T, configured Limits) *clock {
	return &clock{t, New(configured, 0), epoch}
}

func (k *clock) pass(d time.Duration) { k.now = k.now.Add(d) }

// open opens a carrier, and waits for it as long as it takes.
func (k *clock) open() *Carrier {
	k.t.Helper()
	for range 1000 {
		c, wait := k.l.Dial(k.now)
		if c != nil {
			c.Opened(k.now)
			return c
		}
		if wait <= 0 {
			k.t.Fatal("no carrier, and no time to wait")
		}
		k.pass(wait)
	}
	k.t.Fatal("no carrier may be opened")
	return nil
}

// live opens a carrier that dies of d.
func (k *clock) live(d Death) {
	k.t.Helper()
	c := k.open()
	k.pass(d.Age)
	c.Died(k.now, d)
}

func (k *clock) want(what string, limits Limits) {
	k.t.Helper()
	if limits.New == (Rate{}) {
		limits.New = DefaultNew
	}
	if got := k.l.Limits(k.now); got != limits {
		k.t.Errorf("%s: limits %+v, want %+v", what, got, limits)
	}
}

// frozen is a death in the middle of a transfer.
func frozen(bytes int64) Death {
	return Death{Bytes: bytes, Age: 4 * time.Second, Silent: 2 * time.Second, Asked: 1500 * time.Millisecond, How: Frozen, OthersAlive: true}
}

// No burst of new carriers by default, and still enough for 100 KiB/s where each carrier
// can bring 10 KiB.
func TestDefaultRate(t *testing.T) {
	k := newClock(t, Limits{})
	var starts []time.Time
	for k.now.Before(epoch.Add(10 * time.Second)) {
		c, wait := k.l.Dial(k.now)
		if c == nil {
			k.pass(wait)
			continue
		}
		starts = append(starts, k.now)
		c.Opened(k.now)
	}
	if n := len(starts); n < 120 || n > 160 {
		t.Errorf("%d carriers in 10 s", n)
	}
	for i := 4; i < len(starts); i++ {
		if d := starts[i].Sub(starts[i-4]); d < DefaultNew.Per {
			t.Errorf("five carriers in %v", d)
		}
	}
}

// What is configured is never exceeded, whenever somebody wants a carrier, and whatever
// happens to carriers.
func TestConfiguredIsKept(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		configured := Limits{Bytes: 14 << 10, Age: 50 * time.Second, Idle: 8 * time.Second, New: Rate{1 + r.IntN(5), 10 * time.Second}, AtOnce: 1 + r.IntN(6)}
		k := newClock(t, configured)
		var starts []time.Time
		var open []*Carrier
		for range 2000 {
			k.pass(time.Duration(r.Int64N(int64(time.Second))))
			if c, wait := k.l.Dial(k.now); c != nil {
				starts = append(starts, k.now)
				open = append(open, c)
				if r.IntN(2) == 0 {
					c.Opened(k.now)
				}
				if c.Probe() != KindNone {
					t.Fatal("a carrier may go past a configured limit")
				}
			} else if wait <= 0 {
				t.Fatal("no carrier, and no time to wait")
			}
			if len(open) > configured.AtOnce {
				t.Fatalf("%d at once, %d are configured", len(open), configured.AtOnce)
			}
			if i := len(starts) - 1 - configured.New.Count; i >= 0 && starts[len(starts)-1].Sub(starts[i]) < configured.New.Per {
				t.Fatalf("%d in %v", configured.New.Count+1, starts[len(starts)-1].Sub(starts[i]))
			}
			if len(open) > 0 && r.IntN(3) == 0 {
				c := open[0]
				open = open[1:]
				switch r.IntN(4) {
				case 0:
					c.Failed(k.now, true, true)
				case 1:
					c.Opened(k.now)
					c.Died(k.now, frozen(12<<10))
				default:
					c.Closed(k.now, Life{Bytes: 1 << 30, Age: time.Hour})
				}
				for _, c := range []*Carrier{c} { // it is over: nothing of this counts
					c.Opened(k.now)
					c.Died(k.now, frozen(9<<10))
					c.Failed(k.now, true, true)
					c.Closed(k.now, Life{})
				}
			}
		}
		k.want("after all that", configured)
		if why := k.l.Why(k.now); len(why) > 0 {
			t.Errorf("learned beside what is configured: %v", why)
		}
	}
}

// A reload can configure what was learned, and take it back.
func TestUpdate(t *testing.T) {
	k := newClock(t, Limits{Age: time.Minute})
	for range 3 {
		k.live(frozen(16_000))
	}
	k.want("learned", Limits{Bytes: 15_000, Age: time.Minute})
	k.l.Update(Limits{Bytes: 32 << 10})
	k.want("configured", Limits{Bytes: 32 << 10})
	k.l.Update(Limits{})
	k.want("neither", Limits{})
}

// Deaths that have nothing to do with each other teach nothing, however many they are.
func TestNoise(t *testing.T) {
	idle := 0
	for name, age := range map[string]func(*rand.Rand) float64{
		"exponential": func(r *rand.Rand) float64 { return r.ExpFloat64() * 60 },
		"uniform":     func(r *rand.Rand) float64 { return r.Float64() * 120 },
		"lognormal":   func(r *rand.Rand) float64 { return 30 * math.Exp(r.NormFloat64()) },
		"heavy tail":  func(r *rand.Rand) float64 { return 10 / math.Pow(r.Float64(), 0.8) },
	} {
		for _, how := range []How{Reset, Frozen, Ended} {
			t.Run(fmt.Sprint(name, how), func(t *testing.T) {
				for seed := range uint64(8) {
					r := rand.New(rand.NewPCG(seed, 1))
					k := newClock(t, Limits{})
					for range 200 {
						c := k.open()
						d := Death{Age: seconds(age(r)), How: how, OthersAlive: r.IntN(2) == 0}
						d.Bytes = 100_000 + int64(d.Age.Seconds()*50_000*math.Exp(r.NormFloat64()))
						d.Silent = min(d.Age, seconds(r.ExpFloat64()*5))
						if how == Frozen {
							d.Asked = min(d.Silent, seconds(1+r.Float64()*4))
						}
						gap := 0.0
						for range r.IntN(8) {
							gap = max(gap, r.ExpFloat64()*5)
						}
						k.pass(d.Age)
						c.Passed(k.now, Life{Silent: min(seconds(gap), d.Age)})
						c.Died(k.now, d)
						for _, e := range k.l.Why(k.now) {
							// A limit on silence costs little. So it is believed sooner, and
							// chance may have it at times.
							if how != Frozen || e.Kind != KindIdle {
								t.Fatalf("seed %d: %s", seed, e.Text)
							}
							idle++
							k.l = New(Limits{}, 0)
						}
					}
				}
			})
		}
	}
	if deaths := 4 * 8 * 200; idle > deaths/140 {
		t.Errorf("a limit on silence after %d of %d deaths", idle, deaths)
	}
}

// Random dials that nobody answers teach nothing for long: a bridge that is slow at times
// is no censor.
func TestNoiseOfDials(t *testing.T) {
	held, steps := 0, 0
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 1))
		k := newClock(t, Limits{})
		for range 500 {
			k.pass(seconds(r.ExpFloat64() * 5))
			c, _ := k.l.Dial(k.now)
			if c == nil {
				held++
				continue
			}
			steps++
			if r.IntN(10) == 0 {
				c.Failed(k.now, true, true)
				continue
			}
			c.Opened(k.now)
			if r.IntN(3) > 0 {
				c.Closed(k.now, Life{})
			}
		}
	}
	if held > steps/10 {
		t.Errorf("%d dials were held back, %d were not", held, steps)
	}
}

// Deaths count only if the way to the bridge works.
func TestOutages(t *testing.T) {
	alone := frozen(16_000)
	alone.OthersAlive = false
	for _, tt := range []struct {
		name string
		try  func(*clock)
	}{
		{"no carrier works soon", func(k *clock) {
			k.live(alone)
			k.pass(soon + time.Second)
			k.open().Closed(k.now, Life{})
		}},
		{"the next dial fails", func(k *clock) {
			k.live(alone)
			k.pass(time.Second)
			c, _ := k.l.Dial(k.now)
			c.Failed(k.now, true, false)
			k.open().Closed(k.now, Life{})
		}},
		{"all die together, of different use", func(k *clock) {
			var all []*Carrier
			for i := range 4 {
				all = append(all, k.open())
				k.pass(time.Duration(i+1) * 20 * time.Second)
			}
			for i, c := range all {
				d := Death{Bytes: 13_000 + int64(i)*3_000, Age: time.Duration(5-i) * 20 * time.Second, Silent: 3 * time.Second, How: Frozen}
				c.Died(k.now, d)
			}
			k.open().Closed(k.now, Life{})
		}},
		{"the transport's program crashes", func(k *clock) {
			k.open().Closed(k.now, Life{Bytes: 16_000})
			k.open().Closed(k.now, Life{})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newClock(t, Limits{})
			for range 30 {
				tt.try(k)
				k.pass(time.Minute)
				if why := k.l.Why(k.now); len(why) > 0 {
					t.Fatal(why)
				}
			}
		})
	}
	t.Run("one alone, and the next works", func(t *testing.T) {
		k := newClock(t, Limits{})
		k.live(alone)
		k.want("before the next one works", Limits{})
		k.open()
		k.want("and after", Limits{Bytes: 15_000})
	})
}

// A table of deaths, and what they teach.
func TestDeaths(t *testing.T) {
	s := func(s float64) time.Duration { return seconds(s) }
	repeat := func(n int, d ...Death) (list []Death) {
		for range n {
			list = append(list, d...)
		}
		for i := range list {
			list[i].OthersAlive = true
		}
		return list
	}
	for _, tt := range []struct {
		name   string
		deaths []Death
		want   Limits
	}{
		{"one freeze in the known range", repeat(1, frozen(16_000)), Limits{Bytes: 15_000}},
		{"one freeze elsewhere", repeat(1, frozen(40_000)), Limits{}},
		{"one reset in the known range", repeat(1, Death{Bytes: 16_000, Age: s(4), How: Reset}), Limits{}},
		{"two freezes that agree", repeat(1, frozen(32_000), frozen(40_000)), Limits{Bytes: 30_000}},
		{"two freezes that don't", repeat(1, frozen(25_000), frozen(40_000)), Limits{}},
		{"two freezes after much", repeat(1, frozen(900_000), frozen(1_000_000)), Limits{}},
		{"the lowest of several", repeat(1, frozen(16_000), frozen(15_000), frozen(16_300)), Limits{Bytes: 15_000 * 15 / 16}},
		{"fewer bytes than a handshake", repeat(1, frozen(5_000), frozen(5_010), frozen(4_990)), Limits{}},
		{"idle ones, found dead when they are needed", repeat(9,
			Death{Bytes: 16_000, Age: s(100), Silent: s(70), Asked: s(2), How: Frozen},
			Death{Bytes: 16_100, Age: s(200), Silent: s(150), Asked: s(2), How: Frozen}), Limits{Idle: s(34)}},
		{"resets of the same age", repeat(2, Death{Bytes: 1e6, Age: s(60), How: Reset}, Death{Bytes: 3e6, Age: s(60.2), How: Reset}), Limits{Age: s(54)}},
		{"resets after the same bytes", repeat(2, Death{Bytes: 1e6, Age: s(60), How: Reset}, Death{Bytes: 1.001e6, Age: s(90), How: Reset}), Limits{Bytes: 937500}},
		{"both agree, the age more", repeat(3, Death{Bytes: 1e6, Age: s(60), How: Reset}, Death{Bytes: 1.04e6, Age: s(60), How: Reset}), Limits{Age: s(54)}},
		{"both agree, the bytes more", repeat(3, Death{Bytes: 1e6, Age: s(60), How: Reset}, Death{Bytes: 1e6, Age: s(62), How: Reset}), Limits{Bytes: 937500}},
		{"ends of the same silence", repeat(4, Death{Bytes: 5e5, Age: s(70), Silent: s(60), How: Ended}, Death{Bytes: 9e5, Age: s(200), Silent: s(60), How: Ended}), Limits{Idle: s(45)}},
		{"ends after the same bytes: a far end that closes", repeat(1, Death{Bytes: 5e5, Age: s(7), How: Ended}, Death{Bytes: 5e5, Age: s(2000), How: Ended}, Death{Bytes: 5e5, Age: s(70), How: Ended}, Death{Bytes: 5e5, Age: s(200), How: Ended}), Limits{}},
		{"one dies of old age among others", repeat(2, Death{Bytes: 1e6, Age: s(60), How: Reset}, Death{Bytes: 1e5, Age: s(3), How: Reset}, Death{Bytes: 3e6, Age: s(60), How: Reset}), Limits{Age: s(54)}},
		{"longer lives take it away", append(repeat(3, Death{Bytes: 1e6, Age: s(60), How: Reset}), repeat(1, Death{Bytes: 9e6, Age: s(600), How: Reset})...), Limits{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newClock(t, Limits{})
			for _, d := range tt.deaths {
				k.live(d)
			}
			k.want("afterwards", tt.want)
		})
	}
}

// A censor that goes away is forgotten, one that comes back is found at once.
func TestForgetsAndFindsAgain(t *testing.T) {
	for _, tt := range []struct {
		kind   Kind
		censor censor
	}{
		{KindBytes, censor{freeze: 16 << 10}},
		{KindAge, censor{age: 20 * time.Second}},
		{KindNew, censor{rate: Rate{3, 30 * time.Second}}},
		{KindAtOnce, censor{number: 3, age: 40 * time.Second}},
	} {
		t.Run(tt.kind.String(), func(t *testing.T) {
			for seed := range uint64(2) {
				w := newWorld(seed, tt.censor)
				w.want, w.churn = 5, time.Minute
				never := func() bool { return false }
				if w.run(2*time.Hour, func() bool { return w.learned(tt.kind) }); !w.learned(tt.kind) {
					t.Fatalf("seed %d: not learned", seed)
				}
				w.run(10*time.Minute, never)
				w.censor = censor{}
				if took := w.run(3*time.Hour, func() bool { return !w.learned(tt.kind) }); w.learned(tt.kind) {
					t.Fatalf("seed %d: not forgotten in %v: %v", seed, took, w.l.Why(w.now))
				}
				if tt.kind != KindBytes && tt.kind != KindAge {
					continue
				}
				w.run(time.Minute, never)
				w.censor, w.deaths = tt.censor, 0
				if w.run(10*time.Minute, func() bool { return w.learned(tt.kind) }); w.deaths > 2*w.want {
					t.Errorf("seed %d: %d deaths until it was found again", seed, w.deaths)
				}
			}
		})
	}
}

// Only one carrier at a time goes past a limit, and a limit that holds is tried ever less.
func TestProbes(t *testing.T) {
	k := newClock(t, Limits{})
	for range 6 {
		k.live(frozen(16_000))
	}
	learned := k.now
	var tries []time.Duration
	var trying *Carrier
	for k.now.Sub(learned) < 6*time.Hour {
		k.pass(10 * time.Second)
		c := k.open()
		if c.Probe() == KindNone {
			if got := c.Limits(k.now).Bytes; got != 15_000 {
				t.Fatalf("a carrier may use %d", got)
			}
			c.Closed(k.now, Life{Bytes: 15_000})
			continue
		}
		if trying != nil {
			t.Fatal("two carriers go past the limit")
		}
		if got := c.Limits(k.now).Bytes; got != 0 {
			t.Fatalf("a carrier that goes past the limit may use %d", got)
		}
		tries = append(tries, k.now.Sub(learned).Round(time.Minute))
		trying = c
		// While it lives, no other one tries, however late it is.
		for range 3 {
			if len(tries) == 8 {
				k.pass(2 * time.Hour)
			}
			other := k.open()
			if other.Probe() != KindNone {
				t.Fatal("two carriers go past the limit")
			}
			other.Closed(k.now, Life{})
		}
		c.Died(k.now, frozen(16_000))
		trying = nil
	}
	// After 5 minutes, then 10, 20, 40, and each hour.
	if got, want := fmt.Sprint(tries), "[5m0s 15m0s 35m0s 1h15m0s 2h15m0s 3h15m0s 4h15m0s 5h15m0s]"; got != want {
		t.Errorf("tries after %s, want %s", got, want)
	}
	// One that lives past it ends it.
	for {
		k.pass(time.Minute)
		c := k.open()
		if c.Probe() == KindNone {
			c.Closed(k.now, Life{Bytes: 15_000})
			continue
		}
		c.Passed(k.now, Life{Bytes: 17_000})
		k.want("a little past it: the network counts in packets", Limits{Bytes: 15_000})
		c.Passed(k.now, Life{Bytes: 16_000*115/100 + burst + 1})
		break
	}
	k.want("past it", Limits{})
	k.live(frozen(16_000))
	k.want("once more", Limits{Bytes: 15_000})
}

// The packets that cross a limit are lost whole. So some carriers die of it with fewer
// bytes than others have got, and that is no sign against the limit.
func TestBurst(t *testing.T) {
	k := newClock(t, Limits{})
	k.live(frozen(14_100))
	k.live(frozen(13_600))
	const use = 13_600 * 15 / 16
	k.want("two deaths", Limits{Bytes: use})
	c := k.open()
	c.Passed(k.now, Life{Bytes: 16_300})
	c.Died(k.now, frozen(16_300))
	k.open().Closed(k.now, Life{})
	k.want("one with more bytes", Limits{Bytes: use})
}

func TestNetwork(t *testing.T) {
	k := newClock(t, Limits{Age: time.Hour})
	k.l.Network("192.0.2.7 wlan0")
	k.live(frozen(16_000))
	k.l.Network("192.0.2.7 wlan0")
	k.l.Network("")
	k.want("the same network", Limits{Bytes: 15_000, Age: time.Hour})
	k.l.Network("198.51.100.7 eth0")
	k.want("another one", Limits{Age: time.Hour})
}

func TestWhy(t *testing.T) {
	k := newClock(t, Limits{})
	for range 3 {
		k.live(frozen(16_000))
	}
	why := k.l.Why(k.now)
	if len(why) != 1 {
		t.Fatal(why)
	}
	e := why[0]
	if e.Kind != KindBytes || e.Value != "14KiB" || e.At != "15KiB" || e.Deaths != 3 || e.Unsure || !e.Probe.After(k.now) || e.Since.After(k.now) {
		t.Errorf("%+v", e)
	}
	for _, part := range []string{"the network stops a connection after about 15KiB from the far end", "3 connections died there", "up to 14KiB", "again in 4m56s"} {
		if !strings.Contains(e.Text, part) {
			t.Errorf("%q does not say %q", e.Text, part)
		}
	}
	k.pass(time.Hour)
	if e := k.l.Why(k.now)[0]; !strings.Contains(e.Text, "tried again with the next connection") {
		t.Error(e.Text)
	}
}

// All methods at once, for the race detector.
func TestConcurrent(t *testing.T) {
	l := New(Limits{}, 0)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			now := epoch
			for range 500 {
				now = now.Add(time.Second)
				l.Limits(now)
				l.Why(now)
				c, _ := l.Dial(now)
				if c == nil {
					l.Network(fmt.Sprint(r.IntN(3)))
					continue
				}
				c.Probe()
				c.Limits(now)
				if r.IntN(4) == 0 {
					c.Failed(now, true, true)
					continue
				}
				c.Opened(now)
				c.Passed(now, Life{Bytes: r.Int64N(1e6)})
				if r.IntN(2) == 0 {
					c.Died(now, frozen(r.Int64N(1e5)))
				} else {
					c.Closed(now, Life{})
				}
				l.Update(Limits{AtOnce: r.IntN(2) * 100})
			}
		})
	}
	wg.Wait()
	if l.alive != 0 || l.dialing != 0 {
		t.Errorf("%d are open, %d are being opened", l.alive, l.dialing)
	}
}

func TestRateString(t *testing.T) {
	for want, r := range map[string]Rate{
		"": {}, "3/30s": {3, 30 * time.Second}, "1/1m": {1, time.Minute}, "9/1h": {9, time.Hour}, "4/250ms": {4, 250 * time.Millisecond}, "2/1m30s": {2, 90 * time.Second},
	} {
		if got := r.String(); got != want {
			t.Errorf("%#v: %q, want %q", r, got, want)
		}
	}
}

func ExampleLearner() {
	l := New(Limits{}, 0)
	now := epoch
	for range 2 {
		c, _ := l.Dial(now)
		c.Opened(now)
		now = now.Add(4 * time.Second)
		c.Died(now, Death{Bytes: 16_200, Age: 4 * time.Second, Silent: 2 * time.Second, How: Frozen})
	}
	fmt.Println(l.Limits(now).Bytes)
	for _, e := range l.Why(now) {
		fmt.Println(e.Text)
	}
	// Output:
	// 15187
	// the network stops a connection after about 15KiB from the far end: 1 connection died there, and others worked; each is used up to 14KiB; tried again in 56s
}

// What a carrier of the network before still tells says nothing of this one.
func TestCarriersOfTheNetworkBefore(t *testing.T) {
	k := newClock(t, Limits{})
	k.l.Network("192.0.2.7 wlan0")
	open := []*Carrier{k.open(), k.open(), k.open()}
	var dialling []*Carrier
	for range 3 {
		k.pass(time.Second)
		c, _ := k.l.Dial(k.now)
		dialling = append(dialling, c)
	}
	k.l.Network("198.51.100.7 eth0")
	for _, c := range open {
		k.pass(time.Second)
		c.Died(k.now, frozen(16_000))
	}
	for _, c := range dialling {
		c.Failed(k.now, true, true)
	}
	k.open()
	k.want("afterwards", Limits{})
	if k.l.alive != 1 || k.l.dialing != 0 || k.l.dials.silent != 0 {
		t.Errorf("%d open, %d being opened, %d unanswered", k.l.alive, k.l.dialing, k.l.dials.silent)
	}
	// Nor does it take away what this one has taught.
	old := k.open()
	k.l.Network("192.0.2.7 wlan0")
	k.live(frozen(16_000))
	old.Closed(k.now, Life{Bytes: 1e6})
	k.want("learned in the new one", Limits{Bytes: 15_000})
}

// The number of unanswered dials fits the log, also where the log has forgotten them
// before they fail.
func TestManyDials(t *testing.T) {
	k := newClock(t, Limits{New: Rate{1000, 100 * time.Millisecond}})
	var all []*Carrier
	for range 3 * dialsKept {
		k.pass(time.Millisecond)
		if c, _ := k.l.Dial(k.now); c != nil {
			all = append(all, c)
		}
	}
	for _, c := range all {
		c.Failed(k.now, true, true)
	}
	n := 0
	for _, a := range k.l.dials.log {
		if a.result == silent {
			n++
		}
	}
	if k.l.dials.silent != n || n == 0 {
		t.Errorf("%d unanswered dials are counted, there are %d", k.l.dials.silent, n)
	}
}
