package inbound

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"ptgate/gateway/answer"
	"ptgate/gateway/http1"
	"ptgate/gateway/relay"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// Bounds of the connections to origins.
const (
	idleOrigin    = time.Minute      // until the client's next request
	responseTime  = 15 * time.Minute // until the head of a response; long, for programs that wait for an event
	continueTime  = 5 * time.Second  // until an origin answers to Expect; see the method expects
	maxRespHeader = 256 << 10
	maxInterim    = 10000 // interim responses to one request: they pass at once and take no room
	// lastWait is how long an origin may be silent when the client has ended its side.
	// Such a client may have gone away.
	lastWait = 2 * time.Minute
	// graceTime is how long a response waits for the end of the request's content. Mostly
	// that has just been sent.
	graceTime = 10 * time.Millisecond
	// uploadPause is how long the rest of the request's content may pause when the response
	// is complete.
	uploadPause = 5 * time.Second
)

// request is called by goproxy for each request other than CONNECT. It refuses the
// request, or lets it through to the origin.
func (l *listener) request(r *http.Request, ctx *goproxy.ProxyCtx) (*http.Request, *http.Response) {
	h := connOf(r)
	if err := h.admit(r); err != nil {
		h.refused(routes.Target{}, err)
		return r, pageOf(answer.Of(err)).response(r)
	}
	if s := r.URL.Scheme; s != "http" && s != "ws" { // RFC 6455 section 3: ws is an http request
		h.refused(routes.Target{}, answer.Errorf(answer.BadRequest, "a scheme other than http"))
		return r, schemePage().response(r)
	}
	if h.origin != nil && h.origin.authority == r.URL.Host {
		h.target = h.origin.target
	} else {
		var err error
		if h.target, err = targetOf(r.URL.Host); err != nil {
			err = answer.New(answer.BadRequest, err)
			h.refused(h.target, err)
			return r, pageOf(answer.BadRequest).response(r)
		}
	}
	if p, final := h.maxForwards(); final {
		return r, p.response(r)
	}
	ctx.RoundTripper = letThrough
	return r, nil
}

// letThrough takes the place of the origin for goproxy. The owner of the client's
// connection passes the request on when goproxy has returned.
var letThrough = goproxy.RoundTripperFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Response, error) {
	connOf(r).plain = true
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
})

// maxForwards does what RFC 9110 section 7.6.2 wants of a proxy: it counts the field
// down, and answers as the origin where it is 0.
func (h *httpConn) maxForwards() (p page, final bool) {
	trace := h.head.Is(http.MethodTrace)
	if !trace && !h.head.Is(http.MethodOptions) {
		return page{}, false
	}
	n, err := strconv.ParseUint(string(h.head.Get(http1.MaxForwards)), 10, 64)
	switch {
	case err != nil: // there is none, or it is no number
	case n > 0:
		h.head.Replace(http1.MaxForwards, strconv.AppendUint(nil, n-1, 10))
	case trace:
		// RFC 9110 section 9.3.8: the request comes back, but for what is secret.
		h.head.Drop(http1.ProxyAuthorization)
		h.head.Drop(http1.Authorization)
		h.head.Drop(http1.Cookie)
		b := append([]byte("TRACE "), h.head.Target...)
		b = strconv.AppendInt(append(b, " HTTP/1."...), int64(h.head.Minor), 10)
		b = h.head.AppendFields(append(b, "\r\n"...))
		return page{http.StatusOK, http.Header{"Content-Type": {"message/http"}}, append(b, "\r\n"...)}, true
	default:
		return page{http.StatusOK, http.Header{}, nil}, true
	}
	return page{}, false
}

// An originConn is a connection to an origin. It belongs to the one client connection for
// which it was opened: what an origin has learned of a client by a connection, as with
// NTLM and Negotiate, is never used for another client.
type originConn struct {
	stream.Conn
	web       *web
	moved     *atomic.Int64
	in        http1.Reader // what the origin sends
	target    routes.Target
	authority string
	set       *Settings
	user      string
	bound     bool        // it is used to authenticate the client
	late      atomic.Bool // it was closed because there was no response in time
	cut       func()      // closes it; it is called at the end of the listener, and if the client leaves
	uncut     func() bool
}

