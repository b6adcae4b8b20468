package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/integration/ports"
)

// slowPT is the server side of a pluggable transport that asks the test at addr
// before it says that it is ready, and again before it closes its port.
func slowPT(addr string) {
	test, err := net.Dial("tcp", addr)
	if err != nil {
		os.Exit(90)
	}
	ask := func(what string) <-chan struct{} {
		may := make(chan struct{})
		fmt.Fprintln(test, what)
		go func() {
			test.Read(make([]byte, 1))
			close(may)
		}()
		return may
	}
	closed := make(chan struct{}) // by signal or end of input, as pt-spec has it
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		<-interrupts
		close(closed)
	}()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		interrupts <- os.Interrupt
	}()
	select {
	case <-ask("start"):
	case <-closed:
		os.Exit(0)
	}
	name, bind, _ := strings.Cut(os.Getenv("TOR_PT_SERVER_BINDADDR"), "-")
	ln, err := net.Listen("tcp", bind)
	if err != nil {
		os.Exit(91)
	}
	fmt.Printf("VERSION 1\nSMETHOD %s %s\nSMETHODS DONE\n", name, ln.Addr())
	<-closed
	<-ask("stop")
	ln.Close()
	os.Exit(0)
}

// atOnce runs f, which waits for nothing that the test holds up.
func atOnce[T any](t testing.TB, f func() T) (got T) {
	t.Helper()
	done := make(chan T, 1)
	go func() { done <- f() }()
	select {
	case got = <-done:
	case <-time.After(time.Minute):
		t.Fatal("it waits")
	}
	return got
}

// While a gateway stops it still says what is live.
func TestStatusWhileStopping(t *testing.T) {
	server, b := far(t, "")
	near := start(t, "client", fmt.Sprintf(nearEnd, b))
	c := mustAsk(t, near, origin(t, echo))
	c.Write([]byte("x")) // what comes back has gone all the way
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 2)
	go func() { stopped <- near.stop() }()
	for near.Status().State != gateway.Stopping {
		runtime.Gosched()
	}
	if s := near.Status(); s.Active != 1 || len(s.Bridges) != 1 || s.Bridges[0].Active != 1 {
		t.Errorf("the near end while stopping: %+v", s)
	}
	go func() { stopped <- server.stop() }()
	for server.Status().State != gateway.Stopping {
		runtime.Gosched()
	}
	s := server.Status()
	for end := time.Now().Add(time.Minute); s.Serve[0].Active == 2 && time.Now().Before(end); s = server.Status() {
		runtime.Gosched() // the client gets the list of ways
	}
	if len(s.Serve) != 1 || s.Serve[0].Clients < 1 || s.Serve[0].Active != 1 {
		t.Errorf("the far end while stopping: %+v", s)
	}
	roundTrip(t, c, 1<<10)
	for range 2 {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
}

// A script goes through each list, also where there is nothing in it.
func TestStatusHasLists(t *testing.T) {
	g := start(t, "client", "[listen]\nmixed = [\"127.0.0.1:0\"]\n[[route]]\nto = \"*\"\nvia = \"direct\"\n")
	b, err := json.Marshal(g.Status())
	if err != nil || strings.Contains(string(b), ":null") {
		t.Errorf("%s, error %v", b, err)
	}
}

