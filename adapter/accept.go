package adapter

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// A LogLimit limits log messages that strangers can cause as often as they like. The
// first message is written at once. After that, at most one is written in each
// Every; its attribute "more" is the number of messages that were left out before
// it. A LogLimit may be used from any goroutine.
type LogLimit struct {
	Every time.Duration // 0: a second

	mu   sync.Mutex
	next time.Time
	more int
}

// Log writes the message to log, or only counts it.
func (l *LogLimit) Log(log *slog.Logger, level slog.Level, message string, args ...any) {
	l.mu.Lock()
	now := time.Now()
	if now.Before(l.next) {
		l.more++
		l.mu.Unlock()
		return
	}
	every := l.Every
	if every == 0 {
		every = time.Second
	}
	more := l.more
	l.next, l.more = now.Add(every), 0
	l.mu.Unlock()
	log.Log(context.Background(), level, message, append(args, "more", more)...)
}

// AcceptEach calls handle for each connection that accept returns, one after the
// other, until accept returns net.ErrClosed or ctx has ended. After any other error,
// such as a lack of file descriptors, it tries again: after 5 ms at first, later
// after up to 1 s. It logs such errors at most once a minute.
func AcceptEach[C any](ctx context.Context, log *slog.Logger, accept func() (C, error), handle func(C)) {
	failed := LogLimit{Every: time.Minute}
	var pause time.Duration
	for {
		c, err := accept()
		if err == nil {
			pause = 0
			handle(c)
			continue
		}
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		failed.Log(log, slog.LevelWarn, "new connections can't be accepted for now", "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}
