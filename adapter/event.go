package adapter

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// EventKind says what an Event is about.
type EventKind int

// The kinds of events.
const (
	EventLog     EventKind = iota // a LOG line: Severity, Message
	EventStatus                   // a STATUS line: Transport, Params
	EventStderr                   // a line on standard error: Message
	EventUnknown                  // a line on standard output that is not in pt-spec: Message
	EventDropped                  // Count events before this one were dropped
)

func (k EventKind) String() string {
	switch k {
	case EventLog:
		return "log"
	case EventStatus:
		return "status"
	case EventStderr:
		return "stderr"
	case EventUnknown:
		return "unknown"
	case EventDropped:
		return "dropped"
	}
	return "invalid"
}

// Event is one line from a child, or a number of dropped ones. The text is as
// the child has sent it, in valid UTF-8 and cut after some KiB. It may name
// bridges and clients, and it may have control characters in it: see Escape.
type Event struct {
	Kind      EventKind
	Severity  string // of a LOG line, in lower case: error, warning, notice, info or debug
	Message   string
	Transport string // of a STATUS line
	Params    Args   // of a STATUS line, without TRANSPORT
	Count     int
}

// level maps pt-spec's severities (3.3.4) to slog's. A transport program's
// "info" is about single connections, which is our debug.
func (e Event) level() slog.Level {
	switch {
	case e.Kind == EventDropped:
		return slog.LevelWarn
	case e.Kind != EventLog:
		return slog.LevelDebug
	}
	switch e.Severity {
	case "error":
		return slog.LevelError
	case "warning":
		return slog.LevelWarn
	case "notice":
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// LogEvent writes e to logger: LOG lines with their severity, everything else
// as debug. It is what happens to events where Config.OnEvent is nil. What could
// command a terminal is escaped, and long texts are cut.
func LogEvent(logger *slog.Logger, e Event) {
	attrs := []slog.Attr{slog.String("kind", e.Kind.String())}
	if e.Message != "" {
		attrs = append(attrs, slog.String("message", Escape(e.Message, shown)))
	}
	if e.Transport != "" {
		attrs = append(attrs, slog.String("transport", Escape(e.Transport, shown)))
	}
	for _, p := range e.Params {
		attrs = append(attrs, slog.String("status."+Escape(p.Key, shown), Escape(p.Value, shown)))
	}
	if e.Count != 0 {
		attrs = append(attrs, slog.Int("count", e.Count))
	}
	logger.LogAttrs(context.Background(), e.level(), "transport program says", attrs...)
}

const (
	eventQueue = 256 // events that wait for a slow OnEvent

	// A child must not fill the disk through our log. Its events may have this many bytes
	// a second, and so many more at one time. What an event takes in a log beside its text
	// counts as eventCost bytes.
	eventRate  = 2 << 10
	eventBurst = 64 << 10
	eventCost  = 128

	// shown is how many bytes of one text LogEvent writes.
	shown = 1 << 10
)

// events hands a child's events to one callback, in order, without ever
// keeping the child waiting: what is too much is counted and dropped.
type events struct {
	deliver func(Event)
	wake    chan struct{} // has room for one

	mu      sync.Mutex
	queue   []Event
	room    float64   // bytes that events may have now
	filled  time.Time // when room was that
	dropped int
	closed  bool
}

func newEvents(deliver func(Event)) *events {
	return &events{deliver: deliver, wake: make(chan struct{}, 1), room: eventBurst, filled: time.Now()}
}

// put never blocks.
func (q *events) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	q.room = min(q.room+now.Sub(q.filled).Seconds()*eventRate, eventBurst)
	q.filled = now
	cost := e.cost()
	if cost > q.room || len(q.queue) >= eventQueue {
		q.dropped++
		return
	}
	q.room -= cost
	q.flushDropped()
	q.queue = append(q.queue, e)
	q.signal()
}

func (e *Event) cost() float64 {
	n := eventCost + len(e.Message) + len(e.Transport)
	for _, p := range e.Params {
		n += eventCost + len(p.Key) + len(p.Value)
	}
	return float64(n)
}

func (q *events) flushDropped() {
	if q.dropped > 0 {
		q.queue = append(q.queue, Event{Kind: EventDropped, Count: q.dropped})
		q.dropped = 0
	}
}

func (q *events) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close lets run return once everything is delivered.
func (q *events) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flushDropped()
	q.closed = true
	q.signal()
}

// run delivers until close.
func (q *events) run() {
	for range q.wake {
		q.mu.Lock()
		batch, closed := q.queue, q.closed
		q.queue = nil
		q.mu.Unlock()
		for _, e := range batch {
			q.deliver(e)
		}
		if closed {
			return
		}
	}
}

// Escape makes text from outside fit for a terminal and for any kind of log: control
// characters, also those of C1 that JSON leaves as they are, and all else that can't be
// printed, such as marks that turn the direction of the text, become escapes as in Go's
// strings. What is beyond limit bytes is cut off.
func Escape(s string, limit int) string {
	if len(s) <= limit && !strings.ContainsFunc(s, unprintable) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		if b.Len() >= limit {
			b.WriteString("…")
			break
		}
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 || unprintable(r) {
			quoted := strconv.Quote(s[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// printable makes text from outside valid UTF-8.
func printable(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
