// Package http1 reads HTTP/1 messages for a proxy, which passes them on as they came
// (RFC 9110 and RFC 9112).
//
// A Head keeps the bytes of a message's start line and fields. It is written again with
// the same names, in the same order, and with the same values. Only what concerns one
// connection is left out. What another reader could take for something else is an error:
// such a message must not be passed on, because two readers would then see two different
// messages (RFC 9112 section 11.2, request smuggling). What is only untidy is not an
// error.
//
// The package opens no connection and decides nothing about a request.
package http1

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// The errors of this package wrap one of these.
var (
	ErrMalformed = errors.New("malformed message")
	ErrTooLarge  = errors.New("the header section is too large")
	ErrVersion   = errors.New("not a version of HTTP/1")
	ErrCoding    = errors.New("unknown transfer coding")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// MaxFields is how many fields a header or trailer section may have.
const MaxFields = 1000

// A Name is one of the field names that the package or its users must know.
type Name uint8

// The names. Other stands for all others.
const (
	Other Name = iota
	Authorization
	Connection
	ContentLength
	Cookie
	Expect
	Host
	HTTP2Settings
	KeepAlive
	MaxForwards
	ProxyAuthenticate
	ProxyAuthenticationInfo
	ProxyAuthorization
	ProxyConnection
	TE
	Trailer
	TransferEncoding
	Upgrade
	WWWAuthenticate
)

// names has what is known of each name. The key is in lower case.
var names = map[string]Name{
	"authorization": Authorization, "connection": Connection, "content-length": ContentLength,
	"cookie": Cookie, "expect": Expect, "host": Host, "http2-settings": HTTP2Settings,
	"keep-alive": KeepAlive, "max-forwards": MaxForwards, "proxy-authenticate": ProxyAuthenticate,
	"proxy-authentication-info": ProxyAuthenticationInfo, "proxy-authorization": ProxyAuthorization,
	"proxy-connection": ProxyConnection, "te": TE, "trailer": Trailer,
	"transfer-encoding": TransferEncoding, "upgrade": Upgrade, "www-authenticate": WWWAuthenticate,
}

const longestName = len("proxy-authentication-info")

func nameOf(b []byte) Name {
	var lower [longestName]byte
	if len(b) > len(lower) {
		return Other
	}
	for i, c := range b {
		lower[i] = toLower(c)
	}
	return names[string(lower[:len(b)])]
}

func toLower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// A Field is a line of a header or trailer section. Its slices are parts of the bytes
// that were parsed.
type Field struct {
	ID    Name
	Name  []byte
	Rest  []byte // the line from the colon on, without its end
	Value []byte // without white space around it
	Drop  bool   // it is not passed on
}

// A Head is the start line and the header section of a message. Its slices are parts of
// the bytes that were parsed, and stay good as long as those do. The zero Head is ready
// for use, and may be used again.
type Head struct {
	Method, Target []byte // of a request
	Status         int    // of a response
	Reason         []byte // of a response, as written
	Minor          int    // the version is HTTP/1.Minor
	Fields         []Field
}

// ParseRequest reads a request's head, which ends with an empty line.
func (h *Head) ParseRequest(b []byte) error {
	*h = Head{Fields: h.Fields[:0]} // nothing of another message stays, also at an error
	line, b := cutLine(b)
	// RFC 9112 section 3: method SP request-target SP HTTP-version
	method, rest, ok := bytes.Cut(line, space)
	target, version, ok2 := bytes.Cut(rest, space)
	if !ok || !ok2 || len(method) == 0 || len(target) == 0 {
		return malformed("no request line")
	}
	for _, c := range method {
		if !isToken(c) {
			return malformed("the method is not a token")
		}
	}
	for _, c := range target {
		if c <= ' ' || c == 0x7f {
			return malformed("a control character in the request target")
		}
	}
	h.Method, h.Target = method, target
	if err := h.version(version); err != nil {
		return err
	}
	return h.fields(b, true)
}

// ParseResponse reads a response's head, which ends with an empty line. It may change b:
// a line that is folded becomes one line (RFC 9112 section 5.2).
func (h *Head) ParseResponse(b []byte) error {
	line, b := cutLine(b)
	// RFC 9112 section 4: HTTP-version SP status-code SP [ reason-phrase ]
	version, rest, _ := bytes.Cut(line, space)
	rest = bytes.TrimLeft(rest, " ")
	*h = Head{Fields: h.Fields[:0]}
	if err := h.version(version); err != nil {
		return err
	}
	if len(rest) < 3 || len(rest) > 3 && rest[3] != ' ' {
		return malformed("no status code")
	}
	for _, c := range rest[:3] {
		if c < '0' || c > '9' {
			return malformed("no status code")
		}
		h.Status = 10*h.Status + int(c-'0')
	}
	if h.Status < 100 {
		return malformed("no status code")
	}
	if len(rest) > 3 {
		h.Reason = rest[4:]
	}
	for _, c := range h.Reason {
		if c == 0 || c == '\r' {
			return malformed("a control character in the reason phrase")
		}
	}
	return h.fields(b, false)
}

// ParseTrailer reads a trailer section, which ends with an empty line. strict is for
// that of a request.
func (h *Head) ParseTrailer(b []byte, strict bool) error {
	*h = Head{Fields: h.Fields[:0]}
	if strict && bytes.Count(b, []byte("\n")) != bytes.Count(b, []byte("\r\n")) {
		return malformed("a line feed alone in a trailer section")
	}
	return h.fields(b, strict)
}

var space = []byte(" ")

// cutLine returns the first line of b without its end, and what follows it. A line that
// ends with a line feed alone is a line, too (RFC 9112 section 2.2); it is passed on with
// the right end.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil
	}
	line, rest = b[:i], b[i+1:]
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, rest
}

