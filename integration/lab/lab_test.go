//go:build integration

package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptgate/routes"
)

// A lab is the whole of it.
type lab struct {
	t              *testing.T
	client, origin *box
	servers        []*box
	censor         *censor
	names, bridges []string // of the client's configuration
	limits         string   // of the client's configuration, more of them
}

// settings of every client here, but for the bridges and what follows them.
const clientText = `
[listen]
socks5 = "127.0.0.1:1080"
http = "127.0.0.1:8118"
[limits]
drain = "10s"
`

// newLab makes the boxes and starts the servers, each with keys of its own.
func newLab(t *testing.T, servers int, more string) *lab {
	return newLabOf(t, more, slices.Repeat([][]string{{"obfs4"}}, servers)...)
}

// newLabOf makes one server for each list of transports. The first transport's bridge
// has the server's name, another one the server's name and its own. more
// follows the settings of the server's [limits].
func newLabOf(t *testing.T, more string, servers ...[]string) *lab {
	l := &lab{t: t, client: newBox(t, "client", 1), origin: newOrigin(t)}
	all := []*box{l.client, l.origin}
	for i := range servers {
		b := newBox(t, string(rune('a'+i)), byte(11+i))
		l.servers = append(l.servers, b)
		all = append(all, b)
	}
	l.censor = newCensor(t, all...)
	t.Cleanup(func() {
		l.calm()
		for _, b := range append([]*box{l.client}, l.servers...) {
			b.stop()
		}
	})
	serveOrigin(t, l.origin)
	for i, b := range l.servers {
		var text string
		for k, transport := range servers[i] {
			name := b.name
			if k > 0 {
				name += "-" + transport
			}
			way := pair
			switch transport {
			case "webtunnel":
				way = b.webtunnel
			case "meek_lite":
				way = b.meek
			}
			server, bridge := way(t, b.addr, name)
			if b.authority != nil {
				l.client.trust(t, b.authority)
			}
			if k > 0 { // there is one exit
				server, _, _ = strings.Cut(server, "[exit]")
			}
			text = server + text
			l.names, l.bridges = append(l.names, name), append(l.bridges, bridge)
		}
		if strings.HasPrefix(more, "drain = ") {
			text = strings.Replace(text, "drain = \"10s\"\n", "", 1)
		}
		b.configure(text + more)
		b.start()
	}
	return l
}

// calm ends what the censor does, but for what it has decided on connections.
func (l *lab) calm() {
	l.censor.set(func(c *censor) {
		c.cut, c.blocked, c.ports, c.dial = false, map[netip.Addr]bool{}, map[netip.AddrPort]bool{}, map[netip.Addr]bool{}
		c.divert, c.lie = map[netip.AddrPort]netip.AddrPort{}, netip.Addr{}
		c.delay, c.loss, c.rate, c.each = 0, 0, 0, rules{}
	})
}

