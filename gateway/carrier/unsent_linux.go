package carrier

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ptgate/gateway/stream"
)

// unsent bounds the bytes that the kernel has accepted and not yet sent
// (TCP_NOTSENT_LOWAT, tcp(7)), on the connection to the bridge or to the PT's
// process. The bound is what the link carries in about 50 ms. Without it, a send
// buffer grows to megabytes, and on a slow link an interactive stream waits for
// seconds behind a bulk one. With less, a fast and long link is idle at times.
// Bytes in flight do not count.
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

// wrote notes a write. From time to time it adapts the bound to the link's speed.
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
