package gateway_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"ptgate/gateway/answer"
	"ptgate/gateway/inbound"
	"ptgate/integration/ports"
)

// A request that would come back to ptgate itself is refused, by whatever name or address
// and front it comes. So it can't take more than one place.
func TestLoops(t *testing.T) {
	server, b := far(t, "")
	hidden := origin(t, echo)
	near := start(t, "client", fmt.Sprintf(nearEnd, b)+`
[[serve]]
transport = "obfs4"
bind = "127.0.0.1:0"
`)
	plain := ports.Free(t)
	direct := start(t, "direct", `
[admin]
listen = "127.0.0.1:0"
[listen]
socks5 = "127.0.0.1:0"
http = "127.0.0.1:0"
[[serve]]
transport = "obfs4"
bind = "127.0.0.1:0"
[[serve]]
transport = "webtunnel"
bind = "127.0.0.1:0"
options = { url = "https://www.example.com/secret" }
tls = { acme = "www.example.com", directory = "https://127.0.0.1:1/", http = "`+plain+`" }
[[route]]
to = ["127.0.0.0/8", "0.0.0.0", "localhost", "*"]
via = "direct"
private = true
`)
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':'):] }
	for _, own := range []string{direct.Addresses(inbound.SOCKS5)[0], direct.Addresses(inbound.HTTP)[0], direct.Announced()[0].Address, direct.Status().Admin[0], plain} {
		for _, host := range []string{"127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"} {
			if _, err := ask(t, direct, host+port(own)); code(err) != answer.Blocked.SOCKS() {
				t.Errorf("%s: %v", host+port(own), err)
			}
		}
		if _, err := ask(t, near, own); err != nil {
			t.Errorf("another process's: %v", err)
		}
	}
	if _, err := ask(t, near, server.Announced()[0].Address); code(err) != answer.Blocked.SOCKS() {
		t.Errorf("the far end's own port: %v", err)
	}
	roundTrip(t, mustAsk(t, direct, hidden), 100)

	// An address of one link without the link can't be reached, which is no fault of ptgate.
	if _, err := ask(t, direct, "[fe80::1]:9"); code(err) != answer.Unreachable.SOCKS() {
		t.Errorf("a link-local address: %v", err)
	}

	// Plain HTTP takes the same way.
	proxy := &url.URL{Scheme: "http", Host: direct.Addresses(inbound.HTTP)[0]}
	web := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}
	r, err := web.Get("http://" + proxy.Host + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusForbidden {
		t.Errorf("the HTTP front's own page: %s", r.Status)
	}
}

// A web page must not reach the services of the machine, or of the network around it,
// through a route for everything.
func TestPrivateIsNotDirect(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }))
	defer page.Close()
	_, port, _ := net.SplitHostPort(page.Listener.Addr().String())
	for _, tt := range []struct {
		route      string
		host       string
		wantPublic bool
	}{
		{`to = "*"`, "127.0.0.1", false},
		{`to = "*"`, "localhost", false},
		{`to = "*"`, "0.0.0.0", false},
		{`to = "*"`, "[::ffff:127.0.0.1]", false},
		{`to = ".localhost"`, "localhost", false},
		{`to = "0.0.0.0/0"`, "127.0.0.1", false},
		{`to = ["127.0.0.2", "*"]`, "127.0.0.1", false},
		{`to = "127.0.0.1"`, "127.0.0.1", true},
		{`to = "127.0.0.0/8"`, "127.0.0.1", true},
		{`to = "localhost"`, "localhost", true},
		{"to = \"*\"\nprivate = true", "127.0.0.1", true},
		{"to = \".localhost\"\nprivate = true", "localhost", true},
	} {
		t.Run(strings.ReplaceAll(tt.route, "\n", " ")+" "+tt.host, func(t *testing.T) {
			near := start(t, "direct", "[listen]\nsocks5 = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n[[route]]\nvia = \"direct\"\n"+tt.route+"\n")
			_, err := ask(t, near, tt.host+":"+port)
			if tt.wantPublic != (err == nil) || err != nil && code(err) != answer.Blocked.SOCKS() {
				t.Errorf("SOCKS5: %v", err)
			}
			proxy := &url.URL{Scheme: "http", Host: near.Addresses(inbound.HTTP)[0]}
			web := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}
			r, err := web.Get("http://" + tt.host + ":" + port + "/")
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			body, _ := io.ReadAll(r.Body)
			if want := map[bool]int{true: 200, false: 403}[tt.wantPublic]; r.StatusCode != want || !tt.wantPublic && strings.Contains(string(body), "secret") {
				t.Errorf("HTTP: %s", r.Status)
			}
		})
	}
}

// A program that has looked a name up by itself goes past the routes by name. The log says
// so once.
func TestBareAddress(t *testing.T) {
	const said = "bare address"
	for _, tt := range []struct {
		routes string
		asks   []string
		want   int
	}{
		{"[[route]]\nto = \".example.com\"\nvia = \"block\"\n", []string{"8.8.8.8:80", "1.1.1.1:443", "8.8.8.8:80"}, 1},
		{"[[route]]\nto = \".example.com\"\nvia = \"block\"\n", []string{"127.0.0.1:80", "www.example.com:80"}, 0},
		{"[[route]]\nto = [\".example.com\", \"8.8.8.0/24\"]\nvia = \"block\"\n", []string{"8.8.8.8:80"}, 0},
		{"[[route]]\nto = \"*\"\nvia = \"block\"\n", []string{"8.8.8.8:80"}, 0},
		{"[[route]]\nto = [\"*.example.com\", \"*\"]\nvia = \"block\"\n", []string{"8.8.8.8:80"}, 1},
	} {
		near := start(t, "near", "[listen]\nsocks5 = \"127.0.0.1:0\"\n"+tt.routes)
		for _, a := range tt.asks {
			if _, err := ask(t, near, a); err == nil {
				t.Errorf("%s was opened", a)
			}
		}
		near.stop()
		if got := strings.Count(near.log.text.String(), said); got != tt.want {
			t.Errorf("%s asked for %q: said %d times, want %d", tt.routes, tt.asks, got, tt.want)
		}
	}
}
