package config

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("STATE_DIRECTORY", "/var/lib/elsewhere")
	state := filepath.Join(dir, "state")
	for text, named := range map[string]string{
		"state_dir = \"state\"\nnonsense = 1\n":                            state,
		"# mine\n  state_dir='state' # here\n[[route\n":                    state,
		"state_dir = \"state\"\n[[route]]\nto = \"unfinished\nvia = 1\n":   state,
		"nonsense\n\"state_dir\" = \"" + state + "\"\n":                    state,
		"state_dir = \"unfinished\n[log]\n":                                "",
		"state_dir = 1\n":                                                  "",
		"state_dir = 1\n[[route\n":                                         "",
		"[log]\nlevel = \"no such\"\n":                                     "",
		"[log\nlevel = \"info\"\n[other]\nstate_dir = \"of no meaning\"\n": "",
		"this is no TOML":                                                  "",
		"":                                                                 "",
	} {
		path := filepath.Join(dir, "ptgate.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		want := []string{"/var/lib/elsewhere", "/var/lib/ptgate"}
		if named != "" {
			want = append([]string{named}, want...)
		}
		l, err := Locate(path)
		if err != nil || l.Path != path || l.Named != named || !slices.Equal(l.StateDirs, want) {
			t.Errorf("%q: %+v, %v; want %s", text, l, err, want)
		}
	}
	t.Setenv("STATE_DIRECTORY", "/var/lib/ptgate")
	missing := filepath.Join(dir, "missing")
	if l, err := Locate(missing); err == nil || l.Path != missing || len(l.StateDirs) != 1 {
		t.Errorf("a file that is gone: %+v, %v", l, err)
	}
}
