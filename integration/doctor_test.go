//go:build integration

package integration

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ptgate/integration/harness"
	"ptgate/integration/ports"

	"golang.org/x/net/dns/dnsmessage"
)

// diagnosis is what `probe --json` says of one bridge.
type diagnosis struct {
	Name, Kind         string
	Works              bool
	Connections        int
	Evidence           []string
	Says, Itself, Next string
	Error              string
}

// probeAll dials all bridges of a configuration, in a setting.
func probeAll(t *testing.T, file string, s setting, args ...string) map[string]diagnosis {
	t.Helper()
	argv := within(t, s, append([]string{ptgate, "probe", "--json", "-c", file}, args...))
	stdout, stderr, code := command(t, nil, argv...)
	var list []diagnosis
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || code > 1 {
		t.Fatalf("probe: exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	all := map[string]diagnosis{}
	for _, d := range list {
		all[d.Name] = d
	}
	return all
}

// webServer answers as the web server of a bridge may, with a certificate or without.
func webServer(t *testing.T, cert *tls.Certificate, answer string) (addr string) {
	ln := listenIn(t, "", "127.0.0.1:0")
	addr = ln.Addr().String()
	if cert != nil {
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{*cert}})
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			io.WriteString(c, "HTTP/1.1 "+answer+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			c.Close()
		}
	}), ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() { s.Serve(ln); close(done) }()
	t.Cleanup(func() { s.Close(); <-done })
	return addr
}

