//go:build integration

package integration

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

var spaces atomic.Int64 // made so far, for names

// newSpace makes a network namespace with nothing but its own loopback, and with
// a hosts file of its own and a name server on its loopback.
func newSpace(t testing.TB, hosts string) (name string) {
	t.Helper()
	name = fmt.Sprintf("ptg-%d-%d", os.Getpid(), spaces.Add(1))
	etc := filepath.Join("/etc/netns", name)
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(etc) }) // and not /etc/netns, where others may be about to make theirs
	write(t, etc, "hosts", hosts)
	write(t, etc, "resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
	must(t, "ip", "netns", "add", name)
	t.Cleanup(func() { must(t, "ip", "netns", "delete", name) })
	// Nothing may be sent that the test did not cause.
	must(t, "ip", "netns", "exec", name, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up")
	return name
}

// listenIn listens in a namespace; "" is the test's own.
func listenIn(t testing.TB, space, addr string) (ln net.Listener) {
	t.Helper()
	listen := func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	}
	if space == "" {
		if err := listen(); err != nil {
			t.Fatal(err)
		}
		return ln
	}
	in(t, space, listen)
	return ln
}

// The two boxes' addresses on the cable between them, and on another cable the
// server's and the origin's, to which the client box has no way. They look public,
// as real ones do, so that the exit's rule about private addresses is in force.
const (
	clientBox  = "11.200.0.1"
	serverBox  = "11.200.0.2"
	serverBack = "11.201.0.2"
	serverMore = "11.201.0.3" // a second one in the same network
	originAddr = "11.201.0.1"
)

// newBoxes makes a client box, a server box, and one for the origin behind it.
func newBoxes(t testing.TB) (client, server, behind string) {
	t.Helper()
	client = newSpace(t, plainHosts)
	server = newSpace(t, plainHosts+originAddr+" "+originName+"\n127.0.0.1 trap.ptgate.test\n")
	behind = newSpace(t, plainHosts)
	cable := func(name, a, addrA, b, addrB string) {
		must(t, "ip", "-n", a, "link", "add", name, "type", "veth", "peer", "name", name, "netns", b)
		for space, addr := range map[string]string{a: addrA, b: addrB} {
			must(t, "ip", "-n", space, "address", "add", addr+"/24", "dev", name)
			must(t, "ip", "-n", space, "link", "set", name, "up")
		}
	}
	cable("cable", client, clientBox, server, serverBox)
	cable("back", server, serverBack, behind, originAddr)
	must(t, "ip", "-n", server, "address", "add", serverMore+"/24", "dev", "back")
	return client, server, behind
}

// countQueries answers every DNS question in a namespace with "no such name", and
// counts them.
func countQueries(t testing.TB, space string) *atomic.Int64 {
	t.Helper()
	var queries atomic.Int64
	var c net.PacketConn
	in(t, space, func() (err error) {
		c, err = net.ListenPacket("udp", "127.0.0.1:53")
		return err
	})
	tcp := listenIn(t, space, "127.0.0.1:53")
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			queries.Add(1)
			if n >= 12 {
				buf[2], buf[3] = 0x81, 0x83 // RFC 1035 section 4.1.1: an answer, NXDOMAIN
				c.WriteTo(buf[:n], from)
			}
		}
	})
	wg.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			queries.Add(1)
			conn.Close()
		}
	})
	t.Cleanup(func() {
		c.Close()
		tcp.Close()
		wg.Wait()
	})
	return &queries
}

