package config

import (
	"testing"

	"ptgate/gateway/destination"
)

// A route that says direct reaches private addresses where its pattern names them, or where
// it says so.
func TestReachesPrivate(t *testing.T) {
	cfg := mustLoad(t, write(t, "ptgate.toml", `
[[route]]
to = ["10.0.0.0/8", "nas.example", "127.0.0.1:80", "*.lan.example"]
via = "direct"
[[route]]
to = ".home.example"
via = "direct"
private = true
[[route]]
to = "*"
via = "direct"
`))
	for dest, want := range map[string]bool{
		"10.1.2.3:22":          true,
		"nas.example:443":      true,
		"127.0.0.1:80":         true,
		"127.0.0.1:81":         false,
		"nas.lan.example:443":  false,
		"nas.home.example:443": true,
		"home.example:443":     true,
		"192.168.1.1:80":       false,
		"other.example:443":    false,
	} {
		target, err := destination.Parse(dest)
		if err != nil {
			t.Fatal(err)
		}
		m, ok := cfg.Table.Lookup(target)
		if got := cfg.ReachesPrivate(m); !ok || got != want {
			t.Errorf("%s: %t, %t", dest, got, ok)
		}
	}
}
