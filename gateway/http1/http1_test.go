package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// passOn is a head as a proxy writes it again.
func passOn(h *Head) string {
	first := fmt.Sprintf("%s %s HTTP/1.%d", h.Method, h.Target, h.Minor)
	if h.Method == nil {
		first = fmt.Sprintf("HTTP/1.%d %d %s", h.Minor, h.Status, h.Reason)
	}
	return first + "\r\n" + string(h.AppendFields(nil)) + "\r\n"
}

func TestRequestHead(t *testing.T) {
	const line = "GET http://a/ HTTP/1.1\r\n"
	for _, tt := range []struct {
		name, in, want string // want "": the same
		err            error
	}{
		{name: "plain", in: line + "Host: a\r\nAccept: b\r\n\r\n"},
		{name: "odd names", in: line + "hOST: a\r\nX_y!#$%&'*+-.^`|~: b\r\nx_Y: c\r\n\r\n"},
		{name: "white space", in: line + "Host:a\r\nX: \t b \t \r\nY:\r\n\r\n"},
		{name: "bytes of all kinds", in: line + "X: \x01\x7f\x80\xff\"(\\)\r\n\r\n"},
		{name: "target as written", in: "GET http://a/100%/a{b}%2Fc?\"^|`<>\\\xc3\xa9\xff HTTP/1.0\r\n\r\n"},
		{name: "a method of its own", in: "m-SEARCH * HTTP/1.1\r\n\r\n"},
		{name: "HTTP/1.7", in: "GET / HTTP/1.7\r\n\r\n", want: "GET / HTTP/1.1\r\n\r\n"},
		{name: "line feeds alone", in: "GET / HTTP/1.1\nHost: a\n\n", want: "GET / HTTP/1.1\r\nHost: a\r\n\r\n"},

		{name: "nothing", in: "\r\n", err: ErrMalformed},
		{name: "no version", in: "GET /\r\n\r\n", err: ErrMalformed},
		{name: "two spaces", in: "GET  / HTTP/1.1\r\n\r\n", err: ErrMalformed},
		{name: "three parts", in: "GET / x HTTP/1.1\r\n\r\n", err: ErrMalformed},
		{name: "a tab", in: "GET /\tx HTTP/1.1\r\n\r\n", err: ErrMalformed},
		{name: "space behind", in: "GET / HTTP/1.1 \r\n\r\n", err: ErrMalformed},
		{name: "space before", in: " GET / HTTP/1.1\r\n\r\n", err: ErrMalformed},
		{name: "method no token", in: "G(T / HTTP/1.1\r\n\r\n", err: ErrMalformed},
		{name: "NUL in the target", in: "GET /\x00 HTTP/1.1\r\n\r\n", err: ErrMalformed},
		{name: "CR in the target", in: "GET /\rx HTTP/1.1\r\n\r\n", err: ErrMalformed},
		{name: "small letters", in: "GET / http/1.1\r\n\r\n", err: ErrMalformed},
		{name: "long version", in: "GET / HTTP/1.10\r\n\r\n", err: ErrMalformed},
		{name: "HTTP/2.0", in: "PRI * HTTP/2.0\r\n\r\n", err: ErrVersion},
		{name: "HTTP/0.9", in: "GET / HTTP/0.9\r\n\r\n", err: ErrVersion},
		{name: "space before the colon", in: line + "X : y\r\n\r\n", err: ErrMalformed},
		{name: "tab before the colon", in: line + "X\t: y\r\n\r\n", err: ErrMalformed},
		{name: "space in a name", in: line + "X y: z\r\n\r\n", err: ErrMalformed},
		{name: "no name", in: line + ": y\r\n\r\n", err: ErrMalformed},
		{name: "no colon", in: line + "Xy\r\n\r\n", err: ErrMalformed},
		{name: "name not in ASCII", in: line + "X\xc3\xa9: z\r\n\r\n", err: ErrMalformed},
		{name: "NUL in a value", in: line + "X: a\x00b\r\n\r\n", err: ErrMalformed},
		{name: "CR in a value", in: line + "X: a\rb: c\r\n\r\n", err: ErrMalformed},
		{name: "two CR", in: line + "X: a\r\r\n\r\n", err: ErrMalformed},
		{name: "CR for the last line", in: line + "X: a\r\n\r\r\n\r\n", err: ErrMalformed},
		{name: "folded", in: line + "X: a\r\n b\r\n\r\n", err: ErrMalformed},
		{name: "folded with a tab", in: line + "X: a\r\n\tb\r\n\r\n", err: ErrMalformed},
		{name: "folded at the beginning", in: line + " X: a\r\n\r\n", err: ErrMalformed},
		{name: "a line of spaces", in: line + "X: a\r\n \r\n\r\n", err: ErrMalformed},
		{name: "many fields", in: line + strings.Repeat("X: a\r\n", MaxFields+1) + "\r\n", err: ErrTooLarge},
	} {
		var h Head
		err := h.ParseRequest([]byte(tt.in))
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.err)
		}
		if tt.want == "" {
			tt.want = tt.in
		}
		if got := passOn(&h); err == nil && got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestResponseHead(t *testing.T) {
	const line = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name, in, want string // want "": the same
		bad            bool
	}{
		{name: "plain", in: line + "Content-length: 1\r\nx: y\r\nX: z\r\n\r\n"},
		{name: "any reason", in: "HTTP/1.1 299  a  \xc3\xa9\t(b) \r\n\r\n"},
		{name: "no reason", in: "HTTP/1.1 200 \r\n\r\n"},
		{name: "no space either", in: "HTTP/1.1 200\r\n\r\n", want: "HTTP/1.1 200 \r\n\r\n"},
		{name: "status 999", in: "HTTP/1.0 999 X\r\n\r\n"},
		{name: "line feeds alone", in: "HTTP/1.1 200 OK\nX: a\n\n", want: line + "X: a\r\n\r\n"},
		{name: "space before the colon", in: line + "Content-Length \t: 2\r\n\r\n", want: line + "Content-Length: 2\r\n\r\n"},
		{name: "space in a name", in: line + "Foo Bar: 2\r\n\r\n"},
		{name: "folded", in: line + "X: a\r\n b\r\n\t c\r\nY: d\r\n\r\n", want: line + "X: a   b    c\r\nY: d\r\n\r\n"},
		{name: "folded, line feeds alone", in: "HTTP/1.1 200 OK\nX: a\n b\n\n", want: line + "X: a  b\r\n\r\n"},
		{name: "folded with nothing", in: line + "X:\r\n \r\n\r\n", want: line + "X:   \r\n\r\n"},

		{name: "nothing", in: "\r\n", bad: true},
		{name: "a page", in: "<html>\r\n\r\n", bad: true},
		{name: "ICY", in: "ICY 200 OK\r\n\r\n", bad: true},
		{name: "HTTP/2", in: "HTTP/2 200 OK\r\n\r\n", bad: true},
		{name: "HTTP/2.0", in: "HTTP/2.0 200 OK\r\n\r\n", bad: true},
		{name: "no status", in: "HTTP/1.1 OK\r\n\r\n", bad: true},
		{name: "status 20", in: "HTTP/1.1 20 OK\r\n\r\n", bad: true},
		{name: "status 99", in: "HTTP/1.1 099 OK\r\n\r\n", bad: true},
		{name: "status 2000", in: "HTTP/1.1 2000 OK\r\n\r\n", bad: true},
		{name: "status -20", in: "HTTP/1.1 -20 OK\r\n\r\n", bad: true},
		{name: "CR in the reason", in: "HTTP/1.1 200 O\rK\r\n\r\n", bad: true},
		{name: "NUL in the reason", in: "HTTP/1.1 200 O\x00K\r\n\r\n", bad: true},
		{name: "no colon", in: line + "Xy\r\n\r\n", bad: true},
		{name: "no name", in: line + ": y\r\n\r\n", bad: true},
		{name: "only space for a name", in: line + "X: a\r\n : y\r\n\r\n", want: line + "X: a   : y\r\n\r\n"},
		{name: "control character in a name", in: line + "Transfer-Encoding\x0b: chunked\r\n\r\n", bad: true},
		{name: "NUL", in: line + "X: \x00\r\n\r\n", bad: true},
		{name: "CR", in: line + "X: a\rTransfer-Encoding: chunked\r\n\r\n", bad: true},
		{name: "CR in a folded line", in: line + "X: a\r\n b\rc\r\n\r\n", bad: true},
		{name: "folded at the beginning", in: line + " X: a\r\n\r\n", bad: true},
	} {
		var h Head
		err := h.ParseResponse([]byte(tt.in))
		if tt.bad != (err != nil) || tt.bad && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: error %v", tt.name, err)
		}
		if tt.want == "" {
			tt.want = tt.in
		}
		if got := passOn(&h); err == nil && got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// How content is framed, and how the next reader is told.
