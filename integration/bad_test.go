//go:build integration

package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ptgate/integration/ports"
)

// script writes a program of a few lines of shell.
func script(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBadBridges has every way in which a bridge can be of no use. Each request
// gets an answer within limits.dial, the log says what to do, and the gateway
// goes on serving.
func TestBadBridges(t *testing.T) {
	t.Parallel() // it waits more than it works
	const limit = 3 * time.Second
	dir := scratch(t)
	server := run(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+openExit, setting{hosts: originHosts})
	good := bridgeLine(t, server)
	other := bridgeLine(t, run(t, "other", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+openExit, setting{}))
	// The other's cert at the server's address.
	wrong := strings.Join(append(strings.Fields(good)[:2], strings.Fields(other)[2:]...), " ")
	down := strings.Replace(good, strings.Fields(good)[1], ports.Free(t), 1)
	silentPort := serveTCP(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	silent := strings.Replace(good, strings.Fields(good)[1], silentPort, 1)
	// Something that answers, but is no transport.
	foreign := strings.Replace(good, strings.Fields(good)[1], serveTCP(t, func(c *net.TCPConn) {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
	}), 1)
	notExecutable := write(t, dir, "not-executable", "#!/bin/sh\n")

	const noBridge, timeout = 3, 6
	tests := []struct {
		name, line string
		exec       string // of the PT; "": the built-in one
		reply      byte
		log        string // a pattern that the log must have
	}{
		{"missing", good, filepath.Join(dir, "nothing-here"), noBridge, `bridge failed".*nothing-here.*no such file.*advice="the transport program does not start. Install`},
		{"not executable", good, notExecutable, noBridge, `bridge failed".*not-executable.*permission denied.*advice="the transport program does not start. Make the transport program executable`},
		{"silent program", good, script(t, dir, "silent", "exec sleep 1000\n"), timeout, `did not start".*not ready.*advice="this may be no transport program`},
		{"dies early", good, script(t, dir, "dies", "echo the license has expired >&2\nexit 3\n"), noBridge, `bridge failed".*exit status 3 .what it said is left out.*advice="the transport program does not start`},
		{"refuses the transport", good, script(t, dir, "refuses", "echo VERSION 1\necho CMETHOD-ERROR obfs4 this build has no obfs4\necho CMETHODS DONE\nread x\n"), noBridge, `bridge failed".*refused by the transport program .what it said is left out.*advice="the transport program does not start. The program does not offer this transport`},
		{"not a PT", good, "/bin/ls", noBridge, `bridge failed".*advice="the transport program does not start. This may be no transport program`},
		{"wrong cert", wrong, "", timeout, `bridge failed".*kind=unanswered.*advice=".*the cert is another server.*Copy the bridge line anew.*date -u`},
		{"bridge down", down, "", noBridge, `bridge failed".*connect.*connection refused.*advice="port closed: .*nothing listens there. Is the server running`},
		{"silent port", silent, "", timeout, `bridge failed".*kind=unanswered.*did not answer the handshake`},
		{"another service", foreign, "", noBridge, `bridge failed".*kind=handshake.*advice="the handshake has failed.*Is the server running`},
		{"bridge down, obfs4proxy", down, "obfs4proxy", noBridge, `bridge failed".*advice="the handshake has failed.*Is the server running`},
		{"wrong cert, obfs4proxy", wrong, "obfs4proxy", timeout, `bridge failed".*kind=unanswered.*did not answer the handshake`},
	}
	echo := serveEcho(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := debugLog + fronts + "[limits]\ndial = \"" + limit.String() + "\"\n" + lineBridge(tt.line, "") +
				"[[route]]\nto = \"127.0.0.0/8\"\nvia = \"direct\"\n" + everythingVia("far")
			if tt.exec != "" {
				text += speaker{exec: []string{tt.exec}}.table("obfs4")
			}
			client := run(t, "client", text, setting{})
			client.never = []string{originName, strings.TrimPrefix(strings.Fields(tt.line)[2], "cert=")}
			begin := time.Now()
			_, reply := socksOpen(t, client.socks(), originName, "80")
			if reply != tt.reply {
				t.Errorf("SOCKS5 reply %d, want %d", reply, tt.reply)
			}
			status := "502"
			if tt.reply == timeout {
				status = "504"
			}
			if _, out, _ := refusedCurl(t, "-x", "http://"+client.http(), "http://"+originName+"/"); !strings.HasPrefix(out, "HTTP/1.1 "+status+" ") && !strings.HasPrefix(out, "HTTP/1.1 502 ") {
				t.Errorf("HTTP: %q, want %s", out, status)
			}
			// Programs take their time to start on a busy machine. Without the limit it would be more
			// than a minute.
			if took := time.Since(begin); took > 2*limit+15*time.Second {
				t.Errorf("the answers took %v, the limit is %v for each", took, limit)
			}
			client.log.Wait(t, tt.log)
			if c, reply := socksOpen(t, client.socks(), "127.0.0.1", portOf(t, echo)); reply != 0 {
				t.Errorf("afterwards: reply %d", reply)
			} else {
				c.Close()
			}
			if os.Getenv("PTGATE_TEST_LOG") != "" {
				t.Logf("%s", client.log)
			}
		})
	}
}

