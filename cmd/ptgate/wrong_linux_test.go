package main

import (
	"bytes"

	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"ptgate/gateway/config"
	"ptgate/gateway/redact"
)

var update = flag.Bool("update", false, "write testdata/wrong.txt")

// A wrong is a kind of wrong configuration, or a kind of text that is pasted for a bridge
// line.
type wrong struct {
	name string
	text string            // of the file, or of what is pasted
	more map[string]string // other files of the directory; a name that ends in "/": a directory
	do   func(t *testing.T, dir string)

	pasted bool // the text is given to add-bridge, and stands as the line of a bridge
	works  bool // there is a warning, and the program runs
	fails  bool // there is a warning, and the program can't run
	silent bool // nothing is wrong with it: people fear that there is
	whole  bool // what is wrong is not in one line

	asksOthers bool // if it ran, it would ask a server on the Internet
}

const (
	wrongCert = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA"
	wrongLine = "obfs4 192.0.2.10:443 cert=" + wrongCert + " iat-mode=0"
	fineLine  = "line = \"" + wrongLine + "\"\n"
	// secret must not be shown by anybody.
	secret = "Gb7xSecretWord"
)

// near makes a file of a near end out of what is wrong in it.
func near(text string) string {
	if !strings.Contains(text, "[listen]") {
		text += "[listen]\nmixed = \"127.0.0.1:0\"\n"
	}
	if !strings.Contains(text, "[admin]") {
		text += "[admin]\nlisten = \"\"\n"
	}
	return text
}

const toAll = "[[route]]\nto = \"*\"\nvia = \"direct\"\n"

// routed makes a file of a near end that has a route.
func routed(text string) string { return near(text + toAll) }

// far makes a file of a far end out of the keys of its [[serve]].
func far(keys string) string {
	return "[[serve]]\n" + keys
}

// viaA makes a file with a bridge called a, and a route through it.
func viaA(keys string) string {
	return near("[bridge.a]\n" + keys + "[[route]]\nto = \"*\"\nvia = \"a\"\n")
}

// obfs4Here and webHere are the keys of a server on a free port.
const obfs4Here = "transport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n"
const webHere = "transport = \"webtunnel\"\nbind = \"127.0.0.1:0\"\noptions = { url = \"https://www.example.com/" + secret + "\" }\n"

// route makes a file with one route.
func route(keys string) string { return near("[[route]]\n" + keys) }

func utf16le(s string) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(s)) {
		b.Write([]byte{byte(u), byte(u >> 8)})
	}
	return b.String()
}

var syntaxes = []wrong{
	{name: "typographic quotes", text: routed("[listen]\nmixed = “127.0.0.1:0”\n")},
	{name: "a no-break space before a key", text: routed("[log]\n\u00a0private = true\n")},
	{name: "a zero width space before a key", text: routed("[log]\n\u200bprivate = true\n")},
	{name: "a full-width sign", text: routed("[log]\nprivate ＝ true\n")},
	{name: "an en dash in a number", text: routed("[limits]\nconnections = –5\n")},
	{name: "a colon for the equals sign", text: routed("[listen]\nmixed: \"127.0.0.1:0\"\n")},
	{name: "YAML", text: "log:\n  level: info\n"},
	{name: "JSON", text: "{\"log\": {\"level\": \"info\"}}\n"},
	{name: "INI", text: "[listen]\nmixed = 127.0.0.1:0 ; here\n"},
	{name: "a torrc", text: "UseBridges 1\nClientTransportPlugin obfs4 exec /usr/bin/obfs4proxy\nBridge " + wrongLine + "\n"},
	{name: "a proxychains.conf", text: "strict_chain\n[ProxyList]\nsocks5 127.0.0.1 1080\n"},
	{name: "no equals sign", text: routed("[listen]\nmixed \"127.0.0.1:0\"\n")},
	{name: "two equals signs", text: routed("[log]\nlevel == \"info\"\n")},
	{name: "an arrow", text: routed("[log]\nlevel => \"info\"\n")},
	{name: "a quote missing at the end", text: routed("[listen]\nmixed = \"127.0.0.1:0\n")},
	{name: "a quote missing at the front", text: routed("[log]\nlevel = info\"\n")},
	{name: "quotes that do not fit", text: routed("[log]\nlevel = \"info'\n")},
	{name: "backticks", text: routed("[log]\nlevel = `info`\n")},
	{name: "a bare word", text: routed("[log]\nlevel = debug\n")},
	{name: "a bare address", text: routed("[listen]\nmixed = 127.0.0.1:1080\n")},
	{name: "a bare list", text: routed("[listen]\nmixed = [127.0.0.1:1080, 127.0.0.1:8118]\n")},
	{name: "a list without brackets", text: routed("[listen]\nmixed = \"127.0.0.1:0\", \"127.0.0.1:0\"\n")},
	{name: "a list in parentheses", text: routed("[listen]\nmixed = (\"127.0.0.1:0\")\n")},
	{name: "a list in braces", text: routed("[listen]\nmixed = {\"127.0.0.1:0\"}\n")},
	{name: "no comma in a list", text: routed("[listen]\nmixed = [\"127.0.0.1:0\" \"127.0.0.1:0\"]\n")},
	{name: "no comma in a table", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10:443\"\nargs = { cert = \"short\" iat-mode = \"0\" }\n")},
	{name: "a colon in a table", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nusers = { ann : \"" + secret + "\" }\n")},
	{name: "a Cyrillic letter in a key", text: routed("[log]\nl\u0435vel = \"info\"\n")},
	{name: "a Cyrillic letter in a heading", text: routed("[l\u043eg]\nlevel = \"info\"\n")},
	{name: "a smiley for a key", text: routed("[log]\n\U0001f600 = \"info\"\n")},
	{name: "a key behind a heading", text: routed("[log] level = \"info\"\n")},
	{name: "three quotes without their end", text: routed("[log]\nlevel = \"\"\"info\n")},
	{name: "three single quotes without their end", text: routed("[log]\nlevel = '''info\n")},
	{name: "a certificate", text: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"},
	{name: "a list without its end", text: routed("[listen]\nmixed = [\"127.0.0.1:0\",\n")},
	{name: "a bare pattern", text: route("to = *\nvia = \"direct\"\n")},
	{name: "True", text: routed("[log]\nprivate = True\n")},
	{name: "no", text: routed("[log]\nprivate = no\n")},
	{name: "true in quotes", text: routed("[log]\nprivate = \"true\"\n")},
	{name: "0 for false", text: routed("[log]\nprivate = 0\n")},
	{name: "no value", text: routed("[log]\nlevel =\n")},
	{name: "a key alone", text: routed("[log]\nlevel\n")},
	{name: "a heading without its end", text: "[log\nprivate = true\n" + routed("")},
	{name: "a heading with one bracket at its end", text: "[[route]\nto = \"*\"\n"},
	{name: "a heading with one bracket", text: near("[route]\nto = \"*\"\nvia = \"direct\"\n")},
	{name: "a heading with one bracket too many", text: near("[[bridge.a]]\n" + fineLine + toAll)},
	{name: "a heading without a name", text: near("[bridge]\n" + fineLine + toAll)},
	{name: "an empty heading", text: routed("[]\n")},
	{name: "a space in a name", text: routed("[bridge.a b]\n" + fineLine)},
	{name: "an umlaut in a name", text: routed("[bridge.zürich]\n" + fineLine)},
	{name: "a dot in a name", text: near("[bridge.www.example]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"www.example\"\n")},
	{name: "a comment as in C", text: "// mine\n" + routed("")},
	{name: "a comment as in INI", text: "; mine\n" + routed("")},
	{name: "a comment behind a value as in C", text: routed("[log]\nlevel = \"info\" // all\n")},
	{name: "a semicolon", text: routed("[log]\nprivate = true;\n")},
	{name: "two keys in a line", text: routed("[log]\nlevel = \"info\" private = true\n")},
	{name: "a key twice", text: routed("[log]\nprivate = true\nprivate = true\n")},
	{name: "a table twice", text: routed("[log]\nprivate = true\n[listen]\nmixed = \"127.0.0.1:0\"\n[log]\nlevel = \"info\"\n")},
	{name: "a bridge twice", text: near("[bridge.a]\n" + fineLine + "[bridge.a]\n" + fineLine + toAll)},
	{name: "a line break in a table", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10:443\"\nargs = { cert = \"" + wrongCert + "\",\niat-mode = \"0\" }\n"), silent: true},
	{name: "a path of Windows", text: routed("[pt.x]\nexec = [\"C:\\Users\\x.exe\"]\ntransports = [\"dust\"]\n")},
	{name: "a path of Windows without a wrong escape", text: routed("state_dir = \"C:\\temp\\new\"\n")},
	{name: "a merge of git", text: routed("<<<<<<< HEAD\n[log]\n")},
	{name: "a diff", text: "--- a/c.toml\n+++ b/c.toml\n" + routed("")},
	{name: "a shell's here-document", text: "cat > c.toml <<EOF\n" + routed("") + "EOF\n"},
	{name: "a fence of Markdown", text: "```toml\n" + routed("") + "```\n"},
	{name: "a mail's marks of quoting", text: "> [log]\n> level = \"info\"\n"},
	{name: "a web page", text: "<!DOCTYPE html>\n<html>\n"},
	{name: "a bridge line alone", text: wrongLine + "\n"},
	{name: "an invitation alone", text: "ptgate://me:" + secret + "@192.0.2.10:443/\n"},
	{name: "a link of another program alone", text: "vmess://" + secret + "\n"},
	{name: "UTF-16", text: "\xff\xfe" + utf16le(routed("")), whole: true},
	{name: "Latin-1", text: "# f\xfcr\n" + routed("")},
	{name: "a NUL", text: "# \x00\n" + routed("")},
	{name: "a binary file", text: "\x7fELF\x02\x01\x01\x00\x00\x03\x80\xff\xfe", whole: true},
	{name: "a zip file", text: "PK\x03\x04\x14\x00\x08", whole: true},
	{name: "line ends of old Macs", text: strings.ReplaceAll(routed(""), "\n", "\r"), whole: true},
	{name: "line ends of Windows", text: strings.ReplaceAll(routed(""), "\n", "\r\n"), silent: true},
	{name: "a byte order mark", text: "\ufeff" + routed(""), silent: true},
	{name: "tabs", text: strings.ReplaceAll(routed(""), " = ", "\t=\t"), silent: true},
	{name: "a date for a text", text: routed("state_dir = 2026-01-02\n")},
	{name: "a number with a leading zero", text: routed("[limits]\nconnections = 0100\n")},
	{name: "a huge number", text: routed("[limits]\nconnections = 99999999999999999999\n")},
}

