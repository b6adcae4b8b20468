package builtin

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"

	"ptgate/adapter"
)

// ErrUnknownTransport says that this package does not have the transport, or not
// for that side.
var ErrUnknownTransport = adapter.Constant("no such built-in transport")

// toPT converts args to goptlib's form, which keeps the order within a key only.
func toPT(args adapter.Args) pt.Args {
	m := make(pt.Args, len(args))
	for _, a := range args {
		m.Add(a.Key, a.Value)
	}
	return m
}

// fromPT converts back; keys come out sorted, as SMETHOD lines have them.
func fromPT(m pt.Args) adapter.Args {
	args := make(adapter.Args, 0, len(m))
	for key, values := range m {
		for _, v := range values {
			args = append(args, adapter.Arg{Key: key, Value: v})
		}
	}
	slices.SortStableFunc(args, func(a, b adapter.Arg) int { return strings.Compare(a.Key, b.Key) })
	return args
}

// A PanicError is a panic in a transport's code. It ends only the connection on
// which it happened.
type PanicError struct {
	Transport string
	Value     any
	Stack     []byte
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("%s: panic in the transport: %v", e.Transport, e.Value)
}

// Class says that there was a panic, and not with what: transports put what they like into
// that. Those of the Go runtime have no addresses. See adapter.Class.
func (e *PanicError) Class() string {
	value := fmt.Sprintf("%T", e.Value)
	if err, ok := e.Value.(error); ok {
		value = adapter.Class(err)
	}
	return e.Transport + ": panic in the transport: " + value
}

// rescue is deferred around every call into a transport's code.
func rescue(transport string, err *error) {
	if v := recover(); v != nil {
		*err = &PanicError{Transport: transport, Value: v, Stack: debug.Stack()}
	}
}

// A panicLog tells of panics, which somebody may have found out how to cause.
type panicLog struct{ limit adapter.LogLimit }

// tell reports whether err is a panic.
func (p *panicLog) tell(log *slog.Logger, err error) bool {
	perr, ok := errors.AsType[*PanicError](err)
	if ok {
		p.limit.Log(log, slog.LevelError, "transport panicked", "transport", perr.Transport, "error", perr.Class(), "stack", string(perr.Stack))
	}
	return ok
}

// ptLines stands in for goptlib's package variable Stdout, which transports
// write LOG lines to: they go nowhere until Main says where. Each line is one
// Write, and Writes don't mix.
type ptLines struct {
	mu  sync.Mutex
	out atomic.Pointer[io.Writer]
}

func (l *ptLines) Write(p []byte) (int, error) {
	out := l.out.Load()
	if out == nil {
		return len(p), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return (*out).Write(p)
}

func (l *ptLines) set(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w == nil {
		l.out.Store(nil)
		return
	}
	l.out.Store(&w)
}

// takeStdout replaces goptlib's Stdout once for the life of the process, before
// any transport's code runs: it is not safe to change it later.
var takeStdout = sync.OnceValue(func() *ptLines {
	l := new(ptLines)
	pt.Stdout = l
	return l
})

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
