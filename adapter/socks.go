package adapter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// dialLimit bounds a dial whose context does not: above the 90 s that
// obfs4proxy takes at most to admit a failure.
const dialLimit = 150 * time.Second

var errSOCKS = errors.New("malformed socks answer")

// socksRequest has the messages of one SOCKS session, ready to be sent.
//
// They are sent one at a time, each after the answer to the one before:
// programs drop a connection on which bytes arrive before their turn.
type socksRequest struct {
	greeting []byte // SOCKS5 only
	auth     []byte // RFC 1929, where there are args
	request  []byte
}

// newSOCKSRequest makes the messages that ask for addr with args.
func newSOCKSRequest(protocol, addr string, args Args) (*socksRequest, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, errors.New("address is not host:port")
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%q is not a port", portText)
	}
	if err := args.CheckClient(); err != nil {
		return nil, err
	}
	encoded := args.EncodeClient()
	ip, err := netip.ParseAddr(host)
	literal := err == nil
	ip = ip.Unmap()

	r := new(socksRequest)
	if protocol == "socks4" {
		if !literal || !ip.Is4() {
			return nil, errors.New("socks4 carries IPv4 addresses only")
		}
		// SOCKS4: version, CONNECT, port, address, USERID, NUL.
		r.request = binary.BigEndian.AppendUint16([]byte{4, 1}, uint16(port))
		r.request = append(r.request, ip.AsSlice()...)
		r.request = append(append(r.request, encoded...), 0)
		return r, nil
	}

	// RFC 1928 section 3: one method is offered, so that a program that knows
	// no args cannot silently drop them.
	r.greeting = []byte{5, 1, 0}
	if encoded != "" {
		r.greeting[2] = 2
		// pt-spec 3.5: the args fill the user name, then the password. A
		// password must not be empty; a single NUL stands for none.
		user, password := encoded, "\x00"
		if len(encoded) > 255 {
			user, password = encoded[:255], encoded[255:]
		}
		r.auth = append([]byte{1, byte(len(user))}, user...)
		r.auth = append(append(r.auth, byte(len(password))), password...)
	}
	r.request = []byte{5, 1, 0}
	switch {
	case literal && ip.Zone() != "":
		return nil, errors.New("socks5 carries no address zones")
	case literal && ip.Is4():
		r.request = append(append(r.request, 1), ip.AsSlice()...)
	case literal:
		r.request = append(append(r.request, 4), ip.AsSlice()...)
	case host == "" || len(host) > 255 || strings.ContainsRune(host, 0):
		return nil, errors.New("host name is empty or too long for socks5")
	default:
		r.request = append(append(r.request, 3, byte(len(host))), host...)
	}
	r.request = binary.BigEndian.AppendUint16(r.request, uint16(port))
	return r, nil
}

// dial connects to the listener and goes through the session.
func (r *socksRequest) dial(ctx context.Context, listener string) (*net.TCPConn, DialStage, error) {
	dialer := net.Dialer{KeepAlive: -1} // both ends are on this machine
	c, err := dialer.DialContext(ctx, "tcp", listener)
	if err != nil {
		return nil, StageConnect, err
	}
	tcp := c.(*net.TCPConn)

	err = tcp.SetDeadline(time.Now().Add(dialLimit))
	stage := StageGreeting
	// A cancelled context must interrupt a read under way.
	var interrupt sync.WaitGroup
	interrupt.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer interrupt.Done()
		_ = tcp.SetDeadline(time.Unix(1, 0)) // it fails only on a closed connection
	})
	if err == nil {
		stage, err = r.session(tcp)
	}
	if !stop() {
		interrupt.Wait()
		err = ctx.Err()
	}
	if err == nil {
		err = tcp.SetDeadline(time.Time{})
	}
	if err != nil {
		tcp.Close()
		return nil, stage, err
	}
	return tcp, "", nil
}

// session speaks SOCKS. It reads not one byte beyond the last answer.
func (r *socksRequest) session(c io.ReadWriter) (DialStage, error) {
	if r.greeting == nil {
		return StageRequest, r.session4(c)
	}
	var answer [4]byte

	// RFC 1928 section 3.
	if err := exchange(c, r.greeting, answer[:2]); err != nil {
		return StageGreeting, err
	}
	switch {
	case answer[0] != 5:
		return StageGreeting, fmt.Errorf("%w: version %d", errSOCKS, answer[0])
	case answer[1] == 0xff && r.auth != nil:
		return StageGreeting, errors.New("the program takes no args")
	case answer[1] != r.greeting[2]:
		return StageGreeting, fmt.Errorf("%w: method %d was not offered", errSOCKS, answer[1])
	}

	// RFC 1929 section 2.
	if r.auth != nil {
		if err := exchange(c, r.auth, answer[:2]); err != nil {
			return StageAuth, err
		}
		if answer[0] != 1 {
			return StageAuth, fmt.Errorf("%w: subnegotiation version %d", errSOCKS, answer[0])
		}
		if answer[1] != 0 {
			return StageAuth, errors.New("args refused")
		}
	}

	// RFC 1928 sections 4 and 6.
	if err := exchange(c, r.request, answer[:2]); err != nil {
		return StageRequest, err
	}
	if answer[0] != 5 {
		return StageRequest, fmt.Errorf("%w: version %d", errSOCKS, answer[0])
	}
	if answer[1] != 0 {
		return StageRequest, Reply(answer[1]) // some send no more than this
	}
	return StageRequest, skipBoundAddress(c)
}

// skipBoundAddress reads the rest of a successful reply: RSV, ATYP, BND.ADDR
// and BND.PORT.
func skipBoundAddress(r io.Reader) error {
	var b [256 + 2]byte
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return noEOF(err)
	}
	var n int
	switch b[1] {
	case 1:
		n = 4
	case 4:
		n = 16
	case 3:
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return noEOF(err)
		}
		n = int(b[0])
	default:
		return fmt.Errorf("%w: address type %d", errSOCKS, b[1])
	}
	_, err := io.ReadFull(r, b[:n+2])
	return noEOF(err)
}

// session4 speaks SOCKS4: an answer of version 0, code, port and address.
func (r *socksRequest) session4(c io.ReadWriter) error {
	var answer [8]byte
	if err := exchange(c, r.request, answer[:]); err != nil {
		return err
	}
	if answer[0] != 0 {
		return fmt.Errorf("%w: version %d", errSOCKS, answer[0])
	}
	if answer[1] != 0x5a {
		return Reply(answer[1])
	}
	return nil
}

// exchange sends a message and fills answer.
func exchange(c io.ReadWriter, message, answer []byte) error {
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(c, answer)
	return noEOF(err)
}

// noEOF turns an EOF between two messages into the unexpected one it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
