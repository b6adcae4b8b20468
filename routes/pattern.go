package routes

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	mathbits "math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Target is a destination as the client has given it: a name or an address, and a
// port.
type Target struct {
	// Name is canonical: lower-case ASCII without a final dot. It is "" if Addr is
	// set.
	Name string
	// Addr is not IPv4-mapped and has no zone. It is not valid if Name is set.
	Addr netip.Addr
	Port uint16
}

// kind is the form of a pattern's host.
type kind uint8

const (
	kindNone  kind = iota // the zero Pattern, which matches nothing
	kindExact             // name
	kindBelow             // *.name
	kindBoth              // .name, and with an empty name everything
	kindNet4              // address or network
	kindNet6
)

// A Pattern is one parsed pattern. Two patterns are equal (==) if their String is
// the same. The zero Pattern matches nothing.
type Pattern struct {
	name string       // canonical; of the name kinds
	net  netip.Prefix // masked; of the net kinds
	kind kind
	from uint16 // 0 to maxPort: all ports, also "none given"
	to   uint16
}

const (
	maxPort = 65535
	maxName = 253 // octets of a host name without its final dot (RFC 1035 section 2.3.4)
)

// ParsePattern reads one pattern. canon turns a host name into the form of
// Target.Name, and returns an error if it is not a name. Nil: ASCII names are
// accepted, in lower case and without a final dot. Errors say what to write instead.
func ParsePattern(s string, canon func(host string) (string, error)) (Pattern, error) {
	p, err := parsePattern(s, canon)
	if err != nil {
		return Pattern{}, fmt.Errorf("pattern %q: %w", s, err)
	}
	return p, nil
}

func parsePattern(s string, canon func(string) (string, error)) (Pattern, error) {
	switch {
	case s == "":
		return Pattern{}, errors.New("is empty: write a name, an address or \"*\"")
	case strings.Contains(s, "://"):
		return Pattern{}, errors.New("is a URL: write its host alone, as in \"example.com\" or \"example.com:443\"")
	case strings.ContainsAny(s, " \t\r\n"):
		return Pattern{}, errors.New("has a space in it: write each pattern on its own")
	case strings.ContainsAny(s, ",;"):
		return Pattern{}, errors.New("has a comma or a semicolon in it: write each pattern on its own, as in [\"example.com\", \"example.org:443\"]")
	case strings.ContainsAny(s, "^$|()\\"):
		return Pattern{}, errors.New("has signs in it that no name has: a regular expression, or a rule of another program, is written as \".example.com\" here")
	case foreignRule(s):
		return Pattern{}, errors.New("is a rule of another program: write the names and networks themselves, as in \".example.com\", or their list with to_file")
	case strings.Contains(s, "@"):
		return Pattern{}, errors.New("has an \"@\" in it: write the host without a user")
	}
	host, ports, hasPorts, bracketed, err := splitPorts(s)
	if err != nil {
		return Pattern{}, err
	}
	p := Pattern{to: maxPort}
	if hasPorts {
		if p.from, p.to, err = parsePorts(ports); err != nil {
			return Pattern{}, err
		}
	}
	if host == "" {
		return Pattern{}, fmt.Errorf("has no host: write \"*:%s\" for a port of every host", ports)
	}
	if bracketed || strings.ContainsAny(host, ":/") {
		return p.withNet(host)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		p.setNet(netip.PrefixFrom(a, a.BitLen()))
		return p, nil
	}
	return p.withName(host, canon)
}

// foreignRule tells whether a pattern begins with a word of other programs that route.
func foreignRule(s string) bool {
	word, rest, ok := strings.Cut(strings.ToLower(s), ":")
	return ok && strings.Trim(rest, "0123456789-") != "" && slices.Contains([]string{"geosite", "geoip", "domain", "full", "keyword", "regexp", "ext", "rule-set"}, word)
}

// MeantNetwork tells how a network is written here that is written with a mask, with stars or
// with a part of its address, as in "192.0.2.*"; "": there is none to be seen in it.
func MeantNetwork(s string) string {
	addr, bits, hasBits := strings.Cut(s, "/")
	if a, err := netip.ParseAddr(addr); err == nil && hasBits {
		if mask, err := netip.ParseAddr(bits); err == nil && mask.Is4() && a.Is4() {
			n := binary.BigEndian.Uint32(mask.AsSlice())
			if ones := mathbits.OnesCount32(n); n == ^uint32(0)<<(32-ones) {
				if p, err := a.Prefix(ones); err == nil {
					return strconv.Quote(p.String())
				}
			}
		}
		return fmt.Sprintf("as in %q: the number behind the slash is from 0 to %d", netip.PrefixFrom(a, a.BitLen()*3/4).Masked(), a.BitLen())
	}
	if first, last, ok := strings.Cut(s, "-"); ok {
		a, err1 := netip.ParseAddr(first)
		if _, err2 := netip.ParseAddr(last); err1 == nil && err2 == nil {
			return fmt.Sprintf("a range as networks, as in %q", netip.PrefixFrom(a, a.BitLen()*3/4).Masked())
		}
	}
	parts := strings.Split(strings.TrimSuffix(s, "."), ".")
	for len(parts) > 1 && parts[len(parts)-1] == "*" {
		parts = parts[:len(parts)-1]
	}
	known := len(parts)
	if known == 4 || known == 1 && !strings.Contains(s, "*") {
		return ""
	}
	for len(parts) < 4 {
		parts = append(parts, "0")
	}
	a, err := netip.ParseAddr(strings.Join(parts, "."))
	if err != nil {
		return ""
	}
	return strconv.Quote(netip.PrefixFrom(a, 8*known).String())
}

