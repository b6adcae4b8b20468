//go:build integration

// Package integration drives the built ptgate against real programs: transports
// from Debian and from the Tor Project, curl, git, ssh, nginx, Chromium, tor, and
// the kernel's network namespaces. It needs root, and test.sh installs the rest.
//
// Nothing waits for time to pass: a process is ready when it says so over
// NOTIFY_SOCKET, as it would to systemd, and has ended when the kernel says so.
package integration

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ptgate is the path of the program; TestMain sets it. It is built here, or the one that
// PTGATE_TEST_PROGRAM names.
var ptgate string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if len(os.Args) > 2 && os.Args[1] == withoutIPv6 {
		fmt.Fprintln(os.Stderr, refuseIPv6(os.Args[2:])) // it returns with an error only
		return 1
	}
	if len(os.Args) == 2 && os.Args[1] == slowPT {
		if err := runSlowPT(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	flag.Parse()
	flag.Set("test.parallel", "4") // what runs beside others waits more than it works
	if ptgate = os.Getenv("PTGATE_TEST_PROGRAM"); ptgate != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "ptgate-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ptgate = filepath.Join(dir, "ptgate")
	args := []string{"build", "-p", "2", "-o", ptgate}
	if os.Getenv("PTGATE_TEST_RACE") != "" {
		args = append(args, "-race") // by hand: slower, and every transcript is searched for races
	}
	cmd := exec.Command("go", append(args, "./cmd/ptgate")...)
	cmd.Dir = ".."
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build ptgate:", err)
		return 1
	}
	return m.Run()
}

// patience bounds every wait for something that ought to happen.
const patience = 60 * time.Second

// A transcript is what a process writes. Its methods may be called from any
// goroutine.
type transcript struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{} // closed at the next write
}

func newTranscript() *transcript { return &transcript{grown: make(chan struct{})} }

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.grown)
	l.grown = make(chan struct{})
	return l.text.Write(p)
}

func (l *transcript) String() string {
	text, _ := l.look()
	return text
}

func (l *transcript) look() (text string, grown <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String(), l.grown
}

// wait waits until the transcript matches, and returns the first match's groups.
func (l *transcript) wait(t testing.TB, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		text, grown := l.look()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-grown:
		case <-limit.C:
			t.Fatalf("no line matches %q within %v; there is:\n%s", pattern, patience, text)
		}
	}
}

// A setting says in what surroundings a box runs.
type setting struct {
	hosts string // its own hosts file; "": one with nothing but localhost
	names string // the address of its name server; "": one where nobody answers
	netns string // its network namespace, which brings its own hosts file
	env   []string

	// As systemd/ptgate.service runs it: as a user of its own, who may listen on ports
	// below 1024 where port is set, and whose /proc hides what others run.
	service, port bool

	noIPv6 bool // its kernel refuses IPv6 sockets
}

// A box is one `ptgate run`.
type box struct {
	t      *testing.T
	name   string
	dir    string // of its configuration
	file   string
	state  string
	cmd    *exec.Cmd
	log    *transcript
	exited chan struct{} // closed when it has been waited for

	// Never is what may not appear in the log: destinations and secrets.
	never []string
}

// scratch makes a directory with a short name: paths of sockets are limited.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ptg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// write writes a file into dir, readable for its owner alone.
func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// nobody is a user who owns nothing.
const nobody = "65534"

const plainHosts = "127.0.0.1 localhost\n"

// within returns the command line that runs argv in the setting. The boxes share
// the machine's network namespace unless they have their own, but never its
// hosts file, and never its name server: none of them may ask the outside.
func within(t testing.TB, s setting, argv []string) []string {
	t.Helper()
	if s.noIPv6 {
		own, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		argv = append([]string{own, withoutIPv6}, argv...)
	}
	if s.netns != "" {
		return append([]string{"ip", "netns", "exec", s.netns}, argv...)
	}
	dir := scratch(t)
	hosts := s.hosts
	if hosts == "" {
		hosts = plainHosts
	}
	script := `mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"`
	if s.service {
		script = `mount -t proc -o hidepid=invisible proc /proc && ` + script
		user := []string{"setpriv", "--reuid=" + nobody, "--regid=" + nobody, "--clear-groups"}
		if s.port {
			user = append(user, "--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service", "--no-new-privs")
		}
		argv = append(user, argv...)
	}
	return append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
		write(t, dir, "hosts", hosts), write(t, dir, "resolv.conf", "nameserver "+cmp.Or(s.names, "127.0.0.1")+"\n")}, argv...)
}

