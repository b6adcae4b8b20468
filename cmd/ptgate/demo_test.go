package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The page says that it came through ptgate only to who asks by the name that the
// exit alone can find.
func TestDemoHandler(t *testing.T) {
	for host, through := range map[string]bool{
		"demo.ptgate.test:8080":   true,
		"Demo.PTgate.test.:8080":  true,
		"127.0.0.1:8080":          false,
		"localhost:8080":          false,
		"[::1]:8080":              false,
		"x.demo.ptgate.test:8080": false,
		"":                        false,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		demoHandler("http://demo.ptgate.test:8080/").ServeHTTP(w, r)
		page := w.Body.String()
		if got := page == demoPage; got != through || (w.Code == http.StatusOK) != through {
			t.Errorf("%q: status %d, %s", host, w.Code, page)
		}
		if !through && (strings.Contains(page, "It works") || !strings.Contains(page, `href="http://demo.ptgate.test:8080/"`) ||
			!strings.Contains(page, "--proxy-bypass-list='&lt;-loopback&gt;'")) {
			t.Errorf("%q: what to do is not said: %s", host, page)
		}
	}
}

// Ctrl-C while a box starts.
func TestStartBoxStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var boxes sync.WaitGroup
	defer boxes.Wait()
	text := "state_dir = \"state\"\n[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n"
	g, err := startBox(ctx, slog.New(slog.DiscardHandler), &boxes, filepath.Join(t.TempDir(), "box.toml"), text, nil)
	if g == nil && err == nil {
		t.Error("neither a box nor an error")
	}
}
