//go:build integration

package service

import (
	"regexp"
	"strings"
	"testing"
)

// said runs a command that must succeed, and returns the standard output and the standard
// error apart.
func (m *machine) said(t *testing.T, argv ...string) (stdout, stderr string) {
	t.Helper()
	stdout = m.must(t, append([]string{"sh", "-c", `exec "$@" 2>/run/said`, "sh"}, argv...)...)
	return stdout, m.must(t, "cat", "/run/said")
}

// linger makes a user with a systemd of its own, and returns how to run something as that one.
func (m *machine) linger(t *testing.T, name string) (as func(argv ...string) []string) {
	t.Helper()
	m.must(t, "useradd", "--create-home", name)
	uid := strings.TrimSpace(m.must(t, "id", "-u", name))
	m.must(t, "systemctl", "start", "user@"+uid)
	return func(argv ...string) []string {
		return append([]string{"runuser", "-u", name, "--", "env", "HOME=/home/" + name, "XDG_RUNTIME_DIR=/run/user/" + uid}, argv...)
	}
}

// hello sends a line through the proxy of the user's service, and wants it back.
const hello = `exec 3<>/dev/tcp/127.0.0.1/1080
printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\nhello\n' "$1" "$1" >&3
while read -r line <&3; do
	case $line in hello) echo "$line"; exit 0 ;; esac
	echo "$line" >&2
done
exit 1`

// joined makes the service of a user with `ptgate join`, and sees that it goes on when
// either end is started anew.
func (m *machine) joined(t *testing.T, link string) {
	t.Helper()
	echo := m.echo(t)
	m.must(t, "sed", "-i", `s/\["private"\]/[]/`, config) // the destination is on this machine
	m.must(t, "systemctl", "reload", "ptgate")
	as := m.linger(t, "someone")
	m.write(t, "/home/someone/link.txt", link)
	if out := m.must(t, as("sh", "-c", "cd && ptgate join link.txt --service")...); !strings.Contains(out, "started /home/someone/.config/systemd/user/ptgate.service") {
		t.Errorf("join says\n%s", out)
	}
	for _, restart := range [][]string{nil, {"systemctl", "restart", "ptgate"}, as("systemctl", "--user", "restart", "ptgate")} {
		if restart != nil {
			m.must(t, restart...)
		}
		m.must(t, as("bash", "-c", hello, "bash", echo)...)
	}
	if out := m.must(t, as("systemctl", "--user", "is-enabled", "ptgate")...); !strings.Contains(out, "enabled") {
		t.Errorf("the user's service is %s", out)
	}
}

// TestUp: the package, then one command on the server and one for a user. The command may be
// given again.
func TestUp(t *testing.T) {
	m := boot(t, debs(t))
	before := m.must(t, "sh", "-c", `find / -xdev -path "*ptgate*" -not -path "/packages*"`)
	m.install(t)
	up := []string{"ptgate", "up", "--address", "127.0.0.1:443", "--yes"}
	if out, code := m.run(t, up[:len(up)-1]...); code != 2 || !strings.Contains(out, "--name") {
		t.Errorf("without a terminal and without --yes: %d, %s", code, out)
	}
	m.want(t, "ActiveState=inactive", "UnitFileState=disabled")
	// Who is not root has a file of one's own.
	m.must(t, "useradd", "--create-home", "other")
	if out := m.must(t, "runuser", "-u", "other", "--", "env", "HOME=/home/other", "ptgate", "up", "--address", "127.0.0.1:8443", "--yes", "--no-start"); !strings.Contains(out, "wrote /home/other/.config/ptgate/ptgate.toml") ||
		!strings.Contains(out, "ptgate://") {
		t.Errorf("without root it says\n%s", out)
	}

	link, said := m.said(t, up...)
	if !strings.HasPrefix(link, "ptgate://") || strings.Count(link, "\n") != 1 {
		t.Errorf("the standard output is %q", link)
	}
	if !strings.Contains(said, "started the service ptgate") {
		t.Errorf("up says\n%s", said)
	}
	m.want(t, "ActiveState=active", "UnitFileState=enabled", "NRestarts=0")
	if got := m.must(t, "stat", "--format=%U:%G %a %n", config, "/etc/ptgate/users"); got != "ptgate:ptgate 600 "+config+"\nptgate:ptgate 600 /etc/ptgate/users\n" {
		t.Errorf("the files are\n%s", got)
	}
	if out := m.journal(t, "--priority=warning"); out != "" {
		t.Errorf("the journal has warnings:\n%s", out)
	}
	m.joined(t, link)

	// The same again changes nothing.
	pid := m.show(t, "MainPID")
	for _, again := range [][]string{up, {"ptgate", "up", "--yes"}, append(up, "--name", "me")} {
		out, said := m.said(t, again...)
		if out != "" || !strings.Contains(said, "runs already") || !strings.Contains(said, "ptgate invite") {
			t.Errorf("%q: it prints %q, and says\n%s", again, out, said)
		}
	}
	out, said := m.said(t, append(up, "--name", "you")...)
	if !strings.HasPrefix(out, "ptgate://") || out == link {
		t.Errorf("for another user it prints %q, and says\n%s", out, said)
	}
	if out, code := m.run(t, "ptgate", "up", "--address", "127.0.0.1:444", "--yes"); code != 2 || !strings.Contains(out, "leave --address") {
		t.Errorf("with another address: %d, %s", code, out)
	}
	m.want(t, "ActiveState=active", "MainPID="+pid)
	// It was stopped.
	m.must(t, "systemctl", "disable", "--now", "ptgate")
	if _, said := m.said(t, up...); !strings.Contains(said, "started the service ptgate") {
		t.Errorf("up says\n%s", said)
	}
	m.want(t, "ActiveState=active", "UnitFileState=enabled")

	m.must(t, "sh", "-c", "systemctl stop user@*.service && userdel --remove someone && userdel --remove other")
	m.must(t, "dpkg", "--purge", "ptgate")
	if after := m.must(t, "sh", "-c", `find / -xdev -path "*ptgate*" -not -path "/packages*"`); after != before {
		t.Errorf("it leaves\n%s", after)
	}
}