// TestBadClients has everything that may come to the two ports. Each gets the
// protocol's own refusal, soon, and the gateway goes on.
func TestBadClients(t *testing.T) {
	const handshake = 2 * time.Second
	echo := serveEcho(t)
	s, c := pairFiles(t, "--address", ports.Free(t))
	run(t, "server", debugLog+s, setting{hosts: originHosts})
	c = regexp.MustCompile(`(?m)^mixed .*$`).ReplaceAllString(c, strings.TrimPrefix(fronts, "[listen]\n")) // each port takes one protocol
	client := run(t, "client", debugLog+c+"[limits]\nhandshake = \""+handshake.String()+"\"\n", setting{})
	client.never = []string{originName, "inject", "127.0.0.1:" + portOf(t, echo)}

	works := func(t *testing.T) {
		t.Helper()
		for name, open := range map[string]func() *net.TCPConn{
			"SOCKS5": func() *net.TCPConn {
				c, reply := socksOpen(t, client.socks(), originName, portOf(t, echo))
				if reply != 0 {
					t.Fatalf("SOCKS5 afterwards: reply %d", reply)
				}
				return c
			},
			"HTTP": func() *net.TCPConn { return httpOpen(t, client.http(), originName+":"+portOf(t, echo)) },
		} {
			c := open()
			io.WriteString(c, "ping")
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				t.Errorf("%s afterwards: %v", name, err)
			}
			c.Close()
		}
	}

	t.Run("names", func(t *testing.T) {
		for _, tt := range []struct {
			name string
			port uint16
		}{
			{"", 80},
			{originName, 0},
			{"inject\x00" + originName, 80},
			{"inject\n" + originName, 80},
			{"inject\r\nX: y", 80},
			{originName + "/inject", 80},
			{"inject " + originName, 80},
			{strings.Repeat("inject.", 36) + "com", 80},     // 255 bytes, over DNS's 253
			{strings.Repeat("inject", 11) + ".example", 80}, // a label over 63
			{"..", 80},
			{"inject\xff\xfe", 80},
		} {
			t.Run(fmt.Sprintf("%.20q %d", tt.name, tt.port), func(t *testing.T) {
				c := dial(t, client.socks())
				if reply := socksRequest(c, []byte(tt.name), tt.port); reply != 1 {
					t.Errorf("reply %d, want 1", reply)
				}
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("after the refusal: %v, want the end", err)
				}
			})
		}
		works(t)
	})
	t.Run("authorities", func(t *testing.T) {
		long := strings.Repeat("inject.", 36) + "com"
		for _, authority := range []string{":80", originName, originName + ":0", originName + ":65536", originName + ":http", "in\x00ject:80", long + ":80",
			"user@" + originName + ":80", "/inject", originName + ":80/inject"} {
			t.Run(fmt.Sprintf("%.30q", authority), func(t *testing.T) {
				c := dial(t, client.http())
				fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", authority)
				answer, err := io.ReadAll(c)
				if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
					t.Errorf("%.100q, %v, want 400", answer, err)
				}
				if strings.Contains(string(answer), "inject") {
					t.Errorf("the answer repeats what was asked: %q", answer)
				}
			})
		}
		for _, line := range []string{"GET http:///x HTTP/1.1", "GET http://" + originName + ":0/ HTTP/1.1", "GET ftp://" + originName + "/ HTTP/1.1",
			"GET https://" + originName + "/ HTTP/1.1", "GET / HTTP/1.1", "GET http://" + long + "/ HTTP/1.1"} {
			t.Run(fmt.Sprintf("%.30q", line), func(t *testing.T) {
				c := dial(t, client.http())
				fmt.Fprintf(c, "%s\r\nHost: x\r\nConnection: close\r\n\r\n", line)
				answer, err := io.ReadAll(c)
				if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
					t.Errorf("%.100q, %v, want 400", answer, err)
				}
			})
		}
		works(t)
	})
	t.Run("garbage", func(t *testing.T) {
		random := make([]byte, 4096)
		io.ReadFull(noise("garbage"), random)
		random[0] = 0xfe
		for _, front := range []struct{ name, addr string }{{"socks5", client.socks()}, {"http", client.http()}} {
			for name, bytes := range map[string]string{
				"random":            string(random),
				"zeros":             string(make([]byte, 4096)),
				"TLS":               "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
				"SOCKS4":            "\x04\x01\x00\x50\x7f\x00\x00\x01me\x00",
				"SSH":               "SSH-2.0-OpenSSH_9.2\r\n",
				"endless line":      "GET " + strings.Repeat("a", 4<<20),
				"bind, not connect": "\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50",
			} {
				t.Run(front.name+" "+name, func(t *testing.T) {
					c := dial(t, front.addr)
					io.WriteString(c, bytes) // it may be cut off in the middle
					begin := time.Now()
					n, _ := io.Copy(io.Discard, c)
					if n > 64<<10 {
						t.Errorf("an answer of %d bytes", n)
					}
					if took := time.Since(begin); took > handshake+5*time.Second {
						t.Errorf("the connection stayed for %v, limits.handshake is %v", took, handshake)
					}
				})
			}
			for name, begin := range map[string]string{"silence": "", "half a greeting": "\x05\x02", "half a request": "\x05\x01\x00\x05\x01\x00\x03", "half a line": "CONNECT a"} {
				t.Run(front.name+" "+name, func(t *testing.T) {
					c := dial(t, front.addr)
					io.WriteString(c, begin)
					start := time.Now()
					if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
						t.Error("the connection stays")
					}
					if took := time.Since(start); took > handshake+5*time.Second {
						t.Errorf("the connection stayed for %v, limits.handshake is %v", took, handshake)
					}
				})
			}
		}
		// The operator is told of a program that is set to the wrong port.
		const foreign = `level=WARN msg="the client speaks another protocol than this port" front=`
		client.log.Wait(t, foreign+`http protocol=socks5 .*advice="set the program to`)
		client.log.Wait(t, foreign+`http protocol=tls`)
		client.log.Wait(t, foreign+`socks5 protocol=http`)
		works(t)
	})
}

// TestGarbageAtServer sends noise to the transport's own port.
func TestGarbageAtServer(t *testing.T) {
	bind := ports.Free(t)
	server := run(t, "server", debugLog+fmt.Sprintf("[limits]\nhandshake = \"2s\"\n[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", bind)+openExit, setting{hosts: originHosts})
	client := run(t, "client", fronts+lineBridge(bridgeLine(t, server), "")+everythingVia("far"), setting{})
	o := serveOrigin(t)
	for i := range 20 {
		c := dial(t, bind)
		io.CopyN(c, noise(fmt.Sprint(i)), 64<<10)
		c.Close()
	}
	carries(t, client, o)
}
