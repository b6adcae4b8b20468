// Package carrier moves many streams over one connection of a pluggable
// transport, between a gateway (Client) and a server (Serve).
//
// A carrier starts with a four byte preamble that tells it from a bare SOCKS5
// session, whose first byte is 5. What follows is yamux. Each stream is an
// ordinary SOCKS5 session (RFC 1928, with RFC 1929 where the exit asks for a
// password) whose client side is sent in one write, so that a new stream costs
// one round trip plus the far end's dial. Half-close and reset work in both
// directions and lose no byte.
//
// The package opens no connection itself and knows nothing of routes: a Client
// is given a connection, and Serve a function that speaks SOCKS5 on a stream.
package carrier

import (
	"bytes"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/gateway/stream"
)

// Preamble is how a carrier begins. Its last byte is the version.
const Preamble = "PTG\x01"

// Settings found by measurement; see the benchmarks of this package.
const (
	keepAlive = 15 * time.Second
	// An idle carrier that does not answer for so long is not offered to new
	// streams; one that gives no sign for deadAfter is given up. Between the two
	// lies a cut link that comes back: its streams go on.
	suspectAfter = 1500 * time.Millisecond
	deadAfter    = 45 * time.Second

	maxMessage   = 32 << 10 // of yamux, header and all
	streamWindow = 8 << 20  // fills 30 MiB/s at 100 ms; an application that does not read holds as much
	backlog      = 1024     // streams opened and not yet accepted
	// What one carrier holds ahead of the connection. More of it does not make
	// bulk faster, and makes every other stream wait behind it.
	queueLimit = 128 << 10
)

func settings(maxStreams int, log *slog.Logger) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.EnableKeepAlive = false // ours knows suspicion before death
	c.ConnectionWriteTimeout = deadAfter
	c.MaxIncomingStreams = uint32(max(maxStreams, 0))
	// No growth: where yamux 5.1.0 doubles a window it grants the sender less than
	// it books for it, and after a few doublings the stream stands still for ever.
	c.InitialStreamWindowSize, c.MaxStreamWindowSize = streamWindow, streamWindow
	c.ReadBufSize = 64 << 10
	c.MaxMessageSize = maxMessage
	c.LogOutput = &logWriter{log}
	return c
}

// logWriter gives yamux's lines to slog. They speak of frames, never of
// destinations.
type logWriter struct{ log *slog.Logger }

func (w *logWriter) Write(p []byte) (int, error) {
	_, text, _ := bytes.Cut(p, []byte("yamux: "))
	w.log.Debug("carrier", "yamux", string(bytes.TrimSpace(text)))
	return len(p), nil
}

// Traffic counts what a carrier's connection has moved, in bytes of the
// transport's payload.
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
// limit. The connection it returns still gives all bytes that belong to what
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
