// Package lookup has a service of an exit that looks names up. A gateway uses it for the names
// of bridges, so that its own network does not learn them. It asks for a destination by the
// name in question with Suffix behind it, which no other host can have (RFC 6761 section
// 6.4). The port is the one that it wants to connect to. It gets the addresses to which the
// exit would connect, a line each, and the end.
package lookup

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"ptgate/gateway/destination"
)

// Suffix is what follows the name in question.
const Suffix = ".lookup" + destination.Inside

// Most is how many addresses an answer has at most.
const Most = 16

// maxAnswer is the most bytes of an answer.
const maxAnswer = 1 << 10

// patience is how long a client may take to get an answer.
const patience = 30 * time.Second

// Question returns the name that a client asks about; ok is false if the destination is
// another one.
func Question(destination string) (name string, ok bool) {
	name, ok = strings.CutSuffix(destination, Suffix)
	return name, ok && name != ""
}

// Serve gives addresses to a client. The caller closes c.
func Serve(c net.Conn, addrs []netip.Addr) {
	var b strings.Builder
	for _, a := range addrs[:min(len(addrs), Most)] {
		b.WriteString(a.String() + "\n")
	}
	if c.SetDeadline(time.Now().Add(patience)) == nil {
		io.WriteString(c, b.String())
	}
}

var errAnswer = errors.New("the far end gives no list of addresses")

// Read reads an answer, which has at least one address. The end of ctx ends it. The caller
// closes c.
func Read(ctx context.Context, c net.Conn) (addrs []netip.Addr, err error) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	b, err := io.ReadAll(io.LimitReader(c, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	text, ended := strings.CutSuffix(string(b), "\n")
	if !ended || len(b) > maxAnswer {
		return nil, errAnswer
	}
	for line := range strings.SplitSeq(text, "\n") {
		a, err := netip.ParseAddr(line)
		if err != nil || a.Zone() != "" || len(addrs) == Most {
			return nil, errAnswer
		}
		addrs = append(addrs, a.Unmap())
	}
	return addrs, nil
}
