package adapter

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// parseCMethod reads "transport socks4|socks5 address:port" (pt-spec 3.3.2).
// Fields after those are of older specifications and mean nothing. name is
// empty where not even that much could be read.
func parseCMethod(s string) (name string, m ClientMethod, err error) {
	f := strings.Fields(s)
	if len(f) == 0 || !validTransport(f[0]) {
		return "", m, errors.New("cmethod without a transport")
	}
	name = f[0]
	if len(f) < 3 {
		return name, m, fmt.Errorf("%w: cmethod is incomplete", ErrProtocol)
	}
	if f[1] != "socks4" && f[1] != "socks5" {
		return name, m, fmt.Errorf("%w: proxy protocol %q", ErrProtocol, f[1])
	}
	addr, err := netip.ParseAddrPort(f[2])
	if err != nil || addr.Port() == 0 {
		return name, m, fmt.Errorf("%w: listener address %q", ErrProtocol, f[2])
	}
	if !addr.Addr().Unmap().IsLoopback() {
		return name, m, ErrNotLoopback
	}
	return name, ClientMethod{Protocol: f[1], Addr: addr.String()}, nil
}

// parseSMethod reads "transport address:port [ARGS:k=v,…]" (pt-spec 3.3.3).
func parseSMethod(s string) (name string, m ServerMethod, err error) {
	f := strings.Fields(s)
	if len(f) == 0 || !validTransport(f[0]) {
		return "", m, errors.New("smethod without a transport")
	}
	name = f[0]
	if len(f) < 2 {
		return name, m, fmt.Errorf("%w: smethod is incomplete", ErrProtocol)
	}
	addr, err := netip.ParseAddrPort(f[1])
	if err != nil {
		return name, m, fmt.Errorf("%w: listener address %q", ErrProtocol, f[1])
	}
	m.Addr = addr.String()
	for _, option := range f[2:] {
		// Other options (FORWARD, DECLARE) are of older specifications.
		if text, ok := strings.CutPrefix(option, "ARGS:"); ok {
			if strings.ContainsFunc(text, unprintable) || !utf8.ValidString(text) {
				// They become a bridge line, which people look at in a terminal.
				return name, ServerMethod{}, fmt.Errorf("%w: args with characters that can't be printed", ErrProtocol)
			}
			if m.Args, err = ParseServerArgs(text); err != nil {
				return name, ServerMethod{}, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
		}
	}
	return name, m, nil
}

// parseLog reads "SEVERITY=… MESSAGE=…" (pt-spec 3.3.4).
func parseLog(s string) (Event, error) {
	pairs, err := parsePairs(s)
	if err != nil {
		return Event{}, err
	}
	severity, _ := pairs.Get("SEVERITY")
	message, ok := pairs.Get("MESSAGE")
	if severity == "" || !ok {
		return Event{}, errors.New("log line without severity or message")
	}
	return Event{Kind: EventLog, Severity: printable(strings.ToLower(severity)), Message: printable(message)}, nil
}

// parseStatus reads "TRANSPORT=… k=v …" (pt-spec 3.3.5). TRANSPORT came late
// to the specification, so a line without it is fine.
func parseStatus(s string) (Event, error) {
	pairs, err := parsePairs(s)
	if err != nil {
		return Event{}, err
	}
	e := Event{Kind: EventStatus}
	for _, p := range pairs {
		if p.Key == "TRANSPORT" && e.Transport == "" {
			e.Transport = printable(p.Value)
			continue
		}
		e.Params.Add(printable(p.Key), printable(p.Value))
	}
	return e, nil
}

// parsePairs reads key=value pairs with spaces between them, where a value is
// either plain or a C string in double quotes.
func parsePairs(s string) (Args, error) {
	var pairs Args
	for {
		s = strings.TrimLeft(s, " \t")
		if s == "" {
			return pairs, nil
		}
		key, rest, ok := strings.Cut(s, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \t\"") {
			return nil, errors.New("key=value expected")
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			var err error
			if value, rest, err = cString(rest); err != nil {
				return nil, err
			}
			if rest != "" && rest[0] != ' ' && rest[0] != '\t' {
				return nil, errors.New("text after a quoted value")
			}
		} else if end := strings.IndexAny(rest, " \t"); end >= 0 {
			value, rest = rest[:end], rest[end:]
		} else {
			value, rest = rest, ""
		}
		pairs.Add(key, value)
		s = rest
	}
}

// cString reads the C string in double quotes that s begins with and returns
// its value and what follows.
func cString(s string) (value, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		c := s[i]
		if c == '"' {
			return b.String(), s[i+1:], nil
		}
		if c != '\\' {
			b.WriteByte(c)
			continue
		}
		if i++; i == len(s) {
			break
		}
		switch c := s[i]; c {
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		case 'x':
			v, n := digits(s[i+1:], 16, 2)
			if n == 0 {
				return "", "", errors.New(`\x without digits`)
			}
			b.WriteByte(v)
			i += n
		case '0', '1', '2', '3', '4', '5', '6', '7':
			v, n := digits(s[i:], 8, 3)
			b.WriteByte(v)
			i += n - 1
		default: // \\ \" \' and what is none of ours
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("quoted value does not end")
}

// digits reads up to limit digits of the base and says how many there were.
func digits(s string, base, limit int) (value byte, n int) {
	v := 0
	for n < limit && n < len(s) {
		d := strings.IndexByte("0123456789abcdef", s[n])
		if d < 0 && s[n] >= 'A' && s[n] <= 'F' {
			d = int(s[n]-'A') + 10
		}
		if d < 0 || d >= base || v*base+d > 0xff {
			break
		}
		v = v*base + d
		n++
	}
	return byte(v), n
}
