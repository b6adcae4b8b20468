//go:build integration

package adapter_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/adapter"
	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

// setting reads a number from the environment.
func setting(t *testing.T, name string, standard int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return standard
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// resources is what must not grow.
type resources struct{ descriptors, goroutines, children, files int }

func measure(t *testing.T, temp string) (r resources) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	r.descriptors = len(fds)
	r.goroutines = runtime.NumGoroutine()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, _ := os.ReadFile(stat)
		_, rest, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			r.children++
		}
	}
	files, err := os.ReadDir(temp)
	if err != nil {
		t.Fatal(err)
	}
	r.files = len(files)
	return r
}

// TestSoak dials many times through one client and one ext server, and kills
// a transport program now and then, with SIGKILL and under load. At the end
// there is nothing more than there was at the start.
//
// The full version: PTGATE_SOAK_DIALS=10000 PTGATE_SOAK_KILLS=50.
func TestSoak(t *testing.T) {
	// Not lyrebird: it keeps one side of a connection open whose other side
	// has gone, until somebody writes to it.
	for name, program := range map[string][]string{
		"obfs4proxy": {realpt.Program(t, "obfs4proxy")},
		"ptgate":     {harness.Program(t), "pt"},
	} {
		t.Run(name, func(t *testing.T) { soak(t, program) })
	}
}

func soak(t *testing.T, program []string) {
	dials := setting(t, "PTGATE_SOAK_DIALS", 600)
	kills := setting(t, "PTGATE_SOAK_KILLS", 6)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	state := t.TempDir()

	startServer := func() (*adapter.ExtServerAdapter, adapter.ServerMethod) {
		server := adapter.NewExtServer(adapter.ExtServerConfig{
			Config:  adapter.Config{Exec: program, StateDir: state},
			Handler: echoHandler,
		})
		if err := server.AddTransport("obfs4", "127.0.0.1:0", nil); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		method, err := server.Method("obfs4")
		if err != nil {
			t.Fatal(err)
		}
		return server, method
	}
	startClient := func() *adapter.ClientAdapter {
		client := adapter.NewClient(adapter.ClientConfig{
			Config: adapter.Config{Exec: program}, Transports: []string{"obfs4"},
		})
		if err := client.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return client
	}

	payload := make([]byte, 4<<10)
	rand.Read(payload)
	once := func(client *adapter.ClientAdapter, method adapter.ServerMethod) error {
		c, err := client.DialTransport(t.Context(), "obfs4", method.Addr, method.Args)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		if _, err := c.Write(payload); err != nil {
			return err
		}
		back := make([]byte, len(payload))
		if _, err := io.ReadFull(c, back); err != nil {
			return err
		}
		if !bytes.Equal(back, payload) {
			t.Error("came back changed")
		}
		return nil
	}

	// One round first: the runtime opens what it keeps.
	server, method := startServer()
	client := startClient()
	if err := once(client, method); err != nil {
		t.Fatal(err)
	}
	stopped(t, client)
	stopped(t, server)
	before := measure(t, temp)
	running := goleak.IgnoreCurrent()

	began := time.Now()
	server, method = startServer()
	client = startClient()
	var good, failed atomic.Int64
	rounds := kills + 1
	for round := range rounds {
		n := int64(dials / rounds)
		if round == kills {
			n = int64(dials) - n*int64(kills)
		}
		var left atomic.Int64
		left.Store(n)
		nearly := make(chan struct{})
		dying := round < kills
		var workers sync.WaitGroup
		for range 16 {
			workers.Go(func() {
				for {
					i := left.Add(-1)
					if i < 0 {
						return
					}
					if i == n/10 {
						close(nearly)
					}
					if err := once(client, method); err != nil {
						failed.Add(1)
						if !dying {
							t.Errorf("dial with nobody killed: %v", err)
						}
					} else {
						good.Add(1)
					}
				}
			})
		}
		<-nearly
		victim, pid := stoppable(client), client.Pid()
		if round%2 == 1 {
			victim, pid = server, server.Pid()
		}
		if dying {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		workers.Wait()
		if !dying {
			break
		}
		if exit, ok := errors.AsType[*adapter.ExitError](victim.Wait()); !ok || !exit.State.Sys().(syscall.WaitStatus).Signaled() {
			t.Errorf("kill %d: %v", round, victim.Wait())
		}
		victim.Close()
		if round%2 == 1 {
			server, method = startServer()
		} else {
			client = startClient()
		}
	}
	stopped(t, client)
	stopped(t, server)
	took := time.Since(began)

	after := measure(t, temp)
	t.Logf("%d dials in %v, %d good, %d met a kill (%d kills)", dials, took.Round(time.Millisecond), good.Load(), failed.Load(), kills)
	t.Logf("before %+v, after %+v", before, after)
	if good.Load()+failed.Load() != int64(dials) || good.Load() < int64(dials)/3 {
		t.Errorf("%d good and %d failed of %d", good.Load(), failed.Load(), dials)
	}
	// Goroutines by name: their number has the runtime's own among them.
	goleak.VerifyNone(t, running)
	if after.descriptors > before.descriptors || after.children > before.children || after.files > before.files {
		t.Errorf("more than before: %+v, was %+v", after, before)
	}
}
