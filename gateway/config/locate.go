package config

import (
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ptgate/gateway/permissions"
)

// ServiceStateDir is where a system service keeps its state (StateDirectory=ptgate in
// systemd/ptgate.service).
const ServiceStateDir = "/var/lib/ptgate"

// A Location has what is needed to find the ptgate that runs a configuration file.
type Location struct {
	Path string // absolute, as Config.Path
	// StateDirs are the state directories that it may use, the likely ones first: Named, if
	// the file names one; the default one; and that of a system service. For root, a file of
	// another user has that of a service first, and then the user's default one.
	StateDirs []string
	Named     string // the state directory in the file; "": the file names none
}

// Locate reads only the state directory of a file, so it works also for a file with
// errors: the running ptgate reports these at a reload. If the file can't be read, it
// returns an error and a Location without Named.
func Locate(path string) (Location, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Location{}, err
	}
	doc, info, err := readFile(path)
	l := &loading{Loader: Loader{Getenv: os.Getenv}, file: path, abs: abs, lines: scanLines("")}
	loc := Location{Path: abs}
	if dir := l.namedStateDir(&table{l: l, m: topKeys(doc)}); dir != "" {
		loc.Named = dir
		loc.StateDirs = append(loc.StateDirs, dir)
	}
	own := DefaultStateDir(os.Getenv)
	dirs := []string{own, ServiceStateDir}
	if owner, ok := ownerOf(info); ok && os.Geteuid() == 0 && owner != 0 {
		dirs = []string{ServiceStateDir}
		if u, err := user.LookupId(strconv.FormatUint(uint64(owner), 10)); err == nil {
			dirs = append(dirs, DefaultStateDir(func(key string) string { return map[string]string{"HOME": u.HomeDir}[key] }))
		}
		dirs = append(dirs, own) // where root has tried it once
	}
	for _, dir := range dirs {
		if !slices.Contains(loc.StateDirs, dir) {
			loc.StateDirs = append(loc.StateDirs, dir)
		}
	}
	return loc, err
}

func ownerOf(info fs.FileInfo) (uint32, bool) {
	if info == nil {
		return 0, false
	}
	return permissions.Owner(info)
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
