//go:build integration

package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// TestRotate gives a running server new keys. Clients with the old line and with the new one
// get in on the same port, obfs4proxy too, and what was open stays open. Then the old lines
// end at once.
func TestRotate(t *testing.T) {
	own := speaker{name: "ptgate"}
	obfs4proxy := speaker{name: "obfs4proxy", exec: []string{realpt.Program(t, "obfs4proxy")}}
	o, echo := serveOrigin(t), serveEcho(t)
	_, echoPort, _ := net.SplitHostPort(echo)
	for _, tt := range []struct {
		name  string
		serve string
		table string
		line  func(line, addr string) string
		with  []speaker
	}{
		{"obfs4", "transport = \"obfs4\"\nbind = %q\n", "", nil, []speaker{own, obfs4proxy}},
		{"obfs4 in a child", "transport = \"obfs4\"\nbind = %q\n", speaker{isolate: true}.table("obfs4"), nil, []speaker{own}},
		{"webtunnel", "transport = \"webtunnel\"\nbind = %q\ntrusted_proxies = []\n[serve.options]\nurl = \"http://%[1]s/first-path\"\n", "", nil, []speaker{own}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\n"+tt.serve, ports.Free(t))+openExit+tt.table, setting{hosts: originHosts})
			reach := func(name, line string, s speaker) *box {
				t.Helper()
				client := run(t, name, debugLog+fronts+lineBridge(line, "")+everythingVia("far")+s.table("obfs4"), setting{})
				if got := curl(t, "--socks5-hostname", client.socks(), "--cacert", o.ca, o.https+"/hello"); got != helloText {
					t.Errorf("%s, %s: got %q", name, s.name, got)
				}
				return client
			}
			first := bridgeLine(t, server)
			client := reach("first", first, own)
			held, reply := socksOpen(t, client.socks(), originName, echoPort)
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			t.Cleanup(func() { held.Close() }) // before the boxes stop
			answers := func(text string) {
				t.Helper()
				if _, err := io.WriteString(held, text); err != nil {
					t.Errorf("%s: %v", text, err)
				}
				got := make([]byte, len(text))
				if _, err := io.ReadFull(held, got); err != nil || string(got) != text {
					t.Errorf("%s: %q, %v", text, got, err)
				}
			}
			answers("before")

			second := strings.TrimSpace(server.at("rotate", "-c", server.file, "--keep", "1h"))
			if second == first || second != bridgeLine(t, server) {
				t.Errorf("the new line is %s, and the old one %s", second, first)
			}
			answers("after the rotation")
			for _, s := range tt.with {
				reach("second", second, s).Stop()
				reach("first, again", first, s).Stop()
			}

			third := strings.TrimSpace(server.at("rotate", "-c", server.file, "--now"))
			answers("after the end of the old line")
			reach("third", third, own).Stop()
			for _, line := range []string{first, second} {
				box := prepare(t, "ended", fronts+lineBridge(line, "")+everythingVia("far"))
				stdout, stderr, code := command(t, nil, ptgate, "probe", "-c", box.file, "--timeout", "1s")
				if code == 0 {
					t.Errorf("who has an old line gets in\n%s%s", stdout, stderr)
				}
			}

			// A reload keeps the new keys.
			server.at("reload", "-c", server.file)
			if line := bridgeLine(t, server); line != third {
				t.Errorf("after a reload: %s, want %s", line, third)
			}
			answers("after a reload")
			reach("third, again", third, own)
		})
	}
}

// TestRotatePartly has one of two servers fail: the new line of the other one is printed.
func TestRotatePartly(t *testing.T) {
	server := run(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = %q\n[[serve]]\ntransport = \"webtunnel\"\nbind = %q\n"+
		"[serve.options]\nurl = \"http://192.0.2.1/first-path\"\n", ports.Free(t), ports.Free(t))+openExit, setting{})
	server.at("rotate", "-c", server.file)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(server.file), "*", "server-webtunnel", "webtunnel_rotation.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := command(t, nil, ptgate, "rotate", "-c", server.file)
	if code != 1 || !strings.HasPrefix(stdout, "obfs4 ") || strings.Count(stdout, "\n") != 1 || !strings.Contains(stderr, "webtunnel_rotation.json is damaged") {
		t.Errorf("code %d\n%s%s", code, stdout, stderr)
	}
}
