//go:build unix

package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"ptgate/gateway/config"
)

func TestCheckFileLimit(t *testing.T) {
	const much = 1<<30 - 64
	for _, c := range []struct {
		limits config.Limits
		want   string // in the log; "": nothing
	}{
		{config.Limits{Connections: 1}, ""},
		{config.Limits{Connections: much}, "level=WARN"},
		{config.Limits{Connections: much, DefaultConnections: true}, "level=INFO"},
		{config.Limits{Connections: much}, "or lower limits.connections"},
		{config.Limits{Connections: much}, "needed=2147483584 "},
	} {
		var b bytes.Buffer
		checkFileLimit(slog.New(slog.NewTextHandler(&b, nil)), &c.limits)
		if got := b.String(); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%+v: %q, want %q in it", c.limits, got, c.want)
		}
	}
}
