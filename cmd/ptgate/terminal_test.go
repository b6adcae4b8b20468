package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"unicode"
)

// TestLogCommandsNoTerminal: whatever is logged, and in whatever format, no byte of it
// commands a terminal; and JSON still means the same.
func TestLogCommandsNoTerminal(t *testing.T) {
	const nasty = "\x1b]0;x\a\u009b2J\u0085\u202e\x7f\r\U000e0041"
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log := slog.New(newLogHandler(format, slog.LevelDebug, new(atomic.Bool), &out, false))
		log.Info("m"+nasty, "key"+nasty, "value"+nasty, "error", errors.New("error"+nasty))
		text := strings.TrimSuffix(out.String(), "\n")
		if i := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s: at %d of %q", format, i, text)
		}
		if format == "json" {
			var got map[string]string
			if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["key"+nasty] != "value"+nasty || got["error"] != "error"+nasty {
				t.Errorf("%q, %v", got, err)
			}
		}
	}
}
