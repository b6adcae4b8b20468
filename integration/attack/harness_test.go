//go:build integration

// Package attack plays those who mean harm to the built ptgate: a client that has the
// bridge line, a far end, a program on the same machine. Each test is named after what it
// tries. It looks at what the attacked box uses, and whether a bystander is served.
//
// The attackers are parts of the tests, and speak the real wire format (wire_test.go). A
// client attacks from the address attackerHost; the bystander's gateway has another one.
//
// Nothing here asserts how fast something is, but for wide bounds: the machine may be busy.
package attack

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ptgate/adapter/socks5"
	"ptgate/integration/harness"
	"ptgate/integration/ports"
)

// ptgate is the path of the program; TestMain sets it.
var ptgate string

func TestMain(m *testing.M) { os.Exit(harness.Main(m, &ptgate)) }

const (
	patience = harness.Patience
	// attackerHost is the address that a malicious client comes from.
	attackerHost = "127.0.0.2"
	// back is how long after an attack everything has to be as before, on a busy machine.
	back = 30 * time.Second
	// memoryBack is the same for memory. A box that had none to give back during the attack
	// looks again after a minute at last.
	memoryBack = 75 * time.Second
)

// mostTranscript is how much of a box's log is kept: an attack on the log must not take the
// memory of the test.
const mostTranscript = 8 << 20

// A box is one `ptgate run`.
type box struct {
	*harness.Process
	t     testing.TB
	name  string
	file  string // its configuration
	first usage  // when it was ready
}

// start runs a box until the test ends, and returns when it is ready. The state directory
// is the test's.
func start(t testing.TB, name, text string) *box {
	t.Helper()
	dir, log := harness.Scratch(t), harness.NewTranscript(t, name)
	log.Most = mostTranscript
	b := &box{t: t, name: name, file: harness.Write(t, dir, name+".toml", "state_dir = \""+filepath.Join(dir, "state")+"\"\n"+text)}
	cmd := exec.Command(ptgate, "run", "-c", b.file)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	b.Process = harness.StartTelling(t, name, cmd, log, dir)
	t.Cleanup(func() {
		b.ends()
		b.Stop()
		log.Healthy(t, name)
	})
	b.AwaitReady()
	b.first = b.usage()
	return b
}

// ends says what each test costs each of its boxes, and checks the largest memory, unless
// the test has killed the box.
func (b *box) ends() {
	if !b.Running() {
		return
	}
	u := b.usage()
	b.t.Logf("%s in the end: %v; at first %v", b.name, u, b.first)
	if b.first.RSS > 0 && u.Peak-b.first.RSS > mostMemory {
		b.t.Errorf("%s has grown by %d MiB, want at most %d", b.name, (u.Peak-b.first.RSS)>>20, mostMemory>>20)
	}
}

// listens is the address of the nth listener of programs, from 0.
func (b *box) listens(nth int) string {
	b.t.Helper()
	b.Await(`msg=listening front=`)
	all := regexp.MustCompile(`msg=listening front=\S+ address=(\S+)`).FindAllStringSubmatch(b.Log.String(), -1)
	return all[nth][1]
}

// A usage is what a process uses.
type usage struct {
	RSS  int64 // bytes in memory now
	Peak int64 // the most since forgetPeak
	FDs  int
	CPU  time.Duration // so far
}

func (u usage) String() string {
	return fmt.Sprintf("%d MiB, at most %d MiB, %d descriptors, %v of processor time",
		u.RSS>>20, u.Peak>>20, u.FDs, u.CPU.Round(10*time.Millisecond))
}

// usage looks at the box.
func (b *box) usage() (u usage) {
	b.t.Helper()
	pid := b.Cmd.Process.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.t.Fatalf("%s is gone: %v", b.name, err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			u.RSS = kib << 10
		case "VmHWM:":
			u.Peak = kib << 10
		}
	}
	u.FDs = harness.Descriptors(b.t, pid)
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) > 12 {
		for _, ticks := range f[11:13] {
			n, _ := strconv.ParseInt(ticks, 10, 64)
			u.CPU += time.Duration(n) * (time.Second / 100)
		}
	}
	return u
}

// forgetPeak begins a new Peak.
func (b *box) forgetPeak() {
	os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", b.Cmd.Process.Pid), []byte("5"), 0)
}

