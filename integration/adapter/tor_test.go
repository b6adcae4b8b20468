//go:build integration

package adapter_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// startTor runs tor with a torrc of its own, knowing no network but the one
// made up here. Its data is in the directory.
func startTor(t *testing.T, name, torrc string) (tor *harness.Process, data string) {
	t.Helper()
	dir := t.TempDir()
	data = filepath.Join(dir, "data")
	const common = `
DataDirectory %s
TestingTorNetwork 1
DirAuthority nobody orport=9 v3ident=0123456789ABCDEF0123456789ABCDEF01234567 127.0.0.1:9 0123456789ABCDEF0123456789ABCDEF01234567
Log notice stdout
Log [pt,handshake]info stdout
SafeLogging 0
`
	rc := harness.Write(t, dir, "torrc", fmt.Sprintf(common+torrc, data))
	tor = harness.Start(t, name, exec.Command(realpt.Program(t, "tor"), "-f", rc, "--defaults-torrc", os.DevNull), harness.NewTranscript(t, name))
	t.Cleanup(tor.End)
	return tor, data
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
	ptgate := harness.Program(t)
	obfs4proxy := realpt.Program(t, "obfs4proxy")
	for name, plugins := range map[string]struct{ client, server string }{
		"both sides":                      {ptgate + " pt", ptgate + " pt"},
		"obfs4proxy as the client":        {obfs4proxy, ptgate + " pt"},
		"obfs4proxy as the bridge's side": {ptgate + " pt", obfs4proxy},
	} {
		t.Run(name, func(t *testing.T) {
			listen := ports.Free(t)
			bridge, data := startTor(t, "bridge", fmt.Sprintf(`
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
			bridge.Await(`Registered server transport 'obfs4' at '` + regexp.QuoteMeta(listen) + `'`)
			text, err := os.ReadFile(filepath.Join(data, "fingerprint"))
			if err != nil {
				t.Fatal(err)
			}
			fingerprint := strings.Fields(string(text))[1]
			args := obfs4Args(t, filepath.Join(data, "pt_state"))

			client, _ := startTor(t, "client", fmt.Sprintf(`
SocksPort auto
UseBridges 1
ClientTransportPlugin obfs4 exec %s
Bridge obfs4 %s %s %s
`, plugins.client, listen, fingerprint, args))
			client.Await(`Bootstrapped \d+% \(handshake_done\)`)
			// The bridge answers through it, too: its own descriptor.
			client.Await(`new bridge descriptor 'bridge' \(fresh\)`)
		})
	}
}
