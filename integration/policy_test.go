//go:build integration

package integration

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// TestPrivateLog: with log.private, and at the level that says most, neither box
// writes down where a request goes, where it comes from, or what opens a bridge.
func TestPrivateLog(t *testing.T) {
	const (
		application = "127.0.7.7" // where requests come from
		nearBox     = "127.0.8.8" // the client box, as the server sees it
		destination = "127.0.9.9"
	)
	o := serveOrigin(t)
	obfs4proxy := []string{realpt.Program(t, "obfs4proxy"), "-enableLogging", "-logLevel=DEBUG", "-unsafeLogging"}
	for _, pt := range []speaker{
		{name: "built in"},
		{name: "ptgate pt", isolate: true},
		{name: "obfs4proxy, unsafe logging", exec: obfs4proxy},
	} {
		t.Run(pt.name, func(t *testing.T) {
			table := pt.table("obfs4")
			if table == "" {
				table = "[pt.it]\ntransports = [\"obfs4\"]\n"
			}
			far := fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\ndeny = [\"192.0.2.0/24\"]\n", ports.Free(t)) +
				openExit + "users = { guest = \"word-of-pass\" }\n" + table
			server := run(t, "server", debugLog+far, setting{hosts: originHosts + destination + " named.ptgate.test\n"})
			line := bridgeLine(t, server)
			near := "[listen]\nsocks5 = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nusers = { someone = \"secret-word\" }\n" +
				lineBridge(line, "user = \"guest\"\npassword = \"word-of-pass\"\n") +
				"[[route]]\nto = [\"127.0.9.0/24:1\", \"direct.ptgate.test\"]\nvia = \"direct\"\n" + "[[route]]\nto = \"blocked.ptgate.test\"\nvia = \"block\"\n" + everythingVia("far") +
				table + "bind_v4 = \"" + nearBox + "\"\n"
			client := run(t, "client", debugLog+near, setting{})
			secrets := []string{"ptgate.test", destination, application, nearBox, "word-of-pass", "secret-word", "someone",
				strings.TrimPrefix(strings.Fields(line)[2], "cert=")}
			server.never, client.never = secrets, secrets

			get := func(user, url string) {
				for _, proxy := range []string{"socks5h://" + user + "@" + client.socks(), "http://" + user + "@" + client.http()} {
					refusedCurl(t, "--interface", application, "-k", "-x", proxy, url)
				}
			}
			get("someone:secret-word", o.https+"/hello")
			get("someone:secret-word", o.http+"/hello")
			get("someone:secret-word", "http://missing.ptgate.test/")
			get("someone:secret-word", "http://blocked.ptgate.test/")
			get("someone:secret-word", "http://direct.ptgate.test/")
			get("someone:secret-word", "http://named.ptgate.test:1/")
			get("someone:secret-word", "http://"+destination+":1/")
			get("someone:secret-word", "http://"+destination+":2/")
			get("someone:wrong", o.http+"/hello")
			c := dial(t, client.socks())
			fmt.Fprintf(c, "\x04\x01garbage %s", originName)
			c.CloseWrite()
			io.Copy(io.Discard, c)
			if log := client.log.String(); strings.Count(log, "msg=\"request refused\"") < 5 {
				t.Errorf("the log says too little to prove anything:\n%s", log)
			}

			if pt.exec == nil {
				return
			}
			// And with private off the same log has them: the test can see.
			open := run(t, "open", "[log]\nlevel = \"debug\"\nprivate = false\n"+near, setting{})
			curl(t, "--interface", application, "-x", "socks5h://someone:secret-word@"+open.socks(), o.http+"/hello")
			refusedCurl(t, "--interface", application, "-x", "socks5h://someone:secret-word@"+open.socks(), "http://blocked.ptgate.test/")
			open.log.Wait(t, application)
			open.log.Wait(t, "blocked.ptgate.test")
		})
	}
}

