package config

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The README's snippets of a configuration add to the file that `ptgate pair`
// writes, which has the bridge "far".
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	snippets := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(snippets) == 0 {
		t.Fatal("no snippets found")
	}
	doc := []byte("[bridge.far]\ntransport = \"obfs3\"\naddress = \"192.0.2.1:443\"\n")
	for _, s := range snippets {
		doc = append(doc, s[1]...)
	}
	file := filepath.Join(t.TempDir(), "client.toml")
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg, problems := testLoader.Load(file); cfg == nil || len(problems) > 0 {
		t.Errorf("%s\nproblems: %v", doc, problems)
	}
}
