//go:build unix

package gateway_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/destination"
	"ptgate/gateway/inbound"
	"ptgate/gateway/session"
)

const onSocket = `
[listen]
mixed = "unix:%s"
%s
[[route]]
to = "127.0.0.0/8"
via = "direct"
[limits]
drain = "2s"
`

// askSocket opens addr through the Unix socket at path.
func askSocket(t *testing.T, path, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	target, err := destination.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	if err := session.Handshake(c, target, session.Auth{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

// tries starts a box whose listener is at path, and returns why it does not start.
func tries(t *testing.T, path string) error {
	t.Helper()
	cfg := loadText(t, filepath.Join(t.TempDir(), "other.toml"), fmt.Sprintf(onSocket, path, ""))
	g := gateway.New(cfg, "/nonexistent", slog.New(slog.DiscardHandler))
	stop, end := context.WithCancel(t.Context())
	defer end()
	failed := make(chan error, 1)
	go func() { failed <- g.Run(stop, context.Background()) }()
	select {
	case <-g.Ready():
		end()
		<-failed
		return nil
	case err := <-failed:
		if err == nil {
			t.Error("it ended without an error")
		}
		return err
	}
}

func TestUnixSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "proxy.sock")
	b := start(t, "near", fmt.Sprintf(onSocket, path, ""))
	if m := modeOf(t, path); m != fs.ModeSocket|0o600 {
		t.Errorf("the mode is %v", m)
	}
	if a := b.Addresses(inbound.Mixed); len(a) != 1 || a[0] != "unix:"+path {
		t.Errorf("addresses %q", a)
	}
	addr := origin(t, echo)
	c := askSocket(t, path, addr)
	said := strings.Repeat("some words, ", 100_000)
	go func() {
		io.WriteString(c, said)
		c.(*net.UnixConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); string(got) != said || err != nil {
		t.Errorf("%d bytes of %d came back: %v", len(got), len(said), err)
	}

	// A reload keeps the socket and its connections, and can change the mode.
	live := askSocket(t, path, addr)
	before, _ := os.Lstat(path)
	if err := b.Reload(loadText(t, b.path, fmt.Sprintf(onSocket, path, "socket_mode = \"660\""))); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || after.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("after a reload: %v, %v", after, err)
	}
	echoes(t, live)
	// One that adds a socket and takes the first away.
	second := filepath.Join(dir, "second.sock")
	if err := b.Reload(loadText(t, b.path, fmt.Sprintf(onSocket, second, ""))); err != nil {
		t.Fatal(err)
	}
	echoes(t, live)
	live.Close()
	echoes(t, askSocket(t, second, addr))
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// What is at the place of a socket is replaced only if it is a socket without anybody.
func TestPlaceOfSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for name, tt := range map[string]struct {
		there func() // puts something there
		want  string // a part of the error; "": it is replaced
	}{
		"nothing": {func() {}, ""},
		"one that was left": {func() {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			ln.SetUnlinkOnClose(false)
			ln.Close()
		}, ""},
		"one that answers": {func() {
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
		}, "answers there"},
		"a file":      {func() { os.WriteFile(path, []byte("dear"), 0o600) }, "is no socket"},
		"a link":      {func() { os.Symlink(filepath.Join(dir, "elsewhere"), path) }, "is no socket"},
		"a directory": {func() { os.Mkdir(path, 0o700) }, "is no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			os.RemoveAll(path)
			tt.there()
			before, _ := os.Lstat(path)
			err := tries(t, path)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("it is another one now: %v", err)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		if err := tries(t, filepath.Join(dir, "missing", "s")); err == nil || !strings.Contains(err.Error(), "there is no directory") {
			t.Error(err)
		}
	})
	t.Run("a directory for everybody", func(t *testing.T) {
		open := filepath.Join(dir, "open")
		os.Mkdir(open, 0o700)
		os.Chmod(open, 0o777)
		if err := tries(t, filepath.Join(open, "s")); err == nil || !strings.Contains(err.Error(), "everybody can write") {
			t.Error(err)
		}
		os.Chmod(open, 0o777|fs.ModeSticky)
		if err := tries(t, filepath.Join(open, "s")); err != nil {
			t.Error(err)
		}
	})
}

// A socket that has replaced ours is not removed with ours.
func TestSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	b := start(t, "near", fmt.Sprintf(onSocket, path, ""))
	os.Remove(path)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
