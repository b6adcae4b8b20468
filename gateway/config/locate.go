package config

import (
	"os"
	"path/filepath"
)

// A Location is what it takes to find the ptgate that runs a file.
type Location struct {
	Path     string // absolute, as Config.Path
	StateDir string
}

// Locate reads no more of a file than its state directory. A file with errors has
// one, too: whoever asks for a reload of it is to hear the errors from the ptgate
// that runs; one that is no TOML at all counts as one that names none.
func Locate(path string) (Location, error) {
	doc, _, err := readFile(path)
	if err != nil {
		return Location{}, err
	}
	l := &loading{Loader: Loader{Getenv: os.Getenv}, file: path}
	if l.abs, err = filepath.Abs(path); err != nil {
		return Location{}, err
	}
	m, problem := decode(doc)
	if problem != nil {
		m = map[string]any{}
	} else {
		l.lines = scanLines(string(doc))
	}
	return Location{l.abs, l.stateDir(&table{l: l, m: m})}, nil
}
