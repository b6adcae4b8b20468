package adapter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// plainLog has no times in it.
func plainLog(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// Without descriptors for two and a half minutes there are three lines, and
// connections are taken within a second of the end of it.
func TestAcceptEachWithoutDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		begin := time.Now()
		full, closed := begin.Add(150*time.Second), false
		tries := 0
		var taken []time.Duration
		accept := func() (int, error) {
			tries++
			switch {
			case time.Now().Before(full):
				return 0, &net.OpError{Op: "accept", Err: syscall.EMFILE}
			case closed:
				return 0, net.ErrClosed
			}
			closed = true
			return 7, nil
		}
		AcceptEach(t.Context(), plainLog(&log), accept, func(c int) {
			if c != 7 {
				t.Errorf("got %d", c)
			}
			taken = append(taken, time.Since(begin))
		})
		if len(taken) != 1 || taken[0] < 150*time.Second || taken[0] > 151*time.Second {
			t.Errorf("taken after %v", taken)
		}
		// 8 pauses from 5 ms to 640 ms, then one each second.
		if tries < 150 || tries > 160 {
			t.Errorf("%d tries", tries)
		}
		const line = "level=WARN msg=\"new connections can't be accepted for now\" error=\"accept: too many open files\" more="
		want := fmt.Sprintf("%s0\n%s66\n%s59\n", line, line, line)
		if got := log.String(); got != want {
			t.Errorf("log:\n%swant:\n%s", got, want)
		}
	})
}

// The end of the context ends the pause, too.
func TestAcceptEachEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		time.AfterFunc(10500*time.Millisecond, cancel)
		AcceptEach(ctx, slog.New(slog.DiscardHandler), func() (int, error) { return 0, errors.New("broken") }, func(int) {})
		if took := time.Since(begin); took != 10500*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

func TestLogLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log, limit := plainLog(&b), LogLimit{}
		for range 500 {
			limit.Log(log, slog.LevelInfo, "denied", "by", "rule")
		}
		<-time.After(time.Second)
		limit.Log(log, slog.LevelInfo, "denied", "by", "rule")
		<-time.After(time.Minute)
		limit.Log(log, slog.LevelInfo, "denied")
		got := strings.Split(strings.TrimSpace(b.String()), "\n")
		want := []string{
			`level=INFO msg=denied by=rule more=0`,
			`level=INFO msg=denied by=rule more=499`,
			`level=INFO msg=denied more=0`,
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("log: %q", got)
		}
	})
}

// The Extended ORPort's own loop is AcceptEach: see TestAcceptEachWithoutDescriptors.
func TestExtServerWithoutDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := NewExtServer(ExtServerConfig{Config: Config{Logger: plainLog(&log)}})
		listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		// Every accept fails at once, as it does without descriptors.
		if err := listener.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		a.exchange.Go(func() { a.acceptLoop(listener) })
		<-time.After(90 * time.Second)
		_ = listener.Close()
		a.exchange.Wait()
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines:\n%s", n, log.String())
		}
	})
}
