package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// load makes a configuration of a text.
func load(t testing.TB, text string) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ptgate.toml")
	if err := os.WriteFile(path, []byte(fmt.Sprintf("state_dir = %q\n", t.TempDir())+text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Load(path)
	if cfg == nil {
		t.Fatal(problems)
	}
	return cfg
}

const near = `
[bridge.tokyo]
transport = "obfs4"
address = "192.0.2.10:443"
args = { cert = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA", iat-mode = "0" }
[[route]]
to = ".example.com"
via = "tokyo"
[[route]]
to = "direct.example"
via = "direct"
`

// A page is a Server with one listener.
type page struct {
	*Server
	cfg    atomic.Pointer[config.Config]
	status atomic.Pointer[Status]
	book   *outcome.Book
	addr   string
}

// show runs a page on a listener until the test ends; nil: one on loopback.
func show(t testing.TB, text string, ln net.Listener) *page {
	t.Helper()
	p := &page{book: outcome.New(slog.New(slog.DiscardHandler))}
	p.cfg.Store(load(t, text))
	p.status.Store(&Status{State: Running})
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	p.addr = ln.Addr().String()
	p.Server = New(Config{
		Running: p.cfg.Load,
		Status: func() Status {
			s := *p.status.Load()
			s.Outcomes = p.book.Snapshot()
			return s
		},
		Book: p.book,
	})
	t.Cleanup(p.book.Close)
	serve(t, p, ln)
	return p
}

// serve serves until the test ends.
func serve(t testing.TB, p *page, ln net.Listener) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// ask sends a request on a connection of its own.
func (p *page) ask(t testing.TB, request string) (*http.Response, string) {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(p.addr, "/") {
		network = "unix"
	}
	c, err := net.Dial(network, p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, strings.ReplaceAll(request, "\n", "\r\n")+"Connection: close\r\n\r\n")
	method, _, _ := strings.Cut(request, " ")
	r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return r, string(b)
}

func (p *page) get(t testing.TB, path string) (*http.Response, string) {
	t.Helper()
	return p.ask(t, "GET "+path+" HTTP/1.1\nHost: localhost\n")
}

// The page answers to loopback names and its own address only, so that no name that leads
// here can be used by a page of another site.
func TestHost(t *testing.T) {
	p := show(t, near, nil)
	refused := int64(1)
	for host, code := range map[string]int{
		"localhost": 200, "LOCALHOST.": 200, "localhost:9180": 200, "127.0.0.1": 200, "127.1.2.3:80": 200, "[::1]:9180": 200, "[::ffff:127.0.0.1]": 200,
		p.addr:         200,
		"evil.example": 403, "evil.localhost": 403, "localhost.evil.example": 403, "192.0.2.1": 403, "": 403, "127.0.0.1.evil.example:9180": 403, "[fe80::1]": 403,
		"0.0.0.0": 403,
	} {
		for _, request := range []string{"GET /healthz", "GET /metrics", "GET /api/v1/status", "GET /", "GET /page.js", "HEAD /events"} {
			if r, _ := p.ask(t, request+" HTTP/1.1\nHost: "+host+"\n"); r.StatusCode != code {
				t.Errorf("%s of host %q: %s, want %d", request, host, r.Status, code)
			}
			if code == 403 {
				refused++
			}
		}
	}
	if r, _ := p.ask(t, "GET /healthz HTTP/1.0\n"); r.StatusCode != 403 {
		t.Errorf("no host: %s", r.Status)
	}
	for _, path := range paths {
		for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
			r, body := p.ask(t, method+" "+path+" HTTP/1.1\nHost: evil.example\n")
			if refused++; r.StatusCode != 403 || len(body) > 100 {
				t.Errorf("%s %s of another host: %s, %q", method, path, r.Status, body)
			}
		}
	}
	if n := p.book.Total(outcome.AdminRefused); n != refused {
		t.Errorf("%d are counted, want %d", n, refused)
	}
}

// paths are all that there is.
var paths = []string{"/", "/?name=example.com", "/events", "/page.css", "/page.js", "/healthz", "/readyz", "/api/v1/status", "/proxy.pac", "/metrics", "/nothing"}

