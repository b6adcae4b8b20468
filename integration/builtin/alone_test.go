//go:build integration

package builtin_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ptgate/integration/harness"
)

// TestAlone runs configs/webtunnel-tls.toml and configs/webtunnel-client.toml with the real
// program and a real authority: the first start gets a certificate, a second one, in a
// process of its own, has it already, and a client reaches a page through both.
func TestAlone(t *testing.T) {
	program := harness.Program(t)
	port, plain, front := freePort(t), freePort(t), freePort(t)
	directory, ca, roots, stop := startPebble(t, port, plain, startDNS(t, exampleName))
	rootsFile := filepath.Join(filepath.Dir(ca), "roots.pem")

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pages := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<title>Bees</title>") })}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = pages.Serve(ln)
	}()
	t.Cleanup(func() {
		pages.Close()
		<-done
	})

	example := func(name string) string {
		text, err := os.ReadFile("../../configs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	state := t.TempDir()
	server := edit(t, example("webtunnel-tls.toml"), `bind = "0.0.0.0:443"`, `bind = "127.0.0.1:`+port+`"`,
		`email = "", http = "0.0.0.0:80"`, `directory = "`+directory+`", ca = "`+ca+`", http = "127.0.0.1:`+plain+`"`,
		`decoy = "http://127.0.0.1:8080"`, `decoy = "http://`+ln.Addr().String()+`"`, `deny = ["private"]`, `deny = []`)
	server = "state_dir = \"" + state + "\"\n" + server
	client := edit(t, example("webtunnel-client.toml"), "\nargs = { url", "\nargs = { addr = \"127.0.0.1:"+port+"\", url") +
		"\n[listen]\nhttp = \"127.0.0.1:" + front + "\"\n"
	write := func(name, text string) (dir, file string) {
		dir = t.TempDir()
		return dir, harness.Write(t, dir, name, text)
	}
	t.Setenv("SSL_CERT_FILE", rootsFile)
	dir, file := write("client.toml", client)
	run(t, dir, program, "run", "-c", file)
	harness.Listening(t, "127.0.0.1:"+front)

	for _, isolate := range []string{"", "\n[pt.own]\ntransports = \"webtunnel\"\nisolate = true\n"} {
		t.Run("isolate"+isolate, func(t *testing.T) {
			dir, file := write("server.toml", server+isolate)
			run(t, dir, program, "run", "-c", file)
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for end := time.After(time.Minute); ; {
				c, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{ServerName: exampleName, RootCAs: roots})
				if err == nil {
					c.Close()
					break
				}
				select {
				case <-tick.C:
				case <-end:
					t.Fatalf("no certificate: %v\n%s", err, logOf(dir))
				}
			}
			stop() // the second server finds no authority
			proxy := &url.URL{Scheme: "http", Host: "127.0.0.1:" + front}
			web := &http.Client{Timeout: time.Minute, Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}
			answer, err := web.Get("http://" + ln.Addr().String() + "/")
			if err != nil {
				t.Fatal(err)
			}
			page, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil || answer.StatusCode != http.StatusOK || string(page) != "<title>Bees</title>" {
				t.Errorf("%d %q, %v\n%s", answer.StatusCode, page, err, logOf(dir))
			}
		})
	}
}
