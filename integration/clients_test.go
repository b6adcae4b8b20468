//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ptgate/integration/realpt"
)

// TestClients has each kind of program use both ports of `ptgate pair`, in each way that
// it knows. Only the server can look up the origin's name.
func TestClients(t *testing.T) {
	o := serveOrigin(t)
	_, client := runPair(t)
	ports := client.ports()
	each := func(name string, f func(t *testing.T, addr string)) {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			for _, addr := range ports {
				f(t, addr)
			}
			t.Logf("%v", time.Since(begin).Round(time.Millisecond))
		})
	}
	each("curl", func(t *testing.T, addr string) { useCurl(t, o, addr) })
	each("wget", func(t *testing.T, addr string) { useWget(t, o, addr) })
	each("proxychains4", func(t *testing.T, addr string) { useProxychains(t, o, addr) })
	sshd, options := runSSHD(t)
	each("corkscrew and nc", func(t *testing.T, addr string) {
		host, port, _ := strings.Cut(addr, ":")
		throughSSH(t, realpt.Program(t, "corkscrew")+" "+host+" "+port+" %h %p", options, originName, portOf(t, sshd))
		// With -X 4, nc looks names up by itself.
		throughSSH(t, "nc -X 4 -x "+addr+" %h %p", options, "127.0.0.1", portOf(t, sshd))
		throughSSH(t, "nc -X 5 -x "+addr+" %h %p", options, originName, portOf(t, sshd))
		throughSSH(t, "nc -X connect -x "+addr+" %h %p", options, originName, portOf(t, sshd))
	})
	git, head := makePush(t, o)
	each("git", func(t *testing.T, addr string) { useGit(t, o, addr, git, head) })
	each("apt-get", func(t *testing.T, addr string) { useApt(t, o, addr) })
	each("npm", func(t *testing.T, addr string) { useNpm(t, o, addr) })

	// These programs take some time to start, so one run has both ports.
	all := []string{o.ca, o.http + "/hello", o.https + "/hello"}
	for _, addr := range ports {
		all = append(all, portOf(t, addr))
	}
	for _, tt := range []struct {
		name  string
		argv  []string
		lines int // for each port
	}{
		{"Java", []string{realpt.Program(t, "java"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "testdata/clients/Fetch.java"}, 8},
		{"undici", []string{"env", "NODE_PATH=/usr/share/nodejs", realpt.Program(t, "node"), "testdata/clients/fetch.js"}, 4},
		{"Python", []string{"/usr/bin/python3", "testdata/clients/fetch.py"}, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin := time.Now()
			out := must(t, append(tt.argv, all...)...)
			if n := strings.Count(out, ": "+helloText); n != tt.lines*len(ports) || strings.Count(out, "\n") != n {
				t.Errorf("%d pages, want %d:\n%s", n, tt.lines*len(ports), out)
			}
			t.Logf("%v", time.Since(begin).Round(time.Millisecond))
		})
	}
}

func useCurl(t *testing.T, o *origin, addr string) {
	t.Helper()
	ip := "http://" + o.plain // for what looks names up by itself
	for _, tt := range []struct {
		args []string
		urls []string
	}{
		{[]string{"--socks4", addr}, []string{ip}},
		{[]string{"--socks4a", addr}, []string{ip, o.http, o.https}},
		{[]string{"--socks4a", "user@" + addr}, []string{o.http}},
		{[]string{"--socks5", addr}, []string{ip}},
		{[]string{"--socks5-hostname", addr}, []string{ip, o.http, o.https}},
		// Nobody asks for a password here; with --socks5-basic curl offers nothing else.
		{[]string{"--socks5-basic", "--socks5-hostname", "user:password@" + addr}, []string{o.http, o.https}},
		{[]string{"-x", "http://" + addr}, []string{ip, o.http, o.https}},
		{[]string{"--proxytunnel", "-x", "http://" + addr}, []string{ip, o.http, o.https}},
	} {
		for _, url := range tt.urls {
			if got := curl(t, append(tt.args, "--cacert", o.ca, url+"/hello")...); got != helloText {
				t.Errorf("%v %s: got %q", tt.args, url, got)
			}
		}
	}
}

func useWget(t *testing.T, o *origin, addr string) {
	t.Helper()
	for _, url := range []string{o.http, o.https} {
		got := must(t, "env", "http_proxy=http://"+addr, "https_proxy=http://"+addr,
			realpt.Program(t, "wget"), "-q", "-O", "-", "--tries=1", "--ca-certificate="+o.ca, url+"/hello")
		if got != helloText {
			t.Errorf("%s: got %q", url, got)
		}
	}
}

func useProxychains(t *testing.T, o *origin, addr string) {
	t.Helper()
	host, port, _ := strings.Cut(addr, ":")
	for _, kind := range []string{"socks4", "socks5", "http"} {
		conf := write(t, scratch(t), "proxychains.conf", "strict_chain\nproxy_dns\n[ProxyList]\n"+kind+" "+host+" "+port+"\n")
		for _, url := range []string{o.http, o.https} {
			got := must(t, realpt.Program(t, "proxychains4"), "-q", "-f", conf, "curl", "-sSf", "--max-time", "60", "--cacert", o.ca, url+"/hello")
			if got != helloText {
				t.Errorf("%s %s: got %q", kind, url, got)
			}
		}
	}
}

