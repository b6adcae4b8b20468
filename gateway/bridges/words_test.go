package bridges

import (
	"testing"
	"time"

	"ptgate/gateway/budget"
	"ptgate/gateway/supervise"
)

func TestWords(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		s    Status
		want string
	}{
		{Status{State: "idle"}, "idle: nothing needs it"},
		{Status{State: "connecting"}, "connecting"},
		{Status{State: "up"}, "works"},
		{Status{State: "up", RTT: 84 * time.Millisecond}, "works, 84 ms"},
		{Status{State: "up", RTT: 450 * time.Microsecond}, "works, 0.5 ms"},
		{Status{State: "up", RTT: 1240 * time.Millisecond}, "works, 1.2 s"},
		{Status{State: "suspect"}, "gives no answer at the moment"},
		{Status{State: "detached", Detached: now.Add(-12 * time.Second)}, "lost; streams have waited for 12 s"},
		{Status{State: "resting", Reason: "refused", Until: now.Add(40 * time.Second)}, "resting: refused; again in 40 s"},
		{Status{State: "resting", Reason: "timeout", Until: now.Add(4 * time.Minute)}, "resting: timeout; again in 4 min"},
		{Status{State: "resting", Until: now.Add(-time.Second)}, "resting; again with the next request"},
		{Status{State: "connecting", Leaving: true, Stopped: now.Add(-4 * time.Second), Awaited: now.Add(6 * time.Second)},
			"connecting; its server has stopped; requests wait for it, 6 s more, and are refused then"},
		{Status{State: "idle", Stopped: now.Add(-40 * time.Second)}, "idle: nothing needs it; its server has stopped, 40 s ago; the next request tries it again"},
		{Status{State: "resting", Reason: "refused", Until: now.Add(4 * time.Second), Stopped: now.Add(-40 * time.Second)},
			"resting: refused; again in 4 s; its server has stopped, 40 s ago"},
		{Status{State: "up", Leaving: true}, "works; its server is about to stop"},
		{Status{State: "idle", Told: true}, "idle: nothing needs it; learned from its server: no file has it"},
		{Status{State: "up", Changed: true}, "works; it leads to another box than before"},
		{Status{State: "up", Learned: []budget.Learned{{Kind: budget.KindBytes, Value: "14KiB", At: "16KiB"}, {Kind: budget.KindNew, Value: "3/30s", At: "3 new connections in 30s"}}},
			"works; the network freezes a connection after about 16KiB from the far end; " +
				"too many connections: the network lets through about 3 new connections in 30s, and drops more; working around it"},
		{Status{State: "idle", PT: &supervise.Status{State: supervise.Waiting, Failures: 2}}, "idle: nothing needs it; its program fails"},
		{Status{State: "up", PT: &supervise.Status{State: supervise.Running, Failures: 1}}, "works; its program has failed and was started again"},
	} {
		if got := tt.s.Words(now); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.s, got, tt.want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0 s", 99 * time.Second: "99 s", 100 * time.Second: "2 min", 5 * time.Hour: "5 h"} {
		if got := seconds(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
