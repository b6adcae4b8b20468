//go:build integration

package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/proxy"

	"ptgate/adapter"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// A speaker is a program that speaks a transport: nil exec stands for ptgate's
// own, in the process or, isolated, in a child.
type speaker struct {
	name    string
	exec    []string
	isolate bool
}

// table is the [pt] table for one transport.
func (s speaker) table(transport string) string {
	switch {
	case s.exec != nil:
		return fmt.Sprintf("[pt.it]\nexec = [\"%s\"]\ntransports = [\"%s\"]\n", strings.Join(s.exec, "\", \""), transport)
	case s.isolate:
		return fmt.Sprintf("[pt.it]\nisolate = true\ntransports = [\"%s\"]\n", transport)
	}
	return ""
}

// bridgeLine asks ptgate for the line that a server's clients need.
func bridgeLine(t testing.TB, server *box) string {
	t.Helper()
	stdout, stderr, code := command(t, nil, ptgate, "bridges", "-c", server.file)
	if code != 0 || strings.Count(stdout, "\n") != 1 {
		t.Fatalf("ptgate bridges: exit code %d\n%s%s", code, stdout, stderr)
	}
	return strings.TrimSpace(stdout)
}

// lineBridge is a bridge of a pasted line.
func lineBridge(line, more string) string {
	return "[bridge.far]\nline = \"" + line + "\"\n" + more
}

// carries checks that a client box reaches the origin, with 16 MiB each way.
func carries(t *testing.T, client *box, o *origin) {
	t.Helper()
	const size = 16 << 20
	if got := curl(t, "--socks5-hostname", client.socks(), "--cacert", o.ca, o.https+"/hello"); got != helloText {
		t.Errorf("got %q", got)
	}
	want := noiseSum("carries", size)
	h := sha256.New()
	if code := stream(t, nil, h, os.Stderr, "curl", "-sSf", "--max-time", "120", "-x", "http://"+client.http(), fmt.Sprintf("%s/bytes/carries/%d", o.http, size)); code != 0 || sum(h) != want {
		t.Errorf("down: exit code %d, checksum %s, want %s", code, sum(h), want)
	}
	var out strings.Builder
	code := stream(t, io.LimitReader(noise("carries"), size), &out, os.Stderr, "curl", "-sSf", "--max-time", "120",
		"--socks5-hostname", client.socks(), "-T", "-", o.http+"/sum")
	if got := strings.TrimSpace(out.String()); code != 0 || got != fmt.Sprintf("%d %s", size, want) {
		t.Errorf("up: exit code %d, the origin got %q, want %d %s", code, got, size, want)
	}
}

// TestInterop has ptgate's obfs4 talk to the programs that others run, both ways
// round, and other programs' transports carried by ptgate at both ends.
func TestInterop(t *testing.T) {
	own := speaker{name: "ptgate"}
	child := speaker{name: "ptgate pt", isolate: true}
	obfs4proxy := speaker{name: "obfs4proxy", exec: []string{realpt.Program(t, "obfs4proxy"), "-enableLogging", "-logLevel=DEBUG"}}
	lyrebird := speaker{name: "lyrebird", exec: []string{realpt.Lyrebird(t), "-enableLogging", "-logLevel=DEBUG"}}
	o := serveOrigin(t)
	for _, tt := range []struct {
		transport      string
		client, server speaker
	}{
		{"obfs4", own, obfs4proxy},
		{"obfs4", own, lyrebird},
		{"obfs4", own, child},
		{"obfs4", obfs4proxy, own},
		{"obfs4", lyrebird, own},
		{"obfs4", child, own},
		{"obfs4", child, obfs4proxy},
		{"obfs4", lyrebird, child},
		{"obfs4", obfs4proxy, lyrebird},
		{"obfs3", obfs4proxy, obfs4proxy},
		{"obfs3", own, own}, // which finds a program on PATH
	} {
		t.Run(tt.transport+" "+tt.client.name+" to "+tt.server.name, func(t *testing.T) {
			server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"%s\"\nbind = \"%s\"\n", tt.transport, ports.Free(t))+
				openExit+tt.server.table(tt.transport), setting{hosts: originHosts})
			line := bridgeLine(t, server)
			client := run(t, "client", debugLog+fronts+lineBridge(line, "")+everythingVia("far")+tt.client.table(tt.transport), setting{})
			for _, b := range []*box{server, client} {
				b.never = []string{originName}
				for _, arg := range strings.Fields(line)[2:] {
					if value, ok := strings.CutPrefix(arg, "cert="); ok {
						b.never = append(b.never, value)
					}
				}
			}
			carries(t, client, o)
		})
	}
}

