package loglimit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/loglimit"
)

// A written is a log of JSON lines. The handler above it locks.
type written struct{ bytes.Buffer }

// sum adds up what the lines with a message stand for, and counts them.
func (w *written) sum(t *testing.T, message string) (sum, lines int64) {
	t.Helper()
	for line := range strings.Lines(w.String()) {
		var m struct {
			Msg  string
			More int64
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if m.Msg == message {
			sum += max(m.More, 1)
			lines++
		}
	}
	return sum, lines
}

func newLog() (*slog.Logger, *loglimit.Handler, *written) {
	w := new(written)
	h := loglimit.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return slog.New(h), h, w
}

// TestFlood: a flood of one kind has a bounded number of lines, and they add up to what
// happened. It takes no line away from another kind.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, w := newLog()
		defer h.Close()
		const seconds, perSecond = 60, 1000
		burst := 0 // bytes
		for i := range seconds * perSecond {
			log.With("session", i).Debug("a stream was opened", "number", i)
			if i%perSecond == 0 {
				log.Info("a stream was opened")
				log.Debug("something else")
			}
			if i == 10*perSecond {
				synctest.Wait() // nobody writes
				burst = w.Len()
			}
			<-time.After(time.Second / perSecond)
		}
		<-time.After(loglimit.Period)
		synctest.Wait()
		sum, lines := w.sum(t, "a stream was opened")
		if sum != seconds*(perSecond+1) {
			t.Errorf("the lines add up to %d", sum)
		}
		if most := loglimit.Burst + int64(seconds+10)*int64(time.Second/loglimit.Each) + seconds/10 + seconds; lines > most {
			t.Errorf("%d lines, want %d at most", lines, most)
		}
		if sum, lines := w.sum(t, "something else"); sum != seconds || lines != seconds {
			t.Errorf("another kind has %d lines for %d", lines, sum)
		}
		if perSecond := (w.Len() - burst) / (seconds - 10); perSecond > 2048 {
			t.Errorf("%d bytes a second after the burst", perSecond)
		}
	})
}

// TestBurst: what happens all at once is written, line by line, and again after a while.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, w := newLog()
		defer h.Close()
		for range 3 {
			for i := range loglimit.Burst {
				log.Debug("refused", "destination", i)
			}
			<-time.After(loglimit.Burst * loglimit.Each)
		}
		if sum, lines := w.sum(t, "refused"); sum != 3*loglimit.Burst || lines != sum {
			t.Errorf("%d lines for %d", lines, sum)
		}
	})
}

// TestClose: nothing is lost at the end, with many goroutines at work.
func TestClose(t *testing.T) {
	log, h, w := newLog()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				log.Warn("it happened")
			}
		})
	}
	h.Close()
	wg.Wait()
	log.Warn("it happened")
	h.Close()
	if sum, _ := w.sum(t, "it happened"); sum != 8001 {
		t.Errorf("the lines add up to %d", sum)
	}
}

// TestKinds: messages that are not constant take no memory without end.
func TestKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, w := newLog()
		for i := range 5000 {
			log.Info(fmt.Sprint("message ", i))
		}
		h.Close()
		if n := strings.Count(w.String(), "\n"); n != 1000+loglimit.Burst+1 {
			t.Errorf("%d lines", n)
		}
		if sum, lines := w.sum(t, "other messages"); sum != 5000-1000-loglimit.Burst || lines != 1 {
			t.Errorf("%d lines for %d other messages", lines, sum)
		}
	})
}

// TestLevel: a level that is off counts nothing, and attributes and groups pass.
func TestLevel(t *testing.T) {
	w := new(written)
	level := new(slog.LevelVar)
	h := loglimit.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	log := slog.New(h)
	for range 1000 {
		log.Debug("quiet")
	}
	level.Set(slog.LevelDebug)
	for range 1000 {
		log.Debug("loud")
	}
	level.Set(slog.LevelInfo)
	log.With("a", 1).WithGroup("g").Info("said", "b", 2)
	h.Close()
	if strings.Contains(w.String(), "quiet") || strings.Contains(w.String(), "more") {
		t.Errorf("%s", w)
	}
	if !strings.Contains(w.String(), `"msg":"said","a":1,"g":{"b":2}`) {
		t.Errorf("%s", w)
	}
}

func BenchmarkHandle(b *testing.B) {
	h := loglimit.New(slog.NewTextHandler(new(written), nil))
	defer h.Close()
	log := slog.New(h)
	for b.Loop() {
		log.Info("it happened")
	}
}

func Example() {
	h := loglimit.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	defer h.Close()
	log := slog.New(h).With("port", 443)
	log.Warn("client refused", "reason", "network")
	// Output: level=WARN msg="client refused" port=443 reason=network
}