// splitPorts cuts s into host and ports. The host has its brackets removed.
func splitPorts(s string) (host, ports string, hasPorts, bracketed bool, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		inner, tail, ok := strings.Cut(rest, "]")
		if !ok {
			return "", "", false, false, errors.New("has a \"[\" without its \"]\"")
		}
		if !strings.Contains(inner, ":") {
			return "", "", false, false, fmt.Errorf("has brackets, which are for IPv6 addresses: write \"%s%s\"", inner, tail)
		}
		bits, ports, hasPorts := strings.Cut(tail, ":")
		if bits != "" && bits[0] != '/' {
			return "", "", false, false, fmt.Errorf("has %q after its \"]\": only \"/BITS\" and \":PORT\" may follow", bits)
		}
		return inner + bits, ports, hasPorts, true, nil
	}
	switch strings.Count(s, ":") {
	case 0:
		return s, "", false, false, nil
	case 1:
		host, ports, _ = strings.Cut(s, ":")
		return host, ports, true, false, nil
	}
	// Two colons and more: an IPv6 address or network, with nothing behind it.
	addr, bits, hasBits := strings.Cut(s, "/")
	if a, e := netip.ParseAddr(addr); e != nil || !a.Is6() {
		return "", "", false, false, errors.New("has too many colons: write HOST:PORT or HOST:FROM-TO, and an IPv6 address in brackets before a port")
	}
	if n, p, ok := strings.Cut(bits, ":"); hasBits && ok {
		return "", "", false, false, fmt.Errorf("needs brackets before its port: write \"[%s]/%s:%s\"", addr, n, p)
	}
	return s, "", false, false, nil
}

func parsePorts(s string) (from, to uint16, err error) {
	first, last, isRange := strings.Cut(s, "-")
	if from, err = parsePort(first); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return from, from, nil
	}
	if to, err = parsePort(last); err != nil {
		return 0, 0, err
	}
	if from > to {
		return 0, 0, fmt.Errorf("has its ports the wrong way round: write %d-%d", to, from)
	}
	if from == 1 && to == maxPort {
		from = 0 // all ports are all ports, however written
	}
	return from, to, nil
}

func parsePort(s string) (uint16, error) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("has %q for a port: write a number from 1 to 65535, or FROM-TO", s)
		}
	}
	if s == "" {
		return 0, errors.New("has no port after its \":\": write a number from 1 to 65535, or no colon for every port")
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("has port %s: ports go from 1 to 65535; write none for every port", s)
	}
	return uint16(n), nil
}

// withNet completes p for a literal address or network.
func (p Pattern) withNet(host string) (Pattern, error) {
	addr, bits, hasBits := strings.Cut(host, "/")
	a, err := netip.ParseAddr(addr)
	switch {
	case err != nil && hasBits && !strings.Contains(addr, ":") && !endsInNumber(addr):
		return Pattern{}, fmt.Errorf("has a \"/\" in it: write the host alone, as in %q", addr)
	case err != nil:
		return Pattern{}, fmt.Errorf("has %q, which is not an IP address", addr)
	case a.Zone() != "":
		return Pattern{}, fmt.Errorf("has a zone: write %q", a.WithZone(""))
	case !hasBits:
		p.setNet(netip.PrefixFrom(a, a.BitLen()))
		return p, nil
	}
	n, err := netip.ParsePrefix(host)
	if err != nil {
		return Pattern{}, fmt.Errorf("has %q for the bits of a network: write %s", bits, cmp.Or(MeantNetwork(host), fmt.Sprintf("a number from 0 to %d", a.BitLen())))
	}
	if m := n.Masked(); m != n {
		return Pattern{}, fmt.Errorf("has address bits outside its network: write %q for the network, %q for the one address", m, a)
	}
	p.setNet(n)
	return p, nil
}

// setNet takes an IPv4-mapped network for what it means, as Target.Addr does.
func (p *Pattern) setNet(n netip.Prefix) {
	if a := n.Addr(); a.Is4In6() && n.Bits() >= 96 {
		n = netip.PrefixFrom(a.Unmap(), n.Bits()-96)
	}
	p.net, p.kind = n, kindNet6
	if n.Addr().Is4() {
		p.kind = kindNet4
	}
}

