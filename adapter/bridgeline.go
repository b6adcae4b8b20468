package adapter

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
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

	if at := webPage.FindStringIndex(s); at != nil {
		return fail(at[0], "%q is of the source of a web page: copy the line as the page shows it", s[at[0]:at[1]])
	}
	if len(rest) == 0 {
		return fail(len(s), "transport expected: a line is as in \"obfs4 192.0.2.10:443 cert=… iat-mode=0\"")
	}
	if at, err := checkStart(s, rest); err != nil {
		return fail(at, "%w", err)
	}
	line.Transport = rest[0].text

	if rest = rest[1:]; len(rest) == 0 {
		return fail(len(s), "address:port expected behind the transport: copy the whole line")
	}
	if err := checkHostPort(rest[0].text); err != nil {
		if _, port := splitName(rest[0].text); port == "" && len(rest) > 1 && isDigits(rest[1].text) {
			return fail(rest[1].start, "the port stands apart from its address: write %q", strings.TrimSuffix(rest[0].text, ":")+":"+rest[1].text)
		}
		return fail(rest[0].start, "%w", err)
	}
	line.Addr = rest[0].text

	if rest = rest[1:]; len(rest) > 0 && !strings.Contains(rest[0].text, "=") && isFingerprint(rest[0].text) {
		line.Fingerprint, rest = rest[0].text, rest[1:]
	}
	for i, w := range rest {
		key, value, ok := strings.Cut(w.text, "=")
		if !ok || key == "" {
			return fail(w.start, "%s", notAnArg(rest, i)) // without the word: it may be a secret
		}
		for i, r := range w.text {
			if unicode.IsControl(r) || r == utf8.RuneError {
				return fail(w.start+i, "character %q is not allowed here", r)
			}
			if i < len(key) && r >= utf8.RuneSelf {
				return fail(w.start+i, "%s", foreignLetter(r))
			}
		}
		line.Args.Add(key, value)
	}
	return line, nil
}

// webPage is a character reference or a tag of HTML. None of them can be a part of an arg's
// value that somebody needs.
var webPage = regexp.MustCompile(`&(#[0-9]{1,6}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});|</?[a-zA-Z]{1,10} ?/?>`)

// checkStart says what is wrong with the first word of a line, which should be a transport, and
// at which byte. It quotes no word that may have a secret in it, such as a link.
func checkStart(s string, rest []word) (at int, err error) {
	w := rest[0]
	if validTransport(w.text) {
		if n := later(rest); n > 0 && checkHostPort(second(rest)) != nil {
			return w.start, startsLater(s, rest[n])
		}
		return 0, nil
	}
	first, size := utf8.DecodeRuneInString(w.text)
	odd := strings.IndexFunc(w.text, func(r rune) bool { return r >= utf8.RuneSelf && r != utf8.RuneError })
	switch n := later(rest); {
	case checkHostPort(w.text) == nil:
		return w.start, errors.New("transport expected before the address: this is the line of a bridge without one (plain Tor), which does not work here: " +
			"ask for an obfs4 or a webtunnel bridge")
	case strings.Contains(w.text, "://"):
		return w.start, errors.New("a link stands here, and a bridge line begins with its transport, as in \"obfs4 192.0.2.10:443 cert=… iat-mode=0\"")
	case first == '`':
		return w.start, errors.New("a backtick is not part of the line: take it out, and the one at the end")
	case first == '"' || first == '\'':
		return w.start, fmt.Errorf("a quote (%q) is not part of the line: take it out, and the one at the end", string(first))
	case first == '[':
		return w.start, errors.New("a bracket is not part of the line: take it out, with the quotes, and give one line at a time")
	case n > 0:
		return w.start, startsLater(s, rest[n])
	case odd >= 0 && size > 0:
		r, _ := utf8.DecodeRuneInString(w.text[odd:])
		return w.start + odd, errors.New(foreignLetter(r))
	}
	return w.start, fmt.Errorf("%s is not a transport name: a line begins with one, as in \"obfs4 192.0.2.10:443 cert=… iat-mode=0\"", showWord(w.text))
}

