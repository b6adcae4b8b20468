//go:build integration

// Package service installs the .deb in a Debian of its own that systemd has started, and
// looks at what systemd and dpkg make of it: a container with its own network, processes
// and cgroups, whose changes are in memory. It needs root, and a Debian mirror the first
// time; the root directory is kept below the user's cache directory.
//
// Nothing waits for time to pass: systemd, the journal and the kernel tell.
package service

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

const patience = harness.Patience

// What is shared has a short name here.
var (
	scratch = harness.Scratch
	command = harness.Command
	must    = harness.Must
)

// A machine is a Debian that systemd has started.
type machine struct {
	leader string // the number of its first process
	netns  string
}

// inside are the programs of the root directory beyond a minimal Debian.
const inside = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd"

// root is a directory with a small Debian of the release of this machine, made if it is not
// there yet. PTGATE_TEST_RELEASE names another release of the same mirror.
func root(t *testing.T) string {
	t.Helper()
	var release string
	for line := range strings.Lines(readFile(t, "/etc/os-release")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			release = strings.Trim(name, `"`)
		}
	}
	mirror := ""
	for line := range strings.Lines(must(t, "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Component: main")) {
		if site, name, _ := strings.Cut(strings.TrimSpace(line), " "); name == release {
			mirror = site
			break
		}
	}
	if mirror == "" {
		t.Fatalf("apt has no mirror of %q", release)
	}
	if name := os.Getenv("PTGATE_TEST_RELEASE"); name != "" {
		release = name
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "ptgate-test", "debian@"+release)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	work, err := os.MkdirTemp(filepath.Dir(mkdir(t, dir)), "debian-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(work, "root")
	must(t, realpt.Program(t, "debootstrap"), "--variant=minbase", "--include="+inside, release, fresh, mirror)
	must(t, "chroot", fresh, "apt-get", "clean")
	if err := os.Rename(fresh, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// boot starts a machine, which ends with the test. packages is a directory that is /packages
// there.
func boot(t *testing.T, packages string) *machine {
	t.Helper()
	dir := root(t)
	nspawn := realpt.Program(t, "systemd-nspawn")
	group := cgroup(t)
	// What it writes about machines into /run/systemd is its own.
	mkdir(t, "/run/systemd")
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		`echo $$ >"$1/cgroup.procs" && mount -t tmpfs tmpfs /run/systemd && shift && exec "$@"`, "sh", group,
		nspawn, "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes", "--private-network", "--link-journal=no",
		"--volatile=overlay", "--console=pipe", "--bind-ro="+packages+":/packages", "--directory="+dir, "--boot")
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The parent's death is that of the thread.
	runtime.LockOSThread()
	p := harness.StartTelling(t, "the machine", cmd, harness.NewTranscript(t, "the machine"), scratch(t))
	t.Cleanup(func() {
		end(t, child(cmd.Process.Pid))
		p.Signal(syscall.SIGKILL)
		<-p.Exited
		runtime.UnlockOSThread()
		removeGroups(group)
	})
	p.AwaitReady()
	m := &machine{leader: child(cmd.Process.Pid)}
	m.netns = "/proc/" + m.leader + "/ns/net"
	m.run(t, "systemctl", "is-system-running", "--wait") // "degraded" will do: it is about other services
	return m
}

// child is the number of a process's only child; "" if it has none.
func child(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	return strings.TrimSpace(string(text))
}

// end kills a machine's first process, which ends all in it, and waits until they are gone.
func end(t *testing.T, leader string) {
	pid, err := strconv.Atoi(leader)
	if err != nil {
		return // it was never there
	}
	if p, err := os.FindProcess(pid); err == nil && p.Kill() == nil {
		harness.Gone(t, pid)
	}
}

// cgroup makes a cgroup below that of this process, in the hierarchy of version 2.
func cgroup(t *testing.T) string {
	t.Helper()
	mounted := ""
	for line := range strings.Lines(readFile(t, "/proc/self/mounts")) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			mounted = f[1]
			break
		}
	}
	if mounted == "" {
		t.Fatal("there is no cgroup2")
	}
	own := ""
	for line := range strings.Lines(readFile(t, "/proc/self/cgroup")) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = path
		}
	}
	dir, err := os.MkdirTemp(filepath.Join(mounted, own), "ptgate-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// removeGroups removes a cgroup and those below it. All their processes have ended.
func removeGroups(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeGroups(filepath.Join(dir, e.Name()))
		}
	}
	os.Remove(dir)
}

