//go:build integration

package integration

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// What TestPrivateFailures uses and no log may show. Most have no dot and no digit in
// them, so that nothing but where they stand tells that they are secrets.
const (
	frontName   = "secretfront"              // of a web server before a bridge
	frontPath   = "secretpath"               // of its URL
	sniName     = "secretsni"                // what the bridge sends in place of that name
	hiddenDest  = "secretdestination"        // where a client wants to go
	hiddenAddr  = "127.0.66.9"               // the same as an address
	hiddenIPv6  = "2001:db8:66::7"           // and as one of IPv6
	hiddenBox   = "127.0.66.6"               // where the bridges are
	proxyUser   = "secretproxyuser"          // of an upstream proxy
	proxyWord   = "secretproxyword"          // its password
	exitUser    = "secretexituser"           // of a bridge's exit
	exitWord    = "secretexitword"           // its password
	serviceName = "127.0.66.7"               // where a server forwards to
	programWord = "secretword"               // what a transport program says
	optionWord  = "secretoption"             // an option of a served transport
	clientAddr  = "127.0.66.8"               // where requests come from
	requestPath = "/secretrequest?secret=it" // what they ask for
)

var neverShown = []string{frontName, frontPath, sniName, hiddenDest, hiddenAddr, hiddenIPv6, hiddenBox, proxyUser, proxyWord, exitUser, exitWord,
	serviceName, programWord, optionWord, clientAddr, "secretrequest"}

// chatter is a transport program that says secrets in all ways that there are.
const chatter = `
say() { echo "$1 secretword secretfront 127.0.66.6"; }
say dial >&2
echo 'VERSION 1'
echo 'LOG SEVERITY=warning MESSAGE="to secretword at 127.0.66.6"'
echo 'LOG SEVERITY=secretword MESSAGE=secretfront'
echo 'STATUS TRANSPORT=secretword CONNECT=secretfront'
say FOREIGN
`

