//go:build unix

package control_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ptgate/gateway/control"
	"ptgate/gateway/testkit"
)

// TestPlanted: another user has made a socket where one looks for ptgate, and listens. He is
// not asked, and does not keep ptgate from its place.
func TestPlanted(t *testing.T) {
	testkit.Root(t)
	const me, other = 65534, 65533
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := control.Path(dir, "x")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false) // the name is another's at the end
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if c, err := ln.Accept(); err == nil {
			t.Error("the socket of another user was asked")
			c.Close()
		}
	}()
	for _, err := range []error{os.Chown(path, other, other), os.Chmod(path, 0o777), os.Chown(dir, me, me), os.Chmod(dir, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Seteuid(me); err != nil {
		t.Fatal(err)
	}
	_, findErr := control.Find(t.Context(), path)
	s, serveErr := control.Serve(path, control.Answers{Status: func() any { return 1 }})
	ln.Close()
	<-asked
	if !errors.Is(findErr, control.ErrNotRunning) || !strings.Contains(findErr.Error(), "user 65533") {
		t.Errorf("found: %v", findErr)
	}
	if serveErr != nil {
		t.Errorf("the place is taken: %v", serveErr)
	} else {
		if got, err := control.Find(t.Context(), path); got != path || err != nil {
			t.Errorf("found %q, %v", got, err)
		}
		s.Close()
	}
	if err := syscall.Seteuid(0); err != nil {
		t.Fatal(err)
	}
}

// TestOpenDirectory: where others can make sockets, none is made.
func TestOpenDirectory(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Serve(control.Path(open, "x"), control.Answers{}); err == nil || !strings.Contains(err.Error(), "chmod go-w "+open) {
		t.Errorf("serve: %v", err)
	}
	own := t.TempDir()
	if err := os.Chmod(own, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := control.Serve(control.Path(own, "x"), control.Answers{Status: func() any { return 1 }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Link(control.Path(open, "x")); err == nil || !strings.Contains(err.Error(), "chmod go-w "+open) {
		t.Errorf("link: %v", err)
	}
}
