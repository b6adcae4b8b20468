package config

import (
	"fmt"
	"strings"
	"testing"
)

// Each key is known in the tables where it is said to belong.
func TestPlaces(t *testing.T) {
	for table, keys := range places {
		for _, key := range keys {
			text := strings.Replace(table, "…", "x", 1) + "\n" + key + " = [[]]\n" // of no key's type
			cfg, problems := testLoader.Load(write(t, "c.toml", text))
			if cfg != nil || strings.Contains(fmt.Sprint(problems), "unknown key") {
				t.Errorf("%s in %q: %v", key, table, problems)
			}
		}
	}
	for key, want := range map[string]string{
		"state_dir": ": write it above the first [table]; what stands below belongs to that table",
		"socks5":    ": it belongs below [listen]",
		"users":     ": it belongs below [admin] or [exit] or [listen]",
		"address":   ": it belongs below [bridge.…]",
		"sauce":     "",
	} {
		if got := place(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}
