//go:build integration

package integration

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// TestStop: a live stream is carried to its end after SIGTERM, no new one is
// taken, and the exit code is 0. Both boxes are told at once, as on a reboot.
func TestStop(t *testing.T) {
	for _, stopped := range []string{"client", "server", "both"} {
		t.Run(stopped, func(t *testing.T) {
			release := make(chan struct{})
			addr := serveTCP(t, func(c *net.TCPConn) {
				io.WriteString(c, "begun\n")
				<-release
				io.CopyN(c, noise("rest"), 4<<20)
			})
			server, client := runPair(t)
			c, reply := socksOpen(t, client.socks(), originName, portOf(t, addr))
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			begun := make([]byte, 6)
			if _, err := io.ReadFull(c, begun); err != nil {
				t.Fatal(err)
			}
			for _, b := range []*box{server, client} {
				if stopped == b.name || stopped == "both" {
					b.Signal(syscall.SIGTERM)
					b.log.Wait(t, "msg=stopping")
				}
			}
			if stopped != "server" {
				if c, err := net.Dial("tcp", client.socks()); err == nil {
					// Accepted by the kernel a moment before: it gets no service.
					c.SetDeadline(time.Now().Add(patience))
					if reply := socksRequest(c, []byte(originName), 80); reply == 0 {
						t.Error("a new connection was served after SIGTERM")
					}
					c.Close()
				}
			}
			close(release)
			if got, err := io.ReadAll(c); err != nil || len(got) != 4<<20 {
				t.Errorf("%d bytes, %v, want all of 4 MiB", len(got), err)
			}
			c.Close()
			for _, b := range []*box{client, server} {
				if stopped == b.name || stopped == "both" {
					b.Ends(0)
				}
			}
		})
	}
}

// TestStopForward: a server that leads to one fixed service lets a download finish, at
// a stop and at a reload that changes the [[serve]], whichever program serves, and
// whether or not it connects to the service by itself.
func TestStopForward(t *testing.T) {
	for _, pt := range []speaker{
		{name: "ptgate pt", isolate: true},
		{name: "obfs4proxy", exec: []string{realpt.Program(t, "obfs4proxy")}},
		{name: "lyrebird", exec: []string{realpt.Lyrebird(t)}},
	} {
		for _, how := range []string{"stop", "stop, asked about each client", "reload"} {
			t.Run(pt.name+", "+how, func(t *testing.T) {
				release := make(chan struct{})
				service := serveTCP(t, func(c *net.TCPConn) {
					io.WriteString(c, "begun\n")
					<-release
					io.CopyN(c, noise("rest"), 16<<20)
				})
				text := debugLog + fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\nforward = \"%s\"\n", ports.Free(t), service)
				more := pt.table("obfs4") + "[limits]\ndrain = \"10s\"\n"
				asked := "allow = [\"127.0.0.0/8\"]\n"
				if how == "stop, asked about each client" {
					text += asked
				}
				server := run(t, "server", text+more, setting{})
				client := run(t, "client", debugLog+fronts+lineBridge(bridgeLine(t, server), "far = \"forward\"\n")+everythingVia("far")+shortDrain, setting{})
				begin := func() net.Conn {
					c, reply := socksOpen(t, client.socks(), originName, "80")
					if reply != 0 {
						t.Fatalf("reply %d", reply)
					}
					if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
						t.Fatal(err)
					}
					return c
				}
				c := begin()
				if how == "reload" {
					write(t, server.dir, "server.toml", "state_dir = \""+server.state+"\"\n"+text+asked+more)
					server.Signal(syscall.SIGHUP)
					server.log.Wait(t, "msg=reloaded")
					begin().Close() // through the new one
				} else {
					server.Signal(syscall.SIGTERM)
					server.log.Wait(t, "msg=stopping")
				}
				close(release)
				h := sha256.New()
				if n, err := io.Copy(h, io.LimitReader(c, 16<<20)); err != nil || sum(h) != noiseSum("rest", 16<<20) {
					t.Errorf("%d bytes, %v, want all of 16 MiB", n, err)
				}
				c.Close()
				if how != "reload" {
					server.Ends(0)
				}
			})
		}
	}
}

