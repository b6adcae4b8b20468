//go:build integration

package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"ptgate/integration/harness"
	"ptgate/integration/ports"

	"golang.org/x/sys/unix"
)

// TestDaemonEnds: a transport program leaves a process behind that has a session of its own,
// has lost its parent and ignores signals. It ends when the program does: at a reload that
// takes the program out, and at the stop.
func TestDaemonEnds(t *testing.T) {
	t.Parallel() // it waits more than it works
	dir := scratch(t)
	for _, env := range []string{"", "env -i "} { // with the mark in its environment, and without
		program := func(name string) (table string, pid func() int) {
			file := filepath.Join(dir, name+".pid")
			os.Remove(file)
			path := script(t, dir, name, "("+env+"setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > "+file+".new; mv "+file+".new "+file+"; while :; do /bin/sleep 1; done' </dev/null >/dev/null 2>&1 &)\n"+
				"while [ ! -e "+file+" ]; do /bin/sleep 0.1; done\n"+
				"echo VERSION 1\necho 'CMETHOD "+name+" socks5 127.0.0.1:1'\necho CMETHODS DONE\nread x\n")
			return fmt.Sprintf("[pt.%s]\nexec = [\"%s\"]\ntransports = [\"%[1]s\"]\n[bridge.%[1]s]\ntransport = \"%[1]s\"\naddress = \"192.0.2.1:1\"\n[[route]]\nto = \"%[1]s.example\"\nvia = \"%[1]s\"\n", name, path), func() int {
				text, err := os.ReadFile(file)
				n, err2 := strconv.Atoi(strings.TrimSpace(string(text)))
				if err != nil || err2 != nil {
					t.Fatal(err, err2)
				}
				return n
			}
		}
		first, firstPid := program("first")
		second, secondPid := program("second")
		text := debugLog + fronts
		client := run(t, "client", text+first+second, setting{})
		for _, host := range []string{"first.example", "second.example"} {
			socksOpen(t, client.socks(), host, "80")
		}
		alive := func(pid int) bool { return unix.Kill(pid, 0) == nil }
		one, two := firstPid(), secondPid()
		if !alive(one) || !alive(two) {
			t.Fatal("the daemons do not run")
		}
		write(t, client.dir, "client.toml", "state_dir = \""+client.state+"\"\n"+text+second)
		if _, stderr, code := command(t, nil, ptgate, "reload", "-c", client.file); code != 0 {
			t.Fatal(stderr)
		}
		harness.Gone(t, one)
		if env == "" && !alive(two) {
			t.Error("the daemon of a program that still runs was ended")
		}
		client.Stop()
		harness.Gone(t, two)
	}
}

// TestProgramFloods: a transport program writes as fast as it can, on both outputs, with
// bytes that command a terminal. The log stays short and harmless in both formats, and the
// status, too. A bystander is served all the time.
func TestProgramFloods(t *testing.T) {
	echo := serveTCP(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			dir, front := scratch(t), ports.Free(t)
			nasty := `\033]0;title\007\033[2J\302\2332J\2332J` + strings.Repeat("x", 900)
			path := script(t, dir, "flood", "printf 'VERSION 1\\nCMETHOD flood socks5 127.0.0.1:1\\nCMETHODS DONE\\n'\n"+
				"line=\"$(printf '"+nasty+"')\"\n(yes \"$line\" | head -c 200000000 >&2) &\nyes \"LOG SEVERITY=error MESSAGE=\\\"$line\\\"\" | head -c 200000000\nwait\necho LAST >&2\nexit 3\n")
			client := run(t, "client", "[log]\nlevel = \"debug\"\nprivate = false\nformat = \""+format+"\"\n[listen]\nsocks5 = \""+front+"\"\n"+
				fmt.Sprintf("[pt.flood]\nexec = [\"%s\"]\ntransports = [\"flood\"]\n[bridge.flood]\ntransport = \"flood\"\naddress = \"192.0.2.1:1\"\n", path)+
				"[[route]]\nto = \"flood.example\"\nvia = \"flood\"\n[[route]]\nto = \"127.0.0.0/8\"\nvia = \"direct\"\n", setting{})
			begun := time.Now()
			// It starts the program. Its answer may take as long as the program goes on.
			starts := dial(t, front)
			var wg sync.WaitGroup
			wg.Go(func() { socksRequest(starts, []byte("flood.example"), 80) })
			defer wg.Wait()
			defer starts.Close()
			slowest := time.Duration(0)
			for !strings.Contains(client.log.String(), "pluggable transport ended") {
				at := time.Now()
				c, reply := socksOpen(t, front, "127.0.0.1", portOf(t, echo))
				if reply != 0 {
					t.Fatalf("a bystander got reply %d", reply)
				}
				io.WriteString(c, "ping")
				io.ReadFull(c, make([]byte, 4))
				c.Close()
				slowest = max(slowest, time.Since(at))
				if time.Since(begun) > patience {
					t.Fatal("the program does not end")
				}
			}
			took := time.Since(begun)
			text := client.log.String()
			t.Logf("400 MB said in %v: %d bytes in the log; the slowest bystander took %v", took.Round(time.Millisecond), len(text), slowest.Round(time.Millisecond))
			// Bystanders are in the log, too; at debug level with some lines each.
			said := 0
			for line := range strings.Lines(text) {
				if strings.Contains(line, "transport program says") {
					said += len(line)
				}
				if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("the log has a control character: %q", line)
				}
			}
			if most := 256<<10 + int(took.Seconds())<<13; said > most {
				t.Errorf("the program brought %d bytes into the log, want at most %d", said, most)
			}
			for _, form := range []string{"--json=false", "--json"} {
				out, _, code := command(t, nil, ptgate, "status", "-c", client.file, form)
				if code != 0 || !strings.Contains(out, "flood") || strings.ContainsFunc(out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
					t.Errorf("status %s: exit code %d, %q", form, code, out)
				}
			}
		})
	}
}
