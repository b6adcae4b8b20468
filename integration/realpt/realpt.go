// Package realpt gives integration tests the real programs they run against:
// pluggable transports built from their own modules at pinned versions, and
// programs that the distribution installs.
//
// A program that cannot be had fails the test. It is never skipped: a test
// that did not run proves nothing.
package realpt

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The module path all Tor Project transports share, and the versions this
// project is tested with, exact so that results can be compared.
const (
	base = "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/"

	lyrebirdVersion  = "v0.0.0-20260312101154-fc105a03c0e0"
	webtunnelVersion = "v0.0.3"
	snowflakeVersion = "v2.11.0"
	pebbleVersion    = "v2.10.1"
)

// Lyrebird is the path of the lyrebird program: obfs2, obfs3, obfs4,
// scramblesuit, meek_lite, webtunnel's client and snowflake's client.
func Lyrebird(tb testing.TB) string {
	tb.Helper()
	return build(tb, "lyrebird", base+"lyrebird/cmd/lyrebird", lyrebirdVersion)
}

// WebtunnelServer is the path of webtunnel's server program.
func WebtunnelServer(tb testing.TB) string {
	tb.Helper()
	return build(tb, "webtunnel-server", base+"webtunnel/main/server", webtunnelVersion)
}

// WebtunnelClient is the path of webtunnel's client program.
func WebtunnelClient(tb testing.TB) string {
	tb.Helper()
	return build(tb, "webtunnel-client", base+"webtunnel/main/client", webtunnelVersion)
}

// SnowflakeClient is the path of snowflake's client program.
func SnowflakeClient(tb testing.TB) string {
	tb.Helper()
	return build(tb, "snowflake-client", base+"snowflake/v2/client", snowflakeVersion)
}

// SnowflakeServer is the path of snowflake's server program.
func SnowflakeServer(tb testing.TB) string {
	tb.Helper()
	return build(tb, "snowflake-server", base+"snowflake/v2/server", snowflakeVersion)
}

// SnowflakeBroker is the path of the broker that brings snowflake's clients
// and proxies together.
func SnowflakeBroker(tb testing.TB) string {
	tb.Helper()
	return build(tb, "snowflake-broker", base+"snowflake/v2/broker", snowflakeVersion)
}

// SnowflakeProxy is the path of the proxy that snowflake's clients reach the
// server through.
func SnowflakeProxy(tb testing.TB) string {
	tb.Helper()
	return build(tb, "snowflake-proxy", base+"snowflake/v2/proxy", snowflakeVersion)
}

// Pebble is the path of an ACME authority for tests.
func Pebble(tb testing.TB) string {
	tb.Helper()
	return build(tb, "pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble", pebbleVersion)
}

// debian names the package that holds a program, where the two names differ.
func debian(program string) string {
	switch program {
	case "nginx":
		return "nginx-light"
	case "ssh":
		return "openssh-client"
	case "sshd":
		return "openssh-server"
	case "ip", "tc":
		return "iproute2"
	}
	return program
}

// Program is the path of an installed program, such as "obfs4proxy", "tor" or
// "nginx". The sbin directories are searched even where PATH leaves them out.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	tb.Fatalf("%s is not installed and this test needs it: apt-get install -y %s", name, debian(name))
	return ""
}

// build returns the cached program, building it first where needed. The build
// happens in a module of its own, so that the transports' many requirements
// stay out of ours. Two tests that build at once do the work twice and the
// rename makes the last one win, which is harmless.
func build(tb testing.TB, name, pkg, version string) string {
	tb.Helper()
	program, err := cached(name, pkg, version)
	if err != nil {
		tb.Fatal(err)
	}
	return program
}

// BuildLyrebird is Lyrebird for what is no test.
func BuildLyrebird() (string, error) {
	return cached("lyrebird", base+"lyrebird/cmd/lyrebird", lyrebirdVersion)
}

func cached(name, pkg, version string) (program string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w", err)
	}
	dir := filepath.Join(cache, "ptgate-test", name+"@"+version)
	program = filepath.Join(dir, name)
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	if err := buildIn(dir, program, pkg, version); err != nil {
		return "", fmt.Errorf("build %s@%s: %w", pkg, version, err)
	}
	return program, nil
}

func buildIn(dir, program, pkg, version string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	fresh := filepath.Join(work, "program.out")
	for _, args := range [][]string{
		{"mod", "init", "realpt.invalid/build"},
		{"get", pkg + "@" + version},
		{"build", "-p", "2", "-o", fresh, pkg},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod -buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return os.Rename(fresh, program)
}
