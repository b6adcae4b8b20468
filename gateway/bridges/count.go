package bridges

import (
	"math"
	"sync/atomic"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/destination"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
	"ptgate/gateway/redact"
	"ptgate/gateway/session"
	"ptgate/routes"
)

// attach makes the bridge's own numbers part of the book, under its present name. What was
// counted under the name before stays there. The caller of newBridge or update has the
// bridge for itself.
func (b *Bridge) attach() {
	b.detachAll()
	in, out := newMeter(&b.Traffic.In, b.in), newMeter(&b.Traffic.Out, b.out)
	b.in, b.out = in, out
	label := outcome.By(b.Name())
	for o, read := range map[outcome.Outcome]func() int64{
		outcome.BridgeCarriers: func() int64 { return int64(b.Status().Carriers) },
		outcome.BridgeSessions: func() int64 { return int64(min(b.Status().Carriers, 1)) },
		outcome.BridgeStreams:  b.active.Load,
		outcome.BridgeIn:       in.read,
		outcome.BridgeOut:      out.read,
	} {
		b.detach = append(b.detach, b.m.book.Attach(o, label, read))
	}
}

// detachAll ends what attach has begun.
func (b *Bridge) detachAll() {
	if b.in != nil {
		b.in.end()
		b.out.end()
	}
	for _, detach := range b.detach {
		detach()
	}
	b.detach = nil
}

// A meter is the part of a counter that is one name's.
type meter struct {
	total *atomic.Int64
	from  int64
	to    atomic.Int64 // math.MaxInt64: it has not ended
}

// newMeter begins where another one has ended; nil: at the start.
func newMeter(total *atomic.Int64, before *meter) *meter {
	m := &meter{total: total}
	m.to.Store(math.MaxInt64)
	if before != nil {
		m.from = before.to.Load()
	}
	return m
}

func (m *meter) read() int64 { return min(m.total.Load(), m.to.Load()) - m.from }

func (m *meter) end() { m.to.Store(m.total.Load()) }

// attach makes the program's starts and failures part of the book.
func (p *program) attach(book *outcome.Book, name string) {
	p.detach = append(p.detach,
		book.Attach(outcome.PTStarts, outcome.By(name), func() int64 { return int64(p.child.Status().Starts) }),
		book.Attach(outcome.PTFailures, outcome.By(name), func() int64 { return int64(p.child.Status().Failures) }))
}

// reasonOfFailure is the word for a bridge's failure, in the log, the metrics and the status.
func reasonOfFailure(err error) answer.Reason {
	if r := answer.Of(err); r != answer.Internal {
		return r
	}
	return answer.NoBridge // whatever the transport says: it is no fault of ours
}

// diagnose says what kind of trouble a failure shows, while there are so many carriers.
func (b *Bridge) diagnose(err error, carriers int) doctor.Verdict {
	return doctor.Diagnose(doctor.Case{Bridge: b.config(), Err: err, Now: time.Now(), Written: b.settings.Load().written,
		Dialling: b.session != nil && carriers == 0, Worked: b.path != nil && b.path.Box() != session.Box{}})
}

// failed counts a failure after which the bridge rests.
func (b *Bridge) failed(err error, took time.Duration) {
	c := b.config()
	reason := reasonOfFailure(err)
	v := b.diagnose(err, b.sessionStatus().Carriers)
	b.m.book.Add(outcome.BridgeFailed, outcome.By(c.Name, reason.String()), "transport", c.Transport, "kind", v.Kind,
		"error", redact.Text(err, b.m.private.Load()), "after", took.Round(time.Millisecond), "advice", v.Advice())
}

// works counts a bridge that works again, if that is news.
func (b *Bridge) works(news bool) {
	if news {
		b.m.book.Add(outcome.BridgeRecovered, outcome.By(b.Name()))
	}
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