// TestUsers: with users, nobody gets in without a password.
func TestUsers(t *testing.T) {
	o := serveOrigin(t)
	client := run(t, "client", debugLog+"[listen]\nsocks5 = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nusers = { ann = \"p:ss wörd\", bob = \"other\" }\n"+everythingDirect, setting{hosts: originHosts})
	for _, tt := range []struct {
		user string
		ok   bool
	}{
		{"ann:p:ss wörd", true}, {"bob:other", true},
		{"", false}, {"ann:other", false}, {"bob:", false}, {"eve:other", false}, {"ann:p:ss wörd ", false},
	} {
		t.Run(tt.user, func(t *testing.T) {
			for _, way := range [][]string{{"--socks5-hostname", client.socks()}, {"-x", "http://" + client.http()}} {
				for _, url := range []string{o.http, o.https} {
					args := append(way, "--cacert", o.ca, url+"/hello")
					if tt.user != "" {
						args = append(args, "--proxy-user", tt.user)
					}
					code, out, stderr := refusedCurl(t, args...)
					switch {
					case tt.ok:
						if code != 0 || !strings.HasSuffix(out, helloText) {
							t.Errorf("%v: exit code %d, %q, %s", args, code, out, stderr)
						}
					case way[0] == "-x":
						if !strings.HasPrefix(out, "HTTP/1.1 407 ") || !strings.Contains(out, "Proxy-Authenticate: Basic realm=") {
							t.Errorf("%v: exit code %d, %q, want 407", args, code, out)
						}
					case code != 97:
						t.Errorf("%v: exit code %d, %q, want a failed SOCKS handshake", args, code, out)
					}
				}
			}
		})
	}
	t.Run("no credentials reach the origin", func(t *testing.T) {
		got := curl(t, "-x", "http://"+client.http(), "--proxy-user", "bob:other", "-H", "X-Own: kept", o.http+"/headers")
		for _, bad := range []string{"Proxy-", "Via", "Forwarded", "X-Real"} {
			if strings.Contains(got, bad) {
				t.Errorf("the origin was sent %s", got)
			}
		}
		if !strings.Contains(got, "X-Own: kept") {
			t.Errorf("the origin was not sent the client's own field: %s", got)
		}
	})
}

// TestOpenListener: a port that others can reach needs users or allow, and allow
// holds.
func TestOpenListener(t *testing.T) {
	refused := prepare(t, "refused", "[listen]\nsocks5 = \"0.0.0.0:0\"\n"+everythingDirect)
	for _, sub := range []string{"check", "run"} {
		stdout, stderr, code := command(t, nil, ptgate, sub, "-c", refused.file)
		if code != 1 || !strings.Contains(stdout+stderr, "refused.toml:3: [listen]: other machines can reach this listener") {
			t.Errorf("%s: exit code %d, %s%s", sub, code, stdout, stderr)
		}
	}
	echo := serveEcho(t)
	b := run(t, "open", debugLog+"[listen]\nsocks5 = \"0.0.0.0:0\"\nhttp = \"0.0.0.0:0\"\nallow = [\"127.0.1.0/24\"]\n"+everythingDirect, setting{})
	try := func(front, from string) error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", "127.0.0.1:"+b.log.Wait(t, `front=`+front+` address=\S+:(\d+)`)[1])
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if front == "socks5" {
			if reply := socksRequest(c, []byte("127.0.0.1"), 1); reply == 0xff {
				return io.EOF
			}
			return nil
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", echo)
		_, err = io.ReadFull(c, make([]byte, 12))
		return err
	}
	for _, front := range []string{"socks5", "http"} {
		if err := try(front, "127.0.1.9"); err != nil {
			t.Errorf("%s: an allowed client: %v", front, err)
		}
		if err := try(front, "127.0.2.9"); err == nil {
			t.Errorf("%s: a client that is not allowed got an answer", front)
		}
	}
}