func (h *Head) version(b []byte) error {
	digit := func(c byte) bool { return '0' <= c && c <= '9' }
	if len(b) != len("HTTP/1.1") || string(b[:5]) != "HTTP/" || !digit(b[5]) || b[6] != '.' || !digit(b[7]) {
		return malformed("no version of HTTP")
	}
	if b[5] != '1' {
		return ErrVersion
	}
	// RFC 9110 section 2.5: a higher minor version is served as the highest known one.
	h.Minor = min(int(b[7]-'0'), 1)
	return nil
}

// fields reads field lines up to the empty line. With strict, what a client of today
// never sends is an error; an origin's habits are taken as they are.
func (h *Head) fields(b []byte, strict bool) error {
	for {
		var line []byte
		whole := b
		line, b = cutLine(b)
		if len(line) == 0 {
			return nil
		}
		if line[0] == ' ' || line[0] == '\t' {
			// RFC 9112 sections 2.2 and 5.2
			if strict || len(h.Fields) == 0 {
				return malformed("a folded field")
			}
			if err := checkValue(line); err != nil {
				return err
			}
			h.unfold(whole, line)
			continue
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			return malformed("a field without a colon")
		}
		f := Field{Name: line[:colon], Rest: line[colon:]}
		if !strict { // RFC 9112 section 5.1: a proxy takes out the space before the colon
			f.Name = bytes.TrimRight(f.Name, " \t")
		}
		if len(f.Name) == 0 {
			return malformed("a field without a name")
		}
		for _, c := range f.Name {
			if strict && !isToken(c) || c < ' ' || c == 0x7f {
				return malformed("a field name that is not a token")
			}
		}
		if err := checkValue(f.Rest); err != nil {
			return err
		}
		f.Value = trim(f.Rest[1:])
		f.ID = nameOf(f.Name)
		if len(h.Fields) == MaxFields {
			return ErrTooLarge
		}
		h.Fields = append(h.Fields, f)
	}
}

