package socks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"

	"ptgate/gateway/answer"
)

// The messages of SOCKS4, from its protocol text, and of SOCKS4a, which adds names:
//
//	request: VN (4), CD, DSTPORT (2 bytes), DSTIP (4 bytes), USERID, NUL
//	         and if DSTIP is 0.0.0.x with x > 0: the name, NUL
//	reply:   VN (0), CD, DSTPORT, DSTIP, both to be ignored
const (
	version4 = 4
	connect4 = 1
	fixed4   = 8 // bytes of a request before USERID, and of a reply
)

// maxText4 bounds the user id and the name; the protocol itself has no bound. A longer
// name is none of DNS, and a longer user id is none of any system.
const maxText4 = 255

// maxRequest4 is the longest request.
const maxRequest4 = fixed4 + 2*(maxText4+1)

// errMalformed4 says that a request of SOCKS4 can't be served, and not why: the reason
// would be bytes of the client.
var errMalformed4 = errors.New("malformed SOCKS4 request")

// A request4 is a request of SOCKS4 or SOCKS4a.
type request4 struct {
	host string // a name, or an address as text
	port int
	size int // its bytes
}

// parse4 parses the request at the beginning of b. If b is too short, the error is
// io.ErrUnexpectedEOF. Another error has an answer.Reason, and needs no more bytes.
func parse4(b []byte) (r request4, err error) {
	switch {
	case len(b) > 0 && b[0] != version4:
		return r, answer.New(answer.BadRequest, errMalformed4)
	case len(b) > 1 && b[1] != connect4:
		return r, answer.Errorf(answer.Command, "SOCKS4 command %d", b[1])
	case len(b) < fixed4:
		return r, io.ErrUnexpectedEOF
	}
	r.port = int(binary.BigEndian.Uint16(b[2:4]))
	ip := [4]byte(b[4:fixed4])
	user, err := text4(b[fixed4:])
	if err != nil {
		return r, err
	}
	r.size = fixed4 + len(user) + 1
	if ip[0] != 0 || ip[1] != 0 || ip[2] != 0 || ip[3] == 0 {
		r.host = netip.AddrFrom4(ip).String()
		return r, nil
	}
	name, err := text4(b[r.size:])
	r.host = string(name)
	r.size += len(name) + 1
	return r, err
}

// text4 returns what stands before the NUL.
func text4(b []byte) ([]byte, error) {
	n := bytes.IndexByte(b, 0)
	switch {
	case n > maxText4, n < 0 && len(b) > maxText4:
		return nil, answer.New(answer.BadRequest, errMalformed4)
	case n < 0:
		return nil, io.ErrUnexpectedEOF
	}
	return b[:n], nil
}

// Serve4 is Serve for a client of SOCKS4 or SOCKS4a. These have no password: if Valid is
// set, no client is served. The user id is read and forgotten.
func (s *Session) Serve4(conn net.Conn) error {
	s.conn = conn
	if s.Valid != nil {
		return s.answer4(answer.New(answer.Credentials, nil))
	}
	buf := make([]byte, maxRequest4)
	var r request4
	for n := 0; ; {
		var err error
		if r, err = parse4(buf[:n]); err == nil {
			s.Early = bytes.Clone(buf[r.size:n])
			break
		} else if err != io.ErrUnexpectedEOF {
			return s.answer4(err)
		}
		m, err := conn.Read(buf[n:])
		if n += m; m == 0 && err != nil {
			return err
		}
		if buf[0] == version4 {
			s.version = version4
		}
	}
	upstream, err := s.Dial(r.host, r.port)
	s.Upstream = upstream
	return s.answer4(err)
}

// answer4 sends the answer for err, and returns err.
func (s *Session) answer4(err error) error {
	s.Answered, s.Reason = true, answer.Of(err)
	_, failed := s.conn.Write(reply4(s.Reason))
	s.Granted = err == nil && failed == nil
	return errors.Join(err, failed)
}

func reply4(r answer.Reason) []byte { return []byte{0, r.SOCKS4(), fixed4 - 1: 0} }
