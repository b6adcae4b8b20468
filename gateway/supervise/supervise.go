// Package supervise keeps a child running: a program, or anything else that starts,
// runs and ends. A child that ends is started again. If it has not run for long,
// there is a pause first. The pause grows with each failure, and it has a random
// part, so that many supervisors do not start children at the same moment.
//
// It does not know what the child does. The Config says how it is started, and what a log
// may say of its errors.
package supervise

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"ptgate/adapter"
)

const (
	// firstPause and maxPause are the first and the longest pause before a start. A
	// random part of up to a half is added or taken away.
	firstPause = 500 * time.Millisecond
	maxPause   = time.Minute

	// A child that has run for promptAfter is started again without a pause. One that has run
	// for workedAfter does work, and streams may wait for it: its pause does not grow at the
	// first patientFailures failures.
	promptAfter     = 10 * time.Second
	workedAfter     = 2 * time.Second
	patientFailures = 10

	// After a child has run for soundAfter, earlier failures are forgotten.
	soundAfter = time.Minute

	// The first loudFailures failures in a row are all logged. After that, one is
	// logged every quietFor.
	loudFailures = 5
	quietFor     = 10 * time.Minute
)

// ErrClosed says that Retire or Close was called, so no child is started any more.
var ErrClosed = adapter.Constant("stopping")

// A Child is something that runs. All its methods may be called at any time and
// from any goroutine.
type Child interface {
	// Done is closed when the child has ended.
	Done() <-chan struct{}
	// Err is the reason why the child has ended, once Done is closed. It may be nil.
	Err() error
	// Close ends the child, and returns when the child and all that it has started
	// have ended.
	Close() error
}

// A Config says what to supervise.
type Config[C Child] struct {
	// Name is what the log calls the child.
	Name string

	// Start starts the child and returns when it is ready, or has failed and left
	// nothing behind. The context bounds the start, not the child.
	Start func(context.Context) (C, error)

	// Logger gets each start and each failure. Nil: nothing is logged.
	Logger *slog.Logger

	// Text returns the text of an error that log and status may show. Nil: the full
	// text.
	Text func(error) string

	// Advice returns a text for the operator: what to do about a start that failed.
	// "": there is none. Nil: there is never one.
	Advice func(error) string
}

// A State is what a supervisor is doing.
type State string

// The states.
const (
	Idle     State = "idle"     // there is no child, and none is being started
	Waiting  State = "waiting"  // the child has failed, and is not started before Status.Until
	Starting State = "starting" // the child is not ready yet
	Running  State = "running"
	Stopped  State = "stopped" // there is no child, and none will be started
)

// A Status is the state of a supervisor at one moment. If a child can't run, the
// State is Waiting, and Failures grows.
type Status struct {
	State    State     `json:"state"`
	Starts   int       `json:"starts"`          // starts so far, failed ones too
	Failures int       `json:"failures"`        // since the child last ran for a minute
	Until    time.Time `json:"until,omitzero"`  // if Waiting: the earliest time of the next start
	Error    string    `json:"error,omitempty"` // the last failure; "" once the child has run for a minute after it
}

// A Supervisor runs one child at a time. Its methods may be called from any
// goroutine. Whoever has made it calls Close.
type Supervisor[C Child] struct {
	cfg Config[C]
	log *slog.Logger

	starts    context.Context // its end stops all starts
	endStarts context.CancelFunc
	life      context.Context // its end ends the child
	endLife   context.CancelFunc
	wg        sync.WaitGroup // one goroutine for each run

	view atomic.Pointer[view[C]] // for methods that must not wait for mu

	mu      sync.Mutex // guards what follows, and is held for moments only
	now     *run[C]    // nil: no child, and no start under way
	trial   bool       // Keep has not seen the child running yet
	keep    bool       // begin the next run by itself
	retired bool
	pause   backoff.ExponentialBackOff
	until   time.Time // no start before this
	status  Status    // without Error: Config.Text is asked for each time
	lastErr error
	logged  time.Time // when a failure was last logged
	unsaid  int       // failures since then, which were not logged
}

// A run is one child, from the pause before its start to its end.
type run[C Child] struct {
	ready chan struct{} // closed when child or err is set
	child C
	err   error
	over  chan struct{} // closed when the supervisor has noted the end
}

