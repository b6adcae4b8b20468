package adapter

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
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
// bridges and clients.
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
// as debug. It is what happens to events where Config.OnEvent is nil.
func LogEvent(logger *slog.Logger, e Event) {
	attrs := []slog.Attr{slog.String("kind", e.Kind.String())}
	if e.Message != "" {
		attrs = append(attrs, slog.String("message", e.Message))
	}
	if e.Transport != "" {
		attrs = append(attrs, slog.String("transport", e.Transport))
	}
	for _, p := range e.Params {
		attrs = append(attrs, slog.String("status."+p.Key, p.Value))
	}
	if e.Count != 0 {
		attrs = append(attrs, slog.Int("count", e.Count))
	}
	logger.LogAttrs(context.Background(), e.level(), "transport program says", attrs...)
}

const (
	eventQueue = 256 // events that wait for a slow OnEvent
	eventRate  = 200 // events a second; a child must not fill the disk through our log
)

// events hands a child's events to one callback, in order, without ever
// keeping the child waiting: what is too much is counted and dropped.
type events struct {
	deliver func(Event)
	wake    chan struct{} // has room for one

	mu      sync.Mutex
	queue   []Event
	second  time.Time // when the current second of the rate limit began
	count   int       // of events in that second
	dropped int
	closed  bool
}

func newEvents(deliver func(Event)) *events {
	return &events{deliver: deliver, wake: make(chan struct{}, 1)}
}

// put never blocks.
func (q *events) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now := time.Now(); now.Sub(q.second) >= time.Second {
		q.second, q.count = now, 0
	}
	if q.count >= eventRate || len(q.queue) >= eventQueue {
		q.dropped++
		return
	}
	q.count++
	q.flushDropped()
	q.queue = append(q.queue, e)
	q.signal()
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

// printable makes text from outside fit for a log.
func printable(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
