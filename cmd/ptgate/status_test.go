package main

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/bridges"
	"ptgate/gateway/budget"
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

// That old bridge lines are good for a while shows.
func TestStatusOfRotation(t *testing.T) {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.Local)
	s := gateway.Status{Serve: []gateway.ServeStatus{{Transport: "obfs4", OldUntil: until}, {Transport: "webtunnel"}}}
	var out strings.Builder
	printStatus(&out, &s)
	if got := out.String(); strings.Count(got, "old bridge lines are good until 2030-01-02 03:04\n") != 1 {
		t.Error(got)
	}
}

// The status page's address is told; without one, why.
func TestStatusOfPage(t *testing.T) {
	routes := []gateway.RouteStatus{{}}
	for _, c := range []struct {
		s    gateway.Status
		want string // "": nothing is said
	}{
		{gateway.Status{Admin: []string{"127.0.0.1:9180"}, Routes: routes}, "http://127.0.0.1:9180\n"},
		{gateway.Status{Admin: []string{"unix:/run/x.sock"}}, "  unix:/run/x.sock\n"},
		{gateway.Status{Routes: routes, NoAdmin: "it is off"}, "none: it is off\n"},
		{gateway.Status{}, ""},
	} {
		var out strings.Builder
		printStatus(&out, &c.s)
		if !strings.Contains(out.String(), c.want) || strings.Contains(out.String(), "status page") != (c.want != "") {
			t.Errorf("%q, want %q", out.String(), c.want)
		}
	}
}

// What is known of a session shows.
func TestStatusOfSessions(t *testing.T) {
	var out strings.Builder
	printStatus(&out, &gateway.Status{Bridges: []bridges.Status{
		{Name: "idle", Transport: "obfs4", Far: "exit", State: "idle"},
		{Name: "own", Transport: "obfs4", Far: "exit", State: "up", Carriers: 2, Over: []string{"own"}, Box: "0123456789abcdef"},
		{Name: "both", Transport: "obfs4", Far: "exit", State: "up", Carriers: 2, Over: []string{"both", "other"}, Box: "0123456789abcdef",
			Changed: true, Leaving: true, Replayed: 2048,
			Learned: []budget.Learned{{Kind: budget.KindBytes, Value: "14KiB", Text: "the network stops a connection"}}},
		{Name: "other", Transport: "obfs4", Far: "exit", State: "detached", Active: 3,
			Detached: time.Date(2030, 1, 2, 3, 4, 5, 0, time.Local)},
		{Name: "rests", Transport: "obfs4", Far: "exit", State: "resting", Why: "refused", Until: time.Date(2030, 1, 2, 3, 4, 5, 0, time.Local), Verdict: &closed},
	}})
	for _, want := range []string{
		"bridge idle .*obfs4, exit: idle, 0 connections\n",
		"bridge own .*: up, 2 carriers, 0 connections, box 0123456789abcdef\n",
		"bridge both .*: up, its server is about to stop, 2 carriers over both and other, 0 connections, " +
			"box 0123456789abcdef, which is another one than before, 2.0 KiB sent again\n +" + budget.KindBytes.String() + " +14KiB: the network stops a connection\n",
		"bridge other .*: detached, streams wait for a carrier since 03:04:05, 3 connections\n",
		"bridge rests .*: resting, 0 connections, tried again after 03:04:05, refused\n +closed +port closed: .*\\. Is the server running, .*\n",
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestProbeOfBox(t *testing.T) {
	for _, c := range []struct {
		p     bridges.Probe
		known string
		want  string
	}{
		{bridges.Probe{Box: "aa", Resume: 2 * time.Minute}, "", "aa; streams outlive their connections by 2m0s"},
		{bridges.Probe{Box: "aa", Resume: 2 * time.Minute}, "aa", "aa, the same as before; streams outlive their connections by 2m0s"},
		{bridges.Probe{Box: "aa"}, "bb", "aa, another one than before (bb); streams end with their connection"},
	} {
		if got := aboutBox(c.p, c.known); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// What status --json prints can be read again, as status does it through the socket.
func TestStatusJSON(t *testing.T) {
	s := gateway.Status{Box: "0123456789abcdef", Bridges: []bridges.Status{{Name: "far", State: "detached",
		Detached: time.Unix(1, 0).UTC(), Over: []string{"far"},
		Learned: []budget.Learned{{Kind: budget.KindBytes, Value: "14KiB", Deaths: 2, Since: time.Unix(1, 0).UTC(), Probe: time.Unix(2, 0).UTC(), Text: "why"}}}}}
	text, err := json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	var got gateway.Status
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, s) {
		t.Errorf("%+v\nbecame %+v", s, got)
	}
}
