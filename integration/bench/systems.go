package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ptgate/adapter"
)

// A system is a way to the origin.
type system struct {
	name  string
	start func(ctx context.Context, dir, origin string) (*running, error)
}

// A running system.
type running struct {
	dial func() (net.Conn, error)
	pids []int // of all its processes
	stop func()
}

var systems = []system{
	{"bare-pair", startBare},
	{"exit", func(ctx context.Context, dir, origin string) (*running, error) {
		return startBoxes(ctx, dir, origin, "exit", "", "")
	}},
	{"forward", func(ctx context.Context, dir, origin string) (*running, error) {
		other := fmt.Sprintf("[pt.other]\nexec = [%q]\ntransports = [\"obfs4\"]\n", *pt)
		return startBoxes(ctx, dir, origin, "forward", fmt.Sprintf("forward = %q\n", origin), other)
	}},
	{"direct", startDirect},
}

// startBare runs the two PT processes with nothing around them.
func startBare(ctx context.Context, dir, origin string) (*running, error) {
	server := adapter.NewServer(adapter.ServerConfig{Forward: origin,
		Config: adapter.Config{Exec: []string{*pt}, StateDir: filepath.Join(dir, "s")}})
	if err := server.AddTransport("obfs4", "127.0.0.1:0", nil); err != nil {
		return nil, err
	}
	if err := server.Start(ctx); err != nil {
		return nil, err
	}
	client := adapter.NewClient(adapter.ClientConfig{Transports: []string{"obfs4"},
		Config: adapter.Config{Exec: []string{*pt}, StateDir: filepath.Join(dir, "c")}})
	if err := client.Start(ctx); err != nil {
		server.Close()
		return nil, err
	}
	m, err := server.Method("obfs4")
	if err != nil {
		return nil, err
	}
	return &running{
		dial: func() (net.Conn, error) { return client.DialTransport(ctx, "obfs4", m.Addr, m.Args) },
		pids: children(os.Getpid()),
		stop: func() { client.Close(); server.Close() },
	}, nil
}

// startBoxes runs both boxes with the documented configuration.
func startBoxes(ctx context.Context, dir, origin, far, serve, more string) (*running, error) {
	bind, socks, err := twoPorts()
	if err != nil {
		return nil, err
	}
	server := filepath.Join(dir, "server.toml")
	text := fmt.Sprintf("state_dir = %q\n[[serve]]\ntransport = \"obfs4\"\nbind = %q\n%s", filepath.Join(dir, "s"), bind, serve) + more
	if serve == "" {
		text += "[exit]\ndeny = []\n"
	}
	s, err := startPtgate(ctx, server, text, bind)
	if err != nil {
		return nil, err
	}
	line, err := exec.CommandContext(ctx, *ptgate, "bridges", "-c", server).Output()
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("bridges: %w", err)
	}
	c, err := startPtgate(ctx, filepath.Join(dir, "client.toml"), fmt.Sprintf("state_dir = %q\n[listen]\nsocks5 = %q\n[bridge.far]\nline = %q\nfar = %q\n[[route]]\nto = \"*\"\nvia = \"far\"\n",
		filepath.Join(dir, "c"), socks, strings.TrimSpace(string(line)), far)+more, socks)
	if err != nil {
		s.stop()
		return nil, err
	}
	return &running{
		dial: func() (net.Conn, error) { return dialSOCKS(socks, origin) },
		pids: append(s.pids, c.pids...),
		stop: func() { c.stop(); s.stop() },
	}, nil
}

func startDirect(ctx context.Context, dir, origin string) (*running, error) {
	_, socks, err := twoPorts()
	if err != nil {
		return nil, err
	}
	r, err := startPtgate(ctx, filepath.Join(dir, "direct.toml"), fmt.Sprintf("state_dir = %q\n[listen]\nsocks5 = %q\n[[route]]\nto = \"*\"\nvia = \"direct\"\nprivate = true\n",
		filepath.Join(dir, "d"), socks), socks)
	if err != nil {
		return nil, err
	}
	r.dial = func() (net.Conn, error) { return dialSOCKS(socks, origin) }
	return r, nil
}

// startPtgate runs a configuration until its port accepts.
func startPtgate(ctx context.Context, path, text, port string) (*running, error) {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return startProgram(exec.CommandContext(ctx, *ptgate, "run", "-c", path), port)
}

// startProgram runs a program until its port accepts.
func startProgram(cmd *exec.Cmd, addr string) (*running, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
	}
	for range 1000 {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return &running{pids: []int{cmd.Process.Pid}, stop: stop}, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("%s ended: %s", cmd.Path, &out)
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	return nil, fmt.Errorf("%s does not accept: %s", cmd.Path, &out)
}

func twoPorts() (a, b string, err error) {
	for _, p := range []*string{&a, &b} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer ln.Close()
		*p = ln.Addr().String()
	}
	return a, b, nil
}

// dialSOCKS is an application that sends one message a round trip.
func dialSOCKS(proxy, target string) (net.Conn, error) {
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		return nil, err
	}
	t := netip.MustParseAddrPort(target)
	request := append([]byte{5, 1, 0, 1}, t.Addr().AsSlice()...)
	request = append(request, byte(t.Port()>>8), byte(t.Port()))
	var b [10]byte
	step := func(out []byte, n int) error {
		if _, err := c.Write(out); err != nil {
			return err
		}
		return readFull(c, b[:n])
	}
	err = step([]byte{5, 1, 0}, 2)
	if err == nil {
		err = step(request, 10)
	}
	if err == nil && b[1] != 0 {
		err = fmt.Errorf("reply code %d", b[1])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
