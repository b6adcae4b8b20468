package doctor

import (
	"fmt"
	"math"
	"time"
)

// A Sample is what was seen of one connection of a measurement, up to now.
type Sample struct {
	// Opened: it works, the far end has answered on it. Otherwise it is being opened for
	// Age, or has failed to be if End is not Alive.
	Opened bool
	End    End
	Bulk   bool          // it was asked for many bytes
	Age    time.Duration // at its end, or now
	Bytes  int64         // from the far end, with all that the transport adds
	Silent time.Duration // since the last byte from the far end, at its end or now
	Owed   bool          // bytes were asked for that have not come
	// Gap is how long nothing had come when the last question was asked.
	Gap time.Duration
	// Heard is when the last byte came, and Since when it began, from the beginning of the
	// measurement.
	Heard, Since time.Duration

	// Alone is how many bytes a second came while no other connection was busy, and Beside
	// while another one was; 0: not known. Steady: they came without ups and downs.
	Alone, Beside float64
	Steady        bool
	Polled        bool // what it gets depends on how it asks; see builtin.Transport
}

// An End is how a connection has ended.
type End uint8

// The ends.
const (
	Alive End = iota
	Reset     // or ended: both come at once
)

const (
	// quiet is how long nothing comes that is owed until a connection counts as stuck. TCP
	// repeats a packet that is lost three times within this time.
	quiet = 5 * time.Second
	// alone is how long a single connection may take to come up beside others that work. It
	// has several packets to lose, and TCP's first wait is the longest.
	alone = 9 * time.Second
	// leastGap is the shortest silence that a network may be thought to cut.
	leastGap = 3 * time.Second
	// leastAge is the youngest age.
	leastAge = 1500 * time.Millisecond
	// fast is a rate that nobody calls throttled, in bytes a second.
	fast = 2 << 20
)

// stuck tells whether nothing comes although something is owed.
func (s *Sample) stuck() bool { return s.Opened && s.End == Alive && s.Owed && s.Silent >= quiet }

// Infer says what a network does to connections. ok is false as long as nothing is seen. The
// first connections are those that were begun first.
func Infer(all []Sample) (v Verdict, ok bool) {
	for _, find := range []func([]Sample) (Verdict, bool){crowded, frozen, cut, silenced, throttled} {
		if v, ok = find(all); ok {
			return v, true
		}
	}
	return Verdict{}, false
}

// crowded: a connection does not come up while others live.
func crowded(all []Sample) (Verdict, bool) {
	live, unanswered := 0, 0
	for _, s := range all {
		switch {
		case s.Opened && s.End == Alive && !s.stuck():
			live++
		case !s.Opened && s.Age >= quiet:
			unanswered++
		}
	}
	patience := quiet
	if unanswered < 2 {
		patience = alone
	}
	for _, s := range all {
		if s.Opened || live == 0 || s.End == Alive && s.Age < patience {
			continue
		}
		// It may be that the way is broken: another one must have been heard since.
		for _, other := range all {
			if other.Opened && other.Heard > s.Since+time.Second {
				through := fmt.Sprintf("%d connections", live)
				if live == 1 {
					through = "1 connection"
				}
				return of(Crowded, through,
					fmt.Sprintf("%d connections work, and another one beside them got no answer for %v", live, s.Age.Round(100*time.Millisecond))), true
			}
		}
	}
	return Verdict{}, false
}

// frozen: transfers stop after as many bytes.
func frozen(all []Sample) (Verdict, bool) {
	n, least, most, last := 0, int64(math.MaxInt64), int64(0), time.Duration(0)
	for _, s := range all {
		if s.stuck() && s.Bulk && s.Gap < leastGap {
			n++
			least, most, last = min(least, s.Bytes), max(most, s.Bytes), max(last, s.Heard)
		}
	}
	if n < 2 || float64(least) < 0.6*float64(most) {
		return Verdict{}, false
	}
	for _, s := range all {
		if s.Opened && s.Heard > last {
			return of(Frozen, bytesText(least), fmt.Sprintf("%d connections got nothing more after %s to %s, while others were heard", n, bytesText(least), bytesText(most))), true
		}
	}
	return Verdict{}, false
}

