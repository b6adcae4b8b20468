package bridges

import (
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/destination"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
	"ptgate/gateway/redact"
	"ptgate/routes"
)

// attach makes the bridge's own numbers part of the book. They keep the name that the
// bridge had when it was made.
func (b *Bridge) attach() {
	label := outcome.By(b.Name())
	for o, read := range map[outcome.Outcome]func() int64{
		outcome.BridgeCarriers: func() int64 { return int64(b.Status().Carriers) },
		outcome.BridgeSessions: func() int64 { return int64(min(b.Status().Carriers, 1)) },
		outcome.BridgeStreams:  b.active.Load,
		outcome.BridgeIn:       b.Traffic.In.Load,
		outcome.BridgeOut:      b.Traffic.Out.Load,
	} {
		b.detach = append(b.detach, b.m.book.Attach(o, label, read))
	}
}

// attach makes the program's starts and failures part of the book.
func (p *program) attach(book *outcome.Book, name string) {
	p.detach = append(p.detach,
		book.Attach(outcome.PTStarts, outcome.By(name), func() int64 { return int64(p.child.Status().Starts) }),
		book.Attach(outcome.PTFailures, outcome.By(name), func() int64 { return int64(p.child.Status().Failures) }))
}

// failed counts a failure after which the bridge rests.
func (b *Bridge) failed(err error, took time.Duration) {
	c := b.config()
	reason := answer.Of(err)
	if reason == answer.Internal {
		reason = answer.NoBridge // whatever the transport says: it is no fault of ours
	}
	v := doctor.Diagnose(doctor.Case{Bridge: c, Err: err, Now: time.Now(), Dialling: b.session != nil && b.session.Status().Carriers == 0})
	b.m.book.Add(outcome.BridgeFailed, outcome.By(c.Name, reason.String()), "transport", c.Transport, "kind", v.Kind,
		"error", redact.Text(err, b.m.private.Load()), "after", took.Round(time.Millisecond), "advice", v.Advice())
}

// carrierLost counts a carrier that was given up.
func (b *Bridge) carrierLost(silent time.Duration) {
	b.m.book.Add(outcome.CarrierLost, outcome.By(b.Name()), "for", silent.Round(time.Second))
}

// refusedEarly counts a request that was refused after the application had been told
// of success.
func (b *Bridge) refusedEarly(t routes.Target, err error) {
	var attrs []any
	if !b.m.private.Load() {
		attrs = append(attrs, "destination", destination.Format(t), "error", err)
	}
	b.m.book.Add(outcome.EarlyFailed, outcome.By(b.Name(), answer.Of(err).String()), attrs...)
}
