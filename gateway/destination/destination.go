// Package destination reads a destination that a client or an operator wrote, and makes a
// routes.Target of it.
//
// Each host has one spelling in a Target, so that nobody gets around a rule by another
// spelling. A Target has nothing in it that a resolver could read in another way.
//
// Names are read as browsers read them: by the WHATWG URL Standard, section 3.3, and by
// UTS #46 where there are other letters than those of ASCII. Of ASCII only letters,
// digits, hyphens and underscores are allowed.
//
// The package looks up no name. Its errors never contain the host: they may be logged
// where destinations must not be.
package destination

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"ptgate/routes"
)

// ErrInvalid is wrapped by every error of this package.
var ErrInvalid = errors.New("invalid destination")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// The longest name and label that DNS can carry (RFC 1035 section 2.3.4), in bytes. The
// name is counted as text, without its final dot.
const (
	maxName  = 253
	maxLabel = 63
	// maxInput is the longest text that is read. It is longer than maxName: in UTF-8 a
	// label may take more bytes than in its encoded form.
	maxInput = 1024
)

// Parse reads HOST:PORT. An IPv6 address stands in brackets, the port is a
// decimal number from 1 to 65535.
func Parse(hostport string) (routes.Target, error) {
	i := strings.LastIndexByte(hostport, ':')
	if i < 0 {
		return routes.Target{}, invalid("no port: write HOST:PORT")
	}
	if strings.Contains(hostport, "://") {
		return routes.Target{}, invalid("it is a URL: write HOST:PORT")
	}
	host, port := hostport[:i], hostport[i+1:]
	if strings.HasPrefix(host, "[") != strings.HasSuffix(host, "]") ||
		strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
		return routes.Target{}, invalid("an IPv6 address stands in brackets: write [ADDRESS]:PORT")
	}
	for _, c := range []byte(port) {
		if c < '0' || c > '9' {
			return routes.Target{}, invalid("the port is not a number")
		}
	}
	if len(port) > 5 {
		return routes.Target{}, invalid("the port is not from 1 to 65535")
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return routes.Target{}, invalid("no port: write HOST:PORT")
	}
	return FromHostPort(host, n)
}

// FromHostPort is Parse for a host and a port that come separately, as in SOCKS. An
// IPv6 address may stand in brackets.
func FromHostPort(host string, port int) (routes.Target, error) {
	if port < 1 || port > 65535 {
		return routes.Target{}, invalid("the port is not from 1 to 65535")
	}
	addr, isAddr, err := address(host)
	if err != nil {
		return routes.Target{}, err
	}
	if isAddr {
		return routes.Target{Addr: addr, Port: uint16(port)}, nil
	}
	name, err := Canonical(host)
	if err != nil {
		return routes.Target{}, err
	}
	return routes.Target{Name: name, Port: uint16(port)}, nil
}

// address reads a host that is an IP address. ok is false for all others.
func address(host string) (addr netip.Addr, ok bool, err error) {
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		inner, bracketed = strings.CutSuffix(inner, "]")
		if !bracketed || !strings.Contains(inner, ":") {
			return netip.Addr{}, false, invalid("brackets are for IPv6 addresses")
		}
		host = inner
	}
	if !strings.Contains(host, ":") && !endsInDigit(host) {
		return netip.Addr{}, false, nil // most hosts: no error value has to be made
	}
	addr, perr := netip.ParseAddr(host)
	switch {
	case perr == nil && addr.Zone() != "":
		return netip.Addr{}, false, invalid("an address with a zone leads nowhere from here")
	case perr == nil:
		return addr.Unmap(), true, nil
	case strings.Contains(host, ":"):
		return netip.Addr{}, false, invalid("not an IPv6 address")
	}
	return netip.Addr{}, false, nil // a name, or Canonical tells what is wrong with it
}

func endsInDigit(host string) bool {
	return host != "" && '0' <= host[len(host)-1] && host[len(host)-1] <= '9'
}

