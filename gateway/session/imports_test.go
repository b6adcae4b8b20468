package session

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The arrows: yamux stays behind this package; below it nobody knows streams, and it knows
// nothing of transports and configurations.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-e", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "ptgate/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		imports[f[0]] = f[1:]
	}
	const own = "ptgate/gateway/session"
	if !slices.Contains(imports[own], "github.com/libp2p/go-yamux/v5") {
		t.Fatalf("go list does not see the import of yamux: %q", imports[own])
	}
	for path, all := range imports {
		for _, i := range all {
			if strings.Contains(i, "yamux") && path != own {
				t.Errorf("%s imports %s", path, i)
			}
		}
	}
	for path, allowed := range map[string][]string{
		own:                      {"ptgate/adapter/socks5", "ptgate/gateway/answer", "ptgate/gateway/carrier", "ptgate/gateway/stream", "ptgate/routes"},
		"ptgate/gateway/carrier": {"ptgate/adapter", "ptgate/gateway/stream"},
	} {
		for _, i := range imports[path] {
			if strings.HasPrefix(i, "ptgate/") && !slices.Contains(allowed, i) {
				t.Errorf("%s imports %s", path, i)
			}
		}
	}
}