var words = []wrong{
	{name: "an empty file", text: "", whole: true},
	{name: "only comments", text: "# to do\n# [[route]]\n", whole: true},
	{name: "no route and no serve", text: "[log]\nlevel = \"info\"\n", whole: true},
	{name: "a misspelt key", text: routed("[log]\nlevle = \"info\"\n")},
	{name: "a key in capitals", text: routed("[log]\nLEVEL = \"info\"\n")},
	{name: "a key with a dash", text: routed("state-dir = \"/tmp/x\"\n")},
	{name: "a misspelt table", text: routed("[lsiten]\nmixed = \"127.0.0.1:0\"\n")},
	{name: "routes for route", text: near("[[routes]]\nto = \"*\"\nvia = \"direct\"\n")},
	{name: "a table of another program", text: near("[[inbounds]]\ntype = \"socks\"\n" + toAll)},
	{name: "a key above its table", text: routed("level = \"info\"\n")},
	{name: "a key below another table", text: routed("[log]\nlevel = \"info\"\nmixed = \"127.0.0.1:0\"\n")},
	{name: "a table below another table", text: routed("[log]\nbridge.tokyo = { " + strings.TrimSpace(fineLine) + " }\n")},
	{name: "a table of the top below another table", text: routed("[log]\nlimits = { dial = \"5s\" }\n")},
	{name: "a wrong word", text: routed("[log]\nlevel = \"verbose\"\n")},
	{name: "a word in capitals", text: routed("[log]\nlevel = \"INFO\"\n")},
	{name: "a text for a table", text: routed("log = \"info\"\n")},
	{name: "a list for a text", text: routed("[log]\nlevel = [\"info\"]\n")},
	{name: "a number for a list", text: routed("[listen]\nmixed = 1080\n")},
	{name: "a time without its unit", text: routed("[limits]\ndial = 75\n")},
	{name: "a time in quotes without its unit", text: routed("[limits]\ndial = \"75\"\n")},
	{name: "a time in days", text: routed("[limits]\nidle = \"1d\"\n")},
	{name: "a time below zero", text: routed("[limits]\ndial = \"-5s\"\n")},
	{name: "a time that is much too long", text: routed("[limits]\ndial = \"9999999h\"\n")},
	{name: "a size without its unit", text: routed("[limits]\nresume_buffer = 16\n")},
	{name: "a size in another unit", text: routed("[limits]\nresume_buffer = \"16MB\"\n")},
	{name: "a size below zero", text: routed("[limits]\nresume_buffer = \"-16MiB\"\n")},
	{name: "a number below zero", text: routed("[limits]\nconnections = -1\n")},
	{name: "a number in quotes", text: routed("[limits]\nconnections = \"100\"\n")},
	{name: "a number with a fraction", text: routed("[limits]\nconnections = 1.5\n")},
}

