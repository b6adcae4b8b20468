package supervise_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/supervise"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fake is a child that lives for a while.
type fake struct {
	done chan struct{}
	once sync.Once
	err  error
	left func() // may be nil
}

func (f *fake) end(err error) {
	f.once.Do(func() {
		f.err = err
		if f.left != nil {
			f.left()
		}
		close(f.done)
	})
}

func (f *fake) Done() <-chan struct{} { return f.done }
func (f *fake) Err() error            { return f.err }
func (f *fake) Close() error          { f.end(nil); return nil }

var (
	errDied = errors.New("died")
	errBad  = errors.New("no such program")
)

// A nursery starts fakes and remembers when.
type nursery struct {
	life  func(start int) time.Duration // 0: for ever; below 0: it does not start
	delay time.Duration                 // of each start
	wg    sync.WaitGroup

	mu     sync.Mutex
	starts []time.Time
	alive  int
	most   int // alive at the same time
}

func (n *nursery) start(ctx context.Context) (*fake, error) {
	n.mu.Lock()
	n.starts = append(n.starts, time.Now())
	life := n.life(len(n.starts))
	n.mu.Unlock()
	if n.delay > 0 {
		select {
		case <-time.After(n.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if life < 0 {
		return nil, errBad
	}
	count := func(by int) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.alive += by
		n.most = max(n.most, n.alive)
	}
	count(1)
	f := &fake{done: make(chan struct{}), left: func() { count(-1) }}
	if life > 0 {
		n.wg.Go(func() {
			select {
			case <-time.After(life):
			case <-f.done:
			}
			f.end(errDied)
		})
	}
	return f, nil
}

// pauses are the times between the end of a child and the next start, where each
// has lived so long.
func (n *nursery) pauses(life time.Duration) (all []time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.starts[1:] {
		all = append(all, n.starts[i+1].Sub(n.starts[i])-life)
	}
	return all
}

func always(life time.Duration) func(int) time.Duration {
	return func(int) time.Duration { return life }
}

// within runs f in a bubble, with a supervisor that is closed at the end and then
// may have left no child.
func within(t *testing.T, n *nursery, change func(*supervise.Config[*fake]), f func(*testing.T, *supervise.Supervisor[*fake])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg := supervise.Config[*fake]{Name: "fake", Start: n.start}
		if change != nil {
			change(&cfg)
		}
		s := supervise.New(cfg)
		f(t, s)
		s.Close()
		n.wg.Wait()
		if n.alive != 0 || n.most > 1 {
			t.Errorf("%d children are left, and there were %d at once", n.alive, n.most)
		}
		if st := s.Status(); st.State != supervise.Stopped {
			t.Errorf("state after Close: %s", st.State)
		}
		if _, err := s.Get(t.Context()); err != supervise.ErrClosed {
			t.Errorf("Get after Close: %v", err)
		}
	})
}

// after waits on the bubble's clock.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestOnDemand(t *testing.T) {
	n := &nursery{life: always(20 * time.Second), delay: time.Second}
	within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
		after(time.Hour)
		if st := s.Status(); st.State != supervise.Idle || st.Starts != 0 {
			t.Errorf("before any request: %+v", st)
		}
		var wg sync.WaitGroup
		got := make([]*fake, 10)
		for i := range got { // one start serves all who ask
			wg.Go(func() {
				var err error
				if got[i], err = s.Get(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if st := s.Status(); st.State != supervise.Starting || st.Starts != 1 {
			t.Errorf("while it starts: %+v", st)
		}
		if _, ok := s.Child(); ok {
			t.Error("there is a child before it is ready")
		}
		wg.Wait()
		synctest.Wait()
		first := got[0]
		if c, ok := s.Child(); !ok || slices.ContainsFunc(got, func(f *fake) bool { return f != c }) || s.Status().State != supervise.Running {
			t.Errorf("once it runs: %v %v, %+v", c, ok, s.Status())
		}
		after(time.Hour)
		// It has died long ago, and nobody has asked.
		if st := s.Status(); st.State != supervise.Idle || st.Starts != 1 || st.Failures != 1 || st.Error != "died" {
			t.Errorf("after its end: %+v", st)
		}
		if c, err := s.Get(t.Context()); err != nil || c == first {
			t.Errorf("a second one: %v", err)
		}
	})
}

func TestCallerLeaves(t *testing.T) {
	n := &nursery{life: always(0), delay: 10 * time.Second}
	within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errBad)
		defer cancel()
		if _, err := s.Get(ctx); err != errBad {
			t.Errorf("Get: %v", err)
		}
		after(time.Minute)
		if st := s.Status(); st.State != supervise.Running || st.Starts != 1 {
			t.Errorf("the start does not go on: %+v", st)
		}
	})
}

