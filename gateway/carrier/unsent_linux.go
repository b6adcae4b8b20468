package carrier

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ptgate/gateway/stream"
)

// unsent bounds what the kernel takes ahead of the network (TCP_NOTSENT_LOWAT,
// tcp(7)) on the connection to the bridge, or to the PT's process: about 50 ms of
// what the link carries. A send buffer grows to megabytes, which on a slow link are
// seconds that an interactive stream waits behind a bulk one; on a fast long link
// less than this leaves gaps. What is in flight is not counted.
type unsent struct {
	raw   syscall.RawConn // nil: no TCP connection
	low   int
	since time.Time
	bytes int
}

const (
	leastUnsent = 128 << 10
	mostUnsent  = 1 << 20
	unsentLook  = 200 * time.Millisecond
)

func newUnsent(c stream.Conn) *unsent {
	u := &unsent{since: time.Now()}
	t := c.Socket().TCP
	if t == nil {
		return u
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return u
	}
	u.raw = raw
	u.set(leastUnsent)
	return u
}

// wrote notes a write, and from time to time follows the link's speed.
func (u *unsent) wrote(n int, now time.Time) {
	u.bytes += n
	took := now.Sub(u.since)
	if u.raw == nil || took < unsentLook {
		return
	}
	ahead := float64(u.bytes) / took.Seconds() / 20
	low := leastUnsent
	for low < mostUnsent && float64(2*low) <= ahead {
		low *= 2
	}
	if low != u.low {
		u.set(low)
	}
	u.since, u.bytes = now, 0
}

func (u *unsent) set(low int) {
	u.low = low
	u.raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, low)
	})
}
