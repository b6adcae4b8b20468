//go:build integration

package harness

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Within calls f in a network namespace: sockets that f itself makes belong there. space is
// a name of ip-netns(8), or the path of a namespace.
func Within(space string, f func() error) error {
	if !strings.Contains(space, "/") {
		space = filepath.Join("/run/netns", space)
	}
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	other, err := unix.Open(space, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(other)
	if err := unix.Setns(other, unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		return back // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// In is Within for what must succeed.
func In(t testing.TB, space string, f func() error) {
	t.Helper()
	if err := Within(space, f); err != nil {
		t.Fatal(err)
	}
}