var listens = []wrong{
	{name: "a port alone", text: routed("[listen]\nmixed = \"1080\"\n")},
	{name: "an address alone", text: routed("[listen]\nmixed = \"127.0.0.1\"\n")},
	{name: "a port beyond the last", text: routed("[listen]\nmixed = \"127.0.0.1:70000\"\n")},
	{name: "a port below zero", text: routed("[listen]\nmixed = \"127.0.0.1:-1\"\n")},
	{name: "a port by its name", text: routed("[listen]\nmixed = \"127.0.0.1:socks\"\n")},
	{name: "localhost", text: routed("[listen]\nmixed = \"localhost:1080\"\n")},
	{name: "a name to listen on", text: routed("[listen]\nmixed = \"my.example.com:1080\"\n")},
	{name: "a URL to listen on", text: routed("[listen]\nmixed = \"socks5://127.0.0.1:1080\"\n")},
	{name: "IPv6 without brackets", text: routed("[listen]\nmixed = \"::1:1080\"\n")},
	{name: "IPv6 with a zone", text: routed("[listen]\nmixed = \"[fe80::1%eth0]:1080\"\n")},
	{name: "an address with a number too large", text: routed("[listen]\nmixed = \"127.0.0.256:1080\"\n")},
	{name: "a space in an address", text: routed("[listen]\nmixed = \"127.0.0.1: 1080\"\n")},
	{name: "a comma for a dot", text: routed("[listen]\nmixed = \"127,0,0,1:1080\"\n")},
	{name: "a star to listen on", text: routed("[listen]\nmixed = \"*:1080\"\n")},
	{name: "two addresses in one text", text: routed("[listen]\nmixed = \"127.0.0.1:1080, 127.0.0.1:8118\"\n")},
	{name: "a path of a socket alone", text: routed("[listen]\nmixed = \"/run/ptgate.sock\"\n")},
	{name: "everybody may use the proxy", text: routed("[listen]\nmixed = \"0.0.0.0:0\"\n")},
	{name: "a port twice", text: routed("[listen]\nsocks5 = \"127.0.0.1:1080\"\nhttp = \"127.0.0.1:1080\"\n")},
	{name: "no listener", text: routed("[listen]\nmixed = []\n")},
	{name: "users as a list", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nusers = [\"me:" + secret + "\"]\n")},
	{name: "a user without a password", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nusers = { me = \"\" }\n")},
	{name: "a password that is a number", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nusers = { me = 77001234 }\n")},
	{name: "a network with address bits", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nallow = [\"192.0.2.7/24\"]\n")},
	{name: "a network with a mask", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nallow = [\"192.0.2.0/255.255.255.0\"]\n")},
	{name: "a network with a star", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nallow = [\"192.0.2.*\"]\n")},
	{name: "a network with a prefix too long", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nallow = [\"192.0.2.0/33\"]\n")},
	{name: "a range of addresses", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nallow = [\"192.0.2.1-192.0.2.9\"]\n")},
	{name: "a name for a network", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nallow = [\"laptop\"]\n")},
	{name: "an owner that does not exist", text: routed("[listen]\nmixed = \"127.0.0.1:0\"\nowners = [\"nobody-of-that-name\"]\n")},
	{name: "the status page for everybody", text: routed("[admin]\nlisten = \"0.0.0.0:0\"\n")},
	{name: "off for the status page", text: routed("[admin]\nlisten = \"off\"\n")},
}

var routings = []wrong{
	{name: "no bridge of that name", text: near("[bridge.tokyo]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"tokio\"\n")},
	{name: "a soft hyphen in the name of a bridge", text: near("[bridge.tokyo]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"to\u00adkyo\"\n")},
	{name: "a Cyrillic letter in the name of a bridge", text: near("[bridge.tokyo]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"t\u043ekyo\"\n")},
	{name: "two bridges in one text", text: near("[bridge.a]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"a, b\"\n")},
	{name: "a transport for a bridge", text: near("[bridge.tokyo]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"obfs4\"\n")},
	{name: "a bridge that no route leads to", text: routed("[bridge.a]\n" + fineLine), works: true},
	{name: "a route without via", text: route("to = \"*\"\n")},
	{name: "a route without to", text: route("via = \"direct\"\n")},
	{name: "a route to nothing", text: route("to = []\nvia = \"direct\"\n")},
	{name: "a route via nothing", text: route("to = \"*\"\nvia = []\n")},
	{name: "direct beside a bridge", text: near("[bridge.a]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = [\"a\", \"direct\"]\n")},
	{name: "Direct", text: route("to = \"*\"\nvia = \"Direct\"\n")},
	{name: "deny for block", text: route("to = \"*\"\nvia = \"deny\"\n")},
	{name: "everything first", text: near(toAll + "[[route]]\nto = \"example.com\"\nvia = \"block\"\n")},
	{name: "a pattern twice", text: near("[[route]]\nto = [\"example.com\", \"example.com\"]\nvia = \"direct\"\n"), works: true},
	{name: "a name below one that is taken", text: near("[[route]]\nto = [\".example.com\"]\nvia = \"direct\"\n[[route]]\nto = [\"www.example.com\", \"other.example\"]\nvia = \"block\"\n"), works: true},
	{name: "a URL for a pattern", text: route("to = \"https://example.com/\"\nvia = \"direct\"\n")},
	{name: "a path in a pattern", text: route("to = \"example.com/path\"\nvia = \"direct\"\n")},
	{name: "a wrong star", text: route("to = \"*example.com\"\nvia = \"direct\"\n")},
	{name: "a star in the middle", text: route("to = \"www.*.com\"\nvia = \"direct\"\n")},
	{name: "a star at the end", text: route("to = \"example.*\"\nvia = \"direct\"\n")},
	{name: "a regular expression", text: route("to = '^.*\\.example\\.com$'\nvia = \"direct\"\n")},
	{name: "a rule of another program", text: route("to = \"DOMAIN-SUFFIX,example.com\"\nvia = \"direct\"\n")},
	{name: "a geosite", text: route("to = \"geosite:cn\"\nvia = \"direct\"\n")},
	{name: "a rule of an ad blocker", text: route("to = \"||ads.example.com^\"\nvia = \"block\"\n")},
	{name: "a space in a pattern", text: route("to = \"example.com example.org\"\nvia = \"direct\"\n")},
	{name: "a comma in a pattern", text: route("to = \"example.com,example.org\"\nvia = \"direct\"\n")},
	{name: "capitals and a final dot", text: route("to = \"Example.COM.\"\nvia = \"direct\"\n"), silent: true},
	{name: "an underscore in a pattern", text: route("to = \"_dmarc.example.com\"\nvia = \"direct\"\n"), silent: true},
	{name: "a name of another script", text: route("to = \"bücher.example\"\nvia = \"direct\"\n"), silent: true},
	{name: "a full-width colon in a pattern", text: route("to = \"example.com：443\"\nvia = \"direct\"\n")},
	{name: "a Cyrillic letter in a pattern", text: route("to = \"ex\u0430mple.com\"\nvia = \"direct\"\n"), works: true},
	{name: "two dots in a pattern", text: route("to = \"example..com\"\nvia = \"direct\"\n")},
	{name: "a label too long", text: route("to = \"" + strings.Repeat("a", 64) + ".example\"\nvia = \"direct\"\n")},
	{name: "a port 0 in a pattern", text: route("to = \"example.com:0\"\nvia = \"direct\"\n")},
	{name: "a port by name in a pattern", text: route("to = \"example.com:https\"\nvia = \"direct\"\n")},
	{name: "ports the wrong way round", text: route("to = \"example.com:90-80\"\nvia = \"direct\"\n")},
	{name: "a list of ports", text: route("to = \"example.com:80,443\"\nvia = \"direct\"\n")},
	{name: "a pattern of half an address", text: route("to = \"192.168.1\"\nvia = \"direct\"\n")},
	{name: "a pattern of a network with a star", text: route("to = \"192.168.1.*\"\nvia = \"direct\"\n")},
	{name: "a pattern of a network with address bits", text: route("to = \"10.0.0.1/8\"\nvia = \"direct\"\n")},
	{name: "a pattern of an IPv6 network and a port", text: route("to = \"2001:db8::/32:443\"\nvia = \"direct\"\n")},
	{name: "private as a pattern", text: route("to = \"private\"\nvia = \"direct\"\n")},
	{name: "a list that is not there", text: route("to_file = \"domains.txt\"\nvia = \"block\"\n")},
	{name: "a list that is a directory", text: route("to_file = \"domains\"\nvia = \"block\"\n"), more: map[string]string{"domains/": ""}},
	{name: "an empty list", text: route("to_file = \"domains.txt\"\nvia = \"block\"\n"), more: map[string]string{"domains.txt": "# none yet\n"}, works: true},
	{name: "a list with an error", text: route("to_file = \"domains.txt\"\nvia = \"block\"\n"), more: map[string]string{"domains.txt": "example.com\nhttp://example.org/\n"}},
	{name: "a list that is a hosts file", text: route("to_file = \"hosts\"\nvia = \"block\"\n"), more: map[string]string{"hosts": "# ads\n0.0.0.0 ads.example.com\n"}},
	{name: "a list in UTF-16", text: route("to_file = \"domains.txt\"\nvia = \"block\"\n"), more: map[string]string{"domains.txt": "\xff\xfe" + utf16le("example.com\n")}},
	{name: "private with a bridge", text: near("[bridge.a]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"a\"\nprivate = true\n")},
	{name: "an order of bridges that is not known", text: near("[bridge.a]\n" + fineLine + "[[route]]\nto = \"*\"\nvia = \"a\"\npick = \"random\"\n")},
}

var bridgesWrong = []wrong{
	{name: "no transport", text: viaA("address = \"192.0.2.10:443\"\n")},
	{name: "no address", text: viaA("transport = \"obfs4\"\n")},
	{name: "a misspelt transport", text: viaA("transport = \"obsf4\"\naddress = \"192.0.2.10:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "a transport in capitals", text: viaA("transport = \"Obfs4\"\naddress = \"192.0.2.10:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "a transport that is none", text: viaA("transport = \"vless\"\naddress = \"192.0.2.10:443\"\n")},
	{name: "a letter in the address", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.1O:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "an address that was not filled in", text: viaA("transport = \"obfs4\"\naddress = \"YOUR-PUBLIC-ADDRESS:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "no port", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "an address with a private number", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.300:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "the address of all of a machine's", text: viaA("transport = \"obfs4\"\naddress = \"0.0.0.0:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "IPv6 without brackets in a bridge", text: viaA("transport = \"obfs4\"\naddress = \"2001:db8::1:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = \"0\" }\n")},
	{name: "the placeholder of the examples", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10:443\"\nargs = { cert = \"…\", iat-mode = \"0\" }\n")},
	{name: "args as a text", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10:443\"\nargs = \"cert=" + wrongCert + " iat-mode=0\"\n")},
	{name: "iat-mode without quotes", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10:443\"\nargs = { cert = \"" + wrongCert + "\", iat-mode = 0 }\n"), silent: true},
	{name: "iat_mode", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10:443\"\nargs = { cert = \"" + wrongCert + "\", iat_mode = \"0\" }\n")},
	{name: "cert outside of args", text: viaA("transport = \"obfs4\"\naddress = \"192.0.2.10:443\"\ncert = \"" + wrongCert + "\"\n")},
	{name: "a wrong far", text: viaA(fineLine + "far = \"ptgate\"\n")},
	{name: "a user without a password, of a bridge", text: viaA(fineLine + "user = \"me\"\n")},
	{name: "a line and an address", text: viaA(fineLine + "address = \"192.0.2.10:443\"\n")},
	{name: "a table for a line", text: viaA("line = { transport = \"obfs4\" }\n")},
	{name: "a bridge called direct", text: near("[bridge.direct]\n" + fineLine + toAll)},
	{name: "a budget that is too small", text: viaA(fineLine + "budget = { bytes = \"1KiB\" }\n")},
	{name: "a rate without its time", text: viaA(fineLine + "budget = { new = \"3\" }\n")},
	{name: "a program that is not there", text: near("[pt.dust]\nexec = [\"/nonexistent/dust\"]\ntransports = [\"dust\"]\n[bridge.a]\nline = \"dust 192.0.2.10:443\"\n[[route]]\nto = \"*\"\nvia = \"a\"\n"), works: true},
	{name: "a program that is not executable", text: near("[pt.dust]\nexec = [\"./dust\"]\ntransports = [\"dust\"]\n[bridge.a]\nline = \"dust 192.0.2.10:443\"\n[[route]]\nto = \"*\"\nvia = \"a\"\n"), more: map[string]string{"dust": "#!/bin/sh\n"}, works: true},
	{name: "a program with its arguments in one text", text: near("[pt.dust]\nexec = \"/usr/bin/dust -log\"\ntransports = [\"dust\"]\n[bridge.a]\nline = \"dust 192.0.2.10:443\"\n[[route]]\nto = \"*\"\nvia = \"a\"\n"), works: true},
	{name: "a program without transports", text: routed("[pt.dust]\nexec = [\"/bin/true\"]\n")},
	{name: "a proxy without its scheme", text: routed("[pt.obfs4]\ntransports = [\"obfs4\"]\nproxy = \"127.0.0.1:9050\"\n")},
	{name: "a proxy of a kind that is not known", text: routed("[pt.obfs4]\ntransports = [\"obfs4\"]\nproxy = \"https://me:" + secret + "@127.0.0.1:9050\"\n")},
	{name: "an interface for a source address", text: routed("[pt.obfs4]\ntransports = [\"obfs4\"]\nbind_v4 = \"eth0\"\n")},
}

