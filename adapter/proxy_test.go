package adapter

import (
	"strings"
	"testing"
)

func TestParseProxy(t *testing.T) {
	for text, want := range map[string]string{ // "": refused
		"http://127.0.0.1:3128":          "http://127.0.0.1:3128",
		"http://127.0.0.1:3128/":         "http://127.0.0.1:3128",
		"HTTP://a:b@[::1]:3128/":         "http://a:b@[::1]:3128",
		"socks4a://a@127.0.0.1:1":        "socks4a://a@127.0.0.1:1",
		"socks5://127.0.0.1:1/":          "socks5://127.0.0.1:1",
		"socks5://a:b@127.0.0.1:1":       "socks5://a:b@127.0.0.1:1",
		"https://127.0.0.1:1":            "",
		"socks5h://127.0.0.1:1":          "",
		"http://localhost:1":             "",
		"http://127.0.0.1":               "",
		"http://127.0.0.1:0":             "",
		"http://127.0.0.1:70000":         "",
		"http://[fe80::1%25eth0]:1":      "",
		"http://127.0.0.1:1/x":           "",
		"http://127.0.0.1:1//":           "",
		"http://127.0.0.1:1?x":           "",
		"http://127.0.0.1:1?":            "",
		"http://127.0.0.1:1#x":           "",
		"socks4a://a:secret@127.0.0.1:1": "",
		"socks4a://%00@127.0.0.1:1":      "",
		"socks5://secret@127.0.0.1:1":    "",
		"socks5://secret:@127.0.0.1:1":   "",
		"socks5:127.0.0.1:1":             "",
		"127.0.0.1:1":                    "",
		"http://u:secret%zz@192.0.2.1:1": "",
		"":                               "",
		"socks5://" + strings.Repeat("secret", 50) + ":b@127.0.0.1:1": "",
	} {
		u, err := ParseProxy(text)
		switch {
		case want == "" && err == nil:
			t.Errorf("%s is taken as %s", text, u)
		case want == "" && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "127.0.0.1:1")):
			t.Errorf("%s: the error quotes it: %v", text, err)
		case want != "" && (err != nil || u.String() != want):
			t.Errorf("%s: %v, %v; want %s", text, u, err, want)
		}
	}
}
