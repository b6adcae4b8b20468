package routes

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

func TestParsePattern(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"example.com", "example.com"},
		{"Example.COM.", "example.com"},
		{"example.com:443", "example.com:443"},
		{"example.com:80-90", "example.com:80-90"},
		{"example.com:80-80", "example.com:80"},
		{"example.com:1-65535", "example.com"},
		{"example.com:0443", "example.com:443"},
		{"*.example.com", "*.example.com"},
		{".example.com:22", ".example.com:22"},
		{"*", "*"},
		{"*:25", "*:25"},
		{"localhost", "localhost"},
		{"_dmarc.a-b--c.example", "_dmarc.a-b--c.example"},
		{"1.example", "1.example"},
		{"192.0.2.1", "192.0.2.1"},
		{"192.0.2.1:80", "192.0.2.1:80"},
		{"192.0.2.1/32", "192.0.2.1"},
		{"192.0.2.0/24", "192.0.2.0/24"},
		{"192.0.2.0/24:1-1024", "192.0.2.0/24:1-1024"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"2001:DB8::1", "2001:db8::1"},
		{"2001:db8::/32", "2001:db8::/32"},
		{"[2001:db8::1]", "2001:db8::1"},
		{"[2001:db8::1]:443", "[2001:db8::1]:443"},
		{"[2001:db8::]/32:443", "[2001:db8::]/32:443"},
		{"[2001:db8::/32]:443", "[2001:db8::]/32:443"},
		{"::/0", "::/0"},
		{"::", "::"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"::ffff:192.0.2.0/120", "192.0.2.0/24"},
		{"[::ffff:192.0.2.1]:22", "192.0.2.1:22"},
	} {
		p, err := ParsePattern(c.in, nil)
		if err != nil || p.String() != c.want {
			t.Errorf("%s: %q, %v; want %q", c.in, p, err, c.want)
		}
		again, err := ParsePattern(p.String(), nil)
		if err != nil || again != p {
			t.Errorf("%s: read back as %q, %v", c.in, again, err)
		}
	}
}

func TestParsePatternRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "is empty"},
		{"http://example.com", "write its host alone"},
		{"a b", "space"},
		{"a.com,b.com", "has a comma"},
		{"a.com:80,443", "has a comma"},
		{`^.*\.example\.com$`, "a regular expression"},
		{"||ads.example.com^", "a rule of another program"},
		{"geosite:cn", "a rule of another program"},
		{"192.168.1", `write four decimal numbers`},
		{"192.168.*.*", `has a "*" in an address: write "192.168.0.0/16"`},
		{"192.168.1.*:443", `write "192.168.1.0/24"`},
		{"192.168.1.7/255.255.255.0", `write "192.168.1.0/24"`},
		{"192.168.1.0/255.0.255.0", "from 0 to 32"},
		{"192.168.1.0/33", "from 0 to 32"},
		{"2001:db8::/129", "from 0 to 128"},
		{"user@example.com", "without a user"},
		{"example.com/path", `as in "example.com"`},
		{"*foo.com", `write "*.foo.com" for what is below it, ".foo.com"`},
		{"*.*.com", "in the wrong place"},
		{"foo.*", "in the wrong place"},
		{"a.*.com", "in the wrong place"},
		{"**", "in the wrong place"},
		{"*.", "has no name"},
		{".", "has no name"},
		{"..com", "empty label"},
		{"*..com", "empty label"},
		{"a..com", "empty label"},
		{":443", `write "*:443"`},
		{"a.com:", "no port"},
		{"a.com:0", "port 0"},
		{"a.com:65536", "65535"},
		{"a.com:99999999999999999999", "65535"},
		{"a.com:+80", "write a number"},
		{"a.com:http", "write a number"},
		{"a.com:90-80", "write 80-90"},
		{"a.com:80-", "no port"},
		{"a.com:80:90", "HOST:FROM-TO"},
		{"10.0.0.1/8", `"10.0.0.0/8" for the network, "10.0.0.1"`},
		{"2001:db8::1/32", `"2001:db8::/32"`},
		{"10.0.0.0/33", "from 0 to 32"},
		{"10.0.0.0/", "from 0 to 32"},
		{"10.0.0.0/08", "from 0 to 32"},
		{"10.0.0/8", "not an IP address"},
		{"2001:db8::/32:443", `write "[2001:db8::]/32:443"`},
		{"2001:xyz::", "too many colons"},
		{"[2001:db8::1", `without its "]"`},
		{"[2001:db8::1]443", `after its "]"`},
		{"[2001:xyz::]:443", "not an IP address"},
		{"[192.0.2.1]:443", `write "192.0.2.1:443"`},
		{"[example.com]", `write "example.com"`},
		{"fe80::1%eth0", `write "fe80::1"`},
		{"[fe80::1%eth0]:22", `write "fe80::1"`},
		{"1.2.3", "192.0.2.7"},
		{"1.2.3.4.5", "192.0.2.7"},
		{"300.1.2.3", "192.0.2.7"},
		{"01.2.3.4", "192.0.2.7"},
		{"0x7f000001", "192.0.2.7"},
		{"2130706433:80", "192.0.2.7"},
		{"*.10.0.0.1", "write a network"},
		{".127.1", "write a network"},
		{"ex\x00ample.com", `'\x00'`},
		{"exämple.com", "in its name"},
		{strings.Repeat("a.", 127) + "a", "253"},
	} {
		p, err := ParsePattern(c.in, nil)
		if err == nil {
			t.Errorf("%q: parsed as %q", c.in, p)
		} else if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "pattern \"") {
			t.Errorf("%q: %v; want %q in it", c.in, err, c.want)
		}
		if p != (Pattern{}) {
			t.Errorf("%q: %q beside the error", c.in, p)
		}
	}
}

