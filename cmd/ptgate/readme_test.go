package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestDocument: README.md has a row for each command, with its flags and no others.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{} // the flags of each command
	for _, m := range regexp.MustCompile("(?m)^\\| `ptgate ([a-z-]+)([^|]*)").FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = regexp.MustCompile(`(?:^| |\[)(-c|--[a-z-]+)`).FindAllString(m[2], -1)
		for i, f := range rows[m[1]] {
			rows[m[1]][i] = strings.TrimLeft(f, " [")
		}
	}
	root := newRoot()
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		said, ok := rows[c.Name()]
		delete(rows, c.Name())
		if !ok {
			t.Errorf("no row for ptgate %s", c.Name())
			continue
		}
		var flags []string
		c.Flags().VisitAll(func(f *pflag.Flag) {
			switch f.Name {
			case "help":
			case "config":
				flags = append(flags, "-c")
			default:
				flags = append(flags, "--"+f.Name)
			}
		})
		slices.Sort(flags)
		slices.Sort(said)
		if !slices.Equal(said, flags) {
			t.Errorf("ptgate %s: it has the flags %q, and README.md says %q", c.Name(), flags, said)
		}
	}
	for name := range rows {
		t.Errorf("there is no ptgate %s", name)
	}
}
