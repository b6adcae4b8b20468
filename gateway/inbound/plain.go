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
	"ptgate/gateway/destination"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// Bounds of the connections to origins.
const (
	idleOrigins    = 64 // for each user: how many wait for another request
	idlePerOrigin  = 8
	idleTime       = time.Minute
	responseTime   = 15 * time.Minute // until the header of a response; long, for programs that wait for an event
	continueTime   = 5 * time.Second  // until "100 Continue"; then the content is sent without it
	maxRespHeader  = 256 << 10
	upgradeTrailer = 16 << 10 // how many bytes an origin may have sent after its 101
)

// request is called by goproxy for each request other than CONNECT. It refuses the
// request, or prepares it for the origin.
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
	r.URL.Host = destination.Format(target) // where it goes; r.Host stays what the client wrote
	r.Close = false                         // it is about the client's connection, not the origin's
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
	return destination.FromHostPort(u.Hostname(), port)
}

type requestKey struct{}

// roundTrip sends a request to its origin and returns the response.
func (h *httpConn) roundTrip(r *http.Request, _ *goproxy.ProxyCtx) (*http.Response, error) {
	// net/http gives dial the values of this context, but not its end. So the request's
	// context is passed as a value, and dial ends when that ends.
	ctx := context.WithValue(r.Context(), requestKey{}, r.Context())
	var conn net.Conn
	upgrade := isWebSocket(r.Header)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			conn = info.Conn
			h.upload.goesTo(info.Conn.(*originConn))
			h.leads()
		},
	})
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

// leads counts the client's connection among those that lead to their destination, until
// the request has been served. A request may get a second connection after the first.
func (h *httpConn) leads() {
	if !h.counted {
		h.counted = true
		h.l.web.plain.relays.Add(1)
	}
}

// served takes back what leads has counted.
func (h *httpConn) served() {
	if h.counted {
		h.counted = false
		h.l.web.plain.relays.Add(-1)
	}
}

// switched prepares the tunnel after a 101 response. It takes the origin's connection
// from the transport, and the bytes that the transport has read after the header.
func (h *httpConn) switched(resp *http.Response, conn *originConn) (*http.Response, error) {
	conn.detach() // from here on, Body has only the bytes that are buffered
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

// noContent takes the place of the origin's connection for goproxy after an upgrade. It
// has no bytes, so goproxy returns at once, and the relay moves the bytes.
type noContent struct{}

func (noContent) Read([]byte) (int, error)    { return 0, io.EOF }
func (noContent) Write(p []byte) (int, error) { return len(p), nil }
func (noContent) Close() error                { return nil }

// An upload is the content of a request, as the transport reads it. The transport waits
// for its read even when the origin has gone, and the client may send nothing for a
// long time. So the end of the connection to the origin ends the read.
type upload struct {
	io.ReadCloser
	h      *httpConn
	client context.Context // ends when a read from the client fails
	conn   *originConn     // where the content goes; nil: not known yet
	over   atomic.Bool     // a read has met an error, or the end
	whole  atomic.Bool     // a read has met the end
	lost   atomic.Bool     // the origin has gone before it had all the content
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil {
		u.whole.Store(err == io.EOF)
		u.over.Store(true)
	}
	return n, err
}

// Close does nothing: to close the content itself may wait for the client.
func (u *upload) Close() error { return nil }

// unread tells whether some of the content has not been read.
func (u *upload) unread() bool { return u != nil && !u.whole.Load() }

// cutOff tells whether the client has gone before it had sent all the content.
func (u *upload) cutOff() bool {
	return u.unread() && u.over.Load() && u.client.Err() != nil
}

// goesTo is called when the connection to the origin is known.
func (u *upload) goesTo(c *originConn) {
	if u != nil {
		u.conn = c
		c.upload.Store(u)
	}
}

// originGone is called when the connection to the origin is closed.
func (u *upload) originGone() {
	if !u.over.Load() && u.client.Err() == nil {
		u.lost.Store(true)
		u.h.abandon()
	}
}

// end is called when the request has been answered. It does not wait for the rest of
// the content. So there can be no further request on the connection (RFC 9112 section
// 9.3).
func (u *upload) end() {
	if u.conn != nil {
		u.conn.upload.CompareAndSwap(u, nil)
	}
	if u.unread() && !u.h.hijacked {
		u.h.abandon()
	}
}

// content is the content of a response. It notes whether it was cut off. goproxy does
// not notice that, and would end the response as if it were complete.
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

// response is called by goproxy for each response; nil: the request has failed.
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

// exchangeError adds a reason to an error that came after the origin was connected.
func exchangeError(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return answer.New(answer.Timeout, err)
	}
	return answer.New(answer.BadResponse, err)
}

// endToEnd takes out the fields that are for one connection only (RFC 9110 section
// 7.6.1). With upgrade, those of the upgrade stay.
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
		h["Te"] = []string{"trailers"} // trailers are passed on
	}
	if upgrade {
		h["Connection"] = []string{"Upgrade"}
	} else {
		delete(h, "Upgrade")
	}
}

// isWebSocket tells whether h asks for an upgrade to WebSocket (RFC 6455 section 4.1).
// No other upgrade is passed on.
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

// A plain has the connections to the origins of plain requests. Each user has a
// transport, so that no user gets a connection of another one. After a reload there are
// new transports, so that requests follow the new routes.
type plain struct {
	l       *listener
	nowhere *http.Transport // dials nothing; goproxy must have one

	// What is counted of tunnels, too.
	relays, up, down *atomic.Int64

	ctx    context.Context // ends with the listener
	cancel context.CancelFunc
	dials  sync.WaitGroup

	mu     sync.Mutex // an originConn must not lock it: while it is held, a transport may close an originConn
	set    *Settings
	byUser map[string]*http.Transport

	connMu sync.Mutex
	closed bool
	conns  map[*originConn]struct{}
}

func newPlain(l *listener) *plain {
	p := &plain{l: l, conns: map[*originConn]struct{}{},
		relays: l.book.Counter(outcome.Relays, outcome.By()),
		up:     l.book.Counter(outcome.Up, outcome.By()),
		down:   l.book.Counter(outcome.Down, outcome.By())}
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

// dial dials for a transport. It is cancelled when its request ends, and when the
// listener ends.
func (p *plain) dial(ctx context.Context, set *Settings, addr string) (net.Conn, error) {
	p.connMu.Lock()
	if p.closed {
		p.connMu.Unlock()
		return nil, answer.Errorf(answer.Limit, "the gateway is about to stop")
	}
	p.dials.Add(1)
	p.connMu.Unlock()
	defer p.dials.Done()

	target, err := destination.Parse(addr)
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

// An originConn is a connection of a transport to an origin.
type originConn struct {
	stream.Conn
	p      *plain
	taken  atomic.Bool
	upload atomic.Pointer[upload] // what is sent through it
}

// detach takes the connection from its transport, which can't read or close it any more.
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
	n, err := c.Conn.Read(b)
	c.p.down.Add(int64(n))
	return n, err
}

func (c *originConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.p.up.Add(int64(n))
	return n, err
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
