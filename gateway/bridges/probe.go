package bridges

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ptgate/gateway/config"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
)

// A Stage is a step of a Probe.
type Stage string

// The stages, in order. A built-in transport has no program to start, and behind
// far = "forward" nothing can be asked.
const (
	StageProgram   Stage = "program"   // the PT is started
	StageTransport Stage = "transport" // the PT connects to the bridge
	StageFar       Stage = "far end"   // the far end answers
)

// A Step is a stage that was begun, and how long it took.
type Step struct {
	Stage Stage
	Took  time.Duration
}

// A Probe is the result of Bridge.Probe. Err is nil if every step has succeeded.
type Probe struct {
	Steps []Step // the steps that were begun; if Err is set, the last one failed
	Err   error

	Box    string        // the box behind an exit, in short; "": not known
	Resume time.Duration // how long its streams outlive their connections; 0: they don't
}

// Probe opens a new connection to the bridge. It checks whether the far end
// answers and accepts the bridge's user and password. It names no destination, and
// closes the connection. The result does not change the choice of bridges.
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
	if b.pt.Load().child != nil {
		if !step(StageProgram, func() error {
			_, err := b.pt.Load().ready(ctx)
			return err
		}) {
			return p
		}
	}
	c := b.config()
	var conn stream.Conn
	if !step(StageTransport, func() (err error) {
		conn, err = b.pt.Load().dial(ctx, c)
		return err
	}) {
		return p
	}
	switch c.Far {
	case config.FarExit:
		step(StageFar, func() error {
			s := session.Over(conn, sessionSettings(c, b.settings.Load().limits), session.Options{Memory: b.m.memory})
			defer s.Close(0)
			err := s.Check(ctx)
			far := s.Status()
			p.Box, p.Resume = far.Box.String(), far.Resume
			return err
		})
	case config.FarSOCKS5:
		step(StageFar, func() error {
			defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
			return session.Greet(conn, authOf(c))
		})
		conn.Close()
	default:
		conn.Close()
	}
	return p
}
