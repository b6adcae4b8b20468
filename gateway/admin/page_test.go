package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"ptgate/gateway/bridges"
	"ptgate/gateway/budget"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
)

func TestRing(t *testing.T) {
	r := newRing(time.Second, 4)
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	check := func(missing int, want ...int64) {
		t.Helper()
		got, m := r.past()
		text, wantText := "", fmt.Sprint(want)
		var ups []int64
		for _, s := range got {
			ups = append(ups, s.up)
		}
		if text = fmt.Sprint(ups); text != wantText || m != missing {
			t.Errorf("%s and %d missing, want %s and %d", text, m, wantText, missing)
		}
	}
	check(3)
	r.add(at(0), slot{up: 1})
	r.add(at(0.5), slot{up: 1})
	check(3)
	r.add(at(1), slot{up: 3})
	check(2, 2)
	r.add(at(0), slot{up: 1}) // a clock that was set back
	r.add(at(3), slot{up: 5})
	check(0, 2, 4, 0)
	r.add(at(4), slot{up: 6})
	check(0, 4, 0, 5)
	r.add(at(100), slot{up: 7})
	check(0, 0, 0, 0)
}

// The page says what happens, as text that cannot become markup, and shows no destination.
func TestPage(t *testing.T) {
	p := show(t, near, nil)
	p.status.Store(&Status{State: Running, Since: time.Now().Add(-time.Hour), Version: "v1.2",
		Listeners: []ListenerStatus{{"mixed", "127.0.0.1:1080"}},
		Bridges: []bridges.Status{
			{Name: "tokyo", Transport: "obfs4", State: "up", RTT: 84 * time.Millisecond, Learned: []budget.Learned{{Text: "the network stops a connection after about 16KiB"}}},
			{Name: "<b>paris</b>", Transport: "webtunnel", State: "resting", Reason: "refused", Verdict: &doctor.Verdict{Says: "port closed", Itself: "the bridge rests", Next: "is the server running?"}},
			{Name: "tokyo+webtunnel", Transport: "webtunnel", State: "idle", Told: true},
		},
		Routes: []RouteStatus{{Route: 1, Line: 6, Action: "via", Via: []string{"tokyo", "paris"}, Pick: "fastest", Ready: true}, {Route: 2, Line: 9, Action: "via", Via: []string{"<b>paris</b>"}},
			{Route: 3, Line: 12, Action: "direct", Ready: true}, {Route: 4, Line: 15, Action: "block", Ready: true}},
		Serve: []ServeStatus{{Transport: "obfs4", Address: "0.0.0.0:443", Clients: 3, Active: 5, In: 4096, OldUntil: time.Date(2030, 1, 2, 3, 4, 5, 0, time.Local), PT: supervise.Status{State: supervise.Running}}},
		Users: []UserStatus{{Name: "alice", Active: 2}, {Name: "bob", Last: time.Now().Add(-3 * time.Hour), Up: 5 << 20}},
		Box:   "abcd",
	})
	p.book.Add(outcome.Refused, outcome.By("http", "blocked"))
	p.book.Add(outcome.Refused, outcome.By("http", "blocked"))
	p.book.Add(outcome.ExitRefused, outcome.By("unreachable"))
	p.book.Add(outcome.BridgeRecovered, outcome.By("tokyo")) // no trouble
	_, body := p.get(t, "/?name=www.example.com:80")
	for _, want := range []string{"works, 84 ms; works around 1 limit of the network", "By obfs4.", "learned from its server: no file has it", "The network stops a connection after about 16KiB.", "&lt;b&gt;paris&lt;/b&gt;", "resting: refused", "Port closed. The bridge rests.", "Is the server running?",
		"tokyo, paris (the fastest)", "no bridge works", "directly, without a bridge", "nowhere: blocked", "alice", "3 h ago", "5.0 MiB", "obfs4 at 0.0.0.0:443", "Old bridge lines are good until 2030-01-02 03:04.", "box abcd",
		"Requests of programs got an error for an answer.", "1 s ago, 2 times; front http, reason blocked",
		"<th scope=\"row\">unreachable</th>", "via tokyo (obfs4, exit)", "by route 1 at line 7", "http://localhost/proxy.pac", "curl -x socks5h://127.0.0.1:1080", "v1.2", "Not all routes work", "There is no way to the destination from this server.",
		"<code>ptgate explain NAME</code>"} {
		if !strings.Contains(strings.ReplaceAll(body, space, " "), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, never := range []string{"<b>paris", ".example.com&#34;", "192.0.2.10", "cert=", "direct.example", "http-equiv"} {
		if strings.Contains(body, never) {
			t.Errorf("the page says %q", never)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
	_, body = p.get(t, "/?name=%3Cscript%3Ealert(1)%3C/script%3E")
	if strings.Contains(body, "<script>alert") || !strings.Contains(body, "class=\"bad\"") {
		t.Error("what was asked for is markup, or no fault is shown")
	}
}

// A browser gives no password when it fetches a PAC file, and goes everywhere directly then: it
// is not told of the file.
func TestPageWithPassword(t *testing.T) {
	p := show(t, near+"[admin]\nusers = { me = \"word\" }\n", nil)
	for front, want := range map[string]string{"mixed": "Set its proxy by hand: HTTP and HTTPS proxy 127.0.0.1:1080.", "socks5": "Set its proxy by hand: SOCKS5 proxy 127.0.0.1:1080"} {
		p.status.Store(&Status{State: Running, Listeners: []ListenerStatus{{front, "127.0.0.1:1080"}}, Routes: []RouteStatus{{Route: 1, Action: "block", Ready: true}}})
		r, body := p.ask(t, "GET / HTTP/1.1\nHost: localhost\nAuthorization: Basic bWU6d29yZA==\n")
		if r.StatusCode != 200 || !strings.Contains(body, want) || strings.Contains(body, "proxy.pac") {
			t.Errorf("%s: %s", r.Status, body)
		}
	}
}

// The first thing on the page is whether it works, and what to do next.
func TestHeads(t *testing.T) {
	up, idleOne := bridges.Status{Name: "up", State: "up", Worked: true}, bridges.Status{Name: "idle", State: "idle"}
	rests, lost := bridges.Status{Name: "rests", State: "resting"}, bridges.Status{Name: "lost", State: "detached", Worked: true}
	via := func(route int, ready bool, names ...string) RouteStatus {
		return RouteStatus{Route: route, Line: 10 * route, Action: "via", Via: names, Ready: ready}
	}
	direct := RouteStatus{Route: 9, Action: "direct", Ready: true}
	serve := func(states ...supervise.State) (all []ServeStatus) {
		for _, s := range states {
			all = append(all, ServeStatus{Transport: "obfs4", Address: "[::]:443", PT: supervise.Status{State: s, Error: "no such file"}})
		}
		return all
	}
	p := show(t, near, nil)
	for name, tt := range map[string]struct {
		status Status
		want   []string // on the page
		never  string
	}{
		"starting": {Status{State: Starting, Routes: []RouteStatus{via(1, false, "idle")}, Bridges: []bridges.Status{idleOne}}, []string{`look warn">ptgate is starting`, "That takes a few seconds"}, "No bridge was used"},
		"stopping": {Status{State: Stopping, Routes: []RouteStatus{via(1, true, "up")}, Bridges: []bridges.Status{up}}, []string{`look warn">ptgate is stopping`}, "It works"},
		"new": {Status{State: Running, Routes: []RouteStatus{via(1, false, "idle"), direct}, Bridges: []bridges.Status{idleOne}},
			[]string{`look idle">No bridge was used yet`, "that needs a bridge", "<code>ptgate probe</code>", `href="#setup">Set up a program`}, `look bad`},
		"works":   {Status{State: Running, Routes: []RouteStatus{via(1, true, "rests", "up"), direct}, Bridges: []bridges.Status{rests, up}}, []string{`look good">It works`, `href="#setup"`}, "Route 1 (line"},
		"one new": {Status{State: Running, Routes: []RouteStatus{via(1, true, "up"), via(2, false, "idle")}, Bridges: []bridges.Status{up, idleOne}}, []string{`look good">It works`, "Route 2 (line 20): not used yet."}, "look bad"},
		"down": {Status{State: Running, Routes: []RouteStatus{via(1, false, "rests"), direct}, Bridges: []bridges.Status{rests}},
			[]string{`look bad">It does not work`, `Route 1 (line 10): no bridge works. <a id="head-0-0" href="#bridge-rests">What to do</a>`, `<li id="bridge-rests">`}, "It works"},
		"half": {Status{State: Running, Routes: []RouteStatus{via(1, true, "up"), via(2, false, "rests")}, Bridges: []bridges.Status{up, rests}}, []string{`look bad">Not all routes work`, "Route 2"}, "Route 1 (line"},
		"silent": {Status{State: Running, Routes: []RouteStatus{via(1, true, "lost")}, Bridges: []bridges.Status{lost}},
			[]string{`look warn">The server does not answer at the moment`, "What is open waits", "Route 1 (line 10): waits for a bridge.", `href="#bridge-lost"`}, "It works"},
		"silent for long": {Status{State: Running, Routes: []RouteStatus{via(1, false, "gone")}, Bridges: []bridges.Status{{Name: "gone", State: "detached"}}},
			[]string{`look warn">The server does not answer at the moment`, "Route 1 (line 10): waits for a bridge."}, "No bridge was used"},
		"silent for long, another one new": {Status{State: Running, Routes: []RouteStatus{via(1, false, "gone", "idle")}, Bridges: []bridges.Status{{Name: "gone", State: "suspect"}, idleOne}},
			[]string{`look warn">The server does not answer at the moment`}, "not used yet"},
		"leaves":    {Status{State: Running, Routes: []RouteStatus{via(1, true, "leaves")}, Bridges: []bridges.Status{{Name: "leaves", State: "up", Leaving: true, Worked: true}}}, []string{`look good">It works`, "about to stop"}, "server does not answer"},
		"no bridge": {Status{State: Running, Routes: []RouteStatus{direct}}, []string{"It works: no route needs a bridge"}, "not used"},
		"server":    {Status{State: Running, Serve: serve(supervise.Running)}, []string{`look good">Clients can connect`, "<code>ptgate bridges</code>"}, "setup"},
		"users":     {Status{State: Running, AsksUsers: true, Serve: serve(supervise.Running)}, []string{"<code>ptgate invite NAME</code>"}, ""},
		"server down": {Status{State: Running, Serve: serve(supervise.Waiting)}, []string{`look bad">Clients can&#39;t connect`, `obfs4 at [::]:443: its program does not run. <a id="head-0-0" href="#serve-title">Why</a>`,
			"its program has failed: no such file"}, "Clients can connect"},
		"server half": {Status{State: Running, Serve: serve(supervise.Running, supervise.Starting)}, []string{`look warn">Not all that is served works`, "it is starting"}, "look bad"},
		"server again": {Status{State: Running, Serve: []ServeStatus{{Transport: "obfs4", Address: "[::]:443", PT: supervise.Status{State: supervise.Running, Failures: 1}}}},
			[]string{`look warn">Clients can connect; a program has failed`, "obfs4 at [::]:443: works; its program has failed, and was started again."}, "can&#39;t connect"},
		"both":    {Status{State: Running, Routes: []RouteStatus{via(1, true, "up")}, Bridges: []bridges.Status{up}, Serve: serve(supervise.Running)}, []string{"It works", "Clients can connect"}, "look bad"},
		"restart": {Status{State: Running, Restart: []string{"state_dir", "log.format"}}, []string{"waits for a restart: state_dir, log.format."}, "is read again now"},
		"reload":  {Status{State: Reloading}, []string{"is read again now"}, "waits for a restart"},
	} {
		p.status.Store(&tt.status)
		_, body := p.get(t, "/")
		for _, want := range tt.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: the page does not say %q:\n%s", name, want, body)
			}
		}
		if tt.never != "" && strings.Contains(body, tt.never) {
			t.Errorf("%s: the page says %q", name, tt.never)
		}
	}
	var many Status
	many.State, many.Bridges = Running, []bridges.Status{rests}
	for i := range 60 {
		many.Routes = append(many.Routes, via(i+1, false, "rests"))
	}
	p.status.Store(&many)
	if _, body := p.get(t, "/"); strings.Count(body, ">What to do</a>") != maxHeadLines || !strings.Contains(body, "And 55 more.") {
		t.Error("60 routes fill the first screen")
	}
}

// The page stays small with many users: those of now come first, then those seen last.
func TestManyUsers(t *testing.T) {
	p := show(t, near, nil)
	s := Status{State: Running, Serve: []ServeStatus{{PT: supervise.Status{State: supervise.Running}}}}
	for i := range 500 {
		u := UserStatus{Name: fmt.Sprintf("user-%03d", i)}
		switch i {
		case 400:
			u.Active = 3
		case 300:
			u.Last = time.Now().Add(-time.Minute)
		case 200:
			u.Last = time.Now().Add(-time.Hour)
		}
		s.Users = append(s.Users, u)
	}
	p.status.Store(&s)
	_, body := p.get(t, "/")
	at := -1
	for _, name := range []string{"user-400", "user-300", "user-200", "user-000", "user-001", "And 480 more"} {
		if i := strings.Index(body, name); i <= at {
			t.Errorf("%s is at %d, and what comes before it at %d", name, i, at)
		} else {
			at = i
		}
	}
}

// Ten minutes of a fast link are no number that is too large.
func TestPlotOfMuch(t *testing.T) {
	h, now := newHistory(), time.Unix(1_000_000_200, 0)
	h.day[0].add(now, slot{down: 600 << 30, up: 300 << 40})
	h.day[0].add(now.Add(10*time.Minute), slot{})
	day := h.plots(0, "in", "out", "streams")[2]
	if got := day.Top + " " + day.Curves[0].Most + " " + day.Curves[1].Most; strings.ReplaceAll(got, space, " ") != "512 GiB/s 1.0 GiB/s 512 GiB/s" {
		t.Error(got)
	}
	if empty := h.plots(1, "in", "out", "streams")[2]; empty.Top != "" {
		t.Errorf("nothing has happened, and the top is %q", empty.Top)
	}
}

func TestWithCode(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "a": "a", "run `ptgate probe` now": "run <code>ptgate probe</code> now", "<b>`<i>`&": "&lt;b&gt;<code>&lt;i&gt;</code>&amp;",
	} {
		if got := string(withCode(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := quoted("/it's $(here)"); got != `'/it'\''s $(here)'` {
		t.Error(got)
	}
}

// What changes is sent, and nothing else.
func TestEvents(t *testing.T) {
	p := show(t, near, nil)
	p.eventsEvery = 20 * time.Millisecond
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if ct := r.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Error(ct)
	}
	lines := bufio.NewScanner(r.Body)
	until := func(want string) {
		t.Helper()
		for lines.Scan() {
			if text := lines.Text(); text != "" && text != ":" && !strings.HasPrefix(text, "data: ") {
				t.Errorf("a line that is no event: %q", text)
			} else if strings.Contains(text, want) {
				return
			}
		}
		t.Fatalf("%q does not come", want)
	}
	until(`data: <div id="troubles" data-live>`)
	p.book.Add(outcome.Refused, outcome.By("http", "blocked"))
	until("reason blocked")
	var more []net.Conn
	for range maxEvents - 1 {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if r, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || r.StatusCode != 200 {
			t.Fatal(err, r)
		}
		more = append(more, c)
	}
	for range 2 * maxConns { // they give their places back
		if r, _ := p.get(t, "/events"); r.StatusCode != 503 || !r.Close {
			t.Errorf("one too many: %s, %v", r.Status, r.Close)
		}
	}
	for _, c := range more {
		c.Close()
	}
	// The test's end ends the rest: Serve waits for them.
}

// A page that reads no more is let go, with what waits for it.
func TestEventsOfSlowReader(t *testing.T) {
	cfg := load(t, near)
	synctest.Test(t, func(t *testing.T) {
		book := outcome.New(slog.New(slog.DiscardHandler))
		defer book.Close()
		s := New(Config{Running: func() *config.Config { return cfg }, Status: func() Status { return Status{State: Running, Since: time.Now()} }, Book: book})
		ctx, stop := context.WithCancel(t.Context())
		ln := pipes{make(chan net.Conn), make(chan struct{})}
		done := make(chan error)
		go func() { done <- s.Serve(ctx, ln) }()
		c, far := net.Pipe()
		defer c.Close()
		ln.accept <- far
		io.WriteString(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if r, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || r.StatusCode != 200 {
			t.Fatal(err, r)
		}
		<-time.After(time.Second)
		if s.open.Load() != 1 {
			t.Error("the page is not open")
		}
		<-time.After(2 * writeTimeout)
		if s.open.Load() != 0 || s.conns.Load() != 0 {
			t.Errorf("%d pages and %d connections after %v", s.open.Load(), s.conns.Load(), 2*writeTimeout)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// pipes are a listener without a network.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipes) Close() error {
	close(p.closed)
	return nil
}

// What a person may type, and what may not: nothing of it becomes markup, and it is not long.
func TestAsked(t *testing.T) {
	p := show(t, near, nil)
	p.status.Store(&Status{State: Running, Routes: []RouteStatus{{Route: 1, Action: "block", Ready: true}}})
	for _, asked := range []string{strings.Repeat("a", 10<<10), strings.Repeat("<b>", 1500), "\x00\x1b[2J\u009b", "\"><script>alert(1)</script>", "a b", "[::1", ":::", "%zz"} {
		r, body := p.get(t, "/?name="+url.QueryEscape(asked))
		if r.StatusCode != 200 || !strings.Contains(body, `role="status"><p class="bad">`) {
			t.Errorf("%.20q: %s, and no fault is shown", asked, r.Status)
		}
		if strings.Contains(body, "<script>alert") || strings.Contains(body, "<b><b>") || strings.ContainsFunc(body, func(c rune) bool { return unicode.IsControl(c) && c != '\n' }) {
			t.Errorf("%.20q becomes markup", asked)
		}
		if form := body[strings.Index(body, "<form"):strings.Index(body, `aria-labelledby="setup"`)]; len(form) > 4000 {
			t.Errorf("%.20q: an answer of %d bytes", asked, len(form))
		}
	}
}

// Pages that are left open, come back and go, and events without end, leave nothing behind:
// no goroutine, no descriptor, no memory.
func TestEventsLeakNothing(t *testing.T) {
	p := show(t, near, nil)
	p.eventsEvery = 10 * time.Millisecond
	round := func() {
		var wg sync.WaitGroup
		for range maxEvents {
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer c.Close()
				io.WriteString(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
				r, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || r.StatusCode != 200 {
					t.Error(err, r)
					return
				}
				lines := bufio.NewScanner(r.Body)
				for seen := 0; seen < 10 && lines.Scan(); {
					if strings.Contains(lines.Text(), `<div id="troubles"`) {
						seen++
						p.book.Add(outcome.Refused, outcome.By("http", "blocked"))
					}
				}
			})
		}
		wg.Wait()
		for p.open.Load() > 0 || p.conns.Load() > 0 {
			runtime.Gosched()
		}
	}
	memory := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	round()
	goroutines, files, bytes := runtime.NumGoroutine(), openFiles(t), memory()
	for range 20 {
		round()
	}
	// A connection is given back a moment before its goroutine has ended.
	for runtime.NumGoroutine() > goroutines {
		runtime.Gosched()
	}
	if n := openFiles(t); n > files {
		t.Errorf("%d descriptors, %d before", n, files)
	}
	if n := memory(); n > bytes+1<<20 {
		t.Errorf("%d KiB, %d KiB before", n>>10, bytes>>10)
	}
}

// openFiles counts this process's descriptors; 0 where the system does not tell.
func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	return len(all)
}

// What came while there was no page, as before a reload that adds [admin], was not a second ago.
func TestTroubleBeforePage(t *testing.T) {
	book := outcome.New(slog.New(slog.DiscardHandler))
	defer book.Close()
	h, now := newHistory(), time.Now()
	h.looked = now.Add(-5 * time.Minute)
	book.Add(outcome.Refused, outcome.By("http", "blocked"))
	h.sample(book, now)
	if all, _ := h.recent(1, now); len(all) != 1 || all[0].when(now) != "1\u00a0s to 5\u00a0min ago" {
		t.Errorf("%+v", all)
	}
	book.Add(outcome.Refused, outcome.By("http", "blocked"))
	now = now.Add(sampleEvery)
	h.sample(book, now)
	if all, _ := h.recent(1, now); len(all) != 1 || all[0].when(now) != "1\u00a0s ago" {
		t.Errorf("%+v", all)
	}
}

// Whoever is refused by the page is told what helps against that refusal, and nothing that does not.
func TestTroubleOfPage(t *testing.T) {
	helps := map[string]string{"host": "localhost", "site": "web page", "password": "password", "owner": "owners", "many": "close"}
	for reason, word := range helps {
		book := outcome.New(slog.New(slog.DiscardHandler))
		h, now := newHistory(), time.Now()
		book.Add(outcome.AdminRefused, outcome.By(reason))
		book.Close()
		h.sample(book, now)
		all, _ := h.recent(2, now)
		if len(all) != 1 || !strings.Contains(all[0].next, word) {
			t.Errorf("%s: %+v", reason, all)
			continue
		}
		for other, no := range helps {
			if other != reason && strings.Contains(all[0].next, no) {
				t.Errorf("%s: it says %q of %q", reason, all[0].next, no)
			}
		}
	}
}

// The page has the newest troubles, and says how many more there are.
func TestManyTroubles(t *testing.T) {
	p := show(t, near, nil)
	p.status.Store(&Status{State: Running, Routes: []RouteStatus{{Route: 1}}})
	for i := range 10 {
		p.book.Add(outcome.BridgeFailed, outcome.By(fmt.Sprint("bridge-", i), "refused"))
	}
	if _, body := p.get(t, "/"); strings.Count(body, "A bridge failed") != 10 || strings.Contains(body, "which are older") {
		t.Errorf("10 troubles: %s", body)
	}
	for i := range 7 {
		p.book.Add(outcome.BridgeFailed, outcome.By(fmt.Sprint("other-", i), "refused"))
	}
	if _, body := p.get(t, "/"); strings.Count(body, "A bridge failed") != 10 || !strings.Contains(body, "And 7 more, which are older.") {
		t.Errorf("17 troubles: %s", body)
	}
}

// The history goes on when the last listener has ended and another one begins, as in a
// reload, and nothing runs in between.
func TestSampler(t *testing.T) {
	p := show(t, near, nil)
	p.book.Counter(outcome.Down, outcome.By()).Add(1 << 20)
	p.get(t, "/")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p2 := &page{Server: p.Server, addr: ln.Addr().String()}
	serve(t, p2, ln)
	p2.get(t, "/")
	if p.history.last[0].down != 1<<20 {
		t.Errorf("%+v", p.history.last)
	}
}
