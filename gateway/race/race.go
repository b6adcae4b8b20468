// Package race tries candidates, such as the addresses of a host, until one of them
// works. It tries one after the other. If one is slow, the next one is tried beside
// it.
//
// It does not know what a candidate is, and does not order candidates. It does not
// wait for attempts that it has cancelled: the caller does (see Race.Go).
package race

import (
	"context"
	"errors"
	"slices"
	"time"
)

// ErrNone says that every candidate has failed.
var ErrNone = errors.New("no candidate is left")

// A Race says how candidates of type C are tried for a result of type T. A Race
// may be run many times, also at the same time.
type Race[C, T any] struct {
	// Try makes one attempt. It must return soon after ctx has ended.
	Try func(ctx context.Context, c C) (T, error)
	// Drop gets each result that comes after the end of the race, and has to close
	// it. It is called in the goroutine of the attempt.
	Drop func(T)
	// Go runs an attempt in a goroutine of its own. The caller waits for these
	// goroutines if it has to know that all attempts have ended. Go returns false,
	// and runs nothing, if nothing may be started any more. Then the race ends as
	// if it were cancelled.
	Go func(attempt func()) bool
	// Stagger is the time from the start of one attempt to the start of the next
	// one, if none has failed in between.
	Stagger time.Duration
	// Together is how many attempts are started at once in the beginning. 0: one.
	Together int
	// Final tells whether an attempt's error decides the race, as a success does.
	// Nil: no error does.
	Final func(error) bool
	// Merge returns one list of the candidates that have not been tried and those
	// that have just come. Nil: the later ones come after the others.
	Merge func(untried, later []C) []C
}

// A Running is an attempt that has begun and has not ended.
type Running[C any] struct {
	Candidate C
	Since     time.Time

	number int // of the attempt
}

// An Outcome is how a race has ended.
type Outcome[C, T any] struct {
	// Value is the result of the attempt that has won, if Err is nil.
	Value T
	// Err is nil, or the Final error of an attempt, or ErrNone, or the context's
	// cause.
	Err error
	// Failed has the errors of the attempts that failed before the end, in the
	// order in which they failed.
	Failed []error
	// Running are the attempts that were still running at the end. They have been
	// cancelled.
	Running []Running[C]
}

// Run tries the candidates of now, and those that come from later until that is
// closed. later may be nil. The next candidate is tried when an attempt has failed,
// or when Stagger has passed since the last start of an attempt.
//
// Run returns as soon as the outcome is known, and at the latest when ctx ends. If
// there is only one candidate, and later is nil, it is tried in the caller's
// goroutine.
func (r *Race[C, T]) Run(ctx context.Context, now []C, later <-chan []C) (o Outcome[C, T]) {
	if len(now) == 1 && later == nil {
		return r.only(ctx, now[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		number int
		value  T
		err    error
	}
	results := make(chan result)
	begun := 0
	begin := func(c C) {
		n := begun
		begun++
		o.Running = append(o.Running, Running[C]{c, time.Now(), n})
		if !r.Go(func() {
			v, err := r.Try(ctx, c)
			select {
			case results <- result{n, v, err}:
			case <-ctx.Done():
				if err == nil {
					r.Drop(v)
				}
			}
		}) {
			cancel()
		}
	}
	stagger := time.NewTimer(r.Stagger)
	defer stagger.Stop()
	free := max(r.Together, 1) // candidates that may be tried at once
	untried := slices.Clone(now)
	for {
		for free > 0 && len(untried) > 0 {
			begin(untried[0])
			untried = untried[1:]
			free--
			stagger.Reset(r.Stagger)
		}
		if len(o.Running) == 0 && later == nil {
			o.Err = ErrNone
			return o
		}
		select {
		case <-ctx.Done():
			o.Err = context.Cause(ctx)
			return o
		case <-stagger.C:
			free = max(free, 1)
		case more, ok := <-later:
			switch {
			case !ok:
				later = nil
			case r.Merge != nil:
				untried = r.Merge(untried, more)
			default:
				untried = append(untried, more...)
			}
		case res := <-results:
			o.Running = slices.DeleteFunc(o.Running, func(a Running[C]) bool { return a.number == res.number })
			if res.err == nil || r.final(res.err) {
				o.Value, o.Err = res.value, res.err
				return o
			}
			o.Failed = append(o.Failed, res.err)
			free = max(free, 1)
		}
	}
}

// only tries the one candidate that there is.
func (r *Race[C, T]) only(ctx context.Context, c C) (o Outcome[C, T]) {
	v, err := r.Try(ctx, c)
	if err == nil || r.final(err) {
		return Outcome[C, T]{Value: v, Err: err}
	}
	return Outcome[C, T]{Err: ErrNone, Failed: []error{err}}
}

func (r *Race[C, T]) final(err error) bool { return r.Final != nil && r.Final(err) }
