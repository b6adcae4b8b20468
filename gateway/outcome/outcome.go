// Package outcome counts what happens to connections and requests. There is one
// table with a row for each outcome, and one Book that counts them, so that the
// status, the metrics and the log can't differ: all three are made from it.
//
// The Book also writes the log lines of outcomes. People outside can cause many
// outcomes as often as they like, and 500 refused connections must not be 500 lines.
// Such an outcome has a line of its own the first time. Those that follow are summed
// up: one line every ten seconds says how many more there were, until ten seconds
// pass without one. A line that sums up has the attribute "more"; all other lines
// stand for one. So the lines of an outcome add up to its number.
//
// A log line has its level by one rule, also where it is of no outcome:
//
//	error  something that was asked for does not run, and will not before a person acts
//	warn   something does not work as it should; ptgate goes on, and a person had better
//	       look at it by day: a bridge, a program that is set up wrongly, guesses at passwords
//	info   what changes, and what is refused because the configuration says so
//	debug  each single connection, and what libraries and transport programs say
//
// The package decides nothing, and it does not know who reads the numbers. What
// is no outcome, such as a start or a stop, is logged without it.
package outcome

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// period is the time that one line sums up.
	period = 10 * time.Second
	// maxLabels bounds the labels of a row. Names of bridges come and go with
	// reloads; what comes after so many of them is counted as "other".
	maxLabels = 1000
)

// A Label says whose an outcome is. Its values stand in the order of the row's
// Labels. Values must come from a set that nobody outside can make larger.
type Label [2]string

// By makes a Label of at most two values. Without any it is for rows that have no
// labels.
func By(values ...string) (l Label) {
	copy(l[:], values)
	return l
}

// A Book counts outcomes and logs them. Make it with New, and call Close. It is safe
// for use by many goroutines. After Close it still counts, but writes no more lines
// that sum up.
type Book struct {
	log    *slog.Logger
	rows   [outcomes]rowCounts
	closed atomic.Bool
	timers sync.WaitGroup // one for each burst
}

type rowCounts struct {
	mu      sync.RWMutex
	byLabel map[Label]*count
}

// A count is the number of one outcome with one label.
type count struct {
	row   *Row
	label Label
	n     atomic.Int64

	mu    sync.Mutex
	parts map[*part]struct{}
	timer *time.Timer // of the burst that is being summed up; nil: there is none
	more  int64       // since the last line
}

// A part is what one Attach adds to a count.
type part struct{ read func() int64 }

// value is the number with all its parts.
func (c *count) value() int64 {
	c.mu.Lock()
	n := c.n.Load()
	parts := slices.Collect(maps.Keys(c.parts))
	c.mu.Unlock()
	for _, p := range parts {
		n += p.read()
	}
	return n
}

// New makes a Book that logs to log.
func New(log *slog.Logger) *Book { return &Book{log: log} }

// Counter returns the number of an outcome for direct use. It is for outcomes
// without log lines that happen too often for Add, and for gauges, which also go
// down.
func (b *Book) Counter(o Outcome, l Label) *atomic.Int64 { return &b.count(o, l).n }

// Attach adds a number that the caller keeps to the number of an outcome. The Book
// calls read whenever it needs the number, from any goroutine. read must not wait,
// and must not use the Book. detach removes the caller's number. The last value of
// read then stays part of the outcome's number, unless the outcome is a gauge.
func (b *Book) Attach(o Outcome, l Label, read func() int64) (detach func()) {
	c := b.count(o, l)
	p := &part{read}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parts == nil {
		c.parts = map[*part]struct{}{}
	}
	c.parts[p] = struct{}{}
	return sync.OnceFunc(func() {
		last := read()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.parts, p)
		if !c.row.Gauge {
			c.n.Add(last)
		}
	})
}

