// Package carrier wraps one connection of a pluggable transport between a gateway and a
// server, so that it can carry the traffic of many programs at once.
//
// A write to such a connection is expensive, and the connection may die without a sign. So
// a Conn does these things for its user:
//
//   - It gathers bytes. Many small appends that come close together become one large write,
//     because each write of an obfuscating transport costs padding and a system call. The
//     queue in front of the connection is bounded: a longer one would not make bulk data
//     faster, but would delay all later bytes. Append never waits; Space tells how much may
//     be appended, and Options.Room when there is more.
//   - It keeps what it has written until its user says that the peer has it (Release). When
//     the connection is lost, the user takes the rest back (Unreleased) and sends it
//     elsewhere.
//   - It keeps to a budget of bytes on the wire.
//   - It watches the peer: when it was last heard, whether it owes an answer, and for how
//     long. The table below has the states. The user sends the questions (Watch.Ask).
//   - It counts bytes.
//
// A gateway's Conn is in one of these states:
//
//	connecting   no byte has come from the peer yet. That the transport has granted the
//	             connection proves nothing: some need half a minute to find their way.
//	heard        the peer answers, or has not been asked
//	suspect      the peer owes an answer for longer than it should need, and the connection
//	             takes no more bytes either. One byte from it ends the suspicion.
//	dead         the peer has given no sign for DeadAfter: the Conn ends by itself
//
// A server's Conn ends by itself when nothing has come from its client for two minutes. A
// live client asks for a sign of life much more often than that.
//
// A carrier begins with a preamble of four bytes. A bare SOCKS5 session has none: its
// first byte is 5 (see Sniff). The bytes after the preamble belong to the user: this
// package knows no streams, no frames and no requests. It opens no connection itself.
package carrier

import (
	"io"
	"sync/atomic"
	"time"

	"ptgate/gateway/stream"
)

// Preamble is the first four bytes of a carrier. The last one is the version.
const Preamble = "PTG\x03"

// Traffic counts the bytes that connections have read (In) and written (Out). They are
// bytes of payload, without the overhead of the transport.
type Traffic struct{ In, Out atomic.Int64 }

// A Kind says what the first bytes of a connection that came in through a PT belong to.
type Kind int

// The kinds.
const (
	Unknown Kind = iota
	Carrier
	BareSOCKS5
)

// Sniff reads a connection's first byte, and for a carrier its preamble, within limit. The
// connection that it returns has the bytes to be read next: for a carrier those after the
// preamble, for SOCKS5 all. After an error, the caller still owns c.
func Sniff(c stream.Conn, limit time.Duration) (Kind, stream.Conn, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return Unknown, nil, err
	}
	if err := c.WaitRead(); err != nil { // one that says nothing needs no buffer
		return Unknown, nil, err
	}
	var b [len(Preamble)]byte
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return Unknown, nil, err
	}
	kind := Unknown
	switch b[0] {
	case 5:
		kind = BareSOCKS5
		c = stream.Ahead(c, b[:1])
	case Preamble[0]:
		if _, err := io.ReadFull(c, b[1:]); err != nil {
			return Unknown, nil, err
		}
		if string(b[:]) == Preamble {
			kind = Carrier
		}
	}
	return kind, c, c.SetReadDeadline(time.Time{})
}
