package bridges

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"ptgate/gateway/outcome"
)

// Streams that are reset because too much is held are counted, at each end. The log has
// two lines of each, however many they are.
func TestMemoryResets(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	book := outcome.New(log)
	m := NewManager("ptgate", book, log)
	for range 100 {
		m.Memory().Reset(true, 5)
		m.Memory().Reset(false, 1)
	}
	m.Close()
	book.Close()
	for end, want := range map[string]int64{"gateway": 500, "server": 100} {
		if n := book.Counter(outcome.MemoryReset, outcome.By(end)).Load(); n != want {
			t.Errorf("%s: %d resets are counted, want %d", end, n, want)
		}
		if n := strings.Count(text.String(), "end="+end); n != 2 {
			t.Errorf("%s: %d lines in\n%s", end, n, text.String())
		}
	}
}
