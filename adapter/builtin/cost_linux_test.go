package builtin

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// The rule of obfs4's padding, to the byte: what a write of each length has taken, as the
// kernel counts it.
func TestObfs4Padding(t *testing.T) {
	client, server := pair(t, nameObfs4)
	raw, err := server.Beneath().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// sent waits until the peer has acknowledged all: then nothing moves any more.
	sent := func() (n int) {
		for queued := 1; queued > 0; {
			var err error
			controlErr := raw.Control(func(fd uintptr) {
				var info *unix.TCPInfo
				if queued, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
					info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
				}
				if err == nil {
					n = int(info.Bytes_acked)
				}
			})
			if err != nil || controlErr != nil {
				t.Fatal(err, controlErr)
			}
		}
		return n
	}
	least, most := 1<<20, 0
	for n := 1; n <= 3000; n += 7 {
		before := sent()
		if _, err := server.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		took := sent() - before
		if cost := WireCost(nameObfs4, n); took > cost {
			t.Fatalf("%d bytes took %d, more than %d", n, took, cost)
		}
		padding := took - n - obfs4Frames(n)
		if padding < 0 {
			t.Fatalf("%d bytes took %d: the frames have other headers than the table says", n, took)
		}
		least, most = min(least, padding), max(most, padding)
	}
	t.Logf("padding from %d to %d, at most %d", least, most, obfs4Padding)
}
