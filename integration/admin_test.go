//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"ptgate/gateway/admin"
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
	s, c := pairFiles(t, "--address", freeAddr(t))
	farPage, page := freeAddr(t), freeAddr(t)
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
		moved := freeAddr(t)
		if err := os.WriteFile(client.file, []byte("state_dir = \""+client.state+"\"\n"+strings.Replace(text, page, moved, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		client.signal(syscall.SIGHUP)
		client.log.wait(t, "msg=reloaded")
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
	found, err := chromedp.Run(ctx, chromedp.Evaluate[string](string(axe)+`;
axe.run().then(r => r.violations.map(v => v.id + ": " + v.help + "\n" + v.nodes.map(n => "  " + n.html + "\n  " + n.failureSummary).join("\n")).join("\n"))`,
		chromedp.EvalAwaitPromise))
	if err != nil || found != "" {
		t.Errorf("%s: axe-core says: %v\n%s", name, err, found)
	}
}