// The status and the log tell the same numbers: both are made from the same book.
func TestOneBook(t *testing.T) {
	closed := ports.Free(t)
	farBox, b := far(t, "")
	text := strings.Replace(fmt.Sprintf(nearEnd, b), "[[route]]\n", "[[route]]\nto = \".blocked.example\"\nvia = \"block\"\n"+
		"[bridge.dead]\n"+strings.Replace(b, "127.0.0.1:", "127.0.0.3:", 1)+"[[route]]\nto = \"dead.example\"\nvia = \"dead\"\n[[route]]\n", 1)
	near := start(t, "client", text)
	o := origin(t, echo)
	for range 3 {
		roundTrip(t, mustAsk(t, near, o), 1<<10)
	}
	live := mustAsk(t, near, o)
	live.Write([]byte("x"))
	if _, err := io.ReadFull(live, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	const times = 40
	for range times {
		for _, addr := range []string{"a.blocked.example:1", closed} {
			if _, err := ask(t, near, addr); err == nil {
				t.Fatalf("%s is no error", addr)
			}
		}
		c, err := net.Dial("tcp", near.Addresses(inbound.SOCKS5)[0])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		io.Copy(io.Discard, c)
		c.Close()
	}
	for range 2 {
		if _, err := ask(t, near, "dead.example:1"); err == nil {
			t.Fatal("a dead bridge is no error")
		}
	}

	s := near.Status()
	for s.Active != 1 || s.Bridges[0].Active != 1 { // the others end beside this
		runtime.Gosched()
		s = near.Status()
	}
	if got := values(s); got["relays"] != 1 || got["bridge_streams"] != 1 || got["bridge_carriers"] == 0 {
		t.Errorf("of one connection there is %v", got)
	}
	live.Close()
	near.stop()
	farBox.stop()
	s = near.Status()
	got := values(s)
	for name, want := range map[string]int64{
		"opened": 4, "relays": s.Active, "up_bytes": s.Up, "down_bytes": s.Down, "bridge_in_bytes": s.Bridges[0].In, "bridge_out_bytes": s.Bridges[0].Out,
		"bridge_streams": s.Bridges[0].Active, "bridge_carriers": int64(s.Bridges[0].Carriers),
		"refused": 2*times + 2, "foreign": times, "bridge_failed": 1,
	} {
		if got[name] != want {
			t.Errorf("%s: %d, want %d", name, got[name], want)
		}
	}
	if s.Up < 3<<10 || s.Bridges[0].In == 0 {
		t.Errorf("%d bytes up, %d over the bridge", s.Up, s.Bridges[0].In)
	}
	far := values(farBox.Status())
	if far["exit_refused"] != times || far["exit_opened"] != 4 || far["serve_in_bytes"] == 0 {
		t.Errorf("the far end: %v", far)
	}
	near.log.add(t, got)
	farBox.log.add(t, far)
}

// values adds up the outcomes of a status by name.
func values(s gateway.Status) map[string]int64 {
	n := map[string]int64{}
	for _, v := range s.Outcomes {
		n[v.Name] += v.Value
	}
	return n
}

// add holds the log's lines against the numbers of the outcomes that have lines.
func (l *testLog) add(t *testing.T, got map[string]int64) {
	t.Helper()
	said := l.sums()
	for _, r := range outcome.Rows() {
		if r.Message != "" && r.Level >= slog.LevelInfo && said[r.Message] != got[r.Name] {
			t.Errorf("%s: the lines add up to %d, the number is %d", r.Name, said[r.Message], got[r.Name])
		}
	}
}

// The status page runs beside the fronts, is one of the gateway's own addresses, and moves
// with a reload.
func TestAdmin(t *testing.T) {
	_, b := far(t, "")
	text := fmt.Sprintf(nearEnd, b)
	near := start(t, "client", "[admin]\nlisten = \"127.0.0.1:0\"\n"+text)
	ready := func() (code int) {
		t.Helper()
		r, err := http.Get("http://" + near.Status().Admin[0] + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	if got := ready(); got != http.StatusServiceUnavailable {
		t.Errorf("before a bridge was needed: %d", got)
	}
	roundTrip(t, mustAsk(t, near, origin(t, echo)), 1<<10)
	if got := ready(); got != http.StatusOK {
		t.Errorf("a bridge worked: %d", got)
	}
	first := near.Status().Admin[0]
	for _, addr := range append(near.Addresses(inbound.SOCKS5), near.Addresses(inbound.HTTP)...) {
		if addr == first {
			t.Errorf("%s is a front, too", addr)
		}
	}

	socket := filepath.Join(t.TempDir(), "s")
	if err := near.Reload(loadText(t, near.path, fmt.Sprintf("[admin]\nlisten = [\"127.0.0.2:0\", \"unix:%s\"]\nsocket_mode = \"660\"\n", socket)+text)); err != nil {
		t.Fatal(err)
	}
	if _, err := http.Get("http://" + first + "/readyz"); err == nil {
		t.Error("the page is still at its old address")
	}
	if got := ready(); got != http.StatusOK {
		t.Errorf("after a reload: %d", got)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 || near.Status().Admin[1] != "unix:"+socket {
		t.Errorf("the Unix socket: %v, %v", info, err)
	}
	if err := near.Reload(loadText(t, near.path, "[admin]\nlisten = \"\"\n"+text)); err != nil || len(near.Status().Admin) != 0 || !strings.Contains(near.Status().NoAdmin, "turns it off") {
		t.Errorf("turned off: %v, %v", err, near.Status().Admin)
	}
}

// Where another program has the default port, there is no page, and all else works.
func TestAdminPortTaken(t *testing.T) {
	// A program that has it for a moment only, such as one of the tests of another package,
	// could be gone when the gateway looks. One that has it for long does what this does.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if ln, err := net.Listen("tcp", "127.0.0.1:9180"); err == nil {
			defer ln.Close()
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	near := start(t, "client", "[listen]\nmixed = \"127.0.0.1:0\"\n[[route]]\nto = \"*\"\nvia = \"block\"\n")
	if s := near.Status(); len(s.Admin) != 0 || s.State != gateway.Running || !s.Ready || !strings.Contains(s.NoAdmin, "127.0.0.1:9180") || !strings.Contains(s.NoAdmin, "listen in [admin]") {
		t.Errorf("%+v", s)
	}
	near.stop()
	if n := near.log.sums()["there is no status page: say where it may be with listen in [admin], or turn it off with listen = \"\""]; n != 1 {
		t.Errorf("%d lines say that there is no page", n)
	}
}

// Transports behind a web server announce an address that is not theirs, and is the same
// for all with one url. The status and the metrics tell them apart.
func TestStatusOfPlaceholders(t *testing.T) {
	var text strings.Builder
	var want []string
	for range 2 {
		bind := ports.Free(t)
		fmt.Fprintf(&text, "[[serve]]\ntransport = \"webtunnel\"\nbind = %q\noptions = { url = \"https://www.example.com/path\" }\n", bind)
		want = append(want, bind)
	}
	b := start(t, "server", "[admin]\nlisten = \"127.0.0.1:0\"\n"+text.String()+"[pt.apart]\nisolate = true\ntransports = [\"webtunnel\"]\n")
	s := b.Status()
	for i, x := range s.Serve {
		if x.Address != want[i] {
			t.Errorf("it is said to be at %s, and is at %s", x.Address, want[i])
		}
	}
	r, err := http.Get("http://" + s.Admin[0] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	metrics, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK || strings.Count(string(metrics), "\nptgate_serve_up{") != 2 {
		t.Errorf("%s, %v: %s", r.Status, err, metrics)
	}
}