// runSSHD starts an sshd for root with a key of its own, and returns its address
// and the options with which ssh logs in.
func runSSHD(t *testing.T) (addr string, options []string) {
	t.Helper()
	dir := scratch(t)
	for _, key := range []string{"host", "user"} {
		must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	addr = ports.Free(t)
	public, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	known := write(t, dir, "known", "sshd.ptgate.test "+string(public))
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where sshd's unprivileged half lives
		t.Fatal(err)
	}
	conf := write(t, dir, "sshd_config", fmt.Sprintf("ListenAddress %s\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\n"+
		"PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nStrictModes no\n", addr, dir, dir))
	daemon(t, realpt.Program(t, "sshd"), "-D", "-e", "-f", conf).Wait(t, "Server listening on")
	return addr, []string{"-i", filepath.Join(dir, "user"), "-o", "UserKnownHostsFile=" + known, "-o", "HostKeyAlias=sshd.ptgate.test",
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-F", "none"}
}

// sshSum is throughSSH over a SOCKS5 port.
func sshSum(t *testing.T, socks string, options []string, host, port string) {
	t.Helper()
	throughSSH(t, "nc -X 5 -x "+socks+" %h %p", options, host, port)
}

// throughSSH sends noise through ssh and expects its checksum back.
func throughSSH(t *testing.T, proxy string, options []string, host, port string) {
	t.Helper()
	const size = 4 << 20
	argv := append([]string{"ssh", "-o", "ProxyCommand=" + proxy, "-p", port}, options...)
	var out, errs strings.Builder
	code := stream(t, io.LimitReader(noise("ssh"), size), &out, &errs, append(argv, "root@"+host, "sha256sum")...)
	if got, _, _ := strings.Cut(out.String(), " "); code != 0 || got != noiseSum("ssh", size) {
		t.Errorf("ssh through %s: exit code %d, %q\n%s", proxy, code, out.String(), errs.String())
	}
}

// shortDrain is for raw modes: a connection into a PT stays for some seconds after
// its program, for what is still on its way.
const shortDrain = "[limits]\ndrain = \"1s\"\n"

// longDrain makes a stop fail that finds a connection which stays for good.
const longDrain = "[limits]\ndrain = \"1h\"\n"

// TestForward leads a bridge to one fixed service: a real sshd.
func TestForward(t *testing.T) {
	sshd, options := runSSHD(t)
	for _, tt := range []struct {
		name   string
		server speaker
		more   string // of the [[serve]]
		drain  string // of the client
	}{
		{"built in", speaker{}, "", longDrain},
		{"child, that connects by itself", speaker{isolate: true}, "", shortDrain},
		{"child, asked about each client", speaker{isolate: true}, "allow = [\"127.0.0.0/8\"]\n", shortDrain},
		{"obfs4proxy", speaker{exec: []string{realpt.Program(t, "obfs4proxy")}}, "", shortDrain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\nforward = \"%s\"\n%s", ports.Free(t), sshd, tt.more)+
				tt.server.table("obfs4")+shortDrain, setting{})
			client := run(t, "client", debugLog+fronts+lineBridge(bridgeLine(t, server), "far = \"forward\"\n")+tt.drain+
				"[[route]]\nto = \"box.ptgate.test:22\"\nvia = \"far\"\n", setting{})
			client.never = []string{"box.ptgate.test"}
			sshSum(t, client.socks(), options, "box.ptgate.test", "22")
			// No other name leads there.
			if _, reply := socksOpen(t, client.socks(), "other.ptgate.test", "22"); reply != 2 {
				t.Errorf("another name: reply %d, want 2", reply)
			}
		})
	}
	t.Run("ssh through an exit", func(t *testing.T) {
		_, client := runPair(t)
		sshSum(t, client.socks(), options, originName, portOf(t, sshd))
	})
}

