package inbound

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"ptgate/gateway/answer"
	"ptgate/gateway/dest"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// Bounds of the connections to origins.
const (
	idleOrigins    = 64 // that wait for another request, for each user
	idlePerOrigin  = 8
	idleTime       = time.Minute
	responseTime   = 15 * time.Minute // to a response's header; a long poll is legitimate
	continueTime   = 5 * time.Second  // to "100 Continue", then the content is sent without
	maxRespHeader  = 256 << 10
	upgradeTrailer = 16 << 10 // what an origin may have sent behind its 101
)

// request is goproxy's handler of requests other than CONNECT: it refuses them, or
// prepares them for the origin.
func (l *listener) request(r *http.Request, ctx *goproxy.ProxyCtx) (*http.Request, *http.Response) {
	h := connOf(r)
	if err := h.admit(r); err != nil {
		h.refused(routes.Target{}, err)
		return r, pageOf(answer.Of(err)).response(r)
	}
	if r.URL.Scheme != "http" {
		h.refused(routes.Target{}, answer.Errorf(answer.BadRequest, "a scheme other than http"))
		return r, schemePage().response(r)
	}
	target, err := targetOf(r.URL)
	if err != nil {
		err = answer.New(answer.BadRequest, err)
		h.refused(target, err)
		return r, pageOf(answer.BadRequest).response(r)
	}
	r.URL.Host = dest.Format(target) // r.Host stays what the client wrote
	r.Close = false                  // its Connection field is for us
	endToEnd(r.Header, isWebSocket(r.Header))
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // net/http would add its own
	}
	ctx.RoundTripper = goproxy.RoundTripperFunc(h.roundTrip)
	return r, nil
}

func targetOf(u *url.URL) (routes.Target, error) {
	port := 80
	if p := u.Port(); p != "" {
		var err error
		if port, err = strconv.Atoi(p); err != nil {
			return routes.Target{}, err
		}
	}
	return dest.FromHostPort(u.Hostname(), port)
}

type requestKey struct{}

// roundTrip sends a prepared request to its origin.
func (h *httpConn) roundTrip(r *http.Request, _ *goproxy.ProxyCtx) (*http.Response, error) {
	// A transport keeps the values of a request's context for its dial, but not
	// its end.
	ctx := context.WithValue(r.Context(), requestKey{}, r.Context())
	var conn net.Conn
	upgrade := isWebSocket(r.Header)
	if upgrade || h.upload != nil {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) {
				conn = info.Conn
				h.upload.goesTo(info.Conn.(*originConn))
			},
		})
	}
	resp, err := h.l.web.plain.transport(h.set, h.user).RoundTrip(r.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if !upgrade || !isWebSocket(resp.Header) {
			resp.Body.Close()
			return nil, errors.New("the origin switched to a protocol that nobody asked for")
		}
		return h.switched(resp, conn.(*originConn))
	}
	endToEnd(resp.Header, false)
	if _, ok := resp.Header["Content-Type"]; !ok {
		resp.Header["Content-Type"] = nil // net/http would guess one
	}
	resp.Body = &content{ReadCloser: resp.Body, h: h}
	return resp, nil
}

// switched prepares the tunnel after a 101 response: the origin's connection is
// taken from the transport, with what it had read behind the header.
func (h *httpConn) switched(resp *http.Response, conn *originConn) (*http.Response, error) {
	conn.detach() // a read gets what is buffered, and then the end
	behind, err := io.ReadAll(io.LimitReader(resp.Body, upgradeTrailer))
	if err != nil {
		conn.Conn.Close()
		return nil, err
	}
	endToEnd(resp.Header, true)
	h.upstream, h.head = conn.Conn, string(behind)
	resp.Body = noContent{}
	return resp, nil
}

// noContent stands for the origin's connection while goproxy relays an upgrade:
// that ends at once.
type noContent struct{}

func (noContent) Read([]byte) (int, error)    { return 0, io.EOF }
func (noContent) Write(p []byte) (int, error) { return len(p), nil }
func (noContent) Close() error                { return nil }

