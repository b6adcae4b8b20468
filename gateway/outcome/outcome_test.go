package outcome_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/outcome"
)

// A logged is a log, line by line.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.buf.String()), "\n")
}

// sum adds up what the lines above debug level stand for.
func (l *logged) sum(t *testing.T) (n int64) {
	for _, line := range l.lines() {
		var m struct {
			Level slog.Level
			More  int64
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if m.Level > slog.LevelDebug {
			n += max(m.More, 1)
		}
	}
	return n
}

func newBook(level slog.Level) (*outcome.Book, *logged) {
	l := new(logged)
	return outcome.New(slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: level}))), l
}

var refused = outcome.By("socks5", "blocked")

// TestBurst: a burst is one line at once and one for each period, and the lines add
// up to the number.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, l := newBook(slog.LevelInfo)
		defer b.Close()
		for range 2500 { // 25 seconds
			b.Add(outcome.Refused, refused, "client", "192.0.2.1:5")
			<-time.After(10 * time.Millisecond)
		}
		<-time.After(20 * time.Second)
		synctest.Wait()
		if n := len(l.lines()); n != 4 {
			t.Errorf("%d lines:\n%s", n, strings.Join(l.lines(), "\n"))
		}
		if n := l.sum(t); n != 2500 {
			t.Errorf("the lines add up to %d", n)
		}
		if first := l.lines()[0]; !strings.Contains(first, `"front":"socks5","reason":"blocked","client":"192.0.2.1:5"`) {
			t.Errorf("first line: %s", first)
		}
		if last := l.lines()[3]; !strings.Contains(last, `"front":"socks5","reason":"blocked","more":`) {
			t.Errorf("last line: %s", last)
		}
		// The burst is over: the next one is told at once.
		b.Add(outcome.Refused, refused)
		if n := l.sum(t); n != 2501 {
			t.Errorf("after the burst the lines add up to %d", n)
		}
	})
}

// TestLabelsApart: a burst with one label does not hide the first with another.
func TestLabelsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, l := newBook(slog.LevelInfo)
		for range 10 {
			b.Add(outcome.Refused, refused)
		}
		b.Add(outcome.Refused, outcome.By("http", "blocked"))
		b.Add(outcome.KeptOut, outcome.By("http"))
		if n := len(l.lines()); n != 3 {
			t.Errorf("%d lines", n)
		}
		b.Close()
		if n := l.sum(t); n != 12 {
			t.Errorf("the lines add up to %d", n)
		}
	})
}

// TestClose: what has not been written is written at the end, by many goroutines as
// by one, and a late outcome is not lost.
func TestClose(t *testing.T) {
	b, l := newBook(slog.LevelInfo)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				b.Add(outcome.OverLimit, outcome.By("http"))
			}
		})
	}
	b.Close()
	wg.Wait()
	b.Add(outcome.OverLimit, outcome.By("http"))
	b.Close()
	if n := l.sum(t); n != 8001 || n != b.Total(outcome.OverLimit) {
		t.Errorf("the lines add up to %d, counted are %d", n, b.Total(outcome.OverLimit))
	}
}

// TestNotAtWill: what nobody outside can cause as often as they like has a line each
// time.
func TestNotAtWill(t *testing.T) {
	b, l := newBook(slog.LevelInfo)
	defer b.Close()
	for range 3 {
		b.Add(outcome.BridgeFailed, outcome.By("tokyo", "timeout"), "error", "no answer")
	}
	if n := len(l.lines()); n != 3 {
		t.Errorf("%d lines", n)
	}
}

// TestDebug: at debug level each one has its line, beside those that sum up.
func TestDebug(t *testing.T) {
	b, l := newBook(slog.LevelDebug)
	for range 5 {
		b.Add(outcome.Refused, refused, "destination", "example.org:80")
	}
	b.Close()
	if n := strings.Count(strings.Join(l.lines(), "\n"), "example.org:80"); n != 5 {
		t.Errorf("%d lines name the destination", n)
	}
	if n := l.sum(t); n != 5 {
		t.Errorf("without those of debug level the lines add up to %d", n)
	}
}

