package config

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The TOML library stays behind this package.
func TestOnlyImporterOfTOML(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-e", "-test",
		"-f", `{{.ImportPath}} {{join .Imports " "}}`, "ptgate/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var importers []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 && slices.Contains(f[1:], "github.com/BurntSushi/toml") {
			importers = append(importers, f[0])
		}
	}
	if !slices.Contains(importers, "ptgate/gateway/config") {
		t.Fatalf("go list does not see the import: %q", importers)
	}
	for _, path := range importers {
		if !strings.HasPrefix(path, "ptgate/gateway/config") {
			t.Errorf("%s imports the TOML library", path)
		}
	}
}
