package bridges

import (
	"maps"
	"sync"
	"time"

	"ptgate/gateway/budget"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
	"ptgate/gateway/redact"
)

// notes are what the log has said of a bridge's learned limits.
type notes struct {
	mu    sync.Mutex
	known map[budget.Kind]string
}

// noteLimits counts and logs the limits of the network that were learned or forgotten
// since the last call.
func (b *Bridge) noteLimits() {
	now := map[budget.Kind]string{}
	all := map[budget.Kind]budget.Learned{}
	for _, l := range b.path.Budget.Why(time.Now()) {
		now[l.Kind], all[l.Kind] = l.Value, l
	}
	n := &b.notes
	n.mu.Lock()
	before := n.known
	n.known = now
	n.mu.Unlock()
	if maps.Equal(before, now) {
		return
	}
	for kind, value := range now {
		if before[kind] != value {
			v := doctor.OfLimit(all[kind])
			b.m.book.Add(outcome.LimitLearned, outcome.By(b.Name(), kind.String()), "value", value, "why", all[kind].Text,
				"kind", v.Kind, "advice", v.Advice())
		}
	}
	for kind := range before {
		if _, still := now[kind]; !still {
			b.m.log.Info("a learned limit of the network is forgotten", "bridge", b.Name(), "limit", kind.String())
		}
	}
}

// streamsLost counts a session that has ended with open streams.
func (b *Bridge) streamsLost(streams int, err error) {
	b.m.book.Add(outcome.StreamsLost, outcome.By(b.Name()), "streams", streams, "error", redact.Text(err, b.m.private.Load()))
}

// leaves counts a far end that is about to stop.
func (b *Bridge) leaves() { b.m.book.Add(outcome.BoxLeaves, outcome.By(b.Name())) }

// gone counts a far end that has stopped.
func (b *Bridge) gone() { b.m.book.Add(outcome.BoxGone, outcome.By(b.Name())) }

// back counts a far end that is there again after it had stopped.
func (b *Bridge) back(away time.Duration) {
	b.m.book.Add(outcome.BoxBack, outcome.By(b.Name()), "after", away.Round(100*time.Millisecond))
}

// detached counts a session whose streams wait for a carrier.
func (b *Bridge) detached() {
	b.m.book.Add(outcome.SessionDetached, outcome.By(b.Name()))
}

// resumed counts a session that goes on after it had no carrier.
func (b *Bridge) resumed(away time.Duration) {
	b.m.book.Add(outcome.SessionResumed, outcome.By(b.Name()), "after", away.Round(time.Millisecond))
}