// TestSituations has the broken situations of bridges. `probe` names the cause and the next
// step in each.
func TestSituations(t *testing.T) {
	// What fails is to fail, and not to be mended by another way that the server tells of.
	serve := func(more string) string {
		return fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\ntell = false\n%s", ports.Free(t), more)
	}
	line := func(more, exit string) string { return bridgeLine(t, run(t, "server", serve(more)+exit, setting{})) }
	good := line("", openExit)
	fields := strings.Fields(good)
	banner := serveTCP(t, func(c *net.TCPConn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n"); io.Copy(io.Discard, c) })
	at := func(addr string) string { return strings.Replace(good, fields[1], addr, 1) }
	cert, _, _ := harness.Certificate(t, "bridge.ptgate.test")
	bridge := func(url, more string) string {
		return fmt.Sprintf("transport = \"webtunnel\"\naddress = \"192.0.2.1:443\"\nargs = { url = \"%s\", utls = \"none\"%s }\n", url, more)
	}
	obfs4 := func(line, more string) string { return "line = \"" + line + "\"\n" + more }
	meek := func(addr string) string {
		return fmt.Sprintf("transport = \"meek_lite\"\naddress = \"192.0.2.1:443\"\nargs = { url = \"http://%s/\" }\n", addr)
	}
	plain := func(answer string) string { return "http://" + webServer(t, nil, answer) + "/secret" }
	secure := webServer(t, &cert, "101 Switching Protocols")
	wrongLetter := strings.Replace(good, "cert="+fields[2][5:7], "cert="+flip(fields[2][5:7]), 1)

	rows := []struct {
		name, bridge string
		kind         string
		cause, next  string // patterns
		running      string // pattern of the kind while ptgate runs and asks nobody why; "": the same
	}{
		{"works", obfs4(good, ""), "works", "", "", ""},
		{"server down", obfs4(at(ports.Free(t)), ""), "closed", "port closed.*nothing listens", "is the server running.*port right", ""},
		{"wrong cert", obfs4(strings.Replace(good, strings.Join(fields[2:], " "), strings.Join(strings.Fields(line("", openExit))[2:], " "), 1), ""),
			"unanswered", "the cert is another server's", "copy the bridge line anew.*keys change when it is installed anew", ""},
		{"one letter", obfs4(wrongLetter, ""), "unanswered", "a wrong letter", "copy the bridge line anew", ""},
		{"filtered", obfs4(at(fullQueue(t)), ""), "filtered", "port filtered: nothing answers at", "firewall", ""},
		{"silent port", obfs4(at(serveTCP(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })), ""), "unanswered", "clock of one side is wrong", "date -u", ""},
		{"another service", obfs4(at(serveTCP(t, func(c *net.TCPConn) { io.Copy(c, io.LimitReader(noise("x"), 9000)) })), ""), "handshake", "not what the bridge line says", "address and args as in the line", ""},
		{"cut at the first byte", obfs4(at(serveTCP(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0) })), ""), "reset-on-data", "cut as soon as the handshake begins", "another transport", ""},
		{"cut at once", obfs4(at(serveTCP(t, func(c *net.TCPConn) { c.SetLinger(0) })), ""), "reset-on-connect", "as soon as it was made", "allow or deny", "reset-on-data|reset-on-connect"}, // by which of two packets is faster
		{"kept out", obfs4(line("deny = [\"127.0.0.0/8\"]\n", openExit), ""), "kept-out", "allow or deny keeps this machine's address out", "client kept out by allow or deny", ""},
		{"not in allow", obfs4(line("allow = [\"192.0.2.0/24\"]\n", openExit), ""), "kept-out", "allow or deny", "public address to allow", ""},
		{"user missing", obfs4(line("", openExit+"users = { guest = \"word-of-pass\" }\n"), ""), "user", "does not take the bridge's user", `\[exit\] users`, ""},
		{"far wrong", obfs4(line("forward = \""+banner+"\"\n", ""), ""), "far", "not what far of the bridge says", `far = "exit" needs a ptgate server`, ""},
		{"far wrong, socks5", obfs4(line("forward = \""+banner+"\"\n", ""), "far = \"socks5\"\n"), "far", "not what far of the bridge says", `"forward" one fixed service`, ""},
		{"IPv6 only", obfs4(at("[2001:db8::1]:443"), ""), "no-route", "no route to host", "IPv6", ""},
		{"no program", "transport = \"dust\"\naddress = \"192.0.2.1:443\"\n", "program", "does not start", "install the program", ""},

		{"web path", bridge(plain("404 Not Found"), ""), "web-path", "the path in the url is wrong", "path of the url", ""},
		{"web backend", bridge(plain("502 Bad Gateway"), ""), "web-backend", "nothing answers behind it", "start ptgate", ""},
		{"web page", bridge(plain("200 OK"), ""), "web-server", "opens no tunnel", "upgrades", ""},
		{"own authority", bridge("https://bridge.ptgate.test/secret", ", addr = \""+secure+"\""), "certificate", "not one that this machine trusts", "SSL_CERT_FILE", ""},
		{"other certificate", bridge("https://bridge.ptgate.test/secret", ", addr = \""+secure+"\", cert = \""+strings.Repeat("A", 43)+"=\""), "certificate", "not the expected one", "intercepted", ""},
		{"meek path", meek(webServer(t, nil, "404 Not Found")), "web-path", "the path in the url is wrong", "path of the url", "no-tunnel"},
		{"meek backend", meek(webServer(t, nil, "502 Bad Gateway")), "web-backend", "nothing answers behind it", "start ptgate", "no-tunnel"},
		{"meek closed", meek(ports.Free(t)), "closed", "port closed", "is the server running", "no-tunnel"},
		{"meek cut", meek(serveTCP(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0) })), "reset-on-data", "cut as soon as the handshake begins", "another transport", "no-tunnel"},
		{"no such name", bridge("https://nowhere.ptgate.test/secret", ""), "names", "is not found", "name server", ""},
		{"poisoned", bridge(fmt.Sprintf("https://poisoned.ptgate.test:%s/secret", portOf(t, ports.Free(t))), ""), "poisoned", "DNS poisoned", "another name server", "closed"},
	}
	said := transcriptOf(t, "situations.txt")
	key := func(name string) string { return strings.NewReplacer(" ", "-", ",", "").Replace(name) }
	text := "[pt.dust]\nexec = [\"/nonexistent/dust\"]\ntransports = [\"dust\"]\n"
	var names []string
	for _, tt := range rows {
		names = append(names, fmt.Sprintf("%q", key(tt.name)))
		text += fmt.Sprintf("[bridge.%s]\n%s", key(tt.name), tt.bridge)
	}
	text += "[[route]]\nto = \"*\"\nvia = [" + strings.Join(names, ", ") + "]\n"
	dir := scratch(t)
	file := write(t, dir, "client.toml", "state_dir = \""+filepath.Join(dir, "state")+"\"\n"+text)
	hosts := setting{hosts: plainHosts + "127.0.0.1 poisoned.ptgate.test\n"}
	all := probeAll(t, file, hosts, "--timeout", "6s")
	right := 0
	for _, tt := range rows {
		d := all[key(tt.name)]
		fine := d.Kind == tt.kind && matches(tt.cause, d.Says) && matches(tt.next, d.Next) && (d.Itself != "") == (tt.kind != "works")
		if fine {
			right++
		} else {
			t.Errorf("%s: %+v, want %s, %q, %q", tt.name, d, tt.kind, tt.cause, tt.next)
		}
		said.add(tt.name, "probe", fmt.Sprintf("%s: %s", d.Kind, d.Says), "next: "+d.Next)
		if d.Connections > 3 {
			t.Errorf("%s: %d connections", tt.name, d.Connections)
		}
	}
	t.Logf("%d of %d situations have their cause and next step", right, len(rows))

	// What runs says the same of each bridge, in its status, its log and its page.
	t.Run("run", func(t *testing.T) {
		page := ports.Free(t)
		before, _, _ := strings.Cut(text, "[[route]]")
		own := "[admin]\nlisten = \"" + page + "\"\n[limits]\ndial = \"12s\"\n" + fronts + before
		for _, tt := range rows {
			own += fmt.Sprintf("[[route]]\nto = \"%s.ptgate.test\"\nvia = \"%s\"\n", key(tt.name), key(tt.name))
		}
		client := run(t, "client", own, hosts)
		var wg sync.WaitGroup
		for _, tt := range rows {
			wg.Go(func() {
				answer := said.curl(t, tt.name, client, key(tt.name)+".ptgate.test")
				if !matches("`ptgate status`|server's log|[Aa]sk its operator", answer) {
					t.Errorf("%s: curl gets %q, which names no next step", tt.name, answer)
				}
			})
		}
		wg.Wait()
		status := fetchStatus(t, page)
		_, body := fetchPage(t, page, "/")
		body = strings.NewReplacer("<code>", "`", "</code>", "`").Replace(body)
		for i, tt := range rows {
			b := status.Bridges[i]
			if strings.Contains(tt.running, "|") {
				said.add(tt.name, "status and page", "one of "+tt.running)
			} else if b.Verdict != nil {
				said.add(tt.name, "status and page", fmt.Sprintf("%s: %s", b.Verdict.Kind, b.Verdict.Says), "next: "+b.Verdict.Next)
			} else {
				said.add(tt.name, "status and page", b.State)
			}
			switch {
			case tt.kind == "works":
				if b.Verdict != nil {
					t.Errorf("%s: %+v", tt.name, b.Verdict)
				}
			case b.Verdict == nil:
				t.Errorf("%s: %s, and nothing is known of it", tt.name, b.State)
			case tt.running != "":
				if !matches("^("+tt.running+")$", string(b.Verdict.Kind)) || b.Verdict.Next == "" {
					t.Errorf("%s: %+v (%s), want %s", tt.name, b.Verdict, b.Why, tt.running)
				}
			case string(b.Verdict.Kind) != tt.kind || !matches(tt.cause, b.Verdict.Says) || !matches(tt.next, b.Verdict.Next):
				t.Errorf("%s: %+v (%s), want %s, %q, %q", tt.name, b.Verdict, b.Why, tt.kind, tt.cause, tt.next)
			default:
				client.log.Wait(t, "bridge=\"?"+key(tt.name)+"\"? .*kind="+tt.kind)
				if !onPage(body, b.Verdict.Next[1:]) {
					t.Errorf("%s: the page does not say %q", tt.name, b.Verdict.Next)
				}
			}
		}
	})

	t.Run("clock", func(t *testing.T) {
		page := ports.Free(t)
		client := prepare(t, "client", "[admin]\nlisten = \""+page+"\"\n[limits]\ndial = \"8s\"\n"+fronts+"[bridge.late]\n"+rows[2].bridge+everythingVia("late"))
		tomorrow := time.Now().Add(24 * time.Hour)
		if err := os.Chtimes(client.file, tomorrow, tomorrow); err != nil {
			t.Fatal(err)
		}
		d := probeAll(t, client.file, hosts, "--timeout", "3s")["late"]
		said.add("clock", "probe", fmt.Sprintf("%s: %s", d.Kind, d.Says), "next: "+d.Next)
		if d.Kind != "clock" || !matches("set the clock", d.Next) || len(d.Evidence) == 0 {
			t.Errorf("%+v", d)
		}
		client.start(hosts)
		said.curl(t, "clock", client, originName)
		said.verdict(t, "clock", page, "clock", "set the clock")
	})
	t.Run("gone silent", func(t *testing.T) {
		page := ports.Free(t)
		link := pausable(t, fields[1])
		client := run(t, "client", "[admin]\nlisten = \""+page+"\"\n[limits]\ndial = \"8s\"\n"+fronts+"[bridge.silent]\n"+obfs4(at(link.addr), "")+everythingVia("silent"), hosts)
		if out := said.curl(t, "link gone silent", client, "before.ptgate.test"); !matches("cannot look up names", out) {
			t.Errorf("before: %s", out)
		}
		link.pause()
		said.curl(t, "link gone silent", client, "after.ptgate.test")
		said.verdict(t, "link gone silent", page, "gone-silent", "another network|look at")
	})
	t.Run("forward", func(t *testing.T) {
		file := write(t, dir, "forward.toml", "[bridge.fixed]\n"+obfs4(good, "far = \"forward\"\n")+everythingVia("fixed"))
		d := probeAll(t, file, hosts, "--deep")["fixed"]
		said.add("far wrong, forward", "probe --deep", fmt.Sprintf("%s: %s", d.Kind, d.Says), "next: "+d.Next)
		if d.Kind != "far" || !matches(`set far = "exit"`, d.Next) {
			t.Errorf("%+v", d)
		}
	})
	t.Run("not readable", func(t *testing.T) {
		file := write(t, dir, "secret.toml", text)
		os.Chmod(dir, 0o755)
		os.Chmod(file, 0)
		os.Chmod(filepath.Dir(ptgate), 0o755)
		out, _, code := command(t, nil, "setpriv", "--reuid="+nobody, "--clear-groups", "env", "-i", ptgate, "check", "-c", file)
		said.add("not readable", "check", strings.ReplaceAll(out, dir+"/", ""))
		if code != 1 || !matches("permission denied: .+", out) {
			t.Errorf("exit code %d, %s", code, out)
		}
	})
	t.Run("no HOME", func(t *testing.T) {
		_, out, code := command(t, nil, "env", "-i", "-C", dir, ptgate, "check")
		said.add("no HOME", "check", out)
		if code != 1 || !matches("no configuration file.*-c FILE", out) {
			t.Errorf("exit code %d, %s", code, out)
		}
	})
}