// unfold joins a folded line to the field before it: both are parts of the same bytes,
// and what is between them becomes spaces.
func (h *Head) unfold(whole, line []byte) {
	f := &h.Fields[len(h.Fields)-1]
	n := cap(f.Rest) - cap(whole) // from the colon to the folded line
	rest := f.Rest[:n+len(line)]
	for i := len(f.Rest); i < len(rest) && isSpace(rest[i]); i++ {
		rest[i] = ' '
	}
	f.Rest, f.Value = rest, trim(rest[1:])
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// checkValue refuses what RFC 9110 section 5.5 calls invalid and dangerous.
func checkValue(b []byte) error {
	if bytes.IndexByte(b, 0) >= 0 || bytes.IndexByte(b, '\r') >= 0 {
		return malformed("a control character in a field")
	}
	return nil
}

func trim(b []byte) []byte { return bytes.Trim(b, " \t") }

// isToken tells whether c may be in a token (RFC 9110 section 5.6.2).
func isToken(c byte) bool { return tokens[c] }

var tokens = func() (t [256]bool) {
	for c := range t {
		t[c] = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()

// Get returns the value of the first field of that name, or nil.
func (h *Head) Get(n Name) []byte {
	for i := range h.Fields {
		if h.Fields[i].ID == n {
			return h.Fields[i].Value
		}
	}
	return nil
}

// Count tells how many fields of that name there are.
func (h *Head) Count(n Name) (count int) {
	for i := range h.Fields {
		if h.Fields[i].ID == n {
			count++
		}
	}
	return count
}

// Has tells whether a field of that name, which is a list, has the token in it.
func (h *Head) Has(n Name, token string) bool {
	for i := range h.Fields {
		if h.Fields[i].ID != n {
			continue
		}
		for v := range bytes.SplitSeq(h.Fields[i].Value, comma) {
			if equalFold(trim(v), token) {
				return true
			}
		}
	}
	return false
}

var comma = []byte(",")

// equalFold compares with a string in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if toLower(c) != lower[i] {
			return false
		}
	}
	return true
}

// Is tells whether the method is m. Methods have large and small letters (RFC 9110
// section 9.1).
func (h *Head) Is(m string) bool { return string(h.Method) == m }

// Replace gives the first field of that name another value, and drops all others of that
// name. It tells whether there was one.
func (h *Head) Replace(n Name, value []byte) (found bool) {
	for i := range h.Fields {
		f := &h.Fields[i]
		switch {
		case f.ID != n:
		case found:
			f.Drop = true
		default:
			found = true
			f.Value = value
			f.Rest = append([]byte(": "), value...)
		}
	}
	return found
}

// Drop leaves out all fields of that name.
func (h *Head) Drop(n Name) {
	for i := range h.Fields {
		if h.Fields[i].ID == n {
			h.Fields[i].Drop = true
		}
	}
}

// EndToEnd drops the fields that are for one connection only (RFC 9110 section 7.6.1).
// With upgrade, those of the upgrade stay (RFC 9110 section 7.8).
//
// The fields that frame the content, and Host, stay also where Connection names them.
// Without them the next reader would see another message.
func (h *Head) EndToEnd(upgrade bool) {
	for i := range h.Fields {
		f := &h.Fields[i]
		switch f.ID {
		case Connection:
			f.Drop = true
			for option := range bytes.SplitSeq(f.Value, comma) {
				h.dropOption(trim(option), upgrade)
			}
		case KeepAlive, ProxyConnection, ProxyAuthenticate, ProxyAuthorization, ProxyAuthenticationInfo, TE:
			f.Drop = true
		case Upgrade, HTTP2Settings:
			f.Drop = f.Drop || !upgrade
		}
	}
}

func (h *Head) dropOption(option []byte, upgrade bool) {
	switch id := nameOf(option); id {
	case ContentLength, TransferEncoding, Host, Connection:
		return
	case Upgrade, HTTP2Settings:
		if upgrade {
			return
		}
	case Other:
		if len(option) == 0 || equalFold(option, "close") {
			return
		}
	}
	for i := range h.Fields {
		if f := &h.Fields[i]; bytes.EqualFold(f.Name, option) {
			f.Drop = true
		}
	}
}

