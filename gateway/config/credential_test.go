package config

import (
	"os"
	"path/filepath"
	"testing"
)

// systemd hands a configuration over with mode 0440, in a directory that is the service's alone.
func TestCredential(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ptgate.toml")
	text := "[listen]\nusers = { alice = \"secret\" }\n[[route]]\nto = \"*\"\nvia = \"direct\"\n"
	if err := os.WriteFile(path, []byte(text), 0o440); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]int{"": 1, filepath.Dir(filepath.Dir(path)): 1, filepath.Dir(path): 0} {
		loader := testLoader
		loader.Getenv = func(name string) string {
			if name == "CREDENTIALS_DIRECTORY" {
				return dir
			}
			return testLoader.Getenv(name)
		}
		if cfg, problems := loader.Load(path); cfg == nil || len(problems) != want {
			t.Errorf("with the credentials in %q: %v", dir, problems)
		}
	}
}
