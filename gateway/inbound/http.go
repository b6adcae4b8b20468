package inbound

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/gateway/destination"
	"ptgate/gateway/http1"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const (
	// maxHeader bounds the head of a request, and a trailer section. A few requests at a
	// time may have a head of up to largeHeader, so that clients can't take much memory.
	maxHeader   = 64 << 10
	largeHeader = 256 << 10
	maxLarge    = 32
	// keepAlive is how long a client's connection may wait for its next request.
	keepAlive = 2 * time.Minute
)

// An httpConn is a connection of the HTTP front. Its requests are served one after the
// other. goproxy decides about each one, and dispatches it: to a refusal, to a tunnel, or
// to the origin. How the messages are read and passed on is up to this package.
type httpConn struct {
	*client
	in http1.Reader // what the client sends

	// The request that is being served:
	*scratch
	body     http1.Body
	request  *http.Request // what goproxy gets of it
	url      url.URL
	path     string // of the target URI, as written, with the query
	w        responder
	user     string
	target   routes.Target // where a plain request goes
	plain    bool          // goproxy has let a plain request through
	hijacked bool          // goproxy has taken the connection for a tunnel
	large    bool          // it is one of the few with a large head

	// The last credentials that were right, as sent, and the settings by which they were.
	checked   string
	checkedBy *Settings

	// The tunnel:
	answer   string      // before the tunnel, or in its place
	upstream stream.Conn // its destination
	early    []byte      // what the client has sent behind its request

	origin *originConn // the connection of the last plain request; nil: there is none

	watch clientWatch
	moved atomic.Int64 // bytes from origins and to them
}

