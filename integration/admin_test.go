//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"ptgate/gateway/admin"
	"ptgate/gateway/bridges"
	"ptgate/gateway/budget"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// fetchPage asks a status page for a path.
func fetchPage(t testing.TB, page, path string) (code int, body string) {
	t.Helper()
	r, err := http.Get("http://" + page + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func fetchStatus(t testing.TB, page string) (s admin.Status) {
	t.Helper()
	_, body := fetchPage(t, page, "/api/v1/status")
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAdmin is the status page of both ends: what Prometheus's own program and a real
// browser say of it.
func TestAdmin(t *testing.T) {
	o := serveOrigin(t)
	s, c := pairFiles(t, "--address", ports.Free(t))
	farPage, page := ports.Free(t), ports.Free(t)
	run(t, "server", fmt.Sprintf("[admin]\nlisten = %q\n", farPage)+s, setting{hosts: originHosts})
	const dead = `
[bridge.dead]
transport = "obfs4"
address = "127.0.0.3:9"
args = { cert = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA", iat-mode = "0" }
[[route]]
to = ".ads.ptgate.test"
via = "block"
[[route]]
to = "direct.ptgate.test"
via = "direct"
[[route]]
to = "dead.ptgate.test"
via = "dead"
`
	before, route, _ := strings.Cut(c, "\n[[route]]\n")
	text := fmt.Sprintf("[admin]\nlisten = %q\n", page) + before + dead + "[[route]]\n" + route
	client := run(t, "client", text, setting{})

	curl := func(want, name string) {
		t.Helper()
		got, _, _ := command(t, nil, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30", "-x", "http://"+client.http(), "http://"+net.JoinHostPort(name, portOf(t, o.plain))+"/hello")
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if code, body := fetchPage(t, page, "/readyz"); code != 503 || !strings.Contains(body, "route 3") || !strings.Contains(body, "route 4") {
		t.Errorf("before any request: %d %q", code, body)
	}
	curl("200", originName)
	curl("403", "x.ads.ptgate.test")
	curl("502", "dead.ptgate.test")
	if code, body := fetchPage(t, page, "/readyz"); code != 503 || !strings.Contains(body, "route 3") || strings.Contains(body, "route 4") {
		t.Errorf("one bridge is dead: %d %q", code, body)
	}
	if code, body := fetchPage(t, farPage, "/readyz"); code != 200 {
		t.Errorf("the far end: %d %q", code, body)
	}

	t.Run("promtool", func(t *testing.T) {
		for _, p := range []string{page, farPage} {
			_, metrics := fetchPage(t, p, "/metrics")
			if out, errs, code := command(t, strings.NewReader(metrics), realpt.Program(t, "promtool"), "check", "metrics"); code != 0 || out+errs != "" {
				t.Errorf("%d\n%s%s", code, out, errs)
			}
		}
	})

	t.Run("alerts", func(t *testing.T) {
		const rules, cases = "../configs/prometheus-alerts.yml", "testdata/prometheus-alerts-test.yml"
		must(t, realpt.Program(t, "promtool"), "check", "rules", rules)
		must(t, realpt.Program(t, "promtool"), "test", "rules", cases)
		seen, err := os.ReadFile(cases)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(rules)
		if err != nil {
			t.Fatal(err)
		}
		for _, alert := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(text), -1) {
			if n := strings.Count(string(seen), "alertname: "+alert[1]); n < 4 {
				t.Errorf("%s: %d cases: one where nothing is wrong, one before its time, one when it fires, one after it", alert[1], n)
			}
		}
	})

	t.Run("private", func(t *testing.T) {
		for _, p := range []string{page, farPage} {
			for _, path := range []string{"/", "/api/v1/status", "/metrics"} {
				_, body := fetchPage(t, p, path)
				for _, secret := range append(secretsOf(s+c), originName, "ads.ptgate", "127.0.0.3", "dead.ptgate") {
					if strings.Contains(body, secret) {
						t.Errorf("%s of %s shows %q", path, p, secret)
					}
				}
			}
		}
	})

	t.Run("page", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		ctx = browse(ctx, t)
		for _, p := range []struct{ name, addr string }{{"near", page}, {"far", farPage}} {
			for _, look := range []struct {
				name, scheme string
				width        int64
			}{{"light", "light", 1100}, {"dark", "dark", 1100}, {"narrow", "light", 360}} {
				inspect(ctx, t, p.name+"-"+look.name, "http://"+p.addr+"/?name=www.example.com", look.scheme, look.width)
			}
		}
		// What changes comes by itself.
		if err := chromedp.Do(ctx, chromedp.Navigate("http://"+page+"/")); err != nil {
			t.Fatal(err)
		}
		curl("403", "y.ads.ptgate.test")
		if _, err := chromedp.Run(ctx, chromedp.Poll[bool](`document.getElementById("troubles").textContent.includes("2 times")`)); err != nil {
			t.Errorf("the page does not follow: %v", err)
		}
	})

	// Whatever the state is, nothing is cut off, and axe-core finds nothing.
	t.Run("states", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		ctx = browse(ctx, t)
		addr := showStates(t)
		for _, look := range []struct {
			name, scheme string
			width        int64
		}{{"light", "light", 1100}, {"dark", "dark", 550}, {"narrow", "dark", 320}} {
			inspect(ctx, t, "states-"+look.name, "http://"+addr+"/", look.scheme, look.width)
		}
	})

	// A page that stays open does not get in the way of who looks at it, and finds ptgate again
	// by itself.
	t.Run("open", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		ctx = browse(ctx, t)
		until := func(what, condition string) {
			t.Helper()
			if _, err := chromedp.Run(ctx, chromedp.Poll[bool](condition)); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		addr := ports.Free(t)
		text := strings.Replace(text, page, addr, 1)
		first := run(t, "first", text, setting{})
		var others []net.Conn
		for range 16 { // as many as there may be
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			others = append(others, conn)
		}
		if err := chromedp.Do(ctx, chromedp.Navigate("http://"+addr+"/")); err != nil {
			t.Fatal(err)
		}
		until("one page too many", `source === null && !lost.hidden`)
		for _, conn := range others {
			conn.Close()
		}
		until("a place is free again", `connect(), lost.hidden`)

		for what, script := range map[string]string{
			"the focus is lost": `(() => {
				document.getElementById("head-0-0").focus();
				const part = document.getElementById("head").cloneNode(true);
				part.append("changed");
				show(part);
				return document.activeElement.id === "head-0-0" && document.getElementById("head").textContent.includes("changed");
			})()`,
			"a selection is lost": `(() => {
				const here = document.getElementById("bridges"), part = here.cloneNode(true);
				part.append("changed");
				getSelection().selectAllChildren(here.querySelector("li"));
				show(part);
				const stays = !here.textContent.includes("changed");
				getSelection().removeAllRanges();
				show(part);
				return stays && here.textContent.includes("changed");
			})()`,
		} {
			if ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool](script)); err != nil || !ok {
				t.Errorf("%s (%v)", what, err)
			}
		}

		// What is asked for is for no eye but that of who asks: no history has it.
		if _, err := chromedp.Run(ctx, chromedp.Evaluate[int](`
			document.getElementById("name").value = "www.example.com";
			document.querySelector("form button").click();
			window.before = history.length`)); err != nil {
			t.Fatal(err)
		}
		until("the way of a name", `document.getElementById("answer").textContent.includes("www.example.com")`)
		if kept, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`location.href.includes("example") || history.length !== window.before`)); err != nil || kept {
			t.Errorf("the browser's history has the name that was asked for (%v)", err)
		}

		first.Stop()
		until("ptgate is gone", `!lost.hidden`)
		second := run(t, "second", text, setting{})
		until("ptgate is back", fmt.Sprintf(`lost.hidden && document.getElementById("state").textContent.includes(%q)`, second.file))
	})

	t.Run("pac", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		ctx = browse(ctx, t, chromedp.Flag("proxy-pac-url", "http://"+page+"/proxy.pac"))
		for name, want := range map[string]string{
			originName:              helloText, // only the far end knows it
			directName:              helloText, // the gateway does not know it
			"x.ads.ptgate.test":     "403 Forbidden",
			"dead.ptgate.test":      "502 Bad Gateway",
			"other.ads.ptgate.test": "403 Forbidden",
		} {
			url := "http://" + net.JoinHostPort(name, portOf(t, o.plain)) + "/hello"
			if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if got, err := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body.innerText")); err != nil || !strings.Contains(got, strings.TrimSpace(want)) {
				t.Errorf("%s: %q, %v; want %q", name, got, err, want)
			}
		}
	})

	t.Run("reload", func(t *testing.T) {
		before := fetchStatus(t, page)
		_, plots := fetchPage(t, page, "/")
		if !strings.Contains(plots, `class="line down"`) {
			t.Error("there is no plot")
		}
		moved := ports.Free(t)
		if err := os.WriteFile(client.file, []byte("state_dir = \""+client.state+"\"\n"+strings.Replace(text, page, moved, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		client.Signal(syscall.SIGHUP)
		client.log.Wait(t, "msg=reloaded")
		after := fetchStatus(t, moved)
		if after.Down < before.Down || after.Since != before.Since || !after.Loaded.After(before.Loaded) || after.Down == 0 {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		if _, again := fetchPage(t, moved, "/"); !strings.Contains(again, "Requests of programs got an error for an answer.") {
			t.Error("the troubles are forgotten")
		}
		if _, err := http.Get("http://" + page + "/healthz"); err == nil {
			t.Error("the page is still at its old address")
		}
	})
}

// showStates shows a page on which every state of bridges, routes, transports and users is
// there at once, with names as long as may be.
func showStates(t *testing.T) (addr string) {
	t.Helper()
	now := time.Now()
	failing := supervise.Status{State: supervise.Waiting, Failures: 7, Until: now.Add(time.Hour), Error: "pt obfs4proxy: exec: \"/usr/bin/obfs4proxy\": file does not exist"}
	once := supervise.Status{State: supervise.Running, Failures: 1, Error: "the program has ended: exit status 2"}
	text := "the network ends a connection when it is about 60s old: 3 connections died there, and others worked; each is used up to 50s"
	closed := doctor.Diagnose(doctor.Case{Err: syscall.ECONNREFUSED})
	s := admin.Status{State: "reloading", Config: strings.Repeat("/a-directory", 20), Since: now.Add(-26 * time.Hour), Loaded: now, Active: 8213,
		Restart: []string{"state_dir", "log.format"}, Box: strings.Repeat("ab", 32), AsksUsers: true,
		Listeners: []admin.ListenerStatus{{Front: "http", Address: "unix:" + strings.Repeat("/a-directory", 8)}, {Front: "mixed", Address: "127.0.0.1:1080"}}}
	var names []string
	for i, b := range []bridges.Status{
		{State: "idle"}, {State: "connecting"}, {State: "up", RTT: 84 * time.Millisecond, Carriers: 2, Active: 3, In: 5 << 30},
		{State: "up", Leaving: true}, {State: "up", Changed: true}, {State: "up", PT: &once},
		{State: "up", Learned: []budget.Learned{{Kind: budget.KindAge, Value: "50s", At: "60s", Text: text}, {Kind: budget.KindAtOnce, Value: "4", Text: text}}},
		{State: "suspect", Active: 4}, {State: "detached", Detached: now.Add(-time.Minute), Gone: true, Leaving: true},
		{State: "resting", Reason: "refused", Until: now.Add(time.Hour), Verdict: &closed}, {State: "resting", Reason: "timeout", PT: &failing},
	} {
		b.Name, b.Transport = fmt.Sprintf("bridge-%02d-%s", i, strings.Repeat("w", 54)), "obfs4"
		s.Bridges, names = append(s.Bridges, b), append(names, b.Name)
		s.Routes = append(s.Routes, admin.RouteStatus{Route: i + 1, Action: "via", Pick: "first", Via: []string{b.Name}, Ready: b.State == "up" || b.Active > 0})
	}
	s.Routes = append(s.Routes, admin.RouteStatus{Route: 20, Action: "via", Pick: "fastest", Via: names, Ready: true}, admin.RouteStatus{Route: 21, Action: "direct", Ready: true},
		admin.RouteStatus{Route: 22, Action: "block", Patterns: 100_000, Ready: true})
	for _, pt := range []supervise.Status{{State: supervise.Running}, {State: supervise.Starting}, once, failing} {
		s.Serve = append(s.Serve, admin.ServeStatus{Transport: "obfs4", Address: "[2001:db8::1234:5678:9abc:def0]:8443", In: 5 << 40, PT: pt})
	}
	for i := range 500 {
		s.Users = append(s.Users, admin.UserStatus{Name: []string{strings.Repeat("w", 255), "<b>محمد</b> 東京"}[i%2], Active: i, Up: 5 << 40, Down: 5 << 30})
	}
	book := outcome.New(slog.New(slog.DiscardHandler))
	t.Cleanup(book.Close)
	for i, row := range outcome.Rows() {
		if row.Trouble != "" || outcome.Outcome(i) == outcome.ExitRefused {
			book.Add(outcome.Outcome(i), outcome.By(strings.Repeat("w", 64), "blocked"))
		}
	}
	cfg, problems := config.Load(write(t, scratch(t), "states.toml", "state_dir = \"/nowhere\"\n[[route]]\nto = \"*\"\nvia = \"block\"\n"))
	if cfg == nil {
		t.Fatal(problems)
	}
	page := admin.New(admin.Config{Running: func() *config.Config { return cfg }, Book: book, Status: func() admin.Status {
		s := s
		s.Outcomes = book.Snapshot()
		return s
	}})
	ln := listenIn(t, "", "127.0.0.1:0")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- page.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// inspect loads a page in one look, and lets axe-core find what people could not read or
// reach. PTGATE_TEST_SCREENSHOTS names a directory for what the page looks like.
func inspect(ctx context.Context, t *testing.T, name, url, scheme string, width int64) {
	t.Helper()
	axe, err := os.ReadFile(filepath.Join(strings.TrimSpace(must(t, "npm", "root", "--global")), "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	err = chromedp.Do(ctx,
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			return err
		}),
		chromedp.EmulateViewport(width, 900),
		chromedp.Navigate(url),
	)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if dir := os.Getenv("PTGATE_TEST_SCREENSHOTS"); dir != "" {
		png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if wide, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("document.documentElement.scrollWidth > innerWidth")); err != nil || wide {
		t.Errorf("%s: the page is wider than the window (%v)", name, err)
	}
	broken, err := chromedp.Run(ctx, chromedp.Evaluate[string](`[...document.querySelectorAll("thead th")].filter(cell => {
		const text = document.createRange();
		text.selectNodeContents(cell);
		return !cell.textContent.includes(" ") && text.getClientRects().length > 1;
	}).map(cell => cell.textContent).join(", ")`))
	if err != nil || broken != "" {
		t.Errorf("%s: letters of one word stand below each other: %s (%v)", name, broken, err)
	}
	found, err := chromedp.Run(ctx, chromedp.Evaluate[string](string(axe)+`;
axe.run().then(r => r.violations.map(v => v.id + ": " + v.help + "\n" + v.nodes.map(n => "  " + n.html + "\n  " + n.failureSummary).join("\n")).join("\n"))`,
		chromedp.EvalAwaitPromise))
	if err != nil || found != "" {
		t.Errorf("%s: axe-core says: %v\n%s", name, err, found)
	}
}