func TestParsePatternCanon(t *testing.T) {
	var asked []string
	bad := errors.New("bad name")
	canon := func(host string) (string, error) {
		asked = append(asked, host)
		switch host {
		case "BAD":
			return "", bad
		case "Number":
			return "127.1", nil
		}
		return "canonical.example", nil
	}
	for in, want := range map[string]string{
		"Ä.example": "canonical.example", "*.Ä.example": "*.canonical.example", ".x:80": ".canonical.example:80",
		"*": "*", "192.0.2.1": "192.0.2.1", "[::1]:80": "[::1]:80",
	} {
		p, err := ParsePattern(in, canon)
		if err != nil || p.String() != want {
			t.Errorf("%s: %q, %v; want %q", in, p, err, want)
		}
	}
	if len(asked) != 3 {
		t.Errorf("canon was asked for %q: not for names alone", asked)
	}
	if _, err := ParsePattern(".BAD", canon); !errors.Is(err, bad) {
		t.Errorf("error %v does not wrap canon's", err)
	}
	if p, err := ParsePattern("Number", canon); err == nil {
		t.Errorf("%q from a canon that made a number of a name", p)
	}
}

func TestZeroPattern(t *testing.T) {
	var zero Pattern
	all := parse(t, "*")
	if zero.matches(Target{}) || zero.covers(zero) || zero.covers(all) || all.covers(zero) || zero.String() != "" || zero.IsNet() {
		t.Error("the zero pattern takes something")
	}
	if !parse(t, "192.0.2.0/24").IsNet() || parse(t, "example.com").IsNet() || all.IsNet() {
		t.Error("IsNet is wrong")
	}
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"example.com", "*.example.com:80-90", ".a:1", "*", "192.0.2.0/24:443",
		"[2001:db8::]/32:443", "::1", "::ffff:1.2.3.4/120", "*foo", "a:0", "http://x", "0x1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePattern(s, nil)
		if err != nil {
			if p != (Pattern{}) {
				t.Fatalf("%q: %q beside error %v", s, p, err)
			}
			return
		}
		again, err := ParsePattern(p.String(), nil)
		if err != nil || again != p {
			t.Fatalf("%q: %q is read back as %q, %v", s, p, again, err)
		}
		var b Builder
		if _, err := b.Add(0, p); err != nil {
			t.Fatal(err)
		}
		table := b.Table()
		if q := table.Pattern(Match{}); q != p {
			t.Fatalf("%q: the table has %q", p, q)
		}
		for _, tg := range []Target{
			{Name: p.name, Port: p.from}, {Name: "x." + p.name, Port: p.to}, {Addr: p.net.Addr(), Port: max(p.from, 1)},
		} {
			if _, ok := table.Lookup(tg); ok != p.matches(tg) {
				t.Fatalf("%q takes %v: %v by the table, %v by itself", p, tg, ok, p.matches(tg))
			}
		}
	})
}

// Below routes there is the standard library and nothing else, and none of it
// that reads or writes.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports "\n"}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := strings.Fields(string(out))
	if len(imports) == 0 {
		t.Fatal("go list names no import")
	}
	for _, path := range imports {
		first, _, _ := strings.Cut(path, "/")
		if strings.Contains(first, ".") || first == "ptgate" {
			t.Errorf("imports %s, which is not in the standard library", path)
		}
		switch path {
		case "net", "os", "io", "time", "syscall", "net/http", "os/exec":
			t.Errorf("imports %s", path)
		}
	}
}

// Only a pattern that names its destinations is not wide.
func TestIsWide(t *testing.T) {
	for _, c := range []struct {
		pattern string
		want    bool
	}{
		{"*", true},
		{"*:443", true},
		{"*.example.com", true},
		{".example.com", true},
		{"0.0.0.0/0", true},
		{"[::]/0:80", true},
		{"::ffff:0:0/96", true},
		{"nas.example.com", false},
		{"localhost:8080", false},
		{"10.0.0.0/8", false},
		{"127.0.0.1", false},
		{"[fd00::]/8:22", false},
	} {
		p, err := ParsePattern(c.pattern, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.IsWide(); got != c.want {
			t.Errorf("%s: %t", c.pattern, got)
		}
	}
	if (Pattern{}).IsWide() {
		t.Error("the zero pattern is wide")
	}
}
