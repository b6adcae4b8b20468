//go:build integration

package attack

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
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
			// The upload stands when the boxes have nothing more to do for it.
			eventually(back, func() bool {
				before := gateway.usage().CPU
				return !eventually(back/10, func() bool { return gateway.usage().CPU-before > back/50 })
			})
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
	if !eventually(back, func() bool { return left() <= most }) {
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
