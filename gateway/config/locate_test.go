package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("STATE_DIRECTORY", "/var/lib/elsewhere")
	for text, want := range map[string]string{
		"state_dir = \"state\"\nnonsense = 1\n": filepath.Join(dir, "state"),
		"[log]\nlevel = \"no such\"\n":          "/var/lib/elsewhere",
		"this is no TOML":                       "/var/lib/elsewhere",
	} {
		path := filepath.Join(dir, "ptgate.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := Locate(path); err != nil || l.Path != path || l.StateDir != want {
			t.Errorf("%q: %+v, %v; want %s", text, l, err, want)
		}
	}
	if _, err := Locate(filepath.Join(dir, "missing")); err == nil {
		t.Error("a missing file has a place")
	}
}
