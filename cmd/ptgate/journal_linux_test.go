package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// toJournal makes a file the child's standard error, and tells the child that it is the
// journal. read gives what is there.
func (c *child) toJournal() (read func() string) {
	c.t.Helper()
	f, err := os.Create(filepath.Join(c.t.TempDir(), "journal"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		c.t.Fatal(err)
	}
	c.Stderr = f
	st := info.Sys().(*syscall.Stat_t)
	c.Env = append(c.Env, fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino))
	return func() string {
		c.t.Helper()
		b, err := os.ReadFile(f.Name())
		if err != nil {
			c.t.Fatal(err)
		}
		return string(b)
	}
}

// The journal is a log, also for what is said before the log begins: as long as it is
// private, nothing of what a file quotes gets there.
func TestPrivateJournal(t *testing.T) {
	const hidden = "hidden.example"
	twice := direct + "[[route]]\nto = [\"" + hidden + "\", \"other.example\"]\nvia = \"direct\"\n"
	warned := strings.Replace(direct, `to = "*"`, `to = [".`+hidden+`", "www.`+hidden+`"]`, 1)
	open := "[log]\nprivate = false\n"
	refused := direct + "[[route]]\nto = \"http://" + hidden + "/\"\nvia = \"direct\"\n"

	t.Run("run", func(t *testing.T) {
		for _, tt := range []struct {
			text   string
			works  bool
			want   string
			hidden bool
		}{
			{warned, true, `<4>ptgate.toml:6: warning: route 1: "…" can never match`, true},
			{warned + open, true, `<4>ptgate.toml:6: warning: route 1: "www.hidden.example" can never match`, false},
			{refused, false, `<3>ptgate.toml:12: route 2: to: pattern "…": is a URL`, true},
			{twice, false, `<3>ptgate.toml:11: route 2: it can never match`, true},
		} {
			c := newChild(t, "run", "-c", "ptgate.toml")
			c.write("ptgate.toml", tt.text)
			read := c.toJournal()
			if tt.works {
				c.startReady()
				c.signal(syscall.SIGTERM)
			} else {
				c.start()
			}
			c.Wait()
			if got := read(); !strings.Contains(got, tt.want) || strings.Contains(got, hidden) == tt.hidden {
				t.Errorf("%s\n has in the journal\n%s", tt.text, got)
			}
		}
	})

	// The unit's ExecReload= is a process of its own, with the same journal.
	t.Run("reload", func(t *testing.T) {
		c := newChild(t, "run", "-c", "ptgate.toml")
		c.write("ptgate.toml", direct)
		c.startReady()
		c.write("ptgate.toml", refused)
		again := newChild(t, "reload", "-c", filepath.Join(c.dir, "ptgate.toml"))
		read := again.toJournal()
		again.Run()
		if got := read(); !strings.Contains(got, "reload refused") || !strings.Contains(got, `ptgate.toml:12: route 2: to: pattern "…": is a URL`) || strings.Contains(got, hidden) {
			t.Errorf("reload has in the journal\n%s", got)
		}
		if _, stderr, _ := c.in(c.Env, "reload", "-c", "ptgate.toml"); !strings.Contains(stderr, hidden) {
			t.Errorf("reload does not say to a person what is wrong: %s", stderr)
		}
		c.signal(syscall.SIGTERM)
		c.succeeds()
	})
}

// A log in JSON has nothing else in it, from its first line on.
func TestLogIsJSON(t *testing.T) {
	warned := strings.Replace(direct, `to = "*"`, `to = [".hidden.example", "www.hidden.example"]`, 1)
	for name, tt := range map[string]struct {
		text  string
		works bool
		want  string
	}{
		"a warning":               {warned, true, `ptgate.toml:6: warning: route 1: \"…\" can never match`},
		"what can't be done here": {direct + "[[serve]]\ntransport = \"obfs4\"\nbind = \"192.0.2.1:4443\"\n", false, "ptgate.toml:11: warning: serve 1: bind: "},
	} {
		c := newChild(t, "run", "-c", "ptgate.toml")
		c.write("ptgate.toml", tt.text+"[log]\nformat = \"json\"\n")
		if tt.works {
			c.startReady()
			c.signal(syscall.SIGTERM)
		} else {
			c.start()
		}
		c.Wait()
		out := c.out.String()
		for line := range strings.Lines(out) {
			if !json.Valid([]byte(line)) {
				t.Errorf("%s: no JSON: %s", name, line)
			}
		}
		if !strings.Contains(out, tt.want) || strings.Contains(out, "hidden") {
			t.Errorf("%s: no %q, or too much, in\n%s", name, tt.want, out)
		}
	}
}
