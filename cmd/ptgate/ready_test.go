package main

import (
	"path/filepath"
	"strings"
	"testing"

	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
)

// What the log says to do next fits what runs.
func TestWhatNext(t *testing.T) {
	const gateway, server = "[[route]]\nto = \"*\"\nvia = \"direct\"\n", "[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:8443\"\n"
	for _, tt := range []struct {
		text      string
		addresses map[inbound.Front][]string
		want      string
	}{
		{"[listen]\nmixed = \"127.0.0.1:1080\"\n" + gateway, map[inbound.Front][]string{inbound.Mixed: {"127.0.0.1:1080", "127.0.0.1:8118"}},
			"try it:  curl -x socks5h://127.0.0.1:1080 https://example.com/; how it does:  ptgate status -c FILE"},
		{"[listen]\nsocks5 = [\"unix:/run/x\", \"[::1]:1\"]\n" + gateway, map[inbound.Front][]string{inbound.SOCKS5: {"unix:/run/x", "[::1]:1"}},
			"try it:  curl -x socks5h://[::1]:1 https://example.com/; how it does:  ptgate status -c FILE"},
		{"[listen]\nhttp = \"127.0.0.1:2\"\nusers = { a = \"b\" }\n" + gateway, map[inbound.Front][]string{inbound.HTTP: {"127.0.0.1:2"}},
			"try it:  curl -x http://USER:PASSWORD@127.0.0.1:2 https://example.com/; how it does:  ptgate status -c FILE"},
		{server, nil, "the lines for clients:  ptgate bridges -c FILE; how it does:  ptgate status -c FILE"},
		{server + "[exit]\nusers_file = \"users\"\n", nil, "invite somebody:  ptgate invite -c FILE NAME; how it does:  ptgate status -c FILE"},
	} {
		path := filepath.Join(t.TempDir(), "c.toml")
		cfg, problems := config.Check(path, []byte(tt.text), 0o600)
		if cfg == nil {
			t.Fatal(problems)
		}
		got := whatNext(cfg, func(f inbound.Front) []string { return tt.addresses[f] })
		if got = strings.ReplaceAll(got, path, "FILE"); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// The file that is found without -c is not named.
func TestDashC(t *testing.T) {
	t.Chdir(t.TempDir())
	path, err := filepath.Abs("c.toml")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PTGATE_CONFIG", "c.toml")
	if got := dashC(path); got != "" {
		t.Errorf("%q", got)
	}
	if got := dashC("other.toml"); got != " -c other.toml" {
		t.Errorf("%q", got)
	}
}
