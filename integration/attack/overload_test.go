//go:build integration

package attack

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/adapter/socks5"
	"ptgate/integration/harness"
)

// withFiles calls start, whose boxes may have n open files. The limit of the test itself
// stays: it could not be raised again.
func withFiles(t testing.TB, n int, start func()) {
	t.Helper()
	own := ptgate
	defer func() { ptgate = own }()
	ptgate = filepath.Join(t.TempDir(), "ptgate")
	if err := os.WriteFile(ptgate, fmt.Appendf(nil, "#!/bin/sh\nulimit -n %d\nexec '%s' \"$@\"\n", n, own), 0o755); err != nil {
		t.Fatal(err)
	}
	start()
}

// allPorts are ports for programs of every kind.
const allPorts = "[listen]\nmixed = \"127.0.0.1:0\"\nsocks5 = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n"

// anyGateway is a gateway with allPorts. more is the rest of its bridge and its
// configuration.
func anyGateway(t testing.TB, b bridge, more string) *box {
	t.Helper()
	return start(t, "gateway", allPorts+fmt.Sprintf("[[route]]\nto = \"*\"\nvia = \"far\"\n[bridge.far]\ntransport = \"obfs4\"\naddress = %q\nargs = { cert = %q, iat-mode = \"0\" }\n", b.address, b.cert)+more)
}

// patient makes a gateway answer programs when the far end has answered.
const patient = "optimistic = \"never\"\n"

// answers counts what a crowd of clients is told.
type answers struct {
	granted, refused int
	other            []error // neither: no answer, or another one
}

func (a answers) String() string {
	text := fmt.Sprintf("%d granted, %d refused, %d without a proper answer", a.granted, a.refused, len(a.other))
	if len(a.other) > 0 {
		text += fmt.Sprintf(": %v", a.other[0])
	}
	return text
}

// A way is how a program asks for a connection to a port of this machine. The error is
// errRefused if it gets the proper answer to one too many.
type way func(proxy string, port uint16) (net.Conn, error)

var errRefused = errors.New("refused: a limit is reached")

func bySOCKS(proxy string, port uint16) (net.Conn, error) {
	c, err := through(proxy, port, patience)
	if code, ok := errors.AsType[socks5.ReplyError](err); ok && code == 1 {
		return nil, errRefused
	}
	return c, err
}

func bySOCKS4(proxy string, port uint16) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", proxy, patience)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte{4, 1, byte(port >> 8), byte(port), 127, 0, 0, 1, 0})
	var reply [8]byte
	if _, err = io.ReadFull(c, reply[:]); err == nil {
		switch reply[1] {
		case 90:
			c.SetDeadline(time.Time{})
			return c, nil
		case 91:
			err = errRefused
		default:
			err = fmt.Errorf("SOCKS4 reply %d", reply[1])
		}
	}
	c.Close()
	return nil, err
}

func byHTTP(proxy string, port uint16) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", proxy, patience)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", port, port)
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		var one [1]byte
		if _, err := io.ReadFull(c, one[:]); err != nil {
			c.Close()
			return nil, fmt.Errorf("after %q: %w", head, err)
		}
		head = append(head, one[0])
	}
	switch {
	case bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")):
		c.SetDeadline(time.Time{})
		return c, nil
	case bytes.HasPrefix(head, []byte("HTTP/1.1 503 ")):
		err = errRefused
	default:
		err = fmt.Errorf("%.60q", head)
	}
	c.Close()
	return nil, err
}

// crowd opens n connections at once, and keeps those that are granted until the function
// that it returns is called.
func crowd(ask way, proxy string, port uint16, n int) (a answers, leave func()) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var conns []net.Conn
	for range n {
		wg.Go(func() {
			c, err := ask(proxy, port)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				a.granted++
				conns = append(conns, c)
			case errors.Is(err, errRefused):
				a.refused++
			default:
				a.other = append(a.other, err)
			}
		})
	}
	wg.Wait()
	return a, func() {
		for _, c := range conns {
			c.Close()
		}
	}
}