func TestBody(t *testing.T) {
	none, chunked, end := Body{}, Body{Framing: Chunked}, Body{Framing: ToEnd}
	length := func(n int64) Body { return Body{Length, n} }
	for _, tt := range []struct {
		fields    string
		minor     int
		want, res Body   // of a request, and of a response
		bad       error  // of both
		next      string // the fields for the next reader; "": the same
	}{
		{fields: "", minor: 1, want: none, res: end},
		{fields: "Content-Length: 5\r\n", minor: 1, want: length(5), res: length(5)},
		{fields: "Content-Length: 0\r\n", minor: 1, want: none, res: none},
		{fields: "content-length:\t007 \r\n", minor: 0, want: length(7), res: length(7)},
		{fields: "Content-Length: 5, 5\r\n", minor: 1, want: length(5), res: length(5), next: "Content-Length: 5\r\n"},
		{fields: "Content-Length: 5\r\nX: y\r\ncontent-length: 5\r\n", minor: 1, want: length(5), res: length(5), next: "Content-Length: 5\r\nX: y\r\n"},
		{fields: "Transfer-Encoding: chunked\r\n", minor: 1, want: chunked, res: chunked},
		{fields: "transfer-encoding: CHUNKED\r\n", minor: 1, want: chunked, res: chunked, next: "transfer-encoding: chunked\r\n"},

		{fields: "Content-Length: 5\r\nContent-Length: 6\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: 5, 6\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: 5,\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length:\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: +5\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: -5\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: 0x5\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: 5 5\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: 99999999999999999999\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: chunked\r\n", minor: 0, bad: ErrMalformed},
		{fields: "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: chunked, chunked\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: chunked, identity\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: identity\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: xchunked\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: \x0bchunked\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: \"chunked\"\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: chunked;q=1\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding:\r\n", minor: 1, bad: ErrMalformed},
		{fields: "Transfer-Encoding: gzip, chunked\r\n", minor: 1, bad: ErrCoding},
	} {
		for _, request := range []bool{true, false} {
			h := Head{Status: 200, Minor: tt.minor}
			if err := h.fields([]byte(tt.fields+"\r\n"), request); err != nil {
				t.Fatalf("%q: %v", tt.fields, err)
			}
			body, want := h.RequestBody, tt.want
			if !request {
				body, want = func() (Body, error) { return h.ResponseBody(false) }, tt.res
			}
			got, err := body()
			if !errors.Is(err, tt.bad) || err == nil && got != want {
				t.Errorf("%q: %v, %v, want %v, %v", tt.fields, got, err, want, tt.bad)
			}
			next := tt.next
			if next == "" {
				next = tt.fields
			}
			if s := string(h.AppendFields(nil)); err == nil && s != next {
				t.Errorf("%q: passed on as %q, want %q", tt.fields, s, next)
			}
		}
	}
}

