//go:build integration

// Package harness is what the packages of integration tests share: the program that is
// tested, processes that run beside a test and what they write, network namespaces,
// certificates, and waiting for what no event tells. What only one of the packages needs
// stays there.
package harness

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Patience bounds every wait for something that ought to happen.
const Patience = 60 * time.Second

// Main is for a package's TestMain: it runs the tests with the program in *ptgate, and
// returns the exit code.
func Main(m *testing.M, ptgate *string) int {
	dir, err := os.MkdirTemp("", "ptgate-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if *ptgate, err = program(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Program is the path of ptgate, for a package where few tests need it.
func Program(t testing.TB) string {
	t.Helper()
	path, err := program(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// program builds ptgate in dir, or takes the one that PTGATE_TEST_PROGRAM names.
func program(dir string) (path string, err error) {
	if path = os.Getenv("PTGATE_TEST_PROGRAM"); path != "" {
		return path, nil
	}
	path = filepath.Join(dir, "ptgate")
	args := []string{"build", "-p", "2", "-o", path}
	if os.Getenv("PTGATE_TEST_RACE") != "" {
		args = append(args, "-race") // by hand: slower, and a log with a race is an error
	}
	if out, err := exec.Command("go", append(args, "ptgate/cmd/ptgate")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build ptgate: %w\n%s", err, out)
	}
	return path, nil
}

// Scratch makes a directory with a short name: paths of sockets are limited.
func Scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ptg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Write writes a file into dir, readable for its owner alone.
func Write(t testing.TB, dir, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Eventually tells whether ok becomes true within limit. It is for what no event tells.
func Eventually(limit time.Duration, ok func() bool) bool {
	end := time.NewTimer(limit)
	defer end.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		if ok() {
			return true
		}
		select {
		case <-look.C:
		case <-end.C:
			return ok()
		}
	}
}

// Listening waits until something accepts connections at addr: for programs that do not
// tell when they are ready. Until then the kernel refuses at once.
func Listening(t testing.TB, addr string) {
	t.Helper()
	var err error
	if !Eventually(Patience, func() bool {
		var c net.Conn
		if c, err = net.Dial("tcp", addr); err == nil {
			c.Close()
		}
		return err == nil
	}) {
		t.Fatalf("nothing listens on %s after %v: %v", addr, Patience, err)
	}
}
