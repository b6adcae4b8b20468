package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
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
	// Without these three, which a run of the program adds, pages and lists are not whole.
	root.InitDefaultVersionFlag()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	forManual(root)
	// The date is not the build's, so that two builds are the same.
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	header := &doc.GenManHeader{Section: "1", Source: "ptgate", Manual: "ptgate", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		for _, below := range c.Commands() {
			check(below)
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		text, err := os.ReadFile(filepath.Join(dir, name))
		if c.Name() == "help" { // it has none
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		page := strings.ReplaceAll(string(text), `\-`, "-")
		want := []string{".SH NAME", ".SH SYNOPSIS"}
		for _, below := range c.Commands() {
			if below.Name() != "help" {
				want = append(want, below.Short)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) { want = append(want, "--"+f.Name) })
		for _, text := range want {
			if !strings.Contains(page, text) {
				t.Errorf("%s: no %s", name, text)
			}
		}
	}
	check(root)
}

// forManual makes of help texts, which are laid out for a terminal, what the generator
// takes: Markdown, where four spaces begin a text that stays as it is. What commands a
// command has stands in the help text only, so it is added.
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
	if c.HasAvailableSubCommands() {
		c.Long += "\n\nIts commands:\n\n"
	}
	for _, below := range c.Commands() {
		c.Long += fmt.Sprintf("    %-*s  %s\n", c.NamePadding(), below.Name(), below.Short)
		forManual(below)
	}
}