// Some responses have no content, whatever their fields say.
func TestNoContent(t *testing.T) {
	for _, tt := range []struct {
		status     int
		head       bool
		in, fields string
	}{
		{200, true, "Content-Length: 5\r\n", "Content-Length: 5\r\n"},
		{200, true, "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\n"},
		{304, false, "Content-Length: 5\r\nContent-Type: a\r\n", "Content-Length: 5\r\nContent-Type: a\r\n"},
		{204, false, "Content-Length: 0\r\n", "Content-Length: 0\r\n"},
		{204, false, "Content-Length: 5\r\nX: y\r\n", "X: y\r\n"},
		{204, false, "Transfer-Encoding: chunked\r\n", ""},
		{103, false, "Content-Length: 5\r\nLink: a\r\n", "Link: a\r\n"},
	} {
		h := Head{Status: tt.status, Minor: 1}
		if err := h.fields([]byte(tt.in+"\r\n"), false); err != nil {
			t.Fatal(err)
		}
		body, err := h.ResponseBody(tt.head)
		if s := string(h.AppendFields(nil)); err != nil || body != (Body{}) || s != tt.fields {
			t.Errorf("%d %q: %v, %v, %q", tt.status, tt.in, body, err, s)
		}
	}
}

func TestEndToEnd(t *testing.T) {
	const in = "Connection: X-Hop, keep-alive , ,Content-Length,host, Upgrade\r\nx-hop: 1\r\nX-Hops: 2\r\nHost: a\r\nContent-Length: 0\r\n" +
		"Keep-Alive: 1\r\nProxy-Connection: a\r\nTE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\n" +
		"Proxy-Authorization: a\r\nProxy-Authenticate: b\r\nProxy-Authentication-Info: c\r\nX-HOP: 3\r\nVia: x\r\nAuthorization: z\r\n"
	const out = "X-Hops: 2\r\nHost: a\r\nContent-Length: 0\r\nTrailer: X\r\n"
	for _, upgrade := range []bool{false, true} {
		var h Head
		if err := h.fields([]byte(in+"\r\n"), true); err != nil {
			t.Fatal(err)
		}
		h.EndToEnd(upgrade)
		want := out
		if upgrade {
			want += "Upgrade: h2c\r\nHTTP2-Settings: a\r\n"
		}
		if s := string(h.AppendFields(nil)); s != want+"Via: x\r\nAuthorization: z\r\n" {
			t.Errorf("upgrade %v: %q", upgrade, s)
		}
	}
}

