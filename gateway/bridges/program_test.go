package bridges

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
)

// A PT that does not start, or dies at once, is started again ever more seldom,
// however many requests ask for it.
func TestCrashLoop(t *testing.T) {
	for name, life := range map[string]lifetime{
		"does not start":   {refuses: true},
		"dies at once":     {after: time.Millisecond},
		"dies of a dial":   {onDial: true},
		"dies in a second": {after: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.life = func(int64) lifetime { return life }
				s := w.set(config.PickFirst, "a")
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
				defer cancel()
				var clients sync.WaitGroup
				for range 20 { // they never give up
					clients.Go(func() {
						for ctx.Err() == nil {
							one, done := context.WithTimeout(ctx, 75*time.Second)
							if c, err := s.Open(one, s.Route(0), example); err == nil {
								io.Copy(io.Discard, c)
								c.Close()
							}
							done()
							<-time.After(5 * time.Second)
						}
					})
				}
				<-ctx.Done()
				clients.Wait()
				if n := w.pts.Load(); n < 10 || n > 80 {
					t.Errorf("%d starts in half an hour", n)
				}
			})
		})
	}
}

// A dial that meets a dying PT goes on with the next one.
func TestDialOutlivesPT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.life = func(start int64) lifetime { return lifetime{onDial: start == 1} }
		s := w.set(config.PickFirst, "a")
		c, took := open(t, s)
		echo(t, c)
		if took > 2*time.Second {
			t.Errorf("took %v", took)
		}
		if n := w.pts.Load(); n != 2 {
			t.Errorf("%d starts, want 2", n)
		}
		if s.bridge("a").health.verdict().resting {
			t.Error("the bridge rests for what its PT did")
		}
	})
}

// A PT that has worked for a while is back at once, and so is a carrier, before
// anybody asks.
func TestPTDiesInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.life = func(start int64) lifetime {
			if start == 1 {
				return lifetime{after: time.Minute}
			}
			return lifetime{}
		}
		s := w.set(config.PickFirst, "a")
		c, _ := open(t, s)
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a stream outlived its PT")
		}
		c.Close()
		<-time.After(time.Millisecond)
		if st := s.bridge("a").Status(); st.Carriers != 1 {
			t.Errorf("%d carriers after the restart", st.Carriers)
		}
		if c, took := open(t, s); took > 0 {
			t.Errorf("a request after the restart took %v", took)
		} else {
			echo(t, c)
		}
	})
}

func TestCloseWhileStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.life = func(int64) lifetime { return lifetime{refuses: true} }
		s := w.set(config.PickFirst, "a")
		s.Open(t.Context(), s.Route(0), example) // fails, and the next start has to wait
		failed := make(chan error, 1)
		w.wg.Go(func() {
			_, err := s.Open(t.Context(), s.Route(0), example)
			failed <- err
		})
		synctest.Wait()
		w.m.Close()
		if err := <-failed; err == nil {
			t.Error("opened while closing")
		}
		if _, err := s.Open(t.Context(), s.Route(0), example); err == nil {
			t.Error("opened after the end")
		}
	})
}

// fakePT is a client PT that dials what it is told to, without a transport.
func fakePT(role string) {
	die := func() {
		if p, err := os.FindProcess(os.Getpid()); err == nil {
			p.Kill()
		}
	}
	state := os.Getenv("TOR_PT_STATE_LOCATION")
	starts, _ := os.ReadFile(filepath.Join(state, "starts"))
	os.WriteFile(filepath.Join(state, "starts"), append(starts, 'x'), 0o600)
	os.WriteFile(filepath.Join(state, "mark"), []byte(os.Getenv("FAKE_PT_MARK")), 0o600)
	first := len(starts) == 0
	if role == "dies" {
		fmt.Fprintln(os.Stderr, "my last words")
		die()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		die()
	}
	fmt.Printf("VERSION 1\nCMETHOD fake socks5 %s\nCMETHODS DONE\n", ln.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		die()
	}()
	for {
		c, err := ln.Accept()
		if err != nil {
			die()
		}
		if role == "dies-of-first-dial" && first {
			die()
		}
		if role == "talks" {
			fmt.Println(`LOG SEVERITY=warning MESSAGE="a secret"`)
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			r.Discard(3)
			c.Write([]byte{5, 0})
			var b [10]byte
			io.ReadFull(r, b[:])
			up, err := net.Dial("tcp", (&net.TCPAddr{IP: b[4:8], Port: int(b[8])<<8 | int(b[9])}).String())
			if err != nil {
				c.Write([]byte{5, 1, 0, 1, 0, 0, 0, 0, 0, 0})
				return
			}
			defer up.Close()
			c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
			var wg sync.WaitGroup
			wg.Go(func() {
				r.WriteTo(up)
				up.Close()
			})
			io.Copy(c, up)
			c.Close()
			wg.Wait()
		}()
	}
}