// TestStopForwardAsService: the same for a server that runs as the shipped unit has it,
// which sees its own programs in /proc, and with a program whose capabilities hide it.
func TestStopForwardAsService(t *testing.T) {
	for _, hidden := range []bool{false, true} {
		t.Run(fmt.Sprintf("hidden=%v", hidden), func(t *testing.T) {
			program := realpt.Program(t, "obfs4proxy")
			if hidden {
				program = capable(t, program)
			}
			release := make(chan struct{})
			service := serveTCP(t, func(c *net.TCPConn) {
				io.WriteString(c, "begun\n")
				<-release
				io.CopyN(c, noise("rest"), 16<<20)
			})
			server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\nforward = \"%s\"\n", ports.Free(t), service)+
				speaker{exec: []string{program}}.table("obfs4")+"[limits]\ndrain = \"10s\"\n", setting{service: true, port: !hidden})
			if got := strings.Contains(server.log.String(), "can't be counted"); got != hidden {
				t.Errorf("its connections can't be counted: %v", got)
			}
			client := run(t, "client", fronts+lineBridge(bridgeLine(t, server), "far = \"forward\"\n")+everythingVia("far")+shortDrain, setting{})
			c, reply := socksOpen(t, client.socks(), originName, "80")
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			server.Signal(syscall.SIGTERM)
			server.log.Wait(t, "msg=stopping")
			close(release)
			if n, err := io.Copy(io.Discard, io.LimitReader(c, 16<<20)); err != nil || n != 16<<20 {
				t.Errorf("%d bytes, %v, want all of 16 MiB", n, err)
			}
			c.Close()
			server.Ends(0)
		})
	}
}

// capable is a copy of a program with the capability to listen on ports below 1024, as
// setcap(8) gives it: the kernel hides such a process from others of its user.
func capable(t *testing.T, program string) string {
	t.Helper()
	dir := scratch(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(dir, filepath.Base(program))
	if err := os.WriteFile(fresh, b, 0o755); err != nil {
		t.Fatal(err)
	}
	// struct vfs_cap_data of revision 2, with its effective bit (capabilities(7)).
	data := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	data = binary.LittleEndian.AppendUint32(data, 1<<unix.CAP_NET_BIND_SERVICE)
	if err := unix.Setxattr(fresh, "security.capability", append(data, make([]byte, 12)...), 0); err != nil {
		t.Fatal(err)
	}
	return fresh
}

// TestDrainEnds: a stream that never ends is cut after limits.drain.
func TestDrainEnds(t *testing.T) {
	echo := serveEcho(t)
	s, c := pairFiles(t, "--address", ports.Free(t))
	server := run(t, "server", debugLog+s, setting{hosts: originHosts})
	client := run(t, "client", debugLog+c+"[limits]\ndrain = \"1s\"\n", setting{})
	conn, _ := socksOpen(t, client.socks(), originName, portOf(t, echo))
	io.WriteString(conn, "x")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	client.Stop()
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the stream that was cut: %v, want a reset", err)
	}
	server.Stop()
}

// TestSecondSignal ends at once what drains.
func TestSecondSignal(t *testing.T) {
	echo := serveEcho(t)
	_, client := runPair(t)
	conn, _ := socksOpen(t, client.socks(), originName, portOf(t, echo))
	io.WriteString(conn, "x")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	client.Signal(syscall.SIGTERM)
	client.log.Wait(t, "msg=stopping")
	client.Signal(syscall.SIGTERM)
	client.Ends(0)
}

// TestKilled: kill -9 leaves no PT behind, at either end and of any kind.
func TestKilled(t *testing.T) {
	for _, pt := range []speaker{
		{name: "ptgate pt", isolate: true},
		{name: "obfs4proxy", exec: []string{realpt.Program(t, "obfs4proxy")}},
		{name: "lyrebird", exec: []string{realpt.Lyrebird(t)}},
	} {
		t.Run(pt.name, func(t *testing.T) {
			o := serveOrigin(t)
			server := run(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+openExit+pt.table("obfs4"), setting{hosts: originHosts})
			client := run(t, "client", fronts+lineBridge(bridgeLine(t, server), "")+everythingVia("far")+pt.table("obfs4"), setting{})
			curl(t, "--socks5-hostname", client.socks(), o.http+"/hello")
			for _, b := range []*box{client, server} {
				children := session(b.Cmd.Process.Pid)
				if len(children) != 1 {
					t.Fatalf("%s has the children %v, want one PT", b.name, children)
				}
				b.Signal(syscall.SIGKILL)
				b.Ends(-1)
				harness.Gone(t, children[0].pid)
			}
		})
	}
}

