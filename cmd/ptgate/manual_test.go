package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var manualDir = flag.String("manual", "", "write the manual pages into this directory")

// TestManual makes a manual page for each command. It is a test so that the program
// itself needs nothing for it: a package takes its pages from here
// (integration/release).
func TestManual(t *testing.T) {
	dir := *manualDir
	if dir == "" {
		dir = t.TempDir()
	}
	root := newRoot()
	root.DisableAutoGenTag = true
	forManual(root)
	// The date is not the build's, so that two builds are the same.
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	header := &doc.GenManHeader{Section: "1", Source: "ptgate", Manual: "ptgate", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range append(root.Commands(), root) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		text, err := os.ReadFile(filepath.Join(dir, name))
		if c.Name() == "help" { // it has none
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range []string{".SH NAME", ".SH SYNOPSIS"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: no %s", name, want)
			}
		}
	}
}

// forManual makes of help texts, which are laid out for a terminal, what the generator
// takes: Markdown, where four spaces begin a text that stays as it is.
func forManual(c *cobra.Command) {
	lines := strings.Split(c.Long, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "  ") {
			lines[i] = "  " + line
		} else {
			lines[i] = strings.NewReplacer("<", `\<`, "*", `\*`).Replace(line)
		}
	}
	c.Long = strings.Join(lines, "\n")
	for _, below := range c.Commands() {
		forManual(below)
	}
}