func (b *Book) count(o Outcome, l Label) *count {
	r := &b.rows[o]
	r.mu.RLock()
	c := r.byLabel[l]
	r.mu.RUnlock()
	if c != nil {
		return c
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.byLabel) >= maxLabels && r.byLabel[l] == nil {
		l = Label{}
		for i := range table[o].Labels {
			l[i] = "other"
		}
	}
	if c = r.byLabel[l]; c == nil {
		if r.byLabel == nil {
			r.byLabel = map[Label]*count{}
		}
		c = &count{row: &table[o], label: l}
		r.byLabel[l] = c
	}
	return c
}

// Add counts one outcome and logs it, as its row says. attrs are further
// attributes of the log line; the label's are in it anyway. Where lines are summed
// up, the single ones are still written at debug level, if that is on.
func (b *Book) Add(o Outcome, l Label, attrs ...any) {
	c := b.count(o, l)
	c.n.Add(1)
	ctx, level := context.Background(), c.row.Level
	if c.row.Message == "" || !b.log.Enabled(ctx, level) {
		return
	}
	if c.row.AtWill && level > slog.LevelDebug && !b.begins(c) {
		if level = slog.LevelDebug; !b.log.Enabled(ctx, level) {
			return
		}
	}
	b.write(c, level, attrs...)
}

// begins tells whether an outcome is the first of a burst, and so gets a line of
// its own. If not, it is one of those that the next line sums up.
func (b *Book) begins(c *count) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.more++
		return false
	}
	if !b.closed.Load() {
		b.timers.Add(1)
		c.timer = time.AfterFunc(period, func() { b.sumUp(c) })
	}
	return true
}

// sumUp writes the line of a period, and ends the burst after a period in which
// nothing has happened.
func (b *Book) sumUp(c *count) {
	c.mu.Lock()
	more := c.more
	c.more = 0
	over := more == 0 || b.closed.Load()
	if over {
		c.timer = nil
	} else {
		c.timer.Reset(period)
	}
	c.mu.Unlock()
	if more > 0 {
		b.write(c, c.row.Level, "more", more)
	}
	if over {
		b.timers.Done()
	}
}

func (b *Book) write(c *count, level slog.Level, attrs ...any) {
	all := make([]any, 0, 2*len(c.label)+len(attrs))
	for i, name := range c.row.Labels {
		all = append(all, name, c.label[i])
	}
	b.log.Log(context.Background(), level, c.row.Message, append(all, attrs...)...)
}

// Close writes the lines that sum up what was not logged yet, and stops the timers.
func (b *Book) Close() {
	b.closed.Store(true)
	for o := range outcomes {
		r := &b.rows[o]
		r.mu.RLock()
		counts := slices.Collect(maps.Values(r.byLabel))
		r.mu.RUnlock()
		for _, c := range counts {
			c.mu.Lock()
			mine := c.timer != nil && c.timer.Stop()
			c.mu.Unlock()
			if mine {
				b.sumUp(c)
			}
		}
	}
	b.timers.Wait()
}

// A Value is the number of one outcome with one label.
type Value struct {
	Outcome Outcome           `json:"-"`
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels,omitempty"`
	Value   int64             `json:"value"`
}

// Snapshot returns all numbers, in the order of the table. A row without labels has
// one Value, also for 0. A row with labels has one Value for each Label that was
// counted.
func (b *Book) Snapshot() []Value {
	var all []Value
	for o := range outcomes {
		row := &table[o]
		if len(row.Labels) == 0 {
			b.count(o, Label{})
		}
		r := &b.rows[o]
		r.mu.RLock()
		labels := slices.SortedFunc(maps.Keys(r.byLabel), func(x, y Label) int {
			return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]))
		})
		for _, l := range labels {
			v := Value{Outcome: o, Name: row.Name, Value: r.byLabel[l].value()}
			for i, name := range row.Labels {
				if v.Labels == nil {
					v.Labels = map[string]string{}
				}
				v.Labels[name] = l[i]
			}
			all = append(all, v)
		}
		r.mu.RUnlock()
	}
	return all
}

// Total is the number of an outcome over all its labels.
func (b *Book) Total(o Outcome) (n int64) {
	r := &b.rows[o]
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, c := range r.byLabel {
		n += c.value()
	}
	return n
}
