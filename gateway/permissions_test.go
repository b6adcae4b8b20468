//go:build unix

package gateway_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ptgate/gateway"
)

// TestOpenState: ptgate does not start with a state directory, or one of a transport
// program, that others can write, and says what to do.
func TestOpenState(t *testing.T) {
	for _, which := range []string{"state_dir", "state"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "near.toml")
		open := filepath.Join(dir, "open")
		if err := os.Mkdir(open, 0o700); err != nil {
			t.Fatal(err)
		}
		if which == "state_dir" { // where loadText puts it
			if err := os.Rename(open, path+".state"); err != nil {
				t.Fatal(err)
			}
			open = path + ".state"
		}
		text := "[listen]\nmixed = \"127.0.0.1:0\"\n[[route]]\nto = \"*\"\nvia = \"direct\"\n[pt.it]\ntransports = [\"obfs4\"]\nstate = \"open\"\n"
		cfg := loadText(t, path, text)
		if err := os.Chmod(open, 0o777); err != nil {
			t.Fatal(err)
		}
		err := gateway.New(cfg, "", slog.New(slog.DiscardHandler)).Run(t.Context(), t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), which) || !strings.Contains(err.Error(), "chmod go-w "+open) {
			t.Errorf("%s: %v", which, err)
		}
		if _, err := gateway.Announce(t.Context(), cfg, ""); err == nil {
			t.Errorf("%s: Announce has used it", which)
		}
	}
}
