//go:build integration

// Package lab holds ptgate against a hostile network: boxes in network namespaces
// of their own whose packets all pass through a censor, a program of this test that
// drops, delays, slows down, forges resets and looks into what it forwards.
//
// It needs root, curl, tshark, nginx and haproxy. With PTGATE_LAB (a Go duration) the
// mixed load runs for that time, and every other test is longer, too, and asserts
// what it measures. PTGATE_LAB_SEED sets which faults the mixed load meets.
package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptgate/gateway/session"
	"ptgate/integration/harness"
	"ptgate/routes"
)

// ptgate is the path of the program; TestMain sets it.
var ptgate string

func TestMain(m *testing.M) {
	if dir := os.Getenv(meekRole); dir != "" {
		fmt.Fprintln(os.Stderr, runMeek(dir))
		os.Exit(1)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	// The scenarios wait more than they work. The long versions measure, too: one at
	// a time.
	parallel := "6"
	if long() {
		parallel = "1"
	}
	if err := flag.Set("test.parallel", parallel); err != nil { // -parallel on the command line counts more
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return harness.Main(m, &ptgate)
}

const patience = harness.Patience

// What is shared has a short name here.
var (
	must    = harness.Must
	command = harness.Command
)

// every calls f at once and then at the interval, until ctx ends or f says so.
func every(ctx context.Context, interval time.Duration, f func() (more bool)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// after waits, or less when ctx ends.
func after(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) (took time.Duration) {
	t.Helper()
	return within(t, patience, what, ok)
}

func within(t testing.TB, patience time.Duration, what string, ok func() bool) (took time.Duration) {
	t.Helper()
	begin := time.Now()
	if !harness.Eventually(patience, ok) {
		t.Fatalf("%s: not within %v", what, patience)
	}
	return time.Since(begin)
}

// A box is a network namespace, with at most one `ptgate run` in it.
type box struct {
	t    *testing.T
	name string
	ns   string
	addr netip.Addr
	dir  string
	file string // ptgate's configuration

	authority *authority // of its web server; nil: clients need not trust any

	log *harness.Transcript // over all its starts

	mu      sync.Mutex
	process *harness.Process // nil: it has never run
}

const hosts = "127.0.0.1 localhost\n10.77.0.21 " + forbiddenName + "\n"

// boxes counts the boxes. Tests that run at the same time have boxes of the same names.
var boxes atomic.Int64

// newBox makes the namespace. Nothing of it may be left over at the end.
func newBox(t *testing.T, name string, last byte) *box {
	t.Helper()
	b := &box{t: t, name: name, ns: fmt.Sprintf("ptg%d-%d-%s", os.Getpid(), boxes.Add(1), name),
		addr: netip.AddrFrom4([4]byte{10, 77, 0, last}), log: harness.NewTranscript(t, "box "+name)}
	var err error
	if b.dir, err = os.MkdirTemp("", "ptl-"); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join("/etc/netns", b.ns)
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	// Each box has names of its own; to ask a name server would show at the border.
	for name, text := range map[string]string{"hosts": hosts, "resolv.conf": "nameserver 10.77.0.21\noptions timeout:1 attempts:1\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "ip", "netns", "add", b.ns)
	t.Cleanup(func() {
		b.stop()
		for _, pid := range b.pids() {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			t.Errorf("box %s: process %d is left over: %q", b.name, pid, name)
			syscall.Kill(pid, syscall.SIGKILL)
		}
		exec.Command("ip", "netns", "del", b.ns).Run()
		os.RemoveAll(etc)
		os.RemoveAll(b.dir)
		b.log.Healthy(t, "box "+b.name)
	})
	return b
}

// pids lists the processes in the box.
func (b *box) pids() (all []int) {
	out, err := exec.Command("ip", "netns", "pids", b.ns).Output()
	if err != nil {
		return nil
	}
	for _, x := range strings.Fields(string(out)) {
		pid, _ := strconv.Atoi(x)
		all = append(all, pid)
	}
	return all
}

// programs lists the processes of the box that are ptgate.
func (b *box) programs() []int {
	return slices.DeleteFunc(b.pids(), func(pid int) bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err != nil || strings.TrimSpace(string(name)) != "ptgate"
	})
}

// children lists the processes of the box but for ptgate itself.
func (b *box) children() []int {
	main := b.pid()
	return slices.DeleteFunc(b.pids(), func(pid int) bool { return pid == main })
}

func (b *box) pid() int { return b.last().Cmd.Process.Pid }

// configure writes the box's configuration.
func (b *box) configure(text string) {
	b.t.Helper()
	b.file = filepath.Join(b.dir, "ptgate.toml")
	if err := os.WriteFile(b.file, []byte(fmt.Sprintf("state_dir = %q\n", filepath.Join(b.dir, "state"))+text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// command is the command line of argv inside the box.
func (b *box) command(argv ...string) []string {
	return append([]string{"ip", "netns", "exec", b.ns}, argv...)
}

// start runs ptgate and returns when it is ready.
func (b *box) start() {
	b.t.Helper()
	eventually(b.t, "the ptgate of box "+b.name+" from before has ended", func() bool { return len(b.programs()) == 0 })
	argv := b.command(ptgate, "run", "-c", b.file)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}
	p := harness.StartTelling(b.t, "box "+b.name, cmd, b.log, b.dir)
	b.mu.Lock()
	b.process = p
	b.mu.Unlock()
	p.AwaitReady()
}

// last is the process of the last start; nil: there was none.
func (b *box) last() *harness.Process {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.process
}

// stop ends ptgate in order.
func (b *box) stop() {
	if p := b.last(); p != nil {
		p.Stop()
	}
}

// kill ends ptgate as a crash does, and waits for all that it ran to be gone.
func (b *box) kill() {
	b.t.Helper()
	p := b.last()
	p.Signal(syscall.SIGKILL)
	<-p.Exited
	eventually(b.t, "box "+b.name+" is empty after kill -9", func() bool { return len(b.pids()) == 0 })
}

// A load is what a process uses.
type load struct{ files, threads int }

func (b *box) load() (l load) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", b.pid()))
	return load{harness.Descriptors(b.t, b.pid()), len(tasks)}
}

// The origin's protocol: eight bytes of size and eight of seed, big-endian, come
// in; that many bytes of the seed's stream go out, in pieces with pauses where the
// highest bit of the size is set.
const (
	originPort    = 7000
	slowly        = 1 << 63
	forbiddenName = "forbidden.example"
)

var originAddr = netip.MustParseAddr("10.77.0.21")

func content(seed uint64) io.Reader {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// newOrigin runs the origin in a box of its own.
func newOrigin(t *testing.T) *box {
	t.Helper()
	b := newBox(t, "origin", 21)
	return b
}

// asking is how a request begins. By this ptgate sees that it may be made twice, as those
// of a browser.
const asking = "GET "

// serveOrigin answers in the origin's box until the test's end.
func serveOrigin(t *testing.T, b *box) {
	t.Helper()
	serveTCP(t, b, originPort, func(ctx context.Context, c net.Conn) {
		var head [len(asking) + 16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		size, seed := binary.BigEndian.Uint64(head[len(asking):]), binary.BigEndian.Uint64(head[len(asking)+8:])
		r := content(seed)
		if d, ok := downloads.Load(seed); ok {
			from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
			d.(*download).via.Store(&from)
		}
		if size&slowly == 0 {
			io.CopyN(c, r, int64(size))
			return
		}
		left := int64(size &^ slowly)
		every(ctx, 50*time.Millisecond, func() bool {
			n, err := io.CopyN(c, r, min(left, 16<<10))
			left -= n
			return err == nil && left > 0
		})
	})
	serveUploads(t, b)
	servePolls(t, b)
}

// serveTCP accepts in a box until the test's end.
func serveTCP(t *testing.T, b *box, port int, serve func(context.Context, net.Conn)) {
	t.Helper()
	var ln net.Listener
	if err := b.within(func() (err error) {
		ln, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", b.addr, port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	harness.Serve(t, ln, func(c net.Conn) { serve(ctx, c) })
	t.Cleanup(cancel)
}

// dial opens a connection from inside a box.
func (b *box) dial(ctx context.Context, addr string) (c net.Conn, err error) {
	err = b.within(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, "tcp4", addr)
		return err
	})
	return c, err
}

var seeds atomic.Uint64

// open asks the box's SOCKS5 front for the origin.
func (b *box) open(ctx context.Context) (net.Conn, error) {
	return b.openTarget(ctx, routes.Target{Addr: originAddr, Port: originPort})
}

func (b *box) openTarget(ctx context.Context, target routes.Target) (net.Conn, error) {
	c, err := b.dial(ctx, "127.0.0.1:1080")
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err = session.Handshake(c, target, session.Auth{})
	stop()
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Nothing excuses wrong bytes. A clean end that comes early is just as bad, but
// for one case: a ptgate that is killed, whose sockets the kernel ends for it.
var (
	errWrong = errors.New("wrong bytes")
	errShort = errors.New("a clean end that comes early")
)

// A download is one request to the origin, whose bytes are compared as they come.
type download struct {
	seed uint64
	c    net.Conn
	want io.Reader
	left int64
	got  atomic.Int64
	gaps gaps
	via  atomic.Pointer[netip.Addr] // the server that the origin has seen; nil: none yet
}

var downloads sync.Map // by seed

// ask begins a download of size bytes.
func (b *box) ask(ctx context.Context, size uint64) (*download, error) {
	d := &download{left: int64(size &^ slowly)}
	d.gaps.mark()
	c, err := b.open(ctx)
	if err != nil {
		return nil, err
	}
	d.seed = seeds.Add(1)
	d.c, d.want = c, content(d.seed)
	downloads.Store(d.seed, d)
	head := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte(asking), size), d.seed)
	if _, err := c.Write(head); err != nil {
		downloads.Delete(d.seed)
		c.Close()
		return nil, err
	}
	return d, nil
}

// finish reads to the end, which is where it ought to be.
func (d *download) finish(ctx context.Context) error {
	defer downloads.Delete(d.seed)
	defer d.c.Close()
	defer context.AfterFunc(ctx, func() { d.c.SetDeadline(time.Unix(1, 0)) })()
	buf, want := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, err := d.c.Read(buf)
		d.gaps.mark()
		if int64(n) > d.left {
			return fmt.Errorf("%w: more than there are", errWrong)
		}
		io.ReadFull(d.want, want[:n])
		if !bytes.Equal(buf[:n], want[:n]) {
			return errWrong
		}
		d.left -= int64(n)
		d.got.Add(int64(n))
		switch {
		case err == io.EOF && d.left > 0:
			return errShort
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// fetch is a whole request. It does not wait for more than limit.
func (b *box) fetch(ctx context.Context, size uint64, limit time.Duration) error {
	_, err := b.fetchVia(ctx, size, limit)
	return err
}

// fetchVia tells over which server the request went, too, if it got so far.
func (b *box) fetchVia(ctx context.Context, size uint64, limit time.Duration) (via netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	d, err := b.ask(ctx, size)
	if err != nil {
		return via, err
	}
	err = d.finish(ctx)
	if a := d.via.Load(); a != nil {
		via = *a
	}
	return via, err
}

// A result is one request of a crowd.
type result struct {
	begin time.Time
	took  time.Duration
	via   netip.Addr // of the server; the zero one: the origin was not reached
	err   error
}

// A crowd is many clients that make one request after the other.
type crowd struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex
	all  []result

	killed bool // the clients' own ptgate has been
}

// newCrowd starts n clients, each with a pause between its requests. They end with
// stop; a request under way is waited for.
func newCrowd(t *testing.T, b *box, n int, pause time.Duration, size func() uint64) *crowd {
	ctx, stop := context.WithCancel(context.Background())
	c := &crowd{stop: stop}
	for i := range n {
		c.wg.Go(func() {
			after(ctx, pause*time.Duration(i)/time.Duration(n))
			every(ctx, pause, func() bool {
				if ctx.Err() != nil {
					return false
				}
				begin := time.Now()
				via, err := b.fetchVia(context.Background(), size(), 90*time.Second)
				c.mu.Lock()
				defer c.mu.Unlock()
				c.all = append(c.all, result{begin, time.Since(begin), via, err})
				if errors.Is(err, errWrong) || errors.Is(err, errShort) && !c.killed {
					t.Errorf("a request got %v", err)
				}
				return true
			})
		})
	}
	t.Cleanup(func() { c.end() })
	return c
}

// end stops the clients and gives all results by when they began.
func (c *crowd) end() []result {
	c.stop()
	c.wg.Wait()
	slices.SortFunc(c.all, func(a, b result) int { return a.begin.Compare(b.begin) })
	return c.all
}

// summary says what became of the requests that began within [from, to), or only
// of those that ended there, too.
func summary(all []result, from, to time.Time, within bool) (text string, failed int) {
	var took []time.Duration
	var last time.Time
	why := map[string]int{}
	for _, r := range all {
		if r.begin.Before(from) || !r.begin.Before(to) || within && r.begin.Add(r.took).After(to) {
			continue
		}
		took = append(took, r.took)
		if r.err != nil {
			failed++
			last = r.begin
			if n, ok := errors.AsType[syscall.Errno](r.err); ok {
				why[n.Error()]++
			} else {
				why[r.err.Error()]++
			}
		}
	}
	if len(took) == 0 {
		return "no requests", 0
	}
	slices.Sort(took)
	text = fmt.Sprintf("%d requests, %d failed, median %v, 99%% %v, longest %v", len(took), failed,
		took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	if failed > 0 {
		text += fmt.Sprintf(", the last that failed began %.2f s after; %v", last.Sub(from).Seconds(), why)
	}
	return text, failed
}
