package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
	"ptgate/gateway/session"
	"ptgate/gateway/ways"
)

// A bridge that the user wrote may be down, and everything works all the same by a way that its
// server has told of. explain and probe say so.
func TestTold(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	dir := t.TempDir()
	path := filepath.Join(dir, "client.toml")
	args := " cert=" + strings.Repeat("A", 70) + " iat-mode=0"
	text := "state_dir = \"state\"\n[bridge.far]\nline = \"obfs4 " + closed + args + "\"\n[[route]]\nto = \"*\"\nvia = \"far\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Load(path)
	if cfg == nil {
		t.Fatal(problems)
	}
	says := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(args)
		_ = root.ExecuteContext(t.Context()) // the bridge fails
		return out.String()
	}
	if text := says("explain", "-c", path, "example.com") + says("probe", "-c", path); strings.Contains(text, "told") {
		t.Errorf("nothing is told, and: %s", text)
	}

	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	bridges.NoteBox(cfg, cfg.Bridges[0], session.Box(pub))
	list := ways.List{Serial: 1, Lines: []string{"obfs4 192.0.2.3:443" + args}}
	told, err := json.Marshal(map[string]any{hex.EncodeToString(pub): map[string]any{"text": string(list.Sign(key)), "heard": time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.StateDir, "ways-"+control.ID(cfg.Path)+".json"), told, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"explain", "-c", path, "example.com"}, "; behind that, 1 more way that the server of far has told of\n"},
		{[]string{"explain", "-c", path, "example.com", "--json"}, `"told": 1`},
		{[]string{"probe", "-c", path}, "told:   its server has told of 1 more way, which the running ptgate takes"},
		{[]string{"probe", "-c", path, "--json"}, `"told": 1`},
	} {
		if text := says(tt.args...); !strings.Contains(text, tt.want) {
			t.Errorf("%q says %s", tt.args, text)
		}
	}
}
