package website

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"

	"ptgate/adapter"
)

// An origin is a server that is the decoy.
//
// What a visitor says in HTTP/1 goes to it byte for byte, over a connection of its own, and
// so do the answers. So the visitor meets the server itself: its errors, the order of its
// fields, and how it ends a connection. HTTP/2 is spoken here, by net/http, because few
// servers speak it without TLS.
type origin struct {
	url      *url.URL
	tls      *tls.Config // nil: it speaks no TLS
	log      *slog.Logger
	failures adapter.LogLimit
	web      *http.Transport // for HTTP/2
}

const (
	// A visitor that says nothing for so long is connected all the same: it is the
	// server's to lose patience.
	originPatience = time.Second

	// A connection ends on which nothing moves for so long.
	originIdle = 10 * time.Minute

	// After the server's end, what a visitor still says is passed on for so long.
	originLinger = 5 * time.Second

	originBuffer = 8 << 10 // bytes, for each direction
)

func newOrigin(text string, logger *slog.Logger) (*origin, error) {
	u, err := upstream(text)
	if err != nil {
		return nil, err
	}
	o := &origin{url: u, log: logger}
	if u.Scheme == "https" {
		o.tls = &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}}
	}
	o.web = &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return o.dialTCP(ctx) },
		TLSClientConfig:     o.tls,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true, // it would add a field to requests, and change answers
	}
	return o, nil
}

// A halfCloser is a connection of TCP, or of TLS over it.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func (o *origin) dialTCP(ctx context.Context) (net.Conn, error) {
	port := o.url.Port()
	if port == "" {
		port = o.url.Scheme // its name is that of the port
	}
	dialer := net.Dialer{Timeout: 10 * time.Second}
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(o.url.Hostname(), port))
}

func (o *origin) dial(ctx context.Context) (halfCloser, error) {
	c, err := o.dialTCP(ctx)
	if err != nil {
		return nil, err
	}
	if o.tls == nil {
		return c.(halfCloser), nil
	}
	secure := tls.Client(c, o.tls)
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return secure, nil
}

func (o *origin) failed(err error) {
	o.failures.Log(o.log, slog.LevelWarn, "the decoy does not answer", "error", adapter.WithoutAddresses(err))
}

// handler passes requests of HTTP/2 on.
func (o *origin) handler() http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = o.url.Scheme, o.url.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery // also one that net/url does not understand
			r.Out.Host = hostOf(r.In)
		},
		Transport: o.web,
		// A short answer goes out with its end, as from net/http; a slow one as it comes.
		FlushInterval: 10 * time.Millisecond,
		ErrorLog:      log.New(io.Discard, "", 0),
		ModifyResponse: func(r *http.Response) error {
			if r.Close && r.ProtoAtLeast(1, 1) {
				r.Header.Set("Connection", "close") // net/http says it in HTTP/2's way
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				panic(http.ErrAbortHandler) // the server gives no answer, either
			}
			if r.Context().Err() == nil {
				o.failed(err)
			}
			clear(w.Header())
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The server's, or none.
		w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
		proxy.ServeHTTP(w, r)
	})
}

// hostOf is the host that r names. If it names none, it is where the visitor has come to:
// without any, net/http would name the server's own address, which visitors are not to see.
func hostOf(r *http.Request) string {
	if r.Host != "" {
		return r.Host
	}
	if r.TLS != nil && r.TLS.ServerName != "" {
		return r.TLS.ServerName
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return a.String()
	}
	return ""
}

// plainHTTP is what net/http says to a visitor that has forgotten TLS.
const plainHTTP = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"

// welcome does the TLS handshake as net/http would, and lets the origin serve the visitor.
func (s *Site) welcome(v *visitor) {
	client := tls.Server(v, s.server.TLSConfig)
	_ = v.SetDeadline(time.Now().Add(headTimeout))
	if err := client.HandshakeContext(v.ctx); err != nil {
		if e, ok := errors.AsType[tls.RecordHeaderError](err); ok && e.Conn != nil && looksLikeHTTP(e.RecordHeader) {
			_, _ = io.WriteString(v, plainHTTP)
		}
		_ = v.Close()
		return
	}
	_ = v.SetDeadline(time.Time{})
	switch client.ConnectionState().NegotiatedProtocol {
	case "h2":
		select {
		case s.visitors.arrived <- client:
		case <-s.ctx.Done():
			_ = client.Close()
		}
	case "", "http/1.1":
		v.leave() // what the visitor says goes on at once
		s.relay(v, client)
	default: // an authority has seen what it wants to see
		_ = client.Close()
	}
}

