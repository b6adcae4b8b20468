package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Signals do to a command what they do to any program: it ends at once, of the signal,
// so that a shell's loop ends with it. Only what must put something in order first
// takes them over, for as long as that lasts: see interruptible, run and pt.

// An endedBy says that a signal has ended a command, which the process is to die of.
type endedBy struct{ signal syscall.Signal }

func (e endedBy) Error() string { return e.signal.String() }

// interruptible calls f with a context that a signal ends, instead of the process. The
// signal is the error if f fails after it; what f has finished all the same counts.
// A second signal ends the process at once.
func interruptible(ctx context.Context, f func(context.Context) error) error {
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as under nohup
			signal.Notify(signals, s)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(endedBy{s.(syscall.Signal)})
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	err := f(ctx)
	cancel(nil)
	<-watched
	if by, ok := context.Cause(ctx).(endedBy); ok && err != nil {
		return by
	}
	return err
}
