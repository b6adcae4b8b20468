//go:build integration

package integration

import (
	"crypto/tls"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ptgate/integration/documents"
	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

// A step is what there is to do about a block of commands in a document beside running it
// as it stands.
type step struct {
	elsewhere string // it is not run here; why, and which test has it instead
	run       string // the box that it starts, and that stays
	stdin     string
	before    string // commands in the same shell, for what the text before the block asks for
	then      string // more commands in the same shell, which show that it worked
	want      string // in its output; a regular expression
	clone     bool   // it stands in a clone of the repository
	module    bool   // it stands in a module with the program of the documents
}

// A block that is not in this list is run as it stands, and has to succeed.
var steps = map[string]step{
	"go run ./cmd/ptgate demo":        {elsewhere: "it never ends: TestCleanClone runs it with --once"},
	"./integration/test.sh":           {elsewhere: "it runs this test"},
	"go build -o ptgate ./cmd/ptgate": {clone: true, then: "./ptgate version", want: "^ptgate "},
	"go install ./cmd/ptgate":         {clone: true, then: `"$GOBIN/ptgate" version`, want: "^ptgate "},

	"ptgate up --address 198.51.100.7:8443 --name alice": {elsewhere: "it runs until Ctrl-C, or installs a service: TestUpAndJoin has it with --no-start"},
	"ptgate join link.txt\nptgate run":                   {elsewhere: "it needs the link of the one before: TestUpAndJoin"},

	"ptgate pair --address 198.51.100.7:8443":               {want: "next, on the server:  ptgate run -c server.toml"},
	"ptgate run -c server.toml":                             {run: "server"},
	"ptgate run -c client.toml":                             {run: "client"},
	"curl -x socks5h://127.0.0.1:1080 https://example.com/": {want: "^" + helloText},
	`eval "$(ptgate env -c client.toml)"`:                   {then: "curl -sS https://example.com/", want: "^" + helloText},
	`eval "$(ptgate env --unset)"`:                          {then: "! env | grep -i proxy"},
	`chromium --proxy-server=socks5://127.0.0.1:1080 --user-data-dir="$(mktemp -d)"`: {
		elsewhere: "it opens a window: TestChromium has its options"},
	"ssh -o ProxyCommand='nc -X 5 -x 127.0.0.1:1080 %h %p' me@box.example.com": {
		elsewhere: "there is no user called me: TestClients has ssh with this ProxyCommand"},

	"git -c http.proxy=socks5h://127.0.0.1:1080 clone https://git.example.com/project.git": {then: "git -C project log", want: "^commit "},
	"git config --global http.https://git.example.com/.proxy socks5h://127.0.0.1:1080": {
		then: "git ls-remote https://git.example.com/project.git", want: "refs/heads/main"},

	"ptgate bridges -c server.toml":                   {want: `^obfs4 198\.51\.100\.7:8443 cert=\S+ iat-mode=0\n`},
	"ptgate add-bridge -c client.toml --name tokyo -": {stdin: "LINE", want: `^added \[bridge\.tokyo\]`},
	"ptgate probe -c client.toml tokyo":               {want: `^tokyo +obfs4 +exit +works `},
	"ptgate check -c client.toml\nptgate explain -c client.toml www.example.com\nptgate reload -c client.toml": {
		want: `(?s)client\.toml: fine: .*www\.example\.com: via far .*reloaded`},
	"ptgate status -c client.toml\nptgate probe -c client.toml": {want: `(?s)^running .*bridge far .*\nfar +obfs4 +exit +works `},

	"ptgate invite -c server.toml alice --expires 30d --rate 20Mbit --quota 50GB/month\nptgate users -c server.toml\nptgate revoke -c server.toml alice": {
		before: `mkdir users.d; cp server.toml users.d; cd users.d; sed -i 's/^\[exit\]/&\nusers_file = "users"/' server.toml`,
		want:   `(?s)^ptgate://alice:.*\nalice +idle .*\nrevoked alice`},

	"ptgate rotate -c server.toml": {
		then: "ptgate bridges -c server.toml", want: `^(obfs4 198\.51\.100\.7:8443 cert=\S+ iat-mode=0\n)+$`},

	"ptgate status -c /run/credentials/ptgate.service/ptgate.toml": {elsewhere: "it is about an installed service: TestWrongConfiguration runs it"},
	"sudo ptgate bridges -c /etc/ptgate/ptgate.toml":               {elsewhere: "it is about an installed service: see ptgate bridges above"},
	added:                           {before: "cd users.d", then: "ptgate users -c server.toml", want: `bob +idle .*rate=20Mbit`},
	"ps -o rss,nlwp,args -C ptgate": {want: `\d+ +\d+ \S*ptgate run -c `},

	"go mod edit -require=ptgate@v0.0.0 -replace=ptgate=/path/to/clone": {module: true},
	"go mod tidy": {module: true, then: "go vet ."},
}

// added is a block that is too long for a key.
const added = `secret=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
echo "bob \$sha256\$$(printf %s "$secret" | sha256sum | cut -d' ' -f1) rate=20Mbit" >> users`

// Blocks that begin so change the machine, or take long.
var kinds = map[string]string{
	"install -m 755 ptgate":       "it changes the machine; TestSystemd looks at the unit, and the package is installed in a root of its own",
	"install -o ptgate -g ptgate": "it is about an installed package",
	"tar --create":                "it is about an installed service",
	"install -D -m 600 client":    "it starts a service of the user",
	"./integration/bench.sh -pt ": "it takes minutes, and measures; CI runs the benchmarks once",
}

// TestReadmeCommands runs the commands of the README, one block after the other, in one
// directory and against one server, as a reader does; then those of the other documents. A
// block that can't be run says why.
func TestReadmeCommands(t *testing.T) {
	var blocks, programs []string
	for _, d := range documents.Read(t, "..") {
		blocks = append(blocks, d.Blocks("sh")...)
		programs = append(programs, d.Blocks("go")...)
	}
	if len(programs) != 1 {
		t.Fatalf("%d programs in the documents, want one", len(programs))
	}
	// Both boxes are in one network, with the server's address and a way to the origin.
	space, behind := newSpace(t, plainHosts+originAddr+" example.com git.example.com\n"), newSpace(t, plainHosts)
	must(t, "ip", "-n", space, "address", "add", "198.51.100.7/32", "dev", "lo")
	must(t, "ip", "-n", space, "link", "add", "back", "type", "veth", "peer", "name", "back", "netns", behind)
	for s, addr := range map[string]string{space: serverBack, behind: originAddr} {
		must(t, "ip", "-n", s, "address", "add", addr+"/24", "dev", "back")
		must(t, "ip", "-n", s, "link", "set", "back", "up")
	}
	cert, certPEM, _ := harness.Certificate(t, "example.com", "git.example.com")
	home, bin := scratch(t), scratch(t)
	ca := write(t, bin, "ca.pem", string(certPEM))
	o := &origin{repositories: filepath.Join(scratch(t), "git")}
	o.put("/", []byte(helloText))
	o.makeRepository(t, "project")
	serveHTTP(t, listenIn(t, behind, originAddr+":443"), o, &tls.Config{Certificates: []tls.Certificate{cert}})

	if err := os.Symlink(ptgate, filepath.Join(bin, "ptgate")); err != nil {
		t.Fatal(err)
	}
	clone := filepath.Join(scratch(t), "clone")
	must(t, "git", "-c", "safe.directory=*", "clone", "-q", "--no-hardlinks", "..", clone)
	goProgram, err := filepath.EvalSymlinks(realpt.Program(t, "go"))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + home, "LANG=C.UTF-8", "CURL_CA_BUNDLE=" + ca, "GIT_SSL_CAINFO=" + ca}
	// Without paths in it, what is built here need not be built again.
	forGo := append(os.Environ(), "PATH="+filepath.Dir(goProgram)+":"+os.Getenv("PATH"), "GOBIN="+filepath.Join(home, "go"), "GOFLAGS=-trimpath")
	library := scratch(t)
	write(t, library, "go.mod", "module example.com/program\n\ngo 1.26\n")
	write(t, library, "main.go", programs[0])

	line := ""
	used := map[string]bool{}
	for _, block := range blocks {
		block = strings.TrimSuffix(block, "\n")
		s, known := steps[block]
		used[block] = known
		for begin, why := range kinds {
			if strings.HasPrefix(block, begin) {
				s.elsewhere = why
				used[begin] = true
			}
		}
		switch {
		case s.elsewhere != "":
			t.Logf("not run: %q: %s", block, s.elsewhere)
			continue
		case s.run != "":
			b := &box{t: t, name: s.run, dir: scratch(t), file: filepath.Join(home, s.run+".toml"), log: harness.NewTranscript(t, s.run)}
			b.start(setting{netns: space, env: env})
			continue
		}
		argv := []string{"ip", "netns", "exec", space, "sh", "-euc", s.before + "\n" + block + "\n" + s.then}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = home, env
		if s.clone || s.module {
			cmd = exec.CommandContext(t.Context(), "sh", "-euc", strings.ReplaceAll(block, "/path/to/clone", clone)+"\n"+s.then)
			cmd.Dir, cmd.Env = clone, forGo
		}
		if s.module {
			cmd.Dir = library
		}
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(s.stdin, "LINE", line))
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil || !regexp.MustCompile(s.want).Match(out) {
			t.Fatalf("%s\n%v, want %q\n%s%s", block, err, s.want, out, &errs)
		}
		if strings.HasPrefix(block, "ptgate bridges ") {
			// Another line to the same server, as somebody else may hand it out.
			line = strings.Replace(string(out), "iat-mode=0", "iat-mode=1", 1)
		}
	}
	for block := range steps {
		if !used[block] {
			t.Errorf("no document has this block any more: %q", block)
		}
	}
	for begin := range kinds {
		if !used[begin] {
			t.Errorf("no document has a block any more that begins with %q", begin)
		}
	}
}
