package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"ptgate/adapter/builtin"
	"ptgate/gateway/config"
	"ptgate/gateway/permissions"
)

// Check tells what Run would stumble over on this machine: directories that this user
// can't use, programs that are not there, ports that are taken. It starts nothing, and
// leaves nothing behind. file is the name of the configuration in the problems. A gateway
// that runs this configuration has the ports itself: with running they are not looked at.
func Check(cfg *config.Config, file string, running bool) (problems []config.Problem) {
	report := func(line int, warning bool, format string, args ...any) {
		problems = append(problems, config.Problem{File: file, Line: line, Message: fmt.Sprintf(format, args...), Warning: warning})
	}
	what := "state_dir"
	if cfg.StateLine == 0 {
		what = "the default state directory (another one is named by state_dir = \"…\", above the first [table])"
	}
	if err := usable(cfg.StateDir); err != nil {
		// A gateway does without what it would keep there. A server needs its key.
		report(cfg.StateLine, errors.Is(err, errNotWritable) && len(cfg.Serve) == 0, "%s: %v", what, err)
	}
	for _, p := range cfg.PTs {
		if p.State == "" {
			continue // one below state_dir
		}
		if err := usable(p.State); err != nil {
			report(p.Line, false, "pt %q: state: %v", p.Name, err)
		}
	}
	for _, s := range serveStates(cfg, readNotes(cfg.StateDir)) {
		if !s.cfg.PT.Builtin() {
			continue
		}
		// What is wrong with the directory has been said.
		if err := builtin.CheckKeys(s.cfg.Transport, s.state, s.cfg.Options); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.ENOTDIR) {
			report(s.cfg.Line, false, "%s: its keys: %v", s.cfg.Transport, err)
		}
	}
	for i, s := range cfg.Serve {
		if s.PT.Builtin() {
			continue
		}
		if _, err := exec.LookPath(s.PT.Exec[0]); err != nil {
			report(s.Line, false, "serve %d: its program %q can't be run: %s", i+1, s.PT.Exec[0], s.PT.Install())
		}
	}
	if running {
		return problems
	}
	for _, addrs := range [][]string{cfg.Listen.SOCKS5, cfg.Listen.HTTP, cfg.Listen.Mixed} {
		for _, addr := range addrs {
			if err := openable(addr); err != nil {
				report(cfg.Listen.Line, true, "[listen]: %v", err)
			}
		}
	}
	for _, addr := range cfg.Admin.Listen {
		if err := openable(addr); err != nil && !cfg.Admin.Default {
			report(cfg.Admin.Line, true, "[admin]: %v", err)
		}
	}
	for i, s := range cfg.Serve {
		if err := openable(s.Bind.String()); err != nil {
			report(s.Line, true, "serve %d: bind: %v", i+1, err)
		}
	}
	return problems
}

var errNotWritable = errors.New("can't write into it")

// usable returns an error if this user can't keep files in a directory that only trusted
// users may change, or can't make that directory.
func usable(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case isMissing(err):
		return makeable(dir)
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory: name one, or take it away", dir)
	}
	if err := permissions.CheckDir(dir); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if !permissions.Writable(dir) {
		return fmt.Errorf("%s: user %d, as whom this runs, %w: chown %[2]d %[1]s, or name another directory", dir, os.Geteuid(), errNotWritable)
	}
	return nil
}

// isMissing tells whether there is no such file, also because one above it is no directory.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// makeable returns an error if a directory that is not there can't be made.
func makeable(dir string) error {
	above := filepath.Dir(dir)
	info, err := os.Stat(above)
	for isMissing(err) && above != filepath.Dir(above) {
		above = filepath.Dir(above)
		info, err = os.Stat(above)
	}
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is not there, and can't be made, because %s is not a directory: name another one", dir, above)
	case !permissions.Writable(above):
		return fmt.Errorf("%s is not there, and user %d, as whom this runs, can't make it in %s: "+
			"as root: install -d -o %[2]d -m 700 %[1]s; or name another directory", dir, os.Geteuid(), above)
	}
	return nil
}

// openable returns an error if a listener can't be opened at an address now.
func openable(addr string) error {
	if path, ok := strings.CutPrefix(addr, config.UnixPrefix); ok {
		if err := trusted(filepath.Dir(path)); err != nil {
			return fmt.Errorf("%s: %w", addr, err)
		}
		if err := free(path); err != nil {
			return fmt.Errorf("%s: %w", addr, err)
		}
		return nil
	}
	ln, err := listen(context.Background(), addr, 0)
	if err != nil {
		return fmt.Errorf("at the moment: %w%s", err, hint(err, false))
	}
	return ln.Close()
}
