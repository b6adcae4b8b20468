// Package loglimit bounds how much a log grows, at each level. People outside may make a
// program write the same message as often as they like, and a full disk stops more than
// the program.
//
// A kind of line is a level with a message. Of each kind, a Handler writes at most Burst
// lines at once, and in the long run one line Each. It counts the others: at the end of
// each Period, a line with the attribute "more" says how many these were. So a message
// must be constant: what differs belongs into attributes.
//
// It does not choose what is worth a line. For outcomes of requests that is up to package
// outcome, which sums up much earlier.
package loglimit

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// Burst is how many lines of a kind are written at once, if there were none for long.
	Burst = 2000
	// Each is the time between lines of a kind after a burst.
	Each = 100 * time.Millisecond
	// Period is the time between lines that sum up. It begins with the first line of a kind.
	Period = 10 * time.Second
	// maxKinds bounds the kinds that are counted at the same time. Further ones are
	// counted as one.
	maxKinds = 1000
)

// others is the message of the line that sums up the kinds beyond maxKinds.
const others = "other messages"

// A Handler passes records on to another handler, as far as the limit allows. Handlers
// made from it by WithAttrs and WithGroup share its limit. Make it with New, and call
// Close.
type Handler struct {
	slog.Handler
	limit *limit
}

// New limits what next gets.
func New(next slog.Handler) *Handler {
	return &Handler{next, &limit{next: next, kinds: map[kind]*count{}}}
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if !h.limit.allows(kind{r.Level, r.Message}) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(attrs), h.limit}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.limit}
}

// Close writes the lines that sum up, and stops the timers. What is logged later is
// written without a limit.
func (h *Handler) Close() { h.limit.close() }

type kind struct {
	level   slog.Level
	message string
}

// A count is what a kind has had lately.
type count struct {
	full  time.Time // when there may be a whole burst again: each line moves it by Each
	more  int64     // not written
	timer *time.Timer
}

// A limit is shared by a Handler and those that are made from it.
type limit struct {
	next slog.Handler

	mu     sync.Mutex
	kinds  map[kind]*count // those that may not have a whole burst yet
	closed bool
	timers sync.WaitGroup
}

func (l *limit) allows(k kind) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return true
	}
	c := l.kinds[k]
	if c == nil && len(l.kinds) >= maxKinds {
		k = kind{slog.LevelWarn, others}
		c = l.kinds[k]
	}
	if c == nil {
		c = new(count)
		l.kinds[k] = c
		l.timers.Add(1)
		c.timer = time.AfterFunc(Period, func() {
			l.sumUp(k, c)
		})
	}
	now := time.Now()
	if c.full.Before(now) {
		c.full = now
	}
	if c.full.Sub(now) > (Burst-1)*Each {
		c.more++
		return false
	}
	c.full = c.full.Add(Each)
	return true
}

// sumUp ends a period of a kind. Another one follows until there may be a whole
// burst again.
func (l *limit) sumUp(k kind, c *count) {
	l.mu.Lock()
	more := c.more
	c.more = 0
	l.mu.Unlock()
	l.write(k, more)

	l.mu.Lock()
	if !l.closed && c.full.After(time.Now()) {
		c.timer.Reset(Period)
		l.mu.Unlock()
		return
	}
	more = c.more // since a moment ago
	delete(l.kinds, k)
	l.mu.Unlock()
	l.write(k, more)
	l.timers.Done()
}

// write writes the line that sums up, if it sums up something.
func (l *limit) write(k kind, more int64) {
	ctx := context.Background()
	if more == 0 || !l.next.Enabled(ctx, k.level) {
		return
	}
	r := slog.NewRecord(time.Now(), k.level, k.message, 0)
	r.Add("more", more)
	_ = l.next.Handle(ctx, r) // there is no other place to tell of an error
}

func (l *limit) close() {
	l.mu.Lock()
	l.closed = true
	mine := map[kind]*count{}
	for k, c := range l.kinds {
		if c.timer.Stop() {
			mine[k] = c
		}
	}
	l.mu.Unlock()
	for k, c := range mine {
		l.sumUp(k, c)
	}
	l.timers.Wait()
}
