package stream

import (
	"io"
	"testing"

	"ptgate/gateway/testkit"
)

// A connection that has ended in order both ways is not taken for one that was reset: its
// socket may still hold bytes.
func TestPeer(t *testing.T) {
	for name, make := range sources {
		for _, c := range []struct {
			name         string
			ends, resets bool // this side ends its direction; the peer resets
			want         Peer
		}{
			{"here", false, false, Here},
			{"ended", true, false, Left},
			{"reset", false, true, WasReset},
		} {
			if name == "to program" && c.ends {
				continue // it can't
			}
			t.Run(name+"/"+c.name, func(t *testing.T) {
				mine, peer := testkit.TCPPair(t)
				conn := make(mine)
				peer.Write([]byte("not read yet"))
				if c.ends {
					conn.CloseWrite()
					io.ReadAll(peer)
					peer.Close()
				}
				if c.resets {
					peer.SetLinger(0)
					peer.Close()
				}
				if c.ends || c.resets {
					waitReset(mine) // until the kernel has closed the socket
				}
				if got := conn.Peer(); got != c.want {
					t.Errorf("the peer is %d, want %d", got, c.want)
				}
			})
		}
	}
}
