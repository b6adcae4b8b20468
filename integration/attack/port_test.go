//go:build integration

package attack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/socks5"
	"ptgate/gateway/stream"
	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// scanner is an address that probes come from.
const scanner = "192.0.2.5"

// inOwnNetwork runs the test once more, in a network of its own where all of 192.0.2.0/24
// is this machine. There it returns true. A server may treat loopback as it treats no other
// network.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	const inside = "PTGATE_TEST_NETWORK"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("unshare", "--net", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=own", "PTGATE_TEST_PROGRAM="+ptgate)
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Errorf("in a network of its own: %v", err)
		}
		return false
	}
	for _, args := range []string{"link set lo up", "addr add 192.0.2.1/24 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	return true
}

// knock connects from an address of this machine to a port, sends text, and stays.
func knock(t testing.TB, from, to string, text []byte) *net.TCPConn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Write(text) // the other side may have closed already
	return c.(*net.TCPConn)
}

// An end says how a connection was ended; "": it is open, and nothing has come.
func ended(c *net.TCPConn) string {
	if stream.Quiet(c) {
		return ""
	}
	n, err := c.Read(make([]byte, 1))
	switch {
	case n > 0:
		return "answered"
	case err == io.EOF:
		return "closed"
	}
	return "reset"
}

// clients makes honest connections, some at a time, and tells how many were served.
func clients(t testing.TB, to bridge, from string, n int, use func(net.Conn) error) (good int, slowest time.Duration) {
	t.Helper()
	const atOnce = 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range atOnce {
		wg.Go(func() {
			for range n / atOnce {
				begin := time.Now()
				c, err := dial(t, to, from)
				if err == nil {
					c.SetDeadline(time.Now().Add(patience))
					err = use(c)
					c.Close()
				}
				took := time.Since(begin)
				if err == nil && took > requestLimit {
					err = fmt.Errorf("served after %v", took)
				}
				mu.Lock()
				if slowest = max(slowest, took); err == nil {
					good++
				} else {
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		t.Logf("one of the errors: %v", failed)
	}
	return good, slowest
}

// obfs4proxy runs the program of that name with the server's keys, and leads its clients to
// an echo.
func obfs4proxy(t testing.TB, state string) bridge {
	t.Helper()
	s := adapter.NewServer(adapter.ServerConfig{
		Config:  adapter.Config{Exec: []string{realpt.Program(t, "obfs4proxy")}, StateDir: state},
		Forward: listen(t, echo).Addr().String(),
	})
	if err := s.AddTransport("obfs4", "127.0.0.1:0", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	m, err := s.Method("obfs4")
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := m.Args.Get("cert")
	return bridge{m.Addr, cert}
}

// TestIdleConnectionsFillThePort has connections to the obfs4 port that send nothing, from
// the address of honest clients and from others. All honest clients are served, as by
// obfs4proxy.
func TestIdleConnectionsFillThePort(t *testing.T) {
	const honest = 120
	if !inOwnNetwork(t) {
		return
	}
	server, to := startServer(t, "")
	exit := listen(t, echo)
	throughExit := func(c net.Conn) error {
		client := socks5.Client{Command: socks5.Connect, Addr: socks5.Addr{IP: loopback, Port: exit.port()}}
		_, err := client.Do(c)
		return err
	}
	throughEcho := func(c net.Conn) error {
		c.Write([]byte("x"))
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	proxy := obfs4proxy(t, t.TempDir())
	base := server.usage()
	server.forgetPeak()
	for _, tt := range []struct {
		addresses, each int
	}{{1, 300}, {8, 256}} {
		var silent []*net.TCPConn
		for _, port := range []string{to.address, proxy.address} {
			for i := range tt.addresses {
				for range tt.each {
					silent = append(silent, knock(t, fmt.Sprintf("192.0.2.%d", 1+i), port, nil))
				}
			}
		}
		good, slowest := clients(t, to, "192.0.2.1", honest, throughExit)
		peer, peerSlowest := clients(t, proxy, "192.0.2.1", honest, throughEcho)
		t.Logf("%d addresses with %d idle connections each: %d of %d served, slowest %v; obfs4proxy: %d, %v",
			tt.addresses, tt.each, good, honest, slowest, peer, peerSlowest)
		if good != honest {
			t.Errorf("%d of %d honest clients are served", good, honest)
		}
		ends := map[string]int{}
		for _, c := range silent {
			ends[ended(c)]++
			c.Close()
		}
		if ends[""] != len(silent) {
			t.Errorf("idle connections were ended: %v", ends)
		}
	}
	server.grewLittle(base)
	server.recovers(base, back)
}

// longer makes TestProbesSeeObfs4 wait until both programs have closed every connection:
// up to a minute and a half.
const longer = "PTGATE_TEST_LONG"

// TestProbesSeeObfs4 sends the same probes to ptgate and to obfs4proxy, which have the same
// keys and so the same times. The probes come alone, and in and after bursts of idle
// connections: the 257th of an address, the 1025th in all, and 9000 of one address. What
// comes back must be the same.
func TestProbesSeeObfs4(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	state := t.TempDir()
	// obfs4's server makes the keys.
	made, err := builtin.Listen(builtin.ServerConfig{Transport: "obfs4", StateDir: state, Bind: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	made.Close()
	both := []string{"ptgate", "obfs4proxy"}
	addr := map[string]string{"obfs4proxy": obfs4proxy(t, state).address, "ptgate": ports.Free(t)}
	server := start(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = %q\npublic = %q\n%s", addr["ptgate"], addr["ptgate"], options(t, state)))
	base := server.usage()

	garbage := func(n int) []byte { return bytes.Repeat([]byte{0xc3}, n) }
	kinds := []struct {
		name string
		text []byte
		end  bool // the probe ends its side
	}{
		{"nothing", nil, false},
		{"the end", nil, true},
		{"one byte", garbage(1), false},
		{"one byte and the end", garbage(1), true},
		{"100 bytes", garbage(100), false},
		{"100 bytes and the end", garbage(100), true},
		{"1500 bytes", garbage(1500), false},
		{"8191 bytes", garbage(8191), false},
		{"8192 bytes", garbage(8192), false},
		{"8193 bytes", garbage(8193), false},
		{"8193 bytes and the end", garbage(8193), true},
		{"9000 bytes", garbage(9000), false},
		{"100000 bytes", garbage(100_000), false},
		{"100000 bytes and the end", garbage(100_000), true},
		{"TLS", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), false},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), false},
	}
	type probe struct {
		name  string
		conns [2]*net.TCPConn
		begun [2]time.Time
		end   bool // the probe has ended its side
		ended [2]string
	}
	var probes []*probe
	send := func(when, from string) {
		for _, k := range kinds {
			p := &probe{name: k.name + ", " + when, end: k.end}
			for i, port := range both {
				p.begun[i] = time.Now()
				p.conns[i] = knock(t, from, addr[port], k.text)
				if k.end {
					p.conns[i].CloseWrite()
				}
			}
			probes = append(probes, p)
		}
	}
	burst := func(when, from string, n int) {
		for range n {
			p := &probe{name: when}
			for i, port := range both {
				p.begun[i] = time.Now()
				p.conns[i] = knock(t, from, addr[port], nil)
			}
			probes = append(probes, p)
		}
	}
	send("alone", scanner)
	burst("idle, of one address", scanner, 300)
	send("after 300 idle ones of the address", scanner)
	for i := range 4 {
		burst("idle, of several addresses", fmt.Sprintf("192.0.2.%d", 11+i), 200)
	}
	send("after more than 1100 idle ones", "192.0.2.11")
	send("after these, from a new address", "192.0.2.99")
	// Some of the first ones, which the server has let go, go on.
	for i, p := range probes[len(kinds) : len(kinds)+6] {
		p.end = i%3 > 0
		for _, c := range p.conns {
			if i%3 < 2 {
				c.Write(garbage(100_000))
			}
			if p.end {
				c.CloseWrite()
			}
		}
	}

	// obfs4 closes at once only when the probe has ended its side.
	differ := func() (all []string) {
		for _, p := range probes {
			for i, c := range p.conns {
				if p.ended[i] == "" {
					p.ended[i] = ended(c)
				}
			}
			if p.ended[0] != p.ended[1] || p.end && p.ended[1] == "" {
				all = append(all, fmt.Sprintf("%s: %q, of obfs4proxy %q", p.name, p.ended[0], p.ended[1]))
			}
		}
		return all
	}
	var all []string
	if !harness.Eventually(15*time.Second, func() bool { all = differ(); return len(all) == 0 }) {
		t.Errorf("%d of %d differ: %.1000q", len(all), len(probes), all)
	}
	var open, early int
	for _, p := range probes {
		if p.ended[1] == "" {
			open++
		} else {
			early++
		}
	}
	t.Logf("%d connections are open at both, %d have ended", open, early)
	if open < len(probes)-40 || early == 0 {
		t.Errorf("of %d connections %d are open: this compares nothing", len(probes), open)
	}
	if os.Getenv(longer) != "" {
		late := slices.DeleteFunc(slices.Clone(probes), func(p *probe) bool { return p.ended[1] != "" })
		compareCloses(t, len(late), func(i, at int) (*net.TCPConn, time.Time, string) {
			return late[i].conns[at], late[i].begun[at], late[i].name
		})
	}
	for _, p := range probes {
		for _, c := range p.conns {
			c.Close()
		}
	}
	server.grewLittle(base)
	server.recovers(base, back)
}

// compareCloses waits for the end of all connections, and compares how and when they end.
func compareCloses(t *testing.T, n int, conn func(i, at int) (*net.TCPConn, time.Time, string)) {
	var wg sync.WaitGroup
	took := make([][2]time.Duration, n)
	how := make([][2]string, n)
	for i := range n {
		for at := range 2 {
			c, begun, _ := conn(i, at)
			wg.Go(func() {
				c.SetReadDeadline(time.Now().Add(100 * time.Second))
				_, err := io.Copy(io.Discard, c)
				took[i][at] = time.Since(begun)
				switch {
				case err == nil:
					how[i][at] = "closed"
				case errors.Is(err, syscall.ECONNRESET):
					how[i][at] = "reset"
				default:
					how[i][at] = err.Error()
				}
			})
		}
	}
	wg.Wait()
	var off []time.Duration
	for i := range n {
		_, _, name := conn(i, 0)
		off = append(off, (took[i][0] - took[i][1]).Abs())
		if how[i][0] != how[i][1] || off[i] > time.Second {
			t.Errorf("%s: %s after %v, by obfs4proxy %s after %v", name, how[i][0], took[i][0], how[i][1], took[i][1])
		}
	}
	slices.Sort(off)
	t.Logf("the times differ by %v in the median, by %v at most", off[n/2], off[n-1])
}

// options are those of a [[serve]] with the keys that are in state.
func options(t testing.TB, state string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(state, "obfs4_state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var keys struct {
		ID      string `json:"node-id"`
		Private string `json:"private-key"`
		Seed    string `json:"drbg-seed"`
	}
	if err := json.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("options = { node-id = %q, private-key = %q, drbg-seed = %q, iat-mode = \"0\" }\n", keys.ID, keys.Private, keys.Seed)
}