// makePush makes a repository with one commit of 50 MB, and returns the command line that
// works in it and the commit's hash.
func makePush(t *testing.T, o *origin) (git []string, head string) {
	t.Helper()
	const size = 50 << 20
	work := scratch(t)
	b := make([]byte, size)
	io.ReadFull(noise("push"), b)
	write(t, work, "file", string(b))
	git = []string{"git", "-C", work, "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.compression=0", "-c", "http.sslCAInfo=" + o.ca}
	must(t, append(git, "init", "-q", "-b", "main")...)
	must(t, append(git, "add", ".")...)
	must(t, append(git, "commit", "-q", "-m", "all")...)
	return git, must(t, append(git, "rev-parse", "HEAD")...)
}

// useGit pushes 50 MB, which git sends in one request without a length. What it sends by
// SOCKS has no size that matters.
func useGit(t *testing.T, o *origin, addr string, git []string, head string) {
	t.Helper()
	for i, base := range []string{o.http, o.https} {
		name := fmt.Sprintf("push-%s-%d.git", portOf(t, addr), i)
		bare := filepath.Join(o.repositories, name)
		must(t, "git", "init", "-q", "--bare", bare)
		must(t, "git", "-C", bare, "config", "http.receivepack", "true")
		must(t, append(git, "-c", "http.proxy=http://"+addr, "push", "-q", base+"/"+name, "main")...)
		if got := must(t, "git", "-C", bare, "rev-parse", "main"); got != head {
			t.Errorf("%s has %q, want %q", base, got, head)
		}
		for _, scheme := range []string{"socks4a", "socks5h"} {
			got := must(t, append(git, "-c", "http.proxy="+scheme+"://"+addr, "ls-remote", base+"/"+name, "main")...)
			if hash, _, _ := strings.Cut(got, "\t"); hash+"\n" != head {
				t.Errorf("%s: %s has %q, want %q", scheme, base, got, head)
			}
		}
		os.RemoveAll(bare)
	}
}

