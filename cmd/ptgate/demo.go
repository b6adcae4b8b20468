package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/proxy"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
)

// demoName is what the page is asked for by. Only the demo's own exit knows where
// it leads (RFC 6761 section 6.2: no name server has names in .test), so that no
// program reaches it without the two boxes. Programs do not use their proxy for
// localhost.
const demoName = "demo.ptgate.test"

func newDemoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run both boxes and a small web page on loopback, and fetch it through them",
		Long: `Run both boxes and a small web page on loopback, without any configuration, and
fetch the page through SOCKS5 and through HTTP, over the built-in obfs4. Then it
stays up for your browser, until Ctrl-C.`,
		Example: "  ptgate demo --once",
		Args:    noArgs,
	}
	once := cmd.Flags().Bool("once", false, "end after the fetches: exit code 0 if they worked, 1 if not")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return interruptible(cmd.Context(), func(ctx context.Context) error {
			return demo(ctx, cmd.OutOrStdout(), *once)
		})
	}
	return cmd
}

const demoPage = `<!DOCTYPE html>
<meta charset="utf-8">
<title>ptgate demo</title>
<style>body { font: 1.2em/1.5 sans-serif; max-width: 34em; margin: 4em auto; padding: 0 1em }</style>
<h1>It works</h1>
<p>This page came to you through ptgate: from your program to the gateway, through an obfs4 connection to the
server, and from its exit to this small web server.</p>
`

// demoDirect is for whoever comes by another name than the exit's clients.
const demoDirect = `<!DOCTYPE html>
<meta charset="utf-8">
<title>ptgate demo</title>
<style>body { font: 1.2em/1.5 sans-serif; max-width: 34em; margin: 4em auto; padding: 0 1em }</style>
<h1>Not through ptgate</h1>
<p>Your program came here directly. Programs do so for 127.0.0.1 and localhost, whatever proxy is set.
Set the proxy that the demo prints and open <a href="%[1]s">%[1]s</a>: only ptgate knows where that is.</p>
<p>For pages of your own on this machine: start Chromium with <code>--proxy-bypass-list='&lt;-loopback&gt;'</code>, too; in Firefox, set
<code>network.proxy.allow_hijacking_localhost</code> to true in about:config; give curl <code>--noproxy ''</code>.</p>
`

// demoHandler serves the page by its name alone, to whoever came through the exit.
func demoHandler(target string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		host, _, _ := strings.Cut(r.Host, ":")
		if strings.EqualFold(strings.TrimSuffix(host, "."), demoName) {
			io.WriteString(w, demoPage)
			return
		}
		w.WriteHeader(http.StatusMisdirectedRequest)
		fmt.Fprintf(w, demoDirect, target)
	})
}

