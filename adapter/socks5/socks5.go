// Package socks5 writes and reads the messages of SOCKS5 (RFC 1928) with user and
// password (RFC 1929). It also has the client's side of the handshake.
//
// All parts of the program that speak SOCKS5 use it: the parent of a transport program
// (pt-spec puts the transport's args in user and password), a transport that uses an
// upstream proxy, and the request on a stream to an exit. It has the answers of a
// server, too, but not the server's side of the handshake.
//
// Functions named Append… build a message in memory. Functions named Parse… parse one in
// memory. Functions named Read… read exactly the bytes of one message from a connection,
// and none of those that follow. No function sets a deadline: the caller does. No error
// contains an address, a user or a password.
package socks5

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Version is the first byte of the greeting and of most answers.
const Version = 5

// authVersion is the first byte of both messages of RFC 1929.
const authVersion = 1

// A Method says how a client proves who it is (RFC 1928 section 3).
type Method byte

// The methods.
const (
	NoAuth       Method = 0x00
	UserPassword Method = 0x02
	NoMethod     Method = 0xff // the server accepts none of the offered methods
)

// A Command is the kind of a request (RFC 1928 section 4).
type Command byte

// The commands.
const (
	Connect      Command = 1
	Bind         Command = 2
	UDPAssociate Command = 3
)