var servers = []wrong{
	{name: "serve with one bracket", text: "[serve]\n" + obfs4Here},
	{name: "no bind", text: far("transport = \"obfs4\"\n")},
	{name: "a bind that is a name", text: far("transport = \"obfs4\"\nbind = \"example.com:443\"\n")},
	{name: "a bind that is a port", text: far("transport = \"obfs4\"\nbind = 443\n")},
	{name: "a bind to an address of another machine", text: far("transport = \"obfs4\"\nbind = \"192.0.2.1:4443\"\n"), fails: true},
	{name: "a port for two transports", text: far("transport = \"obfs4\"\nbind = \"0.0.0.0:4443\"\n[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:4443\"\n")},
	{name: "a transport that only clients have", text: far("transport = \"meek_lite\"\nbind = \"127.0.0.1:0\"\n")},
	{name: "public without a port", text: far(obfs4Here + "public = \"198.51.100.7\"\n")},
	{name: "public with a letter in it", text: far(obfs4Here + "public = \"198.51.100.O:443\"\n")},
	{name: "public that is bind", text: far("transport = \"obfs4\"\nbind = \"[::]:0\"\npublic = \"[::]:443\"\n")},
	{name: "forward without a port", text: far(obfs4Here + "forward = \"127.0.0.1\"\n")},
	{name: "forward that is a URL", text: far(obfs4Here + "forward = \"http://127.0.0.1:80\"\n")},
	{name: "forward to itself", text: far("transport = \"obfs4\"\nbind = \"127.0.0.1:4443\"\nforward = \"127.0.0.1:4443\"\n")},
	{name: "half of the keys", text: far(obfs4Here + "options = { private-key = \"" + strings.Repeat("ab", 32) + "\" }\n")},
	{name: "a private key one digit short", text: far(obfs4Here + "options = { node-id = \"" + strings.Repeat("ab", 20) + "\", private-key = \"" + strings.Repeat("ab", 31) + "a\", drbg-seed = \"" + strings.Repeat("ab", 24) + "\" }\n")},
	{name: "webtunnel without its url", text: far("transport = \"webtunnel\"\nbind = \"127.0.0.1:0\"\n")},
	{name: "webtunnel that others can reach", text: far("transport = \"webtunnel\"\nbind = \"0.0.0.0:0\"\noptions = { url = \"https://www.example.com/" + secret + "\" }\n"), works: true},
	{name: "tls for obfs4", text: far(obfs4Here + "tls = { acme = \"www.example.com\" }\n")},
	{name: "tls that is true", text: far(webHere + "tls = true\n")},
	{name: "acme without a name", text: far(webHere + "tls = { acme = \"\" }\n")},
	{name: "acme with an address", text: far(webHere + "tls = { acme = \"192.0.2.1\" }\n")},
	{name: "acme with a star", text: far(webHere + "tls = { acme = \"*.example.com\" }\n")},
	{name: "acme with a URL", text: far(webHere + "tls = { acme = \"https://www.example.com\" }\n")},
	{name: "acme on a port that the authority does not look at", text: far("transport = \"webtunnel\"\nbind = \"127.0.0.1:4443\"\noptions = { url = \"https://www.example.com/" + secret + "\" }\ntls = { acme = \"www.example.com\" }\n"), works: true, asksOthers: true},
	{name: "a certificate without its key", text: far(webHere + "tls = { cert = \"cert.pem\" }\n")},
	{name: "a certificate that is not there", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, key string) (string, string) { return "", key })},
	{name: "a key that is not there", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, key string) (string, string) { return cert, "" })},
	{name: "a key one byte short", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, key string) (string, string) { return cert, key[:60] + key[61:] })},
	{name: "a certificate one byte short", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, key string) (string, string) { return cert[:60] + cert[61:], key })},
	{name: "certificate and key the wrong way round", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, key string) (string, string) { return key, cert })},
	{name: "a key of another certificate", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, _ string) (string, string) { _, other := newPair(time.Now()); return cert, other })},
	{name: "a key with a password", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, key string) (string, string) {
		return cert, string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte(key)}))
	})},
	{name: "a certificate in binary", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), do: certificates(func(cert, key string) (string, string) {
		b, _ := pem.Decode([]byte(cert))
		return string(b.Bytes), key
	})},
	{name: "an expired certificate", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), works: true, do: certificates(func(_, _ string) (string, string) { return newPair(time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)) })},
	{name: "a certificate for another name", text: far(strings.Replace(webHere, "www.", "other.", 1) + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), works: true, do: certificates(func(cert, key string) (string, string) { return cert, key })},
	{name: "a key that others can read", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"), works: true, do: func(t *testing.T, dir string) {
		certificates(func(cert, key string) (string, string) { return cert, key })(t, dir)
		chmod("key.pem", 0o644)(t, dir)
	}},
	{name: "a decoy that is not there", text: far(webHere + "tls = { cert = \"cert.pem\", key = \"key.pem\" }\ndecoy = \"site\"\n"), do: certificates(func(cert, key string) (string, string) { return cert, key })},
	{name: "a decoy without tls", text: far(webHere + "decoy = \"/var/www\"\n")},
	{name: "an exit that nobody leads to", text: routed("[exit]\nallow = [\"*\"]\n"), works: true},
	{name: "an exit open to this box's network", text: far(obfs4Here + "[exit]\ndeny = [\"*:25\"]\n"), works: true},
	{name: "users that are no table", text: far(obfs4Here + "[exit]\nusers = \"me\"\n")},
	{name: "a damaged hash of bcrypt", text: far(obfs4Here + "[exit]\nusers = { me = \"$2a$10$abc\" }\n")},
	{name: "a users_file that is not there", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), works: true, whole: true},
	{name: "a users_file that others can write", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), more: map[string]string{"users": ""}, do: chmod("users", 0o666), whole: true},
	{name: "a users_file that others can read", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), more: map[string]string{"users": ""}, do: chmod("users", 0o644), works: true, whole: true},
	{name: "a users_file with plain passwords", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), more: map[string]string{"users": "# users\nme " + secret + "\n"}},
	{name: "a users_file of htpasswd", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), more: map[string]string{"users": "me:$apr1$" + secret + "\n"}},
	{name: "a users_file cut short", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), more: map[string]string{"users": "me $sha256$0123456789abcdef\n"}},
	{name: "a users_file with a wrong day", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), more: map[string]string{"users": "me $sha256$" + strings.Repeat("0a", 32) + " expires=31.12.2026\n"}},
	{name: "a users_file that is a directory", text: far(obfs4Here + "[exit]\nusers_file = \"users\"\n"), more: map[string]string{"users/": ""}, whole: true},
}