// showWord quotes a word that is surely no secret, and names it otherwise.
func showWord(text string) string {
	if len(text) > 40 || strings.ContainsAny(text, "=@/") {
		return "what stands here"
	}
	return strconv.Quote(text)
}

// later is the index of the word at which a bridge line begins that has something in front;
// 0: there is none.
func later(rest []word) int {
	for i := 1; i+1 < len(rest); i++ {
		if validTransport(unquoted(rest[i].text)) && checkHostPort(rest[i+1].text) == nil {
			return i
		}
	}
	return 0
}

func unquoted(s string) string { return strings.TrimLeft(s, "'\"`") }

func startsLater(s string, w word) error {
	column := utf8.RuneCountInString(s[:w.start]) + 1 + len(w.text) - len(unquoted(w.text))
	return fmt.Errorf("the line itself begins at column %d: take away what stands before it", column)
}

func second(rest []word) string {
	if len(rest) < 2 {
		return ""
	}
	return rest[1].text
}

// foreignLetter says that a letter is not the plain one that it looks like.
func foreignLetter(r rune) string {
	return fmt.Sprintf("%U stands here, a letter that is none of a to z, though it may look like one: write it anew", r)
}

// notAnArg says what word i may be instead of key=value.
func notAnArg(rest []word, i int) string {
	text := rest[i].text
	hex := strings.TrimPrefix(text, "$")
	switch {
	case i == 0 && hex != text && isFingerprint(hex):
		return "a fingerprint has no \"$\" in front: take it out"
	case i == 0 && len(hex) > 30 && len(hex) < 50 && strings.Trim(hex, "0123456789abcdefABCDEF") == "":
		return fmt.Sprintf("a fingerprint has 40 hex digits, this one has %d: copy the line anew", len(hex))
	case checkHostPort(text) == nil:
		return "the address of one more bridge stands here: a line has one bridge, so give one at a time; the text may also be there twice"
	case validTransport(text) && i+1 < len(rest) && checkHostPort(rest[i+1].text) == nil:
		return "one more bridge begins here: a line has one, so give one at a time"
	case text[0] == '=', i+1 < len(rest) && rest[i+1].text[0] == '=', i > 0 && strings.IndexByte(rest[i-1].text, '=') == len(rest[i-1].text)-1:
		return "what stands here is not key=value: take away the space before or behind the \"=\""
	case strings.Contains(text, ":"):
		return "what stands here is not key=value: write \"=\", not \":\""
	case i == 0:
		return "what stands here is neither a fingerprint of 40 hex digits nor key=value: copy the line anew"
	}
	return "what stands here is not key=value: a space or a line break has come into the line before it; take it out, or copy the line anew"
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

// splitName cuts an address from its port. Without a port, or with an IPv6 address that has no
// brackets, port is empty.
func splitName(s string) (host, port string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return s, ""
	}
	return host, port
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// checkHostPort says what is wrong with an address:port whose host is an IP
// address or a name and whose port is not 0.
func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if strings.Contains(s, "=") {
		return errors.New("address:port is missing before the args: copy the whole line")
	}
	if err != nil {
		i := strings.LastIndexByte(s, ':')
		if i > 0 && isDigits(s[i+1:]) {
			if addr, err := netip.ParseAddr(s[:i]); err == nil && addr.Is6() {
				return fmt.Errorf("%q is not address:port: an IPv6 address stands in brackets, as in \"[%s]:%s\"", s, s[:i], s[i+1:])
			}
		}
		if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil && addr.Zone() == "" {
			return fmt.Errorf("%q is not address:port: the port is missing, as in %q", s, netip.AddrPortFrom(addr, 443))
		}
		return fmt.Errorf("%s is not address:port, as in \"192.0.2.10:443\"", showWord(s))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%s is not a port: write a number from 1 to 65535", showWord(port))
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return fmt.Errorf("address %q has a zone: write it without \"%%%s\"", host, addr.Zone())
		}
		return nil
	}
	if strings.HasPrefix(s, "[") || !ValidHostName(host) {
		return fmt.Errorf("%s is neither an IP address nor a host name: copy the line anew", showWord(host))
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
