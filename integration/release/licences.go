package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A module is one whose code is linked into the program.
type module struct {
	path, version, sum, dir string
	packages                []string // the directories of the linked ones
	licences                []string // their SPDX names, sorted
}

// systems are those whose programs together have all modules.
var systems = []string{"linux", "darwin", "freebsd", "windows"}

// linked lists the modules that are linked into the program for any of the systems, but
// not its own.
func linked(systems ...string) ([]*module, error) {
	const format = "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Version}}\t{{.Sum}}\t{{.Dir}}\t{{$.Dir}}{{end}}{{end}}"
	byPath := map[string]*module{}
	for _, system := range systems {
		out, err := run([]string{"GOOS=" + system, "CGO_ENABLED=0"}, "go", "list", "-deps", "-f", format, program)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			f := strings.Split(strings.TrimSpace(line), "\t")
			if len(f) != 5 {
				continue // the standard library, or ours
			}
			m := byPath[f[0]]
			if m == nil {
				m = &module{path: f[0], version: f[1], sum: f[2], dir: f[3]}
				byPath[f[0]] = m
			}
			m.packages = append(m.packages, f[4])
		}
	}
	all := slices.SortedFunc(maps.Values(byPath), func(a, b *module) int { return cmp.Compare(a.path, b.path) })
	for _, m := range all {
		if err := m.findLicences(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// marks are sentences that only the text of one licence has.
var marks = []struct{ name, mark string }{
	{"Apache-2.0", "Apache License Version 2.0"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"BSD-3-Clause", "Redistribution and use in source and binary forms, with or without modification, are permitted"},
	{"CC0-1.0", "CC0 1.0 Universal"},
	{"CC0-1.0", "dedicated all copyright and related and neighboring rights"},
	{"GPL-3.0-or-later", "either version 3 of the License, or (at your option) any later version"},
	{"MPL-2.0", "Mozilla Public License, v. 2.0"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"},
}

// A BSD licence without the clause about names has two clauses.
const third = "to endorse or promote products derived from this software"

var spaces = regexp.MustCompile(`[\s/*#]+`)

// recognize returns the licences whose texts a text has in it.
func recognize(text string) (names []string) {
	text = spaces.ReplaceAllString(text, " ")
	for _, l := range marks {
		if !strings.Contains(text, l.mark) {
			continue
		}
		if l.name != "BSD-3-Clause" {
			names = append(names, l.name)
			continue
		}
		// One file may have several of them.
		for _, part := range strings.Split(text, l.mark)[1:] {
			if strings.Contains(part, third) {
				names = append(names, "BSD-3-Clause")
			} else {
				names = append(names, "BSD-2-Clause")
			}
		}
	}
	return names
}

var licenceFile = regexp.MustCompile(`(?i)^(un)?licen[cs]e|^copying`)

// findLicences reads the licence files of the linked packages' directories and of those
// above, and what stands before "package" in the linked files.
func (m *module) findLicences() error {
	found := map[string]bool{}
	seen := map[string]bool{}
	for _, dir := range m.packages {
		sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			return err
		}
		for _, file := range sources {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			head, _, _ := strings.Cut(string(text), "\npackage ")
			for _, name := range recognize(head) {
				found[name] = true
			}
		}
		for ; len(dir) >= len(m.dir) && !seen[dir]; dir = filepath.Dir(dir) {
			seen[dir] = true
			entries, err := os.ReadDir(dir)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if e.IsDir() || !licenceFile.MatchString(e.Name()) {
					continue
				}
				text, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					return err
				}
				for _, name := range recognize(string(text)) {
					found[name] = true
				}
			}
		}
	}
	m.licences = slices.Sorted(maps.Keys(found))
	if len(m.licences) == 0 {
		return fmt.Errorf("%s: no licence is recognized", m.path)
	}
	return nil
}

// notice is the file with the table of licences.
const notice = "integration/release/README.md"

// readTable reads the table of licences: names by module. A name without a slash
// belongs to the path of the name before it.
func readTable(readme string) map[string][]string {
	_, text, _ := strings.Cut(readme, "| module | licence |\n")
	quoted := regexp.MustCompile("`([^`]+)`")
	name := regexp.MustCompile(`[A-Z][0-9A-Za-z]*(?:-[0-9A-Za-z.]+)+|MIT|ISC`)
	table := map[string][]string{}
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			break
		}
		licence := regexp.MustCompile("`[^`]*`").ReplaceAllString(cells[2], "")
		names := name.FindAllString(licence, -1)
		slices.Sort(names)
		names = slices.Compact(names)
		base := ""
		for _, q := range quoted.FindAllStringSubmatch(cells[1], -1) {
			path := q[1]
			if strings.Contains(path, "/") {
				base = path[:strings.LastIndex(path, "/")]
			} else {
				path = base + "/" + path
			}
			table[path] = names
		}
	}
	return table
}

// compare tells what is wrong with the table.
func compare(table map[string][]string, modules []*module) error {
	var errs []error
	rest := maps.Clone(table)
	for _, m := range modules {
		names, ok := table[m.path]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s (%s) is linked, and not in the table of %s", m.path, strings.Join(m.licences, ", "), notice))
		case !slices.Equal(names, m.licences):
			errs = append(errs, fmt.Errorf("%s: %s says %s, and its files %s", m.path, notice, strings.Join(names, ", "), strings.Join(m.licences, ", ")))
		}
		delete(rest, m.path)
	}
	for _, path := range slices.Sorted(maps.Keys(rest)) {
		errs = append(errs, fmt.Errorf("%s is in the table of %s, and not linked", path, notice))
	}
	return errors.Join(errs...)
}

func licences([]string) error {
	text, err := os.ReadFile(notice)
	if err != nil {
		return err
	}
	modules, err := linked(systems...)
	if err != nil {
		return err
	}
	for _, m := range modules {
		fmt.Printf("%s %s: %s\n", m.path, m.version, strings.Join(m.licences, ", "))
	}
	return compare(readTable(string(text)), modules)
}
