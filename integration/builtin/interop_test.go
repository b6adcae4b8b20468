//go:build integration

// Package builtin_test runs the built-in transports against the programs that
// other people run: Debian's obfs4proxy, lyrebird, and webtunnel's own server.
package builtin_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

const role = "PTGATE_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(role) == "pt" {
		os.Exit(builtin.Main(context.Background(), os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

// A program is a pluggable transport as a child.
type program struct {
	exec []string
	env  []string
}

// programs are all that speak transport in that role, ours under "ptgate pt".
func programs(t *testing.T, transport string, server bool) map[string]program {
	t.Helper()
	ours := program{[]string{os.Args[0]}, []string{role + "=pt"}}
	if transport == "obfs4" {
		return map[string]program{
			"ptgate pt":  ours,
			"obfs4proxy": {exec: []string{realpt.Program(t, "obfs4proxy")}},
			"lyrebird":   {exec: []string{realpt.Lyrebird(t)}},
		}
	}
	if server {
		return map[string]program{"ptgate pt": ours, "webtunnel": {exec: []string{realpt.WebtunnelServer(t)}}}
	}
	// webtunnel's own client refuses loopback addresses; lyrebird carries it, too.
	return map[string]program{"ptgate pt": ours, "lyrebird": {exec: []string{realpt.Lyrebird(t)}}}
}

// echo answers with what it gets until the other side ends.
func echo[C net.Conn](c C) { _, _ = io.Copy(c, c) }

func echoServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return harness.Serve(t, ln, echo[net.Conn])
}

// options are what a server of transport needs, and then announces, at bind.
func options(transport, bind string) adapter.Args {
	if transport == "webtunnel" {
		return adapter.Args{{Key: "url", Value: "http://" + bind + "/secret"}}
	}
	return nil
}

// roundTrip sends 8 MiB and expects them back.
func roundTrip(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	data := make([]byte, 8<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	got := make([]byte, len(data))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes back, %v", n, err)
		_ = c.Close()
	}
}

type far struct {
	addr string
	args adapter.Args
}

func startServer(t *testing.T, transport string, p program, state string) far {
	t.Helper()
	s := adapter.NewServer(adapter.ServerConfig{Config: adapter.Config{Exec: p.exec, Env: p.env, StateDir: state}, Forward: echoServer(t)})
	bind := ports.Free(t)
	if err := s.AddTransport(transport, bind, options(transport, bind)); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	m, err := s.Method(transport)
	if err != nil {
		t.Fatal(err)
	}
	return far{bind, m.Args}
}

func startInProcess(t *testing.T, transport, state string) far {
	t.Helper()
	bind := ports.Free(t)
	l, err := builtin.Listen(builtin.ServerConfig{Transport: transport, StateDir: state, Bind: bind, Options: options(transport, bind)})
	if err != nil {
		t.Fatal(err)
	}
	harness.Serve(t, l, echo[builtin.Conn])
	return far{bind, l.Args()}
}

func TestEveryPair(t *testing.T) {
	for _, transport := range []string{"obfs4", "webtunnel"} {
		fars := map[string]far{"in process": startInProcess(t, transport, t.TempDir())}
		for name, p := range programs(t, transport, true) {
			fars[name] = startServer(t, transport, p, t.TempDir())
		}
		inProcess, err := builtin.NewClient(builtin.ClientConfig{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		clients := map[string]func(far) (net.Conn, error){
			"in process": func(f far) (net.Conn, error) {
				return inProcess.Dial(t.Context(), f.addr, f.args)
			},
		}
		for name, p := range programs(t, transport, false) {
			c := adapter.NewClient(adapter.ClientConfig{Config: adapter.Config{Exec: p.exec, Env: p.env}, Transports: []string{transport}})
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			clients[name] = func(f far) (net.Conn, error) { return c.DialTransport(t.Context(), transport, f.addr, f.args) }
		}
		for client, dial := range clients {
			for server, f := range fars {
				t.Run(transport+"/"+client+" to "+server, func(t *testing.T) {
					c, err := dial(f)
					if err != nil {
						t.Fatal(err)
					}
					roundTrip(t, c)
				})
			}
		}
	}
}

// The same state directory serves ours and Debian's program in turn, and clients
// keep their bridge line.
func TestStateIsShared(t *testing.T) {
	state := t.TempDir()
	all := programs(t, "obfs4", true)
	var cert string
	for _, name := range []string{"obfs4proxy", "ptgate pt", "lyrebird", "ptgate pt", "obfs4proxy"} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			f := startServer(t, "obfs4", all[name], state)
			got, _ := f.args.Get("cert")
			if cert == "" {
				cert = got
			}
			if got != cert || cert == "" {
				t.Errorf("cert %q, before %q", got, cert)
			}
		})
	}
}

// With ours at both ends of the wire, an end in one direction leaves the other
// one alone, although neither parent asks for it.
func TestHalfCloseBetweenOurs(t *testing.T) {
	p := program{[]string{os.Args[0]}, []string{role + "=pt"}}
	f := startServer(t, "obfs4", p, t.TempDir())
	c := adapter.NewClient(adapter.ClientConfig{Config: adapter.Config{Exec: p.exec, Env: p.env}, Transports: []string{"obfs4"}})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	conn, err := c.DialTransport(t.Context(), "obfs4", f.addr, f.args)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data := make([]byte, 4<<20)
	tcp := conn.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = conn.Write(data)
		_ = tcp.CloseWrite()
	})
	if got, err := io.ReadAll(conn); err != nil || len(got) != len(data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	wg.Wait()
}
