package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/permissions"
	"ptgate/gateway/serve"
)

// Noted returns what clients need to know of each [[serve]] of cfg, in the file's order.
// It reads the notes that a running ptgate leaves in its state directory, stateDir. If
// the note of any [[serve]] is missing, ok is false.
func Noted(cfg *config.Config, stateDir string) (all []serve.Announced, ok bool) {
	if permissions.CheckDir(stateDir) != nil {
		return nil, false // Announce tells what is wrong
	}
	notes := readNotes(stateDir)
	where := *cfg
	where.StateDir = stateDir
	for _, w := range serveStates(&where, notes) {
		i := slices.IndexFunc(notes, func(n note) bool { return n.Key == serve.Key(w.cfg, w.state) })
		if i < 0 {
			return nil, false
		}
		all = append(all, notes[i].Present(w.cfg, w.state))
	}
	return all, true
}

// Announce returns the same as Noted, also if no ptgate has run cfg yet. It starts each
// transport for a moment, on a loopback port. The transports make their keys then, and
// keep them in the state directory of cfg. exe is as for New.
func Announce(ctx context.Context, cfg *config.Config, exe string) (all []serve.Announced, err error) {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil { // not every transport has a directory in it
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	if err := checkDirs(cfg); err != nil {
		return nil, err
	}
	notes := readNotes(cfg.StateDir)
	var mine []note
	quiet := slog.New(slog.DiscardHandler)
	for _, w := range serveStates(cfg, notes) {
		trial := *w.cfg
		trial.Bind = netip.MustParseAddrPort("127.0.0.1:0")
		limits := cfg.Limits
		s, err := serve.Start(ctx, &trial, w.state, serve.Deps{
			Exe: exe, Limit: inbound.NewLimiter(1), Logger: quiet, Book: outcome.New(quiet),
			Limits: func() *config.Limits { return &limits },
		})
		if err != nil {
			return nil, err
		}
		a := s.Announced()
		s.Stop(ctx, 0)
		a.Bind, a.Address = w.cfg.Bind.String(), w.cfg.Bind.String()
		all = append(all, a)
		a.Key = "" // it has not been served
		mine = append(mine, note{a, cfg.Path, w.state})
	}
	return noteTrial(cfg, all, mine)
}

// noteTrial writes the notes of what has been started for a moment, unless a ptgate has begun to
// serve cfg in the meantime: its own notes stay, and say what clients need.
func noteTrial(cfg *config.Config, all []serve.Announced, mine []note) ([]serve.Announced, error) {
	if served, ok := Noted(cfg, cfg.StateDir); ok {
		return served, nil
	}
	return all, writeNotes(cfg, trialFile, readNotesOf(cfg.StateDir, trialFile), mine)
}

// A note says what a [[serve]] has announced. ptgate writes it when it runs the
// [[serve]].
type note struct {
	serve.Announced
	File  string `json:"file"`  // the configuration
	State string `json:"state"` // the directory of the transport, with its keys
}

// The files are in the state directory, and may have notes of several configuration files. What was
// started for a moment is noted apart: it must not take the place of what a ptgate notes that starts
// at the same time.
const (
	notesFile = "announced.json"
	trialFile = "announced-trial.json"
)

// readNotes returns all notes: what has been served, and what was only started for a moment and was
// not served since, on that port or, with the same keys, on another one.
func readNotes(stateDir string) []note {
	all := readNotesOf(stateDir, notesFile)
	for _, n := range readNotesOf(stateDir, trialFile) {
		if !slices.ContainsFunc(all, func(o note) bool { return o.File == n.File && (o.same(n) || o.State == n.State) }) {
			all = append(all, n)
		}
	}
	return all
}

// readNotesOf returns no notes if they can't be read.
func readNotesOf(stateDir, file string) (notes []note) {
	b, err := durable.ReadFile(filepath.Join(stateDir, file))
	if err != nil || json.Unmarshal(b, &notes) != nil {
		return nil
	}
	return notes
}

// writeNotes writes a file of notes: mine, and those of notes that are of other
// configuration files. Notes of files that are gone are left out.
func writeNotes(cfg *config.Config, file string, notes, mine []note) error {
	all := slices.Clone(mine)
	for _, n := range notes {
		replaced := n.File == cfg.Path || slices.ContainsFunc(mine, n.same)
		if !replaced && exists(n.File) {
			all = append(all, n)
		}
	}
	b, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	name := filepath.Join(cfg.StateDir, file)
	if old, err := durable.ReadFile(name); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return durable.WriteFile(name, b, 0o600)
}

// same tells whether two notes are of one server. Clients know a server by its port.
func (n note) same(o note) bool { return n.Transport == o.Transport && n.Bind == o.Bind }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// note remembers what the transports announce, for `ptgate bridges` and for the next
// start. It warns if a bridge line has changed, because clients have the old line.
func (g *Gateway) note(cfg *config.Config, servers []*serve.Server) {
	notes := readNotes(cfg.StateDir)
	var mine []note
	for _, s := range servers {
		n := note{s.Announced(), cfg.Path, s.State()}
		for _, old := range notes {
			switch {
			case !n.same(old) || slices.Equal(n.Args, old.Args):
			case n.Old.IsZero():
				g.log.Warn("the bridge line has changed: give clients the new one of `ptgate bridges`", "serve", n.Transport, "port", s.Bind().Port())
			default:
				g.log.Info("the bridge line has changed, and old ones are good for a while: give clients the new one of `ptgate bridges` before they end",
					"serve", n.Transport, "port", s.Bind().Port(), "old_until", n.Old.UTC().Format(time.RFC3339))
			}
		}
		mine = append(mine, n)
	}
	if err := writeNotes(cfg, notesFile, notes, mine); err != nil {
		g.log.Warn("the bridge lines could not be noted", "error", err)
	}
}

// A serveState is a [[serve]] and the directory of its PT.
type serveState struct {
	cfg   *config.Serve
	state string
}

// serveStates gives each [[serve]] the directory where its transport keeps its keys.
// Clients know a server by its keys. So a [[serve]] keeps the directory that its
// address had before, wherever it stands in the file. One with a new address gets the
// first directory that nobody else uses now: if it has moved, that is its old one. If the
// keys are in the options, the transport gets a directory of its own for them. It follows from
// the keys alone: in it are also the keys of a rotation, which must not end because another
// option or the port changes.
func serveStates(cfg *config.Config, notes []note) []serveState {
	out := make([]serveState, len(cfg.Serve))
	bases := make([]string, len(cfg.Serve))
	taken := map[string]bool{}
	take := func(i int, dir string) {
		out[i], taken[dir] = serveState{cfg.Serve[i], dir}, true
	}
	for i, s := range cfg.Serve {
		bases[i] = s.PT.State
		if s.PT.State == "" {
			bases[i] = filepath.Join(cfg.StateDir, "server-"+s.Transport)
			if s.HasKeys() {
				sum := sha256.Sum256(fmt.Appendf(nil, "%q", s.Keys()))
				bases[i] += fmt.Sprintf("-keys-%x", sum[:4])
			}
		}
		for _, n := range notes {
			if n.Transport == s.Transport && n.Bind == s.Bind.String() && below(n.State, bases[i]) && !taken[n.State] {
				take(i, n.State)
				break
			}
		}
	}
	for _, n := range notes {
		if n.File != cfg.Path && exists(n.File) { // another server's
			taken[n.State] = true
		}
	}
	for i, base := range bases {
		dir := base
		for n := 2; out[i].cfg == nil && taken[dir]; n++ {
			dir = fmt.Sprintf("%s-%d", base, n)
		}
		if out[i].cfg == nil {
			take(i, dir)
		}
	}
	return out
}

// below tells whether dir is base, or one of the further ones, base-2 and so on.
func below(dir, base string) bool {
	rest, ok := strings.CutPrefix(dir, base)
	if !ok || rest == "" {
		return ok
	}
	n, err := strconv.Atoi(strings.TrimPrefix(rest, "-"))
	return err == nil && n > 1
}