// prepare makes a box of a configuration, without starting it. Text may hold
// STATE for its state directory.
func prepare(t *testing.T, name, text string) *box {
	t.Helper()
	dir := scratch(t)
	b := &box{t: t, name: name, dir: dir, state: filepath.Join(dir, "state"), log: newTranscript()}
	b.file = write(t, dir, name+".toml", "state_dir = \""+b.state+"\"\n"+text)
	return b
}

// debugLog is the [log] table of most boxes here: whatever they say must keep
// the secrets out.
const debugLog = "[log]\nlevel = \"debug\"\n"

// run starts a box and waits until it is ready. At the test's end it is stopped,
// and nothing of it may be left.
func run(t *testing.T, name, text string, s setting) *box {
	t.Helper()
	b := prepare(t, name, text)
	b.start(s)
	return b
}

func (b *box) start(s setting) {
	b.t.Helper()
	ready := b.launch(s)
	select {
	case <-ready:
	case <-b.exited:
		b.t.Fatalf("%s ended before it was ready: %v\n%s", b.name, b.cmd.ProcessState, b.log)
	case <-time.After(patience):
		b.t.Fatalf("%s is not ready after %v:\n%s", b.name, patience, b.log)
	}
}

// launch starts the process. The channel is closed when it says that it is ready.
func (b *box) launch(s setting) <-chan struct{} {
	b.t.Helper()
	t := b.t
	socket := &net.UnixAddr{Name: filepath.Join(b.dir, "notify"), Net: "unixgram"}
	notify, err := net.ListenUnixgram("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	if s.service {
		must(t, "chown", "-R", nobody, b.dir)
		must(t, "chmod", "755", filepath.Dir(ptgate))
	}
	argv := within(t, s, []string{ptgate, "run", "-c", b.file})
	b.cmd = exec.Command(argv[0], argv[1:]...)
	b.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "NOTIFY_SOCKET=" + socket.Name}, s.env...)
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	// A session of its own finds its children again, whatever their group.
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.exited = make(chan struct{})
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b.cmd.Wait()
		close(b.exited)
	})
	wg.Go(func() {
		buf := make([]byte, 4096)
		told := false
		for {
			n, err := notify.Read(buf)
			if err != nil {
				return
			}
			if !told && bytes.Contains(buf[:n], []byte("READY=1")) {
				told = true
				close(ready)
			}
		}
	})
	t.Cleanup(func() {
		b.stop()
		notify.Close()
		wg.Wait()
		os.Remove(socket.Name)
		if t.Failed() || os.Getenv("PTGATE_TEST_LOG") != "" {
			t.Logf("log of %s:\n%s", b.name, b.log)
		}
	})
	return ready
}

// running tells whether the process has not ended yet.
func (b *box) running() bool {
	select {
	case <-b.exited:
		return false
	default:
		return true
	}
}

// signal sends the process a signal.
func (b *box) signal(s os.Signal) {
	b.t.Helper()
	if err := b.cmd.Process.Signal(s); err != nil {
		b.t.Errorf("signal %s: %v", b.name, err)
	}
}

// stop ends the box in order, and expects exit code 0, no process left over and
// a clean log. A second call does nothing.
func (b *box) stop() {
	b.t.Helper()
	if !b.running() {
		return
	}
	b.signal(syscall.SIGTERM)
	b.ended(0)
}

// ended waits for the end of the process. A code of -1 stands for a signal.
func (b *box) ended(code int) {
	b.t.Helper()
	select {
	case <-b.exited:
	case <-time.After(patience):
		b.signal(syscall.SIGQUIT) // its goroutines, into the log
		<-b.exited
		b.t.Errorf("%s did not end within %v", b.name, patience)
		return
	}
	if got := b.cmd.ProcessState.ExitCode(); got != code {
		b.t.Errorf("%s: exit code %d, want %d", b.name, got, code)
	}
	if code >= 0 {
		for _, p := range session(b.cmd.Process.Pid) {
			b.t.Errorf("%s left process %d (%s) behind", b.name, p.pid, p.name)
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	text := b.log.String()
	for _, bad := range []string{"panic", "DATA RACE", "fatal error", "goroutine "} {
		if strings.Contains(text, bad) {
			b.t.Errorf("%s: its log has %q", b.name, bad)
		}
	}
	for _, secret := range b.never {
		if strings.Contains(text, secret) {
			b.t.Errorf("%s: its log has the secret %q", b.name, secret)
		}
	}
}

// A process is one of /proc.
type process struct {
	pid, parent, session int
	name, state          string
}

// session lists the living processes of a session, its leader left out.
func session(leader int) (all []process) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, d := range dirs {
		if p, ok := readProcess(d); ok && p.session == leader && p.pid != leader && p.state != "Z" {
			all = append(all, p)
		}
	}
	return all
}

// readProcess reads a stat file of proc(5).
func readProcess(stat string) (p process, ok bool) {
	b, err := os.ReadFile(stat)
	if err != nil {
		return p, false
	}
	text := string(b)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return p, false
	}
	f := strings.Fields(text[end+1:])
	p.pid, _ = strconv.Atoi(strings.TrimSpace(text[:open]))
	p.name, p.state = text[open+1:end], f[0]
	p.parent, _ = strconv.Atoi(f[1])
	p.session, _ = strconv.Atoi(f[3])
	return p, true
}

