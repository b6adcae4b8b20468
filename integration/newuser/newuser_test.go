//go:build integration

// Package newuser does what the README tells a new user to do, in network namespaces with
// homes that are empty: one command a side, and one link that is copied.
package newuser

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

const (
	// The README's address of the server, and one of the user's own box.
	serverAddr, clientAddr = "198.51.100.7", "198.51.100.20"
	// The network behind the server looks public, as a real one does: the exit lets nobody
	// into private ones.
	behindAddr, webAddr = "11.201.0.2", "11.201.0.1"
	serverName          = "www.example.com"
	authorityName       = "authority.ptgate.test"
	page                = "<title>Bees</title>"
)

// What is shared has a short name here.
var (
	must    = harness.Must
	command = harness.Command
	in      = harness.In
)

// A world is three network namespaces: the user's box sees the server only, and the server
// sees the web, too.
type world struct {
	t                   *testing.T
	client, server, web string // the namespaces
	dir                 string
	program             string // the directory of ptgate
	authority           string // the file with the certificate of the web, which is the authority's own, too
}

var worlds atomic.Int64

func newWorld(t *testing.T, program string) *world {
	t.Helper()
	w := &world{t: t, program: program}
	id := fmt.Sprintf("ptn%d-%d-", os.Getpid(), worlds.Add(1))
	w.client, w.server, w.web = id+"client", id+"server", id+"web"
	w.dir = scratch(t)
	for _, space := range []string{w.client, w.server, w.web} {
		etc := filepath.Join("/etc/netns", space)
		if err := os.MkdirAll(etc, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(etc) }) // and not /etc/netns, where others may be about to make theirs
		hosts := "127.0.0.1 localhost\n" + serverAddr + " " + serverName + "\n"
		if space != w.client {
			hosts += webAddr + " example.com " + authorityName + "\n"
		}
		put(t, etc, "hosts", []byte(hosts))
		put(t, etc, "resolv.conf", []byte("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"))
		must(t, "ip", "netns", "add", space)
		t.Cleanup(func() { must(t, "ip", "netns", "delete", space) })
		must(t, "ip", "-n", space, "link", "set", "lo", "up")
	}
	cable := func(a, addrA, b, addrB string) {
		must(t, "ip", "link", "add", "to-"+addrB[len(addrB)-2:], "netns", a, "type", "veth", "peer", "name", "to-"+addrA[len(addrA)-2:], "netns", b)
		must(t, "ip", "-n", a, "addr", "add", addrA+"/24", "dev", "to-"+addrB[len(addrB)-2:])
		must(t, "ip", "-n", b, "addr", "add", addrB+"/24", "dev", "to-"+addrA[len(addrA)-2:])
		must(t, "ip", "-n", a, "link", "set", "to-"+addrB[len(addrB)-2:], "up")
		must(t, "ip", "-n", b, "link", "set", "to-"+addrA[len(addrA)-2:], "up")
	}
	cable(w.client, clientAddr, w.server, serverAddr)
	cable(w.server, behindAddr, w.web, webAddr)
	must(t, "ip", "-n", w.web, "route", "add", "default", "via", behindAddr)
	// As for a service that may bind the ports below 1024.
	must(t, "ip", "netns", "exec", w.server, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start; echo 1 >/proc/sys/net/ipv4/ip_forward")
	w.serve()
	return w
}

// serve is the page on the web.
func (w *world) serve() {
	pair, cert, key := harness.Certificate(w.t, "example.com", authorityName)
	w.authority = put(w.t, w.dir, "authority.pem", cert)
	put(w.t, w.dir, "authority.key", key)
	web := http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}},
		Handler:   http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, page) }),
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	var ln net.Listener
	in(w.t, w.web, func() (err error) {
		ln, err = net.Listen("tcp", webAddr+":443")
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = web.ServeTLS(ln, "", "")
	}()
	w.t.Cleanup(func() {
		web.Close()
		<-done
	})
}

