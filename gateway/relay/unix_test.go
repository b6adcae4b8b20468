//go:build unix

package relay

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"

	"ptgate/gateway/stream"
	"ptgate/gateway/testkit"
)

// A program on a Unix socket that ends its side, and then closes, ends the pair, whether the
// far end can be told of half a close or not.
func TestUnixProgramGone(t *testing.T) {
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			app, err := net.Dial("unix", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer app.Close()
			client, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			upstream, far := testkit.TCPPair(t)
			done := make(chan error, 1)
			go func() { done <- Run(context.Background(), stream.From(client), wrap(upstream), Options{}) }()
			app.Write([]byte("last words"))
			app.(*net.UnixConn).CloseWrite()
			far.Write([]byte("answer"))
			if _, err := io.ReadFull(app, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			app.Close()
			if b, err := io.ReadAll(far); string(b) != "last words" || err != nil {
				t.Errorf("the far end read %q, %v", b, err)
			}
			<-done
		})
	}
}
