package exit

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/credentials"
	"ptgate/gateway/relay"
	"ptgate/gateway/stream"
	"ptgate/gateway/testkit"
	"ptgate/routes"
)

// A client of a user, in a test with time of its own.
type userTest struct {
	t   *testing.T
	e   *Exit
	far chan net.Conn // what the exit has connected to
	wg  sync.WaitGroup
}

func newUserTest(t *testing.T, all map[string]User) *userTest {
	u := &userTest{t: t, far: make(chan net.Conn, 1)}
	u.e = newExit(&Settings{}, nil, func(context.Context, netip.AddrPort) (net.Conn, error) {
		c, far := net.Pipe()
		u.far <- far
		return c, nil
	})
	u.e.SetUsers(all)
	return u
}

const granted = "\x05\x02\x01\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"

// open begins a stream of ann. far is nil if it is refused with want.
func (u *userTest) open(want string) (c, far net.Conn) {
	u.t.Helper()
	c, server := net.Pipe()
	u.wg.Go(func() {
		if then := u.e.ServeConn(u.t.Context(), stream.From(server), "", everywhere{}, relay.Options{}); then != nil {
			then()
		}
	})
	u.wg.Go(func() { io.WriteString(c, "\x05\x01\x02\x01\x03ann\x01a"+v4) })
	got := make([]byte, len(want))
	if io.ReadFull(c, got); string(got) != want {
		u.t.Fatalf("answer %q, want %q", got, want)
	}
	if want == granted {
		far = <-u.far
	}
	return c, far
}

// end is how long it takes until c ends, and whether with an error.
func end(c net.Conn) (time.Duration, error) {
	begun := time.Now()
	_, err := io.Copy(io.Discard, c)
	return time.Since(begun), err
}

// pour writes to c until it ends.
func pour(c net.Conn) {
	for b := make([]byte, 32<<10); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// endless reads and writes as fast as anybody likes.
type endless struct{ scripted }

func (*endless) Read(p []byte) (int, error)  { return len(p), nil }
func (*endless) Write(p []byte) (int, error) { return len(p), nil }

// A rate holds for all streams of a user together, in each direction, and changes with the
// configuration.
func TestRateOfUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		e := newExit(&Settings{}, nil, nil)
		e.SetUsers(map[string]User{"ann": {Password: "a", Rate: rate}})
		var wg sync.WaitGroup
		var all []*metered
		for range 4 {
			m := newMetered(stream.From(&endless{}), e.roster.Load().account("ann"))
			all = append(all, m)
			for _, move := range []func([]byte) (int, error){m.Read, m.Write} {
				wg.Go(func() {
					for b := make([]byte, 100<<10); ; {
						if _, err := move(b); err != nil {
							return
						}
					}
				})
			}
		}
		measure := func(rate int64) {
			t.Helper()
			before := e.Usage()["ann"]
			<-time.After(10 * time.Second)
			after := e.Usage()["ann"]
			want := float64(10 * rate)
			for what, n := range map[string]int64{"up": after.Up - before.Up, "down": after.Down - before.Down} {
				if got := float64(n); got < 0.95*want || got > 1.05*want {
					t.Errorf("%s: %.0f bytes, want %.0f", what, got, want)
				}
			}
		}
		measure(rate)
		e.SetUsers(map[string]User{"ann": {Password: "a", Rate: 4 * rate}})
		<-time.After(time.Second)
		measure(4 * rate)
		for _, m := range all {
			m.Reset()
		}
		wg.Wait()
	})
}

// The streams of a user who is gone end at once, those that wait for their rate, too. Those
// of others go on.
func TestRevoke(t *testing.T) {
	for name, after := range map[string]map[string]User{
		"gone": {"bob": {Password: "b"}}, "another password": {"ann": {Password: "x"}, "bob": {Password: "b"}}, "nobody is asked": nil,
	} {
		for _, rate := range []int64{0, 8000} {
			synctest.Test(t, func(t *testing.T) {
				u := newUserTest(t, map[string]User{"ann": {Password: "a", Rate: rate}, "bob": {Password: "b"}})
				c, far := u.open(granted)
				u.wg.Go(func() { pour(far) })
				io.CopyN(io.Discard, c, 4<<10)
				u.e.SetUsers(after)
				if took, err := end(c); took > 0 {
					t.Errorf("%s: it ends after %v, %v", name, took, err)
				}
				far.Close()
				u.wg.Wait()
				if after != nil {
					u.open("\x05\x02\x01\x01")
					u.wg.Wait()
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		all := map[string]User{"ann": {Password: "a"}}
		u := newUserTest(t, all)
		c, far := u.open(granted)
		all["bob"] = User{Password: "b"}
		u.e.SetUsers(all)
		u.wg.Go(func() { io.WriteString(far, "more") })
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Errorf("a user who stays: %v", err)
		}
		c.Close()
		far.Close()
		u.wg.Wait()
	})
}

// Who was served without being asked is not any more when users are asked for.
func TestUsersBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUserTest(t, nil)
		for range 2 { // with users, without them, and with them again
			c, server := net.Pipe()
			u.wg.Go(func() {
				if then := u.e.ServeConn(t.Context(), stream.From(server), "", everywhere{}, relay.Options{}); then != nil {
					then()
				}
			})
			u.wg.Go(func() { io.WriteString(c, "\x05\x01\x00"+v4) })
			io.ReadFull(c, make([]byte, len(granted)-2))
			far := <-u.far
			u.e.SetUsers(nil)
			u.wg.Go(func() { io.WriteString(far, "more") })
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				t.Errorf("nobody is asked still: %v", err)
			}
			u.e.SetUsers(map[string]User{"ann": {Password: "a"}})
			if took, err := end(c); took > 0 {
				t.Errorf("it ends after %v, %v", took, err)
			}
			far.Close()
			u.wg.Wait()
			u.e.SetUsers(nil)
		}
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(time.Hour)
		u := newUserTest(t, map[string]User{"ann": {Password: "a", Expires: until}})
		c, far := u.open(granted)
		if took, _ := end(c); took != time.Hour {
			t.Errorf("it ends after %v", took)
		}
		far.Close()
		u.wg.Wait()
		u.open("\x05\x02\x01\x01")
		u.e.SetUsers(map[string]User{"ann": {Password: "a", Expires: until.Add(time.Hour)}})
		c, far = u.open(granted)
		far.Close()
		c.Close()
		u.wg.Wait()
		u.e.SetUsers(map[string]User{})
	})
}

