//go:build unix

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOthersWrite: a configuration, or a list that it names, is an error if others can write
// it, and the error says what to do.
func TestOthersWrite(t *testing.T) {
	dir := t.TempDir()
	file, list := filepath.Join(dir, "ptgate.toml"), filepath.Join(dir, "list.txt")
	for path, text := range map[string]string{file: "[[route]]\nto_file = \"list.txt\"\nvia = \"direct\"\n", list: "example.com\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		file, list os.FileMode
		want       string // the file to change; "": none
	}{
		{0o600, 0o600, ""}, {0o644, 0o644, ""}, {0o666, 0o644, file}, {0o646, 0o644, file}, {0o600, 0o606, list}, {0o600, 0o666, list},
	} {
		if err := os.Chmod(file, tt.file); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(list, tt.list); err != nil {
			t.Fatal(err)
		}
		cfg, problems := Load(file)
		text := ""
		for _, p := range problems {
			text += p.String() + "\n"
		}
		if (cfg != nil) != (tt.want == "") || tt.want != "" && !strings.Contains(text, "chmod go-w "+tt.want+"\n") {
			t.Errorf("modes %o and %o: %s", tt.file, tt.list, text)
		}
	}
}