func (o *originConn) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p)
	o.came(n)
	return n, err
}

func (o *originConn) came(n int) {
	o.web.down.Add(int64(n))
	o.moved.Add(int64(n))
}

func (o *originConn) Write(p []byte) (int, error) {
	n, err := o.Conn.Write(p)
	o.web.up.Add(int64(n))
	o.moved.Add(int64(n))
	return n, err
}

func (o *originConn) readReady(get func() []byte, drop func()) (int, error) {
	if s := o.Conn.Socket(); s.Plain {
		n, err := stream.ReadReady(s.TCP, get, drop)
		o.came(n)
		return n, err
	}
	if err := o.Conn.WaitRead(); err != nil {
		return 0, err
	}
	return o.Read(get())
}

// quiet tells whether the origin has sent nothing since its last response. Bytes that
// nobody asked for, such as those before a close, must not become the next response.
func (o *originConn) quiet() bool {
	if len(o.in.Buffered()) > 0 {
		return false
	}
	if s := o.Conn.Socket(); s.Plain {
		return stream.Quiet(s.TCP)
	}
	// A stream of a session says at once what has come. For other connections, a deadline in
	// the past comes before that.
	by := time.Now().Add(time.Millisecond)
	if o.Conn.Socket().Queued {
		by = time.Unix(1, 0)
	}
	o.Conn.SetReadDeadline(by)
	err := o.Conn.WaitRead()
	o.Conn.SetReadDeadline(time.Time{})
	return isTimeout(err)
}

// leaveOrigin closes the connection to the origin, if there is one.
func (h *httpConn) leaveOrigin() {
	if h.origin != nil {
		h.origin.uncut()
		h.origin.Conn.Close()
		h.origin.in.Discard(len(h.origin.in.Buffered()))
		h.origin.in.Release()
		h.origin = nil
	}
}

// A forward is a plain request that is passed on, and its response.
type forward struct {
	*httpConn
	method    string
	authority string
	minor     int  // of the client's version
	keep      bool // the client's connection may have another request
	upgrade   bool // the client asks for another protocol
	expect    bool // the client waits for "100 Continue"
	again     bool // the request may be sent a second time

	// The rest of the request's content:
	chunks http1.Chunks
	left   int64         // of content with a length
	whole  bool          // all of it has been sent with the head
	sent   chan struct{} // closed when the rest has been sent, or can't be
	failed atomic.Pointer[error]
	begun  atomic.Bool  // some of the rest has come
	ok     atomic.Bool  // all of it has been sent
	gone   atomic.Int64 // bytes of the rest that have been sent

	silence  *silence // nil: there is no limit
	answered bool     // a response goes to the client; guarded by watch.mu
	counted  bool
}

// pass passes the request on to its origin, and the response to the client, and tells
// whether the client's connection may have another request.
func (h *httpConn) pass() (keep bool) {
	x := &forward{httpConn: h}
	h.watch.begin()
	defer func() {
		if x.counted {
			h.l.web.relays.Add(-1)
		}
		x.silence.stop()
		keep = keep && !x.silence.over()
		if h.relay == nil {
			x.end()
		}
	}()
	out, err := x.prepare()
	if err != nil {
		return x.fail(err)
	}
	if x.whole {
		h.watch.start()
	}
	if err := x.roundTrip(out); err != nil {
		return x.fail(err)
	}
	return x.respond()
}