// TestUpFromSource: without a package, up makes the unit and the user, too.
func TestUpFromSource(t *testing.T) {
	m := boot(t, debs(t))
	m.must(t, "cp", "/packages/clone/ptgate", "/root/ptgate")
	if out, code := m.run(t, "/root/ptgate", "up", "--address", "127.0.0.1:443", "--yes"); code != 1 || !strings.Contains(out, "/usr/local/bin") {
		t.Errorf("from root's home: %d, %s", code, out)
	}
	m.must(t, "mv", "/root/ptgate", "/usr/local/bin/ptgate")
	up := []string{"env", "HOME=/root", "ptgate", "up", "--address", "127.0.0.1:443", "--yes"}
	m.must(t, append(up, "--no-start")...)
	// Root tries it. What that notes is of another box than the service.
	m.must(t, "systemd-run", "--quiet", "--unit=trial", "--service-type=notify", "--setenv=HOME=/root", "/usr/local/bin/ptgate", "run", "-c", config)
	m.must(t, "systemctl", "stop", "trial")
	link, said := m.said(t, append(up, "--name", "you")...)
	if !strings.HasPrefix(link, "ptgate://") {
		t.Errorf("it prints %q, and says\n%s", link, said)
	}
	m.want(t, "ActiveState=active", "UnitFileState=enabled", "NRestarts=0")
	m.joined(t, link)

	// An invitation is to the service's box also while that does not run, and so is what is
	// told of users.
	m.must(t, "systemctl", "stop", "ptgate")
	box := regexp.MustCompile(`@[0-9a-f]+/`)
	later, _ := m.said(t, "env", "HOME=/root", "ptgate", "invite", "later")
	if got, want := box.FindString(later), box.FindString(link); got != want {
		t.Errorf("it invites to %q, want %q", got, want)
	}
	if out := m.must(t, "env", "HOME=/root", "ptgate", "users", "--json"); !regexp.MustCompile(`"name": "you",[^}]*"up": [1-9]`).MatchString(out) {
		t.Errorf("users says\n%s", out)
	}

	// The service is that of its own file, wherever that is, and of no other one.
	other := "/srv/other.toml"
	at443 := []string{"env", "HOME=/root", "ptgate", "up", "-c", other, "--address", "127.0.0.1:443", "--yes"}
	if out, code := m.run(t, at443...); code != 1 || !strings.Contains(out, "the service that is installed runs "+config) {
		t.Errorf("with another file: %d, %s", code, out)
	}
	m.must(t, "sh", "-c", "test ! -e "+other+" && systemctl disable ptgate && rm /etc/systemd/system/ptgate.service && systemctl daemon-reload")
	for range 2 {
		m.must(t, at443...)
		m.want(t, "ActiveState=active", "UnitFileState=enabled", "NRestarts=0")
		m.must(t, "systemctl", "stop", "ptgate")
	}
}
