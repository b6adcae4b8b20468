package admin

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/outcome"
)

const (
	sampleEvery = 10 * time.Second
	maxTroubles = 200 // that are remembered
	// recently is how long the page tells of a trouble. What comes after so long is a new one.
	recently = 24 * time.Hour
)

// A slot is what happened in a step of time.
type slot struct {
	up, down int64 // bytes
	streams  int64 // the most that were open
}

// A ring has the slots of the last time. Its size is fixed.
type ring struct {
	step  time.Duration
	slots []slot
	now   int64 // the number of the newest slot since the epoch; 0: there is none
	begun int64 // the number of the first one
}

func newRing(step time.Duration, slots int) ring { return ring{step: step, slots: make([]slot, slots)} }

// add adds to the slot of a time. A clock that was set back adds to the newest one.
func (r *ring) add(at time.Time, s slot) {
	n := at.UnixNano() / int64(r.step)
	if r.now == 0 {
		r.now, r.begun = n, n
	}
	for i := max(r.now+1, n-int64(len(r.slots))+1); i <= n; i++ {
		*r.at(i) = slot{}
	}
	r.now = max(r.now, n)
	x := r.at(r.now)
	x.up += s.up
	x.down += s.down
	x.streams = max(x.streams, s.streams)
}

func (r *ring) at(n int64) *slot { return &r.slots[n%int64(len(r.slots))] }

// past has the slots that are complete, the oldest first; missing is how many more would
// have been there had the process run.
func (r *ring) past() (all []slot, missing int) {
	oldest := r.now - int64(len(r.slots)) + 1
	for n := max(oldest, r.begun); n < r.now; n++ {
		all = append(all, *r.at(n))
	}
	return all, len(r.slots) - 1 - len(all)
}

// A source is where the numbers of one end come from.
type source struct{ up, down, streams outcome.Outcome }

// The ends: what the gateway's programs use, and what the server's clients do.
var ends = [2]source{
	{outcome.Up, outcome.Down, outcome.Relays},
	{outcome.ServeOut, outcome.ServeIn, outcome.ServeStreams},
}

// A trouble is an outcome that people should know of.
type trouble struct {
	what, next string
	labels     []string
	times      int64
	first      time.Time
	after      time.Time // it came last after this
	last       time.Time // and before this
}

// when is how long ago it came last. While there was no page, nobody looked.
func (t *trouble) when(now time.Time) string {
	text := ago(now.Sub(t.last))
	if t.last.Sub(t.after) > 2*sampleEvery {
		text += " to " + ago(now.Sub(t.after))
	}
	return text + " ago"
}

type troubleKey struct {
	name   string
	labels outcome.Label
}

// A history has what the counters were in the last minutes and in the last day. It stays
// the same over reloads.
type history struct {
	mu       sync.Mutex
	looked   time.Time       // when the last sample was taken, or the history was made
	last     [len(ends)]slot // the counters' values
	minutes  [len(ends)]ring
	day      [len(ends)]ring
	counts   map[troubleKey]int64
	troubles map[troubleKey]*trouble
}

func newHistory() *history {
	h := &history{looked: time.Now(), counts: map[troubleKey]int64{}, troubles: map[troubleKey]*trouble{}}
	for i := range ends {
		h.minutes[i] = newRing(sampleEvery, 91)    // 15 minutes, and the one that is not complete
		h.day[i] = newRing(10*time.Minute, 24*6+1) // a day
	}
	return h
}

// sample notes what the counters are now.
func (h *history) sample(book *outcome.Book, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, end := range ends {
		s := slot{book.Total(end.up), book.Total(end.down), book.Total(end.streams)}
		grown := slot{max(0, s.up-h.last[i].up), max(0, s.down-h.last[i].down), s.streams}
		h.last[i] = s
		h.minutes[i].add(now, grown)
		h.day[i].add(now, grown)
	}
	rows := outcome.Rows()
	for _, v := range book.Snapshot() {
		row := rows[v.Outcome]
		if row.Trouble == "" {
			continue
		}
		key := troubleKey{name: v.Name}
		for i, name := range row.Labels {
			key.labels[i] = v.Labels[name]
		}
		more := v.Value - h.counts[key]
		if more <= 0 {
			continue
		}
		h.counts[key] = v.Value
		t := h.troubles[key]
		if t == nil || now.Sub(t.last) > recently {
			t = newTrouble(row, key, now)
			h.troubles[key] = t
		}
		t.times += more
		t.after, t.last = h.looked, now
	}
	h.looked = now
	for len(h.troubles) > maxTroubles {
		delete(h.troubles, h.newest()[len(h.troubles)-1])
	}
}

func newTrouble(row outcome.Row, key troubleKey, now time.Time) *trouble {
	t := &trouble{what: row.Trouble, next: row.Next, first: now}
	for i, name := range row.Labels {
		value := key.labels[i]
		if r, ok := answer.Named(value); ok && name == "reason" && t.next == "" {
			t.next = r.Text()
		}
		if key.name == outcome.Rows()[outcome.AdminRefused].Name && pageWords[value] != "" {
			t.next = pageWords[value]
		}
		t.labels = append(t.labels, name+" "+value)
	}
	return t
}

// newest has the troubles, the newest first. The caller holds mu.
func (h *history) newest() []troubleKey {
	keys := make([]troubleKey, 0, len(h.troubles))
	for k := range h.troubles {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b troubleKey) int {
		return cmp.Or(h.troubles[b].last.Compare(h.troubles[a].last), cmp.Compare(a.name, b.name),
			cmp.Compare(a.labels[0], b.labels[0]), cmp.Compare(a.labels[1], b.labels[1]))
	})
	return keys
}

// recent has at most n troubles, the newest first; older is how many more there are.
func (h *history) recent(n int, now time.Time) (all []trouble, older int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.newest() {
		switch t := h.troubles[k]; {
		case now.Sub(t.last) > recently:
		case len(all) < n:
			all = append(all, *t)
		default:
			older++
		}
	}
	return all, older
}
