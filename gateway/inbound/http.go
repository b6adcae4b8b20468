package inbound

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/gateway/credentials"
	"ptgate/gateway/destination"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const (
	// maxHeader bounds a request's line and header, and a response's.
	maxHeader = 64 << 10
	// keepAlive is how long a client's connection may wait for its next request.
	keepAlive = 2 * time.Minute
	// lastWait is how long an origin may be silent when the client has ended its
	// side. Such a client may have gone away.
	lastWait = 2 * time.Minute
)

// serveHTTP lets net/http read requests and goproxy serve them. If a request has become
// a tunnel, it leaves the connection to the relay.
func (c *client) serveHTTP() {
	h := &httpConn{client: c, done: make(chan struct{})}
	// Each connection has a server of its own. It is small, has the settings of its
	// connection, and frees its buffers when the connection has become a tunnel.
	srv := http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            c.handshake(),
		IdleTimeout:                  keepAlive,
		MaxHeaderBytes:               maxHeader,
		ConnState:                    h.state,
		BaseContext:                  h.context,
		ErrorLog:                     c.l.quiet,
		TLSNextProto:                 c.l.web.noHTTP2,
		DisableGeneralOptionsHandler: true,
	}
	srv.Serve((*onlyConn)(h)) // returns when the connection is closed or hijacked
	h.endReads()
	switch {
	case h.hijacked && h.upstream != nil:
		h.tunnel()
	case h.failed == errForeign:
		h.foreign()
		h.linger()
	case h.hijacked:
		io.WriteString(h.Conn, h.head)
		c.linger()
	default:
		if h.upstream != nil {
			h.upstream.Close()
		}
		if !h.asked {
			h.unfinished(h.failed)
		}
		c.linger()
	}
}

// An httpConn is a connection of the HTTP front. Its requests are served one after the
// other.
type httpConn struct {
	*client
	done     chan struct{} // closed when net/http does not use the connection any more
	doneOnce sync.Once
	given    bool // onlyConn has returned it from Accept

	reading   sync.Mutex // held while net/http reads
	readsOver bool       // net/http must read no more; guarded by reading

	deadline  sync.Mutex
	abandoned bool // nothing more is read from the client; guarded by deadline

	ended atomic.Bool  // the client has ended its side
	moved atomic.Int64 // how many pieces of content have come from origins

	asked bool // there has been a request

	// The request that is being served:
	w        responseWriter
	upload   *upload // its content; nil: none
	user     string
	counted  bool // among the connections that lead to their destination
	broken   bool // the response can't be completed, and the client must see that
	hijacked bool // the connection has been taken from net/http

	head     string      // the last answer: before the tunnel, or in its place
	upstream stream.Conn // the tunnel's destination
	early    []byte      // what the client has sent behind the request
}

// tunnel sends the answer to a CONNECT or an upgrade, and gives the connection to the
// relay.
func (h *httpConn) tunnel() {
	if _, err := io.WriteString(h.Conn, h.head); err != nil {
		h.upstream.Close()
		h.Conn.Close()
		return
	}
	h.join(h.upstream, h.early)
}

type connKey struct{}

// context makes the context of the connection's requests.
func (h *httpConn) context(net.Listener) context.Context {
	return context.WithValue(h.l.cut, connKey{}, h)
}

func connOf(r *http.Request) *httpConn { return r.Context().Value(connKey{}).(*httpConn) }

// state is called by net/http when the state of the connection changes. A stop may close
// the connection between two requests.
func (h *httpConn) state(_ net.Conn, s http.ConnState) {
	switch s {
	case http.StateIdle:
		h.phase.CompareAndSwap(engaged, waiting)
		if h.l.stop.Err() != nil {
			h.Conn.Close()
		}
	case http.StateClosed:
		h.finished()
	}
}

func (h *httpConn) finished() { h.doneOnce.Do(func() { close(h.done) }) }

// ServeHTTP serves one request.
func (h *httpConn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		v := recover()
		h.served()
		if v != nil && v != http.ErrAbortHandler {
			h.l.panicked(h.set, v)
			h.broken = true
		}
		switch {
		case h.hijacked:
			h.finished()
		case v != nil || h.broken:
			panic(http.ErrAbortHandler) // net/http closes the connection and logs nothing
		}
	}()
	h.asked = true
	if !h.engage() {
		panic(http.ErrAbortHandler)
	}
	h.set = h.l.server.cfg.Settings()
	h.user = ""
	h.w = responseWriter{ResponseWriter: w, h: h}
	h.upload = nil
	if r.Method != http.MethodConnect {
		ctx, stop := h.live(r)
		defer stop()
		own := r
		r = r.WithContext(ctx)
		if r.ContentLength != 0 {
			// The origin may answer before it has all the content.
			http.NewResponseController(w).EnableFullDuplex()
			h.upload = &upload{ReadCloser: r.Body, h: h, client: own.Context()}
			defer h.upload.end()
			r.Body = h.upload
		}
	}
	h.l.web.proxy.ServeHTTP(&h.w, r)
}

