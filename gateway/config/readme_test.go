package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
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

// A documentedKey is a row of a table in configs/README.md.
type documentedKey struct {
	names []string
	def   string // the default, as it can stand in a file; "" if it is said in words
}

// documentedKeys are the keys of configs/README.md by table, which are named as in places.
func documentedKeys(t *testing.T) map[string][]documentedKey {
	t.Helper()
	text, err := os.ReadFile("../../configs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]documentedKey{}
	table, column := "", 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		heading := regexp.MustCompile("^\\| \\*\\*`(.*)`\\*\\*").FindStringSubmatch(line)
		switch {
		case strings.HasPrefix(line, "| key | default "):
			table, column = "", 1
		case strings.HasPrefix(line, "| key | what it limits | default "):
			table, column = "[limits]", 2
		case !strings.HasPrefix(line, "|"):
			column = 0
		case heading != nil:
			table = strings.Replace(heading[1], "NAME", "…", 1)
		case column > 0 && strings.HasPrefix(line, "| `"):
			var key documentedKey
			for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(cells[0], -1) {
				key.names = append(key.names, m[1])
			}
			if m := regexp.MustCompile("^`([^`]+)`(?: \\|)?$").FindStringSubmatch(cells[column]); m != nil {
				key.def = m[1]
			}
			all[table] = append(all[table], key)
		}
	}
	return all
}

// Each key that has a place is documented, each documented one exists, and to write its
// default changes nothing.
func TestDocumentedKeys(t *testing.T) {
	all := documentedKeys(t)
	for table, keys := range places {
		for _, key := range keys {
			if !slices.ContainsFunc(all[table], func(d documentedKey) bool { return slices.Contains(d.names, key) }) {
				t.Errorf("configs/README.md does not have %s of %q", key, table)
			}
		}
	}
	const base = "#\n[log]\n#[log]\n[listen]\n#[listen]\n[bridge.b]\n#[bridge.…]\ntransport = \"obfs3\"\naddress = \"192.0.2.1:443\"\n" +
		"[[route]]\n#[[route]]\nto = \"b.example\"\nvia = \"b\"\n[[route]]\n#[[route]] private\nto = \"*\"\nvia = \"direct\"\n" +
		"[[serve]]\n#[[serve]]\ntransport = \"webtunnel\"\nbind = \"192.0.2.1:443\"\noptions = { url = \"https://www.example.com/path\" }\n" +
		"[exit]\n#[exit]\n[pt.p]\n#[pt.…]\ntransports = \"webtunnel\"\n[admin]\n#[admin]\n[limits]\n#[limits]\n"
	file := filepath.Join(t.TempDir(), "c.toml")
	load := func(text string) *Config {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, problems := testLoader.Load(file)
		if cfg == nil {
			t.Fatalf("%s\n%v", text, problems)
		}
		return cfg
	}
	want, compared := load(base), 0
	for table, keys := range all {
		for _, key := range keys {
			for _, name := range key.names {
				text := strings.Replace(table, "…", "x", 1) + "\n" + name + " = [[]]\n" // of no key's type
				if _, problems := testLoader.Load(write(t, "c.toml", text)); strings.Contains(fmt.Sprint(problems), "unknown key") {
					t.Errorf("%s in %q: %v", name, table, problems)
				}
				if key.def == "" {
					continue
				}
				comment := "#" + table + "\n"
				if special := "#" + table + " " + name + "\n"; strings.Contains(base, special) {
					comment = special
				}
				got := load(strings.Replace(base, comment, name+" = "+key.def+"\n", 1))
				compared++
				// What was written counts as written, and is not replaced when it can't be had.
				got.Limits.DefaultConnections = want.Limits.DefaultConnections
				got.Written = want.Written
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s in %q: the default is not %s", name, table, key.def)
				}
			}
		}
	}
	if compared < 20 {
		t.Errorf("only %d defaults compared", compared)
	}
}
