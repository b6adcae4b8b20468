// Package ways has the list of bridge lines that a box gives to its clients, so that they
// still find it when it moves, or when it has one way more. The box signs the list, so a
// client can keep it and knows later whose it is.
//
// A client gets the list from the exit, as if it were a destination: by a name that no
// other host can have (RFC 6761 section 6.4). So only those get it who may use the exit.
// The lines hold the secrets of the transports.
//
// A list is a text:
//
//	ptgate ways 1
//	serial 1764136800000
//	obfs4 192.0.2.10:443 cert=… iat-mode=0
//	signature 5f3c…
//
// There are up to Most lines of bridges. A later list of the same box has a larger serial.
// The signature, in hex, is of all lines before its own: Ed25519, by the key of the box.
package ways

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/destination"
)

// Name and Port are the destination.
const (
	Name = "ways" + destination.Inside
	Port = 1
)

// A list has at most Most bridge lines, and MaxSize bytes in all.
const (
	Most    = 8
	MaxSize = 4 << 10
)

const (
	head      = "ptgate ways 1\n"
	serial    = "serial "
	signature = "signature "
)

// A List is what a box says of the ways to it.
type List struct {
	Serial uint64
	Lines  []string // bridge lines
}

// Sign makes the text of a list. Lines for which there is no room are left out, from the
// end. A line must be one that adapter.BridgeLine.String gives.
func (l List) Sign(key ed25519.PrivateKey) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s%d\n", head, serial, l.Serial)
	tail := len(signature) + hex.EncodedLen(ed25519.SignatureSize) + 1
	for i, line := range l.Lines {
		if i == Most || b.Len()+len(line)+1+tail > MaxSize {
			break
		}
		b.WriteString(line + "\n")
	}
	fmt.Fprintf(&b, "%s%x\n", signature, ed25519.Sign(key, []byte(b.String())))
	return []byte(b.String())
}

var (
	errForm      = errors.New("this is no list of ways")
	errSignature = errors.New("the list of ways has not been signed by this box")
)

// Open reads a text, which must be signed with the key of that box. Each line of the list
// has the form of a bridge line.
func Open(box ed25519.PublicKey, text []byte) (List, error) {
	whole := string(text)
	at := strings.LastIndex(whole, "\n"+signature) + 1
	if len(text) > MaxSize || at == 0 || !strings.HasPrefix(whole, head) || !strings.HasSuffix(whole, "\n") {
		return List{}, errForm
	}
	sum, err := hex.DecodeString(strings.TrimSuffix(whole[at+len(signature):], "\n"))
	if err != nil || len(sum) != ed25519.SignatureSize {
		return List{}, errForm
	}
	if len(box) != ed25519.PublicKeySize || !ed25519.Verify(box, text[:at], sum) {
		return List{}, errSignature
	}
	lines := strings.Split(strings.TrimSuffix(whole[len(head):at], "\n"), "\n")
	number, ok := strings.CutPrefix(lines[0], serial)
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil || len(lines) > 1+Most {
		return List{}, errForm
	}
	for _, line := range lines[1:] {
		if l, err := adapter.ParseBridgeLine(line); err != nil || l.String() != line {
			return List{}, errForm
		}
	}
	return List{n, lines[1:]}, nil
}

// patience is how long a client may take to get the list.
const patience = 30 * time.Second

// Serve gives the text of the list to a client. The caller closes c.
func Serve(c net.Conn, text []byte) {
	if c.SetDeadline(time.Now().Add(patience)) == nil {
		c.Write(text)
	}
}

// Read reads the text of a list, not yet checked, from a connection to the destination.
// The end of ctx ends it. The caller closes c.
func Read(ctx context.Context, c net.Conn) ([]byte, error) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	text, err := io.ReadAll(io.LimitReader(c, MaxSize+1))
	if err == nil && len(text) > MaxSize {
		err = errForm
	}
	return text, err
}
