//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"ptgate/integration/ports"
)

// TestMoved has a server give up its port for another one. A client that knew only the old
// one goes on, and also after its restart.
func TestMoved(t *testing.T) {
	o := serveOrigin(t)
	first, second := ports.Free(t), ports.Free(t)
	at := func(addr string) string {
		return fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = %q\n", addr) + openExit + debugLog
	}
	server := run(t, "server", at(first), setting{hosts: originHosts})
	text := fronts + lineBridge(bridgeLine(t, server), "") + everythingVia("far") + debugLog
	client := run(t, "client", text, setting{})
	carries(t, client, o)
	const told = "the server has told of the ways to it"
	client.log.Wait(t, told) // of the one that the client has already

	write(t, server.dir, "server.toml", "state_dir = \""+server.state+"\"\n"+at(second))
	must(t, ptgate, "reload", "-c", server.file)
	client.log.Wait(t, "(?s)"+told+".*"+told)
	if line := bridgeLine(t, server); !strings.Contains(line, second) {
		t.Errorf("the server's line is %q", line)
	}
	carries(t, client, o)
	status := must(t, ptgate, "status", "-c", client.file)
	if !strings.Contains(status, "bridge far+obfs4") || !strings.Contains(status, "learned from its server") {
		t.Errorf("status:\n%s", status)
	}
	client.Stop()
	if strings.Contains(client.log.String(), second) {
		t.Error("the log has the address")
	}

	if all, err := filepath.Glob(filepath.Join(client.state, "ways-*.json")); len(all) != 1 {
		t.Errorf("%q, %v", all, err)
	}
	again := prepare(t, "again", "")
	again.file, again.state = client.file, client.state
	again.start(setting{})
	carries(t, again, o)
}

// TestBridgeName has a bridge at a name. The system looks it up, as there is no other bridge.
func TestBridgeName(t *testing.T) {
	o := serveOrigin(t)
	addr := ports.Free(t)
	server := run(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = %q\n", addr)+openExit+debugLog, setting{hosts: originHosts})
	line := strings.Replace(bridgeLine(t, server), addr, "home.ptgate.test:"+portOf(t, addr), 1)
	for _, table := range []string{"", "[pt.it]\nisolate = true\ntransports = [\"obfs4\"]\n"} {
		client := run(t, "client", fronts+lineBridge(line, "")+everythingVia("far")+debugLog+table,
			setting{hosts: plainHosts + "127.0.0.1 home.ptgate.test\n"})
		carries(t, client, o)
		client.Stop()
		if strings.Contains(client.log.String(), "home.ptgate.test") {
			t.Error("the log has the name")
		}
	}
}
