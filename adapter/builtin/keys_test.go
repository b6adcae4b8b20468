package builtin

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"ptgate/adapter"
)

// obfs4Listen listens once on state and gives the args for clients.
func obfs4Listen(state string, options ...adapter.Arg) (adapter.Args, error) {
	l, err := Listen(ServerConfig{Transport: nameObfs4, StateDir: state, Bind: "127.0.0.1:0", Options: options})
	if err != nil {
		return nil, err
	}
	return l.Args(), l.Close()
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Damaged keys stay where they are, and the message tells what to do.
func TestObfs4KeysDamaged(t *testing.T) {
	whole := t.TempDir()
	if _, err := obfs4Listen(whole); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(whole, obfs4State))
	if err != nil {
		t.Fatal(err)
	}
	without := func(key string) string {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		delete(m, key)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, tt := range map[string]struct{ text, want string }{
		"empty":      {"", "is empty"},
		"cut":        {string(good[:len(good)/2]), "no valid JSON"},
		"other JSON": {"[1]", "no valid JSON"},
		"no ID":      {without("node-id"), "node-id"},
		"no key":     {without("private-key"), "private-key"},
		"no seed":    {without("drbg-seed"), "drbg-seed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, obfs4State)
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := obfs4Listen(dir)
			for _, want := range []string{"damaged", tt.want, path, "remove the file"} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != tt.text {
				t.Errorf("the file now has %q, %v", got, err)
			}
			if got := files(t, dir); !slices.Equal(got, []string{obfs4State}) {
				t.Errorf("left over: %q", got)
			}
		})
	}
	t.Run("a link to nowhere", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, obfs4State)); err != nil {
			t.Fatal(err)
		}
		if _, err := obfs4Listen(dir); err == nil || !strings.Contains(err.Error(), "can't be kept") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, obfs4State), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := obfs4Listen(dir); err == nil || !strings.Contains(err.Error(), "can't be read") {
			t.Errorf("got %v", err)
		}
	})
}

// Keys that are there are never written again, whatever else changes.
func TestObfs4KeysAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	first, err := obfs4Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, obfs4State)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var spaced bytes.Buffer
	if err := json.Indent(&spaced, text, "", "  "); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, spaced.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	args, err := obfs4Listen(dir, adapter.Arg{Key: "iat-mode", Value: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if args[0] != first[0] || args[1].Value != "1" {
		t.Errorf("args %v, before %v", args, first)
	}
	line, err := os.ReadFile(filepath.Join(dir, obfs4BridgeLine))
	if err != nil || !bytes.Contains(line, []byte(args[0].Value+" iat-mode=1")) {
		t.Errorf("the bridge line is %s, %v", line, err)
	}
	options, pairArgs, err := pairObfs4("")
	if err != nil {
		t.Fatal(err)
	}
	if args, err = obfs4Listen(dir, options...); err != nil || args[0] != pairArgs[0] {
		t.Errorf("with keys of its own: %v, %v; want %v", args, err, pairArgs)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, spaced.Bytes()) {
		t.Errorf("the keys were written again: %s, %v", got, err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{obfs4BridgeLine, obfs4State}) {
		t.Errorf("left over: %q", got)
	}
}

// Several processes may look for keys at the same time, such as a server that starts, and a command
// that prints its bridge line. All of them have the keys that are kept.
func TestObfs4KeysAtOnce(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		certs := make([]adapter.Arg, 8)
		var wg sync.WaitGroup
		for i := range certs {
			wg.Go(func() {
				args, err := obfs4Listen(dir)
				if err != nil {
					t.Error(err)
					return
				}
				certs[i] = args[0]
			})
		}
		wg.Wait()
		kept, err := obfs4Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range certs {
			if c != kept[0] {
				t.Errorf("one has %v, and %v is kept", c, kept[0])
			}
		}
		if got := files(t, dir); !slices.Equal(got, []string{obfs4BridgeLine, obfs4State}) {
			t.Errorf("left over: %q", got)
		}
	}
}

// Keys that the options give are not kept beside them.
func TestObfs4KeysOfOptions(t *testing.T) {
	options, args, err := pairObfs4("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if got, err := obfs4Listen(dir, options...); err != nil || got[0] != args[0] {
		t.Errorf("got %v, %v; want %v", got, err, args)
	}
	if got := files(t, dir); !slices.Equal(got, []string{obfs4BridgeLine}) {
		t.Errorf("files: %q", got)
	}
	if _, err := obfs4Listen(dir, options[1]); err == nil {
		t.Error("one key of three is enough")
	}
}
