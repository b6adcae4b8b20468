//go:build integration

package builtin_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ptgate/adapter"
)

// A server on a full disk says so, leaves nothing that is in its way later, and has
// the same keys ever after, whether the disk is full again or not.
func TestFullDisk(t *testing.T) {
	const inside = "PTGATE_TEST_MOUNTS"
	if os.Getenv(inside) == "" {
		// Once more, where mounts are nobody else's.
		cmd := exec.Command("unshare", "--mount", os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=own")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	state := t.TempDir()
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=32k,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(state, 0) })

	filler := filepath.Join(state, "filler")
	fill := func() {
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the disk does not fill: %v", err)
		}
	}
	start := func() (cert string, err error) {
		s := adapter.NewServer(adapter.ServerConfig{
			Config:  adapter.Config{Exec: []string{os.Args[0]}, Env: []string{role + "=pt"}, StateDir: state},
			Forward: "127.0.0.1:1",
		})
		if err := s.AddTransport("obfs4", "127.0.0.1:0", nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); err != nil {
			return "", err
		}
		defer s.Close()
		m, err := s.Method("obfs4")
		cert, _ = m.Args.Get("cert")
		return cert, err
	}

	fill()
	if _, err := start(); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	first, err := start()
	if err != nil || first == "" {
		t.Fatalf("with space again: cert %q, %v", first, err)
	}
	if err := os.Remove(filepath.Join(state, "obfs4_bridgeline.txt")); err != nil {
		t.Fatal(err)
	}
	fill()
	if cert, err := start(); err != nil || cert != first {
		t.Errorf("full again: cert %q, %v; before %q", cert, err, first)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if cert, err := start(); err != nil || cert != first {
		t.Errorf("with space again: cert %q, %v; before %q", cert, err, first)
	}
	left, err := filepath.Glob(filepath.Join(state, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
}
