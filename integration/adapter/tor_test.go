//go:build integration

package adapter_test

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// tor is a running tor and what it logs.
type tor struct {
	t     *testing.T
	name  string
	dir   string
	lines chan string // closed when it has ended
	said  []string
}

// startTor runs tor with a torrc of its own, knowing no network but the one
// made up here.
func startTor(t *testing.T, name, torrc string) *tor {
	t.Helper()
	n := &tor{t: t, name: name, dir: filepath.Join(t.TempDir(), name), lines: make(chan string, 10_000)}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rc := filepath.Join(n.dir, "torrc")
	const common = `
DataDirectory %s
TestingTorNetwork 1
DirAuthority nobody orport=9 v3ident=0123456789ABCDEF0123456789ABCDEF01234567 127.0.0.1:9 0123456789ABCDEF0123456789ABCDEF01234567
Log notice stdout
Log [pt,handshake]info stdout
SafeLogging 0
`
	if err := os.WriteFile(rc, fmt.Appendf(nil, common+torrc, filepath.Join(n.dir, "data")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(realpt.Program(t, "tor"), "-f", rc, "--defaults-torrc", os.DevNull)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(n.lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			select {
			case n.lines <- scan.Text():
			default: // nobody waits for a line any more
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("%s does not end", name)
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, strings.Join(n.said, "\n"))
		}
	})
	return n
}

// wait waits for a line that matches.
func (n *tor) wait(pattern string) {
	n.t.Helper()
	want := regexp.MustCompile(pattern)
	limit := time.After(60 * time.Second)
	for {
		select {
		case line, ok := <-n.lines:
			if !ok {
				n.t.Fatalf("%s ended before it said %q", n.name, pattern)
			}
			n.said = append(n.said, line)
			if want.MatchString(line) {
				return
			}
		case <-limit:
			n.t.Fatalf("%s never said %q", n.name, pattern)
		}
	}
}

// obfs4Args reads the args that clients need from the state that an obfs4
// server keeps.
func obfs4Args(t *testing.T, state string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(state, "obfs4_state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var keys struct {
		NodeID    string `json:"node-id"`
		PublicKey string `json:"public-key"`
	}
	if err := json.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	cert, err := hex.DecodeString(keys.NodeID + keys.PublicKey)
	if err != nil || len(cert) != 52 {
		t.Fatalf("keys %q: %v", text, err)
	}
	return "cert=" + base64.RawStdEncoding.EncodeToString(cert) + " iat-mode=0"
}

// TestTorParent has tor as the parent of `ptgate pt`, on both sides: one tor
// is a bridge, the other reaches it by obfs4, all the way through the
// handshake of tor's own protocol.
func TestTorParent(t *testing.T) {
	ptgate := realpt.PTGate(t)
	obfs4proxy := realpt.Program(t, "obfs4proxy")
	for name, plugins := range map[string]struct{ client, server string }{
		"both sides":                      {ptgate + " pt", ptgate + " pt"},
		"obfs4proxy as the client":        {obfs4proxy, ptgate + " pt"},
		"obfs4proxy as the bridge's side": {ptgate + " pt", obfs4proxy},
	} {
		t.Run(name, func(t *testing.T) {
			listen := ports.Free(t)
			bridge := startTor(t, "bridge", fmt.Sprintf(`
Nickname bridge
BridgeRelay 1
Address 127.0.0.1
ORPort %s
ExtORPort auto
SocksPort 0
AssumeReachable 1
PublishServerDescriptor 0
ServerTransportPlugin obfs4 exec %s
ServerTransportListenAddr obfs4 %s
`, ports.Free(t), plugins.server, listen))
			bridge.wait(`Registered server transport 'obfs4' at '` + regexp.QuoteMeta(listen) + `'`)
			text, err := os.ReadFile(filepath.Join(bridge.dir, "data", "fingerprint"))
			if err != nil {
				t.Fatal(err)
			}
			fingerprint := strings.Fields(string(text))[1]
			args := obfs4Args(t, filepath.Join(bridge.dir, "data", "pt_state"))

			client := startTor(t, "client", fmt.Sprintf(`
SocksPort auto
UseBridges 1
ClientTransportPlugin obfs4 exec %s
Bridge obfs4 %s %s %s
`, plugins.client, listen, fingerprint, args))
			client.wait(`Bootstrapped \d+% \(handshake_done\)`)
			// The bridge answers through it, too: its own descriptor.
			client.wait(`new bridge descriptor 'bridge' \(fresh\)`)
		})
	}
}