// pair makes keys, with the program itself. It gives a server's configuration and
// the bridge for a client's.
func pair(t testing.TB, addr netip.Addr, name string) (server, bridge string) {
	t.Helper()
	dir := t.TempDir()
	must(t, ptgate, "pair", "--address", addr.String()+":443", "--out", dir)
	s, err := os.ReadFile(filepath.Join(dir, "server.toml"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := os.ReadFile(filepath.Join(dir, "client.toml"))
	if err != nil {
		t.Fatal(err)
	}
	// The origin has a private address.
	server = strings.Replace(string(s), `["private"]`, "[]", 1) + "[limits]\ndrain = \"10s\"\n"
	_, bridge, _ = strings.Cut(string(c), "[bridge.far]")
	bridge, _, _ = strings.Cut(bridge, "[listen]")
	return server, "[bridge." + name + "]" + bridge
}

const isolated = "[pt.child]\ntransports = [\"obfs4\"]\nisolate = true\n"

// run starts the client with all bridges on one route.
func (l *lab) run(pick, more string) {
	l.t.Helper()
	l.client.configure(l.text(pick, more))
	l.client.start()
}

func (l *lab) text(pick, more string) string {
	var names []string
	for _, name := range l.names {
		names = append(names, strconv.Quote(name))
	}
	return clientText + l.limits + strings.Join(l.bridges, "\n") + more + fmt.Sprintf("\n[[route]]\nto = \"*\"\nvia = [%s]\npick = %q\n", strings.Join(names, ", "), pick)
}

// honest answers only when the far end has, so that a client that was told of
// success has a connection.
func (l *lab) honest() {
	for i := range l.bridges {
		l.bridges[i] += "optimistic = \"never\"\n"
	}
}

// duration is how long the mixed load runs.
func duration(t testing.TB) time.Duration {
	text := os.Getenv("PTGATE_LAB")
	if text == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// long tells that somebody runs this by hand and has the time.
func long() bool { return os.Getenv("PTGATE_LAB") != "" }

// Test 1: what the censor takes for forbidden does not get through; through ptgate
// it does, and nothing at the border tells of it.
func TestForbidden(t *testing.T) {
	l := newLab(t, 1, "")
	l.run("first", "")
	web(t, l.origin)
	c := l.censor
	c.set(func(c *censor) { c.names, c.socks = [][]byte{[]byte(forbiddenName)}, true })
	curl := func(argv ...string) (string, int) {
		return command(t, l.client.command(append([]string{"curl", "-sS", "-k", "--max-time", "20"}, argv...)...)...)
	}
	page := func(scheme string) string { return scheme + "://" + forbiddenName + "/page" }

	path, stop := c.capture(t)
	for _, scheme := range []string{"http", "https"} {
		out, code := curl(page(scheme))
		if code == 0 || !strings.Contains(strings.ToLower(out), "reset by peer") {
			t.Errorf("%s without ptgate: exit code %d, %s", scheme, code, out)
		}
	}
	socks, err := l.client.dial(t.Context(), net.JoinHostPort(originAddr.String(), "80"))
	if err != nil {
		t.Fatal(err)
	}
	socks.Write([]byte{5, 1, 0})
	if _, err := socks.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a SOCKS5 greeting across the border: %v", err)
	}
	socks.Close()
	if n := c.resets; n != 3 {
		t.Errorf("%d flows were reset, want 3", n)
	}
	stop()
	// That what follows finds nothing is worth something only if it would.
	if seen := tells(t, path); len(seen) < 3 {
		t.Fatalf("the capture of the direct requests shows only %q", seen)
	}

	path, stop = c.capture(t)
	for _, proxy := range []string{"socks5h://127.0.0.1:1080", "http://127.0.0.1:8118"} {
		for _, scheme := range []string{"http", "https"} {
			for range 3 {
				if out, code := curl("--proxy", proxy, page(scheme)); code != 0 || out != pageText {
					t.Errorf("%s through %s: exit code %d, %.200s", scheme, proxy, code, out)
				}
			}
		}
	}
	stop()
	if seen := tells(t, path); len(seen) != 0 {
		t.Errorf("the capture shows %q", seen)
	}
	n, bytes := 0, 0
	for _, p := range packets(t, path) {
		n++
		bytes += len(p.payload)
	}
	t.Logf("12 requests through ptgate: %d packets, %d bytes at the border, no name, no SOCKS, no HTTP, no TLS, no DNS", n, bytes)
}

var pageText = "a page that nobody may read\n"

// web serves the page over HTTP and HTTPS in a box.
func web(t *testing.T, b *box) {
	t.Helper()
	der, key := certificate(t, forbiddenName)
	answer := func(c net.Conn) {
		c.SetDeadline(time.Now().Add(patience))
		if n, _ := c.Read(make([]byte, 4096)); n > 0 {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(pageText), pageText)
		}
	}
	serveTCP(t, b, 80, func(_ context.Context, c net.Conn) { answer(c) })
	serveTCP(t, b, 443, func(_ context.Context, c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
		defer s.Close()
		answer(s)
	})
}

// tells lists what a capture says of what goes on: tshark's view of it, and a
// search of our own.
func tells(t *testing.T, path string) (all []string) {
	t.Helper()
	out := must(t, "tshark", "-r", path, "-d", "tcp.port==80,socks", "-Y", "dns || http || socks || tls.handshake || ssh",
		"-T", "fields", "-e", "frame.number", "-e", "_ws.col.Protocol", "-e", "_ws.col.Info")
	// The port decides between SOCKS and HTTP: look both ways.
	out += must(t, "tshark", "-r", path, "-Y", "dns || http || socks || tls.handshake || ssh",
		"-T", "fields", "-e", "frame.number", "-e", "_ws.col.Protocol", "-e", "_ws.col.Info")
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "Running as user") && strings.TrimSpace(line) != "" {
			all = append(all, strings.TrimSpace(line))
		}
	}
	whole := map[netip.AddrPort][]byte{}
	for _, p := range packets(t, path) {
		if p.src.Port() == 53 || p.dst.Port() == 53 {
			all = append(all, "a name server is asked")
		}
		whole[p.src] = append(whole[p.src], p.payload...)
	}
	for _, stream := range whole {
		for _, word := range []string{forbiddenName, "forbidden", "HTTP/1.", "Host:", "nobody may read", originAddr.String(), string(originAddr.AsSlice()) + "\x01\xbb", string(originAddr.AsSlice()) + "\x00\x50"} {
			if bytes.Contains(stream, []byte(word)) {
				all = append(all, fmt.Sprintf("%q goes by", word))
			}
		}
		if bytes.HasPrefix(stream, []byte{5, 1, 0}) {
			all = append(all, "a SOCKS5 greeting goes by")
		}
	}
	return all
}

