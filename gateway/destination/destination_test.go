package destination

import (
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"ptgate/routes"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"example.com:443", "example.com:443"},
		{"Example.COM.:443", "example.com:443"},
		{"localhost:22", "localhost:22"},
		{"a_b.-x-.r3---sn-abc.example:1", "a_b.-x-.r3---sn-abc.example:1"},
		{"1.example:65535", "1.example:65535"},
		{"0xg.0x1g:1", "0xg.0x1g:1"},
		{"deadbeef:1", "deadbeef:1"},
		{"xn--bcher-kva.example:80", "xn--bcher-kva.example:80"},
		{"bücher.example:80", "xn--bcher-kva.example:80"},
		{"BÜCHER.example:80", "xn--bcher-kva.example:80"},
		{"faß.example:80", "xn--fa-hia.example:80"}, // not transitional: not fass.example
		{"例え。テスト:80", "xn--r8jz45g.xn--zckzah:80"},
		{"ｅｘａｍｐｌｅ．ｃｏｍ:80", "example.com:80"},
		{"ex\u00adample.com:80", "example.com:80"}, // a soft hyphen is nothing
		{"👍.example:80", "xn--yp8h.example:80"},
		{"192.0.2.1:80", "192.0.2.1:80"},
		{"[2001:DB8::1]:443", "[2001:db8::1]:443"},
		{"[::ffff:192.0.2.1]:443", "192.0.2.1:443"},
		{"[::]:1", "[::]:1"},
		{strings.Repeat("a", 63) + ".example:1", strings.Repeat("a", 63) + ".example:1"},
		{strings.Repeat("a.", 126) + "a:1", strings.Repeat("a.", 126) + "a:1"},
		{strings.Repeat("a.", 126) + "a.:1", strings.Repeat("a.", 126) + "a:1"},
	} {
		tg, err := Parse(c.in)
		if err != nil || Format(tg) != c.want {
			t.Errorf("%s: %s, %v; want %s", c.in, Format(tg), err, c.want)
		}
		if again, err := Parse(Format(tg)); err != nil || again != tg {
			t.Errorf("%s: read back as %v, %v", c.in, again, err)
		}
		if tg.Addr.IsValid() == (tg.Name != "") {
			t.Errorf("%s: %+v has to have a name or an address", c.in, tg)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "no port"},
		{"example.com", "no port"},
		{"example.com:", "no port"},
		{":80", "host is empty"},
		{".:80", "two dots side by side"},
		{"..:80", "two dots side by side"},
		{".example.com:80", "two dots side by side"},
		{"a..b:80", "two dots side by side"},
		{"example.com..:80", "two dots side by side"},
		{"example.com:0", "from 1 to 65535"},
		{"example.com:65536", "from 1 to 65535"},
		{"example.com:00000080", "from 1 to 65535"},
		{"example.com:99999999999999999999", "from 1 to 65535"},
		{"example.com:-1", "not a number"},
		{"example.com:+80", "not a number"},
		{"example.com:http", "not a number"},
		{"example.com:8\x00", "not a number"},
		{"::1:80", "in brackets"},
		{"[::1:80", "in brackets"},
		{"::1]:80", "in brackets"},
		{"[::1]", "in brackets"},
		{"[example.com]:80", "brackets are for"},
		{"[192.0.2.1]:80", "brackets are for"},
		{"[]:80", "brackets are for"},
		{"[::1%eth0]:80", "zone"},
		{"[fe80::1%25eth0]:80", "zone"},
		{"[::g]:80", "not an IPv6 address"},
		{"[[::1]]:80", "not an IPv6 address"},
		{"127.1:80", "four decimal numbers"},
		{"127.0.0.1.:80", "four decimal numbers"},
		{"0177.0.0.1:80", "four decimal numbers"},
		{"0x7f000001:80", "four decimal numbers"},
		{"0X7F.1:80", "four decimal numbers"},
		{"0x:80", "four decimal numbers"},
		{"2130706433:80", "four decimal numbers"},
		{"256.256.256.256:80", "four decimal numbers"},
		{"1.2.3.4.5:80", "four decimal numbers"},
		{"example.123:80", "four decimal numbers"},
		{"１２７.１:80", "four decimal numbers"},
		{"①②⑦.①:80", "four decimal numbers"},
		{"exa mple.com:80", "a space in it"},
		{"example.com\n:80", "byte 0x0a"},
		{"example.com\x00.evil.example:80", "byte 0x00"},
		{"exam\x7fple.com:80", "byte 0x7f"},
		{"example.com/path:80", `"/" in it`},
		{"user@example.com:80", `"@" in it`},
		{"a%62c.example:80", `"%" in it`},
		{"*.example.com:80", `"*" in it`},
		{"a／b.example:80", `"/" in it`},
		{"a＠b.example:80", `"@" in it`},
		{"a：443.example:80", "as U+FF1A, a full-width character"},
		{"\xff\xfe.example:80", "UTF-8"},
		{"a\u202eb.example:80", "internationalised"},
		{"\u00ad:80", "two dots side by side"},
		{"xn--a-ä.example:80", "internationalised"},
		{strings.Repeat("a", 64) + ".example:80", "63 bytes"},
		{strings.Repeat("ä", 63) + ".example:80", "63 bytes"},
		{strings.Repeat("a.", 126) + "aa:80", "253 bytes"},
		{strings.Repeat("a", 2000) + ":80", "253 bytes"},
		{strings.Repeat("ä", 2000) + ":80", "253 bytes"},
	} {
		tg, err := Parse(c.in)
		switch {
		case err == nil:
			t.Errorf("%q: read as %s", c.in, Format(tg))
		case !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%q: %v; want %q in it", c.in, err, c.want)
		case strings.Contains(err.Error(), "example"):
			t.Errorf("%q: the error quotes the host: %v", c.in, err)
		}
		if tg != (routes.Target{}) {
			t.Errorf("%q: %v beside the error", c.in, tg)
		}
	}
}

