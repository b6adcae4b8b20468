package adapter

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
)

// parent runs a child from a thread that ends at once, keeps the scheduler
// busy with others that do the same, says so, and waits to be killed.
func parent() {
	cfg := Config{Exec: []string{os.Args[0]}, Env: []string{
		roleVariable + "=ignores everything",
		tagVariable + "=" + os.Getenv(tagVariable),
		notifyVariable + "=" + os.Getenv(notifyVariable),
	}}
	onShortLivedThread := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends with us
			f()
		}()
		<-done
	}
	a := NewClient(ClientConfig{Config: cfg, Transports: []string{"fake"}})
	onShortLivedThread(func() {
		if err := a.Start(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(96)
		}
	})
	for range 100 {
		onShortLivedThread(runtime.GC)
	}
	fmt.Println("up")
	<-a.Done()
	fmt.Println("child ended:", a.Err())
}

// TestKilledParent kills a parent with SIGKILL: the child, which heeds neither
// stdin nor SIGTERM, has to go with it, and not before.
func TestKilledParent(t *testing.T) {
	h := newHarness(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), h.config("parent").Env...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child := h.fellow()
	line := make([]byte, 100)
	n, err := stdout.Read(line)
	if err != nil || string(line[:n]) != "up\n" {
		t.Errorf("parent says %q %v", line[:n], err)
	}
	if len(processes(h.tag)) != 2 {
		t.Errorf("processes %v, want parent and child", processes(h.tag))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	h.gone(child)
	// What the parent could not remove when it was killed.
	entries, _ := os.ReadDir(h.temp)
	for _, entry := range entries {
		os.RemoveAll(h.temp + "/" + entry.Name())
	}
}