// live returns a context for a plain request. It ends when the client goes away. Call
// the function when the request has been served.
//
// For net/http, a client that ends its side of the connection has gone away. But a
// client may do that after its last request and still wait for the response (RFC 9112
// section 9.6). Such a client is served as long as content comes.
func (h *httpConn) live(r *http.Request) (context.Context, func()) {
	if !r.Close {
		return r.Context(), func() {}
	}
	ctx, cancel := context.WithCancel(h.context(nil))
	var wg sync.WaitGroup
	wg.Add(1)
	unwatch := context.AfterFunc(r.Context(), func() {
		defer wg.Done()
		if !h.ended.Load() || silent(ctx, lastWait, &h.moved) {
			cancel()
		}
	})
	return ctx, func() {
		if unwatch() {
			wg.Done()
		}
		cancel()
		wg.Wait()
	}
}

// silent waits until moved has not changed for d. False: ctx ended before that.
func silent(ctx context.Context, d time.Duration, moved *atomic.Int64) bool {
	for {
		seen := moved.Load()
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
		}
		if moved.Load() == seen {
			return true
		}
	}
}

// admit tells whether a request may be served; an error says why not.
func (h *httpConn) admit(r *http.Request) error {
	if h.over {
		return answer.Errorf(answer.Limit, "limits.connections is reached")
	}
	if h.l.stop.Err() != nil {
		return answer.Errorf(answer.Limit, "the gateway is about to stop")
	}
	if len(h.set.Users) == 0 {
		return nil
	}
	user, password, ok := basicAuth(r.Header.Get("Proxy-Authorization"))
	if !ok {
		return answer.Errorf(answer.Credentials, "no user name and password")
	}
	if !credentials.Valid(h.set.Users, user, password) {
		return answer.New(answer.Credentials, errWrong)
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
			h.head = pageOf(answer.Of(err)).message()
		}
		return l.web.hijack, ""
	}
	h.upstream = conn
	h.head = "HTTP/1.1 200 Connection established\r\n\r\n"
	return l.web.hijack, ""
}

func (h *httpConn) open(r *http.Request) (stream.Conn, routes.Target, error) {
	if err := h.admit(r); err != nil {
		return nil, routes.Target{}, err
	}
	// RequestURI is what the client wrote; net/http has changed the other fields.
	target, err := destination.Parse(r.RequestURI)
	if err != nil {
		return nil, target, answer.New(answer.BadRequest, err)
	}
	if r.ContentLength != 0 {
		return nil, target, answer.Errorf(answer.BadRequest, "a CONNECT request with content")
	}
	// From here on, net/http does not read the connection. It would take a client for
	// gone that has sent bytes after its request and then ended its side.
	if _, _, err := h.w.Hijack(); err != nil {
		return nil, target, answer.New(answer.Internal, err)
	}
	ctx, stop := h.watch(h.l.cut, len(h.early) > 0)
	conn, err := h.l.dial(ctx, h.set, target)
	stop()
	return conn, target, err
}

// foreign answers a client that speaks something else.
func (h *httpConn) foreign() {
	switch h.first {
	case byteSOCKS5:
		h.client.foreign(protocol{"socks5", "set the program to the port of listen.socks5, or to HTTP"})
		h.Conn.Write(socks5.AppendMethod(nil, socks5.NoMethod))
	case byteSOCKS4:
		h.client.foreign(protocol{"socks4", "set the program to HTTP, or to SOCKS5 and the port of listen.socks5"})
		io.WriteString(h.Conn, socks4Rejected)
	case byteTLS:
		h.client.foreign(protocol{"tls", "the proxy's own address begins with http://, also for https:// pages"})
	default:
		h.client.foreign(protocol{"unknown", "this is an HTTP proxy"})
	}
}

func isHTTP(first byte) bool {
	return ' ' <= first && first <= '~' || first == '\r' || first == '\n'
}

// Read is called by net/http. It ends if another protocol comes.
func (h *httpConn) Read(p []byte) (int, error) {
	h.reading.Lock()
	defer h.reading.Unlock()
	if h.readsOver {
		return 0, io.EOF
	}
	n, err := h.client.read(p, isHTTP)
	if err == io.EOF {
		h.ended.Store(true)
	}
	return n, err
}

// endReads ends net/http's reads. net/http may still read after it has called Close.
// That call does not close the connection, so it does not end the read.
func (h *httpConn) endReads() {
	if h.hijacked {
		return // net/http does not read a hijacked connection
	}
	h.Conn.SetReadDeadline(time.Unix(1, 0)) // an error: closed, which ends a read as well
	h.reading.Lock()
	h.readsOver = true
	h.reading.Unlock()
}