// useApt updates from a repository of one package, and fetches that.
func useApt(t *testing.T, o *origin, addr string) {
	t.Helper()
	build := scratch(t)
	control := "Package: ptgate-trial\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: for a test\n"
	if err := os.MkdirAll(filepath.Join(build, "p", "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(build, "p", "DEBIAN"), "control", control)
	must(t, "dpkg-deb", "--root-owner-group", "--build", filepath.Join(build, "p"), filepath.Join(build, "trial.deb"))
	deb, err := os.ReadFile(filepath.Join(build, "trial.deb"))
	if err != nil {
		t.Fatal(err)
	}
	o.put("/apt/trial.deb", deb)
	o.put("/apt/Packages", fmt.Appendf(nil, "%sFilename: apt/trial.deb\nSize: %d\nSHA256: %x\n", control, len(deb), sha256.Sum256(deb)))
	for _, tt := range []struct{ proxy, url string }{
		{"http://" + addr, o.http}, {"http://" + addr, o.https}, {"socks5h://" + addr, o.http},
	} {
		dir := scratch(t)
		for _, d := range []string{"state/lists/partial", "cache/archives/partial", "etc", "out"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, dir, "status", "")
		conf := write(t, dir, "apt.conf", fmt.Sprintf(`Dir::State "%[1]s/state"; Dir::State::status "%[1]s/status"; Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[2]s"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null"; Dir::Etc::netrcparts "/dev/null";
APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "0"; Acquire::http::Proxy "%[3]s"; Acquire::https::Proxy "%[3]s"; Acquire::https::CaInfo "%[4]s";
`, dir, write(t, dir, "sources.list", "deb [trusted=yes] "+tt.url+"/ apt/\n"), tt.proxy, o.ca))
		apt := []string{"env", "-C", filepath.Join(dir, "out"), "APT_CONFIG=" + conf, "apt-get", "-q"}
		must(t, append(apt, "update")...)
		must(t, append(apt, "download", "ptgate-trial")...)
		got, err := os.ReadFile(filepath.Join(dir, "out", "ptgate-trial_1.0_all.deb"))
		if err != nil || !bytes.Equal(got, deb) {
			t.Errorf("%s, %s: %d bytes, %v", tt.proxy, tt.url, len(got), err)
		}
	}
}

// useNpm installs a package from a registry of one.
func useNpm(t *testing.T, o *origin, addr string) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	manifest := `{"name":"ptgate-trial","version":"1.0.0"}`
	w.WriteHeader(&tar.Header{Name: "package/package.json", Mode: 0o644, Size: int64(len(manifest))})
	io.WriteString(w, manifest)
	w.Close()
	z.Close()
	sum := sha512.Sum512(b.Bytes())
	o.put("/npm/trial.tgz", b.Bytes())
	for _, tt := range []struct{ proxy, url string }{
		{"http://" + addr, o.http}, {"http://" + addr, o.https}, {"socks4a://" + addr, o.https},
	} {
		o.put("/npm/ptgate-trial", fmt.Appendf(nil, `{"name":"ptgate-trial","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"ptgate-trial","version":"1.0.0",`+
			`"dist":{"tarball":"%s/npm/trial.tgz","integrity":"sha512-%s"}}}}`, tt.url, base64.StdEncoding.EncodeToString(sum[:])))
		dir := scratch(t)
		must(t, realpt.Program(t, "npm"), "install", "--prefix", dir, "--registry", tt.url+"/npm/", "--proxy", tt.proxy, "--https-proxy", tt.proxy,
			"--cafile", o.ca, "--cache", filepath.Join(dir, "cache"), "--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries", "0", "ptgate-trial")
		got, err := os.ReadFile(filepath.Join(dir, "node_modules", "ptgate-trial", "package.json"))
		if err != nil || string(got) != manifest {
			t.Errorf("%s, %s: %q, %v", tt.proxy, tt.url, got, err)
		}
	}
}

// TestClientsSayWhy: a refusal is in a form that each program understands, and passes on.
func TestClientsSayWhy(t *testing.T) {
	client := run(t, "client", debugLog+"[listen]\nmixed = \"127.0.0.1:0\"\n"+everythingVia("block"), setting{})
	addr := client.socks()
	host, port, _ := strings.Cut(addr, ":")
	for _, tt := range []struct {
		argv []string
		want string
	}{
		{[]string{"corkscrew", host, port, "blocked.ptgate.test", "22"}, "Forbidden"},
		{[]string{"nc", "-X", "connect", "-x", addr, "blocked.ptgate.test", "22"}, "403 Forbidden"},
		{[]string{"nc", "-X", "5", "-x", addr, "blocked.ptgate.test", "22"}, "not allowed by ruleset"},
		{[]string{"nc", "-X", "4", "-x", addr, "192.0.2.1", "22"}, "rejected or failed"},
		{[]string{"curl", "-sS", "--socks4a", addr, "http://blocked.ptgate.test/"}, "rejected or failed"},
		{[]string{"curl", "-sS", "--socks5-hostname", addr, "http://blocked.ptgate.test/"}, "(2)"},
		{[]string{"curl", "-sS", "-x", "http://" + addr, "https://blocked.ptgate.test/"}, "403"},
		{[]string{"curl", "-sSf", "-x", "http://" + addr, "http://blocked.ptgate.test/"}, "403"},
		{[]string{"env", "http_proxy=http://" + addr, "wget", "-O", "-", "--tries=1", "http://blocked.ptgate.test/"}, "403"},
	} {
		if _, stderr, code := command(t, nil, tt.argv...); code == 0 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit code %d without %q: %s", tt.argv, code, tt.want, stderr)
		}
	}
}

// TestWrongClients: who can't be served is told so soon, and the log says what to do.
func TestWrongClients(t *testing.T) {
	client := run(t, "client", debugLog+"[limits]\nhandshake = \"3s\"\n[listen]\nmixed = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n"+everythingDirect, setting{})
	for _, addr := range client.ports() {
		if _, stderr, code := command(t, nil, "curl", "-sS", "-k", "--max-time", "30", "https://"+addr+"/"); code != 35 {
			t.Errorf("curl with TLS: exit code %d, %s", code, stderr)
		}
		client.log.Wait(t, `protocol=tls .*advice="this port takes SOCKS and HTTP without TLS`)
		// It waits for the server to speak.
		if out, stderr, code := command(t, strings.NewReader(""), "nc", "-d", addr[:strings.Index(addr, ":")], portOf(t, addr)); out != "" || code != 0 {
			t.Errorf("nc: exit code %d, %q, %s", code, out, stderr)
		}
		client.log.Wait(t, `msg="client closed: it sent nothing`)
	}

	asks := run(t, "asks", debugLog+"[listen]\nmixed = \"127.0.0.1:0\"\nusers = { ann = \"pass-word\" }\n"+everythingDirect, setting{hosts: originHosts})
	o := serveOrigin(t)
	for _, way := range []string{"--socks4", "--socks4a"} {
		if _, stderr, code := command(t, nil, "curl", "-sS", "--max-time", "30", way, "ann:pass-word@"+asks.socks(), "http://"+o.plain+"/hello"); code != 97 {
			t.Errorf("%s where users are set: exit code %d, %s", way, code, stderr)
		}
		asks.log.Wait(t, `reason=credentials .*SOCKS4 has no password`)
	}
	for _, scheme := range []string{"socks5h", "http"} {
		if got := curl(t, "-x", scheme+"://ann:pass-word@"+asks.socks(), o.http+"/hello"); got != helloText {
			t.Errorf("%s: got %q", scheme, got)
		}
	}
}
