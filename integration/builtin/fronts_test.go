//go:build integration

package builtin_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

// What the files in configs/ have, and a test puts something else in its place.
const (
	exampleName   = "www.example.com"
	examplePath   = "/iG9Qkzr2mNbWbVtEcGgXw4dS"
	exampleServer = "127.0.0.1:15000"
)

// A front is a web server with its file in configs/.
type front struct {
	program, file string
	// change makes the file fit the test: port is where the front listens, and dir has
	// cert.pem, key.pem, both.pem and the pages.
	change func(text, dir, port, pages string) string
	argv   func(dir, file string) []string
}

// edit replaces texts that must be there.
func edit(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("no %q in\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// TestFronts has webtunnel behind each web server that there is a file for. Every server
// passes the tunnel in both directions, with what the far end says first, says who the
// client is, and shows its own pages beside.
func TestFronts(t *testing.T) {
	for _, f := range []front{
		{
			program: "nginx", file: "nginx-webtunnel.conf",
			change: func(text, dir, port, _ string) string {
				text = edit(t, text, "listen 443 ssl", "listen 127.0.0.1:"+port+" ssl", "    listen [::]:443 ssl;\n", "",
					"/etc/ssl/certs/www.example.com.pem", dir+"/cert.pem", "/etc/ssl/private/www.example.com.key", dir+"/key.pem", "/var/www/html", dir)
				var temp strings.Builder
				for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
					fmt.Fprintf(&temp, "%s_temp_path %s/%s;\n", kind, dir, kind)
				}
				return fmt.Sprintf("daemon off;\nuser root;\npid %s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n%s%s}\n", dir, &temp, text)
			},
			argv: func(dir, file string) []string { return []string{"-e", "stderr", "-p", dir, "-c", file} },
		},
		{
			program: "caddy", file: "Caddyfile",
			change: func(text, dir, port, _ string) string {
				return "{\n\tadmin off\n\tauto_https off\n\tskip_install_trust\n\tdefault_sni " + exampleName + "\n}\n" +
					edit(t, text, "www.example.com {", "https://www.example.com:"+port+" {\n\tbind 127.0.0.1\n\ttls "+dir+"/cert.pem "+dir+"/key.pem", "/var/www/html", dir)
			},
			argv: func(_, file string) []string { return []string{"run", "--config", file, "--adapter", "caddyfile"} },
		},
		{
			program: "apache2", file: "apache-webtunnel.conf",
			change: func(text, dir, port, _ string) string {
				var b strings.Builder
				fmt.Fprintf(&b, "ServerRoot %s\nPidFile %s/pid\nErrorLog %s/error.log\nListen 127.0.0.1:%s\nServerName localhost\nMutex file:%s default\nUser nobody\nGroup nogroup\n", dir, dir, dir, port, dir)
				for _, m := range []string{"mpm_event", "authz_core", "dir", "mime", "ssl", "socache_shmcb", "setenvif", "proxy", "proxy_http"} {
					fmt.Fprintf(&b, "LoadModule %s_module /usr/lib/apache2/modules/mod_%s.so\n", m, m)
				}
				fmt.Fprintf(&b, "LogFormat \"%%r\" combined\nTypesConfig /etc/mime.types\n<Directory %s>\nRequire all granted\n</Directory>\n", dir)
				return b.String() + edit(t, text, "<VirtualHost *:443>", "<VirtualHost *:"+port+">", "/etc/ssl/certs/www.example.com.pem", dir+"/cert.pem",
					"/etc/ssl/private/www.example.com.key", dir+"/key.pem", "/var/www/html", dir, "${APACHE_LOG_DIR}", dir)
			},
			argv: func(_, file string) []string { return []string{"-D", "FOREGROUND", "-f", file} },
		},
		{
			program: "haproxy", file: "haproxy-webtunnel.cfg",
			change: func(text, dir, port, pages string) string {
				return edit(t, text, "bind :443", "bind 127.0.0.1:"+port, "/etc/haproxy/www.example.com.pem", dir+"/both.pem", "127.0.0.1:8080", pages)
			},
			argv: func(_, file string) []string { return []string{"-db", "-f", file} },
		},
	} {
		t.Run(f.program, func(t *testing.T) { testFront(t, f) })
	}
}

func testFront(t *testing.T, f front) {
	const greeting = "220 mail.example ready\r\n"
	l, admitted := echoing(t, greeting, func(c *builtin.ServerConfig) { c.TrustedHops = 1 })
	pages := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<title>Bees</title>") })}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = pages.Serve(ln)
	}()
	t.Cleanup(func() {
		pages.Close()
		<-done
	})

	// Apache's worker is another user.
	dir, err := os.MkdirTemp("", "front-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pair, cert, key := harness.Certificate(t, exampleName, "127.0.0.1")
	example, err := os.ReadFile("../../configs/" + f.file)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	text := edit(t, f.change(string(example), dir, port, ln.Addr().String()), exampleServer, l.Addr().String())
	for name, text := range map[string][]byte{
		"cert.pem": cert, "key.pem": key, "both.pem": append(append([]byte(nil), cert...), key...), "index.html": []byte("<title>Bees</title>"), f.file: []byte(text),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, dir, realpt.Program(t, f.program), f.argv(dir, filepath.Join(dir, f.file))...)
	addr := "127.0.0.1:" + port
	harness.Listening(t, addr)

	sum := sha256.Sum256(pair.Certificate[0])
	client, err := builtin.NewClient(builtin.ClientConfig{Transport: "webtunnel", BindV4: netip.MustParseAddr("127.0.0.7")})
	if err != nil {
		t.Fatal(err)
	}
	for _, hello := range []string{"none", "hellorandomizednoalpn", "hellofirefox_auto"} {
		if hello == "hellofirefox_auto" && f.program != "nginx" {
			continue // it asks for HTTP/2, and where it gets that there is no tunnel
		}
		c, err := client.Dial(t.Context(), builtin.Placeholder, adapter.Args{{Key: "url", Value: "https://" + exampleName + examplePath},
			{Key: "addr", Value: addr}, {Key: "cert", Value: base64.StdEncoding.EncodeToString(sum[:])}, {Key: "utls", Value: hello}})
		if err != nil {
			t.Fatalf("%s: %v\n%s", hello, err, logOf(dir))
		}
		if from := <-admitted; from.Addr().String() != "127.0.0.7" {
			t.Errorf("%s: the client is %s", hello, from)
		}
		checkEcho(t, c, greeting)
		c.Close()
	}

	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: exampleName}, DisableKeepAlives: true}}
	request, err := http.NewRequest(http.MethodGet, "https://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = exampleName
	answer, err := web.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil || answer.StatusCode != http.StatusOK || string(page) != "<title>Bees</title>" {
		t.Errorf("%d %q, %v", answer.StatusCode, page, err)
	}
}

