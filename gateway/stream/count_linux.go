package stream

import "golang.org/x/sys/unix"

// Received returns how many bytes have come from the peer of s, as a network that counts
// the payload of TCP sees them. What the kernel still holds is counted, too; what was sent
// twice counts once. ok is false if that can't be known.
func (s Socket) Received() (n int64, ok bool) {
	ok = s.control(func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = int64(info.Bytes_received)
		}
		return err
	})
	return n, ok
}

// Sent returns how many bytes were written to s, as Received will count them at the peer.
// What the kernel has not sent yet is counted, too.
func (s Socket) Sent() (n int64, ok bool) {
	ok = s.control(func(fd int) error {
		// Bytes move from the queue to those that have come at any moment.
		acked := uint64(0)
		for range 8 {
			queued, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
			if err != nil {
				return err
			}
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				return err
			}
			n = int64(info.Bytes_acked) + int64(queued)
			if queued == 0 || info.Bytes_acked == acked {
				return nil
			}
			acked = info.Bytes_acked
		}
		return nil // as good as it can be while so many bytes move
	})
	return n, ok
}

func (s Socket) control(f func(fd int) error) (ok bool) {
	if s.TCP == nil {
		return false
	}
	raw, err := s.TCP.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) { ok = f(int(fd)) == nil })
	return ok && err == nil
}
