package bridges

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
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
	Stage Stage         `json:"stage"`
	Took  time.Duration `json:"took_ns"`
}

// A Probe is the result of Bridge.Probe. Err is nil if every step has succeeded.
type Probe struct {
	Steps []Step // the steps that were begun; if Err is set, the last one failed
	Err   error

	Box    string        // the box behind an exit, in short; "": not known
	Resume time.Duration // how long its streams outlive their connections; 0: they don't

	// Verdict says what kind of trouble there is, or that the bridge works.
	Verdict doctor.Verdict
	// Connections is how many were made, or tried, to the bridge.
	Connections int
}

// ProbeOptions say how a Probe is made.
type ProbeOptions struct {
	// Wait bounds the first connection. Looks at the reason of a failure come after it. 0:
	// only the context does.
	Wait time.Duration
	// Deep measures what the network does to connections that work.
	Deep bool
	// Tell is called with what is done now, in a few words. Nil: nobody is told.
	Tell func(text string)
}

// Probe opens a new connection to the bridge. It checks whether the far end answers and
// accepts the bridge's user and password. It names no destination, and closes the
// connection. If that fails, a few more connections may tell why. The result does not
// change the choice of bridges.
func (b *Bridge) Probe(ctx context.Context, o ProbeOptions) (p Probe) {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	connecting, stop := context.WithCancelCause(ctx)
	beside := b.lookBeside(ctx, o, stop)
	b.connect(connecting, o, &p)
	if beside.end(p.Err != nil) {
		p.Connections++
	}
	stop(nil)
	c := b.config()
	if p.Err != nil {
		p.Verdict = b.explain(ctx, o, &p, beside)
		return p
	}
	p.Verdict = doctor.Diagnose(doctor.Case{Bridge: c})
	if o.Deep {
		b.examine(ctx, o, &p)
	}
	return p
}

// connect is the first connection.
func (b *Bridge) connect(ctx context.Context, o ProbeOptions, p *Probe) {
	if o.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Wait)
		defer cancel()
	}
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
		o.Tell("starting the transport program")
		if !step(StageProgram, func() error {
			_, err := b.pt.Load().ready(ctx)
			return err
		}) {
			return
		}
	}
	c := b.config()
	var conn stream.Conn
	o.Tell("connecting through the transport")
	p.Connections++
	if !step(StageTransport, func() (err error) {
		conn, err = b.dial(ctx)
		return err
	}) {
		return
	}
	o.Tell("asking the far end")
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
}