// It can only be read, and not by a page of another site.
func TestReadOnly(t *testing.T) {
	p := show(t, near, nil)
	for _, path := range paths {
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
			if r, _ := p.ask(t, method+" "+path+" HTTP/1.1\nHost: localhost\nContent-Length: 0\n"); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %s", method, path, r.Status)
			}
		}
		if r, body := p.ask(t, "HEAD "+path+" HTTP/1.1\nHost: localhost\n"); body != "" || r.StatusCode >= 500 {
			t.Errorf("HEAD %s: %s %q", path, r.Status, body)
		}
	}
	for request, code := range map[string]int{
		"HEAD /healthz": 200, "POST /healthz": 405, "PUT /": 405, "DELETE /api/v1/status": 405, "OPTIONS *": 405, "CONNECT localhost:1": 405, "TRACE /": 405,
		"GET /nothing": 404, "GET /api/v1/": 404, "GET /../../etc/passwd": 404,
	} {
		r, _ := p.ask(t, request+" HTTP/1.1\nHost: localhost\n")
		if r.StatusCode != code && !(code == 404 && r.StatusCode == 307) {
			t.Errorf("%s: %s, want %d", request, r.Status, code)
		}
		for name, want := range header {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s: %q", request, name, got)
			}
		}
	}
	for fields, code := range map[string]int{
		"Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors\n":  403,
		"Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: cors\n":     403,
		"Sec-Fetch-Site: same-site\nSec-Fetch-Mode: cors\n":      403,
		"Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\n": 200,
		"Sec-Fetch-Site: none\nSec-Fetch-Mode: navigate\n":       200,
		"Sec-Fetch-Site: same-origin\nSec-Fetch-Mode: cors\n":    200,
	} {
		if r, _ := p.ask(t, "GET /healthz HTTP/1.1\nHost: localhost\n"+fields); r.StatusCode != code {
			t.Errorf("%q: %s, want %d", fields, r.Status, code)
		}
	}
}

func TestPassword(t *testing.T) {
	p := show(t, near+"[admin]\nusers = { me = \"word\" }\n", nil)
	for fields, code := range map[string]int{
		"": 401, "Authorization: Basic bWU6d29yZA==\n": 200, "Authorization: Basic bWU6d29yZHM=\n": 401, "Authorization: Bearer x\n": 401,
	} {
		r, _ := p.ask(t, "GET /healthz HTTP/1.1\nHost: localhost\n"+fields)
		if r.StatusCode != code || code == 401 && !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Basic ") {
			t.Errorf("%q: %s, want %d", fields, r.Status, code)
		}
	}
}

// Who guesses and leaves before the answer guesses no faster.
func TestGuessAndLeave(t *testing.T) {
	cfg := load(t, near+"[admin]\nusers = { me = \"word\" }\n")
	synctest.Test(t, func(t *testing.T) {
		book := outcome.New(slog.New(slog.DiscardHandler))
		defer book.Close()
		s := New(Config{Running: func() *config.Config { return cfg }, Status: func() Status { return Status{} }, Book: book})
		gone, leave := context.WithCancel(t.Context())
		leave()
		r := httptest.NewRequestWithContext(gone, http.MethodGet, "http://localhost/healthz", nil) // from 192.0.2.1
		r.SetBasicAuth("me", "guess")
		begun := time.Now()
		for range 3 {
			s.answer(t.Context(), httptest.NewRecorder(), r)
		}
		if took := time.Since(begun); took < 3*time.Second {
			t.Errorf("3 guesses took %v", took)
		}
	})
}

func TestUnixSocket(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	p := show(t, near, ln)
	if r, body := p.get(t, "/healthz"); r.StatusCode != 200 || body != "ok\n" {
		t.Errorf("%s: %q", r.Status, body)
	}
	if r, _ := p.ask(t, "GET /healthz HTTP/1.1\nHost: evil.example\n"); r.StatusCode != 403 {
		t.Error(r.Status)
	}
}

// What is refused gives its place back at once: a web page that asks again and again does
// not keep others out.
func TestRefusedGiveTheirPlaceBack(t *testing.T) {
	p := show(t, near, nil)
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: evil.example", "POST / HTTP/1.1\r\nHost: localhost", "GET / HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site"} {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, request+"\r\n\r\n")
		if _, err := io.Copy(io.Discard, c); err != nil { // until its end
			t.Errorf("%q: %v", request, err)
		}
	}
}

// There is a bound to connections; the place of one that ends is free again.
func TestMany(t *testing.T) {
	p := show(t, near, nil)
	var all []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("one too many has an answer")
	}
	all[0].Close()
	for p.conns.Load() == maxConns {
		runtime.Gosched()
	}
	p.get(t, "/healthz")
	if n := p.book.Total(outcome.AdminRefused); n != 1 {
		t.Errorf("%d refused", n)
	}
}

