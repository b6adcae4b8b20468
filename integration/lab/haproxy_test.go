//go:build integration

package lab

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newCluster makes three servers with the same keys behind HAProxy, by the file in
// configs/, and starts a client of theirs.
func newCluster(t *testing.T) *lab {
	t.Helper()
	front := newBox(t, "front", 10)
	l := &lab{t: t, client: newBox(t, "client", 1), origin: newOrigin(t)}
	all := []*box{front, l.client, l.origin}
	for i, name := range []string{"one", "two", "three"} {
		b := newBox(t, name, byte(11+i))
		l.servers = append(l.servers, b)
		all = append(all, b)
	}
	l.censor = newCensor(t, all...)
	serveOrigin(t, l.origin)
	text, bridge := pair(t, front.addr, "far")
	text = strings.Replace(text, "drain = \"10s\"\n", longStop, 1)
	for _, b := range l.servers {
		b.configure(text) // byte for byte the same
		b.start()
		t.Cleanup(b.stop)
	}

	sample, err := os.ReadFile("../../configs/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	config := strings.ReplaceAll(string(sample), "192.0.2.", "10.77.0.")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, front.command("haproxy", "-c", "-f", file)...)
	argv := front.command("haproxy", "-db", "-f", file)
	haproxy := exec.Command(argv[0], argv[1:]...)
	haproxy.Stdout, haproxy.Stderr = front.log, front.log
	haproxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := haproxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		haproxy.Process.Kill()
		haproxy.Wait()
	})

	l.client.configure(clientText + bridge + "[[route]]\nto = \"*\"\nvia = \"far\"\n")
	l.client.start()
	t.Cleanup(l.client.stop)
	eventually(t, "the first request works", func() bool { return l.client.fetch(t.Context(), 1000, 10*time.Second) == nil })
	return l
}

// busiest is the server with most connections.
func (l *lab) busiest() (busiest *box, most int) {
	l.t.Helper()
	for _, b := range l.servers {
		if n := len(established(l.t, b)); n > most {
			busiest, most = b, n
		}
	}
	if busiest == nil {
		l.t.Fatal("no server has a connection")
	}
	return busiest, most
}

// One of three servers behind HAProxy is killed, clients go on.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	l := newCluster(t)
	crowd := newCrowd(t, l.client, 50, 500*time.Millisecond, func() uint64 { return 20000 })
	after(t.Context(), 3*time.Second)

	busiest, most := l.busiest()
	killed := time.Now()
	busiest.kill()
	after(t.Context(), 10*time.Second)
	end := time.Now()
	results := crowd.end()
	whole, _ := summary(results, killed, end, false)
	t.Logf("server %q, with %d connections, killed: %s", busiest.name, most, whole)
	if text, failed := summary(results, killed.Add(5*time.Second), end, false); failed > 0 {
		t.Errorf("more than 5 s after: %s", text)
	}
}

// established lists the far ends of a box's connections to its port 443.
func established(t *testing.T, b *box) (all []netip.AddrPort) {
	t.Helper()
	out := must(t, "ip", "netns", "exec", b.ns, "ss", "-Htn", "state", "established", "sport", "=", ":443")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 4 {
			if a, err := netip.ParseAddrPort(f[3]); err == nil {
				all = append(all, a)
			}
		}
	}
	return all
}