// A view is a copy of the state for Child and Status. It is never changed.
type view[C Child] struct {
	status  Status
	lastErr error
	since   time.Time
	child   C
	running bool
}

// New makes a supervisor. It starts nothing before Get or Keep.
func New[C Child](cfg Config[C]) *Supervisor[C] {
	s := &Supervisor[C]{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.starts, s.endStarts = context.WithCancel(context.Background())
	s.life, s.endLife = context.WithCancel(context.Background())
	s.pause = *backoff.NewExponentialBackOff() // half of each pause, up or down, is random
	s.pause.InitialInterval, s.pause.MaxInterval = firstPause, maxPause
	s.set(Idle)
	return s
}

// Get returns the child that runs. If there is none, it starts one, after the pause
// if earlier starts have failed. The error is that of the start, ErrClosed, or the
// cause of ctx. The end of ctx does not stop the start. The supervisor closes the
// child, not the caller.
func (s *Supervisor[C]) Get(ctx context.Context) (child C, err error) {
	for {
		r := s.join()
		if r == nil {
			return child, ErrClosed
		}
		select {
		case <-r.ready:
		case <-ctx.Done():
			return child, context.Cause(ctx)
		}
		if r.err != nil {
			return child, r.err
		}
		select {
		case <-r.child.Done():
		default:
			return r.child, nil
		}
		// The child has just ended. Its end must be noted before the next start.
		select {
		case <-r.over:
		case <-ctx.Done():
			return child, context.Cause(ctx)
		}
	}
}

// Keep starts the child as Get does. From then on, the child is started again
// whenever it ends. If Keep returns an error, it is not started again, and the error
// is not logged.
func (s *Supervisor[C]) Keep(ctx context.Context) (child C, err error) {
	s.mu.Lock()
	s.trial = true
	s.mu.Unlock()
	child, err = s.Get(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trial = false
	if err != nil {
		return child, err
	}
	s.keep = true
	if s.now == nil && !s.retired { // the child has ended again
		s.begin()
	}
	return child, nil
}

// Child returns the child that runs; ok is false if there is none. It never waits.
func (s *Supervisor[C]) Child() (child C, ok bool) {
	v := s.view.Load()
	return v.child, v.running
}

// Status returns the supervisor's present state. It never waits.
func (s *Supervisor[C]) Status() Status {
	v := s.view.Load()
	st := v.status
	lastErr := v.lastErr
	now := time.Now()
	switch {
	case v.running && now.Sub(v.since) >= soundAfter:
		st.Failures, lastErr = 0, nil
	case st.State == Waiting && !now.Before(st.Until):
		st.State, st.Until = Idle, time.Time{} // the pause is over, and nobody has asked for a child
	}
	if lastErr != nil {
		st.Error = s.text(lastErr)
	}
	return st
}

// Retire makes the supervisor start no child any more. It cancels a start that is
// under way, and waits for its end. It returns the child that runs; ok is false if
// there is none. That child goes on until it ends by itself, or Close ends it.
func (s *Supervisor[C]) Retire() (child C, ok bool) {
	r := s.retire()
	if r == nil {
		return child, false
	}
	<-r.ready
	return r.child, r.err == nil
}

// Close ends the child. It returns when the child and all goroutines have ended.
func (s *Supervisor[C]) Close() {
	s.retire()
	s.endLife()
	s.wg.Wait()
}

// retire stops all starts, and returns the run under way; nil: there is none.
func (s *Supervisor[C]) retire() *run[C] {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	s.endStarts()
	if s.now == nil {
		s.set(Stopped)
	}
	return s.now
}

// join returns the run under way, or begins one. Nil: no child may be started any
// more.
func (s *Supervisor[C]) join() *run[C] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retired {
		return nil
	}
	if s.now == nil {
		s.begin()
	}
	return s.now
}

// begin begins a run. The caller holds mu.
func (s *Supervisor[C]) begin() {
	r := &run[C]{ready: make(chan struct{}), over: make(chan struct{})}
	s.now = r
	s.wg.Go(func() { s.run(r) })
}

// set changes the state, and updates the view. The caller holds mu.
func (s *Supervisor[C]) set(state State) {
	s.status.State, s.status.Until = state, time.Time{}
	v := &view[C]{}
	switch state {
	case Waiting:
		s.status.Until = s.until
	case Starting:
		s.status.Starts++
	case Running:
		v.child, v.running, v.since = s.now.child, true, time.Now()
	}
	v.status, v.lastErr = s.status, s.lastErr
	s.view.Store(v)
}

// enter is set for a caller that does not hold mu.
func (s *Supervisor[C]) enter(state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(state)
}

// run does one run: the pause, the start, and the wait for the child's end.
func (s *Supervisor[C]) run(r *run[C]) {
	begun := time.Now()
	child, err := s.start()
	if err != nil {
		s.end(r, err, 0)
		return
	}
	r.child = child
	s.enter(Running)
	close(r.ready)
	if s.Status().Failures <= loudFailures {
		s.log.Info(s.cfg.Name+" started", "after", time.Since(begun).Round(time.Millisecond))
	}
	up := time.Now()
	select {
	case <-child.Done():
	case <-s.life.Done():
	}
	lived := max(time.Since(up), 1) // 0 would mean that it was never ready
	child.Close()
	if err = child.Err(); err == nil {
		err = errEnded
	}
	s.end(r, err, lived)
}

var errEnded = adapter.Constant("it has ended")

// start waits until the pause is over, and starts the child.
func (s *Supervisor[C]) start() (child C, err error) {
	s.mu.Lock()
	wait := time.Until(s.until)
	s.mu.Unlock()
	if wait > 0 {
		s.enter(Waiting)
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.starts.Done():
		}
	}
	if s.starts.Err() != nil {
		return child, ErrClosed
	}
	s.enter(Starting)
	return s.cfg.Start(s.starts)
}