// demo is the program's main job, on one machine.
func demo(ctx context.Context, out io.Writer, once bool) (err error) {
	dir, err := os.MkdirTemp("", "ptgate-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	page, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	at := page.Addr().(*net.TCPAddr).AddrPort()
	target := fmt.Sprintf("http://%s:%d/", demoName, at.Port())
	web := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: demoHandler(target)}
	var boxes sync.WaitGroup
	boxes.Go(func() { web.Serve(page) })
	stop, end := context.WithCancel(ctx)
	defer boxes.Wait()
	defer web.Close()
	defer end()

	// A box may find nothing of the other's but what `pair` writes down.
	bind, err := freePort()
	if err != nil {
		return err
	}
	server, client, err := pair(bind, "obfs4")
	if err != nil {
		return err
	}
	server = fmt.Sprintf("state_dir = %q\n", filepath.Join(dir, "server")) + server
	// The page is on this machine, which an exit does not let clients reach.
	server = replaceTable(server, "[exit]", fmt.Sprintf("[exit]\nallow = [\"%s:%d\"]\ndeny = []\n", demoName, at.Port()))
	client = fmt.Sprintf("state_dir = %q\n", filepath.Join(dir, "client")) + client
	client = replaceTable(client, "[listen]", "[listen]\nmixed = \"127.0.0.1:0\"\n"+
		"[[route]]\nto = \"*\"\nvia = \"far\"\n")

	log := slog.New(newLogHandler("text", slog.LevelError, new(atomic.Bool), os.Stderr, false))
	defer adoptLibraries(log, new(atomic.Bool))()
	far, err := startBox(stop, log, &boxes, filepath.Join(dir, "server.toml"), server, map[string][]netip.Addr{demoName: {at.Addr()}})
	if err != nil {
		return fmt.Errorf("the server: %w", err)
	}
	near, err := startBox(stop, log, &boxes, filepath.Join(dir, "client.toml"), client, nil)
	if err != nil {
		return fmt.Errorf("the gateway: %w", err)
	}
	front := near.Addresses(inbound.Mixed)[0]
	fmt.Fprintf(out, "web page          %s, which the exit finds on %s\n", target, page.Addr())
	fmt.Fprintf(out, "server            obfs4 on %s, exit to %s:%d\n", far.Announced()[0].Address, demoName, at.Port())
	fmt.Fprintf(out, "gateway           SOCKS5, SOCKS4a and HTTP on %s\n\n", front)

	for _, p := range []struct{ name, scheme string }{{"SOCKS5", "socks5"}, {"HTTP", "http"}} {
		took, size, err := demoFetch(stop, p.scheme, front, target)
		if err != nil {
			return fmt.Errorf("fetch through %s: %w", p.name, err)
		}
		fmt.Fprintf(out, "fetch through %-6s client → gateway %s → obfs4 → server %s → exit → %s: %d bytes in %v\n",
			p.name, front, far.Announced()[0].Address, page.Addr(), size, took.Round(100*time.Microsecond))
	}
	if once {
		fmt.Fprintln(out, "\nok")
		return nil
	}
	fmt.Fprintf(out, `
ok. Now with a program of yours:

    curl -x socks5h://%s %s
    curl -x http://%s %s

or set %s as the SOCKS5 proxy of a browser (in Firefox with "Proxy DNS when
using SOCKS v5") and open %s
Without the proxy the name leads nowhere. Browsers go to 127.0.0.1 and localhost
directly, whatever proxy is set; for pages of your own there, start Chromium with
--proxy-bypass-list='<-loopback>', or set network.proxy.allow_hijacking_localhost
to true in Firefox's about:config. Ctrl-C ends the demo.
`, front, target, front, target, front, target)
	<-ctx.Done()
	return nil
}

// startBox runs a configuration in this process, as `ptgate run` does in one of
// its own. Its exit finds the names of hosts there.
func startBox(ctx context.Context, log *slog.Logger, boxes *sync.WaitGroup, path, text string, hosts map[string][]netip.Addr) (*gateway.Gateway, error) {
	if err := writeSecret(path, text); err != nil {
		return nil, err
	}
	cfg, problems := config.Load(path)
	if cfg == nil {
		return nil, fmt.Errorf("configuration: %v", problems)
	}
	cfg.Exit.Hosts = hosts
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	g := gateway.New(cfg, exe, log)
	failed := make(chan error, 1)
	boxes.Go(func() { failed <- g.Run(ctx, ctx) })
	select {
	case <-g.Ready():
		return g, nil
	case err := <-failed:
		return nil, cmp.Or(err, ctx.Err()) // it may have been told to stop
	}
}

func demoFetch(ctx context.Context, scheme, addr, target string) (took time.Duration, size int, err error) {
	tr := &http.Transport{DisableKeepAlives: true}
	if scheme == "http" {
		tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: addr})
	} else {
		d, err := proxy.SOCKS5("tcp", addr, nil, proxy.Direct)
		if err != nil {
			return 0, 0, err
		}
		tr.DialContext = d.(proxy.ContextDialer).DialContext
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return 0, 0, err
	case resp.StatusCode != http.StatusOK || string(b) != demoPage:
		return 0, 0, fmt.Errorf("%s, and not the page that was served", resp.Status)
	}
	return time.Since(begin), len(b), nil
}

// freePort finds a port on loopback that is free now, and that no system gives to another
// program by itself: these are above 32767.
func freePort() (addr string, err error) {
	for range 100 {
		addr = fmt.Sprintf("127.0.0.1:%d", 16000+rand.IntN(16000))
		var ln net.Listener
		if ln, err = net.Listen("tcp", addr); err == nil {
			return addr, ln.Close()
		}
	}
	return "", err
}

// replaceTable puts text in the place of everything from the header on.
func replaceTable(toml, header, text string) string {
	before, _, there := strings.Cut(toml, header)
	if !there {
		panic("no " + header)
	}
	return before + text
}
