//go:build integration

package integration

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// TestVanishedClient: a client whose packets stop to come, without a word, is given up by
// the server although nginx, which is between the two, would keep the connection to the
// server for a day. So the destinations are rid of it, too.
//
// It takes two minutes and some looks, of ten seconds each: so long the server waits for
// a sign of a client, for a cut link may come back, and so long is fixed.
func TestVanishedClient(t *testing.T) {
	t.Parallel() // it waits, and does next to nothing
	const limit = 170 * time.Second

	const name = "bridge.ptgate.test"
	near, far, behind := newBoxes(t)
	// send_timeout is for a client that takes nothing: nginx itself would end a download
	// after a minute.
	text, path, pin := runFront(t, far, name, "proxy_send_timeout 1d; send_timeout 1d;\n")
	run(t, "server", debugLog+"[limits]\nresume = \"5s\"\n"+text, setting{netns: far})

	var programs sync.WaitGroup
	t.Cleanup(programs.Wait)
	type destination struct {
		name           string
		opened, closed chan struct{}
		addr           string
	}
	serve := func(name string, handle func(*net.TCPConn)) *destination {
		d := &destination{name: name, opened: make(chan struct{}, 10), closed: make(chan struct{}, 10)}
		d.addr = serveOn(t, listenIn(t, behind, originAddr+":0"), func(c *net.TCPConn) {
			d.opened <- struct{}{}
			handle(c)
			d.closed <- struct{}{}
		})
		return d
	}
	idle := serve("idle", func(c *net.TCPConn) { io.Copy(c, c) })
	download := serve("download", func(c *net.TCPConn) { io.Copy(c, noise("download")) })
	// Each has a gateway of its own, so that there is a carrier that is full and one that
	// is not. That which is full is given up earlier: its writes have a limit.
	for _, d := range []*destination{idle, download} {
		client := run(t, d.name, debugLog+fronts+"[bridge.far]\ntransport = \"webtunnel\"\naddress = \"192.0.2.1:443\"\n"+
			`args = { url = "https://`+name+path+`", addr = "`+serverBox+`:443", cert = "`+pin+"\" }\n"+everythingVia("far"), setting{netns: near})
		var c *net.TCPConn
		var reply byte
		in(t, near, func() error {
			c, reply = socksOpen(t, client.socks(), originName, portOf(t, d.addr))
			return nil
		})
		if reply != 0 {
			t.Fatalf("%s: reply %d", d.name, reply)
		}
		if _, err := io.WriteString(c, "request"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 7)); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		programs.Go(func() { io.Copy(io.Discard, c) })
		wait(t, d.opened, d.name+": the destination was not reached")
	}
	for _, d := range []*destination{idle, download} {
		if len(d.closed) > 0 {
			t.Fatalf("%s: closed while the client was there", d.name)
		}
	}

	must(t, "ip", "netns", "exec", near, "nft", `table inet cut {
		chain from { type filter hook input priority 0; iif != lo drop; }
		chain to { type filter hook output priority 0; oif != lo drop; }
	}`)
	over := time.NewTimer(limit)
	defer over.Stop()
	for _, d := range []*destination{idle, download} {
		select {
		case <-d.closed:
		case <-over.C:
			t.Fatalf("%s: the destination's connection is open %v after the client has vanished", d.name, limit)
		}
		if len(d.opened) > 0 {
			t.Errorf("%s: the destination was connected to more than once", d.name)
		}
	}
}
