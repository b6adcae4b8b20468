//go:build unix

package durable

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A file that root writes into another user's directory is that user's to read, and so are
// directories that are made for it. What somebody has put there is not given away.
func TestWriteOwned(t *testing.T) {
	dir := t.TempDir()
	uid := os.Getuid()
	if uid == 0 { // nobody else can give files away
		uid = 1234
		if err := os.Chown(dir, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	owned := func(path string, perm os.FileMode) {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != uid || info.Mode().Perm() != perm {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	file := filepath.Join(dir, "a", "b", "file")
	for _, text := range []string{"one", "two"} {
		if err := WriteOwned(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		holds(t, file, text, 0o600)
		owned(file, 0o600)
		owned(filepath.Dir(file), 0o700)
		owned(filepath.Dir(filepath.Dir(file)), 0o700)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left over: %q", got)
	}

	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("of somebody"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, file); err != nil {
		t.Fatal(err)
	}
	if err := WriteOwned(file, []byte("three"), 0o600); err != nil {
		t.Fatal(err)
	}
	holds(t, target, "of somebody", 0o644)
	owned(file, 0o600)
	if info, err := os.Stat(target); err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
		t.Errorf("%v, %v", info, err)
	}
}
