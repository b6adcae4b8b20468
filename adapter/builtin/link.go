package builtin

import (
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"ptgate/adapter"
)

// maxHead bounds the head of an HTTP/1.1 request, or of a proxy's answer, in bytes.
const maxHead = 16 << 10

// maxHandshake bounds what a client reads before its tunnel stands, in bytes: a TLS
// handshake with long certificate chains, and the head of an answer.
const maxHandshake = 256 << 10

var (
	errHandshakeTooLong = adapter.Constant("handshake is too long")
	errLetGo            = adapter.Constant("the handshake has ended")
)

// A link is the TCP connection beneath a transport. The transport is given the
// link as its net.Conn, which lets us bound its handshake and work around its
// habits from below.
//
// The fields are set by the goroutine that runs the handshake, before the
// connection is handed out.
type link struct {
	tcp *net.TCPConn

	// prime makes one Read return nothing and no error. obfs4's client reads
	// beyond the server's handshake and then looks at what it has got only after
	// the next read from the network: without this the first bytes of a server
	// that speaks first can stay in its buffer for ever.
	prime bool

	// limited says that at most budget more bytes may be read.
	limited bool
	budget  int

	// silence is how long the peer may send nothing during the handshake; 0: any time, up to
	// the deadline.
	silence  time.Duration
	deadline time.Time

	// guest is the client of a Listener until its handshake is done. Nil: this is no
	// such connection, or its handshake is done.
	guest *guest
	got   int // bytes from guest

	lengths *lengths // what connections of the server share; nil: nothing

	// from is the client's address, if a proxy has told it. It is not valid if the proxy
	// does not know it. Nil: the client is the peer. ahead is what was read behind the
	// proxy's header; it is the reader's.
	from  *netip.AddrPort
	ahead []byte

	// failed holds the first error of Write or WaitRead, ended is on from
	// CloseWrite. The kernel tells of a reset once only, and the read after that
	// would see a clean end: see end.
	failed atomic.Pointer[error]
	ended  atomic.Bool

	readiness *readiness // made by the first WaitRead; the reader's
}

func (l *link) Read(p []byte) (int, error) {
	if l.prime {
		l.prime = false
		return 0, nil
	}
	if g := l.guest; g != nil && (g.isLetGo() || !g.until.IsZero()) {
		return 0, errLetGo
	}
	if l.limited {
		if l.budget == 0 {
			return 0, errHandshakeTooLong
		}
		p = p[:min(len(p), l.budget)]
	}
	n, err := l.readAhead(p), error(nil)
	if n == 0 {
		n, err = l.tcp.Read(p)
	}
	if l.limited {
		l.budget -= n
	}
	if l.silence > 0 && n > 0 {
		_ = l.SetDeadline(l.deadline)
	}
	if l.guest != nil {
		l.got += n
	}
	if err == io.EOF {
		err = l.end()
	}
	return n, err
}

func (l *link) readAhead(p []byte) int {
	n := copy(p, l.ahead)
	if l.ahead = l.ahead[n:]; len(l.ahead) == 0 {
		l.ahead = nil
	}
	return n
}

// WaitRead returns when Read would not block.
func (l *link) WaitRead() error {
	if l.prime || len(l.ahead) > 0 {
		return nil
	}
	if l.readiness == nil {
		l.readiness = newReadiness(l.tcp)
	}
	err := l.readiness.wait()
	if err != nil {
		l.fail(err)
	}
	return err
}

func (l *link) fail(err error) { l.failed.CompareAndSwap(nil, &err) }

// end returns io.EOF if the peer has ended its direction. It returns an error if
// the peer has reset the connection, which looks like an end after another call has
// got that error.
func (l *link) end() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	// The order matters: with our own end sent, a closed socket is no surprise.
	if socketClosed(l.tcp) && !l.ended.Load() {
		return syscall.ECONNRESET
	}
	return io.EOF
}

// expect limits the handshake to n bytes from the peer.
func (l *link) expect(n int) { l.limited, l.budget = true, n }

// handshakeDone ends the limits of the handshake.
func (l *link) handshakeDone() {
	l.limited, l.silence = false, 0
	if g := l.guest; g != nil {
		l.guest = nil
		g.finish()
	}
}

func (l *link) Write(p []byte) (int, error) {
	n, err := l.tcp.Write(p)
	if err != nil {
		l.fail(err)
	}
	return n, err
}

// CloseWrite sends the end, after everything written.
func (l *link) CloseWrite() error {
	l.ended.Store(true)
	return l.tcp.CloseWrite()
}

// Close leaves a client alone that failed the handshake if it is to be kept for a while.
func (l *link) Close() error {
	if g := l.guest; g != nil && !g.until.IsZero() {
		return nil
	}
	return l.tcp.Close()
}

// Abort closes with a reset, so that the peer does not take what it has got for
// everything.
func (l *link) Abort() {
	_ = l.tcp.SetLinger(0)
	_ = l.tcp.Close()
}

func (l *link) Beneath() *net.TCPConn { return l.tcp }

func (l *link) LocalAddr() net.Addr { return l.tcp.LocalAddr() }

func (l *link) RemoteAddr() net.Addr {
	if l.from != nil {
		return net.TCPAddrFromAddrPort(*l.from)
	}
	return l.tcp.RemoteAddr()
}

func (l *link) SetWriteDeadline(t time.Time) error { return l.tcp.SetWriteDeadline(t) }

func (l *link) SetDeadline(t time.Time) error {
	if g := l.guest; g != nil {
		return g.setDeadline(t)
	}
	if l.silence > 0 {
		l.deadline = t
		if silent := time.Now().Add(l.silence); t.IsZero() || silent.Before(t) {
			t = silent
		}
	}
	return l.tcp.SetDeadline(t)
}

// SetReadDeadline is called by obfs4's server when it has failed a handshake, and would
// now read and discard until t so as not to give itself away, and close then. The Listener
// does that in its place: see Listener.keep. What obfs4 reads then has an end at once.
func (l *link) SetReadDeadline(t time.Time) error {
	if g := l.guest; g != nil && g.patient {
		g.until = t
		return nil
	}
	return l.tcp.SetReadDeadline(t)
}

// newLink sets the socket's options; sendBuffer is SO_SNDBUF in bytes, 0 for the
// system's choice.
func newLink(tcp *net.TCPConn, sendBuffer int) *link {
	if sendBuffer > 0 {
		// Only a hint to the kernel: a connection that can't take it works, too.
		_ = tcp.SetWriteBuffer(sendBuffer)
	}
	return &link{tcp: tcp}
}