var machines = []wrong{
	{name: "a file that is not there", text: "", do: func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "c.toml"))) }, whole: true},
	{name: "a directory", text: "", do: func(t *testing.T, dir string) {
		must(t, os.Remove(filepath.Join(dir, "c.toml")))
		must(t, os.Mkdir(filepath.Join(dir, "c.toml"), 0o700))
	}, whole: true},
	{name: "a link to nowhere", text: "", do: func(t *testing.T, dir string) {
		must(t, os.Remove(filepath.Join(dir, "c.toml")))
		must(t, os.Symlink("elsewhere.toml", filepath.Join(dir, "c.toml")))
	}, whole: true},
	{name: "a file that others can write", text: routed(""), do: chmod("c.toml", 0o666), whole: true},
	{name: "secrets that others can read", text: viaA(fineLine), do: chmod("c.toml", 0o644), works: true},
	{name: "a state directory that is a file", text: "state_dir = \"c.toml\"\n" + routed("")},
	{name: "a state directory in the shell's words", text: "state_dir = \"~/state\"\n" + routed(""), works: true},
	{name: "a state directory below a file", text: "state_dir = \"c.toml/state\"\n" + far(obfs4Here)},
	{name: "a state directory that others can write", text: "state_dir = \"state\"\n" + far(obfs4Here), more: map[string]string{"state/": ""}, do: chmod("state", 0o777)},
	{name: "a program of a server that is not there", text: "[pt.dust]\nexec = [\"/nonexistent/dust\"]\ntransports = [\"dust\"]\n" + far("transport = \"dust\"\nbind = \"127.0.0.1:0\"\n")},
	{name: "a socket in no directory", text: routed("[listen]\nmixed = \"unix:nowhere/proxy.sock\"\n")},
	{name: "a socket in a place that is not there", text: routed("[listen]\nmixed = \"unix:/nonexistent/proxy.sock\"\n"), fails: true},
}