// A child that fails is started ever more seldom, with pauses that have a random
// part, and the status shows it.
func TestCrashLoop(t *testing.T) {
	var seen [2][]time.Duration
	for i := range seen {
		n := &nursery{life: always(time.Second)}
		within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
			if _, err := s.Keep(t.Context()); err != nil {
				t.Fatal(err)
			}
			after(30 * time.Minute)
			if c, ok := s.Child(); ok {
				<-c.Done()
				synctest.Wait()
			}
			if st := s.Status(); st.State != supervise.Waiting || st.Failures != st.Starts || st.Error != "died" || !st.Until.After(time.Now()) {
				t.Errorf("%+v", st)
			}
		})
		seen[i] = n.pauses(time.Second)
		want := 500 * time.Millisecond
		for k, p := range seen[i] {
			if p < want/2 || p > want*3/2+1 {
				t.Errorf("pause %d is %v, want half of %v more or less", k, p, want)
			}
			want = min(want*3/2, time.Minute)
		}
		if len(seen[i]) < 20 || len(seen[i]) > 80 {
			t.Errorf("%d restarts in half an hour", len(seen[i]))
		}
	}
	if slices.Equal(seen[0], seen[1]) {
		t.Error("two supervisors pause alike")
	}
}

// A child that does not start is tried again by itself only where it is kept and
// has run once.
func TestDoesNotStart(t *testing.T) {
	n := &nursery{life: always(-1)}
	within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
		if _, err := s.Keep(t.Context()); err != errBad {
			t.Errorf("Keep: %v", err)
		}
		after(time.Hour)
		if st := s.Status(); st.Starts != 1 || st.Error != errBad.Error() {
			t.Errorf("%+v", st)
		}
	})
	n = &nursery{life: func(start int) time.Duration { return []time.Duration{time.Second, -1, -1, 0}[start-1] }}
	within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
		if _, err := s.Keep(t.Context()); err != nil {
			t.Fatal(err)
		}
		after(time.Hour)
		if st := s.Status(); st.State != supervise.Running || st.Starts != 4 || st.Failures != 0 || st.Error != "" {
			t.Errorf("%+v", st)
		}
	})
}

// One that has run for a while is back at once; one that has run for a minute has
// its failures forgotten.
func TestPrompt(t *testing.T) {
	n := &nursery{life: always(11 * time.Second)}
	within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
		s.Keep(t.Context())
		after(5 * time.Minute)
		if f := s.Status().Failures; f < 20 {
			t.Errorf("%d failures", f)
		}
	})
	for _, p := range n.pauses(11 * time.Second) {
		if p != 0 {
			t.Errorf("a pause of %v", p)
		}
	}
	n = &nursery{life: func(start int) time.Duration {
		if start%10 == 0 {
			return 2 * time.Minute
		}
		return time.Millisecond
	}}
	within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
		s.Keep(t.Context())
		after(time.Hour)
	})
	if p := n.pauses(time.Millisecond); p[10] > 1200*time.Millisecond || p[0] > time.Second {
		t.Errorf("pauses %v", p)
	}
}

func TestRetire(t *testing.T) {
	t.Run("while it runs", func(t *testing.T) {
		n := &nursery{life: always(time.Minute)}
		within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
			first, _ := s.Keep(t.Context())
			c, ok := s.Retire()
			if !ok || c != first || s.Status().State != supervise.Running {
				t.Errorf("%v %v, %+v", c, ok, s.Status())
			}
			after(30 * time.Second)
			select {
			case <-c.Done():
				t.Error("it has ended")
			default:
			}
			after(time.Hour)
			if st := s.Status(); st.State != supervise.Stopped || st.Starts != 1 {
				t.Errorf("after its end: %+v", st)
			}
			if _, ok := s.Retire(); ok {
				t.Error("it still runs")
			}
		})
	})
	t.Run("while it starts", func(t *testing.T) {
		n := &nursery{life: always(0), delay: time.Hour}
		within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
			failed := make(chan error, 1)
			n.wg.Go(func() {
				_, err := s.Get(t.Context())
				failed <- err
			})
			synctest.Wait()
			if _, ok := s.Retire(); ok {
				t.Error("it runs")
			}
			if err := <-failed; err != supervise.ErrClosed {
				t.Errorf("Get: %v", err)
			}
		})
	})
	t.Run("while it waits", func(t *testing.T) {
		n := &nursery{life: always(time.Millisecond)}
		within(t, n, nil, func(t *testing.T, s *supervise.Supervisor[*fake]) {
			s.Keep(t.Context())
			after(2 * time.Millisecond)
			if st := s.Status(); st.State != supervise.Waiting {
				t.Fatalf("%+v", st)
			}
			if _, ok := s.Retire(); ok {
				t.Error("it runs")
			}
			after(time.Hour)
			if st := s.Status(); st.State != supervise.Stopped || st.Starts != 1 {
				t.Errorf("%+v", st)
			}
		})
	})
}