// scan reads a whole coding in pieces of the given size. It returns the content, and what
// follows the last chunk's line.
func scan(in string, strict bool, piece int) (content, rest string, err error) {
	c := Chunks{Strict: strict}
	for i := 0; i < len(in); i += piece {
		b := []byte(in[i:min(i+piece, len(in))])
		for len(b) > 0 {
			if c.Done() {
				return content, in[len(in)-len(b)-max(0, len(in)-i-piece):], nil
			}
			n, data, err := c.Next(b)
			if err != nil {
				return content, "", err
			}
			if data {
				content += string(b[:n])
			}
			b = b[n:]
		}
	}
	if !c.Done() {
		return content, "", io.ErrUnexpectedEOF
	}
	return content, "", nil
}

func TestChunks(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, tt := range []struct {
		name, in, want, rest string
		lax                  bool // good in responses only
		bad                  bool
	}{
		{name: "nothing", in: "0\r\n\r\n", rest: "\r\n"},
		{name: "one", in: "3\r\nabc\r\n0\r\n\r\n", want: "abc", rest: "\r\n"},
		{name: "two", in: "1\r\na\r\nA\r\n0123456789\r\n000\r\nX: y\r\n\r\n", want: "a0123456789", rest: "X: y\r\n\r\n"},
		{name: "line ends in the content", in: "4\r\n\r\n\r\n\r\n00\r\n", want: "\r\n\r\n"},
		{name: "extensions", in: "3;a=b;c=\"d e\"\r\nabc\r\n0 ; x\r\n", want: "abc"},
		{name: "space behind the size", in: "3  \r\nabc\r\n0\r\n", want: "abc", lax: true},

		{name: "no size", in: "\r\nabc", bad: true},
		{name: "no hexadecimal size", in: "g\r\n", bad: true},
		{name: "0x3", in: "0x3\r\nabc\r\n0\r\n", bad: true},
		{name: "+3", in: "+3\r\nabc\r\n0\r\n", bad: true},
		{name: "-3", in: "-3\r\nabc\r\n0\r\n", bad: true},
		{name: "3_0", in: "3_0\r\n", bad: true},
		{name: "space before the size", in: " 3\r\nabc\r\n0\r\n", bad: true},
		{name: "NUL in the size", in: "3\x00\r\nabc\r\n0\r\n", bad: true},
		{name: "two sizes", in: "3 3\r\nabc\r\n0\r\n", bad: true},
		{name: "too large", in: "80000000000000000\r\n", bad: true},
		{name: "far too large", in: "ffffffffffffffffffff\r\n", bad: true},
		{name: "line feed alone", in: "3\nabc\r\n0\r\n\r\n", bad: true},
		{name: "line feed alone in an extension", in: "3;x\nabc\r\n0\r\n\r\n", bad: true},
		{name: "carriage return alone", in: "3;\rx\r\nabc\r\n0\r\n\r\n", bad: true},
		{name: "longer than its size", in: "3\r\nabcd\r\n0\r\n\r\n", bad: true},
		{name: "shorter than its size", in: "5\r\nabc\r\n0\r\n\r\n", bad: true},
		{name: "line feed alone behind", in: "3\r\nabc\n0\r\n\r\n", bad: true},
		{name: "carriage return alone behind", in: "3\r\nabc\rx0\r\n\r\n", bad: true},
		{name: "a long line", in: "3;" + long + "\r\nabc\r\n0\r\n", bad: true},
		{name: "a long size", in: strings.Repeat("0", maxLine+1) + "\r\n", bad: true},
	} {
		for piece := 1; piece <= 12; piece++ {
			for _, strict := range []bool{true, false} {
				content, rest, err := scan(tt.in, strict, piece)
				if bad := tt.bad || tt.lax && strict; bad != errors.Is(err, ErrMalformed) || !bad && (err != nil || content != tt.want || rest != tt.rest) {
					t.Errorf("%s, strict %v, in pieces of %d: %q, %q, %v", tt.name, strict, piece, content, rest, err)
				}
			}
		}
	}
}

