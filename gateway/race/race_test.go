package race

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A runner answers after a time, with its name or an error.
type runner struct {
	name  string
	after time.Duration
	err   error
	deaf  bool // to the end of the context
}

// A group comes later than the first candidates.
type group struct {
	after   time.Duration // after the group before
	runners []runner
}

const (
	ms      = time.Millisecond
	stagger = 250 * ms
	never   = time.Hour
)

var (
	errOne   = errors.New("one")
	errTwo   = errors.New("two")
	errFinal = errors.New("final")
	errLeft  = errors.New("the caller has left")
)

func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		now      []runner
		later    []group // nil: there is no channel
		together int
		merge    func(untried, later []runner) []runner
		stop     time.Duration // the caller's; 0: never

		won     string
		err     error
		failed  []error
		took    time.Duration
		begun   string // who was begun when
		running string // at the end, with their ages
		dropped string
	}{
		"one": {now: []runner{{"a", 30 * ms, nil, false}},
			won: "a", took: 30 * ms, begun: "a 0s"},
		"one fails": {now: []runner{{"a", 30 * ms, errOne, false}},
			err: ErrNone, failed: []error{errOne}, took: 30 * ms, begun: "a 0s"},
		"one error is final": {now: []runner{{"a", 30 * ms, errFinal, false}},
			err: errFinal, took: 30 * ms, begun: "a 0s"},
		"none": {err: ErrNone},
		"the first is quick": {now: []runner{{"a", 100 * ms, nil, false}, {"b", 0, nil, false}},
			won: "a", took: 100 * ms, begun: "a 0s"},
		"the first fails": {now: []runner{{"a", 10 * ms, errOne, false}, {"b", 20 * ms, nil, false}},
			won: "b", failed: []error{errOne}, took: 30 * ms, begun: "a 0s, b 10ms"},
		"the first is slow": {now: []runner{{"a", never, nil, false}, {"b", 20 * ms, nil, false}},
			won: "b", took: 270 * ms, begun: "a 0s, b 250ms", running: "a 270ms"},
		"the first wins beside the second": {now: []runner{{"a", 300 * ms, nil, false}, {"b", never, nil, false}},
			won: "a", took: 300 * ms, begun: "a 0s, b 250ms", running: "b 50ms"},
		"each has its stagger": {now: []runner{{"a", never, nil, false}, {"b", never, nil, false}, {"c", never, nil, false}, {"d", ms, nil, false}},
			won: "d", took: 751 * ms, begun: "a 0s, b 250ms, c 500ms, d 750ms", running: "a 751ms, b 501ms, c 251ms"},
		"a failure starts the stagger anew": {now: []runner{{"a", never, nil, false}, {"b", 100 * ms, errTwo, false}, {"c", never, nil, false}, {"d", ms, nil, false}},
			won: "d", failed: []error{errTwo}, took: 601 * ms, begun: "a 0s, b 250ms, c 350ms, d 600ms", running: "a 601ms, c 251ms"},
		"all fail": {now: []runner{{"a", 10 * ms, errOne, false}, {"b", 10 * ms, errTwo, false}, {"c", 10 * ms, errTwo, false}},
			err: ErrNone, failed: []error{errOne, errTwo, errTwo}, took: 30 * ms, begun: "a 0s, b 10ms, c 20ms"},
		"an error is final": {now: []runner{{"a", 300 * ms, errFinal, false}, {"b", never, nil, false}, {"c", 0, nil, false}},
			err: errFinal, took: 300 * ms, begun: "a 0s, b 250ms", running: "b 50ms"},
		"the caller leaves": {now: []runner{{"a", never, nil, false}, {"b", never, nil, false}, {"c", never, nil, false}}, stop: 300 * ms,
			err: errLeft, took: 300 * ms, begun: "a 0s, b 250ms", running: "a 300ms, b 50ms"},
		"two together": {now: []runner{{"a", never, nil, false}, {"b", 100 * ms, errOne, false}, {"c", never, nil, false}, {"d", ms, nil, false}}, together: 2,
			won: "d", failed: []error{errOne}, took: 351 * ms, begun: "a 0s, b 0s, c 100ms, d 350ms", running: "a 351ms, c 251ms"},
		"more together than there are": {now: []runner{{"a", never, nil, false}, {"b", 100 * ms, nil, false}}, together: 5,
			won: "b", took: 100 * ms, begun: "a 0s, b 0s", running: "a 100ms"},
		"a loser that is deaf": {now: []runner{{"a", time.Second, nil, true}, {"b", 10 * ms, nil, false}},
			won: "b", took: 260 * ms, begun: "a 0s, b 250ms", running: "a 260ms", dropped: "a"},
		"a loser that is deaf and fails": {now: []runner{{"a", time.Second, errOne, true}, {"b", 10 * ms, nil, false}},
			won: "b", took: 260 * ms, begun: "a 0s, b 250ms", running: "a 260ms"},
		"deaf when the caller leaves": {now: []runner{{"a", time.Second, nil, true}, {"b", never, nil, false}}, stop: 300 * ms,
			err: errLeft, took: 300 * ms, begun: "a 0s, b 250ms", running: "a 300ms, b 50ms", dropped: "a"},

		"a later one waits for the stagger": {now: []runner{{"a", never, nil, false}}, later: []group{{100 * ms, []runner{{"b", 20 * ms, nil, false}}}},
			won: "b", took: 270 * ms, begun: "a 0s, b 250ms", running: "a 270ms"},
		"a later one comes after the stagger": {now: []runner{{"a", never, nil, false}}, later: []group{{300 * ms, []runner{{"b", 20 * ms, nil, false}}}},
			won: "b", took: 320 * ms, begun: "a 0s, b 300ms", running: "a 320ms"},
		"a later one after a failure": {now: []runner{{"a", 10 * ms, errOne, false}}, later: []group{{300 * ms, []runner{{"b", 20 * ms, nil, false}, {"c", 0, nil, false}}}},
			won: "b", failed: []error{errOne}, took: 320 * ms, begun: "a 0s, b 300ms"},
		"a later one is not needed": {now: []runner{{"a", 10 * ms, nil, false}}, later: []group{{300 * ms, []runner{{"b", 20 * ms, nil, false}}}},
			won: "a", took: 10 * ms, begun: "a 0s"},
		"only later ones": {later: []group{{10 * ms, []runner{{"a", never, nil, false}, {"b", ms, nil, false}}}},
			won: "b", took: 261 * ms, begun: "a 10ms, b 260ms", running: "a 251ms"},
		"later ones go behind": {now: []runner{{"a", never, nil, false}, {"b", never, nil, false}}, later: []group{{10 * ms, []runner{{"c", ms, nil, false}}}},
			won: "c", took: 501 * ms, begun: "a 0s, b 250ms, c 500ms", running: "a 501ms, b 251ms"},
		"later ones go before": {now: []runner{{"a", never, nil, false}, {"b", never, nil, false}}, later: []group{{10 * ms, []runner{{"c", ms, nil, false}}}},
			merge: func(untried, later []runner) []runner { return append(later, untried...) },
			won:   "c", took: 251 * ms, begun: "a 0s, c 250ms", running: "a 251ms"},
		"none comes, and all fail": {now: []runner{{"a", 10 * ms, errOne, false}}, later: []group{{300 * ms, nil}},
			err: ErrNone, failed: []error{errOne}, took: 300 * ms, begun: "a 0s"},
		"none comes at all": {later: []group{{300 * ms, nil}}, err: ErrNone, took: 300 * ms},
		"two groups": {now: []runner{{"a", 10 * ms, errOne, false}}, later: []group{{100 * ms, []runner{{"b", 10 * ms, errTwo, false}}}, {100 * ms, []runner{{"c", 0, nil, false}}}},
			won: "c", failed: []error{errOne, errTwo}, took: 200 * ms, begun: "a 0s, b 100ms, c 200ms"},
		"the caller leaves before one comes": {later: []group{{never, nil}}, stop: 10 * ms, err: errLeft, took: 10 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if c.stop > 0 {
					defer time.AfterFunc(c.stop, func() { cancel(errLeft) }).Stop()
				}
				var later chan []runner
				var wg sync.WaitGroup
				if c.later != nil {
					later = make(chan []runner)
					wg.Go(func() {
						defer close(later)
						for _, g := range c.later {
							select {
							case <-time.After(g.after):
							case <-ctx.Done():
								return
							}
							if g.runners == nil {
								continue
							}
							select {
							case later <- g.runners:
							case <-ctx.Done():
								return
							}
						}
					})
				}
				var mu sync.Mutex
				var begun, dropped []string
				r := Race[runner, string]{
					Try: func(ctx context.Context, a runner) (string, error) {
						mu.Lock()
						begun = append(begun, fmt.Sprint(a.name, " ", time.Since(start)))
						mu.Unlock()
						done := ctx.Done()
						if a.deaf {
							done = nil
						}
						select {
						case <-time.After(a.after):
							if a.err != nil {
								return "", a.err
							}
							return a.name, nil
						case <-done:
							return "", ctx.Err()
						}
					},
					Drop: func(name string) {
						mu.Lock()
						dropped = append(dropped, name)
						mu.Unlock()
					},
					Go:       func(attempt func()) bool { wg.Go(attempt); return true },
					Stagger:  stagger,
					Together: c.together,
					Final:    func(err error) bool { return err == errFinal },
					Merge:    c.merge,
				}
				o := r.Run(ctx, c.now, later)
				took := time.Since(start)
				var running []string
				for _, a := range o.Running {
					running = append(running, fmt.Sprint(a.Candidate.name, " ", time.Since(a.Since)))
				}
				cancel(nil)
				wg.Wait()          // for the attempts that were given up
				slices.Sort(begun) // two that begin together do so in any order
				if o.Value != c.won || o.Err != c.err || !slices.Equal(o.Failed, c.failed) {
					t.Errorf("won %q, error %v, failed %v; want %q, %v, %v", o.Value, o.Err, o.Failed, c.won, c.err, c.failed)
				}
				if took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				for what, list := range map[string][2]string{
					"begun":   {strings.Join(begun, ", "), c.begun},
					"running": {strings.Join(running, ", "), c.running},
					"dropped": {strings.Join(dropped, ", "), c.dropped},
				} {
					if list[0] != list[1] {
						t.Errorf("%s: %s; want %s", what, list[0], list[1])
					}
				}
			})
		})
	}
}

// Where nothing may be started any more, the race ends at once.
func TestNothingStarts(t *testing.T) {
	r := Race[int, int]{
		Try:     func(context.Context, int) (int, error) { t.Error("tried"); return 0, nil },
		Go:      func(func()) bool { return false },
		Stagger: time.Hour,
	}
	if o := r.Run(t.Context(), []int{1, 2}, nil); !errors.Is(o.Err, context.Canceled) {
		t.Errorf("%+v", o)
	}
}

// The caller's list stays as it is.
func TestListIsNotChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		defer wg.Wait()
		r := Race[int, int]{
			Try:     func(context.Context, int) (int, error) { return 0, errOne },
			Go:      func(attempt func()) bool { wg.Go(attempt); return true },
			Stagger: stagger,
			Merge:   func(untried, later []int) []int { return append(untried[:0], later...) },
		}
		later := make(chan []int, 1)
		later <- []int{7, 8}
		close(later)
		list := []int{1, 2, 3}
		r.Run(t.Context(), list, later)
		if !slices.Equal(list, []int{1, 2, 3}) {
			t.Errorf("%v", list)
		}
	})
}