func TestFromHostPort(t *testing.T) {
	for _, c := range []struct {
		host string
		port int
		want string // "" is an error
	}{
		{"example.com", 443, "example.com:443"},
		{"::1", 443, "[::1]:443"},
		{"[::1]", 443, "[::1]:443"},
		{"::ffff:127.0.0.1", 443, "127.0.0.1:443"},
		{"::ffff:7f00:1", 443, "127.0.0.1:443"},
		{"192.0.2.1", 443, "192.0.2.1:443"},
		{"example.com", 0, ""},
		{"example.com", -1, ""},
		{"example.com", 65536, ""},
		{"example.com:80", 443, ""},
		{"", 443, ""},
	} {
		tg, err := FromHostPort(c.host, c.port)
		if (err == nil) != (c.want != "") || err == nil && Format(tg) != c.want {
			t.Errorf("%s, %d: %s, %v; want %q", c.host, c.port, Format(tg), err, c.want)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s, %d: %v is not ErrInvalid", c.host, c.port, err)
		}
	}
}

func TestPlainNamesAllocateNothing(t *testing.T) {
	for _, host := range []string{"example.com", "www.example.com.", "192.0.2.1", "host1.example", "a_b.xn--bcher-kva.example"} {
		if n := testing.AllocsPerRun(100, func() {
			if _, err := FromHostPort(host, 443); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", host, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"example.com:443", "[2001:db8::1]:443", "bücher.example:1", "127.1:80", "0x7f.1:1", "[::ffff:1.2.3.4]:5",
		"ｅ．ｃ:80", "a\u00ad.b:1", "xn--a:1", "①.②:3", "::1", ":0", "\xff:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tg, err := Parse(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || tg != (routes.Target{}) {
				t.Fatalf("%q: %v beside %v", s, tg, err)
			}
			return
		}
		check(t, s, tg)
		again, err := Parse(Format(tg))
		if err != nil || again != tg {
			t.Fatalf("%q: %s is read back as %v, %v", s, Format(tg), again, err)
		}
		// A pattern made of the destination takes it.
		p, err := routes.ParsePattern(Format(tg), Canonical)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		var b routes.Builder
		if _, err := b.Add(0, p); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if _, ok := b.Table().Lookup(tg); !ok {
			t.Fatalf("%q: pattern %v does not take it", s, p)
		}
	})
}

// check holds what others rely on in a target.
func check(t *testing.T, s string, tg routes.Target) {
	t.Helper()
	if tg.Port == 0 {
		t.Fatalf("%q: port 0", s)
	}
	if tg.Addr.IsValid() {
		if tg.Name != "" || tg.Addr.Zone() != "" || tg.Addr.Is4In6() {
			t.Fatalf("%q: %+v", s, tg)
		}
		return
	}
	if tg.Name == "" || len(tg.Name) > maxName || tg.Name[len(tg.Name)-1] == '.' {
		t.Fatalf("%q: name %q", s, tg.Name)
	}
	if _, err := netip.ParseAddr(tg.Name); err == nil {
		t.Fatalf("%q: name %q is an address", s, tg.Name)
	}
	for label := range strings.SplitSeq(tg.Name, ".") {
		if label == "" || len(label) > maxLabel || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Fatalf("%q: label %q", s, label)
		}
	}
}

func BenchmarkFromHostPort(b *testing.B) {
	for name, host := range map[string]string{"name": "www.example.com", "unicode": "www.bücher.example", "address": "2001:db8::1"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := FromHostPort(host, 443); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The package looks up no name: it imports routes and idna, and nothing that opens a socket.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports "\n"}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"errors", "fmt", "net/netip", "strconv", "strings", "unicode/utf8", "golang.org/x/net/idna", "ptgate/routes"}
	for _, path := range strings.Fields(string(out)) {
		if !slices.Contains(allowed, path) {
			t.Errorf("imports %s", path)
		}
	}
}
