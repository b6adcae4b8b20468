//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ptgate/integration/documents"
	"ptgate/integration/realpt"
)

// checkOutput runs a subcommand in a directory, so that files have short names.
func checkOutput(t testing.TB, dir string, args ...string) (output string, code int) {
	t.Helper()
	cmd := exec.Command(ptgate, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// copyPrivate copies a directory's files with mode 0600, which a clone does not
// keep: others must not read a configuration.
func copyPrivate(t testing.TB, pattern string) (dir string, names []string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files %s (%v)", pattern, err)
	}
	dir = scratch(t)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, filepath.Base(f), string(b))
		names = append(names, filepath.Base(f))
	}
	return dir, names
}

// TestCheckGolden has everything that is wrong with a file at once, and where.
func TestCheckGolden(t *testing.T) {
	dir, names := copyPrivate(t, "testdata/bad/*.toml")
	var got strings.Builder
	for _, name := range names {
		out, code := checkOutput(t, dir, "check", "-c", name)
		if code != 1 {
			t.Errorf("%s: exit code %d, want 1", name, code)
		}
		got.WriteString(out)
		// run says the same and does not start.
		if again, code := checkOutput(t, dir, "run", "-c", name); code != 1 || again != out {
			t.Errorf("run -c %s: exit code %d, %q, want 1 and what check says", name, code, again)
		}
	}
	want, err := os.ReadFile("testdata/check.golden")
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("ptgate check says\n%s\nwant\n%s", got.String(), want)
	}
}

// TestConfigs: the example files are right.
func TestConfigs(t *testing.T) {
	// A program that is not installed here is worth a warning, no more; so is what this
	// machine lacks for a port, or has there already.
	fine := regexp.MustCompile(`^(.*: warning: .* (there is no program|at the moment: listen|unix:/run/ptgate/).*\n)*\S+\.toml: fine: .*\n$`)
	dir, names := copyPrivate(t, "../configs/*")
	for _, name := range names {
		if filepath.Ext(name) != ".toml" {
			continue
		}
		if out, code := checkOutput(t, dir, "check", "-c", name); code != 0 || !fine.MatchString(out) {
			t.Errorf("%s: exit code %d, %s", name, code, out)
		}
	}
}

// TestExplain says which rule on which line takes a name.
func TestExplain(t *testing.T) {
	dir := scratch(t)
	write(t, dir, "ads.txt", "# nobody needs these\n\n.ads.example\ntracker.example\n")
	write(t, dir, "ptgate.toml", `[bridge.tokyo]
line = "obfs4 192.0.2.10:443 cert=XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA iat-mode=0"
[bridge.paris]
line = "obfs4 192.0.2.20:443 cert=XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA iat-mode=0"
far = "socks5"

[[route]]
to_file = "ads.txt"
via = "block"

[[route]]
to = [
	"git.example.org:22",
	"*.example.com:80-443",
	"2001:db8::/32",
]
via = ["tokyo", "paris"]
pick = "spread"

[[route]]
to = "10.0.0.0/8"
via = "direct"
`)
	for _, tt := range []struct{ dest, want string }{
		{"git.example.org:22", `via tokyo (obfs4, exit), paris (obfs4, socks5), pick spread, by route 2, pattern "git.example.org:22" at ptgate.toml:13 (the far end's [exit] may still refuse)`},
		{"GIT.example.ORG.:22", `via tokyo (obfs4, exit), paris (obfs4, socks5), pick spread, by route 2, pattern "git.example.org:22" at ptgate.toml:13 (the far end's [exit] may still refuse)`},
		{"a.b.example.com", `via tokyo (obfs4, exit), paris (obfs4, socks5), pick spread, by route 2, pattern "*.example.com:80-443" at ptgate.toml:14 (the far end's [exit] may still refuse)`},
		{"[2001:db8::5]:1", `via tokyo (obfs4, exit), paris (obfs4, socks5), pick spread, by route 2, pattern "2001:db8::/32" at ptgate.toml:15 (the far end's [exit] may still refuse)`},
		{"x.ads.example", `blocked by route 1, pattern ".ads.example" at ads.txt:3`},
		{"tracker.example:80", `blocked by route 1, pattern "tracker.example" at ads.txt:4`},
		{"10.9.8.7:22", `direct, without any bridge, by route 3, pattern "10.0.0.0/8" at ptgate.toml:21`},
		{"git.example.org:443", `no route takes it: blocked (SOCKS5 reply 2, HTTP 403)`},
		{"example.com:80", `no route takes it: blocked (SOCKS5 reply 2, HTTP 403)`},
	} {
		out, code := checkOutput(t, dir, "explain", "-c", "ptgate.toml", tt.dest)
		if want := tt.dest + ": " + tt.want + "\n"; code != 0 || out != want {
			t.Errorf("exit code %d, %q, want %q", code, out, want)
		}
	}
	if out, code := checkOutput(t, dir, "explain", "host:99999"); code != 1 {
		t.Errorf("nonsense: exit code %d, %s", code, out)
	}
	if out, code := checkOutput(t, dir, "explain"); code != 2 {
		t.Errorf("nothing asked: exit code %d, %s, want 2", code, out)
	}
}