// An upload is a request's content, which a transport reads. The transport waits
// for a read under way even when the origin has gone, so that must not wait for the
// client: the connection to the origin ends it.
type upload struct {
	io.ReadCloser
	h      *httpConn
	client context.Context // ends when a read from the client fails
	conn   *originConn     // nil: none yet
	over   atomic.Bool     // a read has failed, or was the last
	whole  atomic.Bool     // everything has been read
	lost   atomic.Bool     // the origin went before it had everything
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil {
		u.whole.Store(err == io.EOF)
		u.over.Store(true)
	}
	return n, err
}

// Close leaves the rest to net/http: its Close may wait for the client.
func (u *upload) Close() error { return nil }

// unread tells whether there is content that has not been read, or not been sent.
func (u *upload) unread() bool { return u != nil && !u.whole.Load() }

// cutOff tells whether the client went before it had sent everything.
func (u *upload) cutOff() bool {
	return u.unread() && u.over.Load() && u.client.Err() != nil
}

// goesTo is called when there is a connection to the origin.
func (u *upload) goesTo(c *originConn) {
	if u != nil {
		u.conn = c
		c.upload.Store(u)
	}
}

// originGone is called when that connection is closed.
func (u *upload) originGone() {
	if !u.over.Load() && u.client.Err() == nil {
		u.lost.Store(true)
		u.h.abandon()
	}
}

// end is called when the request has been answered. What is left of its content is
// not waited for, so there is no further request (RFC 9112 section 9.3).
func (u *upload) end() {
	if u.conn != nil {
		u.conn.upload.CompareAndSwap(u, nil)
	}
	if u.unread() && !u.h.hijacked {
		u.h.abandon()
	}
}

// content is a response's. It remembers that it broke off: goproxy would end the
// client's response as if it were complete.
type content struct {
	io.ReadCloser
	h *httpConn
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		c.h.moved.Add(1)
	}
	if err != nil && err != io.EOF {
		c.h.broken = true
	}
	return n, err
}

// response is goproxy's handler of responses; there is none where the request
// failed.
func (l *listener) response(resp *http.Response, ctx *goproxy.ProxyCtx) *http.Response {
	if resp != nil {
		return resp
	}
	h := connOf(ctx.Req)
	err := ctx.Error
	target, _ := targetOf(ctx.Req.URL)
	switch _, known := errors.AsType[*answer.Error](err); {
	case h.upload != nil && h.upload.lost.Load():
		err = answer.Errorf(answer.BadResponse, "the origin closed the connection before it had the request's content")
	case ctx.Req.Context().Err() != nil || h.upload.cutOff():
		h.refused(target, errGone)
		panic(http.ErrAbortHandler) // nobody reads an answer
	case !known:
		err = exchangeError(err)
	}
	h.refused(target, err)
	return pageOf(answer.Of(err)).response(ctx.Req)
}

// exchangeError gives a reason to an error on a connection that stood.
func exchangeError(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return answer.New(answer.Timeout, err)
	}
	return answer.New(answer.BadResponse, err)
}

// endToEnd strips the fields that concern one connection only (RFC 9110 section
// 7.6.1), except for those of an upgrade that goes on.
func endToEnd(h http.Header, upgrade bool) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.TrimString(name); name != "" && !(upgrade && strings.EqualFold(name, "Upgrade")) {
				h.Del(name)
			}
		}
	}
	trailers := hasToken(h["Te"], "trailers")
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate",
		"Proxy-Authorization", "Proxy-Authentication-Info", "Te", "Trailer", "Transfer-Encoding"} {
		delete(h, name)
	}
	if trailers {
		h["Te"] = []string{"trailers"} // we do pass them on
	}
	if upgrade {
		h["Connection"] = []string{"Upgrade"}
	} else {
		delete(h, "Upgrade")
	}
}

// isWebSocket tells an upgrade to WebSocket (RFC 6455 section 4.1), the one that
// is passed on.
func isWebSocket(h http.Header) bool {
	return hasToken(h["Connection"], "upgrade") && hasToken(h["Upgrade"], "websocket")
}

