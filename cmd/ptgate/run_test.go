package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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
	limit := time.After(30 * time.Second)
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
[limits]
drain = "1h"
`

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
	log.await(t, "`ptgate check` tells what is wrong")
	log.await(t, "the running configuration stays")
	write(strings.Replace(direct, `"direct"`, `"block"`, 1))
	for { // it may be listening and not quite ready
		self(syscall.SIGHUP)
		if strings.Contains(log.await(t, "reload"), "msg=reloaded") {
			break
		}
	}

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
	client.SetReadDeadline(time.Now().Add(30 * time.Second))
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
