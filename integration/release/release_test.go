package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTable: the table of licences is right.
func TestTable(t *testing.T) {
	t.Chdir("../..")
	if err := licences(nil); err != nil {
		t.Error(err)
	}
}

func TestCompare(t *testing.T) {
	table := readTable("# x\n\n| module | licence |\n| --- | --- |\n| Go; `a.example/x/one`, `two` | BSD-3-Clause |\n" +
		"| `b.example/three` | MIT, parts Apache-2.0, `internal/x` GPL-3.0-or-later |\n\n| `c.example/no` | MIT |\n")
	right := []*module{
		{path: "a.example/x/one", licences: []string{"BSD-3-Clause"}},
		{path: "a.example/x/two", licences: []string{"BSD-3-Clause"}},
		{path: "b.example/three", licences: []string{"Apache-2.0", "GPL-3.0-or-later", "MIT"}},
	}
	if err := compare(table, right); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		modules []*module
		want    string
	}{
		{right[:2], "b.example/three is in the table of integration/release/README.md, and not linked"},
		{append(slices.Clone(right), &module{path: "d.example/four", licences: []string{"MIT"}}), "d.example/four (MIT) is linked"},
		{append(slices.Clone(right[:2]), &module{path: "b.example/three", licences: []string{"MIT"}}), "its files MIT"},
	} {
		if err := compare(table, tt.modules); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func TestRecognize(t *testing.T) {
	const two = "Redistribution and use in source and binary forms, with or without\n// modification, are permitted provided that\n"
	for text, want := range map[string][]string{
		"":  nil,
		two: {"BSD-2-Clause"},
		two + "may be used to endorse or promote products\n# derived from this software":          {"BSD-3-Clause"},
		two + "=====\n" + two + "to endorse or promote products derived from\nthis software":      {"BSD-2-Clause", "BSD-3-Clause"},
		"                                 Apache License\n                           Version 2.0": {"Apache-2.0"},
	} {
		if got := recognize(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestReached(t *testing.T) {
	all, err := reached(strings.NewReader(`
{"config": {"db": "file:///x"}}
{"osv": {"id": "GO-1", "summary": "reached"}}
{"osv": {"id": "GO-2", "summary": "imported only"}}
{"finding": {"osv": "GO-1", "trace": [{"module": "m", "version": "v1.0.0"}]}}
{"finding": {"osv": "GO-1", "fixed_version": "v1.0.1", "trace": [{"module": "m", "version": "v1.0.0", "function": "F"}, {"module": "ptgate"}]}}
{"finding": {"osv": "GO-2", "trace": [{"module": "m", "version": "v1.0.0", "package": "m/p"}]}}`))
	if err != nil || len(all) != 1 || all["GO-1"].summary != "reached" || all["GO-1"].Fixed != "v1.0.1" {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := reached(strings.NewReader("{")); err == nil {
		t.Error("half an answer is taken for one")
	}
}

func TestSBOM(t *testing.T) {
	modules := []*module{{path: "a.example/x", version: "v1.2.3", sum: "h1:AAAA", licences: []string{"BSD-3-Clause", "MIT"}}}
	at := time.Unix(1, 0).UTC()
	one, err := makeSBOM("abc", modules, at)
	if err != nil {
		t.Fatal(err)
	}
	two, _ := makeSBOM("abc", modules, at)
	if !bytes.Equal(one, two) {
		t.Error("two documents of the same program differ")
	}
	var doc struct {
		Packages []struct{ Name, VersionInfo, LicenseConcluded, Comment string }
	}
	if err := json.Unmarshal(one, &doc); err != nil || len(doc.Packages) != 3 {
		t.Fatalf("%v, %s", err, one)
	}
	if p := doc.Packages[2]; p.Name != "a.example/x" || p.VersionInfo != "v1.2.3" || p.LicenseConcluded != "BSD-3-Clause AND MIT" || p.Comment == "" {
		t.Errorf("%+v", p)
	}
}

// TestInstalled: each link of a document in a package leads to a file of the package.
func TestInstalled(t *testing.T) {
	t.Chdir("../..")
	p := pack{work: t.TempDir()}
	if err := p.take(); err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{doc + "copyright": true}
	for _, f := range p.files {
		has[strings.Replace(f.to, doc+"examples/", doc+"configs/", 1)] = true
	}
	documents := 0
	for _, f := range p.files {
		if path.Ext(f.to) != ".md" {
			continue
		}
		documents++
		text, err := os.ReadFile(f.from)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^):#]+)(#[^)]*)?\)`).FindAllSubmatch(text, -1) {
			to := string(m[1])
			if !path.IsAbs(to) {
				to = path.Join(path.Dir(f.to), to)
			}
			if !has[strings.Replace(to, doc+"examples/", doc+"configs/", 1)] {
				t.Errorf("%s: a link to %s", f.to, m[1])
			}
		}
	}
	if got := p.directories("rpm"); !slices.Contains(got, "/etc/ptgate") || !slices.Contains(got, "/usr/share/doc/ptgate/cmd") || slices.Contains(got, "/usr/share/doc") {
		t.Errorf("directories of its own: %q", got)
	}
	if sources, err := filepath.Glob("*/README.md"); err != nil || documents <= len(sources) {
		t.Errorf("%d documents, %v", documents, err)
	}
}