// TestPTRestarts: a PT that is killed is started again, at either end.
func TestPTRestarts(t *testing.T) {
	o := serveOrigin(t)
	pt := speaker{exec: []string{realpt.Program(t, "obfs4proxy")}}
	server := run(t, "server", debugLog+fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t))+openExit+pt.table("obfs4"), setting{hosts: originHosts})
	client := run(t, "client", debugLog+fronts+lineBridge(bridgeLine(t, server), "")+everythingVia("far")+pt.table("obfs4"), setting{})
	carries(t, client, o)
	kill := func(b *box) {
		for _, p := range session(b.Cmd.Process.Pid) {
			syscall.Kill(p.pid, syscall.SIGKILL)
			harness.Gone(t, p.pid)
		}
	}
	kill(client)
	client.log.Wait(t, `level=WARN msg="pluggable transport ended`)
	carries(t, client, o)
	kill(server)
	server.log.Wait(t, `(?s)level=WARN msg="pluggable transport ended" serve=obfs4.*msg="pluggable transport started" serve=obfs4`)
	carries(t, client, o)
}

// TestStateFiles: directories of a box are its owner's alone, and so are files.
func TestStateFiles(t *testing.T) {
	o := serveOrigin(t)
	for _, pt := range []speaker{
		{name: "built in"},
		{name: "ptgate pt", isolate: true},
		{name: "obfs4proxy", exec: []string{realpt.Program(t, "obfs4proxy")}},
	} {
		t.Run(pt.name, func(t *testing.T) {
			server := run(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\nallow = [\"127.0.0.0/8\"]\n", ports.Free(t))+openExit+pt.table("obfs4"), setting{hosts: originHosts})
			client := run(t, "client", fronts+lineBridge(bridgeLine(t, server), "")+everythingVia("far")+pt.table("obfs4"), setting{})
			curl(t, "--socks5-hostname", client.socks(), o.http+"/hello")
			files := 0
			for _, b := range []*box{server, client} {
				err := filepath.WalkDir(b.state, func(path string, d fs.DirEntry, err error) error {
					if err != nil {
						return err
					}
					info, err := d.Info()
					if err != nil {
						return err
					}
					want := fs.FileMode(0o600)
					if d.IsDir() {
						want = 0o700
					} else {
						files++
					}
					if info.Mode().Perm() != want {
						t.Errorf("%s: %s has mode %v, want %v", b.name, strings.TrimPrefix(path, b.dir), info.Mode().Perm(), want)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
			if files == 0 {
				t.Error("no state file at all")
			}
		})
	}
}

// TestKeysStay: a server that is started again has the same keys.
func TestKeysStay(t *testing.T) {
	server := prepare(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"obfs4\"\nbind = \"%s\"\n", ports.Free(t)))
	before := bridgeLine(t, server) // it has never run
	for range 2 {
		server.start(setting{})
		if line := bridgeLine(t, server); line != before {
			t.Errorf("bridge line %q, before %q", line, before)
		}
		server.Stop()
		os.Remove(filepath.Join(server.dir, "notify"))
	}
}

// TestReload: SIGHUP puts a changed file to work without a harm to live streams,
// and a file with an error changes nothing.
func TestReload(t *testing.T) {
	echo := serveEcho(t)
	s, c := pairFiles(t, "--address", ports.Free(t))
	run(t, "server", debugLog+s, setting{hosts: originHosts})
	client := run(t, "client", debugLog+c, setting{})
	live, reply := socksOpen(t, client.socks(), originName, portOf(t, echo))
	if reply != 0 {
		t.Fatalf("reply %d", reply)
	}
	reload := func(text, outcome string) {
		t.Helper()
		b, err := os.ReadFile(client.file)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(b), "\n")
		write(t, client.dir, "client.toml", head+"\n"+text)
		client.Signal(syscall.SIGHUP)
		client.log.Wait(t, outcome)
		io.WriteString(live, "ping")
		if _, err := io.ReadFull(live, make([]byte, 4)); err != nil {
			t.Fatalf("the live stream after a reload: %v", err)
		}
	}
	reload(debugLog+c+"\n[nonsense]\n", "reload refused: the running configuration stays")
	if _, reply := socksOpen(t, client.socks(), originName, portOf(t, echo)); reply != 0 {
		t.Errorf("after a refused reload: reply %d", reply)
	}
	reload(debugLog+replace(t, c, "[[route]]\nto  = \"*\"\n", "[[route]]\nto = \""+originName+"\"\nvia = \"block\"\n[[route]]\nto  = \"*\"\n"), "msg=reloaded")
	if _, reply := socksOpen(t, client.socks(), originName, portOf(t, echo)); reply != 2 {
		t.Errorf("after the reload that blocks: reply %d, want 2", reply)
	}
}