// withName completes p for a name, with its star or dot.
func (p Pattern) withName(host string, canon func(string) (string, error)) (Pattern, error) {
	if host == "*" {
		p.kind = kindBoth
		return p, nil
	}
	name := host
	switch {
	case strings.HasPrefix(host, "*."):
		p.kind, name = kindBelow, host[2:]
	case strings.HasPrefix(host, "."):
		p.kind, name = kindBoth, host[1:]
	default:
		p.kind = kindExact
	}
	switch rest := strings.TrimLeft(name, "*."); {
	case name == "":
		return Pattern{}, errors.New("has no name: write \"*\" for everything")
	case strings.HasPrefix(name, "*") && p.kind == kindExact && rest != "" && !strings.Contains(rest, "*"):
		return Pattern{}, fmt.Errorf("has a \"*\" that is not a whole label: write \"*.%s\" for what is below it, \".%s\" for that and the name itself", rest, rest)
	case strings.Contains(name, "*") && MeantNetwork(name) != "":
		return Pattern{}, fmt.Errorf("has a \"*\" in an address: write %s", MeantNetwork(name))
	case strings.Contains(name, "*"):
		return Pattern{}, errors.New("has a \"*\" in the wrong place: it stands alone, or once in front as in \"*.example.com\"")
	case p.kind != kindExact && endsInNumber(name):
		return Pattern{}, errors.New("has a \"*\" or \".\" before an address: write a network, as in \"192.0.2.0/24\"")
	}
	if canon == nil {
		canon = canonASCII
	}
	name, err := canon(name)
	if err != nil {
		if meant := MeantNetwork(host); meant != "" {
			return Pattern{}, fmt.Errorf("%w; for a network write %s", err, meant)
		}
		return Pattern{}, err
	}
	if err := checkName(name); err != nil {
		return Pattern{}, err
	}
	p.name = name
	return p, nil
}

// canonASCII is the canon of those who give none.
func canonASCII(host string) (string, error) {
	return strings.ToLower(strings.TrimSuffix(host, ".")), nil
}

// checkName holds what the table and String rely on, whatever canon did.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("has a name of %d bytes: %d are the most", len(name), maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return errors.New("has an empty label: write one dot between labels")
		}
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("has %q in its name", c)
		}
	}
	if endsInNumber(name) {
		return errors.New("looks like an address and is none: write four decimal numbers, as in \"192.0.2.7\", or a network, as in \"192.0.2.0/24\"")
	}
	return nil
}

// endsInNumber tells whether the last label is a number, which makes the whole
// an IPv4 address or nonsense, never a name (WHATWG URL section 3.5, "ends in a
// number checker").
func endsInNumber(name string) bool {
	name = strings.TrimSuffix(name, ".")
	last := name[strings.LastIndexByte(name, '.')+1:]
	if last == "" {
		return false
	}
	digits, hex := last, false
	if len(last) >= 2 && last[0] == '0' && last[1]|0x20 == 'x' {
		digits, hex = last[2:], true
	}
	for _, c := range []byte(digits) {
		isHex := 'a' <= c|0x20 && c|0x20 <= 'f'
		if (c < '0' || c > '9') && (!hex || !isHex) {
			return false
		}
	}
	return true
}

// String prints the pattern so that ParsePattern reads it back.
func (p Pattern) String() string {
	var host string
	switch p.kind {
	case kindNone:
		return ""
	case kindExact:
		host = p.name
	case kindBelow:
		host = "*." + p.name
	case kindBoth:
		host = "." + p.name
		if p.name == "" {
			host = "*"
		}
	case kindNet4, kindNet6:
		host = p.net.Addr().String()
		if p.kind == kindNet6 && !p.allPorts() {
			host = "[" + host + "]"
		}
		if !p.net.IsSingleIP() {
			host += "/" + strconv.Itoa(p.net.Bits())
		}
	}
	switch {
	case p.allPorts():
		return host
	case p.from == p.to:
		return host + ":" + strconv.Itoa(int(p.from))
	}
	return host + ":" + strconv.Itoa(int(p.from)) + "-" + strconv.Itoa(int(p.to))
}

func (p Pattern) allPorts() bool { return p.from == 0 }

// Parts are what a Pattern is made of, for who tests destinations in another language.
type Parts struct {
	Name         string // canonical; "" for "*", and for an address or network
	Exact, Below bool   // whether the name itself is taken, and what is below it
	Net          netip.Prefix
	From, To     uint16 // ports; from 0 on: all
}

// Parts takes the pattern apart.
func (p Pattern) Parts() Parts {
	return Parts{Name: p.name, Exact: p.kind == kindExact || p.kind == kindBoth, Below: p.kind == kindBelow || p.kind == kindBoth,
		Net: p.net, From: p.from, To: p.to}
}

// IsWide tells whether p takes destinations that it does not name: it begins with a star or
// a dot, or is the network of all addresses.
func (p Pattern) IsWide() bool {
	return p.kind == kindBelow || p.kind == kindBoth || p.IsNet() && p.net.Bits() == 0
}

// IsNet tells whether p is an address or a network.
func (p Pattern) IsNet() bool { return isNet(p.kind) }

func isNet(k kind) bool { return k == kindNet4 || k == kindNet6 }
