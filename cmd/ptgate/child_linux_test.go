package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A child is the program in a process of its own, in an empty directory with its own
// place for temporary files.
type child struct {
	*exec.Cmd
	t         *testing.T
	dir, temp string
	out       bytes.Buffer // once it has ended
	patience  context.Context
}

func newChild(t *testing.T, args ...string) *child {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	// Paths of sockets are limited: t.TempDir has the test's name in it.
	dir, err := os.MkdirTemp("", "ptgate-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &child{t: t, dir: dir, patience: ctx}
	c.temp = filepath.Join(c.dir, "tmp")
	if err := os.Mkdir(c.temp, 0o700); err != nil {
		t.Fatal(err)
	}
	c.Cmd = exec.CommandContext(ctx, "ptgate", args...)
	c.Dir = c.dir
	c.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "TMPDIR="+c.temp, "XDG_STATE_HOME="+c.dir)
	c.Stdout, c.Stderr = &c.out, &c.out
	return c
}

func (c *child) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) fifo(name string) {
	c.t.Helper()
	if err := unix.Mkfifo(filepath.Join(c.dir, name), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// reads waits until the child has opened a FIFO, and gives the end to write to.
func (c *child) reads(name string) *os.File {
	c.t.Helper()
	opened := make(chan *os.File, 1)
	go func() {
		f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_WRONLY, 0)
		if err != nil {
			c.t.Error(err)
		}
		opened <- f
	}()
	select {
	case f := <-opened:
		c.t.Cleanup(func() { f.Close() })
		return f
	case <-c.patience.Done():
		// A reader of our own lets the opening end.
		if f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			(<-opened).Close()
			f.Close()
		}
		c.t.Fatalf("%v never read %s", c.Args, name)
		return nil
	}
}

func (c *child) start() {
	c.t.Helper()
	// The child's SIGINT would be ignored where the tests run in the background of a shell. A
	// signal that its parent handles is not.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, os.Interrupt)
	defer signal.Stop(caught)
	if err := c.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// diesOf sends a signal, unless that is 0, and wants the child to die of it, with
// nothing left behind but the names in left.
func (c *child) diesOf(send, want syscall.Signal, left ...string) {
	c.t.Helper()
	if send != 0 {
		c.signal(send)
	}
	c.Wait()
	if c.patience.Err() != nil {
		c.t.Fatalf("%v: %v did not end it: %s", c.Args, want, &c.out)
	}
	if status := c.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != want {
		c.t.Errorf("%v: %v, want an end by %v: %s", c.Args, c.ProcessState, want, &c.out)
	}
	c.leaves(left...)
}

// leaves wants no file but those in left.
func (c *child) leaves(left ...string) {
	c.t.Helper()
	have := map[string]bool{}
	for _, dir := range []string{c.dir, c.temp} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, e := range entries {
			have[e.Name()] = true
		}
	}
	for _, name := range append(left, "tmp") {
		delete(have, name)
	}
	if len(have) > 0 {
		c.t.Errorf("%v leaves behind %v", c.Args, have)
	}
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// succeeds wants the child to end with exit code 0.
func (c *child) succeeds() {
	c.t.Helper()
	if err := c.Wait(); err != nil {
		c.t.Errorf("%v: %v: %s", c.Args, err, &c.out)
	}
}

// startReady starts `ptgate run`, and waits until it says that it is ready.
func (c *child) startReady() {
	c.t.Helper()
	// In no directory, so that none has it left in it.
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@ptgate-test-%d-%p", os.Getpid(), c), Net: "unixgram"})
	if err != nil {
		c.t.Fatal(err)
	}
	defer socket.Close()
	c.Env = append(c.Env, "NOTIFY_SOCKET="+socket.LocalAddr().String())
	c.start()
	limit, _ := c.patience.Deadline()
	socket.SetReadDeadline(limit)
	for b := make([]byte, 4096); ; {
		n, err := socket.Read(b)
		if err != nil {
			c.t.Fatalf("%v is not ready: %v", c.Args, err)
		}
		if bytes.Contains(b[:n], []byte("READY=1")) {
			return
		}
	}
}

// in runs the program once more in the directory of c, to its end.
func (c *child) in(env []string, args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(c.patience, "ptgate", args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.dir, env, &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() < 0 {
		c.t.Errorf("%v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
