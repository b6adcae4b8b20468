package main

import (
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/bridges"
	"ptgate/gateway/supervise"
)

// A transport program that fails again and again shows, on both sides.
func TestStatusOfPrograms(t *testing.T) {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.Local)
	failing := supervise.Status{State: supervise.Waiting, Starts: 7, Failures: 7, Until: until, Error: "no such file"}
	var out strings.Builder
	printStatus(&out, &gateway.Status{
		Bridges: []bridges.Status{{Name: "tokyo", PT: &failing}, {Name: "paris", PT: &supervise.Status{State: supervise.Running, Starts: 1}}, {Name: "rome"}},
		Serve:   []gateway.ServeStatus{{Transport: "obfs4", PT: failing}, {Transport: "webtunnel"}},
	})
	const want = "its program has failed 7 times, starts again after 03:04:05, no such file\n"
	for line := range strings.Lines(out.String()) {
		bad := strings.HasPrefix(line, "bridge tokyo") || strings.HasPrefix(line, "serve obfs4")
		if strings.HasSuffix(line, want) != bad || strings.Contains(line, "failed") != bad {
			t.Errorf("%q", line)
		}
	}
}