// prepare reads all that has to be known of the request, and returns its head as the
// origin gets it, with the content that has come by now.
func (x *forward) prepare() ([]byte, error) {
	r := &x.head
	x.method, x.authority, x.minor = x.request.Method, x.url.Host, r.Minor
	x.keep = x.persists()
	x.expect = x.minor > 0 && x.body.Framing != http1.None && r.Has(http1.Expect, "100-continue")
	// An upgrade behind content is not passed on: it would come between the two.
	x.upgrade = x.minor > 0 && x.body.Framing == http1.None && r.Has(http1.Connection, "upgrade") && r.Get(http1.Upgrade) != nil
	trailers := x.minor > 0 && r.Has(http1.TE, "trailers")
	if x.minor == 0 {
		r.Drop(http1.Expect) // RFC 9110 section 10.1.1
	}
	r.EndToEnd(x.upgrade)
	out := append(x.out[:0], x.method...)
	out = append(out, ' ')
	out = append(out, originForm(x.method, x.path)...)
	out = append(out, " HTTP/1.1\r\n"...) // RFC 9112 section 2.3: its own version
	// RFC 9112 section 3.2.2: what the client has in Host does not count.
	if string(r.Get(http1.Host)) != x.authority && !r.Replace(http1.Host, []byte(x.authority)) {
		out = append(append(append(out, "Host: "...), x.authority...), "\r\n"...)
	}
	out = r.AppendFields(out)
	switch {
	case x.upgrade && r.Get(http1.HTTP2Settings) != nil: // RFC 7540 section 3.2.1
		out = append(out, "Connection: Upgrade, HTTP2-Settings\r\n"...)
	case x.upgrade:
		out = append(out, "Connection: Upgrade\r\n"...)
	case trailers: // RFC 9110 section 10.1.4
		out = append(out, "TE: trailers\r\nConnection: TE\r\n"...)
	}
	out = append(out, "\r\n"...)

	b := x.in.Buffered()
	switch x.body.Framing {
	case http1.None:
		x.whole = true
	case http1.Length:
		n := int(min(x.body.Length, int64(len(b))))
		out = append(out, b[:n]...)
		x.in.Discard(n)
		x.left = x.body.Length - int64(n)
		x.whole = x.left == 0
	case http1.Chunked:
		x.chunks.Strict = true
		n, whole, err := x.chunks.Scan(b)
		if err != nil {
			return nil, answer.New(answer.Malformed, err)
		}
		out = append(out, b[:n]...)
		x.in.Discard(n)
		x.whole = whole
	}
	x.out = out
	// RFC 9110 section 9.2.2: a proxy sends no request a second time that is not
	// idempotent. Content must still be there for that.
	x.again = x.whole && isIdempotent(x.method)
	return out, nil
}

func isIdempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// roundTrip sends the request, and reads the head of the final response.
//
// An origin may close a connection that waits for a request at any time, also when one is
// under way. A request that may be sent again is, on a new connection. All others get a
// new connection at once, because nobody could tell whether the origin has seen them. But
// where the origin has authenticated the client by the connection, another one is of no
// use.
func (x *forward) roundTrip(out []byte) error {
	kept := x.origin != nil && x.origin.serves(x) && (x.again || x.origin.bound) && x.origin.quiet()
	for {
		if !kept {
			x.leaveOrigin()
			if err := x.dial(); err != nil {
				return err
			}
		}
		o := x.origin
		if !x.counted {
			x.counted = true
			x.l.web.relays.Add(1)
		}
		x.watch.onLeave(o.cut)
		x.limitSilence()
		_, err := o.Write(out)
		if !x.whole && x.sent == nil {
			x.startUpload(err)
		}
		// The origin may have answered although it has not taken all.
		some, err := x.readResponse()
		if _, known := errors.AsType[*answer.Error](err); err == nil || some || known || !kept || !x.again || x.watch.isGone() || x.silence.over() {
			return err
		}
		kept = false
	}
}

// serves tells whether the connection may be used for a request.
func (o *originConn) serves(x *forward) bool {
	return o.target == x.target && o.set == x.set && o.user == x.user
}

// dial opens a connection to the origin.
func (x *forward) dial() error {
	ctx, cancel := context.WithCancel(x.l.cut)
	defer cancel()
	x.watch.onLeave(cancel)
	conn, err := x.l.dial(ctx, x.set, x.target)
	if err != nil {
		return err
	}
	o := &originConn{Conn: conn, web: x.l.web, moved: &x.moved, target: x.target, authority: x.authority, set: x.set, user: x.user}
	o.in.Src, o.in.ReadReady, o.in.Begins = o, o.readReady, version
	o.cut = func() { conn.Close() }
	o.uncut = context.AfterFunc(x.l.cut, o.cut)
	x.origin = o
	return nil
}

