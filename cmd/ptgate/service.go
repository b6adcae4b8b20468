package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"
)

// What a service has to do with systemd: notes to it, the watchdog, and the journal.

// exitConfig is the exit code of `ptgate run` as a service whose configuration is wrong:
// EX_CONFIG of sysexits.h. The units don't start it again then, because nothing would be
// better. Where no service manager waits for a note, the code is 1, as for every failure.
const exitConfig exitError = 78

// wrongConfig ends `ptgate run` because of its configuration.
func wrongConfig(err error) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return err
	}
	if _, told := errors.AsType[exitError](err); !told {
		complain(err)
	}
	return exitConfig
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd was not notified", "state", strings.SplitN(state, "=", 2)[0], "error", err)
	}
}

// watchdog calls alive twice in each time that systemd grants between two signs of life,
// for as long as works returns. A works that hangs is what the watchdog is for: systemd
// kills the service then, and starts it again. watchdog returns when ctx ends, if works
// does.
func watchdog(ctx context.Context, limit time.Duration, works, alive func()) {
	if limit <= 0 {
		return // nobody watches
	}
	tick := time.NewTicker(limit / 2)
	defer tick.Stop()
	for {
		works()
		if ctx.Err() != nil {
			return
		}
		alive()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// toJournal tells whether w is the standard error, and that is the journal.
func toJournal(w io.Writer) bool {
	if w != io.Writer(os.Stderr) {
		return false
	}
	yes, err := journal.StderrIsJournalStream()
	return yes && err == nil
}

// Priorities of the journal, as sd-daemon(3) wants them before each line.
const (
	priorityError   = "<3>"
	priorityWarning = "<4>"
	priorityInfo    = "<6>"
	priorityDebug   = "<7>"
)

// A priorityWriter writes each line of a text behind its priority. Each Write has whole
// lines.
type priorityWriter struct {
	w        io.Writer
	priority string
}

func (w priorityWriter) Write(text []byte) (int, error) {
	out := make([]byte, 0, len(text)+len(w.priority))
	for line := range bytes.Lines(text) {
		out = append(out, w.priority...)
		out = append(out, line...)
	}
	if _, err := w.w.Write(out); err != nil {
		return 0, err
	}
	return len(text), nil
}

// withPriority is w, with a priority if w is the journal.
func withPriority(w io.Writer, priority string) io.Writer {
	if toJournal(w) {
		return priorityWriter{w, priority}
	}
	return w
}

// A priorityHandler hands each record to the handler of its priority.
type priorityHandler struct{ debug, info, warning, error slog.Handler }

// newPriorityHandler makes one of four handlers that differ in where they write.
func newPriorityHandler(w io.Writer, to func(io.Writer) slog.Handler) slog.Handler {
	at := func(priority string) slog.Handler { return to(priorityWriter{w, priority}) }
	return priorityHandler{at(priorityDebug), at(priorityInfo), at(priorityWarning), at(priorityError)}
}

func (h priorityHandler) at(level slog.Level) slog.Handler {
	switch {
	case level >= slog.LevelError:
		return h.error
	case level >= slog.LevelWarn:
		return h.warning
	case level >= slog.LevelInfo:
		return h.info
	}
	return h.debug
}

func (h priorityHandler) each(f func(slog.Handler) slog.Handler) slog.Handler {
	return priorityHandler{f(h.debug), f(h.info), f(h.warning), f(h.error)}
}

func (h priorityHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.at(level).Enabled(ctx, level)
}

func (h priorityHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.at(r.Level).Handle(ctx, r)
}

func (h priorityHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (h priorityHandler) WithGroup(name string) slog.Handler {
	return h.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}
