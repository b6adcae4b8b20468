// Package admin shows what a running ptgate does: a page for people, metrics for
// Prometheus, a status for programs, and a PAC file for browsers.
//
// It only reads. It asks for numbers when somebody wants to see them, and one timer that
// ticks every ten seconds keeps the history that the page draws. It shows no destination,
// no client and no address of a bridge; the PAC file has the patterns of routes in it,
// since a browser needs them.
//
// Every web page that a browser opens can send requests to this machine. So a request
// must be for a loopback name or the listener's own address, since a name that leads here
// (DNS rebinding) can be anybody's. A browser is told not to hand an answer to a page of
// another origin.
package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/gateway/config"
	"ptgate/gateway/credentials"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	"ptgate/gateway/stream"
)

const (
	maxConns  = 64       // connections at once, over all listeners
	maxHeader = 16 << 10 // bytes of a request's header

	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = time.Minute
)

// A Config says what a Server shows. All fields have to be set.
type Config struct {
	// Running returns the configuration that runs.
	Running func() *config.Config
	// Status returns the present state. It does not wait.
	Status func() Status
	Book   *outcome.Book
}

// A Server answers requests on any number of listeners. Make it with New. It stays the
// same over reloads.
type Server struct {
	cfg     Config
	handler http.Handler
	guard   *credentials.Guard
	conns   atomic.Int64
	pacFile pacFile

	open        atomic.Int64  // requests for events
	eventsEvery time.Duration // as the constant, but for tests

	history  *history
	serving  sync.Mutex
	servings int                // listeners
	sampler  context.CancelFunc // ends what keeps the history
	sampled  chan struct{}      // closed when that has ended
}

// enter notes that a listener is served, and leave that it is no longer. While there is
// one, the history is kept.
func (s *Server) enter() {
	s.serving.Lock()
	defer s.serving.Unlock()
	if s.servings++; s.servings == 1 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		s.sampler, s.sampled = cancel, done
		go func() {
			defer close(done)
			s.sampling(ctx)
		}()
	}
}

func (s *Server) leave() {
	s.serving.Lock()
	defer s.serving.Unlock()
	if s.servings--; s.servings == 0 {
		s.sampler()
		<-s.sampled
	}
}

// New makes a Server that has no listener yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, guard: credentials.NewGuard(), history: newHistory(), eventsEvery: eventsEvery}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", s.page)
	mux.HandleFunc("/events", s.events)
	mux.HandleFunc("/page.css", static("page.css", "text/css; charset=utf-8"))
	mux.HandleFunc("/page.js", static("page.js", "text/javascript; charset=utf-8"))
	mux.HandleFunc("/healthz", s.healthz)
	mux.HandleFunc("/readyz", s.readyz)
	mux.HandleFunc("/api/v1/status", s.status)
	mux.HandleFunc("/proxy.pac", s.pac)
	mux.Handle("/metrics", newMetrics(s.cfg))
	s.handler = mux
	return s
}

// Serve answers requests on ln until stop ends, and closes ln. It returns when everything
// that it has started has ended. It returns an error only if ln has failed.
func (s *Server) Serve(stop context.Context, ln net.Listener) error {
	s.enter()
	defer s.leave()
	stop, end := context.WithCancel(stop)
	defer end()
	open := &conns{all: map[*conn]struct{}{}}
	h := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if open.begin() {
				defer open.requests.Done()
				s.answer(stop, w, r)
			}
		}),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,

		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return stop },
		ErrorLog:                     log.New(io.Discard, "", 0), // it names clients
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		<-stop.Done()
		h.Close()
	})
	err := h.Serve(&door{Listener: ln, server: s, open: open})
	if stop.Err() != nil {
		err = nil
	} else {
		err = fmt.Errorf("admin listener: %w", err)
	}
	end()
	watch.Wait()
	open.end()
	return err
}

// A door lets connections in.
type door struct {
	net.Listener
	server *Server
	open   *conns
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		switch {
		case !d.server.owns(c):
			d.server.refused("owner")
		case d.server.conns.Add(1) > maxConns:
			d.server.conns.Add(-1)
			d.server.refused("many")
		default:
			return d.open.add(c, func() { d.server.conns.Add(-1) }), nil
		}
		c.Close()
	}
}

