//go:build unix

package config

import (
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"testing"
)

// Root also finds the ptgate of a user, who has another home.
func TestLocateForRoot(t *testing.T) {
	nobody, err := user.Lookup("nobody")
	if os.Getuid() != 0 || err != nil {
		return // only root can make a file of another user
	}
	path := filepath.Join(t.TempDir(), "ptgate.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(nobody.HomeDir, ".local", "state", "ptgate")
	if l, err := Locate(path); err != nil || slices.Contains(l.StateDirs, want) {
		t.Errorf("a file of root's own: %+v, %v", l, err)
	}
	if err := os.Chown(path, 65534, -1); err != nil {
		t.Fatal(err)
	}
	if l, err := Locate(path); err != nil || !slices.Contains(l.StateDirs, want) {
		t.Errorf("%+v, %v, want %s", l, err, want)
	}
}