// pebble starts an authority on the web. It returns the URL of its directory, and the file
// with the certificate that signs those that it makes.
func (w *world) pebble() (directory, roots string) {
	w.t.Helper()
	address, manage := webAddr+":14000", webAddr+":15000"
	text, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": address, "managementListenAddress": manage,
		"certificate": w.authority, "privateKey": filepath.Join(w.dir, "authority.key"), "httpPort": 80, "tlsPort": 443,
		"retryAfter": map[string]int{"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa",
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	p := start(w.t, "ip", "netns", "exec", w.web, "env", "PEBBLE_VA_NOSLEEP=1", realpt.Pebble(w.t), "-config", put(w.t, w.dir, "pebble.json", text))
	p.Await("ACME directory available")
	// The line is printed before the ports are open.
	pem, code := command(w.t, "ip", "netns", "exec", w.web, "env", "-i", "curl", "-sS", "--retry", "30", "--retry-delay", "1", "--retry-connrefused",
		"--cacert", w.authority, "https://"+authorityName+":15000/roots/0")
	if code != 0 {
		w.t.Fatalf("the authority does not answer: %s", pem)
	}
	return "https://" + authorityName + ":14000/dir", put(w.t, w.dir, "roots.pem", []byte(pem))
}

// A person has a box and an empty home.
type person struct {
	w           *world
	space, home string
	user        string
	env         []string
}

func (w *world) person(space, user string, env ...string) *person {
	w.t.Helper()
	home := filepath.Join(w.dir, "home-"+user)
	if err := os.Mkdir(home, 0o700); err != nil {
		w.t.Fatal(err)
	}
	must(w.t, "chown", user+":"+user, home)
	return &person{w, space, home, user, env}
}

// shell is the person's shell with a command, as after logging in.
func (p *person) shell(command string) []string {
	return slices.Concat([]string{"ip", "netns", "exec", p.space, "setpriv", "--reuid", p.user, "--regid", p.user, "--clear-groups",
		"env", "-i", "HOME=" + p.home, "PATH=" + p.w.program + ":/usr/bin:/bin"}, p.env, []string{"sh", "-c", "cd; " + command})
}

func (p *person) types(line string) (out string, code int) { return command(p.w.t, p.shell(line)...) }

func (p *person) starts(line string) *harness.Process { return start(p.w.t, p.shell("exec "+line)...) }

// files are those in the home but for those in the directories of ptgate.
func (p *person) files() (all []string) {
	err := filepath.WalkDir(p.home, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(p.home, path)
		switch {
		case err != nil:
			return err
		case rel == filepath.Join(".config", "ptgate") || rel == filepath.Join(".local", "state", "ptgate"):
			return fs.SkipDir
		case !d.IsDir():
			all = append(all, rel)
		}
		return nil
	})
	if err != nil {
		p.w.t.Error(err)
	}
	return all
}

// commands are those that a part of the README has a user type.
func commands(t *testing.T, heading string) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("the README has no part %q", heading)
	}
	part, _, _ = strings.Cut(part, "\n## ")
	for i, block := range strings.Split(part, "```") {
		if lines, ok := strings.CutPrefix(block, "sh\n"); ok && i%2 == 1 {
			all = append(all, strings.Split(strings.TrimSpace(lines), "\n")...)
		}
	}
	return all
}

// joined has the client copy the one line that up has printed, and do what the README and
// ptgate itself say, up to a page.
func joined(t *testing.T, server *harness.Process, client *person, join, run string) *harness.Process {
	t.Helper()
	put(t, client.home, "link.txt", []byte(server.Await("ptgate://.*\n")[0]))
	must(t, "chown", client.user, filepath.Join(client.home, "link.txt"))
	begun := time.Now()
	out, code := client.types(join)
	if code != 0 {
		t.Fatalf("%s: %d\n%s", join, code, out)
	}
	t.Logf("join: %v\n%s", time.Since(begun).Round(time.Millisecond), out)
	for _, line := range strings.Split(out, "\n") {
		if strings.HasPrefix(line, "error:") || strings.Contains(line, "fails") {
			t.Error(line)
		}
	}
	if next := said(t, out, "start it:"); next != run {
		t.Errorf("join says %q, and the README %q", next, run)
	}
	gateway := client.starts(run)
	gateway.Await("msg=ready")
	try := said(t, out, "try it:")
	if !strings.Contains(gateway.Log.String(), "try it:  "+try) {
		t.Errorf("join says %q, and run\n%s", try, gateway.Log)
	}
	for _, line := range []string{try, said(t, out, "in a shell:") + "; curl https://example.com/"} {
		if got, code := client.types(strings.Replace(line, "curl ", "curl -sS ", 1)); code != 0 || got != page {
			t.Errorf("%s: %d, %q\n%s", line, code, got, gateway.Log)
		}
	}
	return gateway
}

