// Package documents reads the repository's .md files, for tests of what they say.
package documents

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A Document is one .md file.
type Document struct {
	Path string // below the top of the repository
	Text string
}

// Read returns all of them. README.md is the first, the others follow by path. The top of
// the repository is root.
func Read(t testing.TB, root string) []Document {
	t.Helper()
	var all []Document
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != root:
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, path)
		all = append(all, Document{Path: filepath.ToSlash(below), Text: string(text)})
		return err
	})
	first := slices.IndexFunc(all, func(d Document) bool { return d.Path == "README.md" })
	if err != nil || first < 0 {
		t.Fatalf("no README.md among %d documents below %s (%v)", len(all), root, err)
	}
	readme := all[first]
	return slices.Insert(slices.Delete(all, first, first+1), 0, readme)
}

// Blocks returns the text of each block in this language, such as "sh".
func (d Document) Blocks(language string) []string {
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(d.Text, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}