// TestPrivateFailures: with log.private and at debug level, whatever fails, on both ends,
// neither the log, which is also the standard error, nor the status or the metrics name a
// destination, an address, a name or an arg.
func TestPrivateFailures(t *testing.T) {
	t.Parallel() // it waits more than it works
	dir := scratch(t)
	listen := func(handle func(net.Conn)) (port string) {
		ln := listenIn(t, "", hiddenBox+":0")
		_, port, _ = net.SplitHostPort(serveOn(t, ln, func(c *net.TCPConn) { handle(c) }))
		return port
	}
	own, ownPEM, _ := harness.Certificate(t, frontName)
	other, otherPEM, _ := harness.Certificate(t, frontName+"-not", sniName+"-not")
	unknown, _, _ := harness.Certificate(t, frontName)
	trusted := write(t, dir, "ca.pem", string(ownPEM)+string(otherPEM))
	withTLS := func(certificate tls.Certificate, handle func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			secure := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
			if secure.Handshake() == nil {
				handle(secure)
			}
		}
	}
	answer := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			c.Read(make([]byte, 4096))
			io.WriteString(c, text)
		}
	}
	status := "HTTP/1.1 404 secretword\r\nSecretword: secretfront\r\nContent-Length: 0\r\n\r\n"
	kinds := map[string]string{
		"closed":  portOf(t, ports.Free(t)),
		"plain":   listen(answer("secretword 127.0.66.6\r\n\r\n")),
		"foreign": listen(withTLS(own, answer("secretword 127.0.66.6\r\n\r\n"))),
		"refuses": listen(withTLS(own, answer(status))),
		"wrong":   listen(withTLS(other, answer(status))),
		"unknown": listen(withTLS(unknown, answer(status))),
		"http":    listen(answer(status)),
		"ends":    listen(func(net.Conn) {}),
		"silent":  listen(func(c net.Conn) { io.Copy(io.Discard, c) }),
	}
	obfs4 := strings.Fields(bridgeLine(t, run(t, "other", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+openExit, setting{})))

	// The server, whose fixed services are down, whose program says too much, and which asks for a user.
	obfs4At, forwardAt, webAt := ports.Free(t), ports.Free(t), ports.Free(t)
	serverChatter := script(t, dir, "chatters", chatter+"echo 'SMETHOD chatty 127.0.0.1:1 ARGS:word=secretoption'\necho 'SMETHODS DONE'\nsay 'LOG SEVERITY=error MESSAGE=secretfront'\nsay later >&2\nread x\n")
	server := run(t, "server", debugLog+fmt.Sprintf(`
[[serve]]
transport = "obfs4"
bind = "%s"
[[serve]]
transport = "obfs4"
bind = "%s"
forward = "%s:1"
[[serve]]
transport = "webtunnel"
bind = "%s"
options = { url = "https://%s/%s" }
[[serve]]
transport = "chatty"
bind = "%s"
options = { word = "%s" }
[pt.chatty]
exec = ["%s"]
transports = ["chatty"]
[limits]
handshake = "2s"
`, obfs4At, forwardAt, serviceName, webAt, frontName, frontPath, ports.Free(t), optionWord, serverChatter)+
		openExit+"users = { "+exitUser+" = \""+exitWord+"\" }\n", setting{})
	server.never = slices.DeleteFunc(slices.Clone(neverShown), func(s string) bool { return s == exitUser }) // its operator has named the users
	lines, stderr, code := command(t, nil, ptgate, "bridges", "-c", server.file)
	if code != 0 {
		t.Fatal(stderr)
	}
	var served [][]string
	for line := range strings.Lines(lines) {
		served = append(served, strings.Fields(line))
	}
	args := func(fields []string) string { // as a table's value
		var all []string
		for _, f := range fields {
			if key, value, ok := strings.Cut(f, "="); ok {
				all = append(all, fmt.Sprintf("%s = \"%s\"", key, value))
			}
		}
		return "{ " + strings.Join(all, ", ") + " }"
	}

	for _, pt := range []struct{ name, log, table string }{
		{"inside", debugLog, ""},
		{"apart", debugLog + "format = \"json\"\n", "[pt.it]\nisolate = true\ntransports = [\"webtunnel\", \"obfs4\"]\n"},
		{"real", debugLog + "format = \"json\"\n", fmt.Sprintf("[pt.it]\nexec = [\"%s\", \"-enableLogging\", \"-logLevel=DEBUG\", \"-unsafeLogging\"]\ntransports = [\"obfs4\"]\n", realpt.Program(t, "obfs4proxy"))},
		{"proxied", debugLog, fmt.Sprintf("[pt.it]\ntransports = [\"webtunnel\", \"obfs4\"]\nproxy = \"socks5://%s:%s@%s:%s\"\n", proxyUser, proxyWord, hiddenBox, kinds["ends"])},
	} {
		t.Run(pt.name, func(t *testing.T) {
			var b strings.Builder
			var names []string
			bridge := func(name, transport, address, args, more string) {
				fmt.Fprintf(&b, "[bridge.%s]\ntransport = \"%s\"\naddress = \"%s\"\nargs = %s\n%s[[route]]\nto = \"%[1]s.%[6]s\"\nvia = \"%[1]s\"\n",
					name, transport, address, args, more, hiddenDest)
				names = append(names, name)
			}
			web := func(name, args string) {
				bridge("web-"+name, "webtunnel", "192.0.2.1:443", fmt.Sprintf("{ url = \"https://%s/%s\"%s }", frontName, frontPath, args), "")
			}
			web("lookup", "")
			at := func(kind string) string { return fmt.Sprintf(", addr = \"%s:%s\"", hiddenBox, kinds[kind]) }
			web("sni", at("refuses")+", servername = \""+sniName+"\"")
			web("check", at("refuses")+", cert-domain = \""+sniName+"\"")
			web("hash", at("refuses")+", cert = \""+strings.Repeat("A", 43)+"=\"")
			for kind, port := range kinds {
				web(kind, at(kind))
				web("go-"+kind, at(kind)+", utls = \"none\"")
				bridge("plain-web-"+kind, "webtunnel", "192.0.2.1:443", fmt.Sprintf("{ url = \"http://%s/%s\"%s }", frontName, frontPath, at(kind)), "")
				bridge("obfs4-"+kind, "obfs4", hiddenBox+":"+port, args(obfs4[2:]), "")
			}
			bridge("meek", "meek_lite", "192.0.2.1:443", fmt.Sprintf("{ url = \"https://%s/%s\", front = \"%s\" }", frontName, frontPath, sniName), "")
			bridge("wrong-user", "obfs4", obfs4At, args(served[0][2:]), "user = \""+exitUser+"\"\npassword = \"not-"+exitWord+"\"\n")
			bridge("no-user", "obfs4", obfs4At, args(served[0][2:]), "")
			bridge("right-user", "obfs4", obfs4At, args(served[0][2:]), "user = \""+exitUser+"\"\npassword = \""+exitWord+"\"\n")
			bridge("forward", "obfs4", forwardAt, args(served[1][2:]), "far = \"forward\"\n")
			bridge("other-box", "obfs4", obfs4At, args(obfs4[2:]), "")
			for name, text := range map[string]string{
				"envfails":   "say ENV-ERROR\n",
				"refuses":    "say 'CMETHOD-ERROR refuses'\necho 'CMETHODS DONE'\nread x\n",
				"dies":       "echo 'CMETHOD dies socks5 127.0.0.1:1'\necho 'CMETHODS DONE'\nsay again >&2\nexit 3\n",
				"away":       "echo 'CMETHOD away socks5 127.0.0.1:1'\necho 'CMETHODS DONE'\nsay again >&2\nread x\n",
				"elsewhere":  "echo 'CMETHOD elsewhere socks5 127.0.66.6:1'\necho 'CMETHODS DONE'\nread x\n",
				"nonsense":   "say 'CMETHOD nonsense'\nread x\n",
				"oldversion": "say VERSION-ERROR\n",
			} {
				bridge(name, name, hiddenBox+":9", "{ word = \""+programWord+"\" }", "")
				fmt.Fprintf(&b, "[pt.%s]\nexec = [\"%s\"]\ntransports = [\"%[1]s\"]\n", name, script(t, dir, pt.name+"-"+name, chatter+text))
			}
			fmt.Fprintf(&b, "[[route]]\nto = \"direct.%[1]s\"\nvia = \"direct\"\n[[route]]\nto = [\"block.%[1]s\", \"%[2]s\"]\nvia = \"block\"\n", hiddenDest, hiddenIPv6)
			fmt.Fprintf(&b, "[[route]]\nto = \"%[1]s:1\"\nvia = \"right-user\"\n[[route]]\nto = \"%[1]s:2\"\nvia = \"wrong-user\"\n[[route]]\nto = \"%[1]s:3\"\nvia = \"direct\"\n", hiddenAddr)
			names = append(names, "direct", "block", "nowhere")
			var hosts []string
			for _, name := range names {
				hosts = append(hosts, name+"."+hiddenDest)
			}
			for port := range 4 { // the last one has no route
				hosts = append(hosts, fmt.Sprint(hiddenAddr, ":", port+1), fmt.Sprintf("[%s]:%d", hiddenIPv6, port+1))
			}
			socksAt, httpAt, adminAt := ports.Free(t), ports.Free(t), ports.Free(t)
			text := pt.log + fmt.Sprintf("[listen]\nmixed = %q\nhttp = %q\n[admin]\nlisten = %q\n", socksAt, httpAt, adminAt) + "[limits]\ndial = \"2s\"\n" + b.String() + pt.table
			client := run(t, "client", text, setting{env: []string{"SSL_CERT_FILE=" + trusted}})
			client.never = neverShown
			askAll(t, socksAt, httpAt, hosts)
			failed := strings.Count(client.log.String(), "bridge failed") + strings.Count(client.log.String(), "did not start")
			if failed < len(names)/2 {
				t.Errorf("only %d failures in the log of %d", failed, len(names))
			}
			showsNothing(t, client)
			showsNothingByHTTP(t, adminAt)
			showsNothing(t, server)
			if pt.table != "" {
				return
			}

			// A reload that is refused, and one that fails because a program says too much.
			for i, bad := range []string{
				"[[route]]\nto = \"" + hiddenDest + "..bad\"\nvia = \"nobody\"\n[bridge.x]\ntransport = \"obfs4\"\naddress = \"secretfront:1\"\nargs = { cert = \"secretword\" }\n",
				fmt.Sprintf("[[serve]]\ntransport = \"bad\"\nbind = \"%s\"\noptions = { word = \"secretoption\" }\n[pt.bad]\nexec = [\"%s\"]\ntransports = [\"bad\"]\n",
					ports.Free(t), script(t, dir, "bad", chatter+"say 'SMETHOD-ERROR bad secretoption'\necho 'SMETHODS DONE'\nread x\n")),
			} {
				write(t, client.dir, "client.toml", "state_dir = \""+client.state+"\"\n"+debugLog+fronts+bad)
				if _, _, code := command(t, nil, ptgate, "reload", "-c", client.file); code == 0 {
					t.Errorf("reload %d did not fail", i)
				}
			}
			client.log.Wait(t, "reload failed")
			write(t, client.dir, "client.toml", "state_dir = \""+client.state+"\"\n"+text)
			showsNothing(t, client)
		})
	}
	// What reaches the server's ports and is none of its clients.
	for _, addr := range []string{obfs4At, forwardAt, webAt} {
		c := dial(t, addr)
		fmt.Fprintf(c, "GET /secretrequest HTTP/1.1\r\nHost: secretfront\r\nX-Forwarded-For: %s\r\n\r\n", clientAddr)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}
	showsNothing(t, server)
}

