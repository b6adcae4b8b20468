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
	"sync"
	"time"

	"ptgate/adapter/socks5"
)

// dialLimit bounds a dial whose context does not: above the 90 s that
// obfs4proxy takes at most to admit a failure.
const dialLimit = 150 * time.Second

var errSOCKS = Constant("malformed socks answer")

// A socksRequest asks a child for a connection to a bridge.
//
// Its messages are sent one at a time, each after the answer to the one before:
// programs drop a connection on which bytes arrive before their turn.
type socksRequest struct {
	five socks5.Client
	four []byte // the one message of SOCKS4; nil: SOCKS5 it is
}

// newSOCKSRequest makes the request that asks for addr with args.
func newSOCKSRequest(protocol, addr string, args Args) (*socksRequest, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, Constant("address is not host:port")
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
			return nil, Constant("socks4 carries IPv4 addresses only")
		}
		// SOCKS4: version, CONNECT, port, address, USERID, NUL.
		r.four = binary.BigEndian.AppendUint16([]byte{4, 1}, uint16(port))
		r.four = append(r.four, ip.AsSlice()...)
		r.four = append(append(r.four, encoded...), 0)
		return r, nil
	}

	r.five = socks5.Client{Command: socks5.Connect, Addr: socks5.Addr{Port: uint16(port)}, Strict: true}
	switch {
	case literal:
		r.five.Addr.IP = ip
	case host == "":
		return nil, Constant("the host name is empty")
	default:
		r.five.Addr.Name = host
	}
	if encoded != "" {
		// pt-spec 3.5: the args fill the user name, then the password. A
		// password must not be empty; a single NUL stands for none. A program that
		// knows no args can't drop them in silence: no other method is offered.
		r.five.Auth = socks5.Auth{User: encoded, Password: "\x00"}
		if len(encoded) > 255 {
			r.five.Auth = socks5.Auth{User: encoded[:255], Password: encoded[255:]}
		}
	}
	_, err = r.five.Append(nil) // whether it can be said at all
	return r, err
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
	if r.four != nil {
		return StageRequest, r.session4(c)
	}
	_, err := r.five.Do(c)
	e, ok := errors.AsType[*socks5.Error](err)
	if !ok {
		return StageRequest, err
	}
	stage := map[socks5.Stage]DialStage{socks5.StageMethod: StageGreeting, socks5.StageAuth: StageAuth, socks5.StageRequest: StageRequest}[e.Stage]
	switch reason := e.Err.(type) {
	case *socks5.MethodError:
		if reason.Chosen == socks5.NoMethod && reason.Offered == socks5.UserPassword {
			return stage, Constant("the program takes no args")
		}
		return stage, fmt.Errorf("%w: %w", errSOCKS, reason)
	case socks5.StatusError:
		return stage, Constant("args refused")
	case socks5.ReplyError:
		return stage, Reply(reason)
	}
	if errors.Is(e.Err, socks5.ErrMalformed) {
		return stage, fmt.Errorf("%w: %w", errSOCKS, e.Err)
	}
	return stage, e.Err
}

// session4 speaks SOCKS4: an answer of version 0, code, port and address.
func (r *socksRequest) session4(c io.ReadWriter) error {
	if _, err := c.Write(r.four); err != nil {
		return err
	}
	var answer [8]byte
	if _, err := io.ReadFull(c, answer[:]); err == io.EOF {
		return io.ErrUnexpectedEOF
	} else if err != nil {
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