var pasteds = []wrong{
	{name: "a line of ptgate", text: wrongLine, silent: true},
	{name: "a line of a torrc", text: "Bridge " + wrongLine, silent: true},
	{name: "bridge in small letters", text: "bridge " + wrongLine, silent: true},
	{name: "a line in plain quotes", text: "\"" + wrongLine + "\""},
	{name: "a line with a fingerprint", text: strings.Replace(wrongLine, " cert", " 0123456789ABCDEF0123456789ABCDEF01234567 cert", 1), works: true},
	{name: "a fingerprint with a dollar", text: strings.Replace(wrongLine, " cert", " $0123456789ABCDEF0123456789ABCDEF01234567 cert", 1)},
	{name: "a fingerprint one digit short", text: strings.Replace(wrongLine, " cert", " 0123456789ABCDEF0123456789ABCDEF0123456 cert", 1)},
	{name: "smart quotes around it", text: "“" + wrongLine + "”"},
	{name: "a smart quote at its end", text: wrongLine + "”"},
	{name: "backticks around it", text: "`" + wrongLine + "`"},
	{name: "three backticks before it", text: "```" + wrongLine},
	{name: "a fence around it", text: "```text\n" + wrongLine + "\n```"},
	{name: "a quote that is not closed", text: "line = \"" + wrongLine},
	{name: "the source of a web page", text: "&quot;" + wrongLine + "&quot;"},
	{name: "the source of a web page in it", text: strings.Replace(wrongLine, "44t+", "44t&#43;", 1)},
	{name: "a mark of a web page behind it", text: wrongLine + "<br/>"},
	{name: "the address of all of a machine's in a line", text: strings.Replace(wrongLine, "192.0.2.10", "[::]", 1)},
	{name: "an en dash", text: strings.Replace(wrongLine, "iat-mode", "iat–mode", 1)},
	{name: "a non-breaking hyphen", text: strings.Replace(wrongLine, "iat-mode", "iat‑mode", 1)},
	{name: "a full-width colon", text: strings.Replace(wrongLine, ":443", "：443", 1)},
	{name: "a byte order mark before it", text: "\ufeff" + wrongLine, works: true},
	{name: "a zero width space in it", text: strings.Replace(wrongLine, ".2.10", ".2.\u200b10", 1), works: true},
	{name: "no-break spaces in it", text: strings.ReplaceAll(wrongLine, " ", "\u00a0"), silent: true},
	{name: "a Cyrillic letter", text: strings.Replace(wrongLine, "cert=", "сert=", 1)},
	{name: "a Cyrillic letter in the transport", text: strings.Replace(wrongLine, "obfs4", "оbfs4", 1)},
	{name: "a Cyrillic letter in cert", text: strings.Replace(wrongLine, "cert=X", "cert=Х", 1)},
	{name: "an ellipsis at the end of cert", text: "obfs4 192.0.2.10:443 cert=XHQQLQGl… iat-mode=0"},
	{name: "a plain bridge", text: "192.0.2.10:443 0123456789ABCDEF0123456789ABCDEF01234567"},
	{name: "a plain address", text: "192.0.2.10:443"},
	{name: "an address alone with its transport", text: "obfs4 192.0.2.10:443"},
	{name: "no port", text: strings.Replace(wrongLine, ":443", "", 1)},
	{name: "a port apart", text: strings.Replace(wrongLine, ":443", " 443", 1)},
	{name: "a port behind a space", text: strings.Replace(wrongLine, ":443", ": 443", 1)},
	{name: "a port that is too large", text: strings.Replace(wrongLine, ":443", ":70000", 1)},
	{name: "port 0", text: strings.Replace(wrongLine, ":443", ":0", 1)},
	{name: "IPv6 without brackets", text: strings.Replace(wrongLine, "192.0.2.10:", "2001:db8::1:", 1)},
	{name: "a letter in the address of a line", text: strings.Replace(wrongLine, "192.0.2.10", "192.0.2.1O", 1)},
	{name: "no cert", text: "obfs4 192.0.2.10:443 iat-mode=0"},
	{name: "a cert that is cut", text: strings.Replace(wrongLine, wrongCert, wrongCert[:60], 1)},
	{name: "a line that is cut in cert", text: "obfs4 192.0.2.10:443 cert=" + wrongCert[:30]},
	{name: "no iat-mode", text: "obfs4 192.0.2.10:443 cert=" + wrongCert},
	{name: "iat-mode that is none", text: strings.Replace(wrongLine, "iat-mode=0", "iat-mode=5", 1)},
	{name: "iat-mode that is a word", text: strings.Replace(wrongLine, "iat-mode=0", "iat-mode=off", 1)},
	{name: "a space in cert", text: strings.Replace(wrongLine, wrongCert, wrongCert[:30]+" "+wrongCert[30:], 1)},
	{name: "spaces around the equals sign", text: strings.Replace(wrongLine, "cert=", "cert = ", 1)},
	{name: "a space behind the equals sign", text: strings.Replace(wrongLine, "cert=", "cert= ", 1)},
	{name: "a space before a url", text: "webtunnel 192.0.2.3:443 url= https://example.com/" + secret},
	{name: "an arg twice", text: wrongLine + " iat-mode=1", works: true},
	{name: "a colon for the equals sign, in a line", text: strings.Replace(wrongLine, "cert=", "cert:", 1)},
	{name: "commas between the args", text: strings.Replace(wrongLine, " iat", ",iat", 1)},
	{name: "a comma behind it", text: wrongLine + ","},
	{name: "a full stop behind it", text: wrongLine + "."},
	{name: "a cert in web letters", text: strings.NewReplacer("/", "_", "DM2ek+", "DM2ek-", "t+D", "t-D", "E1+V", "E1-V").Replace(wrongLine)},
	{name: "a cert with its padding", text: strings.Replace(wrongLine, wrongCert, wrongCert+"==", 1)},
	{name: "a cert in per cent", text: strings.Replace(wrongLine, "/", "%2F", 1)},
	{name: "an e-mail around it", text: "Hello! Here is your bridge: " + wrongLine},
	{name: "a mark of quoting", text: "> " + wrongLine},
	{name: "a number before it", text: "1. " + wrongLine},
	{name: "a dash before it", text: "- " + wrongLine},
	{name: "two bridges in one line", text: wrongLine + " " + strings.Replace(wrongLine, ".10:", ".11:", 1)},
	{name: "two bridges in two lines", text: wrongLine + "\n" + strings.Replace(wrongLine, ".10:", ".11:", 1)},
	{name: "a line that was broken", text: strings.Replace(wrongLine, " iat", "\niat", 1), silent: true},
	{name: "the same line twice without a space", text: wrongLine + wrongLine},
	{name: "the list that Tor's site hands out", text: "['" + wrongLine + "', '" + wrongLine + "']"},
	{name: "webtunnel without url", text: "webtunnel 192.0.2.1:443 ver=0.0.1"},
	{name: "webtunnel without a path", text: "webtunnel 192.0.2.1:443 url=https://example.com", works: true},
	{name: "webtunnel over http", text: "webtunnel 192.0.2.1:443 url=http://example.com/" + secret, works: true},
	{name: "webtunnel without its scheme", text: "webtunnel 192.0.2.1:443 url=example.com/" + secret},
	{name: "webtunnel with a wss url", text: "webtunnel 192.0.2.1:443 url=wss://example.com/" + secret},
	{name: "the url alone", text: "https://example.com/" + secret},
	{name: "url in capitals", text: "webtunnel 192.0.2.1:443 URL=https://example.com/" + secret},
	{name: "a line of snowflake", text: "snowflake 192.0.2.3:80 2B280B23E1107BB62ABFC40DDCC8824814F80A72 fingerprint=2B280B23E1107BB62ABFC40DDCC8824814F80A72 url=https://snowflake.example.net/ ice=stun:stun.example.org:3478", works: true},
	{name: "a line of meek", text: "meek_lite 192.0.2.20:80 url=https://meek.example.net", silent: true},
	{name: "a line of obfs3", text: "obfs3 192.0.2.10:443 0123456789ABCDEF0123456789ABCDEF01234567", works: true},
	{name: "a misspelt transport in a line", text: strings.Replace(wrongLine, "obfs4", "ofbs4", 1)},
	{name: "a transport in capitals in a line", text: strings.Replace(wrongLine, "obfs4", "OBFS4", 1)},
	{name: "vmess", text: "vmess://eyJhZGQiOiIxOTIuMC4yLjEi" + secret},
	{name: "vless", text: "vless://" + secret + "@192.0.2.1:443?security=reality#name"},
	{name: "ss", text: "ss://YWVzLTI1Ni1nY206" + secret + "@192.0.2.1:8388#name"},
	{name: "trojan", text: "trojan://" + secret + "@192.0.2.1:443"},
	{name: "hysteria2", text: "hy2://" + secret + "@192.0.2.1:443/"},
	{name: "wireguard", text: "[Interface]\nPrivateKey = " + secret + "\nAddress = 10.0.0.2/32"},
	{name: "a link to wireguard", text: "wireguard://" + secret + "@192.0.2.1:51820"},
	{name: "OpenVPN", text: "client\ndev tun\nremote 192.0.2.1 1194"},
	{name: "ssh", text: "ssh -D 1080 me@192.0.2.1"},
	{name: "a proxy", text: "socks5://me:" + secret + "@192.0.2.1:1080"},
	{name: "a proxy of Telegram", text: "tg://proxy?server=192.0.2.1&port=443&secret=" + secret},
	{name: "a proxy of Telegram by the web", text: "https://t.me/proxy?server=192.0.2.1&port=443&secret=" + secret},
	{name: "a subscription", text: "https://example.com/sub/" + secret + "?clash=1"},
	{name: "an onion address", text: "http://duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion/"},
	{name: "a ClientTransportPlugin", text: "ClientTransportPlugin obfs4 exec /usr/bin/obfs4proxy"},
	{name: "an invitation", text: "ptgate://me:" + secret + "@192.0.2.10:443/"},
	{name: "the command with it", text: "ptgate add-bridge '" + wrongLine + "'"},
	{name: "the key with it", text: fineLine},
	{name: "nothing", text: ""},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func chmod(name string, mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		must(t, os.Chmod(filepath.Join(dir, name), mode))
	}
}

