package session

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The arrows: this package knows nothing of transports and configurations, and below it
// nobody knows streams.
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
	if !slices.Contains(imports[own], "ptgate/gateway/carrier") {
		t.Fatalf("go list does not see the import of the carrier: %q", imports[own])
	}
	for path, allowed := range map[string][]string{
		own:                      {"ptgate/adapter", "ptgate/adapter/socks5", "ptgate/gateway/answer", "ptgate/gateway/budget", "ptgate/gateway/carrier", "ptgate/gateway/stream", "ptgate/routes"},
		"ptgate/gateway/carrier": {"ptgate/adapter", "ptgate/gateway/stream"},
		"ptgate/gateway/budget":  {},
	} {
		for _, i := range imports[path] {
			if strings.HasPrefix(i, "ptgate/") && !slices.Contains(allowed, i) {
				t.Errorf("%s imports %s", path, i)
			}
		}
	}
}