func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(textproto.TrimString(t), token) {
				return true
			}
		}
	}
	return false
}

// plain holds the connections to origins of plain requests: a transport for each
// user, so that no user gets another's connection, and new ones when the settings
// change, so that a request goes where the routes say now.
type plain struct {
	l       *listener
	nowhere *http.Transport // for goproxy, which must have one: it dials nothing

	ctx    context.Context // ends with the listener
	cancel context.CancelFunc
	dials  sync.WaitGroup

	mu     sync.Mutex // never taken by a connection, which a transport may close under it
	set    *Settings
	byUser map[string]*http.Transport

	connMu sync.Mutex
	closed bool
	conns  map[*originConn]struct{}
}

func newPlain(l *listener) *plain {
	p := &plain{l: l, conns: map[*originConn]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(l.cut)
	p.nowhere = &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, answer.Errorf(answer.Internal, "a request that was not prepared")
	}}
	return p
}

func (p *plain) transport(set *Settings, user string) *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.set != set {
		for _, t := range p.byUser {
			t.CloseIdleConnections()
		}
		p.set, p.byUser = set, map[string]*http.Transport{}
	}
	t := p.byUser[user]
	if t == nil {
		t = &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return p.dial(ctx, set, addr)
			},
			Proxy:                  nil,
			DisableCompression:     true,
			MaxIdleConns:           idleOrigins,
			MaxIdleConnsPerHost:    idlePerOrigin,
			IdleConnTimeout:        idleTime,
			ResponseHeaderTimeout:  responseTime,
			ExpectContinueTimeout:  continueTime,
			MaxResponseHeaderBytes: maxRespHeader,
		}
		p.byUser[user] = t
	}
	return t
}

// dial is the transports'. It ends with the request that it was begun for, and with
// the listener.
func (p *plain) dial(ctx context.Context, set *Settings, addr string) (net.Conn, error) {
	p.connMu.Lock()
	if p.closed {
		p.connMu.Unlock()
		return nil, answer.Errorf(answer.Limit, "the gateway is about to stop")
	}
	p.dials.Add(1)
	p.connMu.Unlock()
	defer p.dials.Done()

	target, err := dest.Parse(addr)
	if err != nil {
		return nil, answer.New(answer.BadRequest, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	if request, ok := ctx.Value(requestKey{}).(context.Context); ok {
		defer context.AfterFunc(request, cancel)()
	}
	conn, err := p.l.dial(ctx, set, target)
	if err != nil {
		return nil, err
	}
	c := &originConn{Conn: conn, p: p}
	p.connMu.Lock()
	defer p.connMu.Unlock()
	p.conns[c] = struct{}{}
	return c, nil
}

// close ends every connection and waits for the dials.
func (p *plain) close() {
	p.connMu.Lock()
	p.closed = true
	p.connMu.Unlock()
	p.cancel()
	p.dials.Wait()

	p.mu.Lock()
	for _, t := range p.byUser {
		t.CloseIdleConnections()
	}
	p.mu.Unlock()

	p.connMu.Lock()
	defer p.connMu.Unlock()
	for c := range p.conns {
		c.Conn.Close()
	}
}

// An originConn is a connection that a transport uses.
type originConn struct {
	stream.Conn
	p      *plain
	taken  atomic.Bool
	upload atomic.Pointer[upload] // what is sent through it
}

// detach takes the connection from its transport: that reads and closes it no more.
func (c *originConn) detach() {
	c.taken.Store(true)
	c.forget()
}

func (c *originConn) forget() {
	c.p.connMu.Lock()
	delete(c.p.conns, c)
	c.p.connMu.Unlock()
}

func (c *originConn) Read(b []byte) (int, error) {
	if c.taken.Load() {
		return 0, io.EOF
	}
	return c.Conn.Read(b)
}

func (c *originConn) Close() error {
	if c.taken.Load() {
		return nil
	}
	c.forget()
	err := c.Conn.Close()
	if u := c.upload.Load(); u != nil {
		u.originGone()
	}
	return err
}
