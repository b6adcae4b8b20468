//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ptgate/gateway/credentials"
	"ptgate/gateway/users"
	"ptgate/integration/ports"
)

// env runs a command in the home of a box, as its user would.
func (b *box) env(argv ...string) (stdout string) {
	b.t.Helper()
	return must(b.t, append([]string{"env", "-i", "PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}, argv...)...)
}

// at runs ptgate there.
func (b *box) at(args ...string) (stdout string) {
	b.t.Helper()
	return b.env(append([]string{ptgate}, args...)...)
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
	link := server.at("up", "-c", server.file, "--address", ports.Free(t), "--name", "ann", "--no-start")
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
	server.log.Wait(t, `wrong user or password`)
}

// A crowd is a server with users, of whom some hold an open connection.
type crowd struct {
	t       *testing.T
	what    string
	server  *box
	clients []*box // of each user who is live
	held    []net.Conn
	port    string // of the source
	all     []spent
}

// What a server has spent: processor time for each new stream, and for each MiB.
type spent struct{ stream, mib time.Duration }

func (s spent) String() string { return fmt.Sprintf("%v and %v", s.stream, s.mib) }

func userName(i int) string { return fmt.Sprintf("u%03d", i) }

// newCrowd starts a server with so many users, and the clients of those who are live: each
// of the first alone is a process, and the others share one.
func newCrowd(t *testing.T, all, live, alone int, port string) *crowd {
	t.Helper()
	k := &crowd{t: t, what: fmt.Sprintf("%d users, %d live", all, live), port: port}
	k.server = newHome(t, fmt.Sprintf("server-%d-%d", all, live))
	k.server.at("up", "-c", k.server.file, "--address", ports.Free(t), "--name", "first", "--no-start")
	k.server.edit(`["private"]`, `[]`)
	line := strings.TrimSpace(k.server.at("bridges", "-c", k.server.file))
	list, hosts := users.Header, plainHosts
	for i := range all {
		name := userName(i)
		list = users.Put(list, &users.User{Name: name, Secret: credentials.Digest("secret of " + name)})
		hosts += "127.0.0.1 " + name + ".ptgate.test\n"
	}
	write(t, k.server.dir, "users", list)
	k.server.start(setting{hosts: hosts})
	start := func(from, to int) {
		near := "[listen]\nsocks5 = \"127.0.0.1:0\"\n"
		for i := from; i < to; i++ {
			near += fmt.Sprintf("[bridge.%s]\nline = %q\nuser = %[1]q\npassword = \"secret of %[1]s\"\noptimistic = \"never\"\n[[route]]\nto = \"%[1]s.ptgate.test\"\nvia = %[1]q\n", userName(i), line)
		}
		b := run(t, fmt.Sprintf("clients-%d-%d-%d", all, live, from), near, setting{})
		for i := from; i < to; i++ {
			k.clients = append(k.clients, b)
		}
	}
	for i := range min(alone, live) {
		start(i, i+1)
	}
	if alone < live {
		start(alone, live)
	}
	for i := range live {
		k.held = append(k.held, k.open(i))
	}
	return k
}

// open opens a stream of a user.
func (k *crowd) open(user int) net.Conn {
	k.t.Helper()
	c, reply := socksOpen(k.t, k.clients[user].socks(), userName(user)+".ptgate.test", k.port)
	if reply != 0 {
		k.t.Fatalf("%s: %s: reply %d", k.what, userName(user), reply)
	}
	return c
}

// processor is the processor time of the server so far.
func (k *crowd) processor() time.Duration {
	k.t.Helper()
	var at unix.Timespec
	clock := int32(^k.server.Cmd.Process.Pid<<3 | 2) // as clock_getcpuclockid(3) makes it
	if err := unix.ClockGettime(clock, &at); err != nil {
		k.t.Fatal(err)
	}
	return time.Duration(at.Nano())
}

// streams is what the server spends for each of n new streams of a user.
func (k *crowd) streams(user, n int) time.Duration {
	before := k.processor()
	for range n {
		k.open(user).Close()
	}
	return (k.processor() - before) / time.Duration(n)
}

// mib is what the server spends for each of n MiB to a user.
func (k *crowd) mib(user, n int) time.Duration {
	k.t.Helper()
	before := k.processor()
	c := k.open(user)
	defer c.Close()
	if _, err := fmt.Fprintf(c, "%d\n", n); err != nil {
		k.t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, c); got != int64(n)<<20 || err != nil {
		k.t.Fatalf("%s: %d bytes, %v", k.what, got, err)
	}
	return (k.processor() - before) / time.Duration(n)
}

// spent is the least, and the median, of all rounds.
func (k *crowd) spent() (least, median spent) {
	streams, mib := make([]time.Duration, len(k.all)), make([]time.Duration, len(k.all))
	for i, s := range k.all {
		streams[i], mib[i] = s.stream, s.mib
	}
	slices.Sort(streams)
	slices.Sort(mib)
	return spent{streams[0], mib[0]}, spent{streams[len(streams)/2], mib[len(mib)/2]}
}

// serveMiB sends as many MiB as the first line says, and waits for the first line.
func serveMiB(t *testing.T) (port string) {
	t.Helper()
	piece := make([]byte, 64<<10)
	return portOf(t, serveTCP(t, func(c *net.TCPConn) {
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return
		}
		n, _ := strconv.Atoi(strings.TrimSpace(line))
		for range n * (1 << 20 / len(piece)) {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	}))
}

// TestManyUsers has 500 users, 50 of them with an open connection. For each stream, and for
// each byte, the server does no more than with one user. Then all 50 download, and some of
// them are revoked. PTGATE_USERS=1 measures longer, and each of the 50 has a process of its
// own.
func TestManyUsers(t *testing.T) {
	const all, live = 500, 50
	long := os.Getenv("PTGATE_USERS") != ""
	rounds, streams, mib, alone, revoked := 5, 60, 16, 1, 3
	if long {
		rounds, streams, mib, alone, revoked = 12, 500, 100, live, 20
	}
	port := serveMiB(t)
	one, idle, busy := newCrowd(t, 1, 1, alone, port), newCrowd(t, all, 1, alone, port), newCrowd(t, all, live, alone, port)
	crowds := []*crowd{one, idle, busy}
	for _, k := range crowds {
		k.streams(0, streams) // what is done once
		k.mib(0, mib)
	}
	for round := range rounds {
		for i := range crowds {
			k := crowds[(round+i)%len(crowds)]
			k.all = append(k.all, spent{k.streams(0, streams), k.mib(0, mib)})
		}
		if !long || round%4 > 0 {
			continue
		}
		begun, before := time.Now(), busy.processor()
		<-time.After(5 * time.Second)
		t.Logf("%s: at rest the server spends %.2f ms a second", busy.what, 1000*float64(busy.processor()-before)/float64(time.Since(begun)))
		var each spent
		for i := range live {
			each.stream += busy.streams(i, streams/live) / live
			each.mib += busy.mib(i, mib/live) / live
		}
		t.Logf("%s: each in turn: %v", busy.what, each)
	}
	// What else the machine does makes a round dearer, and none cheaper.
	want, _ := one.spent()
	for _, k := range crowds {
		got, median := k.spent()
		t.Logf("%s: the server spends %v for a stream and for a MiB at least; the median of %d rounds is %v", k.what, got, rounds, median)
		if got.stream > 2*want.stream || got.mib > 2*want.mib {
			t.Errorf("%s: a stream and a MiB cost %v, and with one user %v", k.what, got, want)
		}
	}

	states := func() (n int, count map[string]int) {
		t.Helper()
		var rows []struct{ State string }
		if err := json.Unmarshal([]byte(busy.server.at("users", "-c", busy.server.file, "--json")), &rows); err != nil {
			t.Error(err)
		}
		count = map[string]int{}
		for _, r := range rows {
			count[r.State]++
		}
		return len(rows), count
	}
	if n, count := states(); n != all || count["active"] != live {
		t.Errorf("%d users, %v; want %d and %d that are active", n, count, all, live)
	}
	ended := make([]chan struct{}, live)
	begun := make([]watched, live)
	for i, c := range busy.held {
		ended[i] = make(chan struct{})
		begun[i].begun = make(chan struct{})
		c.SetDeadline(time.Now().Add(4 * patience))
		fmt.Fprintf(c, "%d\n", 1<<30)
		go func() {
			defer close(ended[i])
			io.Copy(&begun[i], c)
		}()
	}
	for i := range begun {
		<-begun[i].begun
	}
	var told, cut []time.Duration
	for i := range revoked {
		at := time.Now()
		busy.server.at("revoke", "-c", busy.server.file, userName(i))
		told = append(told, time.Since(at))
		<-ended[i]
		cut = append(cut, time.Since(at))
	}
	t.Logf("%d of %d who download are revoked: the command has taken %v at most, and the download has ended after %v at most: %v", revoked, live, slices.Max(told), slices.Max(cut), cut)
	if n, count := states(); n != all-revoked || count["active"] != live-revoked {
		t.Errorf("%d users, %v; want %d and %d that are active", n, count, all-revoked, live-revoked)
	}
	for i := revoked; i < live; i++ {
		select {
		case <-ended[i]:
			t.Errorf("the download of %s has ended, too", userName(i))
		default:
		}
		busy.held[i].Close()
		<-ended[i]
	}
}

// TestLimitsOfUser: rate, quota and expiry hold for all that a user has open together: here
// two clients, whose connections come by several carriers.
func TestLimitsOfUser(t *testing.T) {
	const clients, streams, rate, quota = 2, 3, 4_000_000, 8_000_000
	port := serveMiB(t)
	server := newHome(t, "server")
	server.at("up", "-c", server.file, "--address", ports.Free(t), "--name", "first", "--no-start")
	server.edit(`["private"]`, `[]`)
	line := strings.TrimSpace(server.at("bridges", "-c", server.file))
	list := users.Header
	put := func(u users.User) {
		u.Secret = credentials.Digest("secret of " + u.Name)
		list = users.Put(list, &u)
		write(t, server.dir, "users", list)
	}
	put(users.User{Name: "ann", Rate: rate, Quota: quota})
	put(users.User{Name: "bob"})
	server.start(setting{})
	used := func(name string) (state string, bytes int64) {
		t.Helper()
		var rows []struct {
			Name, State string
			Used        int64
		}
		if err := json.Unmarshal([]byte(server.at("users", "-c", server.file, "--json")), &rows); err != nil {
			t.Error(err)
		}
		for _, r := range rows {
			if r.Name == name {
				return r.State, r.Used
			}
		}
		t.Errorf("nothing is told of %s", name)
		return "", 0
	}
	// download lets a user download by all connections at once, until they end. near is one
	// of the clients. It calls then meanwhile.
	download := func(name string, mib int, then func()) (took time.Duration, n int64, near *box) {
		t.Helper()
		var conns []net.Conn
		for i := range clients {
			near = run(t, fmt.Sprintf("%s-%d", name, i), "[listen]\nsocks5 = \"127.0.0.1:0\"\n"+
				fmt.Sprintf("[bridge.far]\nline = %q\nuser = %q\npassword = \"secret of %[2]s\"\noptimistic = \"never\"\ncarriers = 3\n", line, name)+everythingVia("far"), setting{})
			for range streams {
				c, reply := socksOpen(t, near.socks(), "127.0.0.1", port)
				if reply != 0 {
					t.Fatalf("%s: reply %d", name, reply)
				}
				conns = append(conns, c)
			}
		}
		var all atomic.Int64
		var wg sync.WaitGroup
		begun := time.Now()
		for _, c := range conns {
			fmt.Fprintf(c, "%d\n", mib)
			wg.Go(func() {
				n, _ := io.Copy(io.Discard, c)
				all.Add(n)
			})
		}
		then()
		wg.Wait()
		return time.Since(begun), all.Load(), near
	}

	var until time.Time
	_, n, near := download("bob", 1<<20, func() {
		until = time.Now().Add(2 * time.Second).Truncate(time.Second)
		put(users.User{Name: "bob", Expires: until})
		server.at("reload", "-c", server.file)
	})
	late := time.Since(until)
	t.Logf("bob's connections have ended %v after his time, with %d bytes", late, n)
	if state, _ := used("bob"); late < 0 || state != "expired" {
		t.Errorf("bob's connections have ended %v too early, and he is %s", -late, state)
	}
	if _, reply := socksOpen(t, near.socks(), "127.0.0.1", port); reply == 0 {
		t.Error("bob is served after his time")
	}

	var took time.Duration
	took, n, near = download("ann", 64, func() {})
	state, counted := used("ann")
	paced := float64(n-rate/4) / took.Seconds() / rate // a quarter of a second's worth may pass at once
	t.Logf("ann has got %d bytes of her quota of %d in %v: %.3f of her rate", n, quota, took, paced)
	// What is under way when the quota is used up does not arrive.
	if state != "over quota" || n > quota || n < quota*9/10 || counted < quota {
		t.Errorf("she is %s, has got %d bytes, and %d are counted; her quota is %d", state, n, counted, quota)
	}
	if paced > 1.1 {
		t.Errorf("she is served at %.3f of her rate", paced)
	}
	if _, reply := socksOpen(t, near.socks(), "127.0.0.1", port); reply != 1 {
		t.Errorf("beyond the quota: reply %d, want 1", reply)
	}
}
