package builtin

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"

	"ptgate/adapter"
	"ptgate/integration/ports"
)

// limit bounds every wait in these tests; it is reached only by a fault.
const limit = time.Minute

// A ptProcess is this test binary run as a pluggable transport.
type ptProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string // of stdout, closed at its end
	ended chan error
}

// startPT runs Main in a child with exactly that environment beside the common
// variables.
func startPT(t *testing.T, env ...string) *ptProcess {
	t.Helper()
	p := &ptProcess{t: t, cmd: exec.Command(os.Args[0]), lines: make(chan string, 1000), ended: make(chan error, 1)}
	p.cmd.Env = append([]string{
		"BUILTIN_TEST_ROLE=pt", "GORACE=atexit_sleep_ms=0", "GOCOVERDIR=" + t.TempDir(),
		"TOR_PT_MANAGED_TRANSPORT_VER=1", "TOR_PT_EXIT_ON_STDIN_CLOSE=1",
		"TOR_PT_STATE_LOCATION=" + filepath.Join(t.TempDir(), "state"),
	}, env...)
	var stderr bytes.Buffer
	p.cmd.Stderr = &stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s := bufio.NewScanner(stdout)
		for s.Scan() {
			p.lines <- s.Text()
		}
		close(p.lines)
		p.ended <- p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		for range p.lines {
		}
		for range p.ended {
		}
		if stderr.Len() > 0 {
			t.Errorf("the child's stderr: %s", &stderr)
		}
	})
	return p
}

// until returns the lines up to one that begins with prefix, that included.
func (p *ptProcess) until(prefix string) []string {
	p.t.Helper()
	var got []string
	after := time.After(limit)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("the child ended; it said %q and no %q", got, prefix)
			}
			got = append(got, line)
			if strings.HasPrefix(line, prefix) {
				return got
			}
		case <-after:
			p.t.Fatalf("the child said %q and no %q", got, prefix)
		}
	}
}

// exit waits for the child's end and returns its code.
func (p *ptProcess) exit() int {
	p.t.Helper()
	go func() {
		for range p.lines {
		}
	}()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatal("the child does not end")
		return -1
	}
}

// cmethod is the address in the CMETHOD line of transport.
func cmethod(t *testing.T, lines []string, transport string) string {
	t.Helper()
	for _, line := range lines {
		if addr, ok := strings.CutPrefix(line, "CMETHOD "+transport+" socks5 "); ok {
			return addr
		}
	}
	t.Fatalf("no CMETHOD for %s in %q", transport, lines)
	return ""
}

