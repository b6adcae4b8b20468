package website

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// A connection ends on which nothing moves for so long.
	originIdle = 10 * time.Minute

	// After the server's end, what a visitor still says is passed on for so long.
	originLinger = 5 * time.Second

	originBuffer = 8 << 10 // bytes, for each direction
)

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

// A relay passes bytes between a visitor and the origin.
type relay struct {
	v      *visitor
	client *tls.Conn // above v
	watch  watch
	idle   *time.Timer // ends the relay

	cancel    context.CancelFunc // ends the attempt to connect to the origin
	connected chan struct{}      // closed when that is over
	server    halfCloser         // nil: the origin can't be reached
	answered  chan struct{}      // closed when nothing more comes from the origin

	opening  atomic.Bool // the visitor has asked for a tunnel
	switched atomic.Bool // the origin has agreed to speak something else than HTTP
}

// relay passes bytes until both have ended, or the visitor asks for a tunnel. The origin is
// connected to at once, as it is by visitors of its own: how long it waits for one who says
// nothing is its affair.
func (s *Site) relay(v *visitor, client *tls.Conn) {
	r := &relay{v: v, client: client, connected: make(chan struct{}), answered: make(chan struct{})}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(v.ctx)
	defer r.hangUp()
	r.idle = time.AfterFunc(originIdle, r.end)
	defer r.idle.Stop()
	unwatch := context.AfterFunc(v.ctx, r.end)
	defer unwatch()
	s.serving.Go(func() {
		defer close(r.answered)
		r.down(ctx, s.origin)
	})
	buf := make([]byte, originBuffer)
	for more := true; more; {
		n, err := client.Read(buf)
		r.watch.lost = r.watch.lost || r.switched.Load()
		if request, rest := r.watch.see(buf[:n]); request != nil {
			if answer, ok := s.tunnel(v.Conn, request); ok {
				r.opening.Store(true)
				r.idle.Reset(originIdle) // the visitor may not read what the origin has said
				r.hangUp()
				<-r.answered
				v.openRelayed(client, answer, rest, unwatch)
				return
			}
		}
		more = r.up(buf[:n], err)
	}
	<-r.answered
	_ = client.Close()
}

// up passes on what was read of the visitor. It tells whether there may be more.
func (r *relay) up(p []byte, err error) (more bool) {
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !ended {
		r.hangUp()
		return false
	}
	<-r.connected
	switch {
	case r.server != nil:
	case !ended && (len(p) == 0 || len(r.watch.head) > 0):
		return true // a tunnel needs no origin
	default:
		if len(p) > 0 {
			_, _ = io.WriteString(r.client, "HTTP/1.1 502 Bad Gateway\r\nDate: "+time.Now().UTC().Format(http.TimeFormat)+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
		return false
	}
	if len(p) > 0 {
		if _, err := r.server.Write(p); err != nil {
			return false
		}
		r.idle.Reset(originIdle)
	}
	if ended {
		_ = r.server.CloseWrite()
	}
	return !ended
}

// down connects to the origin, and passes on what it says until it ends.
func (r *relay) down(ctx context.Context, o *origin) {
	server, err := o.dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			o.failed(err)
		}
		_ = r.client.SetReadDeadline(time.Now().Add(headTimeout))
		close(r.connected)
		return
	}
	r.server = server
	close(r.connected)
	switch err := r.copy(); {
	case r.opening.Load():
	case err == io.EOF:
		_ = r.client.CloseWrite()
		_ = r.v.CloseWrite()
		_ = r.client.SetReadDeadline(time.Now().Add(originLinger))
	default:
		_ = server.Close()
		_ = r.client.Close()
	}
}

// copy passes on what the origin says until an error, which is io.EOF at its end.
func (r *relay) copy() error {
	buf := make([]byte, originBuffer)
	for {
		n, err := r.server.Read(buf)
		if n > 0 {
			r.idle.Reset(originIdle)
			if bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 101 ")) {
				r.switched.Store(true)
			}
			if _, err := r.client.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// hangUp ends the connection to the origin, also one that is not there yet.
func (r *relay) hangUp() {
	r.cancel()
	<-r.connected
	if r.server != nil {
		_ = r.server.Close()
	}
}

// end closes both connections.
func (r *relay) end() {
	_ = r.v.Close()
	r.hangUp()
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
