//go:build integration

package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"ptgate/integration/ports"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// replace changes one place of a configuration, which must be there.
func replace(t testing.TB, text, old, fresh string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q is there %d times, want once:\n%s", old, strings.Count(text, old), text)
	}
	return strings.Replace(text, old, fresh, 1)
}

// pairFiles runs `ptgate pair` and returns the two files, changed as little as
// two boxes on one machine need: free ports, and an exit that reaches loopback.
func pairFiles(t testing.TB, args ...string) (server, client string) {
	t.Helper()
	dir := filepath.Join(scratch(t), "pair")
	must(t, append([]string{ptgate, "pair", "--out", dir}, args...)...)
	texts := map[string]string{}
	for _, name := range []string{"server.toml", "client.toml"} {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode().Perm())
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(b)
	}
	server = replace(t, texts["server.toml"], `["private"]`, `[]`)
	client = replace(t, texts["client.toml"], `["127.0.0.1:1080", "127.0.0.1:8118"]`, `["127.0.0.1:0", "127.0.0.1:0"]`)
	return server, client
}

// secretsOf finds the values of a configuration that must stay out of logs.
func secretsOf(text string) (all []string) {
	for _, m := range regexp.MustCompile(`(?:cert|private-key|drbg-seed|node-id|password) = "([^"]+)"`).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// runPair starts both boxes of `ptgate pair` over the built-in obfs4. The origin's
// name is known to the server alone, and may appear in no log.
func runPair(t *testing.T) (server, client *box) {
	t.Helper()
	s, c := pairFiles(t, "--address", ports.Free(t))
	server = run(t, "server", debugLog+s, setting{hosts: originHosts})
	client = run(t, "client", debugLog+c, setting{})
	for _, b := range []*box{server, client} {
		b.never = append(secretsOf(s), originName)
		b.never = append(b.never, secretsOf(c)...)
	}
	return server, client
}

// TestPair is the main job: two files, two processes, ordinary programs.
func TestPair(t *testing.T) {
	o := serveOrigin(t)
	_, client := runPair(t)
	ways := []struct {
		name string
		curl []string
		git  string
	}{
		{"SOCKS5", []string{"--socks5-hostname", client.socks()}, "socks5h://" + client.socks()},
		{"HTTP", []string{"-x", "http://" + client.http()}, "http://" + client.http()},
	}
	head := o.makeRepository(t, "repo")
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			for _, base := range []string{o.http, o.https} {
				if got := curl(t, append(way.curl, "--cacert", o.ca, base+"/hello")...); got != helloText {
					t.Errorf("%s: got %q", base, got)
				}
				clone := filepath.Join(scratch(t), "clone")
				must(t, "git", "-c", "http.proxy="+way.git, "-c", "http.sslCAInfo="+o.ca, "clone", "-q", base+"/repo.git", clone)
				if got := strings.TrimSpace(must(t, "git", "-C", clone, "rev-parse", "HEAD")); got != head {
					t.Errorf("clone of %s has %s, want %s", base, got, head)
				}
				must(t, "git", "-C", clone, "fsck", "--full")
			}
		})
	}
}

// bulk is what is moved in one piece.
const bulk = 256 << 20

// TestBulk moves 256 MiB each way, over each front.
func TestBulk(t *testing.T) {
	o := serveOrigin(t)
	_, client := runPair(t)
	want := noiseSum("bulk", bulk)
	for name, way := range map[string][]string{
		"SOCKS5": {"--socks5-hostname", client.socks()},
		"HTTP":   {"-x", "http://" + client.http()},
	} {
		base := append([]string{"curl", "--fail", "--silent", "--show-error", "--max-time", "180", "--cacert", o.ca}, way...)
		for _, url := range []string{o.http, o.https} {
			scheme, _, _ := strings.Cut(url, ":")
			t.Run(name+" "+scheme+" down", func(t *testing.T) {
				h := sha256.New()
				if code := stream(t, nil, h, os.Stderr, append(base, fmt.Sprintf("%s/bytes/bulk/%d", url, bulk))...); code != 0 {
					t.Errorf("curl: exit code %d", code)
				}
				if got := sum(h); got != want {
					t.Errorf("checksum %s, want %s", got, want)
				}
			})
			t.Run(name+" "+scheme+" up", func(t *testing.T) {
				var out strings.Builder
				if code := stream(t, io.LimitReader(noise("bulk"), bulk), &out, os.Stderr, append(base, "-T", "-", url+"/sum")...); code != 0 {
					t.Errorf("curl: exit code %d", code)
				}
				if got := strings.TrimSpace(out.String()); got != fmt.Sprintf("%d %s", bulk, want) {
					t.Errorf("the origin got %q, want %d %s", got, bulk, want)
				}
			})
		}
	}
}

// TestManyAtOnce has 200 transfers going together, each with its own content.
func TestManyAtOnce(t *testing.T) {
	const transfers, size = 200, 512 << 10
	o := serveOrigin(t)
	_, client := runPair(t)
	for name, way := range map[string]string{
		"SOCKS5": "socks5h://" + client.socks(),
		"HTTP":   "http://" + client.http(),
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			var conf strings.Builder
			for i := range transfers {
				url := o.https
				if i%2 == 1 {
					url = o.http
				}
				fmt.Fprintf(&conf, "url = \"%s/bytes/%d/%d\"\noutput = \"%s/%d\"\n", url, i, size, dir, i)
			}
			curl(t, "-x", way, "--cacert", o.ca, "--parallel", "--parallel-immediate", "--parallel-max", fmt.Sprint(transfers),
				"--no-progress-meter", "--config", write(t, dir, "curlrc", conf.String()))
			for i := range transfers {
				b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
				if err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprintf("%x", sha256.Sum256(b)); got != noiseSum(fmt.Sprint(i), size) {
					t.Errorf("transfer %d: %d bytes with checksum %s", i, len(b), got)
				}
			}
		})
	}
	// All open at the same moment, none of them at its end: one answer each.
	t.Run("open together", func(t *testing.T) {
		echo := serveEcho(t)
		conns := make([]*net.TCPConn, transfers)
		for i := range conns {
			var reply byte
			if conns[i], reply = socksOpen(t, client.socks(), originName, portOf(t, echo)); reply != 0 {
				t.Fatalf("connection %d: reply %d", i, reply)
			}
		}
		var wg sync.WaitGroup
		for i, c := range conns {
			wg.Go(func() {
				msg := fmt.Sprintf("message %d\n", i)
				back := make([]byte, len(msg))
				io.WriteString(c, msg)
				if _, err := io.ReadFull(c, back); err != nil || string(back) != msg {
					t.Errorf("connection %d: %q, %v", i, back, err)
				}
				c.Close()
			})
		}
		wg.Wait()
	})
}
