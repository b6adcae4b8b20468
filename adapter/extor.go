package adapter

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// The Extended ORPort protocol: proposal 196 (commands) and proposal 217
// (authentication), now ext-orport-spec.

const (
	cookieHeader = "! Extended ORPort Auth Cookie !\n" // 217, 4.2.1.2: 32 bytes

	authEnd        = 0 // 217, 4.1
	authSafeCookie = 1

	commandDone      = 0x0000 // 196, 3.1
	commandUserAddr  = 0x0001
	commandTransport = 0x0002
	commandOkay      = 0x1000
	commandDeny      = 0x1001

	// No address or transport name is longer.
	maxKnownBody = 1024
	// All commands of one connection together; a single unknown one may take
	// up half of it.
	maxCommands = 128 << 10
)

type cookie [32]byte

func newCookie() (c cookie) {
	rand.Read(c[:]) // never fails
	return c
}

// write writes the cookie file for the child to read into a directory that
// nobody else can look into.
func (c *cookie) write(dir string) (path string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return "", err
	}
	path = filepath.Join(dir, "extended_orport_auth_cookie")
	// A file of an earlier run goes first, so that neither its mode nor its
	// owner is inherited.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = f.Write(append([]byte(cookieHeader), c[:]...))
	return path, errors.Join(err, f.Close())
}

// remove removes the file that write has made, and its directory; not one that another
// adapter has put in its place since: a parent may start the next program while this
// one still ends.
func (c *cookie) remove(path string) error {
	if b, err := os.ReadFile(path); err != nil || string(b) != cookieHeader+string(c[:]) {
		return nil
	}
	return os.RemoveAll(filepath.Dir(path))
}

// The two strings of SAFE_COOKIE (217, 4.2.1.3).
const (
	serverHash = "ExtORPort authentication server-to-client hash"
	clientHash = "ExtORPort authentication client-to-server hash"
)

func (c *cookie) hash(label string, clientNonce, serverNonce []byte) []byte {
	h := hmac.New(sha256.New, c[:])
	io.WriteString(h, label)
	h.Write(clientNonce)
	h.Write(serverNonce)
	return h.Sum(nil)
}

var (
	errExtORAuth    = Constant("authentication failed")
	errExtORCommand = Constant("malformed command")
)

// authenticate is the server's side of SAFE_COOKIE (217, 4.1 and 4.2.1.3). It
// reads no byte too many. Where it returns errExtORAuth, the peer was told.
func (c *cookie) authenticate(rw io.ReadWriter) error {
	if _, err := rw.Write([]byte{authSafeCookie, authEnd}); err != nil {
		return err
	}
	var in [1 + 32]byte
	if _, err := io.ReadFull(rw, in[:1]); err != nil {
		return err
	}
	if in[0] != authSafeCookie {
		return fmt.Errorf("authentication type %d was not offered", in[0])
	}
	clientNonce := in[1:]
	if _, err := io.ReadFull(rw, clientNonce); err != nil {
		return err
	}
	var serverNonce [32]byte
	rand.Read(serverNonce[:])
	if _, err := rw.Write(append(c.hash(serverHash, clientNonce, serverNonce[:]), serverNonce[:]...)); err != nil {
		return err
	}
	var got [32]byte
	if _, err := io.ReadFull(rw, got[:]); err != nil {
		return err
	}
	if !hmac.Equal(got[:], c.hash(clientHash, clientNonce, serverNonce[:])) { // in constant time
		_, err := rw.Write([]byte{0})
		return errors.Join(errExtORAuth, err)
	}
	_, err := rw.Write([]byte{1})
	return err
}

// readCommands reads up to and with DONE (196, 3.1).
func readCommands(r io.Reader) (ClientInfo, error) {
	var info ClientInfo
	var header [4]byte
	var body [maxKnownBody]byte
	for total := 0; total < maxCommands; {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return info, err
		}
		command, n := binary.BigEndian.Uint16(header[:2]), int(binary.BigEndian.Uint16(header[2:]))
		total += len(header) + n
		switch command {
		case commandUserAddr, commandTransport:
			if n > len(body) {
				return info, fmt.Errorf("%w: %#04x with %d bytes", errExtORCommand, command, n)
			}
			if _, err := io.ReadFull(r, body[:n]); err != nil {
				return info, err
			}
			if err := info.set(command, string(body[:n])); err != nil {
				return info, err
			}
		default: // unknown ones are ignored
			if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
				return info, err
			}
			if command == commandDone {
				return info, nil
			}
		}
	}
	return info, fmt.Errorf("%w: more than %d bytes without an end", errExtORCommand, maxCommands)
}

// set takes the body of a USERADDR or TRANSPORT command (196, 3.1).
func (i *ClientInfo) set(command uint16, body string) error {
	if command == commandTransport {
		if !validTransport(body) {
			return fmt.Errorf("%w: transport name", errExtORCommand)
		}
		i.Transport = body
		return nil
	}
	addr, err := netip.ParseAddrPort(body)
	if err != nil {
		// The port may be missing, in spite of the specification.
		host := body
		if inner, ok := strings.CutPrefix(body, "["); ok {
			if host, ok = strings.CutSuffix(inner, "]"); !ok {
				return fmt.Errorf("%w: address", errExtORCommand)
			}
		}
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return fmt.Errorf("%w: address", errExtORCommand)
		}
		addr = netip.AddrPortFrom(ip, 0)
	}
	// Unmapped, so that a rule for an IPv4 network meets its clients.
	i.Addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	return nil
}

// answer sends OKAY or DENY (196, 3.1).
func answer(w io.Writer, command uint16) error {
	_, err := w.Write([]byte{byte(command >> 8), byte(command), 0, 0})
	return err
}
