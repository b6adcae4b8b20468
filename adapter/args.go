package adapter

import (
	"fmt"
	"strings"
)

// Arg is one key=value pair.
type Arg struct{ Key, Value string }

// Args are key=value pairs in order. A key may occur several times. The zero
// value is an empty list, ready to use.
type Args []Arg

// maxClientArgs is how many escaped bytes fit into a SOCKS5 user name and
// password, 255 each (RFC 1929).
const maxClientArgs = 510

// ErrArgsTooLong says that client args do not fit into one SOCKS request.
var ErrArgsTooLong = Constant("args too long")

// Get returns the first value of key and whether there is one.
func (a Args) Get(key string) (string, bool) {
	for _, arg := range a {
		if arg.Key == key {
			return arg.Value, true
		}
	}
	return "", false
}

// Add appends a pair; an earlier one with the same key stays.
func (a *Args) Add(key, value string) { *a = append(*a, Arg{key, value}) }

// CheckClient returns an error if the args can't be passed to a client
// transport: each needs a key, none may contain a NUL, and in their escaped
// form they have at most 510 bytes. Call it when a configuration is loaded.
// The error wraps ErrArgsTooLong if they have more bytes.
func (a Args) CheckClient() error {
	if err := a.check("\x00"); err != nil {
		return err
	}
	if n := len(a.EncodeClient()); n > maxClientArgs {
		return fmt.Errorf("%w: %d bytes escaped, at most %d fit", ErrArgsTooLong, n, maxClientArgs)
	}
	return nil
}

// checkServer says whether the args can be written into
// TOR_PT_SERVER_TRANSPORT_OPTIONS.
func (a Args) checkServer() error { return a.check("\x00\r\n") }

func (a Args) check(forbidden string) error {
	for _, arg := range a {
		if arg.Key == "" {
			return Constant("arg without a key")
		}
		if strings.ContainsAny(arg.Key, forbidden) || strings.ContainsAny(arg.Value, forbidden) {
			return fmt.Errorf("arg %q holds a control character", arg.Key)
		}
	}
	return nil
}

// EncodeClient is the form that travels in the SOCKS user name and password:
// key=value;key=value with backslash, = and ; escaped and no ; at the end
// (pt-spec 3.5).
func (a Args) EncodeClient() string {
	var b strings.Builder
	for i, arg := range a {
		if i > 0 {
			b.WriteByte(';')
		}
		escape(&b, arg.Key, `\=;`)
		b.WriteByte('=')
		escape(&b, arg.Value, `\=;`)
	}
	return b.String()
}

// EncodeServer is the form of TOR_PT_SERVER_TRANSPORT_OPTIONS for one
// transport: name:key=value;name:key=value with backslash, : and ; escaped,
// and = as well in keys (pt-spec 3.2.3). In values = stays as it is, as tor
// writes it.
func (a Args) EncodeServer(transport string) string {
	var b strings.Builder
	for i, arg := range a {
		if i > 0 {
			b.WriteByte(';')
		}
		escape(&b, transport, `\:;`)
		b.WriteByte(':')
		escape(&b, arg.Key, `\:;=`)
		b.WriteByte('=')
		escape(&b, arg.Value, `\:;`)
	}
	return b.String()
}

func escape(b *strings.Builder, s, special string) {
	for i := range len(s) {
		if strings.IndexByte(special, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
}

// ParseServerArgs reads what follows "ARGS:" in an SMETHOD line: key=value
// pairs with commas between them, where a backslash takes the next byte
// literally (pt-spec 3.3.3). An empty string is an empty list.
func ParseServerArgs(s string) (Args, error) {
	var args Args
	var key string
	var field strings.Builder
	inValue := false
	end := func() error {
		switch {
		case inValue:
			args.Add(key, field.String())
		case field.Len() > 0:
			return fmt.Errorf("arg %q without =", field.String())
		}
		field.Reset()
		inValue = false
		return nil
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			if i++; i == len(s) {
				return nil, Constant("args end in the middle of an escape")
			}
			field.WriteByte(s[i])
		case c == ',':
			if err := end(); err != nil {
				return nil, err
			}
		case c == '=' && !inValue:
			if field.Len() == 0 {
				return nil, Constant("arg without a key")
			}
			key, inValue = field.String(), true
			field.Reset()
		default:
			field.WriteByte(c)
		}
	}
	if err := end(); err != nil {
		return nil, err
	}
	return args, nil
}

// validTransport says whether name is a transport's name: a C identifier
// (pt-spec 3.1).
func validTransport(name string) bool {
	for i := range len(name) {
		if !isWord(name[i]) {
			return false
		}
	}
	return name != "" && (name[0] < '0' || name[0] > '9')
}

// isWord says whether c is an ASCII letter, a digit or an underscore.
func isWord(c byte) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
