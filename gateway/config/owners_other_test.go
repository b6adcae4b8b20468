//go:build !linux

package config

import (
	"strings"
	"testing"
)

// A system that can't tell who connects says so. It must not let everybody in.
func TestOwnersElsewhere(t *testing.T) {
	_, problems := testLoader.Load(write(t, "ptgate.toml", "[listen]\nowners = \"self\"\n[[route]]\nto = \"*\"\nvia = \"direct\"\n"))
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "works on Linux only") {
		t.Errorf("%v", problems)
	}
}
