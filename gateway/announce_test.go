package gateway

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ptgate/adapter"
	"ptgate/gateway/config"
	"ptgate/gateway/serve"
)

// What clients know a server by stays with its address, whatever the file looks
// like and whoever else keeps keys in the same state directory.
func TestServeStates(t *testing.T) {
	dir := t.TempDir()
	mine, other, gone := filepath.Join(dir, "mine.toml"), filepath.Join(dir, "other.toml"), filepath.Join(dir, "gone.toml")
	for _, f := range []string{mine, other} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(file, port, state string) note {
		return note{serve.Announced{Transport: "obfs4", Bind: "127.0.0.1:" + port}, file, filepath.Join(dir, state)}
	}
	for _, tt := range []struct {
		name  string
		ports []string
		notes []note
		want  []string
	}{
		{"new", []string{"1", "2"}, nil, []string{"server-obfs4", "server-obfs4-2"}},
		{"again", []string{"1", "2"}, []note{at(mine, "1", "server-obfs4"), at(mine, "2", "server-obfs4-2")}, []string{"server-obfs4", "server-obfs4-2"}},
		{"another order", []string{"2", "1"}, []note{at(mine, "1", "server-obfs4"), at(mine, "2", "server-obfs4-2")}, []string{"server-obfs4-2", "server-obfs4"}},
		{"one more, above", []string{"3", "1"}, []note{at(mine, "1", "server-obfs4")}, []string{"server-obfs4-2", "server-obfs4"}},
		{"the first taken away", []string{"2"}, []note{at(mine, "1", "server-obfs4"), at(mine, "2", "server-obfs4-2")}, []string{"server-obfs4-2"}},
		{"moved to another port", []string{"9"}, []note{at(mine, "1", "server-obfs4")}, []string{"server-obfs4"}},
		{"beside another file's", []string{"1"}, []note{at(other, "2", "server-obfs4")}, []string{"server-obfs4-2"}},
		{"another file's own", []string{"2"}, []note{at(other, "2", "server-obfs4")}, []string{"server-obfs4"}},
		{"after a file that is gone", []string{"1"}, []note{at(gone, "2", "server-obfs4")}, []string{"server-obfs4"}},
		{"of somewhere else", []string{"1"}, []note{{serve.Announced{Transport: "obfs4", Bind: "127.0.0.1:1"}, mine, "/elsewhere/server-obfs4"}}, []string{"server-obfs4"}},
		{"after options with keys", []string{"1"}, []note{at(mine, "1", "server-obfs4-keys-01234567")}, []string{"server-obfs4"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := &config.Config{Path: mine, StateDir: dir}
			for _, p := range tt.ports {
				cfg.Serve = append(cfg.Serve, &config.Serve{Transport: "obfs4", Bind: netip.MustParseAddrPort("127.0.0.1:" + p), PT: &config.PT{}})
			}
			var got []string
			for _, s := range serveStates(cfg, tt.notes) {
				got = append(got, filepath.Base(s.state))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}

	// Keys of the options never get into a directory with others.
	keys := adapter.Args{{Key: "private-key", Value: "x"}}
	cfg := &config.Config{Path: mine, StateDir: dir}
	for _, s := range []*config.Serve{{Options: keys}, {}, {Options: keys}} {
		s.Transport, s.PT = "obfs4", &config.PT{}
		s.Bind = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(len(cfg.Serve)+1))
		cfg.Serve = append(cfg.Serve, s)
	}
	states := serveStates(cfg, nil)
	if a, b, c := states[0].state, states[1].state, states[2].state; a == b || a == c || b == c || filepath.Base(b) != "server-obfs4" {
		t.Errorf("with keys: %q, %q, %q", a, b, c)
	}

	// Where they are does not depend on other options, or on the place: the keys of a rotation
	// are beside them. One that stays keeps its own, also if another one has the same keys.
	with := func(port uint16, mode string) *config.Serve {
		return &config.Serve{Transport: "obfs4", PT: &config.PT{}, Bind: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port),
			Options: adapter.Args{{Key: "iat-mode", Value: mode}, keys[0]}}
	}
	before := serveStates(&config.Config{Path: mine, StateDir: dir, Serve: []*config.Serve{with(1, "0"), with(2, "0")}}, nil)
	var notes []note
	for _, s := range before {
		notes = append(notes, note{serve.Announced{Transport: "obfs4", Bind: s.cfg.Bind.String()}, mine, s.state})
	}
	for _, tt := range []struct {
		name  string
		serve *config.Serve
		notes []note
		want  string
	}{
		{"as before", with(1, "0"), notes, before[0].state},
		{"the second", with(2, "0"), notes, before[1].state},
		{"another mode", with(1, "1"), notes, before[0].state},
		{"another port", with(3, "0"), notes[:1], before[0].state},
		{"another mode, without notes", with(1, "1"), nil, before[0].state},
	} {
		cfg := &config.Config{Path: mine, StateDir: dir, Serve: []*config.Serve{tt.serve}}
		if got := serveStates(cfg, tt.notes)[0].state; got != tt.want {
			t.Errorf("with keys, %s: %q, want %q", tt.name, got, tt.want)
		}
	}

	// Notes of several files are kept.
	if err := writeNotes(cfg, notesFile, []note{at(mine, "8", "a"), at(other, "7", "b"), at(gone, "6", "c")}, []note{at(mine, "5", "d")}); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, n := range readNotes(dir) {
		left = append(left, n.Bind)
	}
	if want := []string{"127.0.0.1:5", "127.0.0.1:7"}; !slices.Equal(left, want) {
		t.Errorf("notes of %q are left, want %q", left, want)
	}
}

// A transport that is started for a moment, to learn a bridge line, may be so while a ptgate
// begins to serve the same file. The notes of that one stay: without them nobody could ask it
// for its lines any more.
func TestTrialBesideStart(t *testing.T) {
	dir := t.TempDir()
	cfg := &config.Config{Path: filepath.Join(dir, "server.toml"), StateDir: dir, Serve: []*config.Serve{{
		Transport: "obfs4", PT: &config.PT{}, Bind: netip.MustParseAddrPort("127.0.0.1:1"),
	}}}
	state := filepath.Join(dir, "server-obfs4")
	a := serve.Announced{Transport: "obfs4", Bind: "127.0.0.1:1", Args: adapter.Args{{Key: "cert", Value: "x"}}}
	trial := []note{{a, cfg.Path, state}}
	if all, err := noteTrial(cfg, []serve.Announced{a}, trial); err != nil || len(all) != 1 {
		t.Fatalf("with nobody beside it: %v, %v", all, err)
	}
	if _, ok := Noted(cfg, dir); ok || len(readNotes(dir)) != 1 {
		t.Fatal("what was not served is taken for it, or is not noted")
	}
	a.Key = serve.Key(cfg.Serve[0], state)
	served := []note{{a, cfg.Path, state}}
	if err := writeNotes(cfg, notesFile, readNotes(dir), served); err != nil {
		t.Fatal(err)
	}
	if all, err := noteTrial(cfg, []serve.Announced{{}}, trial); err != nil || len(all) != 1 || all[0].Key != a.Key {
		t.Errorf("beside a start: %v, %v", all, err)
	}
	// The server may write its notes between any two steps of the other one.
	for _, name := range []string{notesFile, trialFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	looked := readNotes(dir)
	if _, err := noteTrial(cfg, []serve.Announced{a}, trial); err != nil {
		t.Fatal(err)
	}
	if err := writeNotes(cfg, notesFile, looked, served); err != nil {
		t.Fatal(err)
	}
	if err := writeNotes(cfg, trialFile, nil, trial); err != nil {
		t.Fatal(err)
	}
	if _, ok := Noted(cfg, dir); !ok || len(readNotes(dir)) != 1 {
		t.Errorf("the notes of what is served are gone: %v", readNotes(dir))
	}
}

// A server was started for a moment on one port, and serves on another one since. One more on the
// first port does not take its keys: clients know it by them.
func TestTrialBeforeMove(t *testing.T) {
	dir := t.TempDir()
	on := func(ports ...uint16) *config.Config {
		cfg := &config.Config{Path: filepath.Join(dir, "server.toml"), StateDir: dir}
		for _, p := range ports {
			cfg.Serve = append(cfg.Serve, &config.Serve{Transport: "obfs4", PT: &config.PT{}, Bind: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p)})
		}
		return cfg
	}
	noted := func(cfg *config.Config, file string) {
		var mine []note
		for _, s := range serveStates(cfg, readNotes(dir)) {
			mine = append(mine, note{serve.Announced{Transport: "obfs4", Bind: s.cfg.Bind.String()}, cfg.Path, s.state})
		}
		if err := writeNotes(cfg, file, readNotesOf(dir, file), mine); err != nil {
			t.Fatal(err)
		}
	}
	noted(on(1), trialFile)
	noted(on(1), notesFile)
	noted(on(2), notesFile)
	states := serveStates(on(1, 2), readNotes(dir))
	if got, want := states[1].state, filepath.Join(dir, "server-obfs4"); got != want || states[0].state == want {
		t.Errorf("the one that has moved has its keys in %s, and the new one in %s", got, states[0].state)
	}
}
