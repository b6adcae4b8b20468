//go:build integration

package integration

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A curlWay is a way from curl to the servers of its tests.
type curlWay struct {
	name    string
	options string // of curl
	proxy   string // of programs with libcurl, in the environment; "": it can't be given there
	proxied bool   // messages of HTTP pass through a proxy; other protocols are left out
}

var directly = curlWay{name: "direct"}

// Both of the default ports take every protocol.
var curlWays = []curlWay{
	{name: "plain", options: "--proxy http://127.0.0.1:1080 --suppress-connect-headers", proxy: "http://127.0.0.1:1080", proxied: true},
	{name: "pair", options: "--socks5-hostname 127.0.0.1:1081", proxy: "socks5h://127.0.0.1:1081"},
	{name: "connect", options: "--proxy http://127.0.0.1:8118 --proxytunnel --suppress-connect-headers"},
	{name: "socks5", options: "--socks5-hostname 127.0.0.1:8118", proxy: "socks5h://127.0.0.1:8118"},
}

const (
	curlTurns  = 24 // runs of runtests.pl at once: it waits more than it works
	curlBatch  = 12 // tests of one run
	curlTries  = 3  // times that a test is run before a result counts that nobody expects
	curlChance = 40 // so many tests at most are run again
	curlList   = "curl/inherent.txt"
)

// A curlTest is one of curl's own tests: the file tests/data/testN of its source.
type curlTest struct {
	number  int
	http    bool   // it needs servers of HTTP only
	servers string // which it needs
	// Tests of WebSocket run a curl of their own, and most run a program in its place.
	websocket, program bool
}

// A curlSuite is curl's tests, built, and the namespace that they run in.
type curlSuite struct {
	dir    string // as curl/build.sh makes it
	space  string
	tests  []curlTest
	direct func() *curlResults // of all of them
	turns  chan struct{}
}

// curlResults are what became of tests. One that was skipped is not in it.
type curlResults struct {
	mu     sync.Mutex
	passed map[int]bool
	failed map[int]string // what runtests.pl printed
}

// TestCurl runs curl's own tests directly and through ptgate. Those that fail through
// ptgate only are the ones that curl/inherent.txt names, with a reason for each.
func TestCurl(t *testing.T) {
	omitted, inherent := readInherent(t)
	s := newCurlSuite(t, omitted)
	where := setting{netns: s.space}
	server := run(t, "server", "[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:9001\"\n"+openExit, where)
	run(t, "client", "[listen]\nmixed = \"127.0.0.1:1081\"\n"+lineBridge(bridgeLine(t, server), "")+everythingVia("far")+shortDrain, where)
	run(t, "gateway", everythingDirect+shortDrain, where)
	for _, way := range curlWays {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			s.through(t, way, inherent[way.name])
		})
	}
}

// through runs the tests that pass directly, and compares what fails with the list.
func (s *curlSuite) through(t *testing.T, way curlWay, inherent map[int]string) {
	direct := s.direct()
	var tests []curlTest
	for _, test := range s.tests {
		if direct.passed[test.number] && (test.http || !way.proxied) && (!test.program || way.proxy != "") {
			tests = append(tests, test)
		}
	}
	r := s.run(t, way, tests, func(r *curlResults, n int) bool {
		if inherent[n] != "" {
			return r.failed[n] == ""
		}
		return !r.passed[n]
	})
	t.Logf("%d tests pass directly, and %d of them through ptgate", len(tests), len(r.passed))
	for _, n := range slices.Sorted(maps.Keys(r.failed)) {
		if inherent[n] == "" {
			t.Errorf("curl's test %d fails. %s", n, r.failed[n])
		}
	}
	for _, test := range tests {
		if n := test.number; r.failed[n] == "" && !r.passed[n] && inherent[n] == "" {
			t.Errorf("curl's test %d passes directly, and was not run", n) // its servers did not start
		}
	}
	for _, n := range slices.Sorted(maps.Keys(inherent)) {
		if r.failed[n] == "" {
			t.Errorf("curl's test %d is in %s for %s, and does not fail (passed: %t)", n, curlList, way.name, r.passed[n])
		}
	}
}

// readInherent reads the list: in each line one or more ways, the number of a test and
// a reason. The way "none" is for tests that are not run at all.
func readInherent(t *testing.T) (omitted map[int]string, inherent map[string]map[int]string) {
	b, err := os.ReadFile(curlList)
	if err != nil {
		t.Fatal(err)
	}
	omitted = map[int]string{}
	inherent = map[string]map[int]string{"none": omitted}
	for _, way := range curlWays {
		inherent[way.name] = map[int]string{}
	}
	for i, line := range strings.Split(string(b), "\n") {
		f := strings.SplitN(line, " ", 3)
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		if len(f) < 3 {
			t.Fatalf("%s:%d: not a way, a number and a reason", curlList, i+1)
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatalf("%s:%d: %v", curlList, i+1, err)
		}
		for _, way := range strings.Split(f[0], ",") {
			if inherent[way] == nil || inherent[way][n] != "" {
				t.Fatalf("%s:%d: %q is no way, or test %d is listed twice for it", curlList, i+1, way, n)
			}
			inherent[way][n] = f[2]
		}
	}
	return omitted, inherent
}

