package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf16"
)

const slipRoute = "[[route]]\nto = \"*\"\nvia = \"direct\"\n"

func utf16le(s string) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(s)) {
		b.Write([]byte{byte(u), byte(u >> 8)})
	}
	return b.String()
}

// What is no TOML is told by what it is taken for: where, and what to write instead.
func TestSlips(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"curly quotes", "[listen]\nmixed = “127.0.0.1:0”\n" + slipRoute, `:2: U+201C (left double quotation mark) at character 9: write a plain quote, or none`},
		{"no-break space", "[log]\n\u00a0private = true\n" + slipRoute, `:2: U+00A0 (no-break space) at character 1: write a plain space, or none`},
		{"zero width space", "[log]\n\u200bprivate = true\n" + slipRoute, `:2: U+200B (zero width space) at character 1: it can't be seen: take it out`},
		{"full-width", "[log]\nprivate ＝ true\n" + slipRoute, `:2: U+FF1D (a full-width character) at character 9: write a plain "="`},
		{"no equals sign", "[listen]\nmixed \"127.0.0.1:0\"\n" + slipRoute, `:2: "=" is missing behind "mixed"`},
		{"colon", "[listen]\nmixed: \"127.0.0.1:0\"\n" + slipRoute, `:2: a key and its value stand as in  key = value: write "=" behind "mixed", not ":"`},
		{"YAML", "log:\n  level: info\n", `:1: a key and its value stand as in  key = value: write "=" behind "log", not ":"`},
		{"no quote at the end", "[listen]\nmixed = \"127.0.0.1:0\n" + slipRoute, `:2: a quote is missing at the end of this text`},
		{"no quote at the end of a name in other letters", "[[route]]\nto = \"пример.рф\nvia = \"direct\"\n", `:2: a quote is missing at the end of this text`},
		{"no quote in front of a name in other letters", "[[route]]\nto = пример.рф\"\nvia = \"direct\"\n", `:2: a quote is missing at the front of this text`},
		{"bare name in other letters", "[[route]]\nto = пример.рф\nvia = \"direct\"\n", `:2: text stands in quotes: write "to = \"пример.рф\""`},
		{"letter that looks like another, in a value", "[log]\nprivate = truе\n" + slipRoute, `:2: U+0435 at character 14 is a letter that is none of a to z`},
		{"bare word", "[log]\nlevel = debug # all\n" + slipRoute, `:2: text stands in quotes: write "level = \"debug\""`},
		{"bare word that begins as a number", "[log]\nlevel = info\n" + slipRoute, `:2: text stands in quotes: write "level = \"info\""`},
		{"bare address", "[listen]\nmixed = 127.0.0.1:1080\n" + slipRoute, `:2: text stands in quotes: write "mixed = \"127.0.0.1:1080\""`},
		{"bare pattern", "[[route]]\nto = *\nvia = \"direct\"\n", `:2: text stands in quotes: write "to = \"*\""`},
		{"True", "[log]\nprivate = True\n" + slipRoute, `:2: yes and no are true and false, in small letters and without quotes: write "private = true"`},
		{"no", "[log]\nprivate = no\n" + slipRoute, `:2: yes and no are true and false, in small letters and without quotes: write "private = false"`},
		{"no value", "[log]\nlevel =\n" + slipRoute, `:2: there is no value behind "level ="`},
		{"heading", "[log\nprivate = true\n" + slipRoute, `:1: the heading of a table ends in "]"`},
		{"heading with two", "[[route\nto = \"*\"\n", `:1: the heading of such a table ends in "]]"`},
		{"space in a name", "[bridge.a b]\n" + slipRoute, `:1: a name in a table's heading has no space in it: write "-" instead`},
		{"sign in a name", "[bridge.a+b]\n" + slipRoute, `:1: a name in a table's heading has letters, digits, "-" and "_"; any other stands in quotes, as in [bridge."a.b"]`},
		{"semicolon", "[log]\nprivate = true;\n" + slipRoute, `:2: nothing stands behind a value: take ";" away`},
		{"comma", "[log]\nlevel = \"info\",\n" + slipRoute, `:2: nothing stands behind a value: take "," away`},
		{"two in a line", "[log]\nlevel = \"info\" private = true\n" + slipRoute, `:2: each key stands in a line of its own: begin a new one before "private"`},
		{"comment as in C", "// mine\n" + slipRoute, `:1: a comment begins with "#"`},
		{"comment as in INI", "; mine\n" + slipRoute, `:1: a comment begins with "#"`},
		{"backslash", "[pt.x]\nexec = [\"C:\\Users\\x\"]\n" + slipRoute, `:2: in a text in double quotes a backslash begins an escape: write it twice, or put the text in single quotes, as in 'C:\Users\me'`},
		{"escape", "[log]\nlevel = \"in\\qfo\"\n" + slipRoute, `:2: in a text in double quotes a backslash begins an escape: write it twice, or put the text in single quotes, as in 'C:\Users\me'`},
		{"comma in a list", "[listen]\nmixed = [\"127.0.0.1:0\" \"127.0.0.1:1\"]\n" + slipRoute, `:2: a comma is missing between two entries of the list, or "]" at its end`},
		{"key twice", "[log]\nprivate = true\nprivate = true\n" + slipRoute, `:3: "log.private" is there already, further up: a table has one heading, and each key stands in it once`},
		{"table twice", "[log]\nprivate = true\n[listen]\nmixed = []\n[log]\nlevel = \"info\"\n" + slipRoute, `:5: "log" is there already, further up: a table has one heading, and each key stands in it once`},
		{"bridge line", "obfs4 192.0.2.1:443 cert=x iat-mode=0\n", ":1: this is a bridge line alone: `ptgate add-bridge` adds it to a file, or write [bridge.NAME], and below it line = \"…\""},
		{"bridge line of a torrc", "Bridge obfs4 192.0.2.1:443 cert=x iat-mode=0\n", ":1: this is a bridge line alone: `ptgate add-bridge` adds it to a file, or write [bridge.NAME], and below it line = \"…\""},
		{"merge", slipRoute + "<<<<<<< HEAD\n", `:4: git has left both sides of a merge here: keep one, and take its marks away`},
		{"JSON", "{\"log\": {\"level\": \"info\"}}\n", `:1: this is JSON: a configuration is TOML, as in configs/client.toml`},
		{"HTML", "<!DOCTYPE html>\n", `:1: this is a web page, or XML, and no configuration`},
		{"UTF-16", "\xff\xfe" + utf16le("[log]\n"+slipRoute), `:1: the file is in UTF-16: save it as UTF-8 (in the Notepad of Windows: Save as, Encoding)`},
		{"UTF-16 without a mark", utf16le("[log]\n" + slipRoute), `:1: the file is in UTF-16: save it as UTF-8 (in the Notepad of Windows: Save as, Encoding)`},
		{"Latin-1", slipRoute + "# f\xfcr\n", `:4: the file has bytes that are no UTF-8: save it as UTF-8`},
		{"NUL", slipRoute + "# \x00\n", `:4: the file has a NUL byte in it: it is damaged, or no configuration`},
		{"line ends of old Macs", strings.ReplaceAll(slipRoute, "\n", "\r"), `:1: the lines end in a carriage return alone: save the file with line ends of Unix or Windows`},
		{"bare URL in a table", "[bridge.a]\nargs = { url = https://x.example.com/abc, iat-mode = \"0\" }\n" + slipRoute, `:2: text stands in quotes, in such a table, too: write "url = \"https://x.example.com/abc\""`},
		{"bare address in a table", "[[serve]]\ntls = { acme = \"www.example.com\", http = 0.0.0.0:80 }\n" + slipRoute, `:2: text stands in quotes, in such a table, too: write "http = \"0.0.0.0:80\""`},
		{"bare cert in a table", "[bridge.a]\nargs = {iat-mode = 0, cert = ab/c+d}\n" + slipRoute, `:2: text stands in quotes, in such a table, too: write "cert = \"ab/c+d\""`},
		{"no comma in a table", "[bridge.a]\nargs = { cert = \"x\" iat-mode = \"0\" }\n" + slipRoute, `:2: a comma is missing between two entries of this table: write one before "iat-mode"`},
		{"colon in a table", "[bridge.a]\nargs = { iat-mode = 0, url: \"https://x.example.com/abc\" }\n" + slipRoute, `:2: a key and its value stand as in  key = value: write "=" behind "url", not ":"`},
		{"something else", slipRoute + "?\n", `:4: expected '.' or '=', but got '?' instead`},
	} {
		path := filepath.Join(t.TempDir(), "c.toml")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, problems := testLoader.Load(path)
		if cfg != nil || len(problems) != 1 || !strings.HasPrefix(strings.TrimPrefix(problems[0].String(), path), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, problems, tt.want)
		}
	}
	for _, good := range []string{"\ufeff" + slipRoute, strings.ReplaceAll(slipRoute, "\n", "\r\n"), "\t" + strings.ReplaceAll(slipRoute, " = ", "\t=\t")} {
		if cfg, problems := testLoader.Load(write(t, "c.toml", good)); cfg == nil {
			t.Errorf("%q: %v", good, problems)
		}
	}
}

