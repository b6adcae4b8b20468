package main

import (
	"context"
	"log"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
)

// A librariesLog takes what libraries write to the standard logger (net/http, http2,
// utls and others), one line a call. It may have a destination's bytes in it: a private
// log gets no more than the fact.
type librariesLog struct {
	log     *slog.Logger
	private *atomic.Bool
}

// adoptLibraries makes the standard logger write to log at debug level, until restore
// is called.
func adoptLibraries(logger *slog.Logger, private *atomic.Bool) (restore func()) {
	writer, flags := log.Writer(), log.Flags()
	log.SetFlags(0) // ours has the time
	log.SetOutput(librariesLog{logger, private})
	return func() {
		log.SetFlags(flags)
		log.SetOutput(writer)
	}
}

func (l librariesLog) Write(line []byte) (int, error) {
	if !l.log.Enabled(context.Background(), slog.LevelDebug) {
		return len(line), nil
	}
	if l.private.Load() {
		l.log.Debug("a library has something to say; log.private keeps it out", "library", callingLibrary())
	} else {
		l.log.Debug("a library says", "library", callingLibrary(), "text", strings.TrimSuffix(string(line), "\n"))
	}
	return len(line), nil
}

// callingLibrary is the package that calls the standard logger.
func callingLibrary() string {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		// A function is named as in example.com/module/package.(*Type).Method.
		slash := strings.LastIndex(f.Function, "/") + 1
		name, _, _ := strings.Cut(f.Function[slash:], ".")
		name = f.Function[:slash] + name
		if !more || name != "log" && name != "log/slog" {
			return name
		}
	}
}