// A record keeps what is said in each situation, by whom.
type record struct {
	file  string
	mu    sync.Mutex
	names []string
	rows  map[string][]string
}

var update = flag.Bool("update", false, "write what is said into testdata")

// transcriptOf makes a record that is compared with testdata/file when the test has ended.
func transcriptOf(t *testing.T, file string) *record {
	r := &record{file: filepath.Join("testdata", file), rows: map[string][]string{}}
	t.Cleanup(func() {
		if t.Failed() || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
			return // not all of it has been said
		}
		var b strings.Builder
		for _, name := range r.names {
			fmt.Fprintf(&b, "%s\n%s\n", name, strings.Join(r.rows[name], ""))
		}
		if *update {
			if err := os.WriteFile(r.file, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(r.file)
		if err != nil {
			t.Fatal(err)
		}
		if got := b.String(); got != string(want) {
			t.Errorf("%s (-update writes it) differs from what is said:\n%s", r.file, got)
		}
	})
	return r
}

// variable is what differs from run to run.
var variable = regexp.MustCompile(`\[?[0-9a-f:.]*[0-9a-f]\]?:\d{4,5}\b|\b\d+(\.\d+)?(ms|µs|s)\b`)

// add notes what somebody says in a situation.
func (r *record) add(name, who string, lines ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows[name] == nil {
		r.names = append(r.names, name)
	}
	text := "   " + who + "\n"
	for _, line := range lines {
		text += "      " + strings.TrimSpace(variable.ReplaceAllString(line, "…")) + "\n"
	}
	r.rows[name] = append(r.rows[name], text)
}

// curl asks for a page through both fronts, and notes what it gets. It returns that.
func (r *record) curl(t *testing.T, name string, client *box, host string) string {
	return r.curlPort(t, name, client, host, "80")
}

func (r *record) curlPort(t *testing.T, name string, client *box, host, port string) string {
	var code byte
	var wg sync.WaitGroup
	wg.Go(func() {
		var c *net.TCPConn
		c, code = socksOpen(t, client.socks(), host, port)
		c.Close()
	})
	_, out, _ := refusedCurl(t, "-x", "http://"+client.http(), "http://"+net.JoinHostPort(host, port)+"/")
	wg.Wait()
	head, page, _ := strings.Cut(strings.ReplaceAll(out, "\r\n", "\n"), "\n\n")
	first, _, _ := strings.Cut(head, "\n")
	status := regexp.MustCompile(`(?m)^Proxy-Status:.*`).FindString(head)
	text := html.UnescapeString(regexp.MustCompile(`<p>([^<]*)</p>`).FindString(page))
	text = strings.TrimSuffix(strings.TrimPrefix(text, "<p>"), "</p>")
	r.add(name, "curl", first+"; "+status, text, fmt.Sprintf("by SOCKS5: reply %d", code))
	return first + " " + text
}

// verdict notes what the status and the page say of the only bridge.
func (r *record) verdict(t *testing.T, name, page, kind, next string) {
	t.Helper()
	v := fetchStatus(t, page).Bridges[0].Verdict
	if v == nil {
		t.Errorf("%s: nothing is known", name)
		return
	}
	r.add(name, "status and page", fmt.Sprintf("%s: %s", v.Kind, v.Says), "next: "+v.Next)
	if string(v.Kind) != kind || !matches(next, v.Next) {
		t.Errorf("%s: %+v, want %s, %q", name, v, kind, next)
	}
	if _, body := fetchPage(t, page, "/"); !onPage(body, v.Next[1:]) {
		t.Errorf("%s: the page does not say %q", name, v.Next)
	}
}

// fullQueue is a port that drops what asks for a connection, as a firewall does: its queue is
// full, and nobody takes from it.
func fullQueue(t *testing.T) (addr string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { syscall.Close(fd) })
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = syscall.Listen(fd, 0)
	}
	name, nameErr := syscall.Getsockname(fd)
	if err != nil || nameErr != nil {
		t.Fatal(err, nameErr)
	}
	addr = fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	c, err := net.Dial("tcp", addr) // a queue of length 0 has one place
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return addr
}