// readResponse reads the head of the final response, and passes the interim ones on. some
// tells whether there was anything from the origin.
func (x *forward) readResponse() (some bool, err error) {
	if x.expect && !x.whole {
		defer x.expects()()
	}
	o := x.origin
	for range maxInterim {
		b, err := x.readHead()
		if err != nil {
			return some || len(o.in.Buffered()) > 0, err
		}
		some = true
		if err := x.resp.ParseResponse(b); err != nil {
			return true, answer.New(answer.BadResponse, err)
		}
		if x.resp.Status >= 200 || x.resp.Status == http.StatusSwitchingProtocols {
			return true, nil
		}
		if x.resp.Status == http.StatusContinue {
			x.begun.Store(true) // the content comes now
		}
		if x.minor == 0 {
			continue // RFC 9110 section 15.2
		}
		x.resp.ResponseBody(false)
		x.resp.EndToEnd(false)
		if !x.writeClient(append(x.resp.AppendFields(x.statusLine(nil)), "\r\n"...), false) {
			return true, errGone
		}
	}
	return true, answer.Errorf(answer.BadResponse, "more than %d interim responses", maxInterim)
}

// version is what a response begins with. Another service than a web server, such as SSH, may
// say something else and then wait for ever.
var version = []byte("HTTP/")

// readHead reads the next head that the origin sends. The first read of a stream in a
// session must have no deadline, because it may have to wait for the far end's answer.
func (x *forward) readHead() ([]byte, error) {
	o := x.origin
	if o.Conn.Socket().Plain {
		o.Conn.SetReadDeadline(time.Now().Add(responseTime))
		defer o.Conn.SetReadDeadline(time.Time{})
	} else {
		defer time.AfterFunc(responseTime, func() {
			o.late.Store(true)
			o.Conn.Close()
		}).Stop()
	}
	b, err := o.in.ReadHead(maxRespHeader, false)
	switch {
	case o.late.Load():
		err = answer.Errorf(answer.Timeout, "no response within %v", responseTime)
	case errors.Is(err, http1.ErrTooLarge), errors.Is(err, http1.ErrMalformed):
		err = answer.New(answer.BadResponse, err)
	}
	return b, err
}

// statusLine appends the first line of the response.
func (x *forward) statusLine(b []byte) []byte {
	b = append(b, "HTTP/1.1 "...) // RFC 9112 section 2.3: its own version
	b = strconv.AppendInt(b, int64(x.resp.Status), 10)
	b = append(b, ' ')
	b = append(b, x.resp.Reason...)
	return append(b, "\r\n"...)
}

// writeClient writes to the client, and tells whether that has worked. final: from here on
// there are no interim responses.
func (x *forward) writeClient(b []byte, final bool) bool {
	x.watch.mu.Lock()
	x.answered = x.answered || final
	x.watch.mu.Unlock()
	_, err := x.Conn.Write(b)
	return err == nil
}

// expects is for a client that waits for "100 Continue" before it sends content. Expect is
// passed on, and the origin answers. An origin that is silent for a while does not know
// the field (RFC 9110 section 10.1.1); then the client is told to go on, unless it has
// done so by itself.
func (x *forward) expects() (stop func()) {
	t := time.AfterFunc(continueTime, func() {
		x.watch.mu.Lock()
		defer x.watch.mu.Unlock()
		if !x.answered && !x.begun.Load() {
			io.WriteString(x.Conn, "HTTP/1.1 100 Continue\r\n\r\n")
		}
	})
	return func() {
		x.watch.mu.Lock()
		defer x.watch.mu.Unlock()
		x.answered = true // what comes next is the response
		t.Stop()
	}
}

// startUpload sends the rest of the request's content while the response is read. After
// that it watches the client. err is that of the write before.
func (x *forward) startUpload(err error) {
	x.sent = make(chan struct{})
	if err != nil {
		x.failed.Store(&err)
		close(x.sent)
		return
	}
	o := x.origin
	x.watch.running.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				x.l.panicked(x.set, v)
				o.Conn.Reset()
			}
		}()
		if err := x.upload(o); err != nil {
			x.failed.Store(&err)
			close(x.sent)
			return
		}
		x.ok.Store(true)
		close(x.sent)
		x.watch.look()
	})
}