// TestDocuments: the configurations of the documents are right, and their commands exist.
func TestDocuments(t *testing.T) {
	configurations, commands := 0, 0
	for _, d := range documents.Read(t, "..") {
		t.Run(d.Path, func(t *testing.T) {
			dir, blocks := scratch(t), d.Blocks("toml")
			checkBlocks(t, dir, blocks)
			configurations += len(blocks)
			for _, block := range d.Blocks("sh") {
				for _, c := range regexp.MustCompile(`(?m)^(?:sudo )?ptgate ([a-z-]+)`).FindAllStringSubmatch(block, -1) {
					if out, code := checkOutput(t, dir, c[1], "--help"); code != 0 || !strings.Contains(out, "ptgate "+c[1]) {
						t.Errorf("ptgate %s: exit code %d, %s", c[1], code, out)
					}
					commands++
				}
			}
		})
	}
	if configurations == 0 || commands < 5 {
		t.Errorf("only %d configurations and %d commands found", configurations, commands)
	}
}

// checkBlocks checks the configurations of one document. A block that names its file in its
// first line is whole; others are meant to be added to the file that `ptgate pair` writes.
func checkBlocks(t *testing.T, dir string, blocks []string) {
	t.Helper()
	must(t, ptgate, "pair", "--address", "198.51.100.7:8443", "--out", dir)
	pair, err := os.ReadFile(filepath.Join(dir, "client.toml"))
	if err != nil {
		t.Fatal(err)
	}
	whole := regexp.MustCompile(`^#.*\b(ptgate|client|server)\.toml`)
	// The pair's own route takes everything; those that are added come after it.
	added := replace(t, string(pair), "to  = \"*\"", "to  = \"pair.example\"")
	check := func(text string) {
		write(t, dir, "block.toml", text)
		out, code := checkOutput(t, dir, "check", "-c", "block.toml")
		for line := range strings.Lines(out) {
			if code != 0 || !strings.Contains(line, ": fine: ") && !strings.Contains(line, "at the moment: listen") {
				t.Errorf("exit code %d\n%s\n%s", code, out, text)
				break
			}
		}
	}
	for _, block := range blocks {
		switch {
		case whole.MatchString(block):
			check(block)
		case strings.HasPrefix(block, "[exit]"):
			write(t, dir, "users", "")
			check("[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n" + block)
		default:
			added += block
		}
	}
	check(added)
}

// TestSystemd: the units have no flaw that systemd knows of.
func TestSystemd(t *testing.T) {
	units, err := filepath.Glob("../systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatalf("no units (%v)", err)
	}
	runtime := scratch(t)
	analyze := realpt.Program(t, "systemd-analyze")
	// systemd looks for the program in its own path, so it is put there, for this
	// process alone.
	verify := func(unit, of string) {
		stdout, stderr, code := command(t, nil, "unshare", "--mount", "--propagation", "private", "sh", "-c",
			`mount --bind "$1" /usr/local/bin && XDG_RUNTIME_DIR="$5" exec "$2" "$4" --man=no verify "$3"`, "sh", filepath.Dir(ptgate), analyze, unit, of, runtime)
		if code != 0 || stdout+stderr != "" {
			t.Errorf("verify %s: exit code %d, %s%s", unit, code, stdout, stderr)
		}
	}
	verify("../systemd/user/ptgate.service", "--user")
	for _, unit := range units {
		verify(unit, "--system")
		stdout, stderr, code := command(t, nil, analyze, "security", "--offline=yes", "--threshold=15", unit)
		if code != 0 {
			t.Errorf("security %s: over 1.5, or it failed: exit code %d\n%s%s", unit, code, stdout, stderr)
		}
	}
}

// TestCleanClone: what is committed runs with Go and nothing else, from an empty
// module cache.
func TestCleanClone(t *testing.T) {
	goProgram := realpt.Program(t, "go")
	if resolved, err := filepath.EvalSymlinks(goProgram); err == nil {
		goProgram = resolved
	}
	clone := filepath.Join(scratch(t), "clone")
	must(t, "git", "-c", "safe.directory=*", "clone", "-q", "--no-hardlinks", "..", clone)
	modules, home := scratch(t), t.TempDir()
	cmd := exec.Command(goProgram, "run", "./cmd/ptgate", "demo", "--once")
	cmd.Dir = clone
	cmd.Env = []string{"PATH=" + filepath.Dir(goProgram), "HOME=" + home, "GOMODCACHE=" + modules, "GOFLAGS=-modcacherw"}
	for _, name := range []string{"GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GOINSECURE", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	// What this machine has of the modules need not come over the network once more.
	has, err := exec.Command(goProgram, "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	cache, proxy, _ := strings.Cut(strings.TrimSpace(string(has)), "\n")
	cmd.Env = append(cmd.Env, "GOPROXY=file://"+cache+"/cache/download,"+proxy)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, hop := range []string{
		`fetch through SOCKS5 +client → gateway \S+ → obfs4 → server \S+ → exit → \S+: \d+ bytes`,
		`fetch through HTTP +client → gateway \S+ → obfs4 → server \S+ → exit → \S+: \d+ bytes`,
	} {
		if !regexp.MustCompile(hop).Match(out) {
			t.Errorf("no line %q in\n%s", hop, out)
		}
	}
	if entries, _ := os.ReadDir(modules); len(entries) == 0 {
		t.Error("the module cache is still empty: another one was used")
	}
	if status := must(t, "git", "-C", clone, "status", "--porcelain"); status != "" {
		t.Errorf("it left files in the clone:\n%s", status)
	}
}
