package budget

import (
	"fmt"
	"time"
)

// A Learned is one learned limit, and why it is believed.
type Learned struct {
	Kind Kind `json:"kind"`
	// Value is what carriers keep to, as the configuration writes it: "14KiB", "50s",
	// "3/30s".
	Value string `json:"value"`
	// At is where the network does it: "16KiB", "60s", "3 new connections in 30s".
	At string `json:"at"`
	// Deaths is how many carriers died of it, or how many dials nobody answered.
	Deaths int `json:"deaths"`
	// Unsure says that the limit was taken from very few deaths, because it is a well known
	// one.
	Unsure bool      `json:"unsure,omitempty"`
	Since  time.Time `json:"since"`
	// Probe is when one carrier may go past it, to see whether it is still there.
	Probe time.Time `json:"probe"`
	// Text says all that in a sentence.
	Text string `json:"text"`
}

// Why returns the learned limits that are kept to.
func (l *Learner) Why(now time.Time) []Learned {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Learned
	limits := l.limits(nil)
	add := func(e Learned, what string) {
		e.Text = what
		if wait := e.Probe.Sub(now); wait > 0 {
			e.Text += fmt.Sprintf("; tried again in %s", duration(wait.Round(time.Second)))
		} else {
			e.Text += "; tried again with the next connection"
		}
		list = append(list, e)
	}
	for i, kind := range kindOf {
		m := &l.lives[i]
		if !m.found() || l.isConfigured(kind) {
			continue
		}
		e := Learned{Kind: kind, Deaths: m.deaths, Unsure: m.unsure && m.deaths < 3, Since: m.since, Probe: m.next}
		var what string
		switch kind {
		case KindBytes:
			e.Value, e.At = size(limits.Bytes), size(int64(m.at))
			what = fmt.Sprintf("the network stops a connection after about %s from the far end", e.At)
		case KindAge:
			e.Value, e.At = short(limits.Age), short(seconds(m.at))
			what = fmt.Sprintf("the network ends a connection when it is about %s old", e.At)
		case KindIdle:
			e.Value, e.At = short(limits.Idle), short(seconds(m.at))
			what = fmt.Sprintf("the network ends a connection after about %s of silence", e.At)
		}
		add(e, fmt.Sprintf("%s: %s died there, and others worked; each is used up to %s", what, plural(m.deaths), e.Value))
	}
	if r := &l.dials.rate; r.Count > 0 {
		at := fmt.Sprintf("%d new connections in %s", r.Count, short(r.Per))
		add(Learned{Kind: KindNew, Value: Rate{r.Count, r.Per.Round(time.Millisecond)}.String(), At: at, Deaths: r.deaths, Since: r.since, Probe: r.next},
			fmt.Sprintf("the network answers no more than %s: %s got no answer", at, plural(r.deaths)))
	}
	if n := &l.dials.atOnce; n.count > 0 {
		at := plural(n.count) + " at once"
		add(Learned{Kind: KindAtOnce, Value: fmt.Sprint(n.count), At: at, Deaths: n.deaths, Since: n.since, Probe: n.next},
			fmt.Sprintf("the network allows %s: %s got no answer beside so many", at, plural(n.deaths)))
	}
	return list
}

// plural says how many connections they are.
func plural(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// size is n bytes as the configuration writes it, rounded down.
func size(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

// short is d with no more digits than a person wants to read.
func short(d time.Duration) string {
	if d >= 10*time.Second {
		return duration(d.Round(time.Second))
	}
	return duration(d.Round(100 * time.Millisecond))
}
