package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"ptgate/adapter"
	"ptgate/gateway"
	"ptgate/gateway/config"
)

func TestMain(m *testing.M) {
	testscript.Main(noLeaks{m}, map[string]func(){"ptgate": main})
}

// noLeaks wants no goroutine left when the tests have passed.
type noLeaks struct{ m *testing.M }

func (n noLeaks) Run() int {
	time.Local = time.UTC // here, before there is another goroutine that reads it
	code := n.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// The program as it is used. Besides testscript's own commands there are
//
//	exits CODE ptgate …   runs it and wants that exit code
//	serve FILE            runs a server's configuration until the script ends; sets $LINE and $ADDRESS
//	expand FILE           replaces $NAME in a file
//	mode FILE OCTAL       wants the file's permissions
//	[installed]           tells whether the machine has a configuration of its own
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  exits,
			"serve":  serveFile,
			"expand": expand,
			"mode":   mode,
		},
		Condition: func(name string) (bool, error) {
			if name != "installed" {
				return false, fmt.Errorf("no condition is called %q", name)
			}
			_, err := os.Stat(serviceConfig)
			return err == nil, nil
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

func serveFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve FILE")
	}
	cfg, problems := config.Load(ts.MkAbs(args[0]))
	if cfg == nil {
		ts.Fatalf("%v", problems)
	}
	exe, err := os.Executable()
	ts.Check(err)
	g := gateway.New(cfg, exe, slog.New(slog.DiscardHandler))
	stop, endStop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(stop, stop) }()
	ts.Defer(func() {
		endStop()
		<-done
	})
	select {
	case <-g.Ready():
	case err := <-done:
		done <- err
		ts.Fatalf("%v", err)
	}
	again := func(context.Context) error {
		cfg, problems := config.Load(cfg.Path)
		if cfg == nil {
			return fmt.Errorf("%v", problems)
		}
		return g.Reload(cfg)
	}
	if c := answer(g, cfg, again, slog.New(slog.DiscardHandler)); c != nil {
		ts.Defer(c.Close)
	}
	line, _, err := gateway.BridgeLine(cfg.Serve[0], g.Announced()[0])
	ts.Check(err)
	ts.Setenv("LINE", line)
	ts.Setenv("ADDRESS", g.Announced()[0].Address)
}

func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: expand FILE")
	}
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
	ts.Check(os.Chmod(ts.MkAbs(args[0]), 0o600))
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode FILE OCTAL")
	}
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

func TestProxyURLs(t *testing.T) {
	for _, c := range []struct {
		socks5, http, mixed string
		socks, web          string // or, with "" of both, an error
	}{
		{"127.0.0.1:1080", "127.0.0.1:8118", "", "socks5h://127.0.0.1:1080", "http://127.0.0.1:8118"},
		{"127.0.0.1:1080", "", "", "socks5h://127.0.0.1:1080", "socks5h://127.0.0.1:1080"},
		{"", "[::1]:8118", "", "http://[::1]:8118", "http://[::1]:8118"},
		{"0.0.0.0:1080", "[::]:8118", "", "socks5h://127.0.0.1:1080", "http://127.0.0.1:8118"},
		{"192.0.2.1:1080 127.0.0.1:1080", "", "", "socks5h://192.0.2.1:1080", "socks5h://192.0.2.1:1080"},
		{"", "", "", "", ""},
		{"127.0.0.1:0", "", "", "", ""},
		{"127.0.0.1:1080", "127.0.0.1:0", "", "", ""},
		{"", "", "127.0.0.1:1080 127.0.0.1:8118", "socks5h://127.0.0.1:1080", "http://127.0.0.1:1080"},
		{"127.0.0.1:1", "", "127.0.0.1:3", "socks5h://127.0.0.1:1", "http://127.0.0.1:3"},
		{"", "127.0.0.1:2", "127.0.0.1:3", "socks5h://127.0.0.1:3", "http://127.0.0.1:2"},
		{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "socks5h://127.0.0.1:1", "http://127.0.0.1:2"},
		{"", "", "127.0.0.1:0", "", ""},
		{"nonsense", "", "", "", ""},
	} {
		socks, web, err := proxyURLs(config.Listen{SOCKS5: strings.Fields(c.socks5), HTTP: strings.Fields(c.http), Mixed: strings.Fields(c.mixed)})
		if socks != c.socks || web != c.web || (err != nil) != (c.socks == "") {
			t.Errorf("%q, %q, %q: %q, %q, %v", c.socks5, c.http, c.mixed, socks, web, err)
		}
	}
}

