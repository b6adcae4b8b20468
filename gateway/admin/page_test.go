package admin

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/gateway/bridges"
	"ptgate/gateway/budget"
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
		},
		Routes: []RouteStatus{{Route: 1, Line: 6, Action: "via", Via: []string{"tokyo", "paris"}, Pick: "fastest", Ready: true}, {Route: 2, Line: 9, Action: "via", Via: []string{"<b>paris</b>"}},
			{Route: 3, Line: 12, Action: "direct", Ready: true}, {Route: 4, Line: 15, Action: "block", Ready: true}},
		Serve: []ServeStatus{{Transport: "obfs4", Address: "0.0.0.0:443", Clients: 3, Active: 5, In: 4096, PT: supervise.Status{State: supervise.Running}}},
		Users: []UserStatus{{Name: "alice", Active: 2}, {Name: "bob", Last: time.Now().Add(-3 * time.Hour), Up: 5 << 20}},
		Box:   "abcd",
	})
	p.book.Add(outcome.Refused, outcome.By("http", "blocked"))
	p.book.Add(outcome.Refused, outcome.By("http", "blocked"))
	p.book.Add(outcome.ExitRefused, outcome.By("unreachable"))
	p.book.Add(outcome.BridgeRecovered, outcome.By("tokyo")) // no trouble
	_, body := p.get(t, "/?name=www.example.com:80")
	for _, want := range []string{"works, 84 ms", "By obfs4;", "The network stops a connection after about 16KiB.", "&lt;b&gt;paris&lt;/b&gt;", "resting: refused", "Port closed. The bridge rests.", "Is the server running?",
		"tokyo, paris (the fastest)", "no bridge works", "directly, without a bridge", "nowhere: blocked", "alice", "3 h ago", "5.0 MiB", "obfs4 at 0.0.0.0:443", "box abcd",
		"Requests of programs got an error for an answer.", "1 s ago, 2 times; front http, reason blocked", "ptgate explain NAME",
		"<th scope=\"row\">unreachable</th>", "via tokyo (obfs4, exit)", "by route 1 at line 7", "http://localhost/proxy.pac", "curl -x socks5h://127.0.0.1:1080", "v1.2", "Not ready"} {
		if !strings.Contains(body, want) {
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
	if r, _ := p.get(t, "/events"); r.StatusCode != 503 {
		t.Errorf("one too many: %s", r.Status)
	}
	for _, c := range more {
		c.Close()
	}
	// The test's end ends the rest: Serve waits for them.
}

// Pages that are left open, come back and go, and events without end, leave nothing behind:
// no goroutine, no descriptor, no memory.
func TestEventsLeakNothing(t *testing.T) {
	p := show(t, near, nil)
	p.eventsEvery = time.Millisecond
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
	if all := h.recent(1, now); len(all) != 1 || all[0].when(now) != "1 s to 5 min ago" {
		t.Errorf("%+v", all)
	}
	book.Add(outcome.Refused, outcome.By("http", "blocked"))
	now = now.Add(sampleEvery)
	h.sample(book, now)
	if all := h.recent(1, now); len(all) != 1 || all[0].when(now) != "1 s ago" {
		t.Errorf("%+v", all)
	}
}

// Who is refused as another user of the machine is told of owners, and others of the password.
func TestTroubleOfOwner(t *testing.T) {
	book := outcome.New(slog.New(slog.DiscardHandler))
	defer book.Close()
	h, now := newHistory(), time.Now()
	book.Add(outcome.AdminRefused, outcome.By("owner"))
	h.sample(book, now)
	book.Add(outcome.AdminRefused, outcome.By("password"))
	h.sample(book, now.Add(time.Second))
	all := h.recent(2, now.Add(time.Second))
	if len(all) != 2 || !strings.Contains(all[0].next, "password") || !strings.Contains(all[1].next, "owners") || strings.Contains(all[1].next, "password") {
		t.Errorf("%+v", all)
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