// sent is how many packets have left a namespace by the cable.
func sent(t testing.TB, space string) int {
	t.Helper()
	out := must(t, "ip", "-n", space, "-s", "-o", "link", "show", "cable")
	m := regexp.MustCompile(`TX:.*?\\\s+\d+\s+(\d+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no count in %q", out)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestNamespaces has two boxes that share no file and no network but one cable.
// The files are what `ptgate pair` writes, but for one route.
func TestNamespaces(t *testing.T) {
	near, far, behind := newBoxes(t)
	queries := countQueries(t, near)
	o := serveOriginAt(t, behind, originAddr+":80", originAddr+":443")
	dir := filepath.Join(scratch(t), "pair")
	must(t, ptgate, "pair", "--address", serverBox+":443", "--out", dir)
	text := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	server := run(t, "server", debugLog+text("server.toml"), setting{netns: far})
	client := run(t, "client", debugLog+replace(t, text("client.toml"), "[[route]]\nto  = \"*\"\n", "[[route]]\nto  = [\".ptgate.test\", \"11.0.0.0/8\"]\n"), setting{netns: near})
	for _, b := range []*box{server, client} {
		b.never = append(secretsOf(text("server.toml")), originName, originAddr, clientBox)
	}
	inNear := func(args ...string) []string {
		return append([]string{"ip", "netns", "exec", near, "curl", "-sS", "-i", "--max-time", "30"}, args...)
	}
	const socks, web = "127.0.0.1:1080", "127.0.0.1:8118"

	before := sent(t, near)
	for _, url := range []string{"http://elsewhere.example/", "https://elsewhere.example/"} {
		out, stderr, code := command(t, nil, inNear("-x", "http://"+web, url)...)
		if !strings.HasPrefix(out, "HTTP/1.1 403 ") || !strings.Contains(out, "Proxy-Status: ptgate; error=") {
			t.Errorf("%s over HTTP: exit code %d, %q, %s", url, code, out, stderr)
		}
		_, stderr, code = command(t, nil, inNear("--socks5-hostname", socks, url)...)
		if code != 97 || !strings.Contains(stderr, "(2)") {
			t.Errorf("%s over SOCKS5: exit code %d, %s, want reply 2", url, code, stderr)
		}
	}
	if after := sent(t, near); after != before {
		t.Errorf("%d packets left the client box for names without a route", after-before)
	}
	for _, base := range []string{"http://" + originName, "https://" + originName} {
		for _, way := range [][]string{{"-x", "http://" + web}, {"--socks5-hostname", socks}} {
			out, stderr, _ := command(t, nil, inNear(append(way, "--cacert", o.ca, base+"/hello")...)...)
			if !strings.HasSuffix(out, helloText) {
				t.Errorf("%s by %v: %q, %s", base, way, out, stderr)
			}
		}
	}
	// What leads into the server box itself is denied there.
	for _, own := range []string{"trap.ptgate.test", serverBox, serverBack, serverMore} {
		out, _, _ := command(t, nil, inNear("-x", "http://"+web, "http://"+own+":443/")...)
		if !strings.HasPrefix(out, "HTTP/1.1 403 ") {
			t.Errorf("%s, which is the server box itself: %q, want 403", own, out)
		}
	}
	if sent(t, near) == before {
		t.Error("no packet was counted although pages were loaded")
	}
	if n := queries.Load(); n != 0 {
		t.Errorf("%d DNS queries in the client box, want none", n)
	}
	command(t, nil, "ip", "netns", "exec", near, "getent", "hosts", "control.example")
	if queries.Load() == 0 {
		t.Error("the counter does not count")
	}
}

// runNginx starts nginx in a namespace, with TLS on 443 for a location.
func runNginx(t testing.TB, space, name, location string) (pin string) {
	t.Helper()
	cert, certPEM, keyPEM := harness.Certificate(t, name)
	dir := scratch(t)
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	conf := write(t, dir, "nginx.conf", fmt.Sprintf(`daemon off;
user root;
worker_processes 1;
pid %[1]s/pid;
error_log stderr notice;
events {}
http {
access_log off;
%[2]s
server {
listen %[3]s:443 ssl;
server_name %[4]s;
ssl_certificate %[5]s;
ssl_certificate_key %[6]s;
%[7]s
}
}
`, dir, temp.String(), serverBox, name, write(t, dir, "cert.pem", string(certPEM)), write(t, dir, "key.pem", string(keyPEM)), location))
	daemon(t, "ip", "netns", "exec", space, realpt.Program(t, "nginx"), "-e", "stderr", "-p", dir, "-c", conf).Wait(t, "start worker process")
	hash := sha256.Sum256(cert.Certificate[0])
	return base64.StdEncoding.EncodeToString(hash[:])
}

// runFront starts nginx in front of a bridge, as the file of `ptgate pair` says, with
// more in the location. It returns that file, the secret path, and the certificate's pin.
func runFront(t testing.TB, space, name, more string) (text, path, pin string) {
	t.Helper()
	dir := filepath.Join(scratch(t), "pair")
	must(t, ptgate, "pair", "--transport", "webtunnel", "--address", name+":443", "--out", dir)
	b, err := os.ReadFile(filepath.Join(dir, "server.toml"))
	if err != nil {
		t.Fatal(err)
	}
	text = string(b)
	location := regexp.MustCompile(`(?ms)^#   (location = (\S+) .*?)^#   }$`).FindStringSubmatch(text)
	if location == nil {
		t.Fatalf("no nginx location in\n%s", text)
	}
	return text, location[2], runNginx(t, space, name, strings.ReplaceAll(location[1], "\n#", "\n")+more+"}")
}

// TestWebtunnel has a bridge behind a real nginx that ends TLS, set up as the file
// of `ptgate pair` says, with the certificate pinned.
func TestWebtunnel(t *testing.T) {
	const name = "bridge.ptgate.test"
	near, far, behind := newBoxes(t)
	o := serveOriginAt(t, behind, originAddr+":80", originAddr+":443")
	text, path, pin := runFront(t, far, name, "")

	own := speaker{name: "ptgate"}
	child := speaker{name: "ptgate pt", isolate: true}
	lyrebird := speaker{name: "lyrebird", exec: []string{realpt.Lyrebird(t)}}
	otherClient := speaker{name: "webtunnel-client", exec: []string{realpt.WebtunnelClient(t)}}
	otherServer := speaker{name: "webtunnel-server", exec: []string{realpt.WebtunnelServer(t)}}
	byName := `args = { url = "https://` + name + path + `", addr = "` + serverBox + `:443", cert = "` + pin + `" }`
	for _, tt := range []struct {
		client, server speaker
		args           string
	}{
		{own, own, byName},
		{own, otherServer, byName},
		{child, child, byName},
		{own, own, strings.Replace(byName, "}", `, utls = "none" }`, 1)},
		{lyrebird, own, byName},
		{otherClient, own, `args = { url = "https://` + serverBox + path + `", servername = "` + name + `", cert = "` + pin + `" }`},
	} {
		t.Run(tt.client.name+" to "+tt.server.name, func(t *testing.T) {
			server := run(t, "server", debugLog+text+tt.server.table("webtunnel"), setting{netns: far})
			client := run(t, "client", debugLog+"[bridge.far]\ntransport = \"webtunnel\"\naddress = \"192.0.2.1:443\"\n"+tt.args+"\n"+everythingVia("far")+tt.client.table("webtunnel"), setting{netns: near})
			for _, b := range []*box{server, client} {
				b.never = []string{originName, originAddr, path, pin}
			}
			const size = 16 << 20
			curl := []string{"ip", "netns", "exec", near, "curl", "-sSf", "--max-time", "60", "--cacert", o.ca}
			got := must(t, append(curl, "--socks5-hostname", "127.0.0.1:1080", fmt.Sprintf("https://%s/bytes/w/%d", originName, size))...)
			if fmt.Sprintf("%x", sha256.Sum256([]byte(got))) != noiseSum("w", size) {
				t.Errorf("down: %d bytes with a wrong checksum", len(got))
			}
			got = must(t, append(curl, "-x", "http://127.0.0.1:8118", "--data-binary", "@"+write(t, scratch(t), "body", got), "http://"+originName+"/sum")...)
			if want := fmt.Sprintf("%d %s\n", size, noiseSum("w", size)); got != want {
				t.Errorf("up: the origin got %q, want %q", got, want)
			}
		})
	}
	t.Run("wrong pin", func(t *testing.T) {
		run(t, "server", text, setting{netns: far})
		hash := sha256.Sum256([]byte("another certificate"))
		client := run(t, "client", debugLog+"[bridge.far]\ntransport = \"webtunnel\"\naddress = \"192.0.2.1:443\"\n"+
			strings.Replace(byName, pin, base64.StdEncoding.EncodeToString(hash[:]), 1)+"\n"+everythingVia("far"), setting{netns: near})
		_, stderr, code := command(t, nil, "ip", "netns", "exec", near, "curl", "-sS", "--max-time", "60", "--socks5-hostname", "127.0.0.1:1080", "http://"+originName+"/hello")
		if code != 97 || !strings.Contains(stderr, "(3)") {
			t.Errorf("exit code %d, %s, want reply 3", code, stderr)
		}
		client.log.Wait(t, `msg="bridge failed".*webtunnel: handshake`)
	})
}
