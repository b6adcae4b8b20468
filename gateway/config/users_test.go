package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ptgate/gateway/credentials"
)

func TestUsersFile(t *testing.T) {
	dir := t.TempDir()
	file, list := filepath.Join(dir, "server.toml"), filepath.Join(dir, "users")
	text := "[[serve]]\ntransport = \"obfs4\"\nbind = \"192.0.2.1:443\"\n[exit]\nusers_file = \"users\"\nusers = { old = \"password\" }\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(want string) *Config {
		t.Helper()
		ld := testLoader
		ld.Check = nil // the real one
		cfg, problems := ld.Load(file)
		var texts []string
		for _, p := range problems {
			texts = append(texts, p.String())
		}
		if got := strings.Join(texts, "\n"); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("problems: %s, want %q", got, want)
		}
		return cfg
	}
	if cfg := load("there is no such file yet"); cfg == nil || cfg.Exit.UsersFile != list || !cfg.Exit.AsksUsers() {
		t.Errorf("without the file: %+v", cfg)
	}
	digest := credentials.Digest("secret")
	for _, c := range []struct {
		list  string
		mode  os.FileMode
		want  string
		users int
	}{
		{"ann " + digest + "\nbob " + digest + " streams=2\n", 0o600, "", 2},
		{"ann " + digest, 0o640, "others can read who the users are (mode 0640)", 1},
		{"ann " + digest, 0o606, "others can write it", -1},
		{"# all\nann secret", 0o600, list + ":2: user \"ann\"", -1},
		{"old " + digest, 0o600, list + ":1: the user \"old\" is one of [exit] users, too", -1},
		{strings.Repeat("#\n", maxFile/2+1), 0o600, list + ": is larger than 16 MiB: take those out whose time is over", -1},
		{"", 0o600, "", 0},
	} {
		if err := os.WriteFile(list, []byte(c.list), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(list, c.mode); err != nil {
			t.Fatal(err)
		}
		cfg := load(c.want)
		if (cfg == nil) != (c.users < 0) || cfg != nil && len(cfg.Exit.FileUsers) != c.users {
			t.Errorf("%q: %+v", c.list, cfg)
		}
	}
}
