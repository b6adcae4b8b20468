package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/config"
)

// lines gives what is logged, line by line.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// await waits for a line with words in it.
func (l lines) await(t *testing.T, words string) string {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case line := <-l:
			if strings.Contains(line, words) {
				return line
			}
		case <-limit:
			t.Fatalf("the log never said %q", words)
		}
	}
}

const direct = `
state_dir = "state"
[listen]
socks5 = "127.0.0.1:0"
[[route]]
to = "*"
via = "direct"
private = true
[limits]
drain = "1h"
`

// What is wrong with a file is in the log; what stands in the file only if it is not private.
func TestReloadSaysWhatIsWrong(t *testing.T) {
	const hidden, number = "198.51.100.7", "19851100719851100719"
	for _, tt := range []struct {
		name, more string
		mode       os.FileMode
		want       string
		error      bool
	}{
		{"a key", "nonsense = 1\n", 0o600, `c.toml:11: [limits]: unknown key \"…\"`, true},
		{"a destination", "[[route]]\nto = \"http://" + hidden + "/\"\nvia = \"direct\"\n", 0o600, `c.toml:12: route 2: to: pattern \"…\": is a URL: write its host alone`, true},
		{"a number", "[bridge.a]\npassword = " + number + "\n", 0o600, `c.toml:12: text stands in quotes: write \"…\"`, true},
		{"the TOML", "[bridge." + hidden + "\n", 0o600, `c.toml:11: the heading of a table ends in \"…\"`, true},
		{"the mode", "", 0o606, "c.toml: others can write it (mode 0606)", true},
		{"a warning", "[exit]\n", 0o600, "c.toml:11: warning: [exit]: no [[serve]] leads to the exit", false},
	} {
		for _, private := range []bool{true, false} {
			path := filepath.Join(t.TempDir(), "c.toml")
			if err := os.WriteFile(path, []byte(direct+tt.more), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tt.mode); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			// A gateway that does not run takes no configuration.
			_, err := reload(t.Context(), new(gateway.Gateway), path, private, slog.New(slog.NewTextHandler(&out, nil)))
			want := tt.want
			if !private {
				want, _, _ = strings.Cut(want, `\"…\"`)
			}
			if got := out.String(); err == nil || !strings.Contains(got, want) || private && (strings.Contains(got, hidden) || strings.Contains(got, number)) ||
				strings.Contains(got, "reload refused") != tt.error {
				t.Errorf("%s, private %v: %v, and the log has\n%s", tt.name, private, err, got)
			}
		}
	}
}

// The life of `ptgate run` under its signals.
func TestRunSignals(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	path := filepath.Join(t.TempDir(), "ptgate.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(direct)
	cfg, problems := config.Load(path)
	if cfg == nil {
		t.Fatal(problems)
	}
	log := make(lines, 1024)
	done := make(chan error, 1)
	go func() { done <- runGateway(t.Context(), cfg, log) }()
	_, addr, _ := strings.Cut(strings.TrimSpace(log.await(t, "msg=listening")), "address=")
	if ready := log.await(t, "msg=ready"); !strings.Contains(ready, "curl -x socks5h://"+addr+" ") || !strings.Contains(ready, "ptgate status -c "+path) {
		t.Error(ready)
	}

	self := func(s syscall.Signal) {
		t.Helper()
		p, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = p.Signal(s)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	client, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	write(direct + "sauce = 1\n")
	self(syscall.SIGHUP)
	log.await(t, "ptgate.toml:11: [limits]: unknown key")
	log.await(t, "the running configuration stays")
	write(strings.Replace(direct, "\"direct\"\nprivate = true", `"block"`, 1))
	self(syscall.SIGHUP)
	log.await(t, "msg=reloaded")

	// A client that waits gets its drain time, until the second signal.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	write(direct)
	self(syscall.SIGHUP)
	log.await(t, "msg=reloaded")
	at := ln.Addr().(*net.TCPAddr)
	if _, err := client.Write([]byte{5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, byte(at.Port >> 8), byte(at.Port)}); err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	client.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := client.Read(make([]byte, 2)); n == 0 {
		t.Fatal(err)
	}
	self(syscall.SIGTERM)
	log.await(t, "msg=stopping")
	select {
	case err := <-done:
		t.Fatalf("ended with a connection open: %v", err)
	default:
	}
	self(syscall.SIGTERM)
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
}