func TestReadLine(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, c := range []struct {
		in       string
		terminal bool
		want     string
		wrong    string // in the error
	}{
		{"obfs3 192.0.2.1:443\n", false, "obfs3 192.0.2.1:443", ""},
		{"\r\n  obfs3 192.0.2.1:443\r\n\n", false, "obfs3 192.0.2.1:443", ""},
		{"obfs3 192.0.2.1:443", false, "obfs3 192.0.2.1:443", ""},
		{"one\ntwo\n", false, "", "more than one line"},
		{"one\ntwo\n", true, "one", ""},
		{"", true, "", ""},
		{long, false, "", "more than"},
		{long + "\n", false, "", "more than"},
		{long[1:] + "\n", false, "", "more than"},
		{long[2:] + "\n", false, long[2:], ""},
	} {
		got, err := readLine(strings.NewReader(c.in), c.terminal)
		if got != c.want || (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%.40q: %.40q, %v", c.in, got, err)
		}
	}
}

// Every command says what it does, and takes a wrong flag for wrong usage.
func TestCommands(t *testing.T) {
	root := newRoot()
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
		if c.Short == "" || c.RunE == nil && c.Run == nil {
			t.Errorf("%s: no words about it, or nothing to run", c.Name())
		}
		want := 2
		if c.DisableFlagParsing { // pt ignores all words
			want = 1
		}
		if code := run(t.Context(), []string{c.Name(), "--no-such-flag"}); code != want {
			t.Errorf("%s --no-such-flag: exit code %d", c.Name(), code)
		}
	}
	for _, want := range strings.Fields("run check explain demo pair bridges add-bridge probe status reload env pt version completion") {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+want+" ") {
			t.Errorf("there is no %s", want)
		}
	}
}

// Every command shows how it is called, with flags that it has.
func TestExamples(t *testing.T) {
	root := newRoot()
	for _, c := range root.Commands() {
		if c.Example == "" {
			t.Errorf("%s has no example", c.Name())
		}
		for line := range strings.Lines(c.Example) {
			_, words, ok := strings.Cut(line, "ptgate ")
			if !ok {
				t.Errorf("%s: no ptgate in %q", c.Name(), line)
			}
			words, _, _ = strings.Cut(strings.Trim(words, " \n\")"), " |")
			words, _, _ = strings.Cut(words, " >")
			sub, rest, err := newRoot().Find(strings.Fields(words))
			if sub.HasParent() && sub.Parent().Name() == "completion" {
				sub = sub.Parent()
			}
			if err == nil && !sub.DisableFlagParsing {
				err = sub.ParseFlags(rest)
			}
			if err != nil || sub.Name() != c.Name() {
				t.Errorf("%s: %q: %v", c.Name(), line, err)
			}
		}
	}
}

// Who waits for more than a second sees what for, and nothing of it is left.
func TestProgress(t *testing.T) {
	for _, c := range []struct {
		wait time.Duration
		want string
	}{
		{900 * time.Millisecond, ""},
		{2500 * time.Millisecond, "\r\x1b[Kdialling tokyo: 1s\r\x1b[Kdialling tokyo: 2s\r\x1b[K"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out strings.Builder
			stop := showProgress(&out, func() string { return "dialling tokyo" })
			<-time.After(c.wait)
			stop()
			if out.String() != c.want {
				t.Errorf("after %v: %q, want %q", c.wait, out.String(), c.want)
			}
		})
	}
	var out strings.Builder
	progress(&out, nil)() // no terminal
}

// Bridges that are added at the same time are all there at the end.
func TestAddBridgesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte("[[route]]\nto = \"*\"\nvia = \"block\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const many = 20
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			line, err := adapter.ParseBridgeLine(fmt.Sprintf("webtunnel 192.0.2.1:443 url=https://example.com/%d", i))
			if err == nil {
				_, _, err = addBridge(t.Context(), path, "", "", line, config.FarExit)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	cfg, problems := config.Load(path)
	if cfg == nil || len(cfg.Bridges) != many {
		t.Errorf("%v: %v", cfg, problems)
	}
}

func Example() {
	code := run(context.Background(), []string{"env", "--unset"})
	fmt.Println("exit code", code)
	// Output:
	// unset ALL_PROXY all_proxy
	// unset HTTPS_PROXY https_proxy
	// unset HTTP_PROXY http_proxy
	// unset NO_PROXY no_proxy
	// exit code 0
}
