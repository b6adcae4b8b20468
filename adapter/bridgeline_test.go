package adapter

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const fingerprint = "0123456789ABCDEF0123456789abcdef01234567"

func TestParseBridgeLine(t *testing.T) {
	for s, want := range map[string]BridgeLine{
		"obfs4 192.0.2.1:443": {Transport: "obfs4", Addr: "192.0.2.1:443"},
		"Bridge obfs4 192.0.2.20:443 " + fingerprint + " cert=a+b/c iat-mode=0": {
			"obfs4", "192.0.2.20:443", fingerprint, Args{{"cert", "a+b/c"}, {"iat-mode", "0"}},
		},
		"  bridge\tobfs4  [2001:db8::1]:1 k=v=w k= \r\n": {"obfs4", "[2001:db8::1]:1", "", Args{{"k", "v=w"}, {"k", ""}}},
		"webtunnel bridge.example.:443 url=https://example.com/path?q=1": {
			"webtunnel", "bridge.example.:443", "", Args{{"url", "https://example.com/path?q=1"}},
		},
		"Bridge bridge 192.0.2.1:1": {Transport: "bridge", Addr: "192.0.2.1:1"},
	} {
		got, err := ParseBridgeLine(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v %v, want %+v", s, got, err, want)
			continue
		}
		if again, err := ParseBridgeLine(got.String()); err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("%q printed as %q: %+v %v", s, got, again, err)
		}
	}
}

func TestParseBridgeLineErrors(t *testing.T) {
	for s, want := range map[string]struct {
		column int
		text   string
	}{
		"":                                            {1, "transport expected"},
		"Bridge ":                                     {8, "transport expected"},
		"192.0.2.1:443 " + fingerprint:                {1, "transport expected before the address"},
		"Bridge 192.0.2.1:443":                        {8, "transport expected before the address"},
		"`obfs4 192.0.2.1:443`":                       {1, "a backtick is not part of the line"},
		"192.0.2.1:443":                               {1, "plain Tor"},
		"obfs-4 192.0.2.1:443":                        {1, `"obfs-4" is not a transport name`},
		"obfs4":                                       {6, "address:port expected"},
		"obfs4 192.0.2.1":                             {7, `not address:port: the port is missing, as in "192.0.2.1:443"`},
		"obfs4 192.0.2.1:0":                           {7, "not a port"},
		"obfs4 192.0.2.1:https":                       {7, "not a port"},
		"obfs4 192.0.2.999:1":                         {7, "neither an IP address nor a host name"},
		"obfs4 [2001:db8::1:1":                        {7, "not address:port"},
		"obfs4 2001:db8::1:1":                         {7, `brackets, as in "[2001:db8::1]:1"`},
		"obfs4 [fe80::1%eth0]:1":                      {7, "zone"},
		"obfs4 a..b:1":                                {7, "neither"},
		"obfs4 a\x10b:1":                              {7, "neither"},
		"obfs4 [name]:1x":                             {7, "not a port"},
		"obfs4 192.0.2.1:1 0123":                      {19, "neither a fingerprint"},
		"obfs4 192.0.2.1:1 k=v =v":                    {23, "is not key=value"},
		"obfs4 192.0.2.1:1 k=v v":                     {23, "is not key=value"},
		"obfs4 192.0.2.1:1 k=v " + fingerprint:        {23, "is not key=value"},
		"obfs4 192.0.2.1:1 key=é\x00":                 {24, "not allowed"},
		"obfs4 192.0.2.1:1 kéy=v":                     {20, "U+00E9 stands here, a letter that is none of a to z"},
		"obfs4 192.0.2.1:1 \u0441ert=v":               {19, "U+0441 stands here"},
		"\u043ebfs4 192.0.2.1:1 cert=v":               {1, "U+043E stands here"},
		"\"obfs4 192.0.2.1:1 k=v\"":                   {1, `a quote ("\"") is not part of the line`},
		"['obfs4 192.0.2.1:1 k=v']":                   {1, "a bracket is not part of the line"},
		"vmess://c2VjcmV0":                            {1, "a link stands here"},
		"Hello! It is: obfs4 192.0.2.1:1 k=v":         {1, "the line itself begins at column 15"},
		"add it 'obfs4 192.0.2.1:1 k=v'":              {1, "the line itself begins at column 9"},
		"> obfs4 192.0.2.1:1 k=v":                     {1, "the line itself begins at column 3"},
		"obfs4 192.0.2.1 443 k=v":                     {17, `the port stands apart from its address: write "192.0.2.1:443"`},
		"obfs4 cert=c2VjcmV0 iat-mode=0":              {7, "address:port is missing before the args"},
		"obfs4 192.0.2.1:1 $" + fingerprint:           {19, `a fingerprint has no "$" in front`},
		"obfs4 192.0.2.1:1 " + fingerprint[1:]:        {19, "a fingerprint has 40 hex digits, this one has 39"},
		"obfs4 192.0.2.1:1 k = v":                     {19, `take away the space before or behind the "="`},
		"obfs4 192.0.2.1:1 k:v":                       {19, `write "=", not ":"`},
		"obfs4 192.0.2.1:1 k=a c2VjcmV0 l=v":          {23, "a space or a line break has come into the line"},
		"obfs4 192.0.2.1:1 k=v obfs4 192.0.2.2:1 k=v": {23, "one more bridge begins here"},
		"obfs4 192.0.2.1:1 k=vobfs4 192.0.2.2:1 k=v":  {28, "the address of one more bridge stands here"},
		"obfs4 192.0.2.1:1 k=\xff":                    {21, "not allowed"},
		"obfs4é 192.0.2.1:1":                          {6, "U+00E9 stands here"},
		"obfs4 é.example:1":                           {7, "neither"},
	} {
		_, err := ParseBridgeLine(s)
		at, ok := errors.AsType[*BridgeLineError](err)
		if !ok || at.Column != want.column || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%q: %v, want column %d: %s", s, err, want.column, want.text)
		}
		if strings.Contains(fmt.Sprint(err), "c2VjcmV0") {
			t.Errorf("%q: %v shows a secret", s, err)
		}
	}
}

func FuzzBridgeLine(f *testing.F) {
	f.Add("Bridge obfs4 192.0.2.20:443 " + fingerprint + " cert=a iat-mode=0")
	f.Add("bridge Bridge [::1]:1 a==")
	f.Add("obfs4 a.example:1\u00a0k=v")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		line, err := ParseBridgeLine(s)
		if err != nil {
			at, ok := errors.AsType[*BridgeLineError](err)
			if !ok || at.Column < 1 || at.Column > len(s)+1 {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		again, err := ParseBridgeLine(line.String())
		if err != nil || !reflect.DeepEqual(again, line) {
			t.Errorf("%q: %+v, printed %q, then %+v %v", s, line, line, again, err)
		}
	})
}
