package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ptgate/routes"
)

func TestPasted(t *testing.T) {
	const (
		all    = "plain line name secret"
		notes  = "" // nothing refuses it
		fine   = "fine"
		leaves = "leaves out"
	)
	// Who refuses a character; the others leave it out, or take it.
	for _, tt := range []struct {
		char    rune
		word    string // of the message
		refuses string
		others  string
	}{
		{'\u200b', "zero width space", "secret", leaves},
		{'\u200e', "left-to-right mark", "secret", leaves},
		{'\u2069', "pop directional isolate", "secret", leaves},
		{'\ufeff', "byte order mark", "secret", leaves},
		{'\u00ad', "soft hyphen", "secret", leaves},
		{'\u2060', "word joiner", "secret", leaves},
		{'\u061c', "invisible", "secret", leaves},
		{'\u115f', "invisible", "secret", leaves},
		{'\ufe0f', "invisible", "", leaves}, // keyboards write it behind an emoji, also in a password
		{'\U000e0041', "invisible", "secret", leaves},
		{'\u200c', "zero width non-joiner", "plain line", fine},
		{'\u200d', "zero width joiner", "plain line", fine},
		{'\u00a0', "no-break space", "plain name secret", fine},
		{'\u202f', "narrow no-break space", "plain name secret", fine},
		{'\u3000', "ideographic space", "plain name secret", fine},
		{'\u2003', "a special space", "plain name secret", fine},
		{'\u201c', "left double quotation mark", "plain line name", fine},
		{'\u2019', "right single quotation mark", "plain line name", fine},
		{'\u201e', "quote", "plain line name", fine},
		{'\u00ab', "quote", "plain line name", fine},
		{'\u2033', "quote", "plain line name", fine},
		{'\u2011', "non-breaking hyphen", "plain line name", fine},
		{'\u2013', "en dash", "plain line name", fine},
		{'\u2014', "em dash", "plain line name", fine},
		{'\u2212', "minus sign", "plain line name", fine},
		{'\uff1a', `write a plain ":"`, "plain line", fine},
		{'\u2026', "ellipsis", "plain line name", fine},
		{'\u0086', "control", all, notes},
		{utf8.RuneError, "damaged", all, notes},
		{'\u00fc', "", "", fine},
		{'\u65e5', "", "", fine},
		{'\u0600', "", "", fine}, // of the Arabic script, and seen
		{'-', "", "", fine},
		{'\t', "", "", fine},
	} {
		for kind, name := range map[TextKind]string{TextPlain: "plain", TextLine: "line", TextName: "name", TextSecret: "secret"} {
			text := "ab" + string(tt.char) + "cd" + string(tt.char)
			clean, removed, err := Pasted(text, kind)
			place := fmt.Sprintf("%U", tt.char)
			switch {
			case strings.Contains(tt.refuses, name):
				if err == nil || !strings.Contains(err.Error(), place) || !strings.Contains(err.Error(), "at character 3") || !strings.Contains(err.Error(), tt.word) {
					t.Errorf("%U in a %s: %v", tt.char, name, err)
				}
			case tt.others == leaves && (tt.refuses != "" || name != "secret"):
				if err != nil || clean != "abcd" || len(removed) != 2 || removed[0] != (Char{tt.char, 3}) || removed[1].At != 6 || !strings.Contains(leftOut(removed[:1]), tt.word) {
					t.Errorf("%U in a %s: %q, %v, %v", tt.char, name, clean, removed, err)
				}
			default:
				if err != nil || clean != text || len(removed) > 0 {
					t.Errorf("%U in a %s: %q, %v, %v", tt.char, name, clean, removed, err)
				}
			}
		}
	}
	if _, _, err := Pasted("a\xffb", TextSecret); err == nil || !strings.Contains(err.Error(), "at character 2") {
		t.Errorf("no UTF-8: %v", err)
	}
}

// What is clean stays clean, and what is left is as it was.
func FuzzPasted(f *testing.F) {
	for _, s := range []string{"192.0.2.1:443", "\ufeff\u201cobfs4 1.2.3.4:5\u201d", "\xff\u00ad\xfe", "\u200c\uff1a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, kind := range []TextKind{TextPlain, TextLine, TextName, TextSecret} {
			clean, removed, err := Pasted(s, kind)
			again, more, err2 := Pasted(clean, kind)
			if again != clean || len(more) > 0 || (err == nil) != (err2 == nil) {
				t.Fatalf("%q: %q became %q, %v, %v", s, clean, again, more, err2)
			}
			if utf8.RuneCountInString(clean)+len(removed) != utf8.RuneCountInString(s) || kind == TextSecret && err == nil && clean != s {
				t.Fatalf("%q: %q and %v", s, clean, removed)
			}
		}
	})
}

