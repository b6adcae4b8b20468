package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"ptgate/integration/ports"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// asks runs a command of its own for the file of c, to its end.
func (c *child) asks(command string, more ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	return c.in(c.Env, append([]string{command, "-c", "ptgate.toml"}, more...)...)
}

// The ptgate that runs a file is found whatever has become of the file, and says what
// is wrong with it.
func TestFileEditedSince(t *testing.T) {
	const wrong = "[[route\n"
	moved := strings.Replace(direct, `"state"`, `"elsewhere"`, 1)
	byDefault := strings.Replace(direct, "state_dir", "# state_dir", 1)
	for name, tt := range map[string]struct {
		before, after string // "": the file is gone
		env           []string
		complaint     string // of status
		refusal       string // of reload; "": it works
	}{
		"syntax error":                 {direct, direct + wrong, nil, "^ptgate.toml:11: .*\n# ptgate.toml has errors now", "(?s)reload refused.*/ptgate.toml:11: "},
		"syntax error, other place":    {direct, direct + wrong, []string{"XDG_STATE_HOME=/nonexistent"}, "^ptgate.toml:11: ", "reload refused"},
		"syntax error, default":        {byDefault, byDefault + wrong, nil, "^ptgate.toml:11: ", "reload refused"},
		"syntax error in state_dir":    {direct, strings.Replace(direct, `"state"`, `"state`, 1), nil, "^ptgate.toml:2: ", "reload refused"},
		"unknown key":                  {direct, direct + "sauce = 1\n", nil, "sauce", "(?s)reload refused.*sauce"},
		"state_dir edited":             {direct, moved, nil, "^# state_dir of ptgate.toml is now .*elsewhere: that takes a restart", "reload refused.*\n.*state_dir can't change from .*state to .*elsewhere"},
		"state_dir edited and errors":  {direct, moved + wrong, nil, "^ptgate.toml:11: ", "reload refused"},
		"state_dir added":              {byDefault, direct, nil, "^# state_dir of ptgate.toml is now", "state_dir can't change"},
		"state_dir taken out":          {direct, byDefault, nil, "^$", "state_dir can't change"},
		"gone":                         {direct, "", nil, "^ptgate.toml: can't open it", "reload refused.*\n.*can't open it"},
		"as it was":                    {direct, direct, nil, "^$", ""},
		"as it was, by another's name": {direct, direct, []string{"XDG_STATE_HOME=/nonexistent"}, "^$", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChild(t, "run", "-c", "ptgate.toml")
			c.write("ptgate.toml", tt.before)
			c.startReady()
			if tt.after == "" {
				os.Remove(filepath.Join(c.dir, "ptgate.toml"))
			} else {
				c.write("ptgate.toml", tt.after)
			}
			env := append(c.Env, tt.env...)
			for _, json := range [][]string{nil, {"--json"}} {
				stdout, stderr, code := c.in(env, append([]string{"status", "-c", "ptgate.toml"}, json...)...)
				if code != 0 || !strings.Contains(stdout, strconv.Itoa(c.Process.Pid)) || !regexp.MustCompile(tt.complaint).MatchString(stderr) {
					t.Errorf("status %v: exit code %d\n%s%s", json, code, stdout, stderr)
				}
			}
			_, stderr, code := c.in(env, "reload", "-c", "ptgate.toml")
			if want := tt.refusal; (code == 0) != (want == "") || !regexp.MustCompile(want).MatchString(stderr) {
				t.Errorf("reload: exit code %d\n%s", code, stderr)
			}
			c.signal(syscall.SIGTERM)
			c.succeeds()
			if left, err := filepath.Glob(filepath.Join(c.dir, "*", "control-*")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			if _, stderr, code := c.in(env, "status", "-c", "ptgate.toml"); code != 1 || tt.after != "" && !strings.Contains(stderr, "no ptgate runs this configuration") {
				t.Errorf("after the end: exit code %d, %s", code, stderr)
			}
		})
	}
}

// One that stops says so until its end, and takes no reload; one that is started
// meanwhile is found from then on, also when the first one has ended.
func TestStatusWhileStopping(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	first := newChild(t, "run", "-c", "ptgate.toml")
	front := ports.Free(t)
	first.write("ptgate.toml", strings.Replace(direct, "127.0.0.1:0", front, 1))
	first.startReady()
	client, err := net.Dial("tcp", front)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	at := ln.Addr().(*net.TCPAddr)
	if _, err := client.Write([]byte{5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, byte(at.Port >> 8), byte(at.Port)}); err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()

	status := func(state string, pid int) {
		t.Helper()
		want := fmt.Sprintf("%s *pid %d,", state, pid)
		if stdout, stderr, _ := first.asks("status"); !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("want %s: %s%s", want, stdout, stderr)
		}
	}
	status("running", first.Process.Pid)
	first.signal(syscall.SIGTERM)
	for { // the port is given up when it has begun to stop
		if c, err := net.Dial("tcp", front); err != nil {
			break
		} else {
			c.Close()
		}
	}
	status("stopping", first.Process.Pid)
	if _, stderr, code := first.asks("reload"); code != 1 || !strings.Contains(stderr, "stopping") {
		t.Errorf("reload while it stops: exit code %d, %s", code, stderr)
	}

	second := newChild(t, "run", "-c", "ptgate.toml")
	second.Dir, second.Env = first.dir, first.Env
	second.startReady()
	status("running", second.Process.Pid)
	far.Close()
	client.Close()
	first.succeeds()
	status("running", second.Process.Pid)
	second.signal(syscall.SIGTERM)
	second.succeeds()
	if left, err := filepath.Glob(filepath.Join(first.dir, "*", "control-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if second.out.Len() > 0 && strings.Contains(second.out.String(), "will not find") {
		t.Error(second.out.String())
	}
}

// The keys of a server that runs are not touched by `bridges` for what it does not
// serve yet.
func TestBridgesOfEditedFile(t *testing.T) {
	const text = "state_dir = \"state\"\n[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\npublic = \"192.0.2.1:443\"\n"
	c := newChild(t, "run", "-c", "ptgate.toml")
	c.write("ptgate.toml", text)
	c.startReady()
	keys := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(c.dir, "state", "server-obfs4", "obfs4_state.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := keys()
	if stdout, stderr, code := c.asks("bridges"); code != 0 || !strings.HasSuffix(stdout, " iat-mode=0\n") {
		t.Errorf("as it runs: exit code %d, %s%s", code, stdout, stderr)
	}
	c.write("ptgate.toml", text+"options = { iat-mode = \"1\" }\n")
	if stdout, stderr, code := c.asks("bridges"); code != 1 || !strings.Contains(stderr, "`ptgate reload -c ") || keys() != before {
		t.Errorf("edited: exit code %d, %s%s", code, stdout, stderr)
	}
	if _, stderr, code := c.asks("reload"); code != 0 {
		t.Fatal(stderr)
	}
	if stdout, stderr, code := c.asks("bridges"); code != 0 || !strings.HasSuffix(stdout, " iat-mode=1\n") {
		t.Errorf("reloaded: exit code %d, %s%s", code, stdout, stderr)
	}
	c.signal(syscall.SIGTERM)
	c.succeeds()
}