// Test 2: a bridge is blackholed during a download; requests go over the next one,
// and back when it works again.
func TestBlackhole(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2, "")
	l.honest()
	l.run("first", "")
	a, b := l.servers[0], l.servers[1]
	if err := l.client.fetch(t.Context(), 1000, patience); err != nil {
		t.Fatal(err)
	}
	if n := l.censor.traffic(b.addr); n.packets != 0 {
		t.Errorf("%d packets to the second bridge while the first works", n.packets)
	}
	d, err := l.client.ask(t.Context(), 100<<20|slowly)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- d.finish(ctx) }()
	eventually(t, "the download runs", func() bool { return d.got.Load() > 1<<20 })

	crowd := newCrowd(t, l.client, 20, 250*time.Millisecond, func() uint64 { return 20000 })
	after(t.Context(), 2*time.Second)
	blocked := time.Now()
	l.censor.block(a.addr, true)
	after(t.Context(), 15*time.Second)
	freed := time.Now()
	l.censor.block(a.addr, false)
	before := l.censor.traffic(a.addr).bytes
	back := eventually(t, "requests go over the first bridge again", func() bool {
		return l.censor.traffic(a.addr).bytes-before > 400_000
	})
	after(t.Context(), time.Second)
	over := time.Now()
	all := crowd.end()

	first, failed := summary(all, blocked, freed, false)
	t.Logf("while the first bridge is blackholed: %s", first)
	then, failed2 := summary(all, freed, over, false)
	t.Logf("after it was freed: %s; back on it after %.1f s", then, back.Seconds())
	if failed+failed2 > 0 {
		t.Errorf("%d requests failed", failed+failed2)
	}
	for _, r := range all {
		if r.begin.After(blocked) && r.took > scaled(10*time.Second, 5*time.Second) {
			t.Errorf("a request that began %.2f s after the blackholing took %v", r.begin.Sub(blocked).Seconds(), r.took)
		}
	}
	select {
	case err := <-ended:
		t.Logf("the download over the first bridge ended: %v", err)
		cancel()
	default:
		had := d.got.Load()
		eventually(t, "the download goes on", func() bool { return d.got.Load() > had })
		t.Logf("the download over the first bridge lives through 15 s of silence")
		cancel()
		<-ended
	}
}

