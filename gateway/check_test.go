//go:build unix

package gateway_test

import (
	"cmp"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"ptgate/gateway"
)

// Check finds what Run would stumble over, and leaves nothing behind.
func TestCheck(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const route = "[[route]]\nto = \"*\"\nvia = \"direct\"\n"
	for _, tt := range []struct {
		name    string
		mode    os.FileMode // of the state directory; 0: there is none
		owner   int         // of it
		as      int         // who checks
		text    string
		running bool
		want    string // a regular expression; "": nothing is found
	}{
		{"all is well", 0o700, 0, 0, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route, false, ""},
		{"no directory yet", 0, 0, 0, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route, false, ""},
		{"others can write", 0o777, 0, 0, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route, false,
			`^c.toml:1: state_dir: /\S+: others can write it \(mode 0777\), and so choose what ptgate does: chmod go-w /\S+$`},
		{"another's", 0o700, 65533, 65534, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route, false,
			`^c.toml:1: state_dir: /\S+: it belongs to user 65533`},
		{"root's", 0o755, 0, 65534, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route, false,
			`^c.toml:1: warning: state_dir: /\S+: user 65534, as whom this runs, can't write into it: chown 65534 /\S+, or name another directory$`},
		{"root's, of a server", 0o755, 0, 65534, "[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n", false,
			`^c.toml:1: state_dir: /\S+: user 65534, as whom this runs, can't write into it`},
		{"no way to make it", 0, 0, 65534, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route, false,
			`^c.toml:1: state_dir: /\S+ is not there, and user 65534, as whom this runs, can't make it in /\S+: as root: install -d -o 65534 -m 700 /\S+; or`},
		{"a state that is a file", 0o700, 0, 0, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route + "[pt.it]\ntransports = [\"obfs4\"]\nstate = \"c.toml\"\n", false,
			`^c.toml:7: pt "it": state: /\S+/c.toml is not a directory: name one, or take it away$`},
		{"a port that is taken", 0o700, 0, 0, "[listen]\nmixed = \"" + taken.Addr().String() + "\"\n" + route, false,
			`^c.toml:2: warning: \[listen\]: at the moment: listen tcp .*: address already in use`},
		{"one for the status page", 0o700, 0, 0, "[listen]\nmixed = \"127.0.0.1:0\"\n" + route + "[admin]\nlisten = \"" + taken.Addr().String() + "\"\n", false,
			`^c.toml:7: warning: \[admin\]: at the moment: listen tcp .*: address already in use`},
		{"and it is its own", 0o700, 0, 0, "[listen]\nmixed = \"" + taken.Addr().String() + "\"\n" + route, true, ""},
		{"an address of another machine", 0o700, 0, 0, "[[serve]]\ntransport = \"obfs4\"\nbind = \"192.0.2.1:443\"\n", false,
			`^c.toml:2: warning: serve 1: bind: at the moment: listen tcp 192.0.2.1:443: `},
		{"no directory for a socket", 0o700, 0, 0, "[listen]\nmixed = \"unix:/nonexistent/proxy.sock\"\n" + route, false,
			`^c.toml:2: warning: \[listen\]: unix:/nonexistent/proxy.sock: `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.as != 0 && os.Getuid() != 0 {
				return // only root can be somebody else
			}
			dir := t.TempDir()
			for _, d := range []string{dir, filepath.Dir(dir)} {
				if err := os.Chmod(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			path, state := filepath.Join(dir, "c.toml"), filepath.Join(dir, "state")
			cfg := loadText(t, path, tt.text)
			cfg.StateDir, cfg.StateLine = state, 1
			if tt.mode != 0 {
				for _, err := range []error{os.Mkdir(state, 0o700), os.Chmod(state, tt.mode), os.Chown(state, tt.owner, -1)} {
					if err != nil && tt.owner != 0 {
						t.Fatal(err)
					}
				}
			}
			if err := syscall.Seteuid(cmp.Or(tt.as, os.Geteuid())); err != nil {
				t.Fatal(err)
			}
			problems := gateway.Check(cfg, "c.toml", tt.running)
			if err := syscall.Seteuid(os.Getuid()); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range problems {
				got = append(got, p.String())
			}
			if text := strings.Join(got, "\n"); (text == "") != (tt.want == "") || !regexp.MustCompile(tt.want).MatchString(text) {
				t.Errorf("found %q, want %s", text, tt.want)
			}
			if _, err := os.Stat(state); tt.mode == 0 && err == nil {
				t.Error("it has made the directory")
			}
		})
	}
}

// Check finds keys in the state directory that Run can't use, with the line of their server.
func TestCheckFindsDamagedKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	cfg := loadText(t, path, "[[serve]]\ntransport = \"webtunnel\"\nbind = \"127.0.0.1:0\"\noptions = { url = \"https://example.com/x\" }\n"+
		"[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n")
	if got := gateway.Check(cfg, path, false); len(got) > 0 {
		t.Errorf("no keys yet: %v", got)
	}
	for file, want := range map[string]struct {
		line int
		says string
	}{"server-obfs4/obfs4_state.json": {6, "obfs4: its keys: "}, "server-webtunnel/webtunnel_rotation.json": {2, "webtunnel: its keys: "}} {
		file = filepath.Join(cfg.StateDir, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, running := range []bool{false, true} {
			got := gateway.Check(cfg, path, running)
			if len(got) != 1 || got[0].Line != want.line || got[0].Warning || !strings.Contains(got[0].Message, want.says) || !strings.Contains(got[0].Message, file) {
				t.Errorf("%v, want line %d, %s%s", got, want.line, want.says, file)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