func TestTrailer(t *testing.T) {
	for _, tt := range []struct {
		in          string
		strict, lax bool // it is good
	}{
		{"\r\n", true, true},
		{"X: y\r\n\r\n", true, true},
		{"\n", false, true},
		{"X: y\n\n", false, true},
		{"X : y\r\n\r\n", false, true},
		{"X: y\r\n z\r\n\r\n", false, true},
		{"X\r\n\r\n", false, false},
	} {
		for _, strict := range []bool{true, false} {
			r := Reader{Src: strings.NewReader(tt.in + "next")}
			b, err := r.ReadTrailer(100)
			if err != nil || string(b) != tt.in || string(r.Buffered()) != "next" {
				t.Fatalf("%q: %q, %v, then %q", tt.in, b, err, r.Buffered())
			}
			var h Head
			good := tt.lax
			if strict {
				good = tt.strict
			}
			if err := h.ParseTrailer(b, strict); (err == nil) != good {
				t.Errorf("%q, strict %v: %v", tt.in, strict, err)
			}
		}
	}
}

// pieces reads a few bytes at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(p.n, len(b))]) }

func TestReader(t *testing.T) {
	large := "GET /" + strings.Repeat("x", 60<<10) + " HTTP/1.1\r\n\r\n"
	heads := []string{"GET / HTTP/1.1\r\nX: y\r\n\r\n", "GET / HTTP/1.1\n\n", large, "a\r\n\n", "b\n\r\n"}
	for _, n := range []int{1, 2, 3, 7, 1 << 20} {
		r := Reader{Src: pieces{strings.NewReader("\r\n\n\r\n" + strings.Join(heads, "\r\n")), n}}
		for _, want := range heads {
			got, err := r.ReadHead(64<<10, true)
			if string(got) != want || err != nil {
				t.Fatalf("in pieces of %d: got %.50q, %v, want %.50q", n, got, err, want)
			}
		}
		if _, err := r.ReadHead(64<<10, true); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
		if r.Release(); r.buf != nil {
			t.Error("an empty Reader holds a buffer")
		}
		for _, endless := range []string{"x", "\r\n"} {
			r := Reader{Src: pieces{strings.NewReader(strings.Repeat(endless, 100<<10)), n}}
			if _, err := r.ReadHead(64<<10, true); !errors.Is(err, ErrTooLarge) {
				t.Errorf("endless %q in pieces of %d: %v", endless, n, err)
			}
			r = Reader{Src: pieces{strings.NewReader(strings.Repeat("x", 100<<10)), n}}
			if _, err := r.ReadTrailer(64 << 10); !errors.Is(err, ErrTooLarge) {
				t.Errorf("endless trailer in pieces of %d: %v", n, err)
			}
		}
	}
	r := Reader{Src: strings.NewReader("\r\nHTTP/1.1 200 OK\r\n\r\n")}
	b, err := r.ReadHead(100, false)
	if err == nil {
		err = new(Head).ParseResponse(b)
	}
	if !errors.Is(err, ErrMalformed) {
		t.Errorf("an empty line before a response: %v", err)
	}
}