// Canonical returns the one spelling of a host name: lower-case ASCII, in the encoded
// form of IDNA, without a final dot. It refuses addresses, and also names that a resolver
// might take for an address, such as "127.1" and "0x7f000001".
func Canonical(name string) (string, error) {
	if name == "" {
		return "", invalid("the host is empty")
	}
	if len(name) > maxInput {
		return "", invalid("the host name is longer than %d bytes", maxName)
	}
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			return fromUnicode(name)
		}
	}
	return fromASCII(name)
}

// profile is what the WHATWG URL Standard calls "domain to ASCII" with beStrict false.
// Lengths and characters are checked afterwards.
var profile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.CheckHyphens(false),
	idna.CheckJoiners(true),
	idna.StrictDomainName(false),
	idna.Transitional(false),
	idna.VerifyDNSLength(false),
)

func fromUnicode(name string) (string, error) {
	if !utf8.ValidString(name) {
		return "", invalid("the host name is not UTF-8")
	}
	ascii, err := profile.ToASCII(name)
	if err != nil {
		return "", invalid("the host name is not a valid internationalised name")
	}
	for i := range len(ascii) {
		if ascii[i] >= utf8.RuneSelf {
			return "", invalid("the host name is not a valid internationalised name")
		}
	}
	// The mapping turns other characters into ASCII ones, such as a full-width dot. So
	// the checks come after it.
	canonical, err := fromASCII(ascii)
	if err != nil {
		for _, r := range name {
			if plain := r - 0xfee0; '\uff01' <= r && r <= '\uff5e' && strings.ContainsRune("!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~", plain) {
				return "", invalid("the host name has %s in it, as %U, a full-width character: write a plain one, or none", sign(byte(plain)), r)
			}
		}
	}
	return canonical, err
}

// fromASCII checks a name of ASCII. It allocates no memory where the name is canonical
// already.
func fromASCII(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxName {
		return "", invalid("the host name is longer than %d bytes", maxName)
	}
	upper, label := false, 0
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case 'A' <= c && c <= 'Z':
			upper = true
		case c == '.':
			if err := checkLabel(i - label); err != nil {
				return "", err
			}
			label = i + 1
		default:
			return "", invalid("the host name has %s in it: letters, digits, \"-\", \"_\" and \".\" only", sign(c))
		}
	}
	if err := checkLabel(len(name) - label); err != nil {
		return "", err
	}
	if isNumber(name[label:]) {
		return "", invalid("the host looks like an IPv4 address, but is not four decimal numbers")
	}
	if upper {
		name = strings.ToLower(name)
	}
	return name, nil
}

// sign names a byte that no name has. It tells hardly anything of the name.
func sign(c byte) string {
	switch {
	case c == ' ':
		return "a space"
	case c < ' ' || c >= 0x7f:
		return fmt.Sprintf("the byte 0x%02x", c)
	}
	return strconv.Quote(string(rune(c)))
}

func checkLabel(n int) error {
	switch {
	case n == 0:
		return invalid("the host name has two dots side by side, or one in front: take one out")
	case n > maxLabel:
		return invalid("the host name has a label longer than %d bytes, which no name on the Internet has: check it", maxLabel)
	}
	return nil
}

// isNumber tells whether a last label is a number. Then the host is an IPv4 address or
// not valid (WHATWG URL Standard, section 3.5, "ends in a number checker").
func isNumber(label string) bool {
	hex := len(label) >= 2 && label[0] == '0' && label[1]|0x20 == 'x'
	if hex {
		label = label[2:]
	}
	for i := range len(label) {
		c := label[i] | 0x20
		if (label[i] < '0' || label[i] > '9') && (!hex || c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Inside is the end of the names of services that an exit has for gateways, such as package
// measure. No host can have such a name (RFC 6761 section 6.4). A gateway asks for them by
// itself, and never for a program: what they answer may be the secrets of a bridge.
const Inside = ".ptgate.invalid"

// Format prints a target as Parse reads it.
func Format(t routes.Target) string {
	if t.Addr.IsValid() {
		return netip.AddrPortFrom(t.Addr, t.Port).String()
	}
	return t.Name + ":" + strconv.Itoa(int(t.Port))
}