// A scratch is memory that only a request needs, and not a connection.
type scratch struct {
	head http1.Head // of the request
	resp http1.Head // of the response
	out  []byte     // what is being written
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// keepOut bounds what out keeps from one request to the next.
const keepOut = 64 << 10

// clientReader is the client's connection for the reader of messages.
type clientReader struct{ *client }

func (c clientReader) Read(p []byte) (int, error) { return c.client.read(p, isHTTP) }

func (c clientReader) readReady(get func() []byte, drop func()) (int, error) {
	if s := c.Conn.Socket(); s.Plain && c.begun.Load() {
		return stream.ReadReady(s.TCP, get, drop)
	}
	if err := c.Conn.WaitRead(); err != nil {
		return 0, err
	}
	return c.client.read(get(), isHTTP)
}

// serveHTTP serves requests until the connection ends, or until one has become a tunnel.
func (c *client) serveHTTP() {
	h := &httpConn{client: c}
	h.in.Src, h.in.ReadReady = clientReader{c}, clientReader{c}.readReady
	h.request = new(http.Request).WithContext(context.WithValue(c.l.cut, connKey{}, h))
	h.w.h = h
	h.watch.init(h)
	defer h.release()
	asked, ended := false, false
	for {
		b, err := h.readHead(asked)
		if err != nil && !errors.Is(err, http1.ErrTooLarge) {
			ended = err == io.EOF
			h.noRequest(err, asked)
			break
		}
		asked = true
		if !h.engage() {
			break
		}
		h.scratch = scratches.Get().(*scratch)
		keep := h.serveRequest(b, err)
		if cap(h.out) > keepOut {
			h.out = nil
		}
		scratches.Put(h.scratch)
		h.scratch = nil
		h.endLarge()
		if !keep {
			break
		}
		// A stop closes the connection either here or in the method end.
		h.phase.CompareAndSwap(engaged, waiting)
		if c.l.stop.Err() != nil {
			break
		}
	}
	h.release()
	switch {
	case h.relay != nil:
	case ended && h.failed != errForeign: // nothing is unread
		c.Conn.Close()
	default:
		c.linger()
	}
}

// readHead waits for a request and reads its head. The bytes are good until the next read
// from the client.
func (h *httpConn) readHead(next bool) ([]byte, error) {
	due := h.due
	if next {
		if err := h.awaitRequest(time.Now().Add(h.atMostIdle(keepAlive))); err != nil {
			return nil, err
		}
		due = time.Time{}
		if d := h.handshake(); d > 0 {
			due = time.Now().Add(d)
		}
	} else if err := h.awaitRequest(due); err != nil {
		return nil, err
	}
	h.Conn.SetReadDeadline(due)
	b, err := h.in.ReadHead(maxHeader, true)
	if errors.Is(err, http1.ErrTooLarge) && (h.large || h.l.server.large.Acquire()) {
		h.large = true
		b, err = h.in.ReadHead(largeHeader, true)
	}
	return b, err
}

// release gives back what the connection has beside itself.
func (h *httpConn) release() {
	h.leaveOrigin()
	h.in.Discard(len(h.in.Buffered()))
	h.endLarge()
}

// endLarge ends a request with a large head. What the client has sent behind it may still
// need the memory.
func (h *httpConn) endLarge() {
	if h.large && h.in.Trim() {
		h.large = false
		h.l.server.large.Release()
	}
}

// noRequest ends a connection on which no complete head has come. A client that has sent
// a part of one may still read, and gets an answer (RFC 9112 section 8, RFC 9110 section
// 15.5.9).
func (h *httpConn) noRequest(err error, asked bool) {
	part := len(bytes.Trim(h.in.Buffered(), "\r\n")) > 0
	switch reason := unfinishedReason(err); {
	case h.failed == errForeign:
		h.foreign()
	case part || !asked:
		h.unfinished(err)
		if part && reason != answer.Success && h.engage() {
			h.Conn.SetWriteDeadline(time.Now().Add(lastAnswer))
			h.Conn.Write(pageOf(reason).message(true, false))
		}
	}
}

// awaitRequest returns when there are bytes from the client. After some time it leaves the
// connection to the origin.
func (h *httpConn) awaitRequest(until time.Time) error {
	if len(h.in.Buffered()) > 0 {
		return nil
	}
	if h.origin != nil {
		h.origin.in.Release()
		h.Conn.SetReadDeadline(time.Now().Add(h.atMostIdle(idleOrigin)))
		if err := h.in.Fill(); !isTimeout(err) {
			return err
		}
		h.leaveOrigin()
	}
	h.Conn.SetReadDeadline(until)
	return h.in.Fill()
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

// serveRequest serves one request, and tells whether the connection may have another one.
func (h *httpConn) serveRequest(head []byte, err error) bool {
	h.set = h.l.server.cfg.Settings()
	h.Conn.SetReadDeadline(time.Time{})
	h.user, h.plain, h.body = "", false, http1.Body{}
	h.w.reset()
	if err != nil {
		h.head = http1.Head{Fields: h.head.Fields[:0]}
	} else {
		err = h.parse(head)
	}
	if err != nil {
		err = answer.New(reasonOf(err), err)
		h.refused(routes.Target{}, err)
		return h.write(pageOf(answer.Of(err)), false)
	}
	h.l.web.proxy.ServeHTTP(&h.w, h.request)
	switch {
	case h.hijacked && h.upstream != nil:
		h.tunnel()
		return false
	case h.hijacked:
		io.WriteString(h.Conn, h.answer)
		return false
	case h.plain:
		return h.pass()
	}
	return h.write(h.w.page(), h.keeps())
}

// parse reads a request, and makes of it what goproxy needs.
func (h *httpConn) parse(b []byte) (err error) {
	if err := h.head.ParseRequest(b); err != nil {
		return err
	}
	if h.body, err = h.head.RequestBody(); err != nil {
		return err
	}
	// RFC 9112 section 3.2
	if n := h.head.Count(http1.Host); n > 1 || n == 0 && h.head.Minor > 0 && !h.head.Is(http.MethodConnect) {
		return errHost
	}
	if h.body.Framing == http1.Chunked {
		// Nothing of a request whose first bytes make no sense goes to an origin.
		c := http1.Chunks{Strict: true}
		if _, _, err := c.Scan(h.in.Buffered()); err != nil {
			return err
		}
	}
	r := h.request
	r.Method = string(h.head.Method)
	r.RequestURI = string(h.head.Target)
	r.URL = &h.url
	h.url = url.URL{Path: "/"}
	if scheme, authority, path, ok := cutURI(r.RequestURI); ok {
		h.url.Scheme, h.url.Host, h.path = strings.ToLower(scheme), authority, path
	}
	r.Header = http.Header{}
	if v := h.head.Get(http1.ProxyAuthorization); v != nil {
		r.Header["Proxy-Authorization"] = []string{string(v)}
	}
	return nil
}

var errHost = answer.Errorf(answer.Malformed, "not one Host field")

// reasonOf is the reason for an error of package http1.
func reasonOf(err error) answer.Reason {
	switch {
	case errors.Is(err, http1.ErrTooLarge):
		return answer.TooLarge
	case errors.Is(err, http1.ErrVersion):
		return answer.Version
	case errors.Is(err, http1.ErrCoding):
		return answer.Coding
	}
	return answer.Malformed
}

// keeps tells whether the client's connection may have another request after an answer of
// the gateway's own. Content that has not come yet is not waited for.
func (h *httpConn) keeps() bool {
	if !h.persists() {
		return false
	}
	b := h.in.Buffered()
	switch h.body.Framing {
	case http1.None:
		return true
	case http1.Length:
		if h.body.Length <= int64(len(b)) {
			h.in.Discard(int(h.body.Length))
			return true
		}
	case http1.Chunked:
		c := http1.Chunks{Strict: true}
		n, whole, _ := c.Scan(b)
		h.in.Discard(n)
		return whole
	}
	return false
}

// persists tells whether the request leaves its connection open (RFC 9112 section 9.3: a
// proxy keeps no connection with a client of HTTP/1.0).
func (h *httpConn) persists() bool {
	return h.head.Minor > 0 && !h.head.Has(http1.Connection, "close") && !h.head.Has(http1.ProxyConnection, "close") &&
		!h.over && h.l.stop.Err() == nil
}

// write sends a page with one write, and returns keep if that has worked.
func (h *httpConn) write(p page, keep bool) bool {
	_, err := h.Conn.Write(p.message(!keep, h.head.Is(http.MethodHead)))
	return err == nil && keep
}

// tunnel sends the answer to a CONNECT or an upgrade, and gives the connection to the
// relay.
func (h *httpConn) tunnel() {
	if _, err := io.WriteString(h.Conn, h.answer); err != nil {
		h.upstream.Close()
		h.Conn.Close()
		return
	}
	h.join(h.upstream, h.early)
}

type connKey struct{}

func connOf(r *http.Request) *httpConn { return r.Context().Value(connKey{}).(*httpConn) }

// admit tells whether a request may be served; an error says why not.
func (h *httpConn) admit(r *http.Request) error {
	if h.over {
		return answer.Errorf(answer.Limit, "there are as many connections as there may be")
	}
	if h.l.stop.Err() != nil {
		return answer.Errorf(answer.Limit, "the gateway is about to stop")
	}
	if len(h.set.Users) == 0 {
		return nil
	}
	field := r.Header.Get("Proxy-Authorization")
	user, password, ok := basicAuth(field)
	if !ok {
		return answer.Errorf(answer.Credentials, "no user name and password")
	}
	// A connection is checked once, until its credentials or the settings change.
	if field != h.checked || h.set != h.checkedBy {
		if !h.valid(user, password) {
			return answer.New(answer.Credentials, errWrong)
		}
		h.checked, h.checkedBy = field, h.set
	}
	h.user = user
	return nil
}

// basicAuth reads the credentials of RFC 7617 section 2.
func basicAuth(field string) (user, password string, ok bool) {
	const scheme = "Basic "
	if len(field) < len(scheme) || !strings.EqualFold(field[:len(scheme)], scheme) {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(field[len(scheme):]))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}

// connect is goproxy's CONNECT handler (RFC 9110 section 9.3.6).
func (l *listener) connect(_ string, ctx *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
	h := connOf(ctx.Req)
	conn, target, err := h.open(ctx.Req)
	if err != nil {
		h.refused(target, err)
		if !errors.Is(err, errGone) { // nobody reads an answer
			h.answer = string(pageOf(answer.Of(err)).message(true, false))
		}
		return l.web.hijack, ""
	}
	h.upstream = conn
	h.answer = "HTTP/1.1 200 Connection established\r\n\r\n"
	return l.web.hijack, ""
}

func (h *httpConn) open(r *http.Request) (stream.Conn, routes.Target, error) {
	if err := h.admit(r); err != nil {
		return nil, routes.Target{}, err
	}
	target, err := destination.Parse(r.RequestURI)
	if err != nil {
		return nil, target, answer.New(answer.BadRequest, err)
	}
	if h.body.Framing != http1.None {
		return nil, target, answer.Errorf(answer.BadRequest, "a CONNECT request with content")
	}
	h.leaveOrigin()
	if b := h.in.Buffered(); len(b) > 0 {
		h.early = bytes.Clone(b)
		h.in.Discard(len(b))
	}
	h.in.Release()
	ctx, stop := h.client.watch(h.l.cut, len(h.early) > 0)
	conn, err := h.l.dial(ctx, h.set, target)
	stop()
	return conn, target, err
}

// foreign answers a client that speaks something else.
func (h *httpConn) foreign() {
	switch h.first {
	case byteSOCKS5:
		h.client.foreign(protocol{"socks5", "set the program to a port of listen.mixed or listen.socks5, or to HTTP"})
		h.Conn.Write(socks5.AppendMethod(nil, socks5.NoMethod))
	case byteSOCKS4:
		h.client.foreign(protocol{"socks4", "set the program to a port of listen.mixed, or to HTTP"})
		io.WriteString(h.Conn, socks4Rejected)
	case byteTLS:
		h.client.foreign(protocol{"tls", "the proxy's own address begins with http://, also for https:// pages"})
	default:
		h.client.foreign(protocol{"unknown", "this port takes HTTP only: listen.mixed has ports for SOCKS, too"})
	}
}

func isHTTP(first byte) bool {
	return ' ' <= first && first <= '~' || first == '\r' || first == '\n'
}

// A responder is the http.ResponseWriter that goproxy gets. It keeps what goproxy answers
// until the whole answer can be sent with one write. It is nothing where the request is
// passed on, or becomes a tunnel.
type responder struct {
	h      *httpConn
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *responder) reset() {
	w.status = 0
	w.header = nil
	w.body.Reset()
}

func (w *responder) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

func (w *responder) WriteHeader(status int) { w.status = status }

func (w *responder) Write(b []byte) (int, error) { return w.body.Write(b) }

// page is the answer.
func (w *responder) page() page {
	if w.status == 0 {
		return pageOf(answer.Internal)
	}
	return page{w.status, w.header, w.body.Bytes()}
}

// Hijack gives goproxy a connection that does nothing: the owner of the client's
// connection answers when goproxy has returned.
func (w *responder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.h.hijacked = true
	return detached{w.h.Conn}, new(bufio.ReadWriter), nil
}

// detached is a client's connection in goproxy's hands.
type detached struct{ net.Conn }

func (detached) Read([]byte) (int, error)    { return 0, io.EOF }
func (detached) Write(p []byte) (int, error) { return len(p), nil }
func (detached) Close() error                { return nil }

// A web has what all connections of an HTTP listener share.
type web struct {
	proxy  *goproxy.ProxyHttpServer
	hijack *goproxy.ConnectAction

	// What is counted of tunnels, too.
	relays, up, down *atomic.Int64
}

func newWeb(l *listener) *web {
	w := &web{
		// Nothing is sent here, because goproxy would send it in many small writes.
		hijack: &goproxy.ConnectAction{
			Action: goproxy.ConnectHijack,
			Hijack: func(*http.Request, net.Conn, *goproxy.ProxyCtx) {},
		},
		relays: l.book.Counter(outcome.Relays, outcome.By()),
		up:     l.book.Counter(outcome.Up, outcome.By()),
		down:   l.book.Counter(outcome.Down, outcome.By()),
	}
	p := goproxy.NewProxyHttpServer()
	p.Logger = l.quiet
	p.ConnectDial = nil // the constructor takes one from the environment
	p.Tr = &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, answer.Errorf(answer.Internal, "a request that was not prepared")
	}}
	p.KeepAcceptEncoding = true
	p.NonproxyHandler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		connOf(r).refused(routes.Target{}, answer.Errorf(answer.BadRequest, "no proxy request"))
		helpPage().answer(rw)
	})
	p.OnRequest().HandleConnectFunc(l.connect)
	p.OnRequest().DoFunc(l.request)
	w.proxy = p
	return w
}