func (m *machine) argv(argv []string) []string {
	return append([]string{"nsenter", "--target", m.leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd",
		"env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}, argv...)
}

// run runs a command in the machine, and returns what it writes, and its exit code.
func (m *machine) run(t *testing.T, argv ...string) (out string, code int) {
	t.Helper()
	return command(t, m.argv(argv)...)
}

// must is run for a command that must succeed.
func (m *machine) must(t *testing.T, argv ...string) string {
	t.Helper()
	return must(t, m.argv(argv)...)
}

// show is a property of ptgate.service.
func (m *machine) show(t *testing.T, property string) string {
	t.Helper()
	return strings.TrimSpace(m.must(t, "systemctl", "show", "--property", property, "--value", "ptgate"))
}

// want compares properties of ptgate.service.
func (m *machine) want(t *testing.T, properties ...string) {
	t.Helper()
	for _, p := range properties {
		name, want, _ := strings.Cut(p, "=")
		if got := m.show(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// write writes a file in the machine.
func (m *machine) write(t *testing.T, path, text string) {
	t.Helper()
	m.must(t, "sh", "-c", `mkdir -p "${1%/*}" && printf %s "$2" >"$1"`, "sh", path, text)
}

// journal is what the journal has of ptgate.service, with more arguments of journalctl.
func (m *machine) journal(t *testing.T, more ...string) string {
	t.Helper()
	m.must(t, "journalctl", "--sync")
	return m.must(t, append([]string{"journalctl", "--quiet", "--unit=ptgate", "--output=cat"}, more...)...)
}

// A follower reads the journal of ptgate.service as it grows.
type follower struct {
	lines chan string
	seen  []string
}

func (m *machine) follow(t *testing.T) *follower {
	t.Helper()
	argv := m.argv([]string{"journalctl", "--quiet", "--unit=ptgate", "--output=cat", "--lines=all", "--follow"})
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := &follower{lines: make(chan string, 1000)}
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(done)
		for in := bufio.NewScanner(out); in.Scan(); {
			select {
			case f.lines <- in.Text():
			case <-stopped:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stopped)
		cmd.Process.Kill() // of nsenter: the other end of the pipe may live on
		out.Close()
		<-done
		cmd.Wait()
		if t.Failed() {
			t.Logf("the journal, as far as it was read:\n%s", strings.Join(f.seen, "\n"))
		}
	})
	return f
}

// wait waits for a line after those that were waited for before. What systemd says and what
// the service says at the same time comes in any order.
func (f *follower) wait(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(patience)
	for {
		select {
		case line := <-f.lines:
			f.seen = append(f.seen, line)
			if re.MatchString(line) {
				return
			}
		case <-limit:
			t.Fatalf("the journal never said %q", pattern)
		}
	}
}

// enter calls f in the network of the machine. What it opens stays there.
func (m *machine) enter(t *testing.T, f func() error) {
	t.Helper()
	harness.In(t, m.netns, f)
}

// dial connects to an address of the machine.
func (m *machine) dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	m.enter(t, func() (err error) {
		c, err = net.DialTimeout("tcp", addr, patience)
		return err
	})
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// echo serves an address of the machine, and sends back what comes.
func (m *machine) echo(t *testing.T) (addr string) {
	t.Helper()
	var ln net.Listener
	m.enter(t, func() (err error) {
		ln, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	return harness.Serve(t, ln, func(c net.Conn) { bufio.NewReader(c).WriteTo(c) })
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
