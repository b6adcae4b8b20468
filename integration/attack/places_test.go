//go:build integration

package attack

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/integration/harness"
)

// A client uploads to a destination that does not read, leaves, and comes again.
func TestUploadAndLeave(t *testing.T) {
	server, bridge := startServer(t, shortResume)
	gateway := startGateway(t, bridge, "")
	by := newBystander(t, gateway.listens(0))
	o := listen(t, deaf)
	by.served("before", 50)
	server.forgetPeak()
	base := server.usage()
	for range 3 {
		c := attack(t, bridge, newHello())
		if err := (flood{streams: 24, size: 16 << 10, frames: 10_000, port: o.port()}).run(c); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	server.grewLittle(base)
	server.recovers(base, back)
	by.served("after", 50)
}

// Local programs are killed in the middle of an upload, and nobody reads at the other end.
func TestKilledUpload(t *testing.T) {
	for name, reset := range map[string]bool{"reset": true, "closed": false} {
		t.Run(name, func(t *testing.T) {
			const limits = "[limits]\nhalf_open = \"2s\"\n"
			server, bridge := startServer(t, limits)
			gateway := startGateway(t, bridge, limits)
			by := newBystander(t, gateway.listens(0))
			o := listen(t, deaf)
			by.served("before", 20)
			atServer, atGateway := server.usage(), gateway.usage()
			var wg sync.WaitGroup
			var all []net.Conn
			for range 20 {
				c, err := through(gateway.listens(0), o.port(), patience)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, c)
				wg.Go(func() {
					b := make([]byte, 256<<10)
					for err := error(nil); err == nil; {
						_, err = c.Write(b)
					}
				})
			}
			gateway.settles() // the upload stands
			for _, c := range all {
				if reset {
					c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			}
			wg.Wait()
			gateway.recovers(atGateway, back+2*time.Second)
			server.recovers(atServer, back+2*time.Second)
			by.served("after", 20)
		})
	}
}

// After a burst of connections that end only in one direction, by either side, or in the
// middle of an upload, everything is as before when half_open is over, at both boxes. The
// programs and the destinations keep their sockets.
func TestAfterABurst(t *testing.T) {
	const each = 60
	const limits = "[limits]\nhalf_open = \"3s\"\n"
	server, bridge := startServer(t, limits)
	gateway := startGateway(t, bridge, limits)
	silent, unread := listen(t, func(net.Conn) {}), listen(t, deaf)
	ends := listen(t, func(c net.Conn) { c.(*net.TCPConn).CloseWrite() })
	var wg sync.WaitGroup
	open := func(o *origin) *net.TCPConn {
		c, err := through(gateway.listens(0), o.port(), patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
	open(silent).Close()
	boxes := []*box{gateway, server}
	var base []usage
	for _, b := range boxes {
		if !harness.Eventually(patience, func() bool { return b.places() == 0 }) {
			t.Fatalf("%d places of the %s are taken before the burst", b.places(), b.name)
		}
		base = append(base, b.usage())
	}
	for range each {
		open(silent).CloseWrite()
		open(ends)
		open(ends).CloseWrite()
		killed := open(unread)
		killed.SetLinger(0)
		wg.Go(func() {
			killed.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			io.Copy(killed, zeros{})
			killed.Close()
		})
	}
	for _, b := range boxes {
		t.Logf("%s: %d places are taken; %v", b.name, b.places(), b.usage())
	}
	wg.Wait()
	for i, b := range boxes {
		b.recovers(base[i], 3*time.Second+back)
		if !harness.Eventually(back, func() bool { return b.places() == 0 }) {
			t.Errorf("%s: %d places are not given back", b.name, b.places())
		}
	}
	for _, b := range boxes {
		if n := b.goroutines(); n > each {
			t.Errorf("%s: %d goroutines are left", b.name, n)
		} else {
			t.Logf("%s: %d goroutines are left", b.name, n)
		}
	}
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// few is a server with few places, so that a test can take them all.
const few = "[limits]\nconnections = 400\nresume = \"1s\"\n"

// opens opens streams as fast as it can, and looks at whether the bystander is served.
func opens(t *testing.T, sessions int, first func(o *origin) []byte) {
	server, bridge := startServer(t, few)
	gateway := startGateway(t, bridge, "")
	by := newBystander(t, gateway.listens(0))
	o := listen(t, func(net.Conn) {})
	by.served("before", 50)
	base := server.usage()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range sessions {
		c := attack(t, bridge, newHello())
		wg.Go(c.discard)
		wg.Go(func() {
			defer c.Close()
			for id := uint64(0); ; {
				select {
				case <-stop:
					return
				default:
				}
				var out []byte
				for len(out) < 16<<10 {
					out = data(out, id, 0, first(o))
					id++
				}
				if _, err := c.Write(out); err != nil {
					return
				}
			}
		})
	}
	by.served("during", 300)
	close(stop)
	wg.Wait()
	server.grewLittle(base)
	server.recovers(base, back)
	by.served("after", 50)
}

// A client opens streams with half a request.
func TestHalfRequests(t *testing.T) {
	opens(t, 4, func(*origin) []byte { return []byte{5, 1, 0} })
}

// A client opens streams with whole requests, and keeps what it gets.
func TestWholeRequests(t *testing.T) {
	opens(t, 4, func(o *origin) []byte { return request(o.port()) })
}

// Programs, and a client, end their directions, so that all places are taken by connections
// on which nothing happens. New ones get places all the same, at the gateway and at the
// server, and half-closed ones on which something happens are left alone.
func TestHalfClosedAtTheLimit(t *testing.T) {
	const atGateway, ofClient = 30, 20
	server, bridge := startServer(t, fmt.Sprintf("[limits]\nconnections = 400\nclient_streams = %d\n", ofClient))
	gateway := startGateway(t, bridge, fmt.Sprintf("[limits]\nconnections = %d\n", atGateway))
	silent := listen(t, func(net.Conn) {})
	ticks := listen(t, func(c net.Conn) {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.Write([]byte{1}); err != nil {
				return
			}
		}
	})

	// The client takes all of its places, and asks for more.
	served := make(chan uint64, 3*ofClient)
	answers := map[uint64][]byte{}
	c := attack(t, bridge, newHello())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	wg.Go(func() {
		c.confirm(func(m message) {
			if id := m.numbers[0]; m.kind == fData {
				if answers[id] = append(answers[id], m.data...); string(answers[id]) == string(granted) {
					served <- id
				}
			}
		})
	})
	ask := func(id uint64) {
		first := request(silent.port())
		if _, err := c.Write(frame(data(nil, id, 0, first), fFin, id, uint64(len(first)))); err != nil {
			t.Error(err)
		}
	}
	for id := range uint64(ofClient) {
		ask(id)
		select {
		case <-served:
		case <-time.After(patience):
			t.Fatalf("request %d is not granted", id)
		}
	}

	// So do the programs, but for one.
	open := func(o *origin) *net.TCPConn {
		c, err := through(gateway.listens(0), o.port(), patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.(*net.TCPConn).CloseWrite()
		return c.(*net.TCPConn)
	}
	busy := open(ticks)
	var idle []*net.TCPConn
	for range atGateway - 1 {
		idle = append(idle, open(silent))
	}
	if _, err := through(gateway.listens(0), silent.port(), patience); err == nil {
		t.Error("a place is taken from a connection that was not silent")
	}

	one := make([]byte, 1)
	if !harness.Eventually(patience, func() bool {
		c, err := through(gateway.listens(0), silent.port(), patience)
		if err == nil {
			c.Close()
		}
		return err == nil
	}) {
		t.Error("half-closed connections shut others out at the gateway")
	}
	// Which of them was silent for longest is a matter of microseconds.
	if !harness.Eventually(patience, func() bool {
		return slices.ContainsFunc(idle, func(c *net.TCPConn) bool { return ended(c) != "" })
	}) {
		t.Error("none of the silent ones has ended")
	}
	busy.SetReadDeadline(time.Now().Add(patience))
	for range 3 { // as many as have come, and one more
		if _, err := busy.Read(one); err != nil {
			t.Errorf("one on which something happens: %v", err)
		}
	}
	next := uint64(ofClient)
	if !harness.Eventually(patience, func() bool {
		ask(next)
		next++
		select {
		case <-served:
			return true
		default:
			return false
		}
	}) {
		t.Error("half-closed streams of a client keep its places")
	}
	for _, b := range []*box{gateway, server} {
		if !strings.Contains(b.Log.String(), "its place was needed") {
			t.Errorf("the log of the %s does not tell", b.name)
		}
	}
}

// A client is at all of its limits at once: carriers, streams, new streams a second, failed
// handshakes, bytes that nobody reads. Another one, at another address, has the same limits.
func TestClientAtItsLimits(t *testing.T) {
	server, bridge := startServer(t, `[limits]
shared = []
connections = 400
client_carriers = 40
client_streams = 100
client_new = 500
client_memory = "16MiB"
resume = "1s"
`)
	gateway := startGateway(t, bridge, "")
	by := newBystander(t, gateway.listens(0))
	quiet, unread := listen(t, func(net.Conn) {}), listen(t, deaf)
	before := by.served("before", 100)
	base := server.usage()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	until := func(c net.Conn) { // the end of the attack
		wg.Go(func() {
			<-stop
			c.Close()
		})
	}
	ready := make(chan struct{}, 4)
	for range 3 { // streams of each; they are refused most of the time
		c := attack(t, bridge, newHello())
		until(c)
		wg.Go(c.discard)
		wg.Go(func() {
			pause := time.NewTicker(5 * time.Millisecond)
			defer pause.Stop()
			for id := uint64(0); ; {
				var out []byte
				for range 20 {
					out = data(out, id, 0, request(quiet.port()))
					id++
				}
				if _, err := c.Write(out); err != nil {
					return
				}
				if id == 200 {
					ready <- struct{}{}
				}
				<-pause.C
			}
		})
	}
	full := attack(t, bridge, newHello())
	until(full)
	wg.Go(func() {
		flood{streams: 50, size: 1, frames: 300_000, port: unread.port()}.run(full)
		ready <- struct{}{}
	})
	for range 30 { // carriers that do nothing
		until(attack(t, bridge, newHello()))
	}
	for range 2 {
		wg.Go(func() { // connections that fail
			pause := time.NewTicker(5 * time.Millisecond)
			defer pause.Stop()
			for {
				if c, err := dial(t, bridge, attackerHost); err == nil {
					c.Write([]byte("junk"))
					io.Copy(io.Discard, c)
					c.Close()
				}
				select {
				case <-stop:
					return
				case <-pause.C:
				}
			}
		})
	}
	for range cap(ready) {
		select {
		case <-ready:
		case <-time.After(3 * patience):
			t.Fatal("the attack does not get going")
		}
	}
	by.report("while the attack gets going")
	during := by.served("during", 100)
	t.Logf("the first byte takes %.1f times as long", float64(during.Median)/float64(before.Median))
	if during.Median > time.Second {
		t.Errorf("the bystander waits for %v", during.Median)
	}
	server.grewLittle(base)
	close(stop)
	wg.Wait()
	server.recovers(base, back)
	by.served("after", 50)
}

// Many clients behind one address have carriers on which nothing happens. Each costs little.
func TestIdleCarriers(t *testing.T) {
	const number, each = 1000, 56 << 10
	server, bridge := startServer(t, fmt.Sprintf("[limits]\nshared = [%q]\n", attackerHost))
	attack(t, bridge, newHello()).Close()
	base := server.usage()
	for range number {
		attack(t, bridge, newHello())
	}
	var u usage
	if !harness.Eventually(memoryBack, func() bool { u = server.usage(); return u.RSS-base.RSS <= number*each }) {
		t.Errorf("an idle carrier takes %d KiB, want %d at most", (u.RSS-base.RSS)/number>>10, each>>10)
	}
	t.Logf("%d idle carriers, %d KiB each; %v", number, (u.RSS-base.RSS)/number>>10, u)
	if u.FDs < number {
		t.Errorf("%d descriptors: they are not open", u.FDs)
	}
}

// A client opens connections that say nothing.
func TestManyCarriers(t *testing.T) {
	const most = 50
	server, bridge := startServer(t, fmt.Sprintf("[limits]\nclient_carriers = %d\nhandshake = \"60s\"\n", most))
	gateway := startGateway(t, bridge, "")
	by := newBystander(t, gateway.listens(0))
	by.served("before", 50)
	base := server.usage()
	var mu sync.Mutex
	open := 0
	var all []net.Conn
	var wg sync.WaitGroup
	for range 3 * most {
		c, err := dial(t, bridge, attackerHost)
		if err != nil {
			continue
		}
		all = append(all, c)
		open++
		wg.Go(func() {
			c.Read(make([]byte, 1))
			mu.Lock()
			open--
			mu.Unlock()
		})
	}
	left := func() int {
		mu.Lock()
		defer mu.Unlock()
		return open
	}
	if !harness.Eventually(back, func() bool { return left() <= most }) {
		t.Errorf("%d connections of one client are kept, want %d", left(), most)
	}
	by.served("during", 50)
	server.grewLittle(base)
	t.Logf("%d idle connections, %d KiB each", left(), (server.usage().RSS-base.RSS)>>10/int64(max(left(), 1)))
	for _, c := range all {
		c.Close()
	}
	wg.Wait()
	server.recovers(base, back)
	by.served("after", 50)
}
