package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ServiceStateDir is where a system service keeps its state (StateDirectory=ptgate in
// systemd/ptgate.service).
const ServiceStateDir = "/var/lib/ptgate"

// A Location is what it takes to find the ptgate that runs a file.
type Location struct {
	Path string // absolute, as Config.Path
	// StateDirs are those that it may have: what the file names now, if it does, which
	// is Named; the default one; a system service's.
	StateDirs []string
	Named     string // "": the file names none
}

// Locate reads no more of a file than its state directory, also of one with errors:
// whoever asks for a reload of it is to hear the errors from the ptgate that runs. Of
// a file that can't be read, which is an error, it tells what is known without.
func Locate(path string) (Location, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Location{}, err
	}
	doc, _, err := readFile(path)
	l := &loading{Loader: Loader{Getenv: os.Getenv}, file: path, abs: abs, lines: scanLines("")}
	loc := Location{Path: abs}
	if dir := l.namedStateDir(&table{l: l, m: topKeys(doc)}); dir != "" {
		loc.Named = dir
		loc.StateDirs = append(loc.StateDirs, dir)
	}
	for _, dir := range []string{DefaultStateDir(os.Getenv), ServiceStateDir} {
		if !slices.Contains(loc.StateDirs, dir) {
			loc.StateDirs = append(loc.StateDirs, dir)
		}
	}
	return loc, err
}

// topKeys gives the keys above the first table. Where the document is no TOML, it
// gives state_dir alone, if its own line is right.
func topKeys(doc []byte) map[string]any {
	m, problem := decode(doc)
	if problem == nil {
		return m
	}
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			break
		}
		if m, problem := decode([]byte(line)); problem == nil && m["state_dir"] != nil {
			return m
		}
	}
	return nil
}