// mostMemory is how much a box may grow under any one attacker.
const mostMemory = 256 << 20

// grewLittle checks the peak of the box since base.
func (b *box) grewLittle(base usage) {
	b.t.Helper()
	u := b.usage()
	b.t.Logf("%s: %v; before %v", b.name, u, base)
	if u.Peak-base.RSS > mostMemory {
		b.t.Errorf("%s has grown by %d MiB, want at most %d", b.name, (u.Peak-base.RSS)>>20, mostMemory>>20)
	}
}

// recovers checks that the box uses about as much as before: descriptors within limit after
// the attack, and memory within memoryBack.
func (b *box) recovers(base usage, limit time.Duration) {
	b.t.Helper()
	const memory, fds = 48 << 20, 8
	var u usage
	if !harness.Eventually(limit, func() bool { u = b.usage(); return u.FDs <= base.FDs+fds }) {
		b.t.Errorf("%s: %v, %v after the attack; before it: %v", b.name, u, limit, base)
		return
	}
	if !harness.Eventually(memoryBack, func() bool { u = b.usage(); return u.RSS <= base.RSS+memory }) {
		b.t.Errorf("%s: %v, %v after the attack; before it: %v", b.name, u, limit+memoryBack, base)
		return
	}
	b.t.Logf("%s afterwards: %v", b.name, u)
}

// settles waits until the box has next to nothing to do, for some seconds at most.
func (b *box) settles() {
	b.t.Helper()
	harness.Eventually(10*time.Second, func() bool {
		before := b.usage().CPU
		return !harness.Eventually(time.Second, func() bool { return b.usage().CPU-before > 200*time.Millisecond })
	})
}

// gauges are the names of what a box counts as open.
var gauges = []string{"connections", "relays", "bridge_streams", "serve_streams"}

// places is how many places of a box are taken.
func (b *box) places() (n int) {
	b.t.Helper()
	out, err := exec.Command(ptgate, "status", "--json", "-c", b.file).Output()
	var status struct {
		Outcomes []struct {
			Name  string
			Value int
		}
	}
	if err == nil {
		err = json.Unmarshal(out, &status)
	}
	if err != nil {
		b.t.Fatalf("status of %s: %v", b.name, err)
	}
	for _, o := range status.Outcomes {
		if slices.Contains(gauges, o.Name) {
			n += o.Value
		}
	}
	return n
}

// goroutines ends the box, and tells how many it had.
func (b *box) goroutines() int {
	before := len(b.Log.String())
	b.Cmd.Process.Signal(syscall.SIGQUIT)
	<-b.Exited
	return strings.Count(b.Log.String()[before:], "\ngoroutine ")
}

// A bridge is what a client needs of a far end that speaks obfs4.
type bridge struct{ address, cert string }

// startServer runs a server whose exit reaches loopback. more is the rest of its
// configuration.
func startServer(t testing.TB, more string) (*box, bridge) {
	t.Helper()
	addr, dir := ports.Free(t), filepath.Join(t.TempDir(), "pair")
	if out, err := exec.Command(ptgate, "pair", "--address", addr, "--out", dir).CombinedOutput(); err != nil {
		t.Fatalf("pair: %v\n%s", err, out)
	}
	server, err := os.ReadFile(filepath.Join(dir, "server.toml"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := os.ReadFile(filepath.Join(dir, "client.toml"))
	if err != nil {
		t.Fatal(err)
	}
	cert := regexp.MustCompile(`cert = "([^"]+)"`).FindSubmatch(client)[1]
	text := strings.Replace(string(server), `["private"]`, `[]`, 1)
	return start(t, "server", text+more), bridge{addr, string(cert)}
}

// startGateway runs a gateway with one port for programs, whose only bridge is b. more is
// the rest of its configuration.
func startGateway(t testing.TB, b bridge, more string) *box {
	t.Helper()
	return start(t, "gateway", fmt.Sprintf(`[bridge.far]
transport = "obfs4"
address = %q
args = { cert = %q, iat-mode = "0" }
[listen]
mixed = ["127.0.0.1:0"]
[[route]]
to = "*"
via = "far"
`, b.address, b.cert)+more)
}

// An origin is a destination.
type origin struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

// listen runs a destination until the test ends. serve gets each connection, and owns
// none: all are closed at the end of the test.
func listen(t testing.TB, serve func(net.Conn)) *origin {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{Listener: ln}
	o.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.conns = append(o.conns, c)
			o.mu.Unlock()
			o.wg.Go(func() { serve(c) })
		}
	})
	t.Cleanup(o.close)
	return o
}

