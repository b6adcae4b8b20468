//go:build integration

package attack

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// connect asks the HTTP proxy at the other end of c for a tunnel.
func connect(c net.Conn, to string) (status int, err error) {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", to); err != nil {
		return 0, err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return 0, err
	}
	return r.StatusCode, nil
}

// A client makes one connection take two hundred places: each tunnel leads into the proxy
// itself.
func TestLoopOfTunnels(t *testing.T) {
	addr := ports.Free(t)
	b := start(t, "gateway", "[listen]\nmixed = \""+addr+"\"\n[limits]\nconnections = 100\n[[route]]\nto = \"*\"\nvia = \"direct\"\nprivate = true\n")
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer site.Close()
	before := b.usage().FDs
	_, port, _ := net.SplitHostPort(addr)

	depth, most := 0, 0
	for i := range 200 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		host := []string{"127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"}[i%4]
		for d := 1; d <= 200; d++ {
			status, err := connect(c, host+":"+port)
			if err != nil || status != http.StatusOK {
				if err == nil && status != http.StatusForbidden {
					t.Fatalf("CONNECT %s:%s: %d", host, port, status)
				}
				break
			}
			depth = max(depth, d)
		}
		c.Close()
		most = max(most, b.usage().FDs)
	}
	t.Logf("depth %d, descriptors %d before, at most %d", depth, before, most)
	if depth > 0 {
		t.Errorf("tunnels lead into the proxy itself, %d deep", depth)
	}

	// Another client is served as before.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if status, err := connect(c, strings.TrimPrefix(site.URL, "http://")); err != nil || status != http.StatusOK {
		t.Errorf("another client: %d, %v", status, err)
	}
	c.Close()
	if !harness.Eventually(back, func() bool { return b.usage().FDs <= before+2 }) {
		t.Errorf("%d descriptors are left of the attack; before it there were %d", b.usage().FDs, before)
	}
}

// A client asks for each port that the process has open, also for that which a transport
// program brings its clients to, by each name and address that leads to this machine.
func TestLoopByEveryName(t *testing.T) {
	addr, here := ports.Free(t), ports.Free(t)
	b := start(t, "gateway", fmt.Sprintf("[listen]\nmixed = [%q, \"[::1]:0\", \":0\"]\nsocks5 = \"127.0.0.1:0\"\nhttp = \"0.0.0.0:0\"\n"+
		"allow = [\"127.0.0.0/8\", \"::1\"]\n[[route]]\nto = \"*\"\nvia = \"direct\"\nprivate = true\n"+
		"[[serve]]\ntransport = \"obfs4\"\nbind = %q\n[[serve]]\ntransport = \"obfs2\"\nbind = \"127.0.0.1:0\"\n"+
		"[[serve]]\ntransport = \"webtunnel\"\nbind = \"[::1]:0\"\noptions = { url = \"https://www.example.com/x\" }\n"+
		"[pt.other]\nexec = [%q]\ntransports = [\"obfs2\"]\n[exit]\ndeny = []\n", addr, here, realpt.Program(t, "obfs4proxy")))
	out, err := exec.Command("ss", "-ltnpH").CombinedOutput()
	if err != nil {
		t.Fatalf("ss: %v\n%s", err, out)
	}
	ports := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); strings.Contains(line, fmt.Sprintf("pid=%d,", b.Cmd.Process.Pid)) {
			ports[f[3][strings.LastIndexByte(f[3], ':')+1:]] = true
		}
	}
	if len(ports) < 8 { // five for programs, two for clients, one for those of the other program
		t.Fatalf("only %d ports are found:\n%s", len(ports), out)
	}
	hosts := []string{"127.0.0.1", "localhost", "LOCALHOST.", "0.0.0.0", "127.0.0.2", "127.1", "2130706433", "0x7f000001",
		"[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			hosts = append(hosts, strings.TrimSuffix(net.JoinHostPort(n.IP.String(), ""), ":"))
		}
	}
	for port := range ports {
		refused := 0
		for _, host := range hosts {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			status, err := connect(c, host+":"+port)
			c.Close()
			if err != nil || status < 400 {
				t.Errorf("CONNECT %s:%s: %d, %v", host, port, status, err)
			}
			if status == http.StatusForbidden {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("port %s is refused by no name", port)
		}
	}
	t.Logf("%d ports by %d names and addresses", len(ports), len(hosts))
}

// A web page asks the proxy of its reader's browser for services of the machine, by all the
// names and addresses that lead there.
func TestPageReadsLoopback(t *testing.T) {
	secret := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }))
	defer secret.Close()
	_, port, _ := net.SplitHostPort(secret.Listener.Addr().String())
	addr := ports.Free(t)
	start(t, "gateway", "[listen]\nmixed = \""+addr+"\"\n[[route]]\nto = \"*\"\nvia = \"direct\"\n")
	hosts := []string{"127.0.0.1", "localhost", "LOCALHOST.", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]",
		"[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "127.1", "127.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.255.255.254"}
	if name, err := net.LookupAddr("127.0.0.1"); err == nil {
		hosts = append(hosts, name...)
	}
	for _, host := range hosts {
		for _, request := range []string{
			"CONNECT %s:%s HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
			"GET http://%s:%s/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		} {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(c, request, host, port)
			answer, err := io.ReadAll(c)
			c.Close()
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 4") && !strings.HasPrefix(string(answer), "HTTP/1.1 502") || strings.Contains(string(answer), "secret") {
				t.Errorf("%s: %.60q, %v", host, answer, err)
			}
		}
	}
}