// askAll asks the client for a page of each of the hosts, over SOCKS5, SOCKS4 and HTTP.
func askAll(t *testing.T, socks, http string, hosts []string) {
	t.Helper()
	requests := make(chan string)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for host := range requests {
				for _, proxy := range []string{"socks5h://" + socks, "socks4a://" + socks, "http://" + http} {
					stream(t, nil, io.Discard, io.Discard, "curl", "-sS", "--max-time", "30", "--interface", clientAddr, "-x", proxy, "http://"+host+requestPath)
				}
			}
		})
	}
	for _, host := range hosts {
		requests <- host
	}
	close(requests)
	wg.Wait()
}

// showsNothing looks for secrets in the log of a box, in its status and its metrics.
func showsNothing(t *testing.T, b *box) {
	t.Helper()
	look := func(where, text string) {
		t.Helper()
		for _, secret := range b.never {
			if line := regexp.MustCompile(`.*` + regexp.QuoteMeta(secret) + `.*`).FindString(text); line != "" {
				t.Errorf("the %s of %s has %q:\n%s", where, b.name, secret, line)
			}
		}
	}
	look("log", b.log.String())
	for _, form := range []string{"--json=false", "--json"} {
		stdout, stderr, code := command(t, nil, ptgate, "status", "-c", b.file, form)
		if code != 0 {
			t.Errorf("status %s of %s: exit code %d: %s", form, b.name, code, stderr)
		}
		look("status", stdout+stderr)
	}
}

// showsNothingByHTTP looks for them in what the status page's port says.
func showsNothingByHTTP(t *testing.T, addr string) {
	t.Helper()
	for _, path := range []string{"/", "/metrics", "/api/v1/status", "/healthz", "/readyz"} {
		var out bytes.Buffer
		stream(t, nil, &out, io.Discard, "curl", "-sS", "--noproxy", "*", "--max-time", "30", "http://"+addr+path)
		if strings.Contains(path, "metrics") && !strings.Contains(out.String(), "ptgate_") {
			t.Errorf("%s: %q", path, out.String())
		}
		for _, secret := range neverShown {
			if strings.Contains(out.String(), secret) {
				t.Errorf("%s has %q:\n%s", path, secret, out.String())
			}
		}
	}
}
