package main

import (
	"errors"
	"slices"
	"testing"
	"time"

	"ptgate/gateway/bridges"
)

// The fastest way comes first, and what does not work comes last. The numbers are those that
// an int of 32 bits does not have.
func TestCompareProbes(t *testing.T) {
	took := func(d time.Duration) bridges.Probe { return bridges.Probe{Steps: []bridges.Step{{Took: d}}} }
	fails := bridges.Probe{Err: errors.New("no answer")}
	for i, probes := range [][]bridges.Probe{
		{took(200 * time.Millisecond), fails},
		{took(time.Second), fails},
		{took(4 * time.Second), fails},
		{took(time.Second), took(4 * time.Second), took(12 * time.Second)},
	} {
		if !slices.IsSortedFunc(probes, compareProbes) || compareProbes(probes[0], probes[1]) >= 0 {
			t.Errorf("%d: another order", i)
		}
	}
}
