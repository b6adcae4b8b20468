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
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/meeklite"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/obfs4"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/webtunnel"

	"ptgate/adapter"
)

// The transports' names, as bridge lines and pt-spec spell them.
const (
	nameObfs4     = "obfs4"
	nameWebtunnel = "webtunnel"
	nameMeekLite  = "meek_lite"
)

// ErrUnknownTransport says that a transport is not one of ours in that role.
var ErrUnknownTransport = errors.New("no such built-in transport")

// ClientTransports names the transports that NewClient knows.
func ClientTransports() []string { return []string{nameObfs4, nameWebtunnel, nameMeekLite} }

// ServerTransports names the transports that Listen knows.
func ServerTransports() []string { return []string{nameObfs4, nameWebtunnel} }

// InProcess reports whether transport may run inside the process that carries
// everything else. That is so where its code starts no goroutine of its own: a
// panic in one could not be turned into an error. meek_lite has a worker
// goroutine for each connection and belongs in a child process.
func InProcess(transport string) bool {
	return transport == nameObfs4 || transport == nameWebtunnel
}

func clientFactory(name, stateDir string) (base.ClientFactory, error) {
	switch name {
	case nameObfs4:
		return new(obfs4.Transport).ClientFactory(stateDir)
	case nameWebtunnel:
		return webtunnel.Transport.ClientFactory(stateDir)
	case nameMeekLite:
		return new(meeklite.Transport).ClientFactory(stateDir)
	}
	return nil, fmt.Errorf("client transport %q: %w", name, ErrUnknownTransport)
}

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

// A PanicError is a panic in a transport's code, turned into an error of the one
// connection that it happened on.
type PanicError struct {
	Transport string
	Value     any
	Stack     []byte
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("%s: panic in the transport: %v", e.Transport, e.Value)
}

// rescue is deferred around every call into a transport's code.
func rescue(transport string, err *error) {
	if v := recover(); v != nil {
		*err = &PanicError{Transport: transport, Value: v, Stack: debug.Stack()}
	}
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