// AppendFields appends the field lines that are passed on, without the empty line behind
// them.
func (h *Head) AppendFields(b []byte) []byte {
	for i := range h.Fields {
		if f := &h.Fields[i]; !f.Drop {
			b = append(b, f.Name...)
			b = append(b, f.Rest...)
			b = append(b, "\r\n"...)
		}
	}
	return b
}

// A Framing says where the content of a message ends.
type Framing uint8

// The framings (RFC 9112 section 6.3).
const (
	None    Framing = iota // there is no content
	Length                 // it has a length
	Chunked                // it is chunked
	ToEnd                  // it ends with the connection; of responses only
)

// A Body describes the content of a message.
type Body struct {
	Framing Framing
	Length  int64 // of the content, with Length
}

// RequestBody finds out how the content of a request is framed. It also makes that clear
// for the next reader: it changes the fields that say so, if they are untidy.
func (h *Head) RequestBody() (Body, error) { return h.body(None) }

// ResponseBody is RequestBody for a response. head says that the request was HEAD.
func (h *Head) ResponseBody(head bool) (Body, error) {
	switch {
	case h.Status < 200 || h.Status == 204:
		// RFC 9110 section 8.6 and RFC 9112 section 6.1: these have no such fields.
		if n := h.Get(ContentLength); len(n) != 1 || n[0] != '0' {
			h.Drop(ContentLength)
		}
		h.Drop(TransferEncoding)
		return Body{}, nil
	case head || h.Status == 304:
		return Body{}, nil // the fields say what another response would have
	}
	return h.body(ToEnd)
}

func (h *Head) body(without Framing) (Body, error) {
	coded, lengths := h.Count(TransferEncoding), h.Count(ContentLength)
	switch {
	case coded > 0 && lengths > 0:
		return Body{}, malformed("both Transfer-Encoding and Content-Length")
	case coded > 0 && h.Minor == 0: // RFC 9112 section 6.1
		return Body{}, malformed("Transfer-Encoding in HTTP/1.0")
	case coded > 1:
		return Body{}, malformed("two fields Transfer-Encoding")
	case coded == 1:
		v := h.Get(TransferEncoding)
		if !equalFold(v, "chunked") {
			i := bytes.LastIndexByte(v, ',')
			if !equalFold(trim(v[i+1:]), "chunked") || bytes.Count(bytes.ToLower(v), []byte("chunked")) > 1 {
				return Body{}, malformed("Transfer-Encoding is not chunked at its end")
			}
			return Body{}, ErrCoding
		}
		if string(v) != "chunked" {
			h.Replace(TransferEncoding, []byte("chunked"))
		}
		return Body{Framing: Chunked}, nil
	case lengths == 0:
		return Body{Framing: without}, nil
	}
	// RFC 9112 section 6.3: the same length several times is one length.
	length := int64(-1)
	many := lengths > 1
	for i := range h.Fields {
		if h.Fields[i].ID != ContentLength {
			continue
		}
		for v := range bytes.SplitSeq(h.Fields[i].Value, comma) {
			n, err := number(trim(v))
			if err != nil {
				return Body{}, err
			}
			if length >= 0 && n != length {
				return Body{}, malformed("two different lengths")
			}
			many = many || length >= 0
			length = n
		}
	}
	if many {
		h.Replace(ContentLength, fmt.Append(nil, length))
	}
	if length == 0 {
		return Body{}, nil
	}
	return Body{Length, length}, nil
}

func number(b []byte) (n int64, err error) {
	if len(b) == 0 {
		return 0, malformed("an empty length")
	}
	for _, c := range b {
		if c < '0' || c > '9' || n > (math.MaxInt64-9)/10 {
			return 0, malformed("the length is not a number")
		}
		n = 10*n + int64(c-'0')
	}
	return n, nil
}
