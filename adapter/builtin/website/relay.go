package website

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

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
