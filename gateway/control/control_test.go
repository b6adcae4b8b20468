package control_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"ptgate/gateway/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAsk(t *testing.T) {
	path := control.Path(t.TempDir(), "/etc/ptgate/ptgate.toml")
	if _, err := control.Status(t.Context(), path); !errors.Is(err, control.ErrNotRunning) {
		t.Fatalf("nobody there: %v", err)
	}
	var bad error
	s, err := control.Serve(path, func() any { return map[string]int{"answer": 42} }, func() error { return bad })
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", fi.Mode(), err)
	}
	if b, err := control.Status(t.Context(), path); err != nil || string(b) != "{\n  \"answer\": 42\n}\n" {
		t.Errorf("status %q, %v", b, err)
	}
	if err := control.Reload(t.Context(), path); err != nil {
		t.Error(err)
	}
	bad = errors.New("ptgate.toml:3: no")
	if err := control.Reload(t.Context(), path); err == nil || err.Error() != bad.Error() {
		t.Errorf("reload: %v", err)
	}
	if _, err := control.Serve(path, nil, nil); err == nil {
		t.Error("a second server took the socket")
	}
	s.Close()
	if _, err := control.Status(t.Context(), path); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// A killed process leaves its socket behind.
func TestLeftOver(t *testing.T) {
	path := control.Path(t.TempDir(), "x")
	os.Symlink("/nonexistent", path+".other")
	s, err := control.Serve(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".kept"); err != nil { // Close removes path only
		t.Fatal(err)
	}
	s.Close()
	os.Rename(path+".kept", path)
	s, err = control.Serve(path, func() any { return 1 }, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func Example() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "control.sock")
	s, err := control.Serve(path, func() any { return "fine" }, func() error { return nil })
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	b, err := control.Status(context.Background(), path)
	fmt.Printf("%s%v\n", b, err)
	// Output:
	// "fine"
	// <nil>
}
