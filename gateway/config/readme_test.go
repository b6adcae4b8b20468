package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ptgate/integration/documents"
)

// The snippets of a configuration in the README, and those in each other document, add to
// the file that `ptgate pair` writes, which has the bridge "far".
func TestDocuments(t *testing.T) {
	found := 0
	for _, d := range documents.Read(t, "../..") {
		snippets := d.Blocks("toml")
		found += len(snippets)
		t.Run(d.Path, func(t *testing.T) { loadSnippets(t, snippets) })
	}
	if found == 0 {
		t.Error("no snippets found")
	}
}

func loadSnippets(t *testing.T, snippets []string) {
	client := "[bridge.far]\ntransport = \"obfs3\"\naddress = \"192.0.2.1:443\"\n[[route]]\nto = \"pair.example\"\nvia = \"far\"\n"
	server := "[[serve]]\ntransport = \"obfs3\"\nbind = \"192.0.2.1:443\"\n"
	for _, s := range snippets {
		if strings.HasPrefix(s, "[exit]") {
			server += s
		} else {
			client += s
		}
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"client.toml": client, "server.toml": server, "users": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"client.toml": client, "server.toml": server} {
		if cfg, problems := testLoader.Load(filepath.Join(dir, name)); cfg == nil || len(problems) > 0 {
			t.Errorf("%s\nproblems: %v", text, problems)
		}
	}
}