func TestReady(t *testing.T) {
	p := show(t, near, nil)
	for _, tt := range []struct {
		status Status
		want   string
	}{
		{Status{State: Starting}, "ptgate is starting"},
		{Status{State: Stopping}, "ptgate is stopping"},
		{Status{State: Running}, ""},
		{Status{State: Reloading, Routes: []RouteStatus{{Route: 1, Ready: true}}}, ""},
		{Status{State: Running, Routes: []RouteStatus{{Route: 1, Ready: true}, {Route: 2, Line: 14}}}, "route 2 (line 14): no bridge of it works, or none was needed yet"},
		{Status{State: Running, Serve: []ServeStatus{{PT: supervise.Status{State: supervise.Running}}}}, ""},
		{Status{State: Running, Serve: []ServeStatus{{Transport: "obfs4", Address: "0.0.0.0:443", PT: supervise.Status{State: supervise.Waiting}}}},
			"transport obfs4 at 0.0.0.0:443: it is waiting"},
	} {
		p.status.Store(&tt.status)
		r, body := p.get(t, "/readyz")
		if tt.want == "" && (r.StatusCode != 200 || body != "ready\n") || tt.want != "" && (r.StatusCode != 503 || body != tt.want+"\n") {
			t.Errorf("%+v: %s %q", tt.status, r.Status, body)
		}
	}
}

// What /api/v1/status answers is read by programs: no field goes away.
func TestSchema(t *testing.T) {
	p := show(t, near, nil)
	p.status.Store(&Status{State: Running, Bridges: []bridges.Status{{Name: "tokyo"}}, Routes: []RouteStatus{{Route: 1}}, Serve: []ServeStatus{{}},
		Users: []UserStatus{{Name: "me"}}, Listeners: []ListenerStatus{{}}, Admin: []string{p.addr}, Box: "b"})
	r, body := p.get(t, "/api/v1/status")
	if ct := r.Header.Get("Content-Type"); ct != "application/json" {
		t.Error(ct)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	fields := func(m any) string {
		var names []string
		for name := range m.(map[string]any) {
			names = append(names, name)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	first := func(name string) any { return got[name].([]any)[0] }
	for what, tt := range map[string][2]string{
		"status": {fields(got), "active admin asks_users box bridges config down listeners loaded outcomes pid ready routes serve since state stopping up users version"},
		"bridge": {fields(first("bridges")), "active carriers far held in name out pt_starts replayed rtt_ns state transport worked"},
		"route":  {fields(first("routes")), "action line patterns pick ready route via"},
		"serve":  {fields(first("serve")), "active address clients in out pt transport"},
		"user":   {fields(first("users")), "active down name up"},
		"front":  {fields(first("listeners")), "address front"},
	} {
		if tt[0] != tt[1] {
			t.Errorf("%s has %q, want %q", what, tt[0], tt[1])
		}
	}
}

// Each outcome of the table is in the metrics by its name, without a second entry.
func TestMetrics(t *testing.T) {
	p := show(t, near, nil)
	for i, row := range outcome.Rows() {
		label := outcome.Label{}
		for j := range row.Labels {
			label[j] = fmt.Sprint("value ", j)
		}
		p.book.Counter(outcome.Outcome(i), label).Add(int64(i) + 1)
	}
	serve := ServeStatus{Transport: "obfs4", Address: "[::]:443", PT: supervise.Status{State: supervise.Running}}
	p.status.Store(&Status{State: Running, Version: "v1", Ready: true, Bridges: []bridges.Status{{Name: "tokyo", State: "resting", RTT: 250 * time.Millisecond}},
		Serve: []ServeStatus{serve, serve}}) // two that are told apart by nothing
	r, body := p.get(t, "/metrics")
	if r.StatusCode != 200 {
		t.Errorf("%s: %s", r.Status, body)
	}
	lines := strings.Split(body, "\n")
	has := func(want string) {
		t.Helper()
		for _, l := range lines {
			if l == want {
				return
			}
		}
		t.Errorf("there is no line %s", want)
	}
	for i, row := range outcome.Rows() {
		name := "ptgate_" + row.Name
		if !row.Gauge {
			name += "_total"
		}
		has("# HELP " + name + " " + row.Help)
		var labels []string
		for j, l := range row.Labels {
			labels = append(labels, fmt.Sprintf("%s=\"value %d\"", l, j))
		}
		text := ""
		if len(labels) > 0 {
			slices.Sort(labels)
			text = "{" + strings.Join(labels, ",") + "}"
		}
		has(fmt.Sprintf("%s%s %d", name, text, i+1))
	}
	for _, want := range []string{`ptgate_build_info{version="v1"} 1`, "ptgate_ready 1", `ptgate_bridge_resting{bridge="tokyo"} 1`,
		`ptgate_bridge_round_trip_seconds{bridge="tokyo"} 0.25`, `ptgate_serve_up{address="[::]:443",serve="obfs4"} 1`} {
		has(want)
	}
}
