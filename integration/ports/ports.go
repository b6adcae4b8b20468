// Package ports gives tests ports of loopback that stay free until the test uses them.
package ports

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

// The systems take ports from 32768 on by themselves, for connections that go out and for
// listeners on port 0. A port from there may be another program's before the test has it.
const first, count = 16000, 16000

// last is the port that was given last, counted from first. Test programs that run beside
// each other begin in different places.
var last atomic.Uint32

func init() { last.Store(uint32(os.Getpid()) * 641) }

// Free is an address of loopback on which nobody listens, neither over TCP nor over UDP. It
// is not given to another test of this program before all others have been.
func Free(t testing.TB) string {
	t.Helper()
	for range count {
		addr := fmt.Sprintf("127.0.0.1:%d", first+last.Add(1)%count)
		if ln, err := net.Listen("tcp", addr); err == nil {
			defer ln.Close()
			if c, err := net.ListenPacket("udp", addr); err == nil {
				defer c.Close()
				return addr
			}
		}
	}
	t.Fatal("no port of loopback is free")
	return ""
}