// newPair makes a certificate and its key, in PEM.
func newPair(ends time.Time) (cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"www.example.com"}, NotBefore: ends.Add(-time.Hour), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		panic(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}))
}

// certificates writes cert.pem and key.pem as change makes them out of right ones; "": none.
func certificates(change func(cert, key string) (string, string)) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		cert, key := change(newPair(time.Now().Add(time.Hour)))
		for name, text := range map[string]string{"cert.pem": cert, "key.pem": key} {
			if text != "" {
				must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
			}
		}
	}
}

// visible writes what nobody sees as its number.
func visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && r != unicode.ReplacementChar {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "<U+%04X>", r)
		}
	}
	return b.String()
}

func indent(text, before string) string {
	text = strings.TrimSuffix(text, "\n")
	return before + strings.ReplaceAll(text, "\n", "\n"+before) + "\n"
}

// inside runs the program in this process. in is its standard input.
func inside(ctx context.Context, in string, args ...string) (out string, code int) {
	var b bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(in))
	root.SetOut(&b)
	root.SetErr(&b)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return b.String(), 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return b.String(), int(code)
	}
	fmt.Fprintln(&b, "ptgate:", plainText(err.Error()))
	code = 1
	if _, ok := errors.AsType[usageError](err); ok {
		code = 2
	}
	return b.String(), code
}

// setUp writes a row's files.
func (w *wrong) setUp(t *testing.T, dir, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, "c.toml"), []byte(text), 0o600))
	for name, text := range w.more {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			must(t, os.Mkdir(path, 0o700))
		} else {
			must(t, os.WriteFile(path, []byte(text), 0o600))
		}
	}
	if w.do != nil {
		w.do(t, dir)
	}
}

