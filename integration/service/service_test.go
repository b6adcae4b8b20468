//go:build integration

package service

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"ptgate/integration/documents"
)

const config = "/etc/ptgate/ptgate.toml"

// install installs the package.
func (m *machine) install(t *testing.T) {
	t.Helper()
	m.must(t, "dpkg", "--force-unsafe-io", "--install", "/packages/1.deb")
}

// both makes a configuration of both ends, whose client goes through obfs4 on a port below
// 1024 to its own server.
func (m *machine) both(t *testing.T) string {
	t.Helper()
	m.must(t, "ptgate", "pair", "--address", "127.0.0.1:443", "--out", "/root/pair")
	text := m.must(t, "cat", "/root/pair/client.toml", "/root/pair/server.toml")
	return strings.Replace(text, `deny  = ["private"]`, `deny = []`, 1)
}

// block is the block of commands in one of the documents that begins so.
func block(t *testing.T, begin string) string {
	t.Helper()
	for _, d := range documents.Read(t, "../..") {
		for _, b := range d.Blocks("sh") {
			if strings.HasPrefix(b, begin) {
				return b
			}
		}
	}
	t.Fatalf("no document has commands that begin with %q", begin)
	return ""
}

// version is that of the machine's systemd.
func (m *machine) version(t *testing.T) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(m.must(t, "systemctl", "--version"), "systemd %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// configure writes the configuration, as the service's own file.
func (m *machine) configure(t *testing.T, text string) {
	t.Helper()
	m.write(t, config, text)
	m.must(t, "chown", "ptgate:ptgate", config)
	m.must(t, "chmod", "600", config)
}

// signal sends the main process a signal.
func (m *machine) signal(t *testing.T, name string) {
	t.Helper()
	m.must(t, "sh", "-c", `kill -"$1" "$2"`, "sh", name, m.show(t, "MainPID"))
}

// dropIn adds to the unit.
func (m *machine) dropIn(t *testing.T, name, text string) {
	t.Helper()
	m.write(t, "/etc/systemd/system/ptgate.service.d/"+name+".conf", text)
	m.must(t, "systemctl", "daemon-reload")
}

// A dialerIn dials in the network of a machine.
type dialerIn struct {
	t *testing.T
	m *machine
}

func (d dialerIn) Dial(_, addr string) (net.Conn, error) { return d.m.dial(d.t, addr), nil }

// A line is a stream through the service to an echo server.
type line struct {
	c  net.Conn
	in *bufio.Reader
}

func (m *machine) open(t *testing.T, to string) *line {
	t.Helper()
	d, err := proxy.SOCKS5("tcp", "127.0.0.1:1080", nil, dialerIn{t, m})
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial("tcp", to)
	if err != nil {
		t.Fatalf("through the service: %v", err)
	}
	l := &line{c, bufio.NewReader(c)}
	l.works(t)
	return l
}

// works sends a line and wants it back.
func (l *line) works(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(l.c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := l.in.ReadString('\n'); got != "hello\n" || err != nil {
		t.Fatalf("the stream gives %q, %v", got, err)
	}
}

// ends wants the stream to end.
func (l *line) ends(t *testing.T) {
	t.Helper()
	if b, err := l.in.ReadByte(); err == nil || os.IsTimeout(err) {
		t.Errorf("the stream gives %q, %v", b, err)
	}
}

// TestService is the life of the service: start, reload, restart, drain, crash, a program
// that hangs, and recovery.
func TestService(t *testing.T) {
	m := boot(t, debs(t))
	m.install(t)
	echo := m.echo(t)
	text := m.both(t)
	// So that recovery does not take the 5 s that the unit waits, and so many starts are not
	// too many.
	m.dropIn(t, "soon", "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\n")
	f := m.follow(t)

	t.Run("start", func(t *testing.T) {
		m.write(t, "/root/server.toml", text)
		m.must(t, "sh", "-euc", "cd /root\n"+block(t, "install -o ptgate"))
		m.want(t, "ActiveState=active", "UnitFileState=enabled", "Type=notify")
		f.wait(t, "^Started ptgate.service")
		m.open(t, echo).works(t)
		// What the log says has its priority, and no time of its own.
		if out := m.journal(t, "--priority=6..6"); !strings.Contains(out, "level=INFO msg=listening") || strings.Contains(out, "time=") || strings.Contains(out, "<6>") {
			t.Errorf("the journal has at priority info:\n%s", out)
		}
		if out := m.journal(t, "--priority=warning"); out != "" {
			t.Errorf("the journal has warnings:\n%s", out)
		}
	})

	t.Run("reload", func(t *testing.T) {
		pid, l := m.show(t, "MainPID"), m.open(t, echo)
		m.configure(t, "[log]\nlevel = \"debug\"\n"+text)
		m.must(t, "systemctl", "reload", "ptgate")
		f.wait(t, "msg=reloaded")
		l.works(t)
		m.configure(t, "nonsense = 1\n"+text)
		if out, code := m.run(t, "systemctl", "reload", "ptgate"); code == 0 {
			t.Errorf("a reload of a wrong file succeeds: %s", out)
		}
		f.wait(t, "level=ERROR msg=.reload refused")
		if out := m.journal(t, "--priority=err"); !strings.Contains(out, "reload refused") {
			t.Errorf("the journal has no error: %s", out)
		}
		m.configure(t, text)
		m.signal(t, "HUP")
		f.wait(t, "msg=reloaded")
		l.works(t)
		m.want(t, "ActiveState=active", "MainPID="+pid, "NRestarts=0")
	})

	// systemd sends SIGHUP itself then, and waits for RELOADING=1 with a time after that.
	if m.version(t) >= 253 {
		t.Run("notify-reload", func(t *testing.T) {
			m.dropIn(t, "notify-reload", "[Service]\nType=notify-reload\nExecReload=\n")
			m.must(t, "systemctl", "restart", "ptgate")
			l := m.open(t, echo)
			m.must(t, "systemctl", "reload", "ptgate")
			f.wait(t, "msg=reloaded")
			l.works(t)
			l.c.Close() // or the restart waits for it
			m.want(t, "ActiveState=active", "Type=notify-reload", "NRestarts=0")
			m.must(t, "rm", "/etc/systemd/system/ptgate.service.d/notify-reload.conf")
			m.must(t, "systemctl", "daemon-reload")
			m.must(t, "systemctl", "restart", "ptgate")
		})
	}

	t.Run("drain", func(t *testing.T) {
		l := m.open(t, echo)
		m.must(t, "systemctl", "stop", "--no-block", "ptgate")
		f.wait(t, "msg=stopping")
		l.works(t)
		m.want(t, "ActiveState=deactivating")
		l.c.Close()
		f.wait(t, "^Stopped ptgate.service")
		m.want(t, "ActiveState=inactive", "Result=success", "ExecMainStatus=0")
		m.must(t, "systemctl", "start", "ptgate")
	})

	t.Run("restart", func(t *testing.T) {
		pid := m.show(t, "MainPID")
		m.must(t, "systemctl", "restart", "ptgate")
		m.want(t, "ActiveState=active", "NRestarts=0")
		if m.show(t, "MainPID") == pid {
			t.Error("it is the same process")
		}
		m.open(t, echo)
	})

	t.Run("crash", func(t *testing.T) {
		l := m.open(t, echo)
		f.wait(t, "^Started ptgate.service")
		m.signal(t, "KILL")
		l.ends(t)
		f.wait(t, "^ptgate.service: Scheduled restart")
		f.wait(t, "^Started ptgate.service")
		m.want(t, "ActiveState=active", "NRestarts=1")
		m.open(t, echo)
	})

	t.Run("panic", func(t *testing.T) { // Go's exit code for it is 2
		m.signal(t, "QUIT")
		f.wait(t, "^ptgate.service: Scheduled restart")
		f.wait(t, "^Started ptgate.service")
		m.want(t, "ActiveState=active", "NRestarts=2")
	})

	t.Run("watchdog", func(t *testing.T) {
		// On a busy machine the service may come late with its signs of life, by some seconds.
		m.dropIn(t, "watch", "[Service]\nWatchdogSec=6s\nTimeoutAbortSec=500ms\n")
		m.must(t, "systemctl", "restart", "ptgate")
		f.wait(t, "^Started ptgate.service")
		pid, first := m.show(t, "MainPID"), m.show(t, "WatchdogTimestampMonotonic")
		for limit := time.Now().Add(patience); m.show(t, "WatchdogTimestampMonotonic") == first; {
			if time.Now().After(limit) {
				t.Fatal("it gives no sign of life")
			}
		}
		m.signal(t, "STOP")
		f.wait(t, "Watchdog timeout")
		f.wait(t, "^Started ptgate.service")
		m.want(t, "ActiveState=active", "NRestarts=1")
		if m.show(t, "MainPID") == pid {
			t.Error("it is the same process")
		}
		m.open(t, echo)
	})
}

// TestFromSource: what the README says to do in a clone, without the package.
func TestFromSource(t *testing.T) {
	m := boot(t, debs(t))
	m.must(t, "cp", "-r", "/packages/clone", "/root/clone")
	m.must(t, "sh", "-euc", "cd /root/clone\n./ptgate pair --address 127.0.0.1:443\n"+block(t, "install -m 755 ptgate"))
	m.want(t, "ActiveState=active", "UnitFileState=enabled", "NRestarts=0")
}

// TestBackup: what the README says to keep makes the same server of a new machine.
func TestBackup(t *testing.T) {
	keep, dir := block(t, "tar --create"), debs(t)
	about := func(m *machine) string {
		t.Helper()
		m.must(t, "systemctl", "restart", "ptgate")
		box := regexp.MustCompile(`(?m)^box .*$`).FindString(m.must(t, "ptgate", "status", "-c", config))
		if box == "" {
			t.Error("status names no box")
		}
		return box + "\n" + m.must(t, "ptgate", "bridges", "-c", config)
	}
	old := boot(t, dir)
	old.install(t)
	old.configure(t, "[[serve]]\ntransport = \"obfs4\"\nbind = \"0.0.0.0:443\"\npublic = \"192.0.2.1:443\"\n") // with keys in the state directory
	was := about(old)
	old.must(t, "sh", "-c", "cd /root && "+keep)
	copied := old.must(t, "base64", "/root/ptgate-backup.tar.gz")

	fresh := boot(t, dir)
	fresh.install(t)
	fresh.must(t, "sh", "-c", `printf %s "$1" | base64 -d | tar --extract --gzip --directory /`, "sh", copied)
	if now := about(fresh); now != was {
		t.Errorf("it was\n%s\nand is\n%s", was, now)
	}
}

// TestWrongConfiguration: the service is not started again and again with a configuration
// that is wrong, or that it may not read, and the journal says what to do.
func TestWrongConfiguration(t *testing.T) {
	m := boot(t, debs(t))
	m.install(t)
	text := m.both(t)
	echo := m.echo(t)
	refused := func(want string) {
		t.Helper()
		if out, code := m.run(t, "systemctl", "restart", "ptgate"); code == 0 {
			t.Fatalf("it starts: %s", out)
		}
		m.want(t, "ActiveState=failed", "SubState=failed", "NRestarts=0", "ExecMainStatus=78")
		if out := m.journal(t, "--priority=err"); !strings.Contains(out, want) {
			t.Errorf("the journal has no %q at priority err:\n%s", want, out)
		}
	}
	m.configure(t, text+"\nnonsense = 1\n")
	refused(config + ":")
	m.must(t, "rm", config)
	refused(config + ": can't open it: no such file")

	// It is root's alone.
	m.write(t, config, text)
	m.must(t, "chmod", "600", config)
	uid := strings.TrimSpace(m.must(t, "id", "-u", "ptgate"))
	refused(fmt.Sprintf("who must own it: chown %s %s", uid, config))
	m.must(t, "chown", uid, config)
	m.must(t, "systemctl", "restart", "ptgate") // as it says, and without a wait
	m.want(t, "ActiveState=active")
	m.must(t, "systemctl", "stop", "ptgate")
	m.must(t, "chown", "root:root", config)
	m.dropIn(t, "credential", "[Service]\nLoadCredential=ptgate.toml:"+config+"\nEnvironment=PTGATE_CONFIG=%d/ptgate.toml\n")
	m.must(t, "systemctl", "start", "ptgate")
	if out := m.must(t, "sh", "-euc", block(t, "ptgate status -c /run")); !strings.Contains(out, "running") {
		t.Errorf("status says\n%s", out)
	}
	m.open(t, echo)
	m.must(t, "systemctl", "reload", "ptgate")
	m.want(t, "ActiveState=active", "NRestarts=0")
	if out := m.must(t, "journalctl", "--quiet", "--output=cat", "--priority=warning", "_SYSTEMD_INVOCATION_ID="+m.show(t, "InvocationID")); out != "" {
		t.Errorf("the journal has warnings:\n%s", out)
	}
}

// TestUserService: the unit of one user, without root.
func TestUserService(t *testing.T) {
	m := boot(t, debs(t))
	m.install(t)
	echo := m.echo(t)
	m.must(t, "useradd", "--create-home", "someone")
	uid := strings.TrimSpace(m.must(t, "id", "-u", "someone"))
	m.must(t, "systemctl", "start", "user@"+uid)
	as := func(argv ...string) []string {
		return append([]string{"runuser", "-u", "someone", "--", "env", "HOME=/home/someone", "XDG_RUNTIME_DIR=/run/user/" + uid}, argv...)
	}
	m.write(t, "/home/someone/client.toml", "[[route]]\nto = \"*\"\nvia = \"direct\"\nprivate = true\n")
	m.must(t, as("sh", "-euc", "cd\n"+block(t, "install -D -m 600 client.toml"))...)
	file := "/home/someone/.config/ptgate/ptgate.toml"
	l := m.open(t, echo)
	m.must(t, as("systemctl", "--user", "reload", "ptgate")...)
	l.works(t)
	if out := m.must(t, as("ptgate", "status", "-c", file)...); !strings.Contains(out, "running") {
		t.Errorf("status: %s", out)
	}
	l.c.Close()
	m.must(t, as("systemctl", "--user", "stop", "ptgate")...)
	m.write(t, file, "nonsense = 1\n")
	if out, code := m.run(t, as("systemctl", "--user", "start", "ptgate")...); code == 0 {
		t.Errorf("it starts with a wrong configuration: %s", out)
	}
	if out := m.must(t, as("systemctl", "--user", "show", "--property=NRestarts,ExecMainStatus,SubState", "ptgate")...); !strings.Contains(out, "ExecMainStatus=78") ||
		!strings.Contains(out, "NRestarts=0") || !strings.Contains(out, "SubState=failed") {
		t.Errorf("%s", out)
	}
}
