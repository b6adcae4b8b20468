//go:build integration

package adapter_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/adapter"
	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

// echoHandler answers every connection with what it sends. It does not
// splice, because the runtime keeps the pipes of that for later and they would
// look like a leak.
func echoHandler(_ context.Context, c net.Conn, _ adapter.ClientInfo) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
}

// startClient starts a client adapter and has it closed at the end.
func startClient(t *testing.T, transports []string, exec ...string) *adapter.ClientAdapter {
	t.Helper()
	c := adapter.NewClient(adapter.ClientConfig{Config: adapter.Config{Exec: exec}, Transports: transports})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopped(t, c) })
	return c
}

type stoppable interface {
	Close() error
	Wait() error
}

func stopped(t *testing.T, a stoppable) {
	t.Helper()
	a.Close()
	if err := a.Wait(); err != nil {
		t.Errorf("wait after close: %v", err)
	}
}

// roundTrip sends data of some size through a dialled connection and expects
// the same back.
func roundTrip(t *testing.T, c net.Conn, size int) {
	t.Helper()
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size)
	rand.Read(data)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	back := make([]byte, size)
	if _, err := io.ReadFull(c, back); err != nil {
		t.Errorf("read: %v", err)
		c.Close()
		return
	}
	if !bytes.Equal(back, data) {
		t.Errorf("came back changed: %x, want %x", sha256.Sum256(back), sha256.Sum256(data))
	}
}

// TestPairs runs transports between real programs, through an ext server that
// learns the client's address, with several connections at once.
func TestPairs(t *testing.T) {
	obfs4proxy, lyrebird := []string{realpt.Program(t, "obfs4proxy")}, []string{realpt.Lyrebird(t)}
	ptgate := []string{harness.Program(t), "pt"}
	tests := []struct {
		name, transport string
		client, server  []string
	}{
		{"obfs4proxy", "obfs4", obfs4proxy, obfs4proxy},
		{"lyrebird", "obfs4", lyrebird, lyrebird},
		{"lyrebird to obfs4proxy", "obfs4", lyrebird, obfs4proxy},
		{"obfs4proxy to lyrebird", "obfs4", obfs4proxy, lyrebird},
		{"ptgate", "obfs4", ptgate, ptgate},
		{"ptgate to obfs4proxy", "obfs4", ptgate, obfs4proxy},
		{"obfs4proxy to ptgate", "obfs4", obfs4proxy, ptgate},
		{"ptgate to lyrebird", "obfs4", ptgate, lyrebird},
		{"lyrebird to ptgate", "obfs4", lyrebird, ptgate},
		{"obfs2", "obfs2", lyrebird, obfs4proxy},
		{"obfs3", "obfs3", obfs4proxy, lyrebird},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			infos := make(chan adapter.ClientInfo, 100)
			server := adapter.NewExtServer(adapter.ExtServerConfig{
				Config: adapter.Config{Exec: tt.server},
				PreConnect: func(info adapter.ClientInfo) bool {
					infos <- info
					return info.Addr.Addr().IsLoopback()
				},
				Handler: echoHandler,
			})
			if err := server.AddTransport(tt.transport, "127.0.0.1:0", nil); err != nil {
				t.Fatal(err)
			}
			if err := server.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer stopped(t, server)
			announced, err := server.Method(tt.transport)
			if err != nil {
				t.Fatal(err)
			}

			client := adapter.NewClient(adapter.ClientConfig{
				Config:     adapter.Config{Exec: tt.client},
				Transports: []string{tt.transport},
			})
			if err := client.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer stopped(t, client)
			var wg sync.WaitGroup
			defer wg.Wait()
			for range 4 {
				wg.Go(func() {
					c, err := client.DialTransport(t.Context(), tt.transport, announced.Addr, announced.Args)
					if err != nil {
						t.Errorf("dial: %v", err)
						return
					}
					roundTrip(t, c, 1<<20)
				})
			}
			wg.Wait()
			close(infos)
			for info := range infos {
				if info.Transport != tt.transport || info.Addr.Addr() != netip.MustParseAddr("127.0.0.1") || info.Addr.Port() == 0 {
					t.Errorf("client info %+v", info)
				}
			}
		})
	}
}