func (o *origin) close() {
	o.Close()
	o.closeConns()
	o.wg.Wait()
}

// closeConns closes the connections that there are.
func (o *origin) closeConns() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.conns {
		c.Close()
	}
	o.conns = nil
}

func (o *origin) port() uint16 { return uint16(o.Addr().(*net.TCPAddr).Port) }

// Kinds of destinations.
func echo(c net.Conn) {
	io.Copy(c, c)
	c.Close()
}

// deaf does not read and does not write.
func deaf(c net.Conn) { c.(*net.TCPConn).SetReadBuffer(4 << 10) }

// loud writes as much as is taken.
func loud(c net.Conn) {
	b := make([]byte, 64<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// through asks the gateway at proxy for a connection to port on loopback.
func through(proxy string, port uint16, limit time.Duration) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", proxy, limit)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(limit))
	client := socks5.Client{Command: socks5.Connect, Addr: socks5.Addr{IP: loopback, Port: port}}
	if _, err := client.Do(c); err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// A bystander makes one request after the other through a gateway, to an echo of its own.
type bystander struct {
	t      testing.TB
	proxy  string
	origin *origin
	stop   chan struct{}
	wg     sync.WaitGroup

	mu   sync.Mutex
	took []time.Duration // of the requests since the last report
	errs []error
}

// requestLimit is how long a request of the bystander may take.
const requestLimit = 20 * time.Second

// newBystander begins to make requests through the gateway, until the test ends.
func newBystander(t testing.TB, proxy string) *bystander {
	b := &bystander{t: t, proxy: proxy, origin: listen(t, echo), stop: make(chan struct{})}
	b.wg.Go(func() {
		pause := time.NewTicker(20 * time.Millisecond)
		defer pause.Stop()
		for {
			begin := time.Now()
			err := b.request()
			b.mu.Lock()
			if err != nil {
				b.errs = append(b.errs, err)
			} else {
				b.took = append(b.took, time.Since(begin))
			}
			b.mu.Unlock()
			select {
			case <-b.stop:
				return
			case <-pause.C:
			}
		}
	})
	t.Cleanup(func() {
		close(b.stop)
		b.wg.Wait()
	})
	return b
}

func (b *bystander) request() error {
	c, err := through(b.proxy, b.origin.port(), requestLimit)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(requestLimit))
	var out, in [8]byte
	binary.BigEndian.PutUint64(out[:], uint64(time.Now().UnixNano()))
	if _, err := c.Write(out[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, in[:]); err != nil {
		return err
	}
	if in != out {
		return fmt.Errorf("%x came back for %x", in, out)
	}
	return nil
}

// A service is how the bystander was served in a phase.
type service struct {
	Good, Bad     int
	Median, Worst time.Duration
	Err           error // one of the errors
}

func (s service) String() string {
	text := fmt.Sprintf("%d of %d served, median %v, slowest %v", s.Good, s.Good+s.Bad,
		s.Median.Round(100*time.Microsecond), s.Worst.Round(100*time.Microsecond))
	if s.Err != nil {
		text += ": " + s.Err.Error()
	}
	return text
}

// report tells how the bystander was served since the last report.
func (b *bystander) report(phase string) (s service) {
	b.t.Helper()
	b.mu.Lock()
	took, errs := b.took, b.errs
	b.took, b.errs = nil, nil
	b.mu.Unlock()
	s.Good, s.Bad = len(took), len(errs)
	if slices.Sort(took); len(took) > 0 {
		s.Median, s.Worst = took[len(took)/2], took[len(took)-1]
	}
	if len(errs) > 0 {
		s.Err = errs[0]
	}
	b.t.Logf("bystander %s: %v", phase, s)
	return s
}

// served reports a phase in which every request must have been served. It first waits for
// at least n requests.
func (b *bystander) served(phase string, n int) service {
	b.t.Helper()
	harness.Eventually(3*patience, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.took)+len(b.errs) >= n
	})
	s := b.report(phase)
	if s.Bad > 0 || s.Good < n {
		b.t.Errorf("bystander %s: %v", phase, s)
	}
	return s
}
