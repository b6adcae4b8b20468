//go:build unix

package main

import (
	"bytes"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"ptgate/gateway/config"
)

// A file keeps its owner. Its group matters where that may do something with it.
func TestGroupless(t *testing.T) {
	for mode, want := range map[fs.FileMode]bool{0o600: true, 0o400: true, 0o604: true, 0o640: false, 0o660: false, 0o610: false} {
		if groupless(mode) != want {
			t.Errorf("%v: want %v", mode, want)
		}
	}
}

func TestCheckFileLimit(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	const much = 1<<30 - 64
	for _, c := range []struct {
		many   bool // 4096 files, otherwise 1024
		limits config.Limits
		want   string // in the log; "": nothing
	}{
		{false, config.Limits{Connections: 1}, ""},
		{false, config.Limits{Connections: (1024 - 160 - 64) / 2}, ""},
		{false, config.Limits{Connections: (1024-160-64)/2 + 1}, "level=WARN"}, // the last 160 are kept back
		{false, config.Limits{Connections: much}, "level=WARN"},
		{false, config.Limits{Connections: much, DefaultConnections: true}, "level=INFO"},
		{true, config.Limits{Connections: much, DefaultConnections: true}, "level=DEBUG"},
		{true, config.Limits{Connections: much}, "level=WARN"},
		{false, config.Limits{Connections: much}, "or lower limits.connections"},
		{false, config.Limits{Connections: much}, "needed=2147483744 "},
	} {
		few := before
		few.Cur = 1024
		if c.many {
			few.Cur = 4096
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		checkFileLimit(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})), &c.limits)
		if got := b.String(); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%+v: %q, want %q in it", c.limits, got, c.want)
		}
	}
}
