package session

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/carrier"
)

// Bits of features. A bit is used on a session if both ends have it.
const (
	featureNews  = 1 << 0 // frameNews
	featureNames = 1 << 1 // the far end looks names up for a gateway (package lookup)

	features = featureNews | featureNames
)

// Flags of a gateway's hello.
const (
	flagCreate = 1 << 0 // begin the session if the far end does not have it
	flagExtra  = 1 << 1 // only for streams that have more than other carriers take
)

// Answers of the far end's hello.
const (
	answerWelcome  = 0 // the carrier is part of the session
	answerUnknown  = 1 // the far end has no such session
	answerRefused  = 2 // the proof is wrong, or the carrier's number was used before
	answerFull     = 3 // too many sessions
	answerLeaving  = 4 // the far end is about to stop, and begins no session
	answersInOrder = 5
)

const (
	idSize     = 16
	secretSize = 16
	macSize    = 16
	// helloMax is the most bytes of a hello after its length.
	helloMax = 1024
)

// A sessionID names a session. The gateway makes it by chance.
type sessionID [idSize]byte

// A hello is what a gateway says first on a carrier.
type hello struct {
	features uint32
	flags    byte
	id       sessionID
	number   uint64 // of the carrier; each is used once in a session
	budget   uint64 // how many bytes the far end may put on the wire; 0: any number
	resume   uint64 // how long the far end may keep the session without a carrier, in seconds
	// proof is the session's secret if the hello may create it, otherwise the MAC of the
	// number, by that secret.
	proof [secretSize]byte
}

// A reply is the far end's first words.
type reply struct {
	features uint32
	answer   byte
	resume   uint64 // how long the far end keeps the session without a carrier, in seconds
	// mac shows that the far end knows the session's secret.
	mac [macSize]byte
	// key and signature show which box it is. They are there unless the far end has
	// accepted a hello for a session that it had.
	key       []byte
	signature []byte
}

var errHello = adapter.Constant("the peer's first bytes make no sense")

// pack puts the preamble and the length before a hello.
func pack(body []byte) []byte {
	b := append([]byte(carrier.Preamble), 0, 0)
	binary.BigEndian.PutUint16(b[len(carrier.Preamble):], uint16(len(body)))
	return append(b, body...)
}

// readBody reads the length and the bytes after a preamble.
func readBody(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > helloMax {
		return nil, fmt.Errorf("%w: %d bytes", errHello, n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func (h *hello) append() []byte {
	b := binary.BigEndian.AppendUint32(nil, h.features)
	b = append(b, h.flags)
	b = append(b, h.id[:]...)
	b = append(b, h.proof[:]...)
	b = binary.AppendUvarint(b, h.number)
	b = binary.AppendUvarint(b, h.budget)
	b = binary.AppendUvarint(b, h.resume)
	return pack(b)
}

// parseHello reads what comes after the length. Bytes after the known fields are those of
// a later version, and mean nothing here.
func parseHello(b []byte) (h hello, err error) {
	if len(b) < 4+1+idSize+secretSize {
		return h, errHello
	}
	h.features, h.flags = binary.BigEndian.Uint32(b), b[4]
	b = b[5:]
	b = b[copy(h.id[:], b):]
	b = b[copy(h.proof[:], b):]
	for _, p := range []*uint64{&h.number, &h.budget, &h.resume} {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return h, errHello
		}
		*p, b = v, b[n:]
	}
	if h.number > maxOffset {
		return h, errHello // so the first carrier of a session can't be refused
	}
	return h, nil
}

func (r *reply) append() []byte {
	b := binary.BigEndian.AppendUint32(nil, r.features)
	b = append(b, r.answer)
	b = append(b, r.mac[:]...)
	b = binary.AppendUvarint(b, r.resume)
	b = append(b, r.key...)
	b = append(b, r.signature...)
	return pack(b)
}

func parseReply(b []byte) (r reply, err error) {
	if len(b) < 4+1+macSize {
		return r, errHello
	}
	r.features, r.answer = binary.BigEndian.Uint32(b), b[4]
	b = b[5:]
	b = b[copy(r.mac[:], b):]
	v, n := binary.Uvarint(b)
	if n <= 0 || r.answer >= answersInOrder {
		return r, errHello
	}
	r.resume, b = v, b[n:]
	if len(b) >= ed25519.PublicKeySize+ed25519.SignatureSize {
		r.key, b = b[:ed25519.PublicKeySize], b[ed25519.PublicKeySize:]
		r.signature = b[:ed25519.SignatureSize]
	}
	return r, nil
}

// mac is the proof that its maker knows a session's secret. Each side has a role of its
// own, and each number is used once, so a proof can't be used again.
func mac(secret [secretSize]byte, role string, id sessionID, number uint64) (sum [macSize]byte) {
	m := hmac.New(sha256.New, secret[:])
	m.Write([]byte("ptgate session " + role + "\x00"))
	m.Write(id[:])
	m.Write(binary.BigEndian.AppendUint64(nil, number))
	copy(sum[:], m.Sum(nil))
	return sum
}

const (
	roleGateway = "gateway"
	roleBox     = "box"
)

// signed is what a box signs to show who it is. It depends on what only the two ends of
// this connection know.
func (h *hello) signed() []byte {
	proof := sha256.Sum256(h.proof[:])
	b := append([]byte("ptgate box\x00"), h.id[:]...)
	b = append(b, proof[:]...)
	return binary.BigEndian.AppendUint64(b, h.number)
}

// box returns the key of the box that has made r; nil: r does not say.
func (r *reply) box(h *hello) (Box, error) {
	if r.key == nil {
		return Box{}, nil
	}
	if Box(r.key) == (Box{}) || !ed25519.Verify(r.key, h.signed(), r.signature) {
		return Box{}, fmt.Errorf("%w: the signature of the box is wrong", errHello)
	}
	return Box(r.key), nil
}

// A Box is the public key of a box: who it is. The zero Box is not known.
type Box [ed25519.PublicKeySize]byte

// String is a short form for people.
func (b Box) String() string {
	if b == (Box{}) {
		return ""
	}
	sum := sha256.Sum256(b[:])
	return fmt.Sprintf("%x", sum[:8])
}

// seconds rounds up, so that a short time is not none.
func seconds(d time.Duration) uint64 { return uint64((max(d, 0) + time.Second - 1) / time.Second) }