// TestExitPolicy: what the exit denies is denied by the address that a name leads
// to, and its patterns and users hold.
func TestExitPolicy(t *testing.T) {
	o := serveOrigin(t)
	echo := serveEcho(t)
	hosts := originHosts + "::1 six.ptgate.test\n10.1.2.3 ten.ptgate.test\n169.254.169.254 metadata.ptgate.test\n::ffff:127.0.0.1 mapped.ptgate.test\n"
	pair := func(exit, user string) (client *box) {
		server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+exit, setting{hosts: hosts})
		return run(t, "client", debugLog+fronts+lineBridge(bridgeLine(t, server), user)+everythingVia("far"), setting{})
	}
	answers := func(t *testing.T, client *box, name string, socks byte, status string) {
		t.Helper()
		if _, reply := socksOpen(t, client.socks(), name, portOf(t, echo)); reply != socks {
			t.Errorf("%s: SOCKS5 reply %d, want %d", name, reply, socks)
		}
		c := dial(t, client.http())
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", net.JoinHostPort(name, portOf(t, echo)))
		got := make([]byte, 12)
		if io.ReadFull(c, got); string(got) != "HTTP/1.1 "+status {
			t.Errorf("%s: %q, want %s", name, got, status)
		}
	}
	t.Run("private", func(t *testing.T) {
		client := pair("", "") // the default denies private addresses
		for _, name := range []string{originName, "localhost", "six.ptgate.test", "ten.ptgate.test", "metadata.ptgate.test", "mapped.ptgate.test",
			"127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "10.1.2.3", "169.254.169.254", "224.0.0.1"} {
			answers(t, client, name, 2, "403")
		}
	})
	t.Run("patterns", func(t *testing.T) {
		client := pair("[exit]\nallow = [\""+originName+"\"]\ndeny = [\""+originName+":1-1023\"]\n", "")
		answers(t, client, originName, 0, "200")
		answers(t, client, "private.ptgate.test", 2, "403")
		if _, reply := socksOpen(t, client.socks(), originName, "25"); reply != 2 {
			t.Errorf("a denied port: reply %d, want 2", reply)
		}
	})
	t.Run("refused, unreachable, not found", func(t *testing.T) {
		client := pair(openExit, "")
		if _, reply := socksOpen(t, client.socks(), originName, portOf(t, ports.Free(t))); reply != 5 {
			t.Errorf("nothing listens: reply %d, want 5", reply)
		}
		answers(t, client, "missing.ptgate.test", 4, "502")
	})
	t.Run("users", func(t *testing.T) {
		const users = openExit + "users = { guest = \"word-of-pass\" }\n"
		client := pair(users, "user = \"guest\"\npassword = \"word-of-pass\"\n")
		if got := curl(t, "--socks5-hostname", client.socks(), o.http+"/hello"); got != helloText {
			t.Errorf("got %q", got)
		}
		for _, user := range []string{"", "user = \"guest\"\npassword = \"wrong\"\n"} {
			client := pair(users, user)
			if _, reply := socksOpen(t, client.socks(), originName, portOf(t, echo)); reply == 0 {
				t.Errorf("%q was let in", user)
			}
		}
	})
}

// TestConnectionLimit: one connection too many is told so, on each front and at
// the far end, and there is room again when one has ended.
func TestConnectionLimit(t *testing.T) {
	const limit = 4
	echo := serveEcho(t)
	limits := fmt.Sprintf("[limits]\nconnections = %d\n", limit)
	for _, tt := range []struct{ name, near, far string }{{"near end", limits, ""}, {"far end", "", limits}} {
		t.Run(tt.name, func(t *testing.T) {
			s, c := pairFiles(t, "--address", ports.Free(t))
			run(t, "server", debugLog+s+tt.far, setting{hosts: originHosts})
			client := run(t, "client", debugLog+c+tt.near, setting{})
			conns := make([]*net.TCPConn, limit)
			for i := range conns {
				var reply byte
				if conns[i], reply = socksOpen(t, client.socks(), originName, portOf(t, echo)); reply != 0 {
					t.Fatalf("connection %d: reply %d", i, reply)
				}
				// A round trip: it is there, and no assumption.
				io.WriteString(conns[i], "x")
				if _, err := io.ReadFull(conns[i], make([]byte, 1)); err != nil {
					t.Fatalf("connection %d: %v", i, err)
				}
			}
			c5, reply := socksOpen(t, client.socks(), originName, "81") // a new destination: no assumption, either
			if reply != 1 {
				t.Errorf("one too many: reply %d, want 1", reply)
			}
			c5.Close()
			_, out, _ := refusedCurl(t, "-x", "http://"+client.http(), "http://"+originName+":81/")
			if !strings.HasPrefix(out, "HTTP/1.1 503 ") || !strings.Contains(out, "Proxy-Status: ptgate; error=connection_limit_reached") {
				t.Errorf("one too many: %q, want 503", out)
			}
			for _, c := range conns[1:] {
				io.WriteString(c, "y")
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Errorf("one of those within the limit: %v", err)
				}
			}
			conns[0].Close()
			// The place is free when the box has seen the end; requests until then
			// are refused like the one above.
			for begin := time.Now(); ; {
				c, reply := socksOpen(t, client.socks(), originName, portOf(t, echo))
				back := make([]byte, 1)
				io.WriteString(c, "z")
				_, err := io.ReadFull(c, back)
				c.Close()
				if reply == 0 && err == nil {
					break
				}
				if time.Since(begin) > patience {
					t.Fatalf("no room again: reply %d, %v", reply, err)
				}
			}
		})
	}
}

