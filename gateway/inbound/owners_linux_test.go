package inbound

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"ptgate/gateway/outcome"
)

// A program of a user who is not in Owners gets no byte, whatever it says; one who is, is
// served.
func TestOwners(t *testing.T) {
	self := uint32(os.Getuid())
	for name, listen := range map[string]func() (net.Listener, error){
		"IPv4": func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		"IPv6": func() (net.Listener, error) { return net.Listen("tcp", "[::1]:0") },
		"Unix": func() (net.Listener, error) { return net.Listen("unix", filepath.Join(t.TempDir(), "s")) },
	} {
		for _, owners := range [][]uint32{nil, {self}, {self + 1, self}, {self + 1}} {
			t.Run(name, func(t *testing.T) {
				ln, err := listen()
				if err != nil {
					t.Fatal(err)
				}
				g := startOn(t, ln, Mixed, failing(0), func(s *Settings, _ *Config) { s.Owners = owners })
				c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				c.Write([]byte{5, 1, 0})
				got, err := io.ReadAll(io.LimitReader(c, 2))
				if err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Error(err)
				}
				in := len(owners) != 1 || owners[0] == self
				if in != (len(got) == 2) || !in && len(got) > 0 {
					t.Errorf("owners %v: %q", owners, got)
				}
				if n := g.book.Total(outcome.NotOwner); n != map[bool]int64{false: 1}[in] {
					t.Errorf("owners %v: %d are counted as refused", owners, n)
				}
			})
		}
	}
}
