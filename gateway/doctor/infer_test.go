package doctor

import (
	"strings"
	"testing"
	"time"
)

const sec = time.Second

// What is seen of connections, and what it means. A row that names no kind means nothing
// yet.
func TestInfer(t *testing.T) {
	live := Sample{Opened: true, Age: 12 * sec, Bytes: 9000, Silent: sec / 2, Heard: 12 * sec, Since: 0}
	young := Sample{Opened: true, Age: 3 * sec, Bytes: 9000, Silent: sec / 2, Heard: 12 * sec, Since: 9 * sec}
	stuck := func(bytes int64) Sample {
		return Sample{Opened: true, Bulk: true, Age: 8 * sec, Bytes: bytes, Silent: 6 * sec, Owed: true, Heard: 2 * sec}
	}
	ended := func(age, silent time.Duration) Sample {
		return Sample{Opened: true, End: Reset, Age: age, Silent: silent, Heard: age - silent}
	}
	bulk := func(alone, beside float64, steady bool) Sample {
		return Sample{Opened: true, Bulk: true, Age: 8 * sec, Heard: 8 * sec, Alone: alone, Beside: beside, Steady: steady}
	}
	quietStuck := Sample{Opened: true, Age: 11 * sec, Silent: 10 * sec, Owed: true, Gap: 5 * sec, Heard: sec}
	for _, tt := range []struct {
		name  string
		all   []Sample
		kind  Kind
		value string
	}{
		{"nothing", nil, "", ""},
		{"all live", []Sample{live, live, young}, "", ""},

		{"two stuck after as many bytes", []Sample{stuck(16200), live, stuck(15000)}, Frozen, "15 KiB"},
		{"one stuck", []Sample{stuck(16200), live}, "", ""},
		{"two stuck far apart", []Sample{stuck(16200), live, stuck(60000)}, "", ""},
		{"two stuck, and nobody was heard since", []Sample{stuck(16200), stuck(15000), {Opened: true, Age: 8 * sec, Silent: 7 * sec, Heard: sec}}, "", ""},
		{"owed for a short time", []Sample{{Opened: true, Bulk: true, Owed: true, Silent: 4 * sec}, {Opened: true, Bulk: true, Owed: true, Silent: 4 * sec}, live}, "", ""},

		{"two ended at one age", []Sample{ended(5*sec, 0), ended(5*sec+200*time.Millisecond, 4*sec), young}, Cut, "5s"},
		{"one ended", []Sample{ended(5*sec, 0), young}, "", ""},
		{"two ended at different ages", []Sample{ended(5*sec, 0), ended(9*sec, 0), young}, "", ""},
		{"two ended, and an older one lives", []Sample{ended(5*sec, 0), ended(5*sec, 0), live}, "", ""},
		{"two ended young", []Sample{ended(sec, 0), ended(sec, 0)}, "", ""},

		{"a silent one was reset", []Sample{live, ended(5*sec, 4*sec)}, Silenced, "about 4s"},
		{"a silent one was reset, and no other is as old", []Sample{young, ended(5*sec, 4*sec)}, "", ""},
		{"a silent one is gone", []Sample{live, quietStuck}, Silenced, "at most 5s"},
		{"all are gone", []Sample{{Opened: true, Age: 12 * sec, Silent: 10 * sec, Owed: true, Heard: sec}, quietStuck}, "", ""},

		{"a new one gets no answer", []Sample{live, live, {Age: 9 * sec, Since: 3 * sec}}, Crowded, "2 connections"},
		{"a new one gets no answer yet", []Sample{live, live, {Age: 6 * sec, Since: 3 * sec}}, "", ""},
		{"two new ones get no answer", []Sample{live, live, {Age: 6 * sec, Since: 3 * sec}, {Age: 5 * sec, Since: 4 * sec}}, Crowded, "2 connections"},
		{"a new one is refused", []Sample{live, live, {End: Reset, Age: sec / 10, Since: 3 * sec}}, Crowded, "2 connections"},
		{"a new one takes its time", []Sample{live, live, {Age: 3 * sec, Since: 3 * sec}}, "", ""},
		{"nobody was heard since", []Sample{{Opened: true, Age: 9 * sec, Heard: 3 * sec}, {Age: 6 * sec, Since: 3 * sec}}, "", ""},

		{"each has its own rate", []Sample{bulk(128<<10, 126<<10, true), live, bulk(0, 130<<10, true)}, Throttled, "126 KiB/s"},
		{"they share a rate", []Sample{bulk(128<<10, 64<<10, true), live, bulk(0, 64<<10, true)}, "", ""},
		{"up and down", []Sample{bulk(40<<10, 44<<10, false), live, bulk(0, 41<<10, true)}, "", ""},
		{"fast", []Sample{bulk(9<<20, 9<<20, true), live, bulk(0, 9<<20, true)}, "", ""},
		{"too little was seen", []Sample{bulk(1, 1, false), live, bulk(0, 1, false)}, "", ""},
	} {
		v, ok := Infer(tt.all)
		if ok != (tt.kind != "") || v.Kind != tt.kind || v.Value != tt.value {
			t.Errorf("%s: %v, %+v; want %q %q", tt.name, ok, v, tt.kind, tt.value)
		}
		if ok && (len(v.Evidence) == 0 || !strings.Contains(v.Says, v.Value)) {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}