// upload sends the rest of the request's content. If it can't be had from the client, the
// origin must see that it is not complete.
func (x *forward) upload(o *originConn) (err error) {
	broken := func(err error) error {
		x.failed.Store(&err) // before the response is seen to fail
		o.Conn.Reset()
		return err
	}
	for first := true; ; first = false {
		if len(x.in.Buffered()) == 0 && !x.chunks.Done() {
			if x.left > 0 && !first {
				readErr, err := x.uploadLength(o)
				if readErr != nil {
					return broken(uploadError(readErr))
				}
				return err
			}
			if err := x.in.Fill(); err != nil {
				return broken(uploadError(err))
			}
			x.begun.Store(true)
		}
		b := x.in.Buffered()
		var n int
		var whole bool
		if x.body.Framing == http1.Length {
			n = int(min(x.left, int64(len(b))))
			x.left -= int64(n)
			whole = x.left == 0
		} else if n, whole, err = x.chunks.Scan(b); err != nil {
			return broken(answer.New(answer.Malformed, err))
		}
		if n > 0 {
			if _, err := o.Write(b[:n]); err != nil {
				return err
			}
			x.gone.Add(int64(n))
			x.in.Discard(n)
		}
		switch {
		case whole:
			return nil
		case x.chunks.Done():
			b, err := x.in.ReadTrailer(maxHeader)
			if err != nil && !errors.Is(err, http1.ErrTooLarge) {
				return broken(uploadError(err))
			}
			var t http1.Head
			if err == nil {
				err = t.ParseTrailer(b, true)
			}
			if err != nil {
				return broken(answer.New(reasonOf(err), err))
			}
			_, err = o.Write(trailerOf(&t))
			return err
		}
	}
}

// uploadError says why the client has not sent all of the request's content. err is that of
// a read from the client.
func uploadError(err error) error {
	if reason := unfinishedReason(err); reason != answer.Success {
		return answer.New(reason, err)
	}
	return errGone
}

// uploadLength sends what is missing of content with a length. readErr: the client has not
// sent all of it.
func (x *forward) uploadLength(o *originConn) (readErr, err error) {
	x.in.Release()
	left, readErr, err := relay.Copy(o.Conn, x.Conn, x.left, o.web.up, &x.gone)
	if left > 0 && readErr == nil && err == nil {
		readErr = io.EOF
	}
	return readErr, err
}

// trailerOf is a trailer section as it is passed on. Fields that frame a message, or say
// where it goes, must not come behind it (RFC 9110 section 6.5.1).
func trailerOf(t *http1.Head) []byte {
	t.EndToEnd(false)
	for _, n := range []http1.Name{http1.ContentLength, http1.TransferEncoding, http1.Host, http1.Upgrade, http1.Trailer} {
		t.Drop(n)
	}
	return append(t.AppendFields(nil), "\r\n"...)
}

// uploaded tells whether the client has sent all of the request's content.
func (x *forward) uploaded() bool {
	if x.whole {
		return true
	}
	if x.sent == nil {
		return false
	}
	t := time.NewTimer(cmp.Or(x.set.grace, graceTime))
	defer t.Stop()
	select {
	case <-x.sent:
	case <-t.C:
	}
	return x.ok.Load()
}