func looksLikeHTTP(head [5]byte) bool {
	return slices.Contains([]string{"GET /", "HEAD ", "POST ", "PUT /", "OPTIO"}, string(head[:]))
}

// relay passes bytes between a visitor and the origin, until both have ended, or the visitor
// asks for a tunnel.
func (s *Site) relay(v *visitor, client *tls.Conn) {
	unwatch := context.AfterFunc(v.ctx, func() { _ = v.Close() })
	defer unwatch()
	buf := make([]byte, originBuffer)
	_ = client.SetReadDeadline(time.Now().Add(originPatience))
	n, err := client.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	_ = client.SetReadDeadline(time.Time{})
	var w watch
	if answer, rest, ok := s.asked(v, &w, buf[:n]); ok {
		v.openRelayed(client, answer, rest, unwatch)
		return
	}
	server, dialErr := s.origin.dial(v.ctx)
	if dialErr != nil {
		if v.ctx.Err() == nil {
			s.origin.failed(dialErr)
		}
		// A tunnel needs no origin.
		_ = client.SetReadDeadline(time.Now().Add(headTimeout))
		for err == nil && (n == 0 || len(w.head) > 0) {
			n, err = client.Read(buf)
			if answer, rest, ok := s.asked(v, &w, buf[:n]); ok {
				v.openRelayed(client, answer, rest, unwatch)
				return
			}
		}
		if n > 0 {
			_, _ = io.WriteString(client, "HTTP/1.1 502 Bad Gateway\r\nDate: "+time.Now().UTC().Format(http.TimeFormat)+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
		_ = client.Close()
		return
	}
	defer server.Close()
	stop := context.AfterFunc(v.ctx, func() { _ = server.Close() })
	defer stop()
	idle := time.AfterFunc(originIdle, func() {
		_ = server.Close()
		_ = v.Close()
	})
	defer idle.Stop()
	var opening atomic.Bool  // the visitor has asked for a tunnel
	var switched atomic.Bool // the server has agreed to speak something else than HTTP
	answered := make(chan struct{})
	s.serving.Go(func() {
		defer close(answered)
		err := passOn(client, server, idle, &switched)
		switch {
		case opening.Load():
		case err == io.EOF:
			_ = client.CloseWrite()
			_ = v.CloseWrite()
			_ = client.SetReadDeadline(time.Now().Add(originLinger))
		default:
			_ = server.Close()
			_ = client.Close()
		}
	})
	for {
		if n > 0 {
			if _, err := server.Write(buf[:n]); err != nil {
				break
			}
			idle.Reset(originIdle)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			_ = server.CloseWrite()
			break
		}
		if err != nil {
			_ = server.Close()
			break
		}
		n, err = client.Read(buf)
		w.lost = w.lost || switched.Load()
		if answer, rest, ok := s.asked(v, &w, buf[:n]); ok {
			opening.Store(true)
			idle.Reset(originIdle) // the visitor may not read what the server has said
			_ = server.Close()
			<-answered
			v.openRelayed(client, answer, rest, unwatch)
			return
		}
	}
	<-answered
	_ = client.Close()
}

// asked looks at the next bytes of a visitor. If they ask for a tunnel, it gives the answer, and
// what follows them.
func (s *Site) asked(v *visitor, w *watch, p []byte) (answer string, rest []byte, ok bool) {
	r, rest := w.see(p)
	if r == nil {
		return "", nil, false
	}
	answer, ok = s.tunnel(v.Conn, r)
	return answer, rest, ok
}

// passOn copies until an error, which is io.EOF at from's end. It notes that from agrees to
// an upgrade.
func passOn(to io.Writer, from io.Reader, idle *time.Timer, switched *atomic.Bool) error {
	buf := make([]byte, originBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			idle.Reset(originIdle)
			if bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 101 ")) {
				switched.Store(true)
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// openRelayed writes the answer to the visitor, who then has a tunnel.
func (v *visitor) openRelayed(client *tls.Conn, answer string, rest []byte, unwatch func() bool) {
	if !unwatch() {
		_ = client.Close()
		return
	}
	v.tunnel, v.rest = client, rest
	if _, v.err = io.WriteString(client, answer); v.err == nil {
		v.err = client.SetDeadline(time.Time{})
	}
	if v.err != nil {
		_ = v.Conn.Close()
	}
	close(v.opened)
}

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
