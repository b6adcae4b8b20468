package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ptgate/gateway/destination"
	"ptgate/gateway/inbound"
	"ptgate/gateway/session"
	"ptgate/integration/ports"
)

// A server that is stopped, and followed by another process with the same keys and port,
// costs no request: not over the only bridge, and not where another one could take them.
func TestServerReplaced(t *testing.T) {
	for _, optimistic := range []string{"never", "always"} {
		for _, two := range []bool{false, true} {
			t.Run(fmt.Sprintf("optimistic %s, two bridges: %v", optimistic, two), func(t *testing.T) {
				text := strings.Replace(fmt.Sprintf(farEnd, ""), `"127.0.0.1:0"`, fmt.Sprintf("%q", ports.Free(t)), 1)
				server := start(t, "server", text)
				config := fmt.Sprintf(nearEnd, bridge(server)+fmt.Sprintf("optimistic = %q\n", optimistic))
				if two {
					_, other := far(t, "")
					config = strings.Replace(config, "[[route]]", "[bridge.other]\n"+other+fmt.Sprintf("optimistic = %q\n[[route]]", optimistic), 1)
					config = strings.Replace(config, `via = "far"`, `via = ["far", "other"]`, 1)
				}
				near := start(t, "client", config)
				o := origin(t, echo)
				roundTrip(t, mustAsk(t, near, o), 1<<10)

				done := make(chan struct{})
				var count atomic.Int64
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for {
							select {
							case <-done:
								return
							default:
							}
							if err := oneRequest(near, o); err != nil {
								t.Errorf("request %d: %v", count.Load(), err)
								return
							}
							count.Add(1)
						}
					})
				}
				more := func() { // some requests come to their end
					for n := count.Load() + 20; count.Load() < n && !t.Failed(); {
						if err := oneRequest(near, o); err != nil {
							t.Error(err)
						}
					}
				}
				for range 3 {
					more()
					// A stream that ends while the server is about to stop.
					live := mustAsk(t, near, o)
					pingPong(t, live)
					stopped := make(chan error, 1)
					go func() { stopped <- server.stop() }()
					more()
					pingPong(t, live)
					live.Close()
					if err := <-stopped; err != nil {
						t.Error(err)
					}
					server = startAt(t, server.path, text)
				}
				more()
				close(done)
				wg.Wait()
				t.Logf("%d requests", count.Load())
			})
		}
	}
}

// pingPong sends a byte and wants it back.
func pingPong(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// oneRequest makes a request, sends some bytes and wants them back.
func oneRequest(near *box, addr string) error {
	target, err := destination.Parse(addr)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", near.Addresses(inbound.SOCKS5)[0])
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if err := session.Handshake(c, target, session.Auth{}); err != nil {
		return fmt.Errorf("the request: %w", err)
	}
	sent, got := bytes.Repeat([]byte("byte"), 256), make([]byte, 1024)
	if _, err := c.Write(sent); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came back: %w", n, err)
	}
	return nil
}
