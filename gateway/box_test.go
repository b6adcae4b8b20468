package gateway

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// The key of a box is made once, for its user only.
func TestBoxKey(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, boxKeyFile)
	keys := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range keys { // several processes that start at the same time
		wg.Go(func() {
			key, err := boxKey(dir)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, k := range keys {
		if len(k) == 0 || !bytes.Equal(k, keys[0]) {
			t.Fatalf("two keys: %d and %d bytes", len(k), len(keys[0]))
		}
	}
	if info, err := os.Stat(name); err != nil || runtime.GOOS != "windows" && info.Mode() != fs.FileMode(0o600) {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	nowhere := t.TempDir()
	if err := os.Symlink(filepath.Join(nowhere, "none"), filepath.Join(nowhere, boxKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := boxKey(nowhere); err == nil {
		t.Error("a link to nowhere has a key")
	}
	if other, err := boxKey(t.TempDir()); err != nil || bytes.Equal(other, keys[0]) {
		t.Errorf("another directory has the same key, or %v", err)
	}
}

// A broken key is an error that says what to do. Nothing is written over it.
func TestBoxKeyBroken(t *testing.T) {
	for _, text := range []string{"", "\n", "xyz", strings.Repeat("0", 62), strings.Repeat("0", 66)} {
		dir := t.TempDir()
		name := filepath.Join(dir, boxKeyFile)
		os.WriteFile(name, []byte(text), 0o600)
		key, err := boxKey(dir)
		if key != nil || err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%q: %v", text, err)
		}
		if got, _ := os.ReadFile(name); string(got) != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	if _, err := boxKey(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a key without a directory")
	}
}