// Readers are served while a start is under way, and while the log stands still.
func TestReadersDoNotWait(t *testing.T) {
	n := &nursery{life: always(-1), delay: time.Hour}
	log := &slowLog{}
	within(t, n, func(c *supervise.Config[*fake]) {
		log.entered, log.release = make(chan struct{}), make(chan struct{})
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
	}, func(t *testing.T, s *supervise.Supervisor[*fake]) {
		look := func(when string) {
			begun := time.Now()
			s.Status()
			s.Child()
			if took := time.Since(begun); took > 0 {
				t.Errorf("a look %s took %v", when, took)
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { s.Get(t.Context()) })
		synctest.Wait()
		look("while it starts")
		<-log.entered // it has failed
		wg.Wait()     // and who asked for it knows
		look("while the log stands still")
		close(log.release)
	})
}

type slowLog struct{ entered, release chan struct{} }

func (l *slowLog) Write(p []byte) (int, error) {
	close(l.entered)
	<-l.release
	return len(p), nil
}

// Each failure is logged, with what can be done about it, but one that comes again
// and again does not fill the log.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	hour := func(life func(int) time.Duration) string {
		log.Reset()
		n := &nursery{life: life}
		within(t, n, func(c *supervise.Config[*fake]) {
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			c.Text = func(err error) string { return strings.ToUpper(err.Error()) }
			c.Advice = func(err error) string {
				if err == errBad {
					return "install it"
				}
				return ""
			}
		}, func(t *testing.T, s *supervise.Supervisor[*fake]) {
			s.Keep(t.Context())
			after(time.Hour)
			if got := s.Status().Error; got != "DIED" && got != "NO SUCH PROGRAM" {
				t.Errorf("status says %q", got)
			}
		})
		return log.String()
	}
	text := hour(func(start int) time.Duration {
		if start == 1 {
			return time.Millisecond
		}
		return -1
	})
	for line, want := range map[string]int{
		`level=INFO msg="fake started" after=0s`:         1,
		`level=WARN msg="fake ended" failures=1 `:        1,
		`level=ERROR msg="fake did not start" failures=`: 9, // four, and one in ten minutes
		` error=DIED`:              1,
		` error="NO SUCH PROGRAM"`: 9,
		`advice="install it"`:      9,
		`after=1ms`:                1,
		`failures=5 `:              1,
		`not_logged=`:              5,
		`not_logged=0`:             0,
		`"fake ended" error=D `:    0,
	} {
		if got := strings.Count(text, line); got != want {
			t.Errorf("%s is there %d times, want %d:\n%s", line, got, want, text)
		}
	}
	if text = hour(always(time.Second)); strings.Count(text, "\n") > 20 {
		t.Errorf("%d lines in an hour", strings.Count(text, "\n"))
	}
	if text = hour(always(-1)); text != "" {
		t.Errorf("what Keep returns is logged, too: %s", text)
	}
	// What was asked for is no failure.
	n := &nursery{life: always(0)}
	log.Reset()
	within(t, n, func(c *supervise.Config[*fake]) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) },
		func(t *testing.T, s *supervise.Supervisor[*fake]) { s.Keep(t.Context()) })
	if strings.Contains(log.String(), "ended") {
		t.Errorf("a stop is logged as a failure: %s", &log)
	}
}

func Example() {
	s := supervise.New(supervise.Config[*fake]{
		Name: "worker",
		Start: func(context.Context) (*fake, error) {
			return &fake{done: make(chan struct{})}, nil
		},
	})
	defer s.Close()
	if _, err := s.Keep(context.Background()); err != nil { // from now on there is always one
		fmt.Println(err)
	}
	st := s.Status()
	fmt.Println(st.State, "after", st.Starts, "start")
	// Output:
	// running after 1 start
}
