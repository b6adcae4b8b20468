package builtin

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"ptgate/adapter"
	"ptgate/adapter/socks5"
)

// A ProxyError says that the upstream proxy has refused a connection. Code is an
// HTTP status, a SOCKS4 reply or a SOCKS5 reply, as Scheme says. If an Errno
// matches the code, such as syscall.ECONNREFUSED, the error wraps it.
type ProxyError struct {
	Scheme string
	Code   int
	Errno  syscall.Errno // 0: the code does not say
}

func (e *ProxyError) Error() string {
	if e.Errno != 0 {
		return fmt.Sprintf("%s proxy answered %d: %v", e.Scheme, e.Code, e.Errno)
	}
	return fmt.Sprintf("%s proxy answered %d", e.Scheme, e.Code)
}

// Class is the text: it has no address; see adapter.Class.
func (e *ProxyError) Class() string { return e.Error() }

func (e *ProxyError) Unwrap() error {
	if e.Errno != 0 {
		return e.Errno
	}
	return nil
}

// What failed is said by constants, so that adapter.Class knows it.
var (
	errProxy         = adapter.Constant("proxy")
	errHTTPProxy     = adapter.Constant("http proxy")
	errSOCKS4aProxy  = adapter.Constant("socks4a proxy")
	errUpstreamProxy = adapter.Constant("upstream proxy")
)

// askProxy has the proxy at the other end of rw connect to addr. It reads not one
// byte beyond the proxy's answer.
func askProxy(rw io.ReadWriter, proxy *url.URL, addr string) error {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("port %q is not a number from 1 to 65535", portText)
	}
	if host == "" || len(host) > 255 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("host %q can't be sent to a proxy", host)
	}
	switch proxy.Scheme {
	case "http":
		err = askHTTP(rw, proxy.User, net.JoinHostPort(host, portText))
	case "socks4a":
		err = askSOCKS4a(rw, proxy.User, host, uint16(port))
	case "socks5":
		err = askSOCKS5(rw, proxy.User, host, uint16(port))
	default:
		err = fmt.Errorf("proxy: unknown scheme %q", proxy.Scheme)
	}
	return err
}

// readFull fills b; an end instead is always unexpected.
func readFull(r io.Reader, b []byte) (int, error) {
	n, err := io.ReadFull(r, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// askHTTP does the CONNECT of RFC 9110 section 9.3.6.
func askHTTP(rw io.ReadWriter, user *url.Userinfo, authority string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", authority, authority)
	if user != nil {
		password, _ := user.Password()
		credentials := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", credentials)
	}
	b.WriteString("\r\n")
	if _, err := rw.Write(b.Bytes()); err != nil {
		return err
	}
	head, err := readHead(rw)
	if err != nil {
		return fmt.Errorf("%w: %w", errHTTPProxy, err)
	}
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	version, rest, ok := strings.Cut(string(line), " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if !ok || (version != "HTTP/1.0" && version != "HTTP/1.1") || err != nil || len(code) != 3 {
		return adapter.Constant("http proxy: the answer is not HTTP/1")
	}
	// Any 2xx switches to tunnel mode.
	if status/100 == 2 {
		return nil
	}
	e := &ProxyError{Scheme: "http", Code: status}
	if status == 504 {
		e.Errno = syscall.ETIMEDOUT
	}
	return e
}

// readHead reads byte by byte up to the empty line: what follows belongs to the
// tunnel.
func readHead(r io.Reader) ([]byte, error) {
	head := make([]byte, 0, 512)
	for len(head) < maxHead {
		var one [1]byte
		if _, err := readFull(r, one[:]); err != nil {
			return nil, err
		}
		head = append(head, one[0])
		if bytes.HasSuffix(head, []byte("\r\n\r\n")) {
			return head, nil
		}
	}
	return nil, adapter.Constant("the answer's head is too long")
}

// askSOCKS4a does the CONNECT of SOCKS4, with the name in the request where the
// host is not an IPv4 address (SOCKS4A). IPv6 addresses go as text.
func askSOCKS4a(rw io.ReadWriter, user *url.Userinfo, host string, port uint16) error {
	req := []byte{4, 1}
	req = binary.BigEndian.AppendUint16(req, port)
	ip, err := netip.ParseAddr(host)
	literal := err == nil && ip.Unmap().Is4()
	if literal {
		req = append(req, ip.Unmap().AsSlice()...)
	} else {
		req = append(req, 0, 0, 0, 1)
	}
	req = append(append(req, user.Username()...), 0)
	if !literal {
		req = append(append(req, host...), 0)
	}
	if _, err := rw.Write(req); err != nil {
		return err
	}
	var reply [8]byte
	if _, err := readFull(rw, reply[:]); err != nil {
		return fmt.Errorf("%w: %w", errSOCKS4aProxy, err)
	}
	if reply[0] != 0 {
		return fmt.Errorf("%w: the answer begins with 0x%02x", errSOCKS4aProxy, reply[0])
	}
	if reply[1] != 90 {
		return &ProxyError{Scheme: "socks4a", Code: int(reply[1])}
	}
	return nil
}

// socks5Errno is what the replies of RFC 1928 section 6 stand for.
var socks5Errno = map[byte]syscall.Errno{
	3: syscall.ENETUNREACH,
	4: syscall.EHOSTUNREACH,
	5: syscall.ECONNREFUSED,
	6: syscall.ETIMEDOUT,
}

// askSOCKS5 does the CONNECT of RFC 1928, with user and password (RFC 1929)
// where there are some.
func askSOCKS5(rw io.ReadWriter, user *url.Userinfo, host string, port uint16) error {
	c := socks5.Client{Command: socks5.Connect, Addr: socks5.Addr{Port: port}}
	c.Auth.User = user.Username()
	c.Auth.Password, _ = user.Password()
	if ip, err := netip.ParseAddr(host); err == nil {
		c.Addr.IP = ip
	} else {
		c.Addr.Name = host
	}
	_, err := c.Do(rw)
	if code, ok := errors.AsType[socks5.ReplyError](err); ok {
		return &ProxyError{Scheme: "socks5", Code: int(code), Errno: socks5Errno[byte(code)]}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUpstreamProxy, err)
	}
	return nil
}
