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
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/integration/harness"
)

// ptgate is the path of the program; TestMain sets it.
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
	return harness.Main(m, &ptgate)
}

const patience = harness.Patience

// What is shared has a short name here.
var (
	scratch   = harness.Scratch
	write     = harness.Write
	daemon    = harness.Daemon
	listening = harness.Listening
	in        = harness.In
)

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
	*harness.Process // once it has been launched

	t     *testing.T
	name  string
	dir   string // of its configuration
	file  string
	state string
	log   *harness.Transcript

	// Never is what may not appear in the log: destinations and secrets.
	never []string
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
	b := &box{t: t, name: name, dir: dir, state: filepath.Join(dir, "state"), log: harness.NewTranscript(t, name)}
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
	b.launch(s)
	b.AwaitReady()
}

// launch starts the process, and does not wait until it is ready.
func (b *box) launch(s setting) {
	b.t.Helper()
	if s.service {
		must(b.t, "chown", "-R", nobody, b.dir)
		must(b.t, "chmod", "755", filepath.Dir(ptgate))
	}
	argv := within(b.t, s, []string{ptgate, "run", "-c", b.file})
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}, s.env...)
	b.Process = harness.StartTelling(b.t, b.name, cmd, b.log, b.dir)
	b.t.Cleanup(b.Stop)
}

// Stop ends the box in order, and expects exit code 0, no process left over and
// a clean log. A second call does nothing.
func (b *box) Stop() {
	b.t.Helper()
	if b.Running() {
		b.Signal(syscall.SIGTERM)
		b.Ends(0)
	}
}

// Ends waits for the end of the process. A code of -1 stands for a signal.
func (b *box) Ends(code int) {
	b.t.Helper()
	b.Process.Ends(code)
	if code >= 0 {
		for _, p := range session(b.Cmd.Process.Pid) {
			b.t.Errorf("%s left process %d (%s) behind", b.name, p.pid, p.name)
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	b.log.Healthy(b.t, b.name)
	text := b.log.String()
	if strings.Contains(text, "goroutine ") {
		b.t.Errorf("%s: its log has goroutines", b.name)
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

// listens is the address that a front says it listens on.
func (b *box) listens(front string) string {
	b.t.Helper()
	return b.log.Wait(b.t, `msg=listening front=(?:`+front+`) address=(\S+)`)[1]
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