// Test 3: each process is killed in turn while 100 clients make requests.
func TestKill(t *testing.T) {
	l := newLab(t, 2, isolated)
	l.run("first", isolated)
	a, b := l.servers[0], l.servers[1]
	child := func(x *box) func() {
		return func() {
			all := x.children()
			if len(all) == 0 {
				t.Errorf("box %s has no child process", x.name)
			}
			for _, pid := range all {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	again := func(x *box) func() { // as systemd's Restart=always
		return func() {
			x.kill()
			x.start()
		}
	}
	var crowd *crowd
	steps := []struct {
		name string
		do   func()
	}{
		{"the client's child", child(l.client)},
		{"the first server's child", child(a)},
		{"the second server's child", child(b)},
		{"the first server's box, for good", func() { a.kill() }},
		{"(the first server's box is back)", func() { a.start() }},
		{"the second server's box", again(b)},
		{"the client's box", func() {
			crowd.mu.Lock()
			crowd.killed = true
			crowd.mu.Unlock()
			again(l.client)()
		}},
	}
	each := 6 * time.Second
	if long() {
		each = 60 * time.Second / time.Duration(len(steps))
	}
	if err := l.client.fetch(t.Context(), 1000, patience); err != nil {
		t.Fatal(err)
	}
	crowd = newCrowd(t, l.client, 100, time.Second, func() uint64 { return 10000 })
	after(t.Context(), 3*time.Second)
	var begun, done []time.Time
	for _, s := range steps {
		begun = append(begun, time.Now())
		s.do()
		done = append(done, time.Now()) // on a busy machine a start takes its time
		after(t.Context(), each)
	}
	begun = append(begun, time.Now())
	all := crowd.end()
	for i, s := range steps {
		text, _ := summary(all, begun[i], begun[i+1], false)
		t.Logf("%s: %s", s.name, text)
		if text, failed := summary(all, done[i].Add(5*time.Second), begun[i+1], true); failed > 0 {
			t.Errorf("%s, more than 5 s after: %s", s.name, text)
		}
	}
}

// Test 4: reloads under load, every tenth of a broken file.
func TestReloads(t *testing.T) {
	l := newLab(t, 2, "")
	// Bridges that come and go: one to the same server, in this process, and one
	// with a child process.
	third := strings.Replace(l.bridges[0], "[bridge.a]", "[bridge.c]\nuser = \"x\"\npassword = \"y\"", 1) +
		"[[route]]\nto = \"never.example\"\nvia = \"c\"\n"
	fourth := "[bridge.d]\ntransport = \"webtunnel\"\naddress = \"192.0.2.1:443\"\nargs = { url = \"http://127.0.0.1:9/x\" }\n" +
		"[pt.child]\ntransports = [\"webtunnel\"]\nisolate = true\n" +
		"[[route]]\nto = \"never.example\"\nvia = \"d\"\n"
	l.run("first", "")
	reloads, pace := 40, 400*time.Millisecond
	if long() {
		reloads, pace = 100, 600*time.Millisecond
	}
	variants := []string{
		l.text("first", ""),
		l.text("spread", third),
		strings.Replace(l.text("fastest", fourth), "\"127.0.0.1:1080\"", "[\"127.0.0.1:1080\", \"127.0.0.1:1081\"]", 1),
		strings.Replace(l.text("first", "[[route]]\nto = \"never.example\"\nvia = \"block\"\n"), "http = \"127.0.0.1:8118\"", "http = \"127.0.0.1:8119\"", 1),
		strings.Replace(l.text("first", ""), "[limits]", "[limits]\nstagger = \"2s\"\nconnections = 5000", 1),
	}
	broken := []string{
		"[[route]\n",
		l.text("first", "[[route]]\nto = \"x.example\"\nvia = \"nowhere\"\n"),
		strings.Replace(l.text("first", ""), "8118", "1080", 1),
	}
	if err := l.client.fetch(t.Context(), 100_000, patience); err != nil {
		t.Fatal(err)
	}
	start := l.client.load()

	// Live downloads, over all of the time.
	var wg sync.WaitGroup
	var live atomic.Int64
	size := uint64(reloads) * uint64(pace/(50*time.Millisecond)) * (16 << 10)
	for i := range 5 {
		wg.Go(func() {
			if err := l.client.fetch(context.Background(), size|slowly, 5*time.Minute); err != nil {
				t.Errorf("live download %d broke: %v", i, err)
				return
			}
			live.Add(1)
		})
	}
	crowd := newCrowd(t, l.client, 20, 200*time.Millisecond, func() uint64 { return 30000 })
	begin := time.Now()
	good, bad := 0, 0
	var longest time.Duration
	children := 0
	i := 0
	every(t.Context(), pace, func() bool {
		text, wanted := variants[i%len(variants)], 0
		if i%10 == 9 {
			text, wanted = broken[i/10%len(broken)], 1
		}
		l.client.configure(text)
		before := time.Now()
		out, code := command(t, ptgate, "reload", "-c", l.client.file)
		if wanted == 1 && code == 1 {
			bad++
			// The command finds the process by the file, which can't be read now.
			syscall.Kill(l.client.pid(), syscall.SIGHUP)
		} else if code != wanted {
			t.Errorf("reload %d: exit code %d, want %d: %s", i, code, wanted, out)
		} else {
			good++
		}
		longest = max(longest, time.Since(before))
		if i%len(variants) == 2 && wanted == 0 {
			if c, err := l.client.openTarget(t.Context(), routes.Target{Name: "never.example", Port: 1}); err == nil {
				c.Close()
				t.Error("opened over a bridge that leads nowhere")
			}
			children = max(children, len(l.client.children()))
		}
		i++
		return i < reloads
	})
	l.client.configure(variants[0])
	must(t, ptgate, "reload", "-c", l.client.file)
	all := crowd.end()
	text, failed := summary(all, begin, time.Now(), false)
	t.Logf("%d good and %d refused reloads in %.1f s, the longest %v: %s", good, bad, time.Since(begin).Seconds(), longest.Round(time.Millisecond), text)
	if failed > 0 {
		t.Errorf("%d requests failed", failed)
	}
	wg.Wait()
	t.Logf("%d of 5 live downloads of %d MiB are complete and right", live.Load(), size>>20)
	if children == 0 {
		t.Error("the bridge with a child process never had one")
	}
	eventually(t, "the child of a bridge that is gone has ended", func() bool { return len(l.client.children()) == 0 })
	// A few carriers more or less are as they should be. Those that a busy moment
	// has opened go a minute after it.
	var now load
	took := within(t, 3*patience, "descriptors are back where they were", func() bool {
		now = l.client.load()
		return now.files <= start.files+4
	})
	t.Logf("descriptors and threads before %v, after %v (%.1f s later)", start, now, took.Seconds())
	if now.threads > start.threads+8 {
		t.Errorf("threads: %d before, %d after", start.threads, now.threads)
	}
}

// Test 5: the link is cut for 20 seconds.
func TestCut(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1, "")
	l.run("first", "")
	if err := l.client.fetch(t.Context(), 1000, patience); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const n = 5
	var live [n]*download
	ended := make(chan error, n)
	for i := range live {
		d, err := l.client.ask(ctx, 100<<20|slowly)
		if err != nil {
			t.Fatal(err)
		}
		live[i] = d
		go func() { ended <- d.finish(ctx) }()
	}
	eventually(t, "the downloads run", func() bool { return live[n-1].got.Load() > 100_000 })
	l.censor.set(func(c *censor) { c.cut = true })
	cut := time.Now()
	crowd := newCrowd(t, l.client, 10, 500*time.Millisecond, func() uint64 { return 5000 })
	after(t.Context(), 20*time.Second)
	l.censor.set(func(c *censor) { c.cut = false })
	back := time.Now()
	var had [n]int64
	for i, d := range live {
		had[i] = d.got.Load()
	}
	took := eventually(t, "new requests work", func() bool { return l.client.fetch(ctx, 5000, 10*time.Second) == nil })
	if took > atMost(3*time.Second) {
		t.Errorf("the first request after the cut took %v", took)
	}
	resumed := eventually(t, "the live streams go on", func() bool {
		for i, d := range live {
			if d.got.Load() <= had[i] {
				return len(ended) > 0
			}
		}
		return true
	})
	for len(ended) > 0 {
		t.Errorf("a live stream broke: %v", <-ended)
	}
	after(t.Context(), 3*time.Second)
	end := time.Now()
	all := crowd.end()
	during, _ := summary(all, cut, back, false)
	then, failed := summary(all, back, end, false)
	t.Logf("new requests work %v after the link is back; %d live streams go on %v after", took.Round(time.Millisecond), n, resumed.Round(100*time.Millisecond))
	t.Logf("requests during the cut: %s", during)
	t.Logf("requests after it: %s", then)
	if failed > 0 {
		t.Errorf("%d requests after the cut failed", failed)
	}
	for _, r := range all {
		if !r.begin.Before(back) && r.took > atMost(3*time.Second) {
			t.Errorf("a request that began %v after the cut took %v", r.begin.Sub(back), r.took)
		}
	}
	cancel()
	for range n {
		<-ended
	}
}

// Test 6: mixed load and random faults. No request may fail but those whose server is
// killed under them; no byte may be wrong, and all works when the faults end.
func TestMixed(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("PTGATE_LAB_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PTGATE_LAB_SEED=%d PTGATE_LAB=%v", seed, duration(t))
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLab(t, 2, isolated)
	l.run("fastest", isolated)
	boxes := append([]*box{l.client}, l.servers...)
	if err := l.client.fetch(t.Context(), 100_000, patience); err != nil {
		t.Fatal(err)
	}
	var start []load
	for _, b := range boxes {
		start = append(start, b.load())
	}
	small := newCrowd(t, l.client, 20, 500*time.Millisecond, func() uint64 { return rand.Uint64N(50000) })
	bulk := newCrowd(t, l.client, 4, time.Second, func() uint64 { return 1<<20 + rand.Uint64N(8<<20) })
	quietly := newCrowd(t, l.client, 10, time.Second, func() uint64 { return (100_000 + rand.Uint64N(1<<20)) | slowly })

	ctx, cancel := context.WithTimeout(t.Context(), duration(t))
	defer cancel()
	begin := time.Now()
	count := map[string]int{}
	server := func() *box { return l.servers[r.IntN(len(l.servers))] }
	each := func(what rules, d time.Duration) {
		l.censor.set(func(c *censor) { c.each = what })
		after(ctx, d)
		l.censor.set(func(c *censor) { c.each = rules{} })
	}
	// A server that is about to stop still takes requests; what does not end in time is
	// reset when it ends, or when it is back and does not know the session.
	const drainTime = 10 * time.Second // as the servers have it
	type kill struct {
		begun, ended time.Time
		server       netip.Addr
	}
	var killed []kill
	end := func(x *box, stop func()) {
		k := kill{begun: time.Now(), server: x.addr}
		stop()
		k.ended = time.Now()
		killed = append(killed, k)
		x.start()
	}
	faults := []struct {
		name string
		do   func()
	}{
		{"cut", func() {
			l.censor.set(func(c *censor) { c.cut = true })
			after(ctx, time.Duration(r.IntN(5000))*time.Millisecond)
			l.censor.set(func(c *censor) { c.cut = false })
		}},
		{"block", func() {
			x := server()
			l.censor.block(x.addr, true)
			after(ctx, time.Duration(r.IntN(8000))*time.Millisecond)
			l.censor.block(x.addr, false)
		}},
		{"no new connections", func() {
			x := server()
			l.censor.set(func(c *censor) { c.dial[x.addr] = true })
			after(ctx, time.Duration(r.IntN(8000))*time.Millisecond)
			l.censor.set(func(c *censor) { c.dial[x.addr] = false })
		}},
		{"reset", func() { l.censor.resetAll(server().addr) }},
		{"delay", func() { l.censor.set(func(c *censor) { c.delay = time.Duration(r.IntN(150)) * time.Millisecond }) }},
		{"throttle", func() {
			l.censor.set(func(c *censor) { c.rate = 100_000 + r.IntN(2_000_000) })
			after(ctx, time.Duration(r.IntN(5000))*time.Millisecond)
			l.censor.set(func(c *censor) { c.rate = 0 })
		}},
		{"kill a child", func() {
			x := boxes[r.IntN(len(boxes))]
			for _, pid := range x.children() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}},
		{"kill a server", func() {
			x := server()
			end(x, x.kill)
		}},
		{"restart a server", func() { // for what does not end within its drain, the same
			x := server()
			end(x, x.stop)
		}},
		{"freeze", func() {
			each(rules{freeze: 16<<10 + r.IntN(1<<20)}, time.Duration(r.IntN(8000))*time.Millisecond)
		}},
		{"age", func() {
			each(rules{age: time.Duration(1000+r.IntN(5000)) * time.Millisecond}, time.Duration(r.IntN(8000))*time.Millisecond)
		}},
		{"silence", func() {
			fate := []fate{tooQuiet, wasReset}[r.IntN(2)]
			each(rules{silence: time.Duration(1000+r.IntN(10_000)) * time.Millisecond, silenced: fate}, 12*time.Second)
		}},
		{"throttle each", func() {
			each(rules{rate: 64<<10 + r.IntN(256<<10)}, time.Duration(r.IntN(8000))*time.Millisecond)
		}},
		{"number and rate", func() {
			each(rules{alive: 1 + r.IntN(4), opened: 1 + r.IntN(3), window: 5 * time.Second}, time.Duration(r.IntN(8000))*time.Millisecond)
		}},
		{"reload", func() { syscall.Kill(boxes[r.IntN(len(boxes))].pid(), syscall.SIGHUP) }},
	}
	every(ctx, 1500*time.Millisecond, func() bool {
		f := faults[r.IntN(len(faults))]
		f.do()
		count[f.name]++
		return ctx.Err() == nil
	})
	l.calm()
	calm := time.Now()
	for _, b := range l.servers { // one with fresh keys only in its memory would show here
		if len(b.pids()) == 0 {
			b.start()
		}
	}
	recovered := eventually(t, "all works again", func() bool { return l.client.fetch(t.Context(), 5000, 10*time.Second) == nil })
	after(t.Context(), 5*time.Second)
	for _, x := range []struct {
		name string
		c    *crowd
	}{{"small", small}, {"bulk", bulk}, {"slow", quietly}} {
		all := x.c.end()
		text, _ := summary(all, begin, calm, false)
		t.Logf("%s requests among faults: %s", x.name, text)
		broken := 0
		for _, r := range all {
			end := r.begin.Add(r.took)
			excused := slices.ContainsFunc(killed, func(k kill) bool {
				reset := min(k.ended.Sub(k.begun), drainTime) - time.Second
				return r.begin.Before(k.ended) && end.After(k.begun.Add(reset)) && (k.server == r.via || !r.via.IsValid())
			})
			if r.err != nil && !excused {
				if broken++; broken <= 3 {
					t.Errorf("%s: a request from %.1f s to %.1f s, whose server lived: %v", x.name, r.begin.Sub(begin).Seconds(), end.Sub(begin).Seconds(), r.err)
					for _, k := range killed {
						if r.begin.Sub(k.ended) < time.Minute && k.begun.Before(end) {
							t.Logf("  stopped from %.1f s to %.1f s: %v, the request's is %v", k.begun.Sub(begin).Seconds(), k.ended.Sub(begin).Seconds(), k.server, r.via)
						}
					}
				}
			}
		}
		if text, failed := summary(all, calm.Add(5*time.Second), time.Now(), false); failed > 0 {
			t.Errorf("%s requests after the last fault: %s", x.name, text)
		}
	}
	t.Logf("%v", l.censor.tally(begin))
	t.Logf("faults %v, %d flows reset; all works %v after the last", count, l.censor.resets, recovered.Round(time.Millisecond))
	for i, b := range boxes {
		var now load
		// Each bridge may have as many carriers as the load has called for.
		eventually(t, "box "+b.name+" has let go of its descriptors", func() bool {
			now = b.load()
			return now.files <= start[i].files+16
		})
		t.Logf("box %s: descriptors and threads before %v, after %v", b.name, start[i], now)
		if now.threads > start[i].threads+16 {
			t.Errorf("box %s: threads %d before, %d after", b.name, start[i].threads, now.threads)
		}
	}
}