// A pausableLink leads to an address until it is paused; then it takes everything, and gives nothing.
type pausableLink struct {
	addr   string
	paused chan struct{}
}

func (l *pausableLink) pause() { close(l.paused) }

func pausable(t *testing.T, to string) *pausableLink {
	l := &pausableLink{paused: make(chan struct{})}
	pipe := func(dst, src net.Conn) {
		for buf := make([]byte, 32<<10); ; {
			n, err := src.Read(buf)
			select {
			case <-l.paused:
				n = 0
			default:
			}
			if _, writeErr := dst.Write(buf[:n]); writeErr != nil || err != nil {
				break
			}
		}
		dst.Close()
	}
	l.addr = serveTCP(t, func(c *net.TCPConn) {
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { pipe(far, c) })
		pipe(c, far)
		far.Close()
		c.Close()
		wg.Wait()
	})
	return l
}

// onPage tells whether a page has a text, whose backticks stand for the mark of a command.
func onPage(body, text string) bool {
	return strings.Contains(html.UnescapeString(strings.NewReplacer("<code>", "`", "</code>", "`").Replace(body)), text)
}

func matches(pattern, text string) bool {
	return regexp.MustCompile("(?s)" + pattern).MatchString(text)
}

// flip gives other letters of base64.
func flip(s string) string {
	return strings.Map(func(r rune) rune {
		if r == 'A' {
			return 'B'
		}
		return 'A'
	}, s)
}

