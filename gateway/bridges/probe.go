package bridges

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
)

// A Stage is a step of a Probe.
type Stage string

// The stages, in order. A built-in transport has no program to start, and behind
// far = "forward" nothing can be asked.
const (
	StageProgram   Stage = "program"   // the PT is started
	StageTransport Stage = "transport" // the PT connects to the bridge
	StageFar       Stage = "far end"   // what stands behind it answers
)

// A Step is a stage that was begun, and how long it took.
type Step struct {
	Stage Stage
	Took  time.Duration
}

// A Probe is what a trial of a bridge has shown.
type Probe struct {
	Steps []Step // those begun; the last of them failed if Err is set
	Err   error
}

// Probe dials the bridge with a connection of its own, and asks what stands behind
// it for a sign of life: an exit for its answer to a ping, a SOCKS5 server for its
// choice of a method. No destination is named. The outcome has no part in the
// choice of bridges.
func (b *Bridge) Probe(ctx context.Context) (p Probe) {
	step := func(s Stage, f func() error) bool {
		begin := time.Now()
		err := f()
		p.Steps = append(p.Steps, Step{s, time.Since(begin)})
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			p.Err = err
		}
		return err == nil
	}
	if b.pt.inside == nil && b.pt.err == nil {
		if !step(StageProgram, func() error {
			_, err := b.pt.ready(ctx)
			return err
		}) {
			return p
		}
	}
	c := b.config()
	var conn net.Conn
	if !step(StageTransport, func() (err error) {
		conn, err = b.pt.dial(ctx, c)
		return err
	}) {
		return p
	}
	switch c.Far {
	case config.FarExit:
		step(StageFar, func() error {
			client, err := carrier.NewClient(conn, new(carrier.Traffic), b.log)
			if err != nil {
				return err
			}
			defer client.Close(0)
			return client.Check(ctx)
		})
	case config.FarSOCKS5:
		step(StageFar, func() error { return greet(ctx, conn, c.User != "") })
		conn.Close()
	default:
		conn.Close()
	}
	return p
}

// greet has a SOCKS5 server choose a method (RFC 1928 section 3).
func greet(ctx context.Context, c net.Conn, auth bool) error {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	method := byte(0)
	if auth {
		method = 2
	}
	if _, err := c.Write([]byte{5, 1, method}); err != nil {
		return err
	}
	var b [2]byte
	switch _, err := io.ReadFull(c, b[:]); {
	case err != nil:
		return fmt.Errorf("no answer to a SOCKS5 greeting: %w", err)
	case b[0] != 5:
		return fmt.Errorf("not a SOCKS5 answer: version %d", b[0])
	case b[1] != method && auth:
		return errors.New("the SOCKS5 server takes no user and password: remove them from the bridge")
	case b[1] != method:
		return errors.New("the SOCKS5 server asks for a user and password: set them in the bridge")
	}
	return nil
}
