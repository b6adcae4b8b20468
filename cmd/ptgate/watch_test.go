package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/bridges"
	"ptgate/gateway/budget"
	"ptgate/gateway/control"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
)

// watchFor shows the statuses that ask gives, one each second, and returns what is shown.
func watchFor(t *testing.T, width, height int, ask ...func() (*gateway.Status, error)) string {
	t.Helper()
	var out strings.Builder
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		next := func() (*gateway.Status, error) {
			f := ask[min(n, len(ask)-1)]
			if n++; n == len(ask) {
				cancel()
			}
			return f()
		}
		if err := watch(ctx, next, func() (int, int, bool) { return width, height, width > 0 }, &out); err != nil {
			fmt.Fprintln(&out, "error:", err)
		}
		cancel()
	})
	return out.String()
}

func shows(s *gateway.Status) func() (*gateway.Status, error) {
	return func() (*gateway.Status, error) { return s, nil }
}

func fails(err error) func() (*gateway.Status, error) {
	return func() (*gateway.Status, error) { return nil, err }
}

// closed is what is known of a bridge whose port is closed.
var closed = doctor.Diagnose(doctor.Case{Err: syscall.ECONNREFUSED})

func busy(down int64, refused int64) *gateway.Status {
	return &gateway.Status{
		State: "running", PID: 7, Config: "/etc/ptgate/ptgate.toml", Active: 3, Down: down, Up: down / 2,
		Listeners: []gateway.ListenerStatus{{Front: "mixed", Address: "127.0.0.1:1080"}},
		Bridges: []bridges.Status{
			{Name: "tokyo", Transport: "obfs4", State: "up", RTT: 84 * time.Millisecond, Carriers: 2, Active: 3, In: down,
				Learned: []budget.Learned{{Kind: budget.KindBytes, Value: "16KiB"}}},
			{Name: "paris", Transport: "webtunnel", State: "resting", Reason: "refused", Why: "webtunnel: connect: connection refused",
				Until: time.Date(2000, 1, 1, 0, 0, 40, 0, time.UTC), Verdict: &closed},
		},
		Outcomes: []outcome.Value{
			{Name: "refused", Labels: map[string]string{"front": "mixed", "reason": "blocked"}, Value: refused},
			{Name: "opened", Labels: map[string]string{"front": "mixed"}, Value: refused},
			{Name: "bridge_recovered", Labels: map[string]string{"bridge": "paris"}, Value: refused},
		},
		Routes: []gateway.RouteStatus{{Route: 1, Action: "via", Via: []string{"tokyo", "paris"}, Pick: "first"}, {Route: 2, Action: "block"}}}
}

// What moves is shown by the second, and what goes wrong since the view began.
func TestWatchLines(t *testing.T) {
	out := watchFor(t, 0, 0, shows(busy(0, 5)), shows(busy(3<<20, 7)))
	if strings.Contains(out, "\x1b") {
		t.Errorf("commands for a terminal in a file: %q", out)
	}
	first, second, _ := strings.Cut(out, "\n\n")
	for _, want := range []string{
		`(?m)^00:00:00  ptgate running, since .*, pid 7$`,
		`(?m)^  /etc/ptgate/ptgate.toml$`,
		`(?m)^now  down …, up …, 3 connections$`,
		`(?m)^  1  tokyo, paris, pick first$`,
		`(?m)^  2  block$`,
		`(?m)^  tokyo  works, 84 ms; the network freezes a connection after about 16KiB from the far end; working around it \(obfs4, 3 connections, down …, up …\)$`,
		`(?m)^  paris  resting: refused; again in 40 s$`,
		`(?m)^  paris: webtunnel: connect: connection refused$`,
		`(?m)^  paris: closed: port closed: .*\. Is the server running, .*$`,
	} {
		if !regexp.MustCompile(want).MatchString(first) {
			t.Errorf("no %s in\n%s", want, first)
		}
	}
	if strings.Contains(first, "troubles") {
		t.Errorf("troubles from before the view:\n%s", first)
	}
	for _, want := range []string{
		`(?m)^now  down 3\.0 MiB/s, up 1\.5 MiB/s, 3 connections$`,
		`(?m)^  tokyo  works.*, down 3\.0 MiB/s, up 0 B/s\)$`,
		`(?m)^  paris  resting: refused; again in 39 s$`,
		`(?m)^troubles since 00:00:00\n  00:00:01  request refused \(mixed, blocked\), 2 times$`,
	} {
		if !regexp.MustCompile(want).MatchString(second) {
			t.Errorf("no %s in\n%s", want, second)
		}
	}
	if strings.Contains(second, "recovered") || strings.Contains(second, "works again") {
		t.Errorf("good news among the troubles:\n%s", second)
	}
}