// owns tells whether the program at the other end is of a user who may ask. From another
// machine a password says that.
func (s *Server) owns(c net.Conn) bool {
	owners := s.cfg.Running().Admin.Owners
	if tcp, ok := c.LocalAddr().(*net.TCPAddr); len(owners) == 0 || ok && !tcp.IP.IsLoopback() {
		return true
	}
	uid, ok := relay.Owner(stream.From(c))
	return ok && slices.Contains(owners, uid)
}

// conns are the open connections of a listener, and the requests on them.
type conns struct {
	mu       sync.Mutex
	all      map[*conn]struct{}
	ended    bool
	requests sync.WaitGroup
}

// A conn calls ended once, when it is closed.
type conn struct {
	net.Conn
	once  sync.Once
	ended func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.ended)
	return err
}

func (c *conns) add(nc net.Conn, ended func()) *conn {
	x := &conn{Conn: nc}
	x.ended = func() {
		ended()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.all, x)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[x] = struct{}{}
	return x
}

// begin adds a request; false: it comes too late.
func (c *conns) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.requests.Add(1)
	}
	return !c.ended
}

// end waits for the requests. It closes what came in beside the end of the http.Server,
// which does not know of that.
func (c *conns) end() {
	c.mu.Lock()
	c.ended = true
	all := slices.Collect(maps.Keys(c.all))
	c.mu.Unlock()
	for _, x := range all {
		x.Close()
	}
	c.requests.Wait()
}

// refused counts a request, or a connection, that has no answer of the page.
func (s *Server) refused(reason string) { s.cfg.Book.Add(outcome.AdminRefused, outcome.By(reason)) }

// header has the fields of every answer. A browser loads nothing from elsewhere, runs no
// script in the page, shows the page in no frame, and hands it to no other origin.
var header = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
		"form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cache-Control":                "no-store",
}

// answer lets a request through to the pages if it may. The end of stop ends the wait of a
// guesser; that of the request does not: who leaves before the answer would guess faster.
func (s *Server) answer(stop context.Context, w http.ResponseWriter, r *http.Request) {
	defer func() {
		if v := recover(); v != nil {
			s.cfg.Book.Add(outcome.Panicked, outcome.By("admin"), "panic", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
			panic(http.ErrAbortHandler)
		}
	}()
	for name, value := range header {
		w.Header().Set(name, value)
	}
	switch {
	case !forUs(r):
		s.refused("host")
		refuse(w, "This is ptgate's status page. Ask for it by its address, or as localhost.", http.StatusForbidden)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, "This page can only be read.", http.StatusMethodNotAllowed)
		return
	case !slices.Contains([]string{"", "same-origin", "none"}, r.Header.Get("Sec-Fetch-Site")) && r.Header.Get("Sec-Fetch-Mode") != "navigate":
		s.refused("site")
		refuse(w, "A page of another site asked for this.", http.StatusForbidden)
		return
	}
	if users := s.cfg.Running().Admin.Users; len(users) > 0 {
		user, password, given := r.BasicAuth()
		if !given || !s.guard.Valid(stop, users, clientOf(r), user, password) {
			if given {
				s.refused("password")
			}
			w.Header().Set("WWW-Authenticate", `Basic realm="ptgate", charset="UTF-8"`)
			http.Error(w, "User and password are those of users in [admin].", http.StatusUnauthorized)
			return
		}
	}
	s.handler.ServeHTTP(w, r)
}

// refuse answers with an error, and ends the connection: its place is for others.
func refuse(w http.ResponseWriter, text string, code int) {
	w.Header().Set("Connection", "close")
	http.Error(w, text, code)
}

// clientOf is what a guard slows down.
func clientOf(r *http.Request) string {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return "" // a Unix socket's
	}
	return credentials.Network(net.TCPAddrFromAddrPort(a))
}

// forUs tells whether a request is for a loopback name or address, or for the address that
// it came to.
func forUs(r *http.Request) bool {
	host := hostName(r)
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if a = a.Unmap(); a.IsLoopback() {
		return true
	}
	own, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && own.AddrPort().Addr().Unmap().WithZone("") == a
}

// hostName is the name or the address that a request is for.
func hostName(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.Trim(host, "[]"), ".")
}

// healthz says that the process runs.
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) { say(w, http.StatusOK, "ok") }

// readyz says whether requests have a chance.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	status := s.cfg.Status()
	if missing := status.NotReady(); len(missing) > 0 {
		say(w, http.StatusServiceUnavailable, strings.Join(missing, "\n"))
		return
	}
	say(w, http.StatusOK, "ready")
}

func say(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprintln(w, text)
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.Encode(s.cfg.Status())
}