// Real processes: the same as above with the kernel in it.
func TestChild(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for role, starts := range map[string]int{"good": 1, "dies-of-first-dial": 2} {
		t.Run(role, func(t *testing.T) {
			f := newFar()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					wg.Go(func() { f.serve(c) })
				}
			})
			cfg := (&world{t: t}).config(config.PickFirst, ln.Addr().String())
			cfg.Bridges[0].PT.Exec = []string{exe, "fake-pt", role}
			m := NewManager(exe, outcome.New(quiet), quiet)
			s := m.Apply(cfg)
			c, _ := open(t, s)
			echo(t, c)
			pt, _ := s.all[0].pt.Load().child.Child()
			pid := pt.(*adapter.ClientAdapter).Pid()
			if n := s.all[0].Status().PT.Starts; n != starts {
				t.Errorf("%d starts, want %d", n, starts)
			}
			m.Close()
			ln.Close()
			wg.Wait()
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("a connection outlived the manager")
			}
			if p, err := os.FindProcess(pid); err == nil {
				if err := p.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
					t.Errorf("the PT is still there: %v", err)
				}
			}
		})
	}
	t.Run("dies", func(t *testing.T) {
		cfg := (&world{t: t}).config(config.PickFirst, "127.0.0.1:1")
		cfg.Bridges[0].PT.Exec = []string{exe, "fake-pt", "dies"}
		m := NewManager(exe, outcome.New(quiet), quiet)
		defer m.Close()
		s := m.Apply(cfg)
		_, err := s.Open(t.Context(), s.Route(0), example)
		if answer.Of(err) != answer.NoBridge || !strings.Contains(err.Error(), "my last words") {
			t.Errorf("error %v, want the last words", err)
		}
		if why := s.all[0].Status().Why; !strings.Contains(why, "my last words") {
			t.Errorf("status says %q", why)
		}
	})
}

// A reload that makes the log private holds for a PT that runs already.
func TestPrivacyFollowsReload(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := (&world{t: t}).config(config.PickFirst, ln.Addr().String())
	cfg.Bridges[0].PT.Exec = []string{exe, "fake-pt", "talks"}
	cfg.Bridges[0].Far = config.FarForward // a connection of the PT for each request
	said := make(lines, 100)
	log := slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	m := NewManager(exe, outcome.New(log), log)
	defer m.Close()
	for _, private := range []bool{false, true, false} {
		cfg.Log.Private = private
		s := m.Apply(cfg)
		s.Retire()
		c, _ := open(t, s)
		c.Close()
		line := ""
		for !strings.Contains(line, "secret") && !strings.Contains(line, "log.private") {
			line = <-said
		}
		if got := !strings.Contains(line, "secret"); got != private {
			t.Errorf("private = %v: %s", private, line)
		}
	}
	if n := m.bridges[0].Status().PT.Starts; n != 1 {
		t.Errorf("%d starts of the PT, want 1", n)
	}
}

// A PT gets its env, and a reload that changes it replaces the PT.
func TestEnv(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	m := NewManager(exe, outcome.New(quiet), quiet)
	defer m.Close()
	marks := []string{"FAKE_PT_MARK=one", "FAKE_PT_MARK=one", "FAKE_PT_MARK=two"}
	programs, state := map[*program]bool{}, t.TempDir()
	for _, mark := range marks {
		cfg := (&world{t: t}).config(config.PickFirst, ln.Addr().String())
		cfg.StateDir = state
		pt := cfg.Bridges[0].PT
		pt.Exec, pt.Env = []string{exe, "fake-pt", "good"}, []string{mark}
		cfg.Bridges[0].Far = config.FarForward
		s := m.Apply(cfg)
		s.Retire()
		c, _ := open(t, s)
		c.Close()
		programs[s.all[0].pt.Load()] = true
		got, err := os.ReadFile(filepath.Join(stateDir(pt, cfg), "mark"))
		if err != nil || "FAKE_PT_MARK="+string(got) != mark {
			t.Errorf("the PT has %q, %v; want %s", got, err, mark)
		}
	}
	if len(programs) != 2 {
		t.Errorf("%d programs, want 2", len(programs))
	}
}

// lines are those of a log.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}
