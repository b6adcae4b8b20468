package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

const (
	govulncheck = "golang.org/x/vuln/cmd/govulncheck@v1.9.0"
	// database is the module that vuln.go.dev is made from. It comes through the module
	// proxy, so the check works where that host can't be reached.
	database = "golang.org/x/vulndb"
	// checked is the version of the database that the check uses if it is not told
	// another one: what it says changes with the source only, and not with the day.
	checked = "v0.0.0-20261105234957-e22db6528018"
	// checkedSum is go.sum's of that version.
	checkedSum = "h1:mfngRv0Yoh0VApsXKEN82CjD99kl7mtparN3bs3JnqI="
)

// accepted are vulnerabilities in modules that the program reaches and that do no harm in
// it, and why.
var accepted = map[string]string{
	"GO-2026-4509": "of Chrome's fingerprint, which webtunnel sends only if a bridge line asks for it; 1.8 of utls, without it, fails some handshakes of the fingerprint that is the default",
	"GO-2026-4512": "as GO-2026-4509",
}

// A finding is govulncheck's, as far as it is needed here. The first step of its trace is the
// vulnerable code; it has a function if the program reaches it.
type finding struct {
	OSV   string `json:"osv"`
	Fixed string `json:"fixed_version"`
	Trace []struct {
		Module   string `json:"module"`
		Version  string `json:"version"`
		Function string `json:"function"`
	} `json:"trace"`
}

// A report is what is known of one vulnerability.
type report struct {
	finding
	summary string
}

// reached reads govulncheck's JSON and returns what the program reaches, by name.
func reached(in io.Reader) (map[string]*report, error) {
	all := map[string]*report{}
	summaries := map[string]string{}
	for d := json.NewDecoder(in); ; {
		var message struct {
			OSV *struct {
				ID      string `json:"id"`
				Summary string `json:"summary"`
			} `json:"osv"`
			Finding *finding `json:"finding"`
		}
		err := d.Decode(&message)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if message.OSV != nil {
			summaries[message.OSV.ID] = message.OSV.Summary
		}
		if f := message.Finding; f != nil && len(f.Trace) > 0 && f.Trace[0].Function != "" {
			all[f.OSV] = &report{finding: *f}
		}
	}
	for id, r := range all {
		r.summary = summaries[id]
	}
	return all, nil
}

// vulnerabilities fails if the program reaches a vulnerability of a module. What is in the
// standard library is told only: which Go builds a release is not said here. The argument
// "latest" asks for the newest database.
func vulnerabilities(args []string) error {
	version := checked
	switch {
	case len(args) == 1 && args[0] == "latest":
		version = args[0]
	case len(args) > 0:
		return errors.New("usage: release vulnerabilities [latest]")
	}
	out, err := run(nil, "go", "mod", "download", "-json", database+"@"+version)
	if err != nil {
		return err
	}
	var module struct{ Dir, Version, Sum string }
	if err := json.Unmarshal([]byte(out), &module); err != nil {
		return err
	}
	if version == checked && module.Sum != checkedSum {
		return fmt.Errorf("%s@%s has the sum %s, not %s", database, version, module.Sum, checkedSum)
	}
	fmt.Println("database", module.Version)
	out, err = run(nil, "go", "run", govulncheck, "-format", "json", "-db", "file://"+filepath.ToSlash(filepath.Join(module.Dir, "data", "osv")), "./...")
	if err != nil {
		return err
	}
	all, err := reached(strings.NewReader(out))
	if err != nil {
		return err
	}
	bad := 0
	for _, id := range slices.Sorted(maps.Keys(all)) {
		r := all[id]
		at := r.Trace[0]
		fmt.Printf("%s %s %s, mended in %s: %s\n", id, at.Module, at.Version, r.Fixed, r.summary)
		switch {
		case accepted[id] != "":
			fmt.Printf("  accepted: %s\n", accepted[id])
		case at.Module == "stdlib":
			fmt.Printf("  in Go itself: build releases with %s or later\n", strings.Replace(r.Fixed, "v", "go", 1))
		default:
			bad++
		}
	}
	for id := range accepted {
		if all[id] == nil {
			fmt.Printf("%s is accepted, and not there any more: take it out of the list\n", id)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d vulnerabilities of modules are reached", bad)
	}
	return nil
}
