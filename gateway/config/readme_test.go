package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
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
	server := []byte("[[serve]]\ntransport = \"obfs3\"\nbind = \"192.0.2.1:443\"\n")
	for _, s := range snippets {
		if strings.HasPrefix(string(s[1]), "[exit]") {
			server = append(server, s[1]...)
		} else {
			doc = append(doc, s[1]...)
		}
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{"client.toml": doc, "server.toml": server, "users": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string][]byte{"client.toml": doc, "server.toml": server} {
		if cfg, problems := testLoader.Load(filepath.Join(dir, name)); cfg == nil || len(problems) > 0 {
			t.Errorf("%s\nproblems: %v", text, problems)
		}
	}
}
