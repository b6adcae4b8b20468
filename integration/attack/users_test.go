//go:build integration

package attack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/integration/ports"
)

// anotherUser is a user of the machine, who owns nothing.
const anotherUser = 65534

// asUser runs a command as another user, and returns what it prints.
func asUser(uid uint32, argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Another user of the machine looks for proxies on loopback, with what a scanner says to
// each port. It learns nothing; the owner is served at the same time.
func TestScanByAnotherUser(t *testing.T) {
	site := listen(t, func(c net.Conn) {
		defer c.Close()
		c.Read(make([]byte, 1<<10))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
	})
	url := fmt.Sprintf("http://127.0.0.1:%d/", site.port())
	port := func(key, owners string) string {
		addr := ports.Free(t)
		start(t, key, "[listen]\n"+key+" = \""+addr+"\"\n"+owners+"[[route]]\nto = \"127.0.0.1\"\nvia = \"direct\"\n")
		return addr
	}
	for _, key := range []string{"mixed", "socks5", "http"} {
		addr := port(key, "owners = \"self\"\n")
		for _, probe := range []string{`\005\001\000`, `\005\002\000\002`, `\004\001\000\120\177\000\000\001\000`,
			`CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\n`, `GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n`, `\026\003\001\000\005hello`, `junk`, ``} {
			host, p, _ := net.SplitHostPort(addr)
			out, _ := asUser(anotherUser, "bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/%s/%s; printf '%s' >&3 2>/dev/null; timeout 10 cat <&3 2>/dev/null`, host, p, probe))
			if out != "" {
				t.Errorf("%s: the scanner gets %q for %q", key, out, probe)
			}
		}
		scheme := "socks5h"
		if key == "http" {
			scheme = "http"
		}
		if out, err := asUser(anotherUser, "curl", "-sS", "-m", "20", "--noproxy", "", "-x", scheme+"://"+addr, url); err == nil || strings.Contains(out, "hello") {
			t.Errorf("%s: the other user is served: %q", key, out)
		}
		if out, err := asUser(0, "curl", "-sS", "-m", "20", "--noproxy", "", "-x", scheme+"://"+addr, url); err != nil || out != "hello" {
			t.Errorf("%s: the owner gets %q, %v", key, out, err)
		}
	}
	// The other user may be named.
	addr := port("mixed", "owners = [\"nobody\"]\n")
	if out, err := asUser(anotherUser, "curl", "-sS", "-m", "20", "--noproxy", "", "-x", "socks5h://"+addr, url); err != nil || out != "hello" {
		t.Errorf("who is named gets %q, %v", out, err)
	}
	if out, err := asUser(0, "curl", "-sS", "-m", "20", "--noproxy", "", "-x", "socks5h://"+addr, url); err == nil {
		t.Errorf("who is not named gets %q", out)
	}
}

// A Unix socket is served to those who may open it, and is in nobody's way after a kill.
func TestUnixSocketOfAnotherUser(t *testing.T) {
	site := listen(t, func(c net.Conn) {
		defer c.Close()
		c.Read(make([]byte, 1<<10))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
	})
	url := fmt.Sprintf("http://127.0.0.1:%d/", site.port())
	dir, err := os.MkdirTemp("", "ptg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "s")
	get := func(uid uint32) (string, error) {
		return asUser(uid, "curl", "-sS", "-m", "20", "--noproxy", "", "--proxy", "socks5h://localhost"+path, url)
	}
	for _, tt := range []struct {
		more   string
		others bool
	}{{"", false}, {"socket_mode = \"666\"\n", true}, {"socket_mode = \"666\"\nowners = \"self\"\n", false}} {
		b := start(t, "gateway", "[listen]\nmixed = \"unix:"+path+"\"\n"+tt.more+"[[route]]\nto = \"127.0.0.1\"\nvia = \"direct\"\n")
		if out, err := get(0); err != nil || out != "hello" {
			t.Errorf("%q: the owner gets %q, %v", tt.more, out, err)
		}
		if out, err := get(anotherUser); (err == nil && out == "hello") != tt.others {
			t.Errorf("%q: another user gets %q, %v", tt.more, out, err)
		}
		b.Cmd.Process.Kill()
		<-b.Exited
		if _, err := net.DialTimeout("unix", path, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after the kill: %v", err)
		}
	}
}
