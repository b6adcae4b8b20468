//go:build integration

package integration

import (
	"os"
	"strings"
	"testing"
)

// On a full disk, pair leaves nothing that the next try would trip over, and
// add-bridge leaves the file as it was.
func TestFullDisk(t *testing.T) {
	// A page for each file, and the directory is for free. Mounts are nobody else's.
	const script = `
set -eu
mount -t tmpfs -o size=64k,mode=700 tmpfs "$1"
cd "$1"
fill() { head -c 1M /dev/zero >filler 2>/dev/null && exit 9; :; }

fill
truncate -s -4096 filler
if "$2" pair --address 203.0.113.7:443; then exit 8; fi
ls -A
rm filler
"$2" pair --address 203.0.113.7:443 >/dev/null
ls -A

before=$(sha256sum client.toml)
"$2" pair --address 203.0.113.8:443 --out other >/dev/null
line=$("$2" bridges -c other/server.toml)
rm -r other
fill
if "$2" add-bridge -c client.toml --name other "$line"; then exit 7; fi
test "$before" = "$(sha256sum client.toml)"
ls -A
rm filler
"$2" add-bridge -c client.toml --name other "$line" >/dev/null
grep -c '^\[bridge' client.toml
`
	dir := scratch(t)
	stdout, stderr, code := command(t, nil, "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", dir, ptgate)
	want := "filler\nclient.toml\nserver.toml\nclient.toml\nfiller\nserver.toml\n2\n"
	if code != 0 || stdout != want {
		t.Errorf("exit code %d, it says %q, want %q", code, stdout, want)
	}
	if n := strings.Count(stderr, "no space left on device"); n < 2 {
		t.Errorf("the errors are\n%s", stderr)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("outside of the mount there is %v, %v", entries, err)
	}
}