// runs gives what `ptgate run` says but for mere information, and how it ends. If it gets
// ready, it is told to stop.
func runs(t *testing.T, dir string, ready bool) (out string, code int) {
	t.Helper()
	c := newChild(t, "run", "-c", "c.toml")
	c.Dir = dir
	if ready {
		c.startReady()
		c.signal(syscall.SIGTERM)
	} else {
		c.start()
	}
	c.Wait()
	var b strings.Builder
	for line := range strings.Lines(timeOfLog.ReplaceAllString(c.out.String(), "")) {
		// Nobody is there any more to be told of the stop.
		if !strings.Contains(line, "level=INFO") && !strings.Contains(line, "systemd was not notified") {
			b.WriteString(line)
		}
	}
	return b.String(), c.ProcessState.ExitCode()
}

var timeOfLog = regexp.MustCompile(`time=\S+ `)

// What is wrong with a configuration or with a pasted line is told with its cause, its place
// and the next step, by `check` and by `run` in the same words. testdata/wrong.txt has it all.
func TestWrong(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	for _, name := range []string{"STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"} {
		t.Setenv(name, "")
	}
	// Which transport programs are there is part of what is said.
	own, err := exec.LookPath("ptgate")
	must(t, err)
	t.Setenv("PATH", filepath.Dir(own))
	var rows []wrong
	for _, list := range [][]wrong{syntaxes, words, listens, routings, bridgesWrong, servers, machines} {
		rows = append(rows, list...)
	}
	for _, w := range pasteds {
		w.pasted = true
		rows = append(rows, w)
	}
	said := make([]string, len(rows))
	var wg sync.WaitGroup
	next := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range next {
				t.Run(rows[i].name, func(t *testing.T) { said[i] = rows[i].ask(t) })
			}
		})
	}
	for i := range rows {
		next <- i
	}
	close(next)
	wg.Wait()

	var b strings.Builder
	for i, w := range rows {
		fmt.Fprintf(&b, "%d. %s\n%s\n", i+1, w.name, said[i])
	}
	if *update {
		must(t, os.WriteFile(filepath.Join("testdata", "wrong.txt"), []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(filepath.Join("testdata", "wrong.txt"))
	must(t, err)
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")); diff != "" {
		t.Errorf("testdata/wrong.txt (-want +got; -update writes it):\n%s", diff)
	}
}

// ask gives what the program says of a row.
func (w *wrong) ask(t *testing.T) string {
	var b strings.Builder
	dir := t.TempDir()
	text := w.text
	show := func(what string, code int, out string) {
		out = strings.ReplaceAll(out, dir+"/", "")
		fmt.Fprintf(&b, "   %s: exit code %d\n%s", what, code, indent(visible(out), "      "))
	}
	file := filepath.Join(dir, "c.toml")
	if w.pasted {
		fmt.Fprintf(&b, "%s", indent(visible(text), "   | "))
		w.setUp(t, dir, routed(""))
		out, code := inside(t.Context(), text, "add-bridge", "-c", file, "--name", "a", "-")
		show("add-bridge", code, out)
		if strings.Contains(out, secret) || strings.Contains(out, wrongCert[:12]) {
			t.Errorf("add-bridge shows a secret: %s", out)
		}
		if code != 0 && !nextStep.MatchString(out) {
			t.Errorf("add-bridge names no next step: %s", out)
		}
		text = viaA("line = " + strconv.Quote(text) + "\n")
		must(t, os.WriteFile(file, []byte(text), 0o600))
	} else {
		w.setUp(t, dir, text)
		shown, _, _ := strings.Cut(strings.ReplaceAll(text, toAll, ""), "[listen]\nmixed = \"127.0.0.1:0\"\n[admin]\nlisten = \"\"\n")
		fmt.Fprintf(&b, "%s", indent(visible(shown), "   | "))
	}
	checked, code := inside(t.Context(), "", "check", "-c", file)
	show("check", code, checked)
	w.judge(t, code, strings.ReplaceAll(checked, dir+"/", ""))
	var out string
	cfg, _ := config.Load(file)
	switch {
	case w.asksOthers:
		return b.String()
	case cfg == nil:
		out, code = inside(t.Context(), "", "run", "-c", file)
	default:
		out, code = runs(t, dir, code == 0 && !w.fails)
	}
	if w.works || w.silent {
		checked = strings.TrimSuffix(checked, lastLine(checked)) // "fine"
	}
	if strings.ReplaceAll(out, dir+"/", "") == strings.ReplaceAll(checked, dir+"/", "") {
		out = "the same\n"
	}
	if out == "the same\n" && checked == "" {
		out = "nothing\n"
	}
	show("run", code, out)
	if want := map[bool]int{true: 0, false: 1}[w.works || w.silent]; code != want {
		t.Errorf("`ptgate run` ends with %d, want %d: %s", code, want, out)
	}
	return b.String()
}

// lastLine is the last line of a text.
func lastLine(s string) string {
	return s[strings.LastIndexByte(strings.TrimSuffix(s, "\n"), '\n')+1:]
}

// nextStep has the words of the messages that say what to do, or what is right.
var nextStep = regexp.MustCompile(`\b(write|take|correct|fetch|make|save|begin|copy|give|name|put|ask|use|install|chmod|chown|leave|keep|join|paste|renew|correct|check|add)\b|` +
	`can be|must be|as in|did you mean|ports go|stands? in|belongs below|belongs into|is missing|left out|must have|fine|begins with|ends in|looks at port|it stands alone|are written|is there already|only$|no zero in front|ends with|no bridge|which Tor|makes it`)

// hidden is what a private log never has.
var hidden = regexp.MustCompile(`192\.0\.2\.|198\.51\.|2001:db8|example`)

// judge holds what every message has to have.
func (w *wrong) judge(t *testing.T, code int, checked string) {
	t.Helper()
	if want := map[bool]int{true: 0, false: 1}[w.works || w.silent || w.fails]; code != want {
		t.Errorf("`ptgate check` ends with %d, want %d: %s", code, want, checked)
	}
	if strings.Contains(checked, secret) || strings.Contains(checked, wrongCert[:12]) {
		t.Errorf("a secret is shown: %s", checked)
	}
	n := 0
	for line := range strings.Lines(checked) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "c.toml: fine: ") {
			continue
		}
		n++
		if !regexp.MustCompile(`^[a-z.]+:\d+: `).MatchString(line) && !w.whole {
			t.Errorf("no place in %q", line)
		}
		if !nextStep.MatchString(line) {
			t.Errorf("no next step in %q", line)
		}
		// A log without destinations still says what is wrong.
		_, message, _ := strings.Cut(line, ": ")
		if private := redact.Quoted(message); private == `"…"` || hidden.MatchString(private) && !w.fails && !strings.Contains(private, "takes the port") {
			t.Errorf("a private log has %q for %q", private, line)
		}
	}
	if (n == 0) != w.silent {
		t.Errorf("%d messages: %s", n, checked)
	}
}
