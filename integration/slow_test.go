//go:build integration

package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"ptgate/integration/ports"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// slowPT is the argument that makes this test program a pluggable transport, both its
// client and its server. It moves bytes as they are. The client grants each request at
// once, as snowflake's does, and needs slowness to find its way to the bridge.
const (
	slowPT   = "slow-pt"
	slowness = 8 * time.Second
	granted  = "granted a request" // what the client says then
)

// runSlowPT is the transport. It returns when the parent closes stdin.
func runSlowPT() error {
	var err error
	if os.Getenv("TOR_PT_SERVER_TRANSPORTS") != "" {
		err = serveSlowly()
	} else {
		err = connectSlowly()
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func connectSlowly() error {
	if _, err := pt.ClientSetup(nil); err != nil {
		return err
	}
	ln, err := pt.ListenSocks("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { // until the process ends
		for {
			c, err := ln.AcceptSocks()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if err := c.Grant(&net.TCPAddr{IP: net.IPv4zero}); err != nil {
					return
				}
				pt.Log(pt.LogSeverityNotice, granted)
				<-time.After(slowness)
				if bridge, err := net.Dial("tcp", c.Req.Target); err == nil {
					join(c, bridge)
				}
			}()
		}
	}()
	pt.Cmethod("slow", ln.Version(), ln.Addr())
	pt.CmethodsDone()
	return nil
}

func serveSlowly() error {
	info, err := pt.ServerSetup(nil)
	if err != nil {
		return err
	}
	for _, b := range info.Bindaddrs {
		ln, err := net.ListenTCP("tcp", b.Addr)
		if err != nil {
			return pt.SmethodError(b.MethodName, err.Error())
		}
		go func() { // until the process ends
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					if gateway, err := pt.DialOr(&info, c.RemoteAddr().String(), b.MethodName); err == nil {
						join(c, gateway)
					}
				}()
			}
		}()
		pt.Smethod(b.MethodName, ln.Addr())
	}
	pt.SmethodsDone()
	return nil
}

// join moves bytes both ways until one side ends.
func join(a, b net.Conn) {
	go func() {
		io.Copy(a, b)
		a.Close()
		b.Close()
	}()
	io.Copy(b, a)
	a.Close()
	b.Close()
}

// TestSlowTransport: a transport that grants a request long before it has found its way
// is waited for, as long as limits.dial says, and is not asked again and again meanwhile.
func TestSlowTransport(t *testing.T) {
	t.Parallel() // it waits more than it works
	o := serveOrigin(t)
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	table := speaker{exec: []string{own, slowPT}}.table("slow")
	for _, tt := range []struct {
		bridge string
		most   int // connections of the transport
	}{
		{"", 5}, // others are tried beside the silent one, and one is opened ahead of need
		{"carriers = 1\n", 1},
	} {
		t.Run(strings.TrimSpace("bridge "+tt.bridge), func(t *testing.T) {
			t.Parallel()
			bind := ports.Free(t)
			run(t, "server", debugLog+"[[serve]]\ntransport = \"slow\"\nbind = \""+bind+"\"\n"+openExit+table, setting{hosts: originHosts})
			var arrived atomic.Int64
			bridge := serveTCP(t, func(c *net.TCPConn) {
				arrived.Add(1)
				if server, err := net.Dial("tcp", bind); err == nil {
					join(c, server)
				}
			})
			client := run(t, "client", debugLog+"private = false\n"+fronts+"[bridge.far]\ntransport = \"slow\"\naddress = \""+bridge+"\"\n"+tt.bridge+everythingVia("far")+table, setting{})

			const size = 1 << 20
			got := curl(t, "--socks5-hostname", client.socks(), fmt.Sprintf("%s/bytes/slow/%d", o.http, size))
			asked := strings.Count(client.log.String(), granted)
			if fmt.Sprintf("%x", sha256.Sum256([]byte(got))) != noiseSum("slow", size) {
				t.Errorf("%d bytes with a wrong checksum, want %d", len(got), size)
			}
			if n := int(arrived.Load()); n < 1 || asked < n || asked > tt.most {
				t.Errorf("the transport was asked for %d connections, and %d came to the bridge, want 1 at least and %d at most", asked, n, tt.most)
			}
		})
	}
}