// TestEnvironment: proxies in ptgate's own environment are not its business.
func TestEnvironment(t *testing.T) {
	o := serveOrigin(t)
	nowhere := "http://" + ports.Free(t)
	env := setting{hosts: originHosts, env: []string{"HTTP_PROXY=" + nowhere, "http_proxy=" + nowhere, "HTTPS_PROXY=" + nowhere, "https_proxy=" + nowhere, "ALL_PROXY=" + nowhere,
		"TOR_PT_SERVER_TRANSPORTS=obfs4", "TOR_PT_PROXY=" + nowhere}}
	server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+openExit+speaker{isolate: true}.table("obfs4"), env)
	client := run(t, "client", debugLog+fronts+lineBridge(bridgeLine(t, server), "")+everythingVia("far")+
		speaker{exec: []string{realpt.Program(t, "obfs4proxy")}}.table("obfs4"), env)
	carries(t, client, o)
}

// TestEnv: what `ptgate env` prints leads each program to the destination, by a name
// that only the far end knows. Debian's httpx refuses a proxy with socks5h:// for
// whatever it is to fetch.
func TestEnv(t *testing.T) {
	const httpx = "import sys, httpx; print(httpx.get(sys.argv[1]).text, end='')"
	const requests = "import sys, requests; print(requests.get(sys.argv[1]).text, end='')"
	o := serveOrigin(t)
	head := o.makeRepository(t, "repo")
	s, c := pairFiles(t, "--address", ports.Free(t))
	run(t, "server", s, setting{hosts: originHosts})
	for range 2 { // fixed ports, which `ptgate env` needs
		c = strings.Replace(c, "127.0.0.1:0", ports.Free(t), 1)
	}
	client := run(t, "client", c, setting{})
	for name, argv := range map[string][]string{
		"curl":             {"curl", "-sSf", "URL/hello"},
		"curl, ALL_PROXY":  {"env", "-u", "all_proxy", "-u", "http_proxy", "-u", "https_proxy", "-u", "HTTPS_PROXY", "curl", "-sSf", "URL/hello"},
		"curl, all_proxy":  {"env", "-u", "ALL_PROXY", "-u", "http_proxy", "-u", "https_proxy", "-u", "HTTPS_PROXY", "curl", "-sSf", "URL/hello"},
		"wget":             {"wget", "-q", "--ca-certificate", o.ca, "-O", "-", "URL/hello"},
		"git":              {"git", "ls-remote", "URL/repo.git", "HEAD"},
		"python3-httpx":    {"/usr/bin/python3", "-c", httpx, "URL/hello"},
		"python3-requests": {"/usr/bin/python3", "-c", requests, "URL/hello"},
	} {
		want := helloText
		if name == "git" {
			want = head + "\tHEAD\n"
		}
		for scheme, url := range map[string]string{"http": o.http, "https": o.https} {
			t.Run(name+" "+scheme, func(t *testing.T) {
				script := `eval "$("$0" env -c "$1")" && shift && export SSL_CERT_FILE="$1" CURL_CA_BUNDLE="$1" REQUESTS_CA_BUNDLE="$1" GIT_SSL_CAINFO="$1" && shift && exec "$@"`
				full := []string{"sh", "-c", script, ptgate, client.file, o.ca}
				for _, a := range argv {
					full = append(full, strings.Replace(a, "URL/", url+"/", 1))
				}
				if got := must(t, within(t, setting{}, full)...); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}
