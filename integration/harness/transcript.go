//go:build integration

package harness

import (
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Transcript is what a process writes. Its methods may be called from any goroutine. The
// zero one is ready.
type Transcript struct {
	Most int // bytes that are kept, from the first; 0: all

	mu      sync.Mutex
	text    []byte
	written int64
	grown   chan struct{} // closed at the next write; nil: nobody waits for it
}

// NewTranscript is one that is shown when the test has failed.
func NewTranscript(t testing.TB, name string) *Transcript {
	l := new(Transcript)
	t.Cleanup(func() {
		switch {
		case os.Getenv("PTGATE_TEST_LOG") != "":
			t.Logf("%s wrote:\n%s", name, l)
		case t.Failed():
			t.Logf("%s wrote:\n%s", name, shorten(l.String()))
		}
	})
	return l
}

// shorten leaves out what is in the middle of a long text.
func shorten(text string) string {
	const begin, end = 16 << 10, 48 << 10
	if len(text) <= begin+end {
		return text
	}
	return text[:begin] + "\n[…]\n" + text[len(text)-end:]
}

func (l *Transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
	l.written += int64(len(p))
	if l.Most == 0 || len(l.text) < l.Most {
		l.text = append(l.text, p...)
	}
	return len(p), nil
}

func (l *Transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// Written is how many bytes the process has written, with those that are not kept.
func (l *Transcript) Written() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written
}

// look returns the text, and what is closed when there is more.
func (l *Transcript) look() (text string, grown <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.grown == nil {
		l.grown = make(chan struct{})
	}
	return string(l.text), l.grown
}

// Wait waits until the transcript matches, and returns the first match's groups.
func (l *Transcript) Wait(t testing.TB, pattern string) []string {
	t.Helper()
	return l.wait(t, pattern, nil)
}

// wait is Wait until ended is closed, after which nothing more is written.
func (l *Transcript) wait(t testing.TB, pattern string, ended <-chan struct{}) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.NewTimer(Patience)
	defer limit.Stop()
	for last := false; ; {
		text, grown := l.look()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		if last {
			t.Fatalf("it has ended, and no line matches %q; there is:\n%s", pattern, shorten(text))
		}
		select {
		case <-grown:
		case <-ended:
			last = true
		case <-limit.C:
			t.Fatalf("no line matches %q within %v; there is:\n%s", pattern, Patience, shorten(text))
		}
	}
}

// Healthy checks that a Go program has met none of the faults that end one.
func (l *Transcript) Healthy(t testing.TB, name string) {
	t.Helper()
	text := l.String()
	for _, bad := range []string{"panic", "DATA RACE", "fatal error"} {
		if strings.Contains(text, bad) {
			t.Errorf("%s: its log has %q", name, bad)
		}
	}
}