// Every key that takes a pasted text takes it in the same way.
func TestPastedKeys(t *testing.T) {
	const file = `[listen]
socks5 = "127.0.0.1:10«A»80"
http = ["127.0.0.1:81«B»18"]
allow = ["192.0.2«C».0/24"]
users = { "a«D»nn" = "se«E»cret" }

[bridge.a]
transport = "ob«F»fs4"
address = "192.0.2.1:4«G»43"
args = { cert = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMo«H»otA", "iat«I»mode" = "0«J»" }
user = "m«K»e"
password = "p«L»w"

[bridge.b]
line = "webtunnel«M» 192.0.2.1:443 url=https://example.com/pa«N»th"

[[route]]
to = ["exam«O»ple.com", "192.0.2.0/2«P»4:443"]
to_file = "list.txt"
via = ["a", "b", "c"]

[[serve]]
transport = "webtunnel"
bind = "127.0.0.1:80«Q»00"
public = "www.exam«R»ple.com:443"
options = { url = "https://exa«S»mple.com/path" }
allow = "192.0.2.0/2«T»4"
deny = "192.0.2.«U»7"
forward = "localhost:2«V»2"

[[serve]]
transport = "obfs4"
bind = "127.0.0.1:8001"

[exit]
allow = "exam«W»ple.net"
deny = ["priv«X»ate", "*:2«Y»5"]
users = { bob = "se«Z»cret" }

[bridge.c]
transport = "obfs3"
address = "192.0.2.1:443"

[pt.x]
exec = "/usr/bin/obfs4proxy"
transports = "obfs3"
proxy = "http://192.0.2«a».1:3128"
bind_v4 = "192.0.2«b».1"
`
	load := func(mark, char string) (*Config, string) {
		text := file
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZab" {
			with := ""
			if string(c) == mark {
				with = char
			}
			if c == 'I' && with != "\u2011" {
				with += "-" // a key that is right without it
			}
			text = strings.Replace(text, "«"+string(c)+"»", with, 1)
		}
		path := write(t, "ptgate.toml", text)
		list := "example.org\n# x\nexam" + map[bool]string{true: char}[mark == "file"] + "ple.edu\n"
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), "list.txt"), []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, problems := testLoader.Load(path)
		var lines []string
		for line := range strings.Lines(withoutMode(problems)) {
			if !strings.Contains(line, "everybody may use") {
				lines = append(lines, strings.TrimPrefix(line, filepath.Dir(path)+"/"))
			}
		}
		return cfg, strings.Join(lines, "")
	}
	same := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}), cmpopts.IgnoreTypes(&routes.Table{}),
		cmpopts.IgnoreFields(Config{}, "Path", "Written"), cmpopts.IgnoreFields(Source{}, "File")}
	targets := []routes.Target{target(t, "example.com:1"), target(t, "192.0.2.9:443"), target(t, "example.edu:2"), target(t, "192.0.2.9:1")}
	want, problems := load("", "")
	if want == nil || problems != "" {
		t.Fatalf("the file itself has problems:\n%s", problems)
	}
	for _, mark := range append(strings.Split("ABCDEFGHIJKLMNOPQRSTUVWXYZab", ""), "file") {
		secret := strings.Contains("DEKLZ", mark)
		cfg, got := load(mark, "\u200b")
		switch {
		case secret && (cfg != nil || strings.Count(got, "\n") != 1 || !strings.Contains(got, "U+200B (zero width space) at character ")):
			t.Errorf("%s: U+200B: %s", mark, got)
		case secret:
		case cfg == nil || strings.Count(got, "\n") != 1 || !strings.Contains(got, ": warning: ") || !strings.Contains(got, "U+200B (zero width space) at character "):
			t.Errorf("%s: U+200B: %s", mark, got)
		default:
			if diff := cmp.Diff(want, cfg, same...); diff != "" {
				t.Errorf("%s: with U+200B it means (-want +got):\n%s", mark, diff)
			}
			for _, tg := range targets {
				m, ok := want.Table.Lookup(tg)
				if got, gotOK := cfg.Table.Lookup(tg); got != m || ok != gotOK {
					t.Errorf("%s: with U+200B, %v is taken by %v, %v", mark, tg, got, gotOK)
				}
			}
		}
		for _, char := range []string{"\u2011", "\u201d"} {
			cfg, got := load(mark, char)
			if secret && cfg != nil {
				continue // a secret may have it
			}
			if cfg != nil || strings.Count(got, "\n") != 1 || !strings.Contains(got, fmt.Sprintf("%U (", []rune(char)[0])) {
				t.Errorf("%s: %q: %s", mark, char, got)
			}
		}
	}
}
