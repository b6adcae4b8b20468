package adapter

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// BridgeLine is a bridge in the form that Tor users pass around:
//
//	[Bridge] transport address:port [fingerprint] [key=value …]
type BridgeLine struct {
	Transport   string
	Addr        string // host:port; the host an IP address or a name
	Fingerprint string // 40 hex digits, or empty
	Args        Args
}

// BridgeLineError says what is wrong with a bridge line and where.
type BridgeLineError struct {
	Column int // of the offending word, in characters, from 1
	Err    error
}

func (e *BridgeLineError) Error() string {
	return fmt.Sprintf("bridge line: column %d: %v", e.Column, e.Err)
}

// Unwrap returns the reason without its place.
func (e *BridgeLineError) Unwrap() error { return e.Err }

// word is a piece of a line and the byte it starts at.
type word struct {
	text  string
	start int
}

func words(s string) []word {
	var list []word
	start := -1
	for i, r := range s {
		space := unicode.IsSpace(r)
		if !space && start < 0 {
			start = i
		}
		if space && start >= 0 {
			list = append(list, word{s[start:i], start})
			start = -1
		}
	}
	if start >= 0 {
		list = append(list, word{s[start:], start})
	}
	return list
}

// ParseBridgeLine reads one bridge line. The leading word "Bridge" may be
// there or not. An error is a *BridgeLineError.
func ParseBridgeLine(s string) (BridgeLine, error) {
	var line BridgeLine
	fail := func(at int, format string, a ...any) (BridgeLine, error) {
		return BridgeLine{}, &BridgeLineError{utf8.RuneCountInString(s[:at]) + 1, fmt.Errorf(format, a...)}
	}
	rest := words(s)
	if len(rest) > 0 && strings.EqualFold(rest[0].text, "Bridge") {
		rest = rest[1:]
	}

	if len(rest) == 0 {
		return fail(len(s), "transport expected")
	}
	if w := rest[0]; !validTransport(w.text) {
		if checkHostPort(w.text) == nil {
			return fail(w.start, "transport expected before the address: this is the line of a bridge without one (plain Tor), which does not work here")
		}
		if w.text[0] == '`' {
			return fail(w.start, "a backtick is not part of the line: take it out, and the one at the end")
		}
		return fail(w.start, "%q is not a transport name", w.text)
	}
	line.Transport = rest[0].text

	if rest = rest[1:]; len(rest) == 0 {
		return fail(len(s), "address:port expected")
	}
	if err := checkHostPort(rest[0].text); err != nil {
		return fail(rest[0].start, "%w", err)
	}
	line.Addr = rest[0].text

	if rest = rest[1:]; len(rest) > 0 && !strings.Contains(rest[0].text, "=") {
		w := rest[0]
		if !isFingerprint(w.text) {
			return fail(w.start, "what stands here is neither a fingerprint of 40 hex digits nor key=value") // it may be a secret
		}
		line.Fingerprint, rest = w.text, rest[1:]
	}
	for _, w := range rest {
		key, value, ok := strings.Cut(w.text, "=")
		if !ok || key == "" {
			return fail(w.start, "what stands here is not key=value")
		}
		for i, r := range w.text {
			if unicode.IsControl(r) || r == utf8.RuneError {
				return fail(w.start+i, "character %q is not allowed here", r)
			}
		}
		line.Args.Add(key, value)
	}
	return line, nil
}

// String is the line without the leading "Bridge". Parsing it again gives the
// same BridgeLine.
func (l BridgeLine) String() string {
	var b strings.Builder
	if strings.EqualFold(l.Transport, "Bridge") {
		b.WriteString("Bridge ") // or the transport would be taken for that word
	}
	b.WriteString(l.Transport + " " + l.Addr)
	if l.Fingerprint != "" {
		b.WriteString(" " + l.Fingerprint)
	}
	for _, arg := range l.Args {
		b.WriteString(" " + arg.Key + "=" + arg.Value)
	}
	return b.String()
}

func isFingerprint(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 40
}

// checkHostPort says what is wrong with an address:port whose host is an IP
// address or a name and whose port is not 0.
func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not address:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not a port", port)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return fmt.Errorf("address %q has a zone", host)
		}
		return nil
	}
	if strings.HasPrefix(s, "[") || !ValidHostName(host) {
		return fmt.Errorf("%q is neither an IP address nor a host name", host)
	}
	return nil
}

// ValidHostName says whether s can be a host name: ASCII letters, digits, - and _ in
// labels of up to 63 bytes, 253 in all, and not all digits and dots, which
// would be a misspelt IPv4 address.
func ValidHostName(s string) bool {
	if len(s) == 0 || len(s) > 253 || strings.Trim(s, "0123456789.") == "" {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for i := range len(label) {
			if c := label[i]; c != '-' && !isWord(c) {
				return false
			}
		}
	}
	return true
}
