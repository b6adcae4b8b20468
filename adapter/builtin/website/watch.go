package website

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
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
			if line, p = w.until(p, "\n"); line != nil {
				w.chunk(strings.TrimRight(string(line), "\r\n"))
			} else if len(w.head) > maxChunkHead {
				w.head, w.lost = nil, true
			}
		default:
			if len(w.head) == 0 {
				w.begins = first
			}
			var head []byte
			if head, p = w.until(p, "\r\n\r\n"); head == nil {
				if len(w.head) > maxTunnelHead {
					w.shorten()
				}
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
func (w *watch) until(p []byte, end string) (whole, rest []byte) {
	if len(w.head) > 0 {
		w.head = append(w.head, p...)
		p = w.head
	}
	i := bytes.Index(p, []byte(end))
	switch {
	case i >= 0:
		w.head = nil
		return p[:i+len(end)], p[i+len(end):]
	case len(w.head) == 0:
		w.head = bytes.Clone(p)
	}
	return nil, nil
}

// shorten takes from a long head what does not say which body follows. Such a head asks for
// no tunnel, but the next one may: behind a CDN it is another visitor's.
func (w *watch) shorten() {
	w.begins = false
	lines := bytes.Split(w.head, []byte("\r\n"))
	end := len(lines) - 1 // this line is not complete
	var kept [][]byte
	for i, line := range lines {
		name, value, ok := bytes.Cut(line, []byte(":"))
		isField := ok && httpguts.ValidHeaderFieldName(string(name))
		frames := bytes.EqualFold(name, []byte("Content-Length")) || bytes.EqualFold(name, []byte("Transfer-Encoding"))
		switch {
		case bytes.Contains(line, []byte("\n")), i > 0 && i < end && !isField:
			w.lost = true
		case i == 0 || frames || i == end && len(value) == 0:
			kept = append(kept, line)
		case i == end:
			kept = append(kept, slices.Concat(line[:len(name)+1], line[len(line)-1:])) // it may end in half of a line's end
		}
	}
	w.head = bytes.Join(kept, []byte("\r\n"))
	if w.lost = w.lost || len(w.head) > maxTunnelHead; w.lost {
		w.head = nil
	}
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
	case err != nil, framed.Method == http.MethodConnect, hasOddName(framed.Header),
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

// hasOddName tells whether a field has a name in which a server may see another one.
func hasOddName(h http.Header) bool {
	for name := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return true
		}
	}
	return false
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
	for _, values := range r.Header {
		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) {
				return false
			}
		}
	}
	return true
}
