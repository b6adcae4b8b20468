//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/gateway/credentials"
	"ptgate/gateway/users"
)

// at runs ptgate in the home of a box, as its user would.
func (b *box) at(args ...string) (stdout string) {
	b.t.Helper()
	return must(b.t, append([]string{"env", "-i", "PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, ptgate}, args...)...)
}

// newHome is a box without a configuration.
func newHome(t *testing.T, name string) *box {
	t.Helper()
	b := prepare(t, name, "")
	if err := os.Remove(b.file); err != nil {
		t.Fatal(err)
	}
	return b
}

// edit changes one place of a box's configuration.
func (b *box) edit(old, fresh string) {
	b.t.Helper()
	text, err := os.ReadFile(b.file)
	if err != nil {
		b.t.Fatal(err)
	}
	write(b.t, filepath.Dir(b.file), filepath.Base(b.file), replace(b.t, string(text), old, fresh))
}

// A watched counts what is written to it, and tells of the first bytes.
type watched struct {
	once  sync.Once
	begun chan struct{}
	n     int64
}

func (w *watched) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	w.once.Do(func() { close(w.begun) })
	return len(p), nil
}

// TestUpAndJoin: two homes with nothing in them, one command on each side, and one link
// copied. Then the user is revoked in the middle of a download.
func TestUpAndJoin(t *testing.T) {
	o := serveOrigin(t)
	server, client := newHome(t, "server"), newHome(t, "client")
	begun := time.Now()
	link := server.at("up", "-c", server.file, "--address", freeAddr(t), "--name", "ann", "--no-start")
	server.edit(`["private"]`, `[]`) // the page is on this machine
	server.start(setting{hosts: originHosts})
	server.never = append(secretsOf(link), originName)
	said := client.at("join", write(t, client.dir, "link", link), "--out", client.file, "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0")
	if !strings.Contains(said, "works") || !strings.Contains(said, "wrote "+client.file) {
		t.Errorf("join says\n%s", said)
	}
	client.start(setting{})
	way := []string{"--socks5-hostname", client.socks(), "--cacert", o.ca}
	if got := curl(t, append(way, o.https+"/hello")...); got != helloText {
		t.Errorf("got %q", got)
	}
	t.Logf("from nothing to a page in %v", time.Since(begun))

	const endless = 1 << 40
	w := &watched{begun: make(chan struct{})}
	ended := make(chan int)
	go func() {
		ended <- stream(t, nil, w, io.Discard, append([]string{"curl", "--fail", "--silent", "--max-time", "120"},
			append(way, fmt.Sprintf("%s/bytes/bulk/%d", o.http, endless))...)...)
	}()
	<-w.begun
	begun = time.Now()
	server.at("revoke", "-c", server.file, "ann")
	told := time.Since(begun)
	code := <-ended
	t.Logf("revoked in the middle of a download: ptgate revoke has taken %v, the download has ended after %v, with %d bytes and curl's code %d", told, time.Since(begun), w.n, code)
	if code == 0 || w.n >= endless {
		t.Errorf("the download of a user who is revoked has come to its end: code %d, %d bytes", code, w.n)
	}
	if code, _, _ := refusedCurl(t, append(way, o.http+"/hello")...); code == 0 {
		t.Error("who is revoked is served")
	}
	server.log.wait(t, `wrong user or password`)
}

// TestManyUsers has 500 users, 50 of them with an open connection: a stream costs what it
// does with one user.
func TestManyUsers(t *testing.T) {
	const all, live, streams = 500, 50, 200
	echo := serveEcho(t)
	_, port, _ := net.SplitHostPort(echo)
	name := func(i int) string { return fmt.Sprintf("u%03d", i) }
	var cost [2]time.Duration
	for round, n := range []int{1, all} {
		server := newHome(t, fmt.Sprintf("server of %d", n))
		server.at("up", "-c", server.file, "--address", freeAddr(t), "--name", "first", "--no-start")
		server.edit(`["private"]`, `[]`)
		line := strings.TrimSpace(server.at("bridges", "-c", server.file))
		list, hosts, near := users.Header, plainHosts, "[listen]\nsocks5 = \"127.0.0.1:0\"\n"
		for i := range n {
			list = users.Put(list, &users.User{Name: name(i), Secret: credentials.Digest("secret of " + name(i))})
			if i < live {
				hosts += "127.0.0.1 " + name(i) + ".ptgate.test\n"
				near += fmt.Sprintf("[bridge.%s]\nline = %q\nuser = %[1]q\npassword = \"secret of %[1]s\"\noptimistic = \"never\"\n[[route]]\nto = \"%[1]s.ptgate.test\"\nvia = %[1]q\n", name(i), line)
			}
		}
		write(t, server.dir, "users", list)
		server.start(setting{hosts: hosts})
		client := run(t, fmt.Sprintf("client of %d", n), near, setting{})
		open := func(i int) net.Conn {
			c, reply := socksOpen(t, client.socks(), name(i)+".ptgate.test", port)
			if reply != 0 {
				t.Fatalf("%s: reply %d", name(i), reply)
			}
			return c
		}
		var held []net.Conn
		for i := range min(n, live) {
			held = append(held, open(i))
		}
		took := make([]time.Duration, streams)
		for i := range took {
			begun := time.Now()
			c := open(0)
			took[i] = time.Since(begun)
			c.Close()
		}
		slices.Sort(took)
		cost[round] = took[streams/2]
		t.Logf("%d users, %d live: half of %d streams are open within %v", n, len(held), streams, cost[round])

		var rows []struct {
			Name, State string
			Streams     int
		}
		if err := json.Unmarshal([]byte(server.at("users", "-c", server.file, "--json")), &rows); err != nil || len(rows) != n {
			t.Errorf("%d users are told of, want %d: %v", len(rows), n, err)
		}
		active := 0
		for _, r := range rows {
			if r.State == "active" {
				active++
			}
		}
		if active != len(held) {
			t.Errorf("%d users are active, want %d", active, len(held))
		}
		begun := time.Now()
		server.at("revoke", "-c", server.file, name(len(held)-1))
		held[len(held)-1].SetReadDeadline(time.Now().Add(patience))
		if _, err := held[len(held)-1].Read(make([]byte, 1)); err == nil {
			t.Error("who is revoked gets bytes")
		}
		t.Logf("%d users: the connection of one who is revoked has ended after %v", n, time.Since(begun))
		for _, c := range held[:len(held)-1] {
			io.WriteString(c, "still\n")
			if _, err := io.ReadFull(c, make([]byte, len("still\n"))); err != nil {
				t.Errorf("another user's connection: %v", err)
			}
		}
		for _, c := range held {
			c.Close()
		}
	}
	t.Logf("a stream among %d users costs %.2f of one of a single user", all, float64(cost[1])/float64(cost[0]))
}