// gone waits until a process has ended.
func gone(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has been reaped already
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	for err == unix.EINTR { // a signal to this process, such as the runtime's own
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	}
	if n != 1 || err != nil {
		t.Errorf("process %d lives on (%v)", pid, err)
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// listens is the address that a front says it listens on.
func (b *box) listens(front string) string {
	b.t.Helper()
	return b.log.wait(b.t, `msg=listening front=(?:`+front+`) address=(\S+)`)[1]
}

// ports are the addresses where a box takes everything.
func (b *box) ports() (addrs []string) {
	for _, m := range regexp.MustCompile(`msg=listening front=mixed address=(\S+)`).FindAllStringSubmatch(b.log.String(), -1) {
		addrs = append(addrs, m[1])
	}
	return addrs
}

// socks is where a box takes SOCKS5. Where it takes everything, it is the first port.
func (b *box) socks() string {
	b.t.Helper()
	return b.listens("socks5|mixed")
}

// http is where a box takes HTTP. Where it takes everything, it is the last port.
func (b *box) http() string {
	b.t.Helper()
	addr := b.listens("http|mixed")
	if all := b.ports(); len(all) > 0 {
		return all[len(all)-1]
	}
	return addr
}

// fronts is the [listen] table of a near end on free ports.
const fronts = "[listen]\nsocks5 = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n"

// everythingVia is a route for all.
func everythingVia(bridge string) string {
	return "[[route]]\nto = \"*\"\nvia = \"" + bridge + "\"\n"
}

// everythingDirect is a route for all that uses no bridge. The tests' own servers are on
// loopback.
const everythingDirect = "[[route]]\nto = \"*\"\nvia = \"direct\"\nprivate = true\n"

// openExit is an exit that reaches the tests' own servers, all on loopback.
const openExit = "[exit]\nallow = [\"*\"]\ndeny = []\n"

func portOf(t testing.TB, addr string) string {
	t.Helper()
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(int(ap.Port()))
}

// command runs a program to its end and returns what it wrote, stdout and stderr
// apart, and its exit code.
func command(t testing.TB, stdin io.Reader, argv ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = stream(t, stdin, &out, &errs, argv...)
	return out.String(), errs.String(), code
}

// stream is command with the output going elsewhere.
func stream(t testing.TB, stdin io.Reader, stdout, stderr io.Writer, argv ...string) (code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"}
	err := cmd.Run()
	if cmd.ProcessState == nil || ctx.Err() != nil {
		t.Errorf("%s: %v (%v)", argv[0], err, ctx.Err())
		return -1
	}
	return cmd.ProcessState.ExitCode()
}

// must is command for one that must succeed. It returns stdout.
func must(t testing.TB, argv ...string) string {
	t.Helper()
	stdout, stderr, code := command(t, nil, argv...)
	if code != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", strings.Join(argv, " "), code, stdout, stderr)
	}
	return stdout
}

// daemon runs another program in the background until the test's end, and returns
// what it writes.
func daemon(t testing.TB, argv ...string) *transcript {
	t.Helper()
	log := newTranscript()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() || os.Getenv("PTGATE_TEST_LOG") != "" {
			t.Logf("%s wrote:\n%s", argv[0], log)
		}
	})
	return log
}

// listening waits until something accepts connections at addr: for programs that
// do not tell when they are ready. The kernel refuses at once until then, so each
// attempt is paced by a timer of the context.
func listening(t testing.TB, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			t.Fatalf("nothing listens on %s after %v: %v", addr, patience, err)
		}
	}
}
