package bridges

import (
	"testing"
	"testing/synctest"

	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
)

// A bridge that a reload gives another name goes on, and is counted under the new one. What
// was counted before stays with the old one.
func TestRenamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a")
		c, _ := open(t, s)
		defer c.Close()
		numbers := func() map[string]int64 {
			all := map[string]int64{}
			for _, v := range w.m.book.Snapshot() {
				switch v.Outcome {
				case outcome.BridgeIn, outcome.BridgeOut, outcome.BridgeStreams, outcome.BridgeCarriers:
					all[v.Name+" "+v.Labels["bridge"]] = v.Value
				}
			}
			return all
		}
		echo(t, c)
		synctest.Wait() // another carrier may be on its way
		before := numbers()
		if before["bridge_in_bytes a"] == 0 || before["bridge_streams a"] != 1 {
			t.Fatalf("%v", before)
		}
		cfg := w.config(config.PickFirst, "a")
		cfg.Bridges[0].Name = "tokyo"
		b := s.bridge("a")
		s = w.apply(cfg)
		if s.bridge("tokyo") != b {
			t.Fatal("it is another bridge")
		}
		renamed := numbers()
		if renamed["bridge_in_bytes a"] != before["bridge_in_bytes a"] || renamed["bridge_in_bytes tokyo"] != 0 ||
			renamed["bridge_streams a"] != 0 || renamed["bridge_streams tokyo"] != 1 || renamed["bridge_carriers tokyo"] == 0 {
			t.Errorf("before %v, after %v", before, renamed)
		}
		echo(t, c)
		synctest.Wait() // what is written is counted after the write
		after := numbers()
		if after["bridge_in_bytes a"] != before["bridge_in_bytes a"] || after["bridge_out_bytes tokyo"] == 0 ||
			after["bridge_in_bytes a"]+after["bridge_in_bytes tokyo"] != b.Traffic.In.Load() {
			t.Errorf("before %v, after %v, in all %d", before, after, b.Traffic.In.Load())
		}
		if over := b.Status().Over; len(over) != 1 || over[0] != "tokyo" {
			t.Errorf("over %v", over)
		}
	})
}