// abandon ends the read of net/http that is under way, and all that follow. It is for a
// request that has been answered before it was complete: the client may take any time
// for the rest, and nobody needs it.
func (h *httpConn) abandon() {
	h.deadline.Lock()
	defer h.deadline.Unlock()
	h.abandoned = true
	h.Conn.SetReadDeadline(time.Unix(1, 0))
}

// SetReadDeadline is called by net/http.
func (h *httpConn) SetReadDeadline(t time.Time) error {
	h.deadline.Lock()
	defer h.deadline.Unlock()
	if h.abandoned {
		return nil
	}
	if !h.asked && !h.due.IsZero() && t.After(h.due) {
		t = h.due // a part of the time has passed before net/http came
	}
	return h.Conn.SetReadDeadline(t)
}

// Close does nothing. The owner closes the connection, in linger.
func (h *httpConn) Close() error { return nil }

// CloseWrite is called by net/http after its own answers to bad requests, so that they
// arrive.
func (h *httpConn) CloseWrite() error {
	return h.Conn.CloseWrite()
}

// onlyConn is a listener with one connection. Its second Accept waits until net/http is
// done with that, and then ends the server.
type onlyConn httpConn

func (o *onlyConn) Accept() (net.Conn, error) {
	if o.given {
		<-o.done
		return nil, net.ErrClosed
	}
	o.given = true
	return (*httpConn)(o), nil
}

func (o *onlyConn) Close() error   { return nil }
func (o *onlyConn) Addr() net.Addr { return o.Conn.LocalAddr() }

// A responseWriter is net/http's with two changes for goproxy: Hijack keeps what
// net/http has read behind the request, and ReadFrom sends each piece at once.
type responseWriter struct {
	http.ResponseWriter
	h *httpConn
}

func (w *responseWriter) WriteHeader(status int) {
	if (w.h.over || w.h.l.stop.Err() != nil || w.h.upload.unread()) && status != http.StatusSwitchingProtocols {
		w.Header().Set("Connection", "close")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush implements http.Flusher.
func (w *responseWriter) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

// ReadFrom copies the content of a response and sends each piece as it comes. A slow
// response must not wait until a buffer is full.
func (w *responseWriter) ReadFrom(r io.Reader) (int64, error) {
	buf := w.h.l.web.buffers.Get().(*[copyBuffer]byte)
	defer w.h.l.web.buffers.Put(buf)
	rc := http.NewResponseController(w.ResponseWriter)
	var total int64
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			m, werr := w.ResponseWriter.Write(buf[:n])
			total += int64(m)
			if werr == nil && err == nil {
				werr = rc.Flush()
			}
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Hijack takes the connection from net/http, when it is called the first time. It gives
// goproxy a connection that it can only write to.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.h.hijacked {
		_, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
		if err != nil {
			return nil, nil, err
		}
		if n := rw.Reader.Buffered(); n > 0 {
			b, _ := rw.Reader.Peek(n)
			w.h.early = bytes.Clone(b)
		}
		w.h.hijacked = true
	}
	return &detached{Conn: w.h.Conn}, &bufio.ReadWriter{}, nil
}

// detached is a client's connection that can only be written to.
type detached struct{ net.Conn }

func (d *detached) Read([]byte) (int, error) { return 0, io.EOF }
func (d *detached) Close() error             { return nil }

// A web has what all connections of an HTTP listener share.
type web struct {
	proxy   *goproxy.ProxyHttpServer
	hijack  *goproxy.ConnectAction
	noHTTP2 map[string]func(*http.Server, *tls.Conn, http.Handler)
	buffers sync.Pool
	plain   *plain
}

const copyBuffer = 32 << 10

func newWeb(l *listener) *web {
	w := &web{
		// Nothing is sent here, because goproxy would send it in many small writes. The
		// connection's owner sends the answer after goproxy has returned.
		hijack: &goproxy.ConnectAction{
			Action: goproxy.ConnectHijack,
			Hijack: func(*http.Request, net.Conn, *goproxy.ProxyCtx) {},
		},
		noHTTP2: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		buffers: sync.Pool{New: func() any { return new([copyBuffer]byte) }},
		plain:   newPlain(l),
	}
	p := goproxy.NewProxyHttpServer()
	p.Logger = l.quiet
	p.ConnectDial = nil // the constructor takes one from the environment
	p.Tr = w.plain.nowhere
	p.KeepAcceptEncoding = true
	p.NonproxyHandler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		connOf(r).refused(routes.Target{}, answer.Errorf(answer.BadRequest, "no proxy request"))
		helpPage().write(rw)
	})
	p.OnRequest().HandleConnectFunc(l.connect)
	p.OnRequest().DoFunc(l.request)
	p.OnResponse().DoFunc(l.response)
	w.proxy = p
	return w
}

// close closes the connections to origins.
func (w *web) close() { w.plain.close() }
