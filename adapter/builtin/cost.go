package builtin

// A cost is the most bytes on the wire that a transport makes of what the far end sends.
// It counts what comes from the far end only, without the headers of TCP and IP.
type cost struct {
	handshake int             // before the first byte of payload
	write     func(n int) int // for one Write of n bytes, at most writeChunk
}

// HandshakeCost returns the most bytes that the far end of a transport sends before the
// first byte of payload.
func HandshakeCost(transport string) int {
	t, _ := Lookup(transport)
	return t.costs().handshake
}

// WireCost returns the most bytes that the far end of a transport sends if n bytes of
// payload are given to it in one Write. A Conn of this package parts large writes, which is
// counted. Many small writes cost more than one large one.
func WireCost(transport string, n int) int {
	t, _ := Lookup(transport)
	write := t.costs().write
	total := 0
	for ; n > writeChunk; n -= writeChunk {
		total += write(writeChunk)
	}
	if n > 0 {
		total += write(n)
	}
	return total
}

func (t *Transport) costs() cost {
	if t.cost.write == nil {
		return unknownCost
	}
	return t.cost
}

var (
	// obfs4: the server's answer, with its padding and the frame with the seed behind it,
	// has at most 8192 bytes (obfs4-spec section 4; maxHandshakeLength,
	// serverMaxPadLength and inlineSeedFrameLength in lyrebird's handshake_ntor.go).
	obfs4Cost = cost{8192, func(n int) int { return n + obfs4Frames(n) + obfs4Padding }}

	// webtunnel: TLS, then the head of an answer 101. What a web server in front sends in
	// its TLS handshake is mostly its certificates: 2 to 5 KiB for those that most sites
	// have, and 1.2 KiB for the post-quantum key. Two session tickets and the head take
	// less than 1 KiB. Records may be as small as those of crypto/tls, which begin with
	// one TCP segment (tcpMSSEstimate, 1208 bytes with the header); each costs up to 29
	// bytes: header 5, explicit nonce 8, tag 16 (RFC 5246 6.2.3.3). TLS 1.3 needs 22 (RFC
	// 8446 5.2).
	webtunnelCost = cost{7 << 10, func(n int) int { return n + 29*parts(n, 1179) }}

	// meek_lite: the same, but each answer has a head of its own, and carries at most 64
	// KiB. Answers without payload come every few seconds, too; they are not counted.
	meekCost = cost{7 << 10, func(n int) int { return n + 29*parts(n, 1179) + 1<<10 }}

	// obfs3: a key of 192 bytes, a hash of 32, and two times up to 4097 bytes of padding
	// (obfs3-protocol-spec; maxPadding in lyrebird's obfs3.go). Then a stream cipher.
	obfs3Cost = cost{192 + 32 + 8194, func(n int) int { return n }}

	// obfs2: a seed of 16 bytes, two numbers of 4, up to 8192 bytes of padding
	// (obfs2-protocol-spec; maxPadding in lyrebird's obfs2.go). Then a stream cipher.
	obfs2Cost = cost{16 + 8 + 8192, func(n int) int { return n }}

	// scramblesuit: the answer has at most 1532 bytes (maxHandshakeLength in lyrebird's
	// handshake_uniformdh.go), then come a ticket of 144 bytes and a seed of 32, each in a
	// frame with padding. The frames are like those of obfs4.
	scramblesuitCost = cost{1532 + 144 + 32 + 2*(obfs4Header+obfs4Padding), obfs4Cost.write}

	// unknownCost is a guess for the others, on the careful side: as obfs4.
	unknownCost = obfs4Cost
)

const (
	obfs4Segment = 1448                       // MaximumSegmentLength in lyrebird's framing.go
	obfs4Header  = 2 + 16 + 3                 // length, tag; packet type and length
	obfs4Payload = obfs4Segment - obfs4Header // in a full frame

	// obfs4Padding is the most that follows one write (padBurst in lyrebird's obfs4.go,
	// iat-mode 0 and 1). The write is padded to a random place in a segment, so it is
	// mostly half a segment. Where that place is less than a header away, a full segment
	// and as much as two headers are sent.
	obfs4Padding = obfs4Segment + 2*obfs4Header
)

// obfs4Frames are the bytes of the headers of n bytes of payload.
func obfs4Frames(n int) int { return obfs4Header * parts(n, obfs4Payload) }

// parts is how many pieces of at most size it takes for n bytes.
func parts(n, size int) int { return (n + size - 1) / size }