// respond passes the final response on.
func (x *forward) respond() (keep bool) {
	o, r := x.origin, &x.resp
	if r.Status == http.StatusSwitchingProtocols {
		return x.switched()
	}
	odd := r.Status == http.StatusNoContent && (r.Count(http1.TransferEncoding) > 0 || r.Count(http1.ContentLength) > 0 && string(r.Get(http1.ContentLength)) != "0")
	body, err := r.ResponseBody(x.method == http.MethodHead)
	if err != nil {
		return x.fail(answer.New(answer.BadResponse, err))
	}
	uploaded := x.uploaded()
	// What follows a response that is not to be trusted is not read.
	again := uploaded && !odd && r.Minor > 0 && body.Framing != http1.ToEnd && !r.Has(http1.Connection, "close")
	keep = x.keep && (uploaded || x.sending() && !r.Has(http1.Connection, "close")) && body.Framing != http1.ToEnd && x.l.stop.Err() == nil
	o.bound = o.bound || bindsConnection(r)
	decode := x.minor == 0 && body.Framing == http1.Chunked
	if decode { // RFC 9112 section 6.1
		r.Drop(http1.TransferEncoding)
		r.Drop(http1.Trailer)
	}
	upgrade := x.minor > 0 && (x.upgrade || r.Status == http.StatusUpgradeRequired) && r.Get(http1.Upgrade) != nil
	r.EndToEnd(upgrade)
	out := r.AppendFields(x.statusLine(x.out[:0]))
	switch {
	case upgrade && keep:
		out = append(out, "Connection: Upgrade\r\n"...)
	case upgrade:
		out = append(out, "Connection: Upgrade, close\r\n"...)
	case !keep && !x.refusedExpect():
		out = append(out, "Connection: close\r\n"...)
	}
	out = append(out, "\r\n"...)

	d := download{forward: x, out: out, decode: decode}
	switch body.Framing {
	case http1.None:
		d.flush()
	case http1.Length:
		d.length(body.Length)
	case http1.ToEnd:
		d.length(-1)
	case http1.Chunked:
		d.chunked()
	}
	x.out = d.out[:0]
	if !uploaded {
		if d.err == nil && body.Framing != http1.ToEnd {
			x.finishUpload()
		}
		keep = keep && x.ok.Load()
	}
	if !again || d.err != nil || len(o.in.Buffered()) > 0 {
		x.leaveOrigin()
	}
	if d.err != nil && (body.Framing == http1.ToEnd || decode || x.silence.over()) {
		x.Conn.Reset() // a clean end would say that the response is complete
	}
	return keep && d.err == nil
}

// sending tells whether the rest of the request's content goes on behind a response of
// success. Such a client is not told that its connection ends: it would stop sending.
func (x *forward) sending() bool {
	return x.resp.Status < 400 && x.sent != nil && x.failed.Load() == nil && (!x.expect || x.begun.Load())
}

// finishUpload waits for the rest of the request's content while it moves. An origin may
// answer before it has read all, and still want the rest. Cut short, it would be lost
// although the client has a response of success.
func (x *forward) finishUpload() {
	if !x.sending() {
		return
	}
	t := time.NewTicker(uploadPause)
	defer t.Stop()
	for seen := int64(-1); seen != x.gone.Load(); {
		seen = x.gone.Load()
		select {
		case <-x.sent:
			return
		case <-t.C:
		}
	}
}

// refusedExpect tells whether the response is a 417 for a client that has waited for "100
// Continue" and has sent no content. curl sends such a request again, without Expect, but
// not if the response says that the connection is closed. It is closed all the same,
// because nobody can tell what comes next: the content, or that request.
func (x *forward) refusedExpect() bool {
	return x.resp.Status == http.StatusExpectationFailed && x.expect && !x.begun.Load() && !x.resp.Has(http1.Connection, "close")
}

// bindsConnection tells whether a response takes part in an authentication that is tied to
// the connection (RFC 4559 section 6).
func bindsConnection(r *http1.Head) bool {
	for i := range r.Fields {
		f := &r.Fields[i]
		if f.ID != http1.WWWAuthenticate {
			continue
		}
		for part := range bytes.SplitSeq(f.Value, []byte(",")) {
			scheme, _, _ := bytes.Cut(bytes.TrimSpace(part), []byte(" "))
			if bytes.EqualFold(scheme, []byte("NTLM")) || bytes.EqualFold(scheme, []byte("Negotiate")) {
				return true
			}
		}
	}
	return false
}

// A download passes the content of a response on.
type download struct {
	*forward
	out    []byte // what has to be written first
	decode bool   // the client knows no chunked coding
	err    error
}

// flush writes what has to be written first.
func (d *download) flush() {
	if len(d.out) > 0 && d.err == nil && !d.writeClient(d.out, true) {
		d.err = errGone
	}
	d.out = d.out[:0]
}

