package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ptgate/adapter"
	"ptgate/gateway/budget"
	"ptgate/gateway/destination"
	"ptgate/routes"
)

var update = flag.Bool("update", false, "write the files of wanted output in testdata/bad")

// testLoader knows the programs of an imagined box: obfs4proxy only.
var testLoader = Loader{
	// A clone of the repository may have files that others can write.
	Check: func(string, fs.FileInfo) error { return nil },
	LookPath: func(file string) (string, error) {
		if filepath.Base(file) == "obfs4proxy" {
			return "/usr/bin/obfs4proxy", nil
		}
		return "", fs.ErrNotExist
	},
	Getenv: func(key string) string { return map[string]string{"HOME": "/home/user"}[key] },
}

// withoutMode leaves out the warning about the file's mode, which is not the
// file's content.
func withoutMode(problems []Problem) string {
	var b strings.Builder
	for _, p := range problems {
		if !strings.Contains(p.Message, "chmod 600") {
			b.WriteString(p.String() + "\n")
		}
	}
	return b.String()
}

// write makes a file that only its owner reads and returns its path.
func write(tb testing.TB, name, text string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func glob(t *testing.T, pattern string, least int) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) < least {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	return files
}

func TestBadFiles(t *testing.T) {
	for _, file := range glob(t, "testdata/bad/*.toml", 40) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".toml"), func(t *testing.T) {
			cfg, problems := testLoader.Load(file)
			if cfg != nil || !HasError(problems) {
				t.Errorf("the file is taken for good")
			}
			got := withoutMode(problems)
			wantFile := strings.TrimSuffix(file, ".toml") + ".want"
			if *update {
				if err := os.WriteFile(wantFile, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(wantFile)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoodFiles(t *testing.T) {
	// The examples name programs that need not be installed here.
	examples := Loader{LookPath: func(file string) (string, error) { return file, nil }, Getenv: testLoader.Getenv, Check: testLoader.Check}
	for loader, files := range map[*Loader][]string{
		&testLoader: glob(t, "testdata/good/*.toml", 3),
		&examples:   glob(t, "../../configs/*.toml", 9),
	} {
		for _, file := range files {
			cfg, problems := loader.Load(file)
			if got := withoutMode(problems); got != "" || cfg == nil {
				t.Errorf("%s: %v, problems:\n%s", file, cfg, got)
			}
		}
	}
}

func mustLoad(t *testing.T, path string) *Config {
	t.Helper()
	cfg, problems := testLoader.Load(path)
	if cfg == nil {
		t.Fatalf("%s:\n%s", path, withoutMode(problems))
	}
	return cfg
}

func target(t *testing.T, s string) routes.Target {
	t.Helper()
	tg, err := destination.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

func TestEverything(t *testing.T) {
	cfg := mustLoad(t, "testdata/good/everything.toml")
	dir, err := filepath.Abs("testdata/good")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &PT{Name: "obfs4proxy", Exec: []string{"/usr/bin/obfs4proxy", "-enableLogging"}, Transports: []string{"obfs3", "dust"},
		Proxy: "socks5://127.0.0.1:9050", State: filepath.Join(dir, "pt"),
		BindV4: netip.MustParseAddr("192.0.2.99"), BindV6: netip.MustParseAddr("2001:db8::99"), Line: 94}
	inside := &PT{Name: "inside", Transports: []string{"webtunnel"}, Env: []string{"EMPTY=", "SSL_CERT_FILE=/etc/own.pem"}, Isolate: true, Line: 102}
	obfs4 := &PT{Name: "obfs4", Transports: []string{"obfs4"}}
	tokyo := &Bridge{Name: "tokyo", Transport: "obfs4", Address: "192.0.2.10:443", Far: FarExit, User: "me", Password: "pass",
		Args:       argsOf("cert", "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA", "iat-mode", "0"),
		Optimistic: OptimisticAlways, Carriers: 3, PT: obfs4, Line: 15}
	paris := &Bridge{Name: "paris", Transport: "obfs4", Address: "192.0.2.20:443", Far: FarSOCKS5, Optimistic: OptimisticLearned,
		Args: argsOf("cert", "kf2tXsNjfWjGvEhf35ttmrHUDhXtLEUtZEWzVC19h+5qc07OnPZ7560QZ+dXkF8Hv+KRgA", "iat-mode", "0"), PT: obfs4, Line: 25}
	oslo := &Bridge{Name: "oslo", Transport: "webtunnel", Address: "[2001:db8::1]:443", Far: FarExit, Optimistic: OptimisticLearned,
		Args: argsOf("url", "https://example.com/path", "ver", "0.0.1"), PT: inside, Line: 29}
	rome := &Bridge{Name: "rome", Transport: "dust", Address: "192.0.2.30:443", Far: FarForward, Optimistic: OptimisticLearned,
		Args: argsOf("zeta", "1", "alpha", "2", "alpha", "3"), PT: proxy, Line: 34}
	inline := &Bridge{Name: "route 2", Transport: "obfs4", Address: "198.51.100.7:443", Far: FarExit, Optimistic: OptimisticNever,
		Args: argsOf("cert", "AoHJ2A2/xY+8BeRUlarB0p4vKsq7w6AUFjSHiP76EWjB45+o1hMhNwRSHb4YkHTK4pIF1Q", "iat-mode", "1"), PT: obfs4, Line: 47}
	file, list := "testdata/good/everything.toml", "testdata/lists/domains.txt"
	want := &Config{
		Path: filepath.Join(dir, "everything.toml"), StateDir: filepath.Join(dir, "state"), StateLine: 1,
		Log: Log{Level: slog.LevelDebug, Format: "json"},
		Listen: Listen{SOCKS5: []string{"127.0.0.1:1080", "[::1]:1080"}, HTTP: []string{"0.0.0.0:8118"}, Mixed: []string{"[::1]:8119", "unix:/run/ptgate/proxy.sock"}, SocketMode: 0o600,
			Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("192.0.2.0/24")},
			Users: map[string]string{"alice": "secret", "bob": "other"}, Line: 8},
		Bridges: []*Bridge{tokyo, paris, oslo, rome, inline},
		Routes: []*Route{
			{Via: []*Bridge{tokyo, paris, oslo}, Pick: PickSpread, Line: 42, Sources: []Source{{File: file, Runs: []Run{{0, 43}}}}},
			{Via: []*Bridge{inline}, Pick: PickFirst, Line: 47, Sources: []Source{{File: file, Runs: []Run{{0, 48}}}}},
			{Action: ActionBlock, Pick: PickFirst, Line: 54, Sources: []Source{{File: file, Runs: []Run{{0, 55}}}, {File: list, Runs: []Run{{1, 3}, {4, 7}}, PerLine: true}}},
			{Action: ActionDirect, Pick: PickFirst, Private: true, Line: 59, Sources: []Source{{File: file, Runs: []Run{{0, 60}}}}},
			{Via: []*Bridge{rome}, Pick: PickFirst, Line: 63, Sources: []Source{{File: file, Runs: []Run{{0, 64}}}}},
		},
		Serve: []*Serve{
			{Transport: "obfs4", Bind: netip.MustParseAddrPort("[::]:8443"), Public: "198.51.100.1:443", Options: argsOf("iat-mode", "1"),
				Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Deny: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32")}, Tell: true, PT: obfs4, Line: 67},
			{Transport: "obfs3", Bind: netip.MustParseAddrPort("192.0.2.1:444"), Public: "192.0.2.1:444", Forward: "localhost:22", Tell: true, PT: proxy, Line: 75},
			{Transport: "webtunnel", Bind: netip.MustParseAddrPort("127.0.0.1:8000"), Public: "www.example.com:443",
				Options: argsOf("url", "https://www.example.com/path"), TrustedHops: 2,
				TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.80/32"), netip.MustParsePrefix("10.0.0.0/8")}, PT: inside, Line: 81},
		},
		Exit: Exit{DenyPrivate: true, Users: map[string]string{"me": "pass"}},
		PTs:  []*PT{proxy, inside, obfs4},
		Admin: Admin{Listen: []string{"[::1]:9180", "unix:/run/ptgate/admin.sock"}, SocketMode: 0o660,
			Users: map[string]string{"me": "word"}, Line: 106},
		Limits: Limits{Connections: 100, Handshake: 5 * time.Second, Dial: time.Minute, Stagger: 500 * time.Millisecond,
			Idle: time.Hour, HalfOpen: 90 * time.Second, Drain: 0, Resume: 5 * time.Minute, ResumeBuffer: 1 << 20,
			Memory: 1 << 30, ClientMemory: 256 << 20, ClientStreams: 5000, ClientCarriers: 100, ClientNew: 1000,
			Shared: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
	}
	if diff := cmp.Diff(want, cfg, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}), cmpopts.IgnoreTypes(&routes.Table{}), cmpopts.IgnoreFields(Config{}, "Written")); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}

	for _, c := range []struct {
		table *routes.Table
		dest  string
		want  bool
	}{
		{cfg.Exit.Allow, "www.example.com:80", true},
		{cfg.Exit.Allow, "example.net:80", false},
		{cfg.Exit.Allow, "example.net:443", true},
		{cfg.Exit.Allow, "10.1.2.3:22", true},
		{cfg.Exit.Allow, "private:80", false},
		{cfg.Exit.Deny, "bad.example.com:443", true},
		{cfg.Exit.Deny, "192.0.2.5:443", true},
		{cfg.Exit.Deny, "www.example.com:443", false},
		{cfg.Exit.Deny, "private:443", false},
		{cfg.Exit.DenyNets, "192.0.2.5:443", true},
		{cfg.Exit.DenyNets, "192.0.3.5:25", false},
		{cfg.Exit.DenyNets, "bad.example.com:443", false},
	} {
		if _, got := c.table.Lookup(target(t, c.dest)); got != c.want {
			t.Errorf("%s: %v, want %v", c.dest, got, c.want)
		}
	}

	for _, c := range []struct {
		dest    string
		file    string
		line    int
		pattern string
	}{
		{"git.example.org:22", file, 43, "git.example.org:22"},
		{"x.y.example.net:1", file, 48, "*.example.net"},
		{"xn--bcher-kva.example:80", file, 55, "xn--bcher-kva.example"},
		{"ads.example.com.:80", file, 43, ".example.com"},
		{"tracker.example:80", list, 4, ".tracker.example"},
		{"x.metrics.example:443", list, 5, "*.metrics.example:443"},
		{"192.0.2.77:80", list, 7, "192.0.2.0/24"},
		{"other.example:443", file, 64, "*:443"},
	} {
		m, ok := cfg.Table.Lookup(target(t, c.dest))
		if !ok {
			t.Errorf("%s: no route", c.dest)
			continue
		}
		if file, line, pattern := cfg.Where(m); file != c.file || line != c.line || pattern != c.pattern {
			t.Errorf("%s: by %s:%d: %s; want %s:%d: %s", c.dest, file, line, pattern, c.file, c.line, c.pattern)
		}
	}
	if file, line, pattern := cfg.Where(routes.Match{Rule: 99}); file != "" || line != 0 || pattern != "" {
		t.Errorf("no rule is at %s:%d: %s", file, line, pattern)
	}
}

// A file from before there was a status page may have given its port to something else.
func TestAdminYields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.toml")
	text := "[listen]\nmixed = \"127.0.0.1:9180\"\n[[route]]\nto = \"*\"\nvia = \"block\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := testLoader.Load(path)
	if cfg == nil || len(cfg.Admin.Listen) != 0 || cfg.Admin.Default || !strings.Contains(cfg.Admin.None, "takes its port") || len(problems) != 1 || !problems[0].Warning || problems[0].Line != 2 {
		t.Errorf("%v", problems)
	}
	if err := os.WriteFile(path, []byte(text+"[admin]\nlisten = \"127.0.0.1:9180\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg, problems := testLoader.Load(path); cfg != nil {
		t.Errorf("one port is given twice: %v", problems)
	}
}

func TestDefaults(t *testing.T) {
	cfg := mustLoad(t, "testdata/good/minimal.toml")
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	if diff := cmp.Diff(Listen{Mixed: []string{"127.0.0.1:1080", "127.0.0.1:8118"}, SocketMode: 0o600, Allow: loopback, Users: map[string]string{}, Line: 1},
		cfg.Listen, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("listen (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Limits{Connections: 16384, DefaultConnections: true, Handshake: 10 * time.Second, Dial: 75 * time.Second, Stagger: 3 * time.Second, HalfOpen: 2 * time.Minute, Drain: 30 * time.Second,
		Resume: 2 * time.Minute, ResumeBuffer: 16 << 20, Memory: 128 << 20, ClientMemory: 64 << 20, ClientStreams: 8192,
		ClientCarriers: 256, ClientNew: 5000, Shared: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}}, cfg.Limits, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Admin{Listen: []string{"127.0.0.1:9180"}, Default: true, SocketMode: 0o600, Users: map[string]string{}, Line: 1}, cfg.Admin); diff != "" {
		t.Errorf("[admin] (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Log{Level: slog.LevelInfo, Format: "text", Private: true}, cfg.Log); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if cfg.StateDir != "/home/user/.local/state/ptgate" || len(cfg.PTs) != 0 {
		t.Errorf("state %s, %d PTs", cfg.StateDir, len(cfg.PTs))
	}

	cfg = mustLoad(t, "testdata/good/server.toml")
	if len(cfg.Listen.SOCKS5)+len(cfg.Listen.HTTP)+len(cfg.Listen.Mixed) != 0 {
		t.Errorf("a far end listens for applications: %v", cfg.Listen)
	}
	if s := cfg.Serve[0]; s.Public != "" || s.PT == nil || !s.PT.Builtin() {
		t.Errorf("serve is %+v", s)
	}
	if e := cfg.Exit; e.Allow != nil || !e.DenyPrivate || e.Deny.Len() != 0 || e.DenyNets.Len() != 0 || len(e.Users) != 0 {
		t.Errorf("exit is %+v", e)
	}
}

// Every key may be written with its default, and then says what it says where it is left out.
func TestWrittenDefaults(t *testing.T) {
	const plain = `
[bridge.a]
transport = "obfs4"
address = "192.0.2.10:443"
args = { cert = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA", iat-mode = "0" }
{bridge}
[bridge.b]
transport = "dust"
address = "192.0.2.30:443"
far = "forward"
{bridge}
[[route]]
to = "a.example"
via = "a"
pick = "first"
{route}
[[route]]
to = "b.example"
via = "b"
{route}
[[route]]
to = "c.example"
via = "direct"
{route}
[[route]]
to = "d.example"
via = "block"
{route}
[[route]]
to = "e.example"
transport = "obfs4"
bridge = "198.51.100.7:443"
args = { cert = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA", iat-mode = "0" }
{bridge}
{route}
[[serve]]
transport = "obfs4"
bind = "127.0.0.1:4443"
{serve}
[pt.dust]
transports = "dust"
exec = "obfs4proxy"
{pt}
`
	const written = `state_dir = ""
[log]
level = "info"
format = "text"
private = true
[listen]
mixed = ["127.0.0.1:1080", "127.0.0.1:8118"]
allow = ["127.0.0.0/8", "::1"]
users = {}
owners = []
[exit]
allow = ["*"]
deny = ["private"]
users = {}
users_file = ""
[admin]
listen = "127.0.0.1:9180"
[limits]
connections = 16384
handshake = "10s"
dial = "75s"
stagger = "3s"
idle = "0s"
half_open = "2m"
drain = "30s"
resume = "2m"
resume_buffer = "16MiB"
`
	defaults := strings.NewReplacer(
		"{bridge}", "user = \"\"\npassword = \"\"\noptimistic = \"learned\"\ncarriers = 0\nbudget = {}",
		"{route}", "private = false",
		"{serve}", "public = \"\"\noptions = {}\nallow = []\ndeny = []",
		"{pt}", "proxy = \"\"\nstate = \"\"\nbind_v4 = \"\"\nbind_v6 = \"\"\nisolate = false",
	)
	nothing := strings.NewReplacer("{bridge}", "", "{route}", "", "{serve}", "", "{pt}", "")
	load := func(doc string) *Config {
		cfg, problems := testLoader.Load(write(t, "c.toml", doc))
		if got := withoutMode(problems); cfg == nil || got != "" {
			t.Fatalf("problems:\n%s", got)
		}
		return cfg
	}
	ours := func(path cmp.Path) bool { // what says where a key stands, and whether it does
		last := path.Last().String()
		return slices.Contains([]string{".Line", ".StateLine", ".Path", ".Written", ".Table", ".Default", ".DefaultConnections", ".Sources"}, last)
	}
	if diff := cmp.Diff(load(nothing.Replace(plain)), load(written+defaults.Replace(plain)), cmp.FilterPath(ours, cmp.Ignore()),
		cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}, netip.Addr{}), cmp.Comparer(func(a, b *routes.Table) bool {
			return a == b || a != nil && b != nil && a.Len() == b.Len()
		})); diff != "" {
		t.Errorf("left out and written (-left out +written):\n%s", diff)
	}
}

func TestStateDir(t *testing.T) {
	const doc = "[[route]]\nto = \"*\"\nvia = \"direct\"\n"
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/var/lib/a"},
		{map[string]string{"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/ptgate"},
		{map[string]string{"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/ptgate"},
		{nil, "/var/lib/ptgate"},
	} {
		ld := testLoader
		ld.Getenv = func(key string) string { return c.env[key] }
		cfg, problems := ld.Load(write(t, "ptgate.toml", doc))
		if cfg == nil || cfg.StateDir != c.want {
			t.Errorf("%v: %v, %v; want %s", c.env, cfg, problems, c.want)
		}
	}
	path := write(t, "ptgate.toml", "state_dir = \"here\"\n"+doc)
	if cfg := mustLoad(t, path); cfg.StateDir != filepath.Join(filepath.Dir(path), "here") {
		t.Errorf("state_dir is %s", cfg.StateDir)
	}
}

func TestListen(t *testing.T) {
	const route = "\n[[route]]\nto = \"*\"\nvia = \"direct\"\n"
	everyone := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	for _, c := range []struct {
		doc                 string
		socks5, http, mixed []string
		everyone            bool
	}{
		{"[listen]\nsocks5 = \"127.0.0.1:1\"", []string{"127.0.0.1:1"}, nil, nil, false},
		{"[listen]\nhttp = \"127.0.0.1:0\"\nsocks5 = []", nil, []string{"127.0.0.1:0"}, nil, false},
		{"[listen]\nallow = \"::1\"", nil, nil, []string{"127.0.0.1:1080", "127.0.0.1:8118"}, false},
		{"[listen]\nmixed = \"[::1]:1\"", nil, nil, []string{"[::1]:1"}, false},
		{"[listen]\nmixed = []\nsocks5 = \"127.0.0.1:1\"", []string{"127.0.0.1:1"}, nil, nil, false},
		{"[listen]\nsocks5 = \":1\"\nusers = { a = \"b\" }", []string{"[::]:1"}, nil, nil, true},
		{"[listen]\nsocks5 = \"[::ffff:127.0.0.1]:1\"", []string{"127.0.0.1:1"}, nil, nil, false},
	} {
		cfg := mustLoad(t, write(t, "ptgate.toml", c.doc+route))
		if diff := cmp.Diff(c.socks5, cfg.Listen.SOCKS5) + cmp.Diff(c.http, cfg.Listen.HTTP) + cmp.Diff(c.mixed, cfg.Listen.Mixed); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", c.doc, diff)
		}
		if got := cmp.Equal(everyone, cfg.Listen.Allow, cmpopts.EquateComparable(netip.Prefix{})); got != c.everyone {
			t.Errorf("%s: allow is %v", c.doc, cfg.Listen.Allow)
		}
	}
}

func TestPrograms(t *testing.T) {
	const doc = "[[route]]\nto = \"*\"\ntransport = \"snowflake\"\nbridge = \"192.0.2.3:1\"\n" +
		"[[serve]]\ntransport = \"obfs2\"\nbind = \":1\"\n[[serve]]\ntransport = \"obfs2\"\nbind = \":2\"\n"
	for _, c := range []struct {
		installed        map[string]string
		snowflake, obfs2 string
		warnings         int
	}{
		{map[string]string{"lyrebird": "/b/lyrebird", "obfs4proxy": "/b/obfs4proxy", "snowflake-client": "/b/sc"}, "/b/sc", "/b/lyrebird", 0},
		{map[string]string{"lyrebird": "/b/lyrebird"}, "/b/lyrebird", "/b/lyrebird", 0},
		{map[string]string{"obfs4proxy": "/b/obfs4proxy"}, "snowflake-client", "/b/obfs4proxy", 1},
		{nil, "snowflake-client", "lyrebird", 2},
	} {
		ld := testLoader
		ld.LookPath = func(file string) (string, error) {
			if path, ok := c.installed[file]; ok {
				return path, nil
			}
			return "", fs.ErrNotExist
		}
		cfg, problems := ld.Load(write(t, "ptgate.toml", doc))
		if cfg == nil || len(problems) != c.warnings {
			t.Fatalf("%v: %v", c.installed, problems)
		}
		if got := cfg.Bridges[0].PT.Exec; len(got) != 1 || got[0] != c.snowflake {
			t.Errorf("%v: snowflake by %v, want %s", c.installed, got, c.snowflake)
		}
		if got := cfg.Serve[0].PT.Exec; len(got) != 1 || got[0] != c.obfs2 {
			t.Errorf("%v: obfs2 by %v, want %s", c.installed, got, c.obfs2)
		}
		if cfg.Serve[0].PT != cfg.Serve[1].PT || len(cfg.PTs) != 2 {
			t.Errorf("%v: %d PTs", c.installed, len(cfg.PTs))
		}
	}
}

func TestFileMode(t *testing.T) {
	const route = "[[route]]\nto = \"*\"\nvia = \"direct\"\n"
	for _, c := range []struct {
		doc  string
		mode os.FileMode
		line int // of the warning; 0: none
	}{
		{route, 0o644, 0},
		{route + "[listen]\nusers = { a = \"b\" }\n", 0o644, 5},
		{route + "[listen]\nusers = { a = \"b\" }\n", 0o640, 5},
		{route + "[listen]\nusers = { a = \"b\" }\n", 0o600, 0},
		{route + "\n[exit.users]\na = \"b\"\n[[serve]]\ntransport = \"obfs4\"\nbind = \":1\"\n", 0o604, 6},
		{"[[route]]\nto = \"*\"\ntransport = \"obfs3\"\nbridge = \"192.0.2.1:1\"\npassword = \"b\"\nuser = \"a\"\n", 0o644, 5},
		{"[[route]]\nto = \"*\"\ntransport = \"obfs3\"\nbridge = \"192.0.2.1:1\"\nargs = { a = \"b\" }\n", 0o644, 5},
		{"[[route]]\nto = \"*\"\ntransport = \"obfs3\"\nbridge = \"192.0.2.1:1\"\n", 0o644, 0},
	} {
		path := write(t, "ptgate.toml", c.doc)
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		cfg, problems := testLoader.Load(path)
		if cfg == nil {
			t.Fatalf("%s:\n%v", c.doc, problems)
		}
		line := 0
		for _, p := range problems {
			if !p.Warning || !strings.Contains(p.Message, "chmod 600 "+path) {
				t.Errorf("%s: %v", c.doc, p)
			}
			line = p.Line
		}
		if line != c.line {
			t.Errorf("mode %o: warning at line %d, want %d, in:\n%s", c.mode, line, c.line, c.doc)
		}
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	big := write(t, "big.toml", strings.Repeat("#\n", maxFile/2+1))
	deep := write(t, "deep.toml", "\na = "+strings.Repeat("[", 20_000))
	for path, want := range map[string]string{
		filepath.Join(dir, "none.toml"): ": can't open it: ",
		dir:                             ": is a directory: name a file",
		big:                             ": is larger than 16 MiB",
		deep:                            ":2: brackets are nested too deeply",
	} {
		cfg, problems := testLoader.Load(path)
		if cfg != nil || len(problems) != 1 || !strings.HasPrefix(problems[0].String(), path+want) {
			t.Errorf("%s: %v; want %q", path, problems, want)
		}
	}
}

func TestProblemsAreSorted(t *testing.T) {
	problems := []Problem{{"b", 1, "x", false}, {"m", 2, "x", false}, {"a", 9, "x", false}, {"m", 1, "y", true}, {"m", 1, "a", false}}
	Sort(problems, "m")
	var got []string
	for _, p := range problems {
		got = append(got, p.String())
	}
	want := []string{"m:1: warning: y", "m:1: a", "m:2: x", "a:9: x", "b:1: x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if HasError([]Problem{{Warning: true}}) || !HasError(problems) || HasError(nil) {
		t.Error("HasError is wrong")
	}
}

func TestFind(t *testing.T) {
	home, cwd := t.TempDir(), t.TempDir()
	t.Chdir(cwd)
	t.Setenv("PTGATE_CONFIG", "")
	t.Setenv("XDG_CONFIG_HOME", home)
	check := func(explicit, want string) {
		t.Helper()
		if got, err := Find(explicit); err != nil || got != want {
			t.Errorf("Find(%q) = %q, %v; want %q", explicit, got, err, want)
		}
	}
	if _, err := os.Stat("/etc/ptgate/ptgate.toml"); err == nil {
		check("", "/etc/ptgate/ptgate.toml")
	} else if got, err := Find(""); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Join(home, "ptgate", "ptgate.toml")) {
		t.Errorf("Find = %q, %v", got, err)
	}
	user := filepath.Join(home, "ptgate", "ptgate.toml")
	if err := os.Mkdir(filepath.Dir(user), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ make, want string }{{user, user}, {filepath.Join(cwd, "ptgate.toml"), "ptgate.toml"}} {
		if err := os.WriteFile(step.make, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		check("", step.want)
	}
	t.Setenv("PTGATE_CONFIG", "/else/where.toml")
	check("", "/else/where.toml")
	check("given.toml", "given.toml")
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"4MiB": 4 << 20, "0B": 0, "1 KiB": 1024, "2GiB": 2 << 30, "512B": 512} {
		if n, ok := parseSize(s); !ok || n != want {
			t.Errorf("%s: %d, %v", s, n, ok)
		}
	}
	for _, s := range []string{"", "4", "MiB", "-1MiB", "4MB", "9223372036854775807KiB", "99999999999999999999B", "1.5MiB"} {
		if n, ok := parseSize(s); ok {
			t.Errorf("%q: %d", s, n)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	known := []string{"listen", "log", "to", "via", "direct"}
	for word, want := range map[string]string{
		"lsiten": "listen", "Listen": "listen", "vai": "via", "tO": "to", "dirct": "direct", "xyz": "", "": "", "ab": "",
		strings.Repeat("x", 100): "",
	} {
		got := DidYouMean(word, known)
		if want == "" && got != "" || want != "" && got != ": did you mean \""+want+"\"?" {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

// A deny that lets clients into this box's own network says so, unless it was
// asked for.
func TestExitOpen(t *testing.T) {
	const serve = "[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n[exit]\n"
	for doc, want := range map[string]bool{
		`deny = ["*:25"]`:                                    true,
		"allow = [\"*\"]\ndeny = \"*:25\"":                   true,
		`deny = []`:                                          false,
		`deny = ["*:25", "private"]`:                         false,
		"allow = [\"example.com\"]\ndeny = [\"*:25\"]":       false,
		"allow = [\"*\"]\ndeny = [\"print\", \"private\"]\n": false,
	} {
		_, problems := testLoader.Load(write(t, "ptgate.toml", serve+doc))
		if got := strings.Contains(withoutMode(problems), `warning: [exit]: deny lacks "private"`); got != want || HasError(problems) {
			t.Errorf("%q: %v", doc, problems)
		}
	}
}

func TestExit(t *testing.T) {
	const serve = "[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n"
	for _, c := range []struct {
		doc          string
		allowed      string // destinations that Allow takes; "all": there is none
		denyPrivate  bool
		denied, nets int
	}{
		{"", "all", true, 0, 0},
		{"[exit]\n", "all", true, 0, 0},
		{"[exit]\nallow = \"*\"\ndeny = []\n", "all", false, 0, 0},
		{"[exit]\nallow = [\"example.com\", \"*\"]\ndeny = \"private\"\n", "all", true, 0, 0},
		{"[exit]\nallow = []\ndeny = [\"192.0.2.0/24:25\", \"a.example\"]\n", "", false, 2, 1},
		{"[exit]\nallow = [\"example.com\", \"*:22\"]\n", "example.com:80 other.example:22", true, 0, 0},
	} {
		e := mustLoad(t, write(t, "ptgate.toml", serve+c.doc)).Exit
		allowed := "all"
		if e.Allow != nil {
			var list []string
			for _, s := range []string{"example.com:80", "other.example:22", "other.example:80"} {
				if _, ok := e.Allow.Lookup(target(t, s)); ok {
					list = append(list, s)
				}
			}
			allowed = strings.Join(list, " ")
		}
		if allowed != c.allowed || e.DenyPrivate != c.denyPrivate || e.Deny.Len() != c.denied || e.DenyNets.Len() != c.nets {
			t.Errorf("%q: allowed %q, private denied %v, %d and %d patterns denied", c.doc, allowed, e.DenyPrivate, e.Deny.Len(), e.DenyNets.Len())
		}
	}
}

// argsOf makes args of keys and values in turn.
func argsOf(pairs ...string) (args adapter.Args) {
	for i := 0; i < len(pairs); i += 2 {
		args.Add(pairs[i], pairs[i+1])
	}
	return args
}

func TestBudget(t *testing.T) {
	cfg := mustLoad(t, "testdata/good/budget.toml")
	want := []budget.Limits{
		{Bytes: 14 << 10, Age: 50 * time.Second, Idle: 8 * time.Second, New: budget.Rate{Count: 3, Per: 30 * time.Second}, AtOnce: 4},
		{Bytes: 11 << 10, New: budget.Rate{Count: 12, Per: 90 * time.Second}},
		{},
		{Idle: time.Hour},
	}
	for i, b := range cfg.Bridges {
		if b.Budget != want[i] {
			t.Errorf("%s: %+v, want %+v", b.Name, b.Budget, want[i])
		}
	}
	if cfg.Limits.Resume != 0 || cfg.Limits.ResumeBuffer != 1<<30 {
		t.Errorf("resume %v, resume_buffer %d", cfg.Limits.Resume, cfg.Limits.ResumeBuffer)
	}
}

// The address of a bridge may have a name. It has one spelling.
func TestBridgeName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	const args = ` cert=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA iat-mode=0`
	for addr, want := range map[string]string{
		"Home.Example.net:443":  "home.example.net:443",
		"home.example.net.:443": "home.example.net:443",
		"home.example.net:0443": "home.example.net:443",
		"home.example.net:0":    "",
		"home.example.net:":     "",
		"127.1:443":             "",
		"192.0.2.1O:443":        "", // a letter in the place of a zero
		"YOUR-PUBLIC-ADDRESS:1": "",
		"nas:443":               "nas:443",
	} {
		text := "[listen]\nsocks5 = \"127.0.0.1:0\"\n[bridge.a]\nline = \"obfs4 " + addr + args + "\"\n[[route]]\nto = \"*\"\nvia = \"a\"\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, problems := Load(path)
		switch {
		case cfg == nil && want != "":
			t.Errorf("%s: %v", addr, problems)
		case cfg != nil && cfg.Bridges[0].Address != want:
			t.Errorf("%s: %q, want %q", addr, cfg.Bridges[0].Address, want)
		}
	}
}

// A list of lines is several bridges, which have all but the line in common. A route that
// leads to it leads to each of them, in order.
func TestWays(t *testing.T) {
	cfg := mustLoad(t, "testdata/good/ways.toml")
	var got []string
	for _, b := range cfg.Routes[0].Via {
		got = append(got, fmt.Sprintf("%s %d %s %s %s %s %d", b.Name, b.Line, b.Transport, b.Address, b.User, b.PT.Name, len(b.Args)))
	}
	want := []string{
		"box 1 obfs4 192.0.2.10:443 alice obfs4 2",
		"box-2 4 webtunnel 192.0.2.11:443 alice webtunnel 1",
		"box-3- 5 obfs4 192.0.2.12:443 alice obfs4 2",
		"box-3 10 obfs4 192.0.2.13:443  obfs4 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(cfg.Bridges, cfg.Routes[0].Via) {
		t.Error("the bridges are others than those of the route")
	}
}
