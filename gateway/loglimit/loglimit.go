// Package loglimit bounds how much a log grows, at each level. People outside may make a
// program write the same message as often as they like, and a full disk stops more than
// the program.
//
// A kind of line is a level with a message. Of each kind, a Handler writes at most Lines
// lines in each Period, and counts the others. One more line, with the attribute "more",
// says how many these were. So a message must be constant: what differs belongs into
// attributes.
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
	// Lines is how many lines of a kind are written in a Period.
	Lines = 100
	// Period begins with the first line of a kind.
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

// A count is what a kind has had in its period.
type count struct {
	lines int
	more  int64 // not written
	timer *time.Timer
}

// A limit is shared by a Handler and those that are made from it.
type limit struct {
	next slog.Handler

	mu     sync.Mutex
	kinds  map[kind]*count // those whose period has not ended
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
			defer l.timers.Done()
			l.sumUp(k)
		})
	}
	if c.lines < Lines {
		c.lines++
		return true
	}
	c.more++
	return false
}

// sumUp ends the period of a kind.
func (l *limit) sumUp(k kind) {
	l.mu.Lock()
	more := l.kinds[k].more
	delete(l.kinds, k)
	l.mu.Unlock()
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
	var mine []kind
	for k, c := range l.kinds {
		if c.timer.Stop() {
			mine = append(mine, k)
		}
	}
	l.mu.Unlock()
	for _, k := range mine {
		l.sumUp(k)
		l.timers.Done()
	}
	l.timers.Wait()
}
