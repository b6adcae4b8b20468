package gateway_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/credentials"
	"ptgate/gateway/users"
)

// A user of the users_file comes and is revoked in the middle of a download; a reload that
// has read the file before does not bring the user back. What was used is noted at the end.
func TestUsersFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	write := func(names ...string) {
		text := users.Header
		for _, n := range names {
			text = users.Put(text, &users.User{Name: n, Secret: credentials.Digest("secret of " + n)})
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ann", "bob")
	text := strings.Replace(fmt.Sprintf(farEnd, ""), "[exit]", fmt.Sprintf("[exit]\nusers_file = %q", file), 1)
	server := start(t, "server", text)
	asUser := func(name string) *box {
		return start(t, name, fmt.Sprintf(nearEnd, bridge(server)+fmt.Sprintf("user = %q\npassword = \"secret of %[1]s\"\n", name)))
	}
	endless := origin(t, func(c *net.TCPConn) {
		defer c.Close()
		for b := make([]byte, 32<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	ann, bob := asUser("ann"), asUser("bob")
	a, b := mustAsk(t, ann, endless), mustAsk(t, bob, endless)
	read := func(c net.Conn) error {
		_, err := io.ReadFull(c, make([]byte, 1<<20))
		return err
	}
	if err := read(a); err != nil {
		t.Fatal(err)
	}
	old := loadText(t, server.path, text)
	write("bob")
	other := filepath.Join(t.TempDir(), "users")
	if read, err := server.ReadUsers(other); read || err != nil {
		t.Errorf("the users of another server: %v, %v", read, err)
	}
	if err := read(a); err != nil {
		t.Errorf("nothing was asked for: %v", err)
	}
	if err := os.Symlink(file, other); err != nil {
		t.Fatal(err)
	}
	if read, err := server.ReadUsers(other); !read || err != nil {
		t.Fatal(read, err)
	}
	begun := time.Now()
	n, err := io.Copy(io.Discard, a)
	t.Logf("the download of a user who is revoked ends after %v and %d bytes more, with %v", time.Since(begun), n, err)
	if err := server.Reload(old); err != nil {
		t.Fatal(err)
	}
	if c, err := ask(t, ann, endless); err == nil { // the gateway may have answered by itself
		if n, _ := io.Copy(io.Discard, c); n > 0 {
			t.Error("who is revoked comes back with a reload that had begun before")
		}
	}
	if err := read(b); err != nil {
		t.Errorf("who stays: %v", err)
	}
	b.Close()
	os.WriteFile(file, []byte("bob nothing"), 0o600)
	if _, err := server.ReadUsers(""); err == nil || !strings.Contains(err.Error(), "users:1: ") {
		t.Errorf("a wrong file: %v", err)
	}
	c := mustAsk(t, bob, endless)
	c.Close()
	bob.stop()
	if err := server.stop(); err != nil {
		t.Fatal(err)
	}
	write("bob")
	usage := gateway.NotedUsage(loadText(t, server.path, text))
	if u := usage["bob"]; len(usage) != 1 || u.Down < 1<<20 || u.Used < u.Down || u.Last.IsZero() {
		t.Errorf("noted: %+v", usage)
	}
}

// A reload that makes the exit ask for users says so, once.
func TestUsersBegin(t *testing.T) {
	plain := fmt.Sprintf(farEnd, "")
	server := start(t, "server", plain)
	asks := strings.Replace(plain, "[exit]", fmt.Sprintf("[exit]\nusers_file = %q", filepath.Join(t.TempDir(), "users")), 1)
	for i, text := range []string{plain, asks, asks} {
		if err := server.Reload(loadText(t, server.path, text)); err != nil {
			t.Fatal(err)
		}
		server.log.mu.Lock()
		got := strings.Count(server.log.text.String(), "every client needs a user")
		server.log.mu.Unlock()
		if want := min(i, 1); got != want {
			t.Errorf("after reload %d: said %d times, want %d", i, got, want)
		}
	}
}
