// Package measure has a service of an exit by which a gateway measures what the network
// between them does to a connection. A client asks for it as for a destination, by a name
// that no other host can have (RFC 6761 section 6.4).
//
// On its connection a client asks for bytes: a number, 4 bytes big endian. It gets so many
// bytes, and may ask again.
package measure

import (
	"encoding/binary"
	"io"
	"net"
	"time"

	"ptgate/gateway/destination"
)

// Name and Port are the destination.
const (
	Name = "measure" + destination.Inside
	Port = 1
)

const (
	// Most is how many bytes one connection gives.
	Most = 4 << 20
	// patience is how long it waits for a question, and for an answer to be taken.
	patience = 2 * time.Minute
)

// Serve answers on c until the client ends, or asks for too much. The caller closes c.
func Serve(c net.Conn) {
	filler := make([]byte, 16<<10)
	for left := int64(Most); ; {
		if c.SetDeadline(time.Now().Add(patience)) != nil {
			return
		}
		var question [4]byte
		if _, err := io.ReadFull(c, question[:]); err != nil {
			return
		}
		n := int64(binary.BigEndian.Uint32(question[:]))
		if left -= n; left < 0 {
			return
		}
		for n > 0 {
			k, err := c.Write(filler[:min(n, int64(len(filler)))])
			if err != nil {
				return
			}
			n -= int64(k)
		}
	}
}

// Ask asks for n bytes.
func Ask(c net.Conn, n int) error {
	_, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(n)))
	return err
}