// TestOverload has 400 programs at once where there is place for fewer: by
// limits.connections, or because the box may have 256 open files only. Each is served or
// gets the proper refusal, also later while the others stay, and when they have gone all
// is as before.
func TestOverload(t *testing.T) {
	const many, files = 400, 256
	few := "[limits]\nconnections = 200\n"
	const direct = allPorts + "[[route]]\nto = [\"127.0.0.0/8\"]\nvia = \"direct\"\n"
	for _, tt := range []struct {
		name  string
		boxes func(t *testing.T) (attacked, gateway *box)
		exact int // granted; 0: as many as there are descriptors for
	}{
		{"limit of the gateway", func(t *testing.T) (*box, *box) {
			_, to := startServer(t, "")
			g := anyGateway(t, to, few)
			return g, g
		}, 200},
		{"limit of the exit", func(t *testing.T) (*box, *box) {
			s, to := startServer(t, few)
			return s, anyGateway(t, to, patient)
		}, 200},
		{"descriptors of the gateway", func(t *testing.T) (g, _ *box) {
			_, to := startServer(t, "")
			withFiles(t, files, func() { g = anyGateway(t, to, "") })
			return g, g
		}, 0},
		{"descriptors of a gateway without bridges", func(t *testing.T) (g, _ *box) {
			withFiles(t, files, func() { g = start(t, "gateway", direct) })
			return g, g
		}, 0},
		{"descriptors of a gateway that asks who owns each", func(t *testing.T) (g, _ *box) {
			withFiles(t, files, func() {
				g = start(t, "gateway", strings.Replace(direct, "[[route]]", "owners = \"self\"\n[[route]]", 1))
			})
			return g, g
		}, 0},
		{"descriptors of the exit", func(t *testing.T) (s, g *box) {
			var to bridge
			withFiles(t, files, func() { s, to = startServer(t, "") })
			return s, anyGateway(t, to, patient)
		}, 0},
	} {
		for _, front := range []struct {
			name, port string
			ask        way
		}{{"SOCKS5", "mixed", bySOCKS}, {"SOCKS4", "mixed", bySOCKS4}, {"HTTP", "mixed", byHTTP},
			{"SOCKS5", "socks5", bySOCKS}, {"HTTP", "http", byHTTP}} {
			t.Run(tt.name+", "+front.name+" to "+front.port, func(t *testing.T) {
				attacked, gateway := tt.boxes(t)
				proxy, origin := port(gateway, front.port), listen(t, echo)
				works := func(when string) {
					t.Helper()
					for range 20 {
						c, err := front.ask(proxy, origin.port())
						if err == nil {
							err = cmp.Or(roundTrip(c), finish(c))
							c.Close()
						}
						if err != nil {
							t.Fatalf("%s: %v", when, err)
						}
					}
				}
				works("before")
				base := attacked.usage()
				a, leave := crowd(front.ask, proxy, origin.port(), many)
				t.Logf("%d at once: %v", many, a)
				if len(a.other) > 0 || tt.exact != 0 && a.granted != tt.exact || a.granted < 40 {
					t.Errorf("%d at once: %v", many, a)
				}
				more, leaveMore := crowd(front.ask, proxy, origin.port(), 40)
				t.Logf("40 more while these stay: %v", more)
				if len(more.other) > 0 {
					t.Errorf("40 more while these stay: %v", more)
				}
				leaveMore()
				leave()
				if !harness.Eventually(back, func() bool {
					c, err := front.ask(proxy, origin.port())
					if err == nil {
						c.Close()
					}
					return err == nil
				}) {
					t.Error("the service does not come back")
				}
				attacked.recovers(base, back)
				works("afterwards")
			})
		}
	}
}

func roundTrip(c net.Conn) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// finish ends a connection from this side, and waits for the end of the other one: a box
// that is about to be counted has no place taken by it any more.
func finish(c net.Conn) error {
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// TestSilentProgramsTakeDescriptors has more silent connections to the gateway's port than
// it may have open files. Programs that ask get an answer meanwhile, and are served when
// the silent ones have gone.
func TestSilentProgramsTakeDescriptors(t *testing.T) {
	const files = 256
	_, to := startServer(t, "")
	var g *box
	withFiles(t, files, func() { g = startGateway(t, to, "") })
	proxy, origin := g.listens(0), listen(t, echo)
	var silent []net.Conn
	for range 2 * files {
		silent = append(silent, knock(t, attackerHost, proxy, nil))
	}
	a, leave := crowd(bySOCKS, proxy, origin.port(), 20)
	leave()
	t.Logf("beside %d silent ones: %v", len(silent), a)
	if len(a.other) > 0 {
		t.Errorf("beside silent connections: %v", a)
	}
	for _, c := range silent {
		c.Close()
	}
	if !harness.Eventually(back, func() bool {
		a, leave := crowd(bySOCKS, proxy, origin.port(), 1)
		leave()
		return a.granted == 1
	}) {
		t.Error("the service does not come back")
	}
}

// TestIdleConnectionsTakeDescriptors is TestIdleConnectionsFillThePort for a server that
// may have 256 open files: new clients are served beside 400 silent connections.
func TestIdleConnectionsTakeDescriptors(t *testing.T) {
	const files, honest = 256, 40
	var server *box
	var to bridge
	withFiles(t, files, func() { server, to = startServer(t, "") })
	exit := listen(t, echo)
	base := server.usage()
	var silent []*net.TCPConn
	for i := range 400 {
		silent = append(silent, knock(t, fmt.Sprintf("127.0.0.%d", 2+i%4), to.address, nil))
	}
	good, slowest := clients(t, to, "127.0.0.1", honest, func(c net.Conn) error {
		client := socks5.Client{Command: socks5.Connect, Addr: socks5.Addr{IP: loopback, Port: exit.port()}}
		_, err := client.Do(c)
		return err
	})
	t.Logf("%d of %d served beside %d idle connections, slowest %v", good, honest, len(silent), slowest)
	if good != honest {
		t.Errorf("%d of %d honest clients are served", good, honest)
	}
	for _, c := range silent {
		c.Close()
	}
	server.recovers(base, back)
}