// runMicrosocks starts Debian's small SOCKS5 server.
func runMicrosocks(t *testing.T, args ...string) (addr string) {
	t.Helper()
	addr = ports.Free(t)
	host, port, _ := net.SplitHostPort(addr)
	argv := within(t, setting{hosts: originHosts}, append([]string{realpt.Program(t, "microsocks"), "-i", host, "-p", port}, args...))
	daemon(t, argv...)
	listening(t, addr)
	return addr
}

// barePT runs a server PT under nothing but the adapter, as any other parent
// would, and returns its bridge line.
func barePT(t *testing.T, forward string, exec ...string) (line string) {
	t.Helper()
	s := adapter.NewServer(adapter.ServerConfig{Config: adapter.Config{Exec: exec}, Forward: forward})
	if err := s.AddTransport("obfs4", "127.0.0.1:0", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		s.Wait()
	})
	m, err := s.Method("obfs4")
	if err != nil {
		t.Fatal(err)
	}
	line = "obfs4 " + m.Addr
	for _, a := range m.Args {
		line += " " + a.Key + "=" + a.Value
	}
	return line
}

// TestSOCKS5Far puts somebody else's SOCKS5 server behind the transport.
func TestSOCKS5Far(t *testing.T) {
	o := serveOrigin(t)
	open, closed := runMicrosocks(t), runMicrosocks(t, "-u", "user", "-P", "pass-word-1")
	try := func(name string, line func(t *testing.T) string, more string) {
		t.Run(name, func(t *testing.T) {
			client := run(t, "client", debugLog+fronts+lineBridge(line(t), "far = \"socks5\"\n"+more)+everythingVia("far")+shortDrain, setting{})
			client.never = []string{originName, "pass-word-1"}
			carries(t, client, o)
		})
	}
	try("served by ptgate", func(t *testing.T) string {
		return bridgeLine(t, run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\nforward = \"%s\"\n", ports.Free(t), open)+shortDrain, setting{}))
	}, "")
	try("behind a bare obfs4proxy", func(t *testing.T) string { return barePT(t, open, realpt.Program(t, "obfs4proxy")) }, "")
	try("behind a bare lyrebird, with a password", func(t *testing.T) string { return barePT(t, closed, realpt.Lyrebird(t)) }, "user = \"user\"\npassword = \"pass-word-1\"\n")
}

// TestForeignClient reaches ptgate's exit with plain SOCKS5 from behind another
// parent and another PT.
func TestForeignClient(t *testing.T) {
	echo := serveEcho(t)
	server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+
		openExit+"users = { guest = \"word-of-pass\" }\n", setting{hosts: originHosts})
	server.never = []string{originName, "word-of-pass"}
	line, err := adapter.ParseBridgeLine(bridgeLine(t, server))
	if err != nil {
		t.Fatal(err)
	}
	client := adapter.NewClient(adapter.ClientConfig{Config: adapter.Config{Exec: []string{realpt.Lyrebird(t)}}, Transports: []string{"obfs4"}})
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer client.Wait()
	defer client.Close()
	through := dialerFunc(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return client.DialTransport(ctx, "obfs4", line.Addr, line.Args)
	})
	d, err := proxy.SOCKS5("tcp", "far.invalid:1080", &proxy.Auth{User: "guest", Password: "word-of-pass"}, through)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c, err := d.(proxy.ContextDialer).DialContext(t.Context(), "tcp", net.JoinHostPort(originName, portOf(t, echo)))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, helloText)
		back := make([]byte, len(helloText))
		if _, err := io.ReadFull(c, back); err != nil || string(back) != helloText {
			t.Errorf("got %q, %v", back, err)
		}
		c.Close()
	}
	wrong, _ := proxy.SOCKS5("tcp", "far.invalid:1080", &proxy.Auth{User: "guest", Password: "wrong"}, through)
	if c, err := wrong.(proxy.ContextDialer).DialContext(t.Context(), "tcp", net.JoinHostPort(originName, portOf(t, echo))); err == nil {
		c.Close()
		t.Error("a wrong password was accepted")
	}
}

type dialerFunc func(ctx context.Context, network, addr string) (net.Conn, error)

func (f dialerFunc) Dial(network, addr string) (net.Conn, error) {
	return f(context.Background(), network, addr)
}

func (f dialerFunc) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return f(ctx, network, addr)
}
