package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func holds(t *testing.T, path, text string, perm fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != text {
		t.Errorf("%s has %q, %v", path, got, err)
	}
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode() != perm {
		t.Errorf("%s has mode %v, want %v", path, info.Mode(), perm)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keys")
	for i, perm := range []fs.FileMode{0o600, 0o644, 0o600} {
		text := fmt.Sprint("text", i)
		if err := WriteFile(path, []byte(text), perm); err != nil {
			t.Fatal(err)
		}
		holds(t, path, text, perm)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"keys"}) {
		t.Errorf("left over: %q", got)
	}
}

// What fails leaves everything as it was, and nothing beside it.
func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "directory")
	if err := os.MkdirAll(filepath.Join(inTheWay, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(inTheWay, []byte("text"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if err := WriteFile(filepath.Join(dir, "none", "keys"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), ".keys.") {
		t.Errorf("no directory: %v", err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"directory"}) {
		t.Errorf("left over: %q", got)
	}
}

// Nothing is written through a link that somebody has put in the file's place.
func TestWriteFileLink(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "keys")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + ".new"} {
		if err := os.Symlink(victim, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	holds(t, victim, "precious", 0o600)
	holds(t, path, "text", 0o600)
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
	other := filepath.Join(dir, "other")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), other); err != nil {
		t.Fatal(err)
	}
	if err := WriteNew(other, []byte("text"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a link counts as no file: %v", err)
	}
}

func TestWriteNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if err := WriteNew(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteNew(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file was overwritten: %v", err)
	}
	holds(t, path, "first", 0o600)
}

// Whoever was killed in the middle of a write leaves a part, with secrets in it. The next write of
// the same file removes it, and nothing else: neither a part that somebody may be writing now, nor
// what has another name.
func TestOldParts(t *testing.T) {
	for write, f := range map[string]func(name string) error{
		"WriteFile":  func(name string) error { return WriteFile(name, []byte("text"), 0o600) },
		"WriteNew":   func(name string) error { return WriteNew(name, []byte("text"), 0o600) },
		"WriteOwned": func(name string) error { return WriteOwned(name, []byte("text"), 0o600) },
	} {
		dir := t.TempDir()
		stays := []string{".keys.2.part", ".keys.2024", ".keys.x1.part", ".keys..part", "keys.3.part", ".other.4.part", ".keys.bak.5.part"}
		for _, name := range append(stays, ".keys.1.part", ".keys.1234567890.part") {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			if name == stays[0] {
				continue // it is new
			}
			old := time.Now().Add(-2 * time.Hour)
			if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(dir, ".keys.6.part"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := f(filepath.Join(dir, "keys")); err != nil {
			t.Fatal(err)
		}
		want := append(stays, "keys", ".keys.6.part")
		slices.Sort(want)
		if got := names(t, dir); !slices.Equal(got, want) {
			t.Errorf("%s: left are %q, want %q", write, got, want)
		}
	}
}

// A file that somebody has made huge does not fill the memory.
func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if _, err := ReadFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := readFile(path, 4); err != nil || string(text) != "text" {
		t.Errorf("one that just fits: %q, %v", text, err)
	}
	if text, err := readFile(path, 3); err == nil || len(text) > 0 {
		t.Errorf("one byte too many: %q, %v", text, err)
	}
	if runtime.GOOS != "windows" {
		if text, err := readFile(os.DevNull, 0); err != nil || len(text) > 0 {
			t.Errorf("nothing: %q, %v", text, err)
		}
	}
	if err := os.Truncate(path, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("a huge one: %v", err)
	}
}

// Package adapter/builtin uses this one, which may use the standard library only.
func TestStandardLibraryOnly(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); !slices.Equal(got, []string{"ptgate/adapter/durable"}) {
		t.Errorf("depends on %v", got)
	}
}

func ExampleWriteFile() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "state.json")
	if err := WriteFile(path, []byte("{}"), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	text, err := os.ReadFile(path)
	fmt.Println(string(text), err)
	// Output: {} <nil>
}