// cut: connections are ended at one age, whether they are silent or not.
func cut(all []Sample) (Verdict, bool) {
	n, least, most := 0, time.Duration(math.MaxInt64), time.Duration(0)
	busy := false
	for _, s := range all {
		if s.Opened && s.End == Reset && s.Age >= leastAge {
			n++
			least, most = min(least, s.Age), max(most, s.Age)
			busy = busy || s.Silent < leastGap
		}
	}
	if n < 2 || !busy || float64(least) < 0.75*float64(most) {
		return Verdict{}, false
	}
	for _, s := range all {
		if s.Opened && s.End == Alive && !s.stuck() && float64(s.Age) > 1.2*float64(most) {
			return Verdict{}, false
		}
	}
	return of(Cut, secondsText(least), fmt.Sprintf("%d connections ended at an age of %s to %s", n, secondsText(least), secondsText(most))), true
}

// silenced: a connection that was silent is gone, and others of its age are not.
func silenced(all []Sample) (Verdict, bool) {
	for _, s := range all {
		if !s.Opened || s.Bulk {
			continue
		}
		how, silence := "", time.Duration(0)

		switch {
		case s.End == Reset && s.Silent >= leastGap && !s.Owed:
			silence, how = s.Silent, "about "
		case s.stuck() && s.Gap >= leastGap:
			silence, how = s.Gap, "at most "
		default:
			continue
		}
		for _, other := range all {
			if other.Opened && other.End == Alive && !other.stuck() && other.Gap < leastGap &&
				float64(other.Age) > 1.2*float64(s.Age-s.Silent+silence) && other.Heard > s.Heard {
				return of(Silenced, how+secondsText(silence), "a connection that was silent is gone, and busy ones live"), true
			}
		}
	}
	return Verdict{}, false
}

// throttled: two connections at once are as fast as one alone, each.
func throttled(all []Sample) (Verdict, bool) {
	var busy []Sample
	for _, s := range all {
		if s.Opened && s.Beside > 0 {
			busy = append(busy, s)
		}
	}
	if len(busy) < 2 || busy[0].Alone <= 1 {
		return Verdict{}, false
	}
	a, b := busy[0], busy[1]
	apart := 0.2
	if a.Polled {
		apart = 0.15 // of a polled one little more than the rate is known
	}
	if a.Alone > fast || !a.Steady || !b.Steady || math.Abs(a.Beside-b.Beside) > apart*max(a.Beside, b.Beside) || a.Beside < (1-apart)*a.Alone {
		return Verdict{}, false
	}
	rate := bytesText(int64(a.Beside)) + "/s"
	return of(Throttled, rate, fmt.Sprintf("one connection alone got %s/s, each of two at once %s, without ups and downs", bytesText(int64(a.Alone)), rate)), true
}

// Healthy is the verdict on a bridge of which nothing was seen in that time.
func Healthy(all []Sample, after time.Duration) Verdict {
	total := int64(0)
	for _, s := range all {
		total += s.Bytes
	}
	return of(Works, "", fmt.Sprintf("%d connections got %s in %s: nothing cut, froze or slowed them down", len(all), bytesText(total), secondsText(after)))
}

// NotMeasured is the verdict on a bridge whose far end can't measure.
func NotMeasured(err error) Verdict { return of(Unmeasured, "", Diagnose(Case{Err: err}).Says) }

// IsExit is the verdict on a bridge with far = "forward" behind which an exit answers.
func IsExit() Verdict {
	v := of(WrongFar, "", "what stands behind the transport answers as an exit does")
	v.Itself = "nothing: what programs send goes there as it is"
	v.Next = "set far = \"exit\" in the bridge (or \"socks5\", if the server is another program)"
	return v
}

func bytesText(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 2<<10:
		return fmt.Sprintf("%d KiB", (n+512)>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

func secondsText(d time.Duration) string {
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