// newCurlSuite builds curl, if there is none from an earlier run, and makes the
// namespace. Every name leads to its loopback.
func newCurlSuite(t *testing.T, omitted map[int]string) *curlSuite {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	const script = "curl/build.sh"
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	sum := fnv.New32a() // another script builds another one
	sum.Write(text)
	s := &curlSuite{
		dir:   filepath.Join(cache, "ptgate-test", fmt.Sprintf("curl@%x", sum.Sum(nil))),
		turns: make(chan struct{}, curlTurns),
	}
	if _, err := os.Stat(s.dir); err != nil {
		begin := time.Now()
		cmd := exec.Command(script, s.dir)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		t.Logf("curl was built in %v", time.Since(begin).Round(time.Second))
	}
	s.choose(t, omitted)
	s.direct = sync.OnceValue(func() *curlResults {
		r := s.run(t, directly, s.tests, func(r *curlResults, n int) bool { return r.failed[n] != "" })
		t.Logf("of %d tests %d pass directly, %d fail, the others need what is not there", len(s.tests), len(r.passed), len(r.failed))
		for _, n := range slices.Sorted(maps.Keys(r.failed)) {
			t.Logf("directly, curl's test %d fails. %s", n, r.failed[n])
		}
		return r
	})

	s.space = newSpace(t, plainHosts+"::1 localhost\n")
	must(t, "ip", "netns", "exec", s.space, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
	t.Cleanup(func() { // what a run has left that was cut short
		for _, text := range strings.Fields(must(t, "ip", "netns", "pids", s.space)) {
			if pid, err := strconv.Atoi(text); err == nil {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	serveNames(t, s.space, func(q dnsmessage.Question, b *dnsmessage.Builder, _ <-chan struct{}) dnsmessage.RCode {
		if q.Type == dnsmessage.TypeA {
			resource(q, b)
		}
		return dnsmessage.RCodeSuccess
	})
	return s
}

// curlProxy finds a proxy in the command line of a test.
var curlProxy = regexp.MustCompile(`(^|\s)(-x|--proxy|--preproxy|--socks)`)

// curlServers are the servers that are reached by a stream, or not at all.
var curlServers = regexp.MustCompile(`^(https?|ftps?|imaps?|pop3s?|smtps?|gophers?|dict|telnet|mqtt)(-ipv6)?$|^none$|^Server-.*\.pem$`)

// choose finds the tests that run the program curl, or are about WebSocket, that name no
// proxy, and whose servers are reached by streams.
func (s *curlSuite) choose(t *testing.T, omitted map[int]string) {
	files, err := filepath.Glob(filepath.Join(s.dir, "tests/data/test*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(file), "test"))
		if err != nil || omitted[number] != "" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		between := func(tag string) string {
			_, text, _ := strings.Cut(string(b), "<"+tag+">")
			text, _, _ = strings.Cut(text, "</"+tag+">")
			return text
		}
		keywords := strings.Fields(strings.ToLower(between("keywords")))
		about := func(word string) bool { return strings.Contains(strings.Join(keywords, " "), word) }
		servers := strings.Fields(between("server"))
		reached := !slices.ContainsFunc(servers, func(name string) bool { return !curlServers.MatchString(name) })
		test := curlTest{number: number, servers: strings.Join(servers, " ")}
		test.http = !slices.ContainsFunc(servers, func(name string) bool {
			return !strings.HasPrefix(name, "http") && !strings.HasPrefix(name, "Server-")
		})
		offline := slices.Contains(servers, "none") && !slices.Contains(keywords, "http")
		_, line, _ := strings.Cut(between("client"), "<command")
		ownProxy := curlProxy.MatchString(line)
		test.program = between("tool") != ""
		test.websocket = slices.Contains(strings.Fields(between("features")), "ws")
		if (!test.program || test.websocket) && !ownProxy && !about("proxy") && !about("socks") && reached && !offline {
			s.tests = append(s.tests, test)
		}
	}
	// runtests.pl keeps a server from one test to the next. Those with TLS, which start
	// slowly and often, are not left to the end.
	rank := func(test curlTest) int {
		if strings.Contains(test.servers, "https") {
			return 0
		}
		return 1
	}
	slices.SortFunc(s.tests, func(a, b curlTest) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.servers, b.servers), cmp.Compare(a.number, b.number))
	})
}

// run runs tests in batches. Those with results that surprise are run again, unless
// they are too many for chance, and the last result counts.
func (s *curlSuite) run(t *testing.T, way curlWay, tests []curlTest, surprises func(r *curlResults, n int) bool) *curlResults {
	r := &curlResults{passed: map[int]bool{}, failed: map[int]string{}}
	size := curlBatch
	for range curlTries {
		var wg sync.WaitGroup
		for i, j := 0, 0; i < len(tests); i = j {
			for j < len(tests) && j < i+size && tests[j].websocket == tests[i].websocket {
				j++
			}
			batch := tests[i:j]
			wg.Go(func() {
				s.turns <- struct{}{}
				defer func() { <-s.turns }()
				s.runBatch(t, way, batch, r)
			})
		}
		wg.Wait()
		tests = slices.DeleteFunc(slices.Clone(tests), func(test curlTest) bool { return !surprises(r, test.number) })
		if len(tests) > curlChance {
			break
		}
		size = 1 // with servers of its own
	}
	return r
}

var (
	curlHead = regexp.MustCompile(`(?m)^test (\d+)\.\.\.\[`)
	curlOK   = regexp.MustCompile(`(?m) OK +\(\d+ +out of `)
)

// runBatch runs tests one after the other, in a directory of their own.
func (s *curlSuite) runBatch(t *testing.T, way curlWay, tests []curlTest, r *curlResults) {
	curl := s.dir
	if tests[0].websocket {
		curl = filepath.Join(s.dir, "websocket")
	}
	dir, err := s.workplace(curl)
	defer os.RemoveAll(dir)
	if err != nil {
		t.Error(err)
		return
	}
	wrapper, err := filepath.Abs("curl/wrapper.sh")
	if err != nil {
		t.Error(err)
		return
	}
	// -a: go on after a failure; -n: without valgrind; -vc: what looks whether a server lives
	argv := []string{"netns", "exec", s.space, "perl", "-I.", "runtests.pl", "-a", "-n", "-c", wrapper, "-vc", "../src/curl"}
	for _, test := range tests {
		argv = append(argv, strconv.Itoa(test.number))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", argv...)
	cmd.Dir = filepath.Join(dir, "tests")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "USER=root", "CURL_TESTED=" + filepath.Join(curl, "src/curl"), "CURL_WAY=" + way.options, "CURL_ALL_PROXY=" + way.proxy}
	if way.proxied {
		cmd.Env = append(cmd.Env, "CURL_PROXIED=1")
	}
	var out, errs bytes.Buffer // apart: the shell says "Killed" in the middle of a result
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run() // with an error, too, if a test fails
	text := out.String()
	if ctx.Err() != nil || !strings.Contains(text, "\nTESTDONE: ") && !strings.Contains(text, "\nTESTFAIL: No tests were performed") {
		t.Errorf("%s: runtests.pl did not come to its end: %v, %v\n%s%s", way.name, err, ctx.Err(), text, errs.String())
	}
	r.read(text)
}

// read takes the results from what runtests.pl printed.
func (r *curlResults) read(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	heads := curlHead.FindAllStringSubmatchIndex(text, -1)
	for i, head := range heads {
		end := len(text)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		n, err := strconv.Atoi(text[head[2]:head[3]])
		if err != nil {
			continue
		}
		if said := text[head[0]:end]; curlOK.MatchString(said) {
			r.passed[n] = true
			delete(r.failed, n)
		} else {
			r.failed[n] = strings.TrimSpace(said)
			delete(r.passed, n)
		}
	}
}

// workplace makes a directory for one run of runtests.pl, which writes beside its
// own file. curl is the directory of the curl that is tested.
func (s *curlSuite) workplace(curl string) (dir string, err error) {
	dir, err = os.MkdirTemp("", "ptg-")
	if err != nil {
		return dir, err
	}
	here, err := filepath.Abs("curl")
	if err != nil {
		return dir, err
	}
	links := map[string]string{"tests/getpart.pm": filepath.Join(here, "getpart.pm")}
	for _, name := range []string{"src", "lib", "curl-config"} {
		links[name] = filepath.Join(curl, name)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "tests"))
	if err != nil {
		return dir, err
	}
	for _, e := range entries {
		name := "tests/" + e.Name()
		if name == "tests/getpart.pm" {
			name = "tests/getpart-own.pm"
		}
		links[name] = filepath.Join(s.dir, "tests", e.Name())
	}
	if err := os.Mkdir(filepath.Join(dir, "tests"), 0o755); err != nil {
		return dir, err
	}
	if programs, err := os.ReadDir(filepath.Join(curl, "libtest")); err == nil {
		if err := os.Mkdir(filepath.Join(dir, "tests/libtest"), 0o755); err != nil {
			return dir, err
		}
		delete(links, "tests/libtest")
		links["tests/libtest/programs"] = filepath.Join(curl, "libtest")
		for _, e := range programs {
			links["tests/libtest/"+e.Name()] = filepath.Join(here, "tool.sh")
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return dir, err
		}
	}
	return dir, nil
}