// TestDestinations: what a program, the client's log and the server's log say when the
// bridge works and a destination does not.
func TestDestinations(t *testing.T) {
	said := transcriptOf(t, "destinations.txt")
	// Tests of another process must not have the same one.
	resolver := fmt.Sprintf("127.53.%d.%d", os.Getpid()>>8&255, os.Getpid()&255)
	serveNamesAt(t, "", resolver, func(q dnsmessage.Question, b *dnsmessage.Builder, _ <-chan struct{}) dnsmessage.RCode {
		if strings.HasPrefix(q.Name.String(), "elsewhere.") {
			return dnsmessage.RCodeServerFailure
		}
		return dnsmessage.RCodeNameError
	})
	const hosts = plainHosts + "127.0.0.1 down.ptgate.test broken.ptgate.test\n127.0.0.9 forbidden.ptgate.test\n198.51.100.9 far.ptgate.test\n"
	server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+
		"[exit]\nallow = [\"*\"]\ndeny = [\"127.0.0.9\", \"8.8.8.8\", \"10.0.0.0/8\"]\n", setting{hosts: hosts, names: resolver})
	deaf := run(t, "deaf", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t)), setting{})
	client := run(t, "client", debugLog+fronts+lineBridge(bridgeLine(t, server), "")+"[bridge.deaf]\nline = \""+bridgeLine(t, deaf)+"\"\n"+
		"[[route]]\nto = \"deaf.ptgate.test\"\nvia = \"deaf\"\n[[route]]\nto = \"blocked.ptgate.test\"\nvia = \"block\"\n[[route]]\nto = \"*.local.test\"\nvia = \"direct\"\n"+everythingVia("far"), setting{})
	banner := serveTCP(t, func(c *net.TCPConn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n"); io.Copy(io.Discard, c) })
	for _, tt := range []struct {
		name, host  string
		status      string
		page        string
		log, server string
	}{
		{"a route blocks it", "blocked.ptgate.test", "403", "No route of this gateway leads there", `request refused".* reason=blocked`, ""},
		{"the exit forbids it", "forbidden.ptgate.test", "403", "The exit at the far end refuses.*Ask its operator", `request refused".* reason="exit policy"`, ""},
		{"no resolver", "deaf.ptgate.test", "502", "cannot look up names.*operator", `request refused".* reason="no names"`, "names can't be looked up.*resolv.conf"},
		{"its resolver fails", "elsewhere.ptgate.test", "502", "server at the far end could not look the name up.*try again later", `request refused".* reason="name failed"`, ""},
		{"the name is unknown", "unknown.ptgate.test", "502", "name does not exist. Check its spelling", `request refused".* reason="not found"`, ""},
		{"the origin is down", "down.ptgate.test:" + portOf(t, ports.Free(t)), "502", "refused the connection: it is up, but nothing listens", `request refused".* reason=refused`, ""},
		{"no HTTP there", "broken.ptgate.test:" + portOf(t, banner), "502", "did not answer in HTTP", `request refused".* reason="bad response"`, ""},
		{"direct, and no resolver here", "name.local.test", "502", "This machine can't look the name up.*resolv.conf.*ptgate explain NAME", `request refused".* reason="no names here"`, ""},
	} {
		host, port, _ := strings.Cut(tt.host, ":")
		answer := said.curlPort(t, tt.name, client, host, cmp.Or(port, "80"))
		if !matches("HTTP/1.1 "+tt.status+" .*"+tt.page, answer) {
			t.Errorf("%s: %s", tt.name, answer)
		}
		said.add(tt.name, "log of the gateway", known(client.log.Wait(t, ".*"+tt.log+".*")[0]))
		if tt.server != "" {
			said.add(tt.name, "log of the server", known(deaf.log.Wait(t, ".*"+tt.server+".*")[0]))
		}
	}
	if _, reply := socksOpen(t, client.socks(), "8.8.8.8", "80"); reply != 2 {
		t.Errorf("a bare address: reply %d, want 2", reply)
	}
	said.add("a program has looked the name up itself", "curl", "by SOCKS5: reply 2")
	said.add("a program has looked the name up itself", "log of the gateway", known(client.log.Wait(t, ".*"+"a program asked for a bare address.*socks5h"+".*")[0]))
}

// known is a line of the log without what differs from run to run.
func known(line string) string {
	return regexp.MustCompile(`(time|front|client|destination|error|after|more)=("(\\"|[^"])*"|\S+) ?`).ReplaceAllString(line, "")
}
