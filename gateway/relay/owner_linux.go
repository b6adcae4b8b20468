package relay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"ptgate/gateway/stream"
)

// owner tells whether the program at the other end of c has closed its socket, or has
// ended. TCP alone can't tell that from the end of one direction. The kernel can
// (sock_diag(7)), but only for programs in this network namespace.
func owner(c *net.TCPConn) ownership {
	switch m, ok := peerSocket(c); {
	case !ok:
		return unknown
	case m.inode == 0:
		return gone
	}
	return present
}

// Owner returns the user whose program is at the other end of c: a TCP connection from this
// machine, or one of a Unix socket. ok is false if that is not known, or if the program has
// closed its socket.
func Owner(c stream.Conn) (uid uint32, ok bool) {
	switch s := c.Socket(); {
	case s.Unix != nil:
		raw, err := s.Unix.SyscallConn()
		if err != nil {
			return 0, false
		}
		err = raw.Control(func(fd uintptr) {
			cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			if ok = err == nil; ok {
				uid = cred.Uid
			}
		})
		return uid, ok && err == nil
	case s.TCP != nil && s.Plain:
		m, ok := peerSocket(s.TCP)
		return m.uid, ok && m.inode != 0
	}
	return 0, false
}

// A socketInfo is what the kernel tells of a socket.
type socketInfo struct {
	uid   uint32 // of the user who has made it; 0 where no file has it any more
	inode uint32 // 0: no file has it any more
}

// diag is the socket over which the kernel is asked, one question at a time. It stays open:
// while descriptors are short, a new one could not be had.
var diag struct {
	mu   sync.Mutex
	open bool
	fd   int
	last uint32 // the number of the last question
}

// peerSocket asks the kernel for the socket at the other end of c. ok is false if it is not
// on this machine, or in another network namespace.
func peerSocket(c *net.TCPConn) (info socketInfo, ok bool) {
	here, there := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	diag.mu.Lock()
	defer diag.mu.Unlock()
	if !diag.open {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return info, false
		}
		diag.fd, diag.open = fd, true
	}
	diag.last++
	if unix.Sendto(diag.fd, diagRequest(diag.last, there, here), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return info, false
	}
	// A message header, and a struct inet_diag_msg, with the state in its second byte,
	// and the user and the inode at the end. A listener is found where there is no such
	// connection on this machine.
	const head = unix.SizeofNlMsghdr
	ne := binary.NativeEndian
	for {
		var b [1 << 10]byte
		n, _, err := unix.Recvfrom(diag.fd, b[:], 0) // the answer is there when Sendto returns
		switch {
		case err == unix.EINTR || err == nil && n >= head && ne.Uint32(b[8:]) != diag.last: // of a question that failed
			continue
		case err != nil || n < head+72 || ne.Uint16(b[4:]) != unix.SOCK_DIAG_BY_FAMILY || b[head+1] == unix.BPF_TCP_LISTEN:
			return info, false
		}
		return socketInfo{ne.Uint32(b[head+64:]), ne.Uint32(b[head+68:])}, true
	}
}

// diagRequest asks for one socket: a message header, and a struct inet_diag_req_v2.
func diagRequest(number uint32, src, dst netip.AddrPort) []byte {
	const size = unix.SizeofNlMsghdr + 56
	ne := binary.NativeEndian
	b := ne.AppendUint32(make([]byte, 0, size), size)
	b = ne.AppendUint16(b, unix.SOCK_DIAG_BY_FAMILY)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST)
	b = ne.AppendUint32(b, number)
	b = ne.AppendUint32(b, 0) // port

	family := byte(unix.AF_INET)
	if src.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = ne.AppendUint32(b, 1<<32-1) // in any state
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	for _, a := range []netip.AddrPort{src, dst} {
		var field [16]byte
		copy(field[:], a.Addr().AsSlice())
		b = append(b, field[:]...)
	}
	b = ne.AppendUint32(b, 0)                                // any interface
	return append(b, 255, 255, 255, 255, 255, 255, 255, 255) // no cookie
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
