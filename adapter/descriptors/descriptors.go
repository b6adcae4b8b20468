// Package descriptors tells how near this process is to its limit of open files. Code that
// opens connections for strangers asks it, so that some descriptors are left for what must
// always work: a refusal, for example, needs a connection, too.
//
// The package counts nothing. The system gives each new file the lowest number that is
// free (POSIX, section 2.6 of the general information). So the number of a new connection
// tells that at least as many files are open, whoever has opened them. Systems that have
// no such numbers have no such limit either: there, descriptors are never short.
package descriptors

import (
	"fmt"
	"math"
	"net"
	"os"
	"syscall"
)

// A Supply tells how many descriptors were free when a connection was made.
type Supply uint8

const (
	// Last: only what ends a connection properly, or brings descriptors back, may go on.
	Last Supply = iota
	// Few: nothing may begin that keeps its descriptor for long.
	Few
	// Enough: there is no shortage.
	Enough
)

// Unlimited is the Limit of a system without one.
const Unlimited = math.MaxInt

// Limit is how many files this process may have open.
func Limit() int { return limit() }

// few and last are how many descriptors are kept back of a limit. Connections that were let
// in, but have not dialled yet, need some of them: with a low limit, an eighth is not enough.
func few(limit int) int  { return min(limit/4, limit/8+32, 1024) }
func last(limit int) int { return min(limit/16, 256) }

// Reserve is how many descriptors are left where Of begins to say Last.
func Reserve() int { return last(Limit()) }

// Kept is how many descriptors are left where Of begins to say Few.
func Kept() int { return few(Limit()) }

// Of tells how many descriptors were free when c was opened. It is Enough for a connection
// that has none, or that hides it.
func Of(c net.Conn) Supply {
	if c, ok := c.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			return of(raw)
		}
	}
	return Enough
}

// Now tells how many descriptors are free now. It opens a file for a moment.
func Now() Supply {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return Last
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return Last
	}
	return of(raw)
}

func of(c syscall.RawConn) (s Supply) {
	s = Enough
	_ = c.Control(func(fd uintptr) { s = supply(fd, Limit()) })
	return s
}

// Keep is for net.Dialer.Control: it lets the dialer connect only if the supply is more
// than least. The error is syscall.EMFILE.
func Keep(least Supply) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if of(c) <= least {
			return fmt.Errorf("the last descriptors are kept back: %w", syscall.EMFILE)
		}
		return nil
	}
}
