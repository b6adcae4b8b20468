package website

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// A watch looks for requests for a tunnel in what a visitor says. It holds nothing up:
// otherwise the time until an answer would depend on what was asked. A request is seen where
// it begins a write of the visitor's, as those of clients do, and those that a CDN passes
// on. The watch follows the bodies, too: through a CDN, a visitor can write one that looks
// like a request, with an X-Forwarded-For that is not the CDN's.
type watch struct {
	head    []byte // of a request, or of a chunk, that is not complete
	begins  bool   // the head begins a write
	body    int64  // bytes that are still to come, of a body or of a chunk with its end
	chunked bool   // the body is in chunks (RFC 9112 section 7.1)
	trailer bool   // the last chunk is over
	lost    bool   // nobody knows where the next request begins
}

// maxTunnelHead bounds a head with a request for a tunnel, and maxChunkHead that of a chunk,
// in bytes.
const (
	maxTunnelHead = 16 << 10
	maxChunkHead  = 4 << 10
)

// see looks at the next bytes, a write of the visitor's. If they complete the head of a
// request that began a write, it gives the request, and what follows it.
func (w *watch) see(p []byte) (r *http.Request, rest []byte) {
	for first := true; len(p) > 0 && !w.lost; first = false {
		switch {
		case w.body > 0:
			n := min(w.body, int64(len(p)))
			w.body -= n
			p = p[n:]
		case w.chunked:
			var line []byte
			if line, p = w.until(p, "\n", maxChunkHead); line != nil {
				w.chunk(strings.TrimRight(string(line), "\r\n"))
			}
		default:
			if len(w.head) == 0 {
				w.begins = first
			}
			var head []byte
			if head, p = w.until(p, "\r\n\r\n", maxTunnelHead); head == nil {
				break
			}
			if found := w.request(head); found != nil && w.begins {
				r, rest = found, p
			}
		}
	}
	return r, rest
}

// until gives what came up to an end, and what follows. Before the end, it keeps what came.
func (w *watch) until(p []byte, end string, most int) (whole, rest []byte) {
	if len(w.head) > 0 {
		w.head = append(w.head, p...)
		p = w.head
	}
	i := bytes.Index(p, []byte(end))
	switch {
	case i >= 0:
		w.head = nil
		return p[:i+len(end)], p[i+len(end):]
	case len(p) > most:
		w.head, w.lost = nil, true
	case len(w.head) == 0:
		w.head = bytes.Clone(p)
	}
	return nil, nil
}

// request reads a head, and notes what body follows. It gives nil if the request is not
// well-formed.
func (w *watch) request(head []byte) *http.Request {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	framed := r
	if err != nil {
		// The server may understand a path that net/http does not.
		_, fields, _ := bytes.Cut(head, []byte("\n"))
		framed, err = http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader("POST / HTTP/1.1\r\n"), bytes.NewReader(fields))))
		r = nil
	}
	switch {
	case err != nil, framed.Method == http.MethodConnect,
		bytes.Count(head, []byte("\n")) != bytes.Count(head, []byte("\r\n")): // the head may end earlier
		w.lost = true
	case framed.ContentLength > 0:
		w.body = framed.ContentLength
	case len(framed.TransferEncoding) > 0:
		w.chunked = true
	}
	if w.lost || r == nil || !isWellFormed(r, head) {
		return nil
	}
	return r
}

// chunk reads a line before a chunk, or one of the trailer.
func (w *watch) chunk(line string) {
	if w.trailer {
		w.chunked, w.trailer = line != "", line != ""
		return
	}
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 62)
	switch {
	case err != nil:
		w.lost = true
	case n == 0:
		w.trailer = true
	default:
		w.body = int64(n) + int64(len("\r\n"))
	}
}

// isWellFormed tells whether net/http's server would take a request, too.
func isWellFormed(r *http.Request, head []byte) bool {
	hosts := 0
	for line := range bytes.Lines(head) {
		if name, _, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Host")) {
			hosts++
		}
	}
	if hosts != 1 || !httpguts.ValidHostHeader(r.Host) {
		return false
	}
	for name, values := range r.Header {
		for _, value := range values {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
				return false
			}
		}
	}
	return true
}