func TestSnapshot(t *testing.T) {
	b, _ := newBook(slog.LevelError)
	defer b.Close()
	b.Add(outcome.Refused, outcome.By("socks5", "timeout"))
	b.Add(outcome.Refused, refused)
	b.Add(outcome.Refused, refused)
	b.Counter(outcome.Down, outcome.By()).Add(7)
	streams := b.Counter(outcome.BridgeStreams, outcome.By("tokyo"))
	streams.Add(2)
	streams.Add(-1)
	got, err := json.Marshal(b.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{"name":"refused","labels":{"front":"socks5","reason":"blocked"},"value":2},` +
		`{"name":"refused","labels":{"front":"socks5","reason":"timeout"},"value":1},` +
		`{"name":"relays","value":0},{"name":"up_bytes","value":0},{"name":"down_bytes","value":7},` +
		`{"name":"bridge_streams","labels":{"bridge":"tokyo"},"value":1},` +
		`{"name":"exit_opened","value":0},{"name":"exit_bad_credentials","value":0},{"name":"exit_no_names","value":0},{"name":"made_room","value":0}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n := b.Total(outcome.Refused); n != 3 {
		t.Errorf("total %d", n)
	}
}

// TestAttach: a number that its owner keeps is part of the outcome's. When the owner
// goes, a total stays, and a gauge falls.
func TestAttach(t *testing.T) {
	b, _ := newBook(slog.LevelError)
	defer b.Close()
	var in, streams [2]atomic.Int64
	var detach []func()
	for i := range 2 { // both have the same name: one comes in the place of the other
		detach = append(detach, b.Attach(outcome.BridgeIn, outcome.By("tokyo"), in[i].Load),
			b.Attach(outcome.BridgeStreams, outcome.By("tokyo"), streams[i].Load))
		in[i].Store(100)
		streams[i].Store(3)
	}
	want := func(bytes, open int64) {
		t.Helper()
		if x, y := b.Total(outcome.BridgeIn), b.Total(outcome.BridgeStreams); x != bytes || y != open {
			t.Errorf("%d bytes and %d streams, want %d and %d", x, y, bytes, open)
		}
	}
	want(200, 6)
	detach[0]()
	detach[1]()
	detach[0]()
	want(200, 3)
	in[0].Store(1000)
	in[1].Store(110)
	want(210, 3)
}

// TestBound: labels without end take no memory without end.
func TestBound(t *testing.T) {
	b, _ := newBook(slog.LevelError + 1)
	defer b.Close()
	for i := range 5000 {
		b.Add(outcome.EarlyFailed, outcome.By(fmt.Sprint(i), "timeout"))
	}
	var values []outcome.Value
	for _, v := range b.Snapshot() {
		if v.Outcome == outcome.EarlyFailed {
			values = append(values, v)
		}
	}
	last := values[len(values)-1]
	if len(values) != 1001 || !reflect.DeepEqual(last.Labels, map[string]string{"bridge": "other", "reason": "other"}) || last.Value != 4000 {
		t.Errorf("%d labels; the last: %v", len(values), last)
	}
	if b.Total(outcome.EarlyFailed) != 5000 {
		t.Errorf("total %d", b.Total(outcome.EarlyFailed))
	}
}

// TestTable: every row is filled in, and its name is its own.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range outcome.Rows() {
		if r.Name == "" || r.Help == "" || len(r.Labels) > len(outcome.Label{}) || seen[r.Name] {
			t.Errorf("row %+v", r)
		}
		seen[r.Name] = true
		if r.Gauge && r.Message != "" || r.AtWill && r.Message == "" {
			t.Errorf("row %s: the log line does not fit", r.Name)
		}
	}
}

func TestAllocations(t *testing.T) {
	b, _ := newBook(slog.LevelInfo)
	defer b.Close()
	front := "socks5"
	down := b.Counter(outcome.Down, outcome.By())
	for name, f := range map[string]func(){
		"accepted": func() { b.Add(outcome.Accepted, outcome.By(front)) },
		"in burst": func() { b.Add(outcome.OverLimit, outcome.By(front)) },
		"bytes":    func() { down.Add(1) },
	} {
		f()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	book, _ := newBook(slog.LevelInfo)
	defer book.Close()
	for b.Loop() {
		book.Add(outcome.Accepted, outcome.By("socks5"))
	}
}