// TestHAProxyTCP has obfs4 behind configs/haproxy.cfg, with the PROXY protocol as the file
// says: the server knows its clients.
func TestHAProxyTCP(t *testing.T) {
	const greeting = "hello\r\n"
	l, admitted := echoing(t, greeting, func(c *builtin.ServerConfig) {
		c.Transport, c.Options, c.StateDir = "obfs4", nil, t.TempDir()
		c.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	})
	example, err := os.ReadFile("../../configs/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	text := edit(t, string(example), "192.0.2.10:443\n    default", "127.0.0.1:"+port+"\n    default", "192.0.2.11:443", l.Addr().String()+" send-proxy-v2",
		"    server two   192.0.2.12:443\n", "", "    server three 192.0.2.13:443\n", "")
	dir := t.TempDir()
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, realpt.Program(t, "haproxy"), "-db", "-f", file)
	addr := "127.0.0.1:" + port
	harness.Listening(t, addr)
	client, err := builtin.NewClient(builtin.ClientConfig{Transport: "obfs4", BindV4: netip.MustParseAddr("127.0.0.7")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(t.Context(), addr, l.Args())
	if err != nil {
		t.Fatalf("%v\n%s", err, logOf(dir))
	}
	defer c.Close()
	if from := <-admitted; from.Addr().String() != "127.0.0.7" {
		t.Errorf("the client is %s", from)
	}
	checkEcho(t, c, greeting)
}

// echoing is a webtunnel server that greets and echoes. It sends the clients that Admit was
// asked for.
func echoing(t *testing.T, greeting string, change func(*builtin.ServerConfig)) (*builtin.Listener, <-chan netip.AddrPort) {
	t.Helper()
	admitted := make(chan netip.AddrPort, 10)
	cfg := builtin.ServerConfig{Transport: "webtunnel", Bind: "127.0.0.1:0", Options: adapter.Args{{Key: "url", Value: "https://" + exampleName + examplePath}},
		Admit: func(a netip.AddrPort) bool { admitted <- a; return true }}
	change(&cfg)
	l, err := builtin.Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	harness.Serve(t, l, func(c builtin.Conn) {
		_, _ = io.WriteString(c, greeting)
		echo(c)
	})
	return l, admitted
}

func checkEcho(t *testing.T, c net.Conn, greeting string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	in := bufio.NewReader(c)
	if got, err := in.ReadString('\n'); err != nil || got != greeting {
		t.Fatalf("%q, %v", got, err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(want)
		sent <- err
	}()
	got := make([]byte, len(want))
	_, err := io.ReadFull(in, got)
	if sendErr := <-sent; err != nil || sendErr != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, %v, the same bytes: %v", err, sendErr, bytes.Equal(got, want))
	}
}

// run starts a program in the foreground, which ends with the test. What it says is in dir.
func run(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "output.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		// Apache waits for workers that have an idle connection.
		timer := time.AfterFunc(time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait()
		timer.Stop()
		if t.Failed() {
			t.Log(logOf(dir))
		}
	})
}

func logOf(dir string) string {
	var all strings.Builder
	for _, name := range []string{"output.log", "error.log"} {
		text, _ := os.ReadFile(filepath.Join(dir, name))
		all.Write(text)
	}
	return all.String()
}
