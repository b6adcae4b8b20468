package exit

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// attemptDelay is RFC 8305's "Connection Attempt Delay" (section 5).
const attemptDelay = 250 * time.Millisecond

// interleave orders addresses for racing: families take turns, the first one's
// first (RFC 8305 section 4).
func interleave(in []netip.AddrPort) []netip.AddrPort {
	if len(in) < 2 {
		return in
	}
	var first, other []netip.AddrPort
	for _, a := range in {
		if a.Addr().Is4() == in[0].Addr().Is4() {
			first = append(first, a)
		} else {
			other = append(other, a)
		}
	}
	out := make([]netip.AddrPort, 0, len(in))
	for i := range max(len(first), len(other)) {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(other) {
			out = append(out, other[i])
		}
	}
	return out
}

// race connects to the first address that answers (RFC 8305 section 5): the next
// one is tried when the last has failed, or beside it after attemptDelay. It
// returns when all attempts have ended; of the errors, the first.
func race(ctx context.Context, addrs []netip.AddrPort, connect func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, error) {
	if len(addrs) == 1 {
		return connect(ctx, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	running := 0
	next := func() {
		a := addrs[0]
		addrs = addrs[1:]
		running++
		go func() {
			c, err := connect(ctx, a)
			results <- result{c, err} // the loop below takes every result
		}()
	}
	next()
	delay := time.NewTimer(attemptDelay)
	defer delay.Stop()
	var winner net.Conn
	var firstErr error
	for running > 0 {
		select {
		case <-delay.C:
			if len(addrs) > 0 && winner == nil {
				next()
				delay.Reset(attemptDelay)
			}
		case r := <-results:
			running--
			switch {
			case r.err == nil && winner == nil:
				winner = r.conn
				cancel()
			case r.err == nil:
				r.conn.Close()
			case winner == nil:
				if firstErr == nil || errors.Is(firstErr, context.Canceled) {
					firstErr = r.err
				}
				if len(addrs) > 0 && ctx.Err() == nil {
					next()
					delay.Reset(attemptDelay)
				}
			}
		}
	}
	if winner != nil {
		return winner, nil
	}
	return nil, firstErr
}
