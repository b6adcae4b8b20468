// Package carrier is one connection of a pluggable transport between a gateway and a
// server, seen as something that carries the traffic of many programs at once.
//
// Such a connection is expensive to write to and may die without a sign. So a Conn does
// three things for whoever uses it:
//
//   - It gathers. Many small writes that come close together leave as one large one,
//     because each write of an obfuscating transport costs padding and a system call. What
//     waits in front of the connection is bounded: more of it would not make bulk data
//     faster, but would delay everything that comes later.
//   - It knows how the peer is: when it was last heard, whether it owes an answer, and for
//     how long. The states are those of the table below.
//   - It counts bytes.
//
// A gateway's Conn is in one of these states:
//
//	connecting   no byte has come from the peer yet. That the transport has granted the
//	             connection proves nothing: some need half a minute to find their way.
//	heard        the peer answers, or has not been asked
//	suspect      the peer owes an answer for longer than it should need. No new work is
//	             given to it. One byte from it ends the suspicion.
//	dead         the peer has given no sign for DeadAfter: the Conn ends by itself
//
// A server's Conn ends by itself when its client was not heard for vanishedAfter: a client
// asks for a sign of life much more often than that.
//
// A connection begins with a preamble of four bytes, which tells it from a bare SOCKS5
// session, whose first byte is 5 (see Sniff). What comes then is the user's own: this
// package knows no streams, no frames and no requests. It opens no connection itself.
package carrier

import (
	"io"
	"sync/atomic"
	"time"

	"ptgate/gateway/stream"
)

// Preamble is how a carrier begins. Its last byte is the version.
const Preamble = "PTG\x01"

// Traffic counts what connections have moved, in bytes of the transport's payload.
type Traffic struct{ In, Out atomic.Int64 }

// A Kind is what a connection that came in through a PT turns out to be.
type Kind int

// The kinds.
const (
	Unknown Kind = iota
	Carrier
	BareSOCKS5
)

// Sniff reads a connection's first byte, and for a carrier its preamble, within
// limit. The connection that it returns still gives all bytes that belong to what
// follows: for a carrier those after the preamble, else all.
func Sniff(c stream.Conn, limit time.Duration) (Kind, stream.Conn, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
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