// socks asks the child at socksAddr for target with args and gives the connection
// and the reply.
func socks(t *testing.T, socksAddr, target string, args adapter.Args) (*net.TCPConn, byte) {
	t.Helper()
	c, err := net.Dial("tcp", socksAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(limit))
	escape := strings.NewReplacer(`\`, `\\`, `=`, `\=`, `;`, `\;`)
	var pairs []string
	for _, a := range args {
		pairs = append(pairs, escape.Replace(a.Key)+"="+escape.Replace(a.Value))
	}
	user, password := strings.Join(pairs, ";"), "\x00"
	if len(user) > 255 {
		user, password = user[:255], user[255:]
	}
	expect := func(want ...byte) {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("socks: got %x, %v; want %x", got, err, want)
		}
	}
	if len(args) == 0 {
		_, _ = c.Write([]byte{5, 1, 0})
		expect(5, 0)
	} else {
		_, _ = c.Write([]byte{5, 1, 2})
		expect(5, 2)
		_, _ = c.Write(slices.Concat([]byte{1, byte(len(user))}, []byte(user), []byte{byte(len(password))}, []byte(password)))
		expect(1, 0)
	}
	addr := net.TCPAddrFromAddrPort(mustAddrPort(t, target))
	_, _ = c.Write(binary.BigEndian.AppendUint16(append([]byte{5, 1, 0, 1}, addr.IP.To4()...), uint16(addr.Port)))
	reply := make([]byte, 10)
	if _, err := io.ReadFull(c, reply); err != nil {
		t.Fatalf("socks reply: %v", err)
	}
	_ = c.SetDeadline(time.Time{})
	return c.(*net.TCPConn), reply[1]
}

// orPort is the parent's side of a server: what handle does with each connection.
func orPort(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// echoAtEnd reads to the end and only then answers with all of it.
func echoAtEnd(c *net.TCPConn) {
	b, err := io.ReadAll(c)
	if err != nil {
		return
	}
	_, _ = c.Write(b)
}

// startServerPT runs a server child and returns where clients dial, and with what.
func startServerPT(t *testing.T, transport string, env ...string) (p *ptProcess, addr string, args adapter.Args) {
	t.Helper()
	bind := ports.Free(t)
	env = append(env, "TOR_PT_SERVER_TRANSPORTS="+transport, "TOR_PT_SERVER_BINDADDR="+transport+"-"+bind)
	if transport == nameWebtunnel {
		env = append(env, "TOR_PT_SERVER_TRANSPORT_OPTIONS=webtunnel:url=http\\://"+strings.ReplaceAll(bind, ":", "\\:")+"/secret")
	}
	p = startPT(t, env...)
	lines := p.until("SMETHODS DONE")
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) != 4 || fields[0] != "SMETHOD" || fields[1] != transport {
			continue
		}
		for pair := range strings.SplitSeq(strings.TrimPrefix(fields[3], "ARGS:"), ",") {
			key, value, _ := strings.Cut(pair, "=")
			args = append(args, adapter.Arg{Key: key, Value: strings.ReplaceAll(value, `\`, "")})
		}
		if transport == nameObfs4 && fields[2] != bind {
			t.Errorf("announced %s, bound %s", fields[2], bind)
		}
		if transport == nameWebtunnel && !strings.HasPrefix(fields[2], "[2001:db8:") {
			t.Errorf("announced %s, not a placeholder", fields[2])
		}
		return p, bind, args
	}
	t.Fatalf("no SMETHOD in %q", lines)
	return nil, "", nil
}

func TestMainCarriesBothRoles(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			_, addr, args := startServerPT(t, transport, "TOR_PT_ORPORT="+orPort(t, echoAtEnd))
			p := startPT(t, "TOR_PT_CLIENT_TRANSPORTS="+transport)
			ln := cmethod(t, p.until("CMETHODS DONE"), transport)
			data := randomBytes(t, 4<<20)
			var wg sync.WaitGroup
			for range 4 {
				c, reply := socks(t, ln, addr, args)
				if reply != 0 {
					t.Fatalf("reply %d", reply)
				}
				wg.Go(func() {
					if _, err := c.Write(data); err != nil {
						t.Errorf("write: %v", err)
					}
					_ = c.CloseWrite()
				})
				wg.Go(func() {
					// The answer comes after our end: half-close works.
					got, err := io.ReadAll(c)
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("got %d bytes of %d, %v", len(got), len(data), err)
					}
				})
			}
			wg.Wait()
			_ = p.stdin.Close()
			if code := p.exit(); code != 0 {
				t.Errorf("exit code %d after stdin closed", code)
			}
		})
	}
}

// A reset passes through both children as one, in both directions.
func TestMainPassesResets(t *testing.T) {
	for _, fromClient := range []bool{true, false} {
		t.Run(fmt.Sprint("from client ", fromClient), func(t *testing.T) {
			far := make(chan *net.TCPConn)
			done := make(chan struct{})
			_, addr, args := startServerPT(t, nameObfs4, "TOR_PT_ORPORT="+orPort(t, func(c *net.TCPConn) {
				far <- c
				<-done
			}))
			defer close(done)
			p := startPT(t, "TOR_PT_CLIENT_TRANSPORTS=obfs4")
			ln := cmethod(t, p.until("CMETHODS DONE"), nameObfs4)
			near, reply := socks(t, ln, addr, args)
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			cause, effect := near, <-far
			if !fromClient {
				cause, effect = effect, cause
			}
			if _, err := cause.Write([]byte("part")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 4)
			if _, err := io.ReadFull(effect, got); err != nil {
				t.Fatal(err)
			}
			newLink(cause, 0).Abort()
			_ = effect.SetReadDeadline(time.Now().Add(limit))
			if _, err := effect.Read(got); !isReset(err) {
				t.Errorf("the other side sees %v", err)
			}
		})
	}
}

func TestMainConversation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		env  []string
		want []string // prefixes of lines, in this order
		code int      // -1: it goes on
	}{
		"unknown beside known": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs9,obfs4,meek_lite,webtunnel"},
			[]string{"VERSION 1", "STATUS TYPE=version IMPLEMENTATION=\"ptgate\"", "CMETHOD-ERROR obfs9 ", "CMETHOD obfs4 socks5 127.0.0.1:",
				"CMETHOD meek_lite socks5 127.0.0.1:", "CMETHOD webtunnel socks5 127.0.0.1:", "CMETHODS DONE"}, -1,
		},
		"only unknown": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs9"},
			[]string{"VERSION 1", "CMETHOD-ERROR obfs9 ", "CMETHODS DONE"}, 1,
		},
		"version": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_MANAGED_TRANSPORT_VER=2"},
			[]string{"VERSION-ERROR no-version"}, 1,
		},
		"neither role": {nil, []string{"ENV-ERROR "}, 1},
		"both roles": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_SERVER_TRANSPORTS=obfs4"},
			[]string{"ENV-ERROR "}, 1,
		},
		"no state": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_STATE_LOCATION="},
			[]string{"VERSION 1", "CMETHOD obfs4 ", "CMETHODS DONE"}, -1,
		},
		"state is a file": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_STATE_LOCATION=" + file},
			[]string{"VERSION 1", "CMETHOD obfs4 ", "CMETHODS DONE"}, -1,
		},
		"server without state": {
			[]string{"TOR_PT_SERVER_TRANSPORTS=obfs4", "TOR_PT_ORPORT=127.0.0.1:9",
				"TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0", "TOR_PT_STATE_LOCATION="},
			[]string{"VERSION 1", "ENV-ERROR "}, 1,
		},
		"server whose state is a file": {
			[]string{"TOR_PT_SERVER_TRANSPORTS=obfs4", "TOR_PT_ORPORT=127.0.0.1:9",
				"TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0", "TOR_PT_STATE_LOCATION=" + file},
			[]string{"VERSION 1", "ENV-ERROR TOR_PT_STATE_LOCATION can't be used: mkdir " + file + ": not a directory"}, 1,
		},
		"server whose state is below a file": {
			[]string{"TOR_PT_SERVER_TRANSPORTS=obfs4", "TOR_PT_ORPORT=127.0.0.1:9",
				"TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0", "TOR_PT_STATE_LOCATION=" + filepath.Join(file, "state")},
			[]string{"VERSION 1", "ENV-ERROR TOR_PT_STATE_LOCATION can't be used: "}, 1,
		},
		"server without an address": {
			[]string{"TOR_PT_SERVER_TRANSPORTS=obfs4,obfs9", "TOR_PT_ORPORT=127.0.0.1:9", "TOR_PT_SERVER_BINDADDR=obfs3-127.0.0.1:0"},
			[]string{"VERSION 1", "STATUS ", "SMETHOD-ERROR obfs4 TOR_PT_SERVER_BINDADDR ", "SMETHOD-ERROR obfs9 ", "SMETHODS DONE"}, 1,
		},
		"proxy": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_PROXY=socks5://user:secret@127.0.0.1:1"},
			[]string{"VERSION 1", "PROXY DONE", "CMETHOD obfs4 ", "CMETHODS DONE"}, -1,
		},
		"proxy by name": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_PROXY=socks5://localhost:1080"},
			[]string{"VERSION 1", "PROXY-ERROR "}, 1,
		},
		"proxy scheme": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_PROXY=socks5h://127.0.0.1:1080"},
			[]string{"VERSION 1", "PROXY-ERROR "}, 1,
		},
		"proxy without port": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_PROXY=http://127.0.0.1"},
			[]string{"VERSION 1", "PROXY-ERROR malformed"}, 1,
		},
		"bind addresses": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_OUTBOUND_BIND_ADDRESS_V4=127.0.0.2", "TOR_PT_OUTBOUND_BIND_ADDRESS_V6=[::1]"},
			[]string{"VERSION 1", "CMETHOD obfs4 ", "CMETHODS DONE"}, -1,
		},
		"bind address of the wrong family": {
			[]string{"TOR_PT_CLIENT_TRANSPORTS=obfs4", "TOR_PT_OUTBOUND_BIND_ADDRESS_V4=[::1]"},
			[]string{"VERSION 1", "ENV-ERROR TOR_PT_OUTBOUND_BIND_ADDRESS_V4"}, 1,
		},
		"server": {
			[]string{"TOR_PT_SERVER_TRANSPORTS=obfs4,meek_lite,webtunnel", "TOR_PT_ORPORT=127.0.0.1:9",
				"TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0,meek_lite-127.0.0.1:0,webtunnel-127.0.0.1:0"},
			[]string{"VERSION 1", "STATUS ", "SMETHOD obfs4 127.0.0.1:", "SMETHOD-ERROR meek_lite ",
				"SMETHOD-ERROR webtunnel webtunnel: missing option 'url'", "SMETHODS DONE"}, -1,
		},
		"server without ORPort": {
			[]string{"TOR_PT_SERVER_TRANSPORTS=obfs4", "TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0"},
			[]string{"VERSION 1", "ENV-ERROR "}, 1,
		},
		"server with bad options": {
			[]string{"TOR_PT_SERVER_TRANSPORTS=obfs4", "TOR_PT_ORPORT=127.0.0.1:9",
				"TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0", "TOR_PT_SERVER_TRANSPORT_OPTIONS=obfs4:iat-mode=7"},
			[]string{"VERSION 1", "SMETHOD-ERROR obfs4 ", "SMETHODS DONE"}, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPT(t, tt.env...)
			for _, want := range tt.want {
				for _, line := range p.until(want) {
					if strings.Contains(line, "secret") {
						t.Errorf("a secret in %q", line)
					}
				}
			}
			if tt.code < 0 {
				_ = p.stdin.Close()
				tt.code = 0
			}
			if code := p.exit(); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
		})
	}
}

func TestMainReplies(t *testing.T) {
	p := startPT(t, "TOR_PT_CLIENT_TRANSPORTS=obfs4,webtunnel")
	lines := p.until("CMETHODS DONE")
	l := serverFor(t, nameObfs4, nil)
	t.Run("refused", func(t *testing.T) {
		if _, reply := socks(t, cmethod(t, lines, nameObfs4), ports.Free(t), l.Args()); reply != 5 {
			t.Errorf("reply %d", reply)
		}
	})
	t.Run("webtunnel refused", func(t *testing.T) {
		args := argsOf("url", "http://"+ports.Free(t)+"/x")
		if _, reply := socks(t, cmethod(t, lines, nameWebtunnel), "192.0.2.1:1", args); reply != 5 {
			t.Errorf("reply %d", reply)
		}
	})
	t.Run("bad arguments", func(t *testing.T) {
		if _, reply := socks(t, cmethod(t, lines, nameObfs4), ports.Free(t), argsOf("cert", "no")); reply != 1 {
			t.Errorf("reply %d", reply)
		}
	})
}

// A program that leaves while its dial is under way ends that dial.
func TestMainDialEndsWithItsProgram(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	l := serverFor(t, nameObfs4, nil)
	p := startPT(t, "TOR_PT_CLIENT_TRANSPORTS=obfs4")
	ln := cmethod(t, p.until("CMETHODS DONE"), nameObfs4)
	c, err := net.Dial("tcp", ln)
	if err != nil {
		t.Fatal(err)
	}
	args := "cert=" + l.Args()[0].Value + ";iat-mode=0"
	_, _ = c.Write([]byte{5, 1, 2})
	_, _ = io.ReadFull(c, make([]byte, 2))
	_, _ = c.Write(slices.Concat([]byte{1, byte(len(args))}, []byte(args), []byte{1, 0}))
	_, _ = io.ReadFull(c, make([]byte, 2))
	target := mustAddrPort(t, silent.Addr().String())
	_, _ = c.Write(binary.BigEndian.AppendUint16([]byte{5, 1, 0, 1, 127, 0, 0, 1}, target.Port()))
	far, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	_ = far.SetReadDeadline(time.Now().Add(limit))
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Fatalf("the handshake does not begin: %v", err)
	}
	_ = c.Close()
	if _, err := io.Copy(io.Discard, far); !isReset(err) {
		t.Errorf("the dial went on, or ended with %v", err)
	}
}

// SIGINT closes the listeners and lets streams finish; then the child ends.
func TestMainDrainsOnInterrupt(t *testing.T) {
	_, addr, args := startServerPT(t, nameObfs4, "TOR_PT_ORPORT="+orPort(t, echoAtEnd))
	p := startPT(t, "TOR_PT_CLIENT_TRANSPORTS=obfs4")
	ln := cmethod(t, p.until("CMETHODS DONE"), nameObfs4)
	c, reply := socks(t, ln, addr, args)
	if reply != 0 {
		t.Fatalf("reply %d", reply)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	untilClosed(t, ln)
	if _, err := io.WriteString(c, "still here"); err != nil {
		t.Fatal(err)
	}
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "still here" {
		t.Errorf("got %q, %v", got, err)
	}
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// untilClosed returns when nothing listens at addr any more.
func untilClosed(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		_ = c.Close()
	}
	t.Fatal("the listener stays open")
}

func TestMainEndsAtOnce(t *testing.T) {
	for name, end := range map[string]func(p *ptProcess, ln string){
		"stdin": func(p *ptProcess, _ string) { _ = p.stdin.Close() },
		"term":  func(p *ptProcess, _ string) { _ = p.cmd.Process.Signal(syscall.SIGTERM) },
		"interrupt twice": func(p *ptProcess, ln string) {
			_ = p.cmd.Process.Signal(os.Interrupt)
			// Two that arrive together count as one: the second follows when the
			// first has closed the listener.
			untilClosed(p.t, ln)
			_ = p.cmd.Process.Signal(os.Interrupt)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr, args := startServerPT(t, nameObfs4, "TOR_PT_ORPORT="+orPort(t, echoAtEnd))
			p := startPT(t, "TOR_PT_CLIENT_TRANSPORTS=obfs4")
			ln := cmethod(t, p.until("CMETHODS DONE"), nameObfs4)
			c, reply := socks(t, ln, addr, args)
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			end(p, ln)
			if code := p.exit(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			_ = c.SetReadDeadline(time.Now().Add(limit))
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("the stream ended with %v", err)
			}
		})
	}
}

// The client's address and the transport's name reach the Extended ORPort, and a
// denial ends the client's connection.
func TestMainExtendedORPort(t *testing.T) {
	secret := randomBytes(t, 32)
	type seen struct{ addr, transport string }
	got := make(chan seen, 2)
	verdicts := make(chan bool, 2)
	or := orPort(t, func(c *net.TCPConn) {
		addr, transport, err := extOR(c, secret, <-verdicts)
		if err != nil {
			t.Errorf("extended ORPort: %v", err)
			return
		}
		got <- seen{addr, transport}
		echoAtEnd(c)
	})
	_, addr, args := startServerPT(t, nameObfs4, "TOR_PT_ORPORT=", "TOR_PT_EXTENDED_SERVER_PORT="+or, "TOR_PT_AUTH_COOKIE_FILE="+cookieFile(t, secret))
	client := clientFor(t, nameObfs4, nil)
	for _, let := range []bool{true, false} {
		verdicts <- let
		c, err := client.Dial(t.Context(), addr, args)
		if err != nil {
			t.Fatal(err)
		}
		if s := <-got; s.addr != c.LocalAddr().String() || s.transport != nameObfs4 {
			t.Errorf("told %+v, want %s", s, c.LocalAddr())
		}
		if let {
			_, _ = io.WriteString(c, "hello")
		}
		_ = c.CloseWrite()
		back, err := io.ReadAll(c)
		if let != (err == nil && string(back) == "hello") {
			t.Errorf("let in %v, got %q, %v", let, back, err)
		}
		_ = c.Close()
	}
}

// cookieFile is what the parent proves itself with.
func cookieFile(t *testing.T, secret []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cookie")
	if err := os.WriteFile(path, append([]byte("! Extended ORPort Auth Cookie !\n"), secret...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// extOR is the parent's side of ext-orport-spec; let is its verdict.
func extOR(c net.Conn, secret []byte, let bool) (addr, transport string, err error) {
	_ = c.SetDeadline(time.Now().Add(limit))
	// Section 2: SAFE_COOKIE is type 1.
	if _, err := c.Write([]byte{1, 0}); err != nil {
		return "", "", err
	}
	var hello [33]byte
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return "", "", err
	}
	nonce := bytes.Repeat([]byte{7}, 32)
	mac := func(who string) []byte {
		h := hmac.New(sha256.New, secret)
		io.WriteString(h, "ExtORPort authentication "+who+" hash")
		h.Write(hello[1:])
		h.Write(nonce)
		return h.Sum(nil)
	}
	if _, err := c.Write(append(mac("server-to-client"), nonce...)); err != nil {
		return "", "", err
	}
	var proof [32]byte
	if _, err := io.ReadFull(c, proof[:]); err != nil {
		return "", "", err
	}
	if !bytes.Equal(proof[:], mac("client-to-server")) {
		return "", "", errors.New("wrong hash")
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return "", "", err
	}
	for {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return "", "", err
		}
		body := make([]byte, binary.BigEndian.Uint16(head[2:]))
		if _, err := io.ReadFull(c, body); err != nil {
			return "", "", err
		}
		switch binary.BigEndian.Uint16(head[:]) {
		case 1:
			addr = string(body)
		case 2:
			transport = string(body)
		case 0:
			verdict := []byte{0x10, 1, 0, 0}
			if let {
				verdict[1] = 0
			}
			_, err := c.Write(verdict)
			_ = c.SetDeadline(time.Time{})
			return addr, transport, err
		}
	}
}

func mustAddrPort(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

// Clients that the parent does not take, and panics that somebody has found out how
// to cause, don't fill the log.
func TestMainLogIsBounded(t *testing.T) {
	gone := mustAddrPort(t, ports.Free(t))
	info := &pt.ServerInfo{OrAddr: net.TCPAddrFromAddrPort(gone)}
	var log bytes.Buffer
	c := &child{live: t.Context(), log: slog.New(slog.NewTextHandler(&log, nil))}
	begin := time.Now()
	const n = 200
	for range n {
		a, b := tcpPair(t)
		c.carryServer(info, nameObfs4, newLink(a, 0))
		_ = b.Close()
		if !c.panics.tell(c.log, &PanicError{Transport: nameObfs4}) || c.panics.tell(c.log, errDenied) {
			t.Fatal("a panic is a panic")
		}
	}
	most := 2 * (1 + int(time.Since(begin)/time.Second))
	if got := strings.Count(log.String(), "\n"); got < 2 || got > most {
		t.Errorf("%d lines for %d clients, want %d at most", got, n, most)
	}
}