// end notes that a run has ended, with err. lived is how long the child ran; 0: it was
// never ready.
func (s *Supervisor[C]) end(r *run[C], err error, lived time.Duration) {
	s.mu.Lock()
	s.now = nil
	var attrs []any // of the log line; nil: there is no line
	if s.retired {
		err = ErrClosed
		s.set(Stopped)
	} else {
		attrs = s.fail(err, lived)
		s.set(Waiting)
		if s.keep {
			s.begin()
		}
	}
	if lived == 0 {
		r.err = err
		close(r.ready)
	}
	close(r.over)
	s.mu.Unlock()

	if attrs == nil {
		return
	}
	// The line is written without the lock, so that nobody waits for a slow log.
	attrs = append(attrs, "error", s.text(err))
	if s.cfg.Advice != nil {
		if advice := s.cfg.Advice(err); advice != "" {
			attrs = append(attrs, "advice", advice)
		}
	}
	if lived > 0 {
		s.log.Warn(s.cfg.Name+" ended", append(attrs, "after", lived.Round(time.Millisecond))...)
	} else {
		s.log.Error(s.cfg.Name+" did not start", attrs...)
	}
}

// fail counts a failure, and sets the time of the next start. It returns the
// attributes of a log line; nil: there is no line. The caller holds mu.
func (s *Supervisor[C]) fail(err error, lived time.Duration) (attrs []any) {
	if lived >= soundAfter {
		s.pause.Reset()
		s.status.Failures = 0
	}
	s.status.Failures++
	s.lastErr = err
	pause := s.pause.NextBackOff()
	switch {
	case lived >= promptAfter:
		pause = 0
	case lived >= workedAfter && s.status.Failures <= patientFailures:
		pause = min(pause, firstPause)
	}
	s.until = time.Now().Add(pause)
	switch {
	case s.trial && lived == 0: // Keep returns the error
	case s.status.Failures > loudFailures && time.Since(s.logged) < quietFor:
		s.unsaid++ // if a child fails all the time, only some failures are logged
	default:
		attrs = []any{"failures", s.status.Failures, "pause", pause.Round(time.Millisecond)}
		if s.unsaid > 0 {
			attrs = append(attrs, "not_logged", s.unsaid)
		}
		s.logged, s.unsaid = time.Now(), 0
	}
	return attrs
}

func (s *Supervisor[C]) text(err error) string {
	if s.cfg.Text == nil {
		return err.Error()
	}
	return s.cfg.Text(err)
}