// What a head says does not change when it is passed on: the next reader sees the same.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\nX: y\r\n\r\n",
		"POST / HTTP/1.0\nContent-Length: 5, 5\nTransfer-Encoding: chunked\n\n",
		"HTTP/1.1 200 OK\r\nContent-Length : 2\r\nX: a\r\n b\r\n\r\n",
		"HTTP/1.1 204\r\nTransfer-Encoding: Chunked\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := Reader{Src: bytes.NewReader(in)}
		b, err := r.ReadHead(1<<20, true)
		if err != nil {
			return
		}
		first := bytes.Clone(b)
		for _, request := range []bool{true, false} {
			parse := func(h *Head, b []byte) (Body, error) {
				if request {
					if err := h.ParseRequest(b); err != nil {
						return Body{}, err
					}
					return h.RequestBody()
				}
				if err := h.ParseResponse(b); err != nil {
					return Body{}, err
				}
				return h.ResponseBody(false)
			}
			var h, again Head
			body, err := parse(&h, bytes.Clone(first))
			if err != nil {
				continue
			}
			h.EndToEnd(true)
			out := passOn(&h)
			if strings.Count(out, "\r") != strings.Count(out, "\n") || strings.Contains(out, "\x00") {
				t.Fatalf("%q is passed on as %q", first, out)
			}
			r := Reader{Src: strings.NewReader(out)}
			b, err := r.ReadHead(2<<20, false)
			if err != nil || len(b) != len(out) {
				t.Fatalf("%q is passed on as %q, which is read as %q, %v", first, out, b, err)
			}
			next, err := parse(&again, b)
			if err != nil || next != body || passOn(&again) != out {
				t.Fatalf("%q is passed on as %q, which is %v, %v, and not %v: %q", first, out, next, err, body, passOn(&again))
			}
		}
	})
}

// A coding is the same however its bytes arrive, and a strict reader takes less.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"3\r\nabc\r\n0\r\n\r\n", "0;a=b\r\nX: y\r\n\r\n", "3 \r\nabc\r\n00\r\n", "ffffffff\r\n", "1\na"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		piece = max(1, min(piece, 100))
		whole, rest, err := scan(string(in), false, len(in)+1)
		content, rest2, err2 := scan(string(in), false, piece)
		if content != whole || rest != rest2 || (err == nil) != (err2 == nil) {
			t.Errorf("%q: %q, %q, %v at once, %q, %q, %v in pieces", in, whole, rest, err, content, rest2, err2)
		}
		strict, rest3, err3 := scan(string(in), true, piece)
		if err3 == nil && (strict != whole || rest3 != rest || err != nil) {
			t.Errorf("%q: %q, %q strictly, %q, %q, %v else", in, strict, rest3, whole, rest, err)
		}
	})
}

// A Reader that waits has no buffer.
func TestReaderWaits(t *testing.T) {
	heads := []string{"a\r\n\r\n", "b\r\nc: d\r\n\r\n"}
	var r Reader
	src := strings.NewReader(heads[0] + heads[1][:3])
	rest := strings.NewReader(heads[1][3:])
	r.Src = rest // where there is a part already
	r.ReadReady = func(get func() []byte, drop func()) (int, error) {
		if r.buf != nil {
			t.Error("it waits with a buffer")
		}
		get()
		drop() // there was nothing after all
		if r.buf != nil {
			t.Error("it goes on waiting with a buffer")
		}
		return src.Read(get())
	}
	for _, want := range heads {
		if b, err := r.ReadHead(100, true); string(b) != want || err != nil {
			t.Fatalf("got %q, %v, want %q", b, err, want)
		}
	}
	if _, err := r.ReadHead(100, true); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// A large buffer is given back when its bytes fit into an ordinary one.
func TestTrim(t *testing.T) {
	head := "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n"
	for _, behind := range []int{0, 1, 1 << 10, 30 << 10, 40 << 10} {
		tail := strings.Repeat("y", behind)
		r := Reader{Src: strings.NewReader(head + tail)}
		if b, err := r.ReadHead(256<<10, true); string(b) != head || err != nil {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		for len(r.Buffered()) < behind {
			if err := r.Fill(); err != nil {
				break // the buffer is full
			}
		}
		fits := len(r.Buffered()) <= bufferSize
		if got := r.Trim(); got != fits || got && len(r.buf) > bufferSize {
			t.Errorf("%d bytes behind the head: %t, and the buffer has %d", behind, got, len(r.buf))
		}
		for len(r.Buffered()) < behind {
			if err := r.Fill(); err != nil {
				t.Fatal(err)
			}
		}
		if string(r.Buffered()) != tail {
			t.Errorf("%d bytes behind the head: %d came", behind, len(r.Buffered()))
		}
	}
}