// A quota ends streams and keeps new ones out until the next month. It counts over a
// restart.
func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it begins at 2000-01-01
		const quota = 32 << 10
		all := map[string]User{"ann": {Password: "a", Quota: quota}}
		u := newUserTest(t, all)
		c, far := u.open(granted)
		u.wg.Go(func() { pour(far) })
		n, _ := io.Copy(io.Discard, c)
		if n > quota || n < quota-8<<10 {
			t.Errorf("%d bytes have passed, want %d", n, quota)
		}
		far.Close()
		u.wg.Wait()
		u.open("\x05\x02\x01\x00" + reply(1))
		u.wg.Wait()
		usage := u.e.Usage()
		if x := usage["ann"]; x.Month != "2000-01" || x.Used < quota || x.Used != x.Up+x.Down || x.Streams != 0 || x.Last.IsZero() {
			t.Errorf("%+v", x)
		}

		again := newUserTest(t, nil)
		again.e.Used(usage)
		again.e.SetUsers(all)
		if got := again.e.Usage()["ann"]; got != usage["ann"] {
			t.Errorf("after a restart %+v", got)
		}
		again.open("\x05\x02\x01\x00" + reply(1))
		<-time.After(31 * 24 * time.Hour)
		if x := again.e.Usage()["ann"]; x.Used != 0 || x.Month != "2000-02" || x.Down < n {
			t.Errorf("in the next month %+v", x)
		}
		c, far = again.open(granted)
		c.Close()
		far.Close()
		again.wg.Wait()
		u.wg.Wait()
	})
}

func TestAllowOfUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		allow := func(pattern string) *routes.Table {
			p, err := routes.ParsePattern(pattern, nil)
			if err != nil {
				t.Fatal(err)
			}
			var b routes.Builder
			b.Add(0, p)
			return b.Table()
		}
		u := newUserTest(t, map[string]User{"ann": {Password: "a", Allow: allow("9.9.9.9")}})
		u.open("\x05\x02\x01\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x01") // and says that it is the policy
		u.e.SetUsers(map[string]User{"ann": {Password: "a", Allow: allow("8.8.8.8")}})
		c, far := u.open(granted)
		c.Close()
		far.Close()
		u.wg.Wait()
	})
}

// Streams of a bare connection are counted, too, and the kernel does not move them.
func TestMeteredSocket(t *testing.T) {
	a, _ := testkit.TCPPair(t)
	c := stream.From(a)
	if m := newMetered(c, newAccount(&meter{})); !c.Socket().Plain || m.Socket().Plain {
		t.Error("the kernel would move the bytes, and nobody count them")
	}
}

// What a stream costs when there are 500 users, 50 of them with an open stream, and when
// there is one.
func BenchmarkStreamOfUser(b *testing.B) {
	for _, n := range []int{1, 500} {
		b.Run(fmt.Sprintf("of %d", n), func(b *testing.B) {
			all := map[string]User{}
			for i := range n {
				all[fmt.Sprintf("u%03d", i)] = User{Password: credentials.Digest("a")}
			}
			e := newExit(&Settings{}, nil, leadsTo(b, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
			e.SetUsers(all)
			for i := range n / 10 {
				e.roster.Load().accounts[fmt.Sprintf("u%03d", i)].enter(0, false)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				request := fmt.Sprintf("\x05\x01\x02\x01\x04u%03d\x01a", i%max(1, n/10)) + v4
				client, server := net.Pipe()
				done := make(chan struct{})
				go func() {
					if then := e.ServeConn(b.Context(), stream.From(server), "", everywhere{}, relay.Options{}); then != nil {
						then()
					}
					close(done)
				}()
				go io.WriteString(client, request)
				if _, err := io.ReadFull(client, make([]byte, len(granted))); err != nil {
					b.Fatal(err)
				}
				client.Close()
				<-done
			}
		})
	}
}

// Who was gone for a moment goes on with what was used before.
func TestUsageOfWhoComesBack(t *testing.T) {
	for _, between := range []map[string]User{nil, {}, {"bob": {Password: "y"}}} {
		e := newExit(&Settings{}, nil, nil)
		ann := map[string]User{"ann": {Password: "x", Quota: 10}}
		e.SetUsers(ann)
		a := e.roster.Load().account("ann")
		a.usage() // the month begins
		a.in.Add(7)
		a.out.Add(5)
		e.SetUsers(between)
		e.SetUsers(ann)
		if u := e.Usage()["ann"]; u.Up != 7 || u.Down != 5 || u.Used != 12 {
			t.Errorf("%+v", u)
		}
	}
}
