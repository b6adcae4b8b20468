package documents

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// prose is the text without its blocks of code.
func (d Document) prose() string {
	return regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(d.Text, "")
}

// anchors are the names by which links find the headings, made as GitHub does.
func (d Document) anchors() map[string]bool {
	all := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ +(.*)$`).FindAllStringSubmatch(d.prose(), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		name = strings.ReplaceAll(name, " ", "-")
		anchor := name
		for i := 1; all[anchor]; i++ {
			anchor = fmt.Sprintf("%s-%d", name, i)
		}
		all[anchor] = true
	}
	return all
}

// links are the targets of its links.
func (d Document) links() []string {
	var all []string
	text := regexp.MustCompile("`[^`\n]*`").ReplaceAllString(d.prose(), "`code`")
	for _, m := range regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// TestLinks: each link leads to a file of the repository, and to a heading that is there.
func TestLinks(t *testing.T) {
	anchors := map[string]map[string]bool{}
	documents := Read(t, root)
	for _, d := range documents {
		anchors[d.Path] = d.anchors()
	}
	reached := map[string]bool{"README.md": true}
	for _, d := range documents {
		for _, link := range d.links() {
			u, err := url.Parse(link)
			if err != nil {
				t.Errorf("%s: %v", d.Path, err)
				continue
			}
			if u.Scheme != "" {
				// Nothing is asked of the network here, except of this machine in the text.
				if u.Scheme != "https" && u.Hostname() != "127.0.0.1" {
					t.Errorf("%s: %s", d.Path, link)
				}
				continue
			}
			to := d.Path
			if u.Path != "" {
				to = path.Join(path.Dir(d.Path), u.Path)
			}
			if to != d.Path {
				reached[to] = true
			}
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(to))); err != nil || strings.HasPrefix(to, "..") {
				t.Errorf("%s: no file for %s", d.Path, link)
			}
			if u.Fragment != "" && !anchors[to][u.Fragment] {
				t.Errorf("%s: no heading for %s", d.Path, link)
			}
		}
	}
	for _, d := range documents {
		if !reached[d.Path] {
			t.Errorf("no document leads to %s", d.Path)
		}
	}
}

// TestConfigs: the list of the files in configs/ is complete.
func TestConfigs(t *testing.T) {
	files, err := os.ReadDir(filepath.Join(root, "configs"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "configs", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "README.md" && !strings.Contains(string(text), "]("+f.Name()+")") {
			t.Errorf("configs/README.md does not name %s", f.Name())
		}
	}
}

func TestRead(t *testing.T) {
	d := Document{Text: "# One `two`: 3\n\n[a](b.md#c) and `[no](link)`\n\n```sh\n# no heading\nfalse\n```\n\n## Twice\n## Twice\n\n```text\nx\n```\n```sh\ntrue\n```\n"}
	if got := fmt.Sprint(d.anchors()); got != "map[one-two-3:true twice:true twice-1:true]" {
		t.Errorf("anchors: %s", got)
	}
	if got := fmt.Sprintf("%q", d.links()); got != `["b.md#c"]` {
		t.Errorf("links: %s", got)
	}
	if got := fmt.Sprintf("%q", d.Blocks("sh")); got != `["# no heading\nfalse\n" "true\n"]` {
		t.Errorf("blocks: %s", got)
	}
}
