package website

import (
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
	"strings"
	"syscall"
	"time"

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
			// As it was written, where net/http can write it so.
			if path := r.In.RequestURI; !strings.HasPrefix(path, "//") && !strings.Contains(path, " ") {
				r.Out.URL = &url.URL{Scheme: o.url.Scheme, Host: o.url.Host, Opaque: path}
			}
			r.Out.Header = r.In.Header.Clone() // over HTTP/2, all fields are for the server
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
			if _, ok := errors.AsType[*bodyError](err); ok {
				panic(http.ErrAbortHandler) // it is no failure of the server
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
