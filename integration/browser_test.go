//go:build integration

package integration

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"ptgate/integration/realpt"
)

// browserPage has 30 subresources and a WebSocket, and says so when all is there.
const browserPage = `<!DOCTYPE html>
<meta charset="utf-8">
<title>page</title>
<script>
const loaded = new Set();
addEventListener("load", () => {
	const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket");
	socket.onopen = () => socket.send("over the socket");
	socket.onerror = () => say("socket failed");
	socket.onmessage = e => say(loaded.size + " scripts, " + e.data);
});
function say(text) {
	const p = document.createElement("p");
	p.id = "said";
	p.textContent = text;
	document.body.append(p);
}
for (let i = 0; i < 30; i++) document.write('<script src="/script/' + i + '"><\/script>');
</script>
<body></body>
`

// browse starts Debian's browser. It is forbidden to look up any name but those of rules.
func browse(ctx context.Context, t *testing.T, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	ctx, stop := chromedp.NewExecAllocator(ctx, slices.Concat(chromedp.DefaultExecAllocatorOptions[:], []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(realpt.Program(t, "chromium")),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.NoFirstRun,
		chromedp.IgnoreCertErrors,
		chromedp.UserDataDir(scratch(t)),
		chromedp.WSURLReadTimeout(patience),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("host-resolver-rules", "MAP "+directName+" 127.0.0.1, MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"),
	}, more)...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(ctx)
	t.Cleanup(end)
	return ctx
}

// directName is the only name that the browser can look up by itself.
const directName = "direct.ptgate.test"

// TestChromium loads a page with Debian's browser through both boxes, by SOCKS and by HTTP
// on both ports. The browser is forbidden to look up any name, so that it depends on the
// proxy for that.
func TestChromium(t *testing.T) {
	o := serveOrigin(t)
	_, client := runPair(t)
	for i, addr := range client.ports() {
		for _, scheme := range []string{"socks5", "http"} {
			t.Run(fmt.Sprintf("%s on port %d", scheme, i+1), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				ctx = browse(ctx, t, chromedp.ProxyServer(scheme+"://"+addr))
				begin := time.Now()
				for _, base := range []string{o.http, o.https} {
					if err := chromedp.Do(ctx, chromedp.Navigate(base+"/page")); err != nil {
						t.Fatalf("%s: %v", base, err)
					}
					said, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("#said")))
					if err != nil {
						t.Fatalf("%s: %v", base, err)
					}
					if want := "30 scripts, over the socket"; said != want {
						t.Errorf("%s: the page says %q, want %q", base, said, want)
					}
				}
				t.Logf("with the browser's start: %v", time.Since(begin).Round(time.Millisecond))
			})
		}
	}
}
