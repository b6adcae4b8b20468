//go:build integration

package harness

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Process runs beside the test.
type Process struct {
	Cmd    *exec.Cmd
	Log    *Transcript
	Exited <-chan struct{} // closed when it has been waited for, and Log has all that it wrote

	t     testing.TB
	name  string
	ready <-chan struct{} // closed when it has told that it is ready; nil: it does not tell
}

// Start runs cmd, which writes to log. The caller sees to its end, before the test's.
func Start(t testing.TB, name string, cmd *exec.Cmd, log *Transcript) *Process {
	t.Helper()
	return start(t, name, cmd, log, nil, func() {})
}

// StartTelling is Start for a program that tells when it is ready as systemd wants to be
// told, over a socket in dir. It does not wait.
func StartTelling(t testing.TB, name string, cmd *exec.Cmd, log *Transcript, dir string) *Process {
	t.Helper()
	socket := filepath.Join(dir, "notify")
	ready, stop := Notified(t, socket)
	cmd.Env = append(cmd.Environ(), "NOTIFY_SOCKET="+socket)
	return start(t, name, cmd, log, ready, stop)
}

func start(t testing.TB, name string, cmd *exec.Cmd, log *Transcript, ready <-chan struct{}, ended func()) *Process {
	t.Helper()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil { // a session of its own finds its children again, whatever their group
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := cmd.Start(); err != nil {
		ended()
		t.Fatal(err)
	}
	exited := make(chan struct{})
	p := &Process{Cmd: cmd, Log: log, Exited: exited, t: t, name: name, ready: ready}
	go func() { // whoever ends the process waits for it
		defer close(exited)
		cmd.Wait()
		ended()
	}()
	return p
}

// Notified listens at a socket as systemd does. ready is closed when a program says there
// that it is ready. stop ends it; what is said between is read, as a program that can't say
// something stands still.
func Notified(t testing.TB, socket string) (ready <-chan struct{}, stop func()) {
	t.Helper()
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o777); err != nil { // for programs of other users
		t.Fatal(err)
	}
	told := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tell := sync.OnceFunc(func() { close(told) })
		buf := make([]byte, 4096)
		for {
			n, err := notes.Read(buf)
			if err != nil {
				return
			}
			if bytes.Contains(buf[:n], []byte("READY=1")) {
				tell()
			}
		}
	})
	return told, func() {
		notes.Close()
		wg.Wait()
		os.Remove(socket)
	}
}

// AwaitReady waits until the program has told that it is ready.
func (p *Process) AwaitReady() {
	p.t.Helper()
	select {
	case <-p.ready:
	case <-p.Exited:
		p.t.Fatalf("%s ended before it was ready: %v\n%s", p.name, p.Cmd.ProcessState, shorten(p.Log.String()))
	case <-time.After(Patience):
		p.t.Fatalf("%s is not ready after %v:\n%s", p.name, Patience, shorten(p.Log.String()))
	}
}

// Await waits until what the process has written matches, and returns the first match's
// groups.
func (p *Process) Await(pattern string) []string {
	p.t.Helper()
	return p.Log.wait(p.t, pattern, p.Exited)
}

// Running tells whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.Exited:
		return false
	default:
		return true
	}
}

// Signal sends the process a signal.
func (p *Process) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %s: %v", p.name, err)
	}
}

// Stop ends the process in order, unless it has ended, and wants exit code 0.
func (p *Process) Stop() {
	p.t.Helper()
	if p.Running() {
		p.Signal(syscall.SIGTERM)
		p.Ends(0)
	}
}

// End is Stop for a program of others, with whatever exit code.
func (p *Process) End() {
	p.t.Helper()
	if p.Running() {
		p.Signal(syscall.SIGTERM)
		p.wait()
	}
}

// Ends waits for the end of the process, and wants that exit code. -1 stands for a signal.
func (p *Process) Ends(code int) {
	p.t.Helper()
	if !p.wait() {
		return
	}
	if got := p.Cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("%s: exit code %d, want %d", p.name, got, code)
	}
}

// wait waits for the end of the process, by force where there is none.
func (p *Process) wait() (ok bool) {
	p.t.Helper()
	limit := time.NewTimer(Patience)
	defer limit.Stop()
	select {
	case <-p.Exited:
		return true
	case <-limit.C:
	}
	p.t.Errorf("%s did not end within %v", p.name, Patience)
	p.Signal(syscall.SIGQUIT) // its goroutines, into the log
	limit.Reset(10 * time.Second)
	select {
	case <-p.Exited:
	case <-limit.C: // a child has the log open, maybe
		syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
		<-p.Exited
	}
	return false
}

// Daemon runs a program of others until the test's end, which it does not learn of, and
// returns what it writes.
func Daemon(t testing.TB, argv ...string) *Transcript {
	t.Helper()
	log := NewTranscript(t, argv[0])
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	return log
}

// Command runs a program to its end, in the environment of the tests, and returns what it
// wrote and its exit code.
func Command(t testing.TB, argv ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 10 * time.Second // its children may have the output open
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || ctx.Err() != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, b)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// Must is Command for one that must succeed.
func Must(t testing.TB, argv ...string) (out string) {
	t.Helper()
	out, code := Command(t, argv...)
	if code != 0 {
		t.Fatalf("%s: exit code %d\n%s", strings.Join(argv, " "), code, out)
	}
	return out
}

// Gone waits until a process has ended, whoever's child it is, and ends it where it does not.
func Gone(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has been reaped already
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(Patience.Milliseconds()))
		switch {
		case err == unix.EINTR: // a signal to this process, such as the runtime's own
			continue
		case n != 1 || err != nil:
			t.Errorf("process %d lives on (%v)", pid, err)
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		return
	}
}

// Descriptors is how many files a process has open.
func Descriptors(t testing.TB, pid int) int {
	t.Helper()
	all, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
