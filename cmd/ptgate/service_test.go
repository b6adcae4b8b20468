package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The watchdog's signs of life come twice in its time, and only as long as what they
// stand for works.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var signs atomic.Int64
		held := make(chan struct{}, 1) // full: what works does hangs
		done := make(chan struct{})
		go func() {
			defer close(done)
			watchdog(ctx, time.Minute, func() { held <- struct{}{}; <-held }, func() { signs.Add(1) })
		}()
		expect := func(after time.Duration, want int64) {
			t.Helper()
			<-time.After(after)
			synctest.Wait()
			if signs := signs.Load(); signs != want {
				t.Errorf("%d signs of life, want %d", signs, want)
			}
		}
		expect(time.Second, 1)
		expect(5*time.Minute, 11)
		held <- struct{}{}
		expect(5*time.Minute, 11)
		<-held
		expect(time.Second, 13) // the one that was held up, and one that is due
		cancel()
		<-done
		watchdog(t.Context(), 0, nil, nil) // without one
	})
}

// In the journal each line begins with its priority, in both formats.
func TestPriorities(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out strings.Builder
		log := slog.New(newLogHandler(format, slog.LevelDebug, new(atomic.Bool), &out, true)).With("a", 1).WithGroup("g")
		log.Debug("d")
		log.Info("i")
		log.Warn("w")
		log.Error("e", "error", errors.New("one\ntwo"))
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 4 {
			t.Fatalf("%s: %q", format, lines)
		}
		for i, want := range []string{"<7>", "<6>", "<4>", "<3>"} {
			if !strings.HasPrefix(lines[i], want) || strings.Contains(lines[i], "time") || !strings.Contains(lines[i], "a") {
				t.Errorf("%s: line %d is %q, want %s", format, i, lines[i], want)
			}
		}
		out.Reset()
		slog.New(newLogHandler(format, slog.LevelInfo, new(atomic.Bool), &out, false)).Info("i")
		if text := out.String(); strings.HasPrefix(text, "<") || !strings.Contains(text, "time") {
			t.Errorf("%s: outside the journal: %q", format, text)
		}
	}
	var out strings.Builder
	if n, err := (priorityWriter{&out, priorityError}).Write([]byte("one\ntwo\n")); n != 8 || err != nil || out.String() != "<3>one\n<3>two\n" {
		t.Errorf("%d, %v, %q", n, err, out.String())
	}
}