// said is what stands in a text behind a word at the beginning of a line.
func said(t *testing.T, text, word string) string {
	t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if rest, ok := strings.CutPrefix(line, word); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("no %q in\n%s", word, text)
	return ""
}

func TestNewUser(t *testing.T) {
	program := scratch(t)
	must(t, "cp", harness.Program(t), filepath.Join(program, "ptgate"))
	lines := commands(t, "One command a side")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "ptgate up ") || !strings.HasPrefix(lines[1], "ptgate join ") || !strings.HasPrefix(lines[2], "ptgate run") {
		t.Fatalf("the README has other commands than this test knows: %q", lines)
	}

	t.Run("obfs4", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, program)
		begun := time.Now()
		operator, user := w.person(w.server, "4001"), w.person(w.client, "4002", "CURL_CA_BUNDLE="+w.authority)
		server := operator.starts(lines[0])
		server.Await("msg=ready")
		gateway := joined(t, server, user, lines[1], lines[2])
		t.Logf("from the first command to the page: %v", time.Since(begun).Round(time.Millisecond))
		if len(operator.files()) != 0 || !slices.Equal(user.files(), []string{"link.txt"}) {
			t.Errorf("elsewhere in the homes there are %q and %q", operator.files(), user.files())
		}
		if out, code := user.types(lines[2]); code != 1 || !strings.Contains(out, "already: pid ") || strings.Contains(out, "address already in use") {
			t.Errorf("a second run: %d, %s", code, out)
		}

		// Ctrl-C of the server. The client knows at once; who asks is told in a while.
		server.Signal(syscall.SIGINT)
		server.Ends(0)
		gateway.Await("the far end has stopped")
		if out, _ := user.types("ptgate status"); !strings.Contains(out, "its server has stopped") {
			t.Error(out)
		}
		const ask = "curl -sS -x socks5h://127.0.0.1:1080 https://example.com/"
		if out, code := user.types(ask); code != 97 {
			t.Errorf("%d, %s", code, out)
		}
		gateway.Await("kind=stopped")
		again := operator.starts("ptgate run")
		again.Await("msg=ready")
		if out, code := user.types(ask); code != 0 || out != page {
			t.Errorf("%d, %s\n%s", code, out, gateway.Log)
		}
		gateway.Await("the far end is back")
	})

	t.Run("webtunnel", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, program)
		directory, roots := w.pebble()
		begun := time.Now()
		operator, user := w.person(w.server, "4003"), w.person(w.client, "4004", "CURL_CA_BUNDLE="+w.authority, "SSL_CERT_FILE="+roots)
		up := strings.Replace(lines[0], serverAddr+":8443", serverName, 1) + " --acme-directory " + directory + " --acme-ca " + w.authority + " --yes"
		server := operator.starts(up)
		server.Await("the authority is asked for a certificate")
		server.Await(`msg="there is a new certificate"`)
		t.Logf("the certificate: %v", time.Since(begun).Round(time.Millisecond))
		joined(t, server, user, lines[1], lines[2])
		t.Logf("from the first command to the page: %v", time.Since(begun).Round(time.Millisecond))
	})
}

// start runs a command until the test ends, or it is interrupted.
func start(t *testing.T, argv ...string) *harness.Process {
	t.Helper()
	name := strings.Join(argv, " ")
	p := harness.Start(t, name, exec.Command(argv[0], argv[1:]...), harness.NewTranscript(t, name))
	t.Cleanup(p.End)
	return p
}

// scratch is a directory that every user may look into.
func scratch(t *testing.T) string {
	t.Helper()
	dir := harness.Scratch(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// put writes a file that every user may read.
func put(t *testing.T, dir, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