// length passes on n bytes, or all up to the end of the connection if n is negative.
func (d *download) length(n int64) {
	o := d.origin
	b := o.in.Buffered()
	if n >= 0 {
		b = b[:min(n, int64(len(b)))]
		n -= int64(len(b))
	}
	d.out = append(d.out, b...)
	o.in.Discard(len(b))
	if d.flush(); d.err != nil || n == 0 {
		return
	}
	o.in.Release()
	left, readErr, writeErr := relay.Copy(d.Conn, o.Conn, n, o.web.down, &d.moved)
	switch {
	case writeErr != nil:
		d.err = writeErr
	case readErr != nil:
		d.err = readErr
	case left > 0:
		d.err = io.ErrUnexpectedEOF
	}
}

// chunked passes on chunks as they come.
func (d *download) chunked() {
	o := d.origin
	var c http1.Chunks
	for {
		b := o.in.Buffered()
		n := 0
		for n < len(b) && !c.Done() {
			m, content, err := c.Next(b[n:])
			if err != nil {
				d.flush()
				d.err = err
				return
			}
			if content || !d.decode {
				d.out = append(d.out, b[n:n+m]...)
			}
			n += m
		}
		o.in.Discard(n)
		if c.Done() {
			break
		}
		if d.flush(); d.err != nil {
			return
		}
		if d.err = o.in.Fill(); d.err != nil {
			return
		}
	}
	if b := o.in.Buffered(); len(b) < 2 || string(b[:2]) != "\r\n" {
		d.flush() // the trailer section may take its time
	}
	b, err := o.in.ReadTrailer(maxRespHeader)
	var t http1.Head
	if err == nil {
		err = t.ParseTrailer(b, false)
	}
	if err != nil {
		d.err = err
		return
	}
	if !d.decode {
		d.out = append(d.out, trailerOf(&t)...)
	}
	d.flush()
}

// switched makes a tunnel of the connection after a 101 response (RFC 9110 section 7.8).
func (x *forward) switched() bool {
	if !x.upgrade || x.resp.Get(http1.Upgrade) == nil {
		return x.fail(answer.Errorf(answer.BadResponse, "the origin switched to a protocol that nobody asked for"))
	}
	o := x.origin
	x.silence.stop()
	x.resp.ResponseBody(false)
	x.resp.EndToEnd(true)
	out := x.resp.AppendFields(x.statusLine(nil))
	out = append(out, "Connection: Upgrade\r\n\r\n"...)
	x.answer = string(append(out, o.in.Buffered()...))
	x.watch.stop()
	x.upstream = o.Conn
	x.early = bytes.Clone(x.in.Buffered())
	x.in.Discard(len(x.early))
	x.in.Release()
	o.in.Discard(len(o.in.Buffered()))
	o.in.Release()
	o.uncut()
	x.origin = nil
	x.tunnel()
	return false
}

// fail answers a request that has got no response.
func (x *forward) fail(err error) (keep bool) {
	idle := x.silence.over()
	if idle && x.sent != nil {
		<-x.sent // it has ended, too, and knows whether the client was the silent one
	}
	up := x.failed.Load()
	_, known := errors.AsType[*answer.Error](err)
	switch {
	case x.watch.isGone() || up != nil && (errors.Is(*up, errGone) || x.hasLeft()):
		err = errGone
	case up != nil && answer.Of(*up) != answer.Internal:
		err = *up // the client's fault
	case idle:
		err = answer.Errorf(answer.Timeout, "nothing moved for limits.idle")
	case errors.Is(err, errGone), known:
	case isTimeout(err):
		err = answer.New(answer.Timeout, err)
	default:
		err = answer.New(answer.BadResponse, err)
	}
	x.refused(x.target, err)
	x.leaveOrigin()
	if errors.Is(err, errGone) {
		return false // nobody reads an answer
	}
	x.watch.mu.Lock()
	x.answered = true
	x.watch.mu.Unlock()
	p := pageOf(answer.Of(err))
	keep = x.keep && x.uploaded() && !idle && x.l.stop.Err() == nil
	if idle {
		x.Conn.SetWriteDeadline(time.Now().Add(lastAnswer))
	}
	_, werr := x.Conn.Write(p.message(!keep, x.method == http.MethodHead))
	return keep && werr == nil
}

// end waits for the goroutine that reads from the client.
func (x *forward) end() {
	if x.sent != nil && !x.ok.Load() {
		x.leaveOrigin() // the upload may wait for the origin to read
	}
	x.watch.stop()
}