// On a terminal the view stays in its place, whatever the width.
func TestWatchOnTerminal(t *testing.T) {
	for _, width := range []int{20, 40, 80, 200} {
		out := watchFor(t, width, 50, shows(busy(0, 0)), shows(busy(1, 1)))
		screens := strings.Split(out, "\x1b[H")
		if len(screens) != 3 || screens[0] != "\x1b[2J" || strings.Count(out, "\x1b[J") != 2 {
			t.Errorf("%q", out)
		}
		for line := range strings.Lines(screens[1]) {
			line = strings.NewReplacer("\x1b[K", "", "\x1b[J", "", "\n", "").Replace(line)
			if len([]rune(line)) > width {
				t.Errorf("%d columns: %q", width, line)
			}
		}
	}
	// On a small one, what is wrong has its place, and a long list of routes has not.
	many := busy(1, 1)
	for i := range 50 {
		many.Routes = append(many.Routes, gateway.RouteStatus{Route: i + 3, Action: "block"})
	}
	_, second, _ := strings.Cut(watchFor(t, 80, 24, shows(busy(0, 0)), shows(many)), "\x1b[J")
	for _, want := range []string{"request refused (mixed, blocked)", "paris: closed: port closed", "… and "} {
		if !strings.Contains(second, want) {
			t.Errorf("no %q in 24 lines:\n%s", want, second)
		}
	}
	// Nor has a long list of bridges; those that do not work come first.
	many = busy(1, 1)
	for i := range 30 {
		many.Bridges = append([]bridges.Status{{Name: fmt.Sprint("spare-", i), Transport: "obfs4", State: "idle"}}, many.Bridges...)
	}
	_, second, _ = strings.Cut(watchFor(t, 80, 24, shows(busy(0, 0)), shows(many)), "\x1b[J")
	for _, want := range []string{"\nbridges\x1b[K\n  paris  resting", "… and 24 more, below", "request refused (mixed, blocked)", "paris: closed: port closed", "more bridges"} {
		if !strings.Contains(second, want) {
			t.Errorf("no %q in 24 lines:\n%s", want, second)
		}
	}
	out := watchFor(t, 40, 6, shows(busy(0, 0)))
	if n := strings.Count(out, "\n"); n != 5 || !regexp.MustCompile(`… and \d+ lines`).MatchString(out) {
		t.Errorf("%d lines on six: %q", n, out)
	}
}

// Without a ptgate there is nothing to watch; one that ends may come back, with other
// numbers.
func TestWatchEnds(t *testing.T) {
	gone := fails(fmt.Errorf("%w: nobody answers", control.ErrNotRunning))
	if out := watchFor(t, 0, 0, gone, shows(busy(0, 0))); !strings.HasPrefix(out, "error: no ptgate runs") {
		t.Errorf("%q", out)
	}
	again := busy(10, 1)
	again.PID = 8
	out := watchFor(t, 0, 0, shows(busy(1<<30, 100)), gone, shows(again), fails(errors.New("it hangs")))
	for _, want := range []string{"00:00:01  no ptgate runs this configuration at the moment\n\n", "00:00:02  ptgate running, since ", "00:00:03  it hangs\n\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "troubles") || strings.Contains(out, "-") && regexp.MustCompile(`-\d+(\.\d+)? .?i?B/s`).MatchString(out) {
		t.Errorf("numbers of another process are compared:\n%s", out)
	}
}