// ErrMalformed says that the other side does not speak SOCKS5.
var ErrMalformed = errors.New("malformed socks5 message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// An Addr is an address of RFC 1928 section 5 with its port. If Name is empty, the
// address is IP. If both are empty, it is 0.0.0.0, which stands for no address.
type Addr struct {
	Name string
	IP   netip.Addr
	Port uint16
}

// Address types of RFC 1928 section 5.
const (
	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4
)

// maxAddr is the longest address: type, length, name, port.
const maxAddr = 1 + 1 + 255 + 2

// Append appends ATYP, ADDR and PORT.
func (a Addr) Append(b []byte) ([]byte, error) {
	ip := a.IP.Unmap()
	switch {
	case a.Name != "":
		if len(a.Name) > 255 || strings.IndexByte(a.Name, 0) >= 0 {
			return nil, errors.New("the name can't be sent over socks5: more than 255 bytes, or a NUL")
		}
		b = append(append(b, typeName, byte(len(a.Name))), a.Name...)
	case !ip.IsValid():
		b = append(b, typeIPv4, 0, 0, 0, 0)
	case ip.Zone() != "":
		return nil, errors.New("socks5 carries no address zones")
	case ip.Is4():
		four := ip.As4()
		b = append(append(b, typeIPv4), four[:]...)
	default:
		sixteen := ip.As16()
		b = append(append(b, typeIPv6), sixteen[:]...)
	}
	return binary.BigEndian.AppendUint16(b, a.Port), nil
}

// ParseAddr parses the address at the beginning of b. rest has the bytes after it. If b
// is too short, the error is io.ErrUnexpectedEOF.
func ParseAddr(b []byte) (a Addr, rest []byte, err error) {
	n, err := addrLen(b)
	if err != nil || len(b) < n {
		return Addr{}, nil, cmpErr(err, io.ErrUnexpectedEOF)
	}
	host, port := b[1:n-2], b[n-2:n]
	if b[0] == typeName {
		a.Name = string(host[1:])
	} else {
		a.IP, _ = netip.AddrFromSlice(host)
	}
	a.Port = binary.BigEndian.Uint16(port)
	return a, b[n:], nil
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// addrLen tells from the first two bytes how long an address is; with less it tells the
// least that it can be.
func addrLen(b []byte) (int, error) {
	if len(b) == 0 {
		return 2, nil
	}
	switch b[0] {
	case typeIPv4:
		return 1 + 4 + 2, nil
	case typeIPv6:
		return 1 + 16 + 2, nil
	case typeName:
		if len(b) == 1 {
			return 2, nil
		}
		return 1 + 1 + int(b[1]) + 2, nil
	}
	return 0, malformed("address type %d", b[0])
}

// AppendGreeting appends a client's first message, which offers one method (RFC 1928
// section 3).
func AppendGreeting(b []byte, m Method) []byte { return append(b, Version, 1, byte(m)) }

// Auth is a user and a password. The zero Auth has none.
type Auth struct{ User, Password string }

// Method returns the method that a client with a offers.
func (a Auth) Method() Method {
	if a.User == "" {
		return NoAuth
	}
	return UserPassword
}

// AppendAuth appends user and password (RFC 1929 section 2).
func AppendAuth(b []byte, a Auth) ([]byte, error) {
	if len(a.User) > 255 || len(a.Password) > 255 {
		return nil, errors.New("user or password longer than 255 bytes")
	}
	b = append(append(b, authVersion, byte(len(a.User))), a.User...)
	return append(append(b, byte(len(a.Password))), a.Password...), nil
}

// AppendRequest appends a request (RFC 1928 section 4).
func AppendRequest(b []byte, c Command, a Addr) ([]byte, error) {
	return a.Append(append(b, Version, byte(c), 0))
}

// AppendMethod appends a server's choice of method (RFC 1928 section 3).
func AppendMethod(b []byte, m Method) []byte { return append(b, Version, byte(m)) }

// AppendStatus appends a server's answer to user and password; 0 is success (RFC 1929
// section 2).
func AppendStatus(b []byte, status byte) []byte { return append(b, authVersion, status) }

// AppendReply appends a server's answer to a request; 0 is success (RFC 1928 section 6).
func AppendReply(b []byte, code byte, bound Addr) ([]byte, error) {
	return bound.Append(append(b, Version, code, 0))
}

// AppendFailure appends an answer to a request that tells no address.
func AppendFailure(b []byte, code byte) []byte {
	return append(b, Version, code, 0, typeIPv4, 0, 0, 0, 0, 0, 0)
}

// A MethodError says that a server chose another method than the one offered.
type MethodError struct{ Offered, Chosen Method }

func (e *MethodError) Error() string {
	return fmt.Sprintf("method %#02x was chosen, %#02x was offered", byte(e.Chosen), byte(e.Offered))
}

// A StatusError is a server's refusal of user and password.
type StatusError byte

func (e StatusError) Error() string {
	return fmt.Sprintf("user or password refused, status %#02x", byte(e))
}

// A ReplyError is a server's refusal of a request: the code of RFC 1928 section 6.
type ReplyError byte

func (e ReplyError) Error() string { return fmt.Sprintf("socks5 reply %#02x", byte(e)) }

// ReadMethod reads a server's choice of method. If it is not the offered one, the error
// is a *MethodError.
func ReadMethod(r io.Reader, offered Method) error {
	var b [2]byte
	if err := readFull(r, b[:]); err != nil {
		return err
	}
	if b[0] != Version {
		return malformed("version %d", b[0])
	}
	if m := Method(b[1]); m != offered {
		return &MethodError{offered, m}
	}
	return nil
}

// ReadStatus reads a server's answer to user and password. A refusal is a StatusError.
// Some servers send another version than that of RFC 1929; with strict, that is an
// error.
func ReadStatus(r io.Reader, strict bool) error {
	var b [2]byte
	if err := readFull(r, b[:]); err != nil {
		return err
	}
	if strict && b[0] != authVersion {
		return malformed("subnegotiation version %d", b[0])
	}
	if b[1] != 0 {
		return StatusError(b[1])
	}
	return nil
}

// ReadReply reads a server's answer to a request. A refusal is a ReplyError, also if it
// is not complete: some servers send only its first two bytes. Of a complete one, bound is
// the address in it.
func ReadReply(r io.Reader) (bound Addr, err error) {
	var b [3 + maxAddr]byte
	// No success is shorter than its first five bytes with an address of one byte.
	n, err := io.ReadAtLeast(r, b[:3+2], 2)
	switch {
	case err != nil:
		return Addr{}, unexpected(err)
	case b[0] != Version:
		return Addr{}, malformed("version %d", b[0])
	case b[1] != 0:
		return refusedWith(r, b[:n]), ReplyError(b[1])
	}
	for _, least := range []int{3 + 1, 3 + 2} {
		if n < least {
			if err := readFull(r, b[n:least]); err != nil {
				return Addr{}, err
			}
			n = least
		}
		if _, err := addrLen(b[3:n]); err != nil {
			return Addr{}, err
		}
	}
	size, _ := addrLen(b[3:n])
	if err := readFull(r, b[n:3+size]); err != nil {
		return Addr{}, err
	}
	bound, _, err = ParseAddr(b[3 : 3+size])
	return bound, err
}

// refusedWith reads the rest of a refusal, and gives the address in it. A refusal that ends
// before its address has begun is taken as it is.
func refusedWith(r io.Reader, head []byte) (bound Addr) {
	if len(head) < 3+2 {
		return Addr{}
	}
	size, err := addrLen(head[3:])
	if err != nil {
		return Addr{}
	}
	b := make([]byte, size)
	if err := readFull(r, b[copy(b, head[3:]):]); err != nil {
		return Addr{}
	}
	bound, _, _ = ParseAddr(b)
	return bound
}

// readFull fills b; an end instead is always unexpected.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	return unexpected(err)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