// Values are told what they were probably meant to be.
func TestMeant(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"[limits]\ndial = \"5 s\"\n", `: write "5s"$`},
		{"[limits]\ndial = \"1d\"\n", `: write "24h"$`},
		{"[limits]\ndial = \"2 days\"\n", `: write "48h"$`},
		{"[limits]\ndial = \"5\"\n", `: write "5s"$`},
		{"[limits]\ndial = 5\n", `: write "5s"$`},
		{"[limits]\ndial = \"5min\"\n", `: write "5m"$`},
		{"[limits]\ndial = \"soon\"\n", `or "500ms"$`},
		{"[limits]\nresume_buffer = \"14MB\"\n", `: write "14MiB"$`},
		{"[limits]\nresume_buffer = \"900kb\"\n", `: write "900KiB"$`},
		{"[limits]\nresume_buffer = 1000000\n", `: write "1000000B"$`},
		{"[limits]\nresume_buffer = \"much\"\n", `or "512KiB"$`},
		{"[listen]\nmixed = 1080\n", `text stands in quotes, as in mixed = "1080"$`},
		{"[listen]\nmixed = \"1080\"\n", `"1080" is a port alone: write "127.0.0.1:1080" for this machine, or ":1080" for all its addresses$`},
		{"[listen]\nmixed = \"::1:1080\"\n", `an IPv6 address stands in brackets before its port: write "\[::1\]:1080"$`},
		{"[listen]\nmixed = \"127.0.0.1\"\n", `"127.0.0.1" has no port: write as in "127.0.0.1:443"$`},
		{"[listen]\nmixed = \"[::1]\"\n", `"\[::1\]" has no port: write as in "\[::1\]:443"$`},
		{"[listen]\nmixed = \"127.0.0.1:70000\"\n", `has the port "70000": ports go up to 65535$`},
		{"[listen]\nmixed = \"127.0.0.1:http\"\n", `"http" is no port: write a number from 1 to 65535$`},
		{"[[serve]]\ntransport = \"obfs4\"\nbind = \"*:443\"\n", `all addresses of this machine are written ":443"$`},
		{"[[serve]]\ntransport = \"obfs4\"\nbind = \"example.com:443\"\n", `has a name: write an address of this machine, or ":443" for all of them$`},
		{"[listen]\nusers = [\"ann:pw\"]\n", `users must be a table: write users = { name = "password" }$`},
		{"[bridge.a]\ntransport = \"webtunnel\"\naddress = \"192.0.2.1:443\"\nargs = \"url=https://example.com/x\"\n",
			`args must be a table: write args = { cert = "…", iat-mode = "0" }$`},
	} {
		_, problems := testLoader.Load(write(t, "c.toml", tt.text+slipRoute))
		found := 0
		for _, p := range problems {
			if !p.Warning {
				found++
				if !regexp.MustCompile(tt.want).MatchString(p.Message) {
					t.Errorf("%q: %v, want %s", tt.text, p, tt.want)
				}
			}
		}
		if found != 1 {
			t.Errorf("%q: %d errors: %v", tt.text, found, problems)
		}
	}
}
