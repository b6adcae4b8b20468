// Package website is the web server that a transport of package builtin has around it if
// no other one stands in front: it answers TLS, and shows everybody a decoy, except those
// who ask for a tunnel in the right way.
//
// It is net/http's server and nothing else. What a visitor gets is what the decoy alone
// would give through such a server: the certificate, the header fields, the errors, and the
// time that all of it takes. So there is nothing here that answers a visitor, and nothing
// that closes a visitor's connection. Only a request that the Tunnel function takes leaves
// the server.
//
// The certificate comes from two files, which are read again when they change, or from an
// authority that speaks ACME (RFC 8555).
package website

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"ptgate/adapter"
	"ptgate/adapter/subnet"
)

// A Config says what a Site shows. Its texts are those of a configuration file.
type Config struct {
	// CertFile and KeyFile have the certificate chain and its private key, in PEM.
	CertFile, KeyFile string

	// Name is the host name for which an authority makes the certificate; "": the
	// certificate is in CertFile. Email is where the authority writes to, or "".
	// Directory is the URL of the authority's directory; "": Let's Encrypt. CAFile has
	// the certificates, in PEM, that sign the authority's own; "": the system's.
	Name, Email, Directory, CAFile string

	// HTTP is the address of a second port, without TLS. It leads visitors to the port
	// with TLS, and answers an authority that asks there (HTTP-01). "": there is none.
	HTTP string

	// Decoy is what everybody sees: a directory, which net/http's FileServer shows, or
	// the URL of a server, such as http://127.0.0.1:8080. "": every page is one that is
	// not found.
	Decoy string
}

// fields are the texts of a Config, with the names of the options that carry them to
// another process.
var fields = []struct {
	name string
	of   func(*Config) *string
}{
	{"tls-cert", func(c *Config) *string { return &c.CertFile }},
	{"tls-key", func(c *Config) *string { return &c.KeyFile }},
	{"tls-acme", func(c *Config) *string { return &c.Name }},
	{"tls-email", func(c *Config) *string { return &c.Email }},
	{"tls-directory", func(c *Config) *string { return &c.Directory }},
	{"tls-ca", func(c *Config) *string { return &c.CAFile }},
	{"tls-http", func(c *Config) *string { return &c.HTTP }},
	{"decoy", func(c *Config) *string { return &c.Decoy }},
}

// Options writes c as options of a transport.
func (c *Config) Options() (options adapter.Args) {
	for _, f := range fields {
		if value := *f.of(c); value != "" {
			options.Add(f.name, value)
		}
	}
	return options
}

// SetOption takes one of Options. It is false if the option is another one.
func (c *Config) SetOption(name, value string) bool {
	for _, f := range fields {
		if f.name == name {
			*f.of(c) = value
			return true
		}
	}
	return false
}

// Check returns an error if c can't be that of a Site. It looks at no file.
func (c *Config) Check() error {
	if files := c.CertFile != "" && c.KeyFile != ""; files == (c.Name != "") || files != (c.CertFile+c.KeyFile != "") {
		return adapter.Constant("tls needs a certificate and its key, or the name for an authority")
	}
	return nil
}

// What visitors may take. Whatever a visitor can see of a limit, such as the settings of
// HTTP/2 or the longest head, is net/http's own: other values would be the mark of this
// program.
const (
	headTimeout = 30 * time.Second
	idleTimeout = 2 * time.Minute

	// Requests that the decoy answers at the same time: of all visitors, and of one
	// address. Above that, there is no answer.
	maxRequests        = 1024
	maxNetworkRequests = 256

	// net/http takes heads of 1 MiB, and as much of a body before anybody reads it. A
	// visitor of whom more than manyBytes are held is a large one. There may be so many
	// large ones, of all visitors and of one address. Above that, their connections end.
	manyBytes       = 32 << 10
	maxLarge        = 32
	maxNetworkLarge = 16

	maxPlain = 128 // connections to Config.HTTP
)

// A Site serves visitors. Make it with New.
type Site struct {
	server *http.Server
	plain  *http.Server // on Config.HTTP; nil: there is none
	cert   certificates
	tunnel Tunnel

	origin *origin // nil: the decoy is no server

	requests, large places

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	visitors visitors
	wg       sync.WaitGroup // all goroutines but those of requests
	serving  sync.WaitGroup // connections that net/http has, and requests
}

// A Tunnel looks at a request on a connection that Handle has got. If it asks for a tunnel
// in the right way, the answer is to be written, and the connection leaves the web server.
// It is called from many goroutines.
type Tunnel func(conn net.Conn, r *http.Request) (answer string, ok bool)

// certificates knows what the server shows in TLS.
type certificates interface {
	// get returns the certificate. There is one, whatever name a client asks for.
	get(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// run keeps it in order until ctx ends.
	run(ctx context.Context)
}

// New makes a Site. stateDir is where an authority's certificate is kept, with its key. The
// caller calls Close.
func New(cfg Config, stateDir string, tunnel Tunnel, logger *slog.Logger) (*Site, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	s := &Site{
		tunnel:   tunnel,
		requests: places{most: maxRequests, mostOf: maxNetworkRequests},
		large:    places{most: maxLarge, mostOf: maxNetworkLarge},
	}
	config := &tls.Config{}
	var authority *authority
	if cfg.Name != "" {
		a, err := newAuthority(cfg, stateDir, logger)
		if err != nil {
			return nil, err
		}
		authority, s.cert = a, a
		config.GetConfigForClient = a.challenge
	} else {
		f, err := openFiles(cfg.CertFile, cfg.KeyFile, logger)
		if err != nil {
			return nil, err
		}
		s.cert = f
	}
	config.GetCertificate = s.cert.get
	decoy, origin, err := newDecoy(cfg.Decoy, logger)
	if err != nil {
		return nil, err
	}
	s.origin = origin
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.server = newServer(s, config)
	s.server.Handler = s.only(decoy)
	if cfg.HTTP != "" {
		ln, err := net.Listen("tcp", cfg.HTTP)
		if err != nil {
			s.cancel()
			return nil, fmt.Errorf("tls: http: %w", err)
		}
		s.plain = newServer(s, nil)
		s.plain.Handler = toTLS
		if authority != nil {
			s.plain.Handler = authority.answer(toTLS)
		}
		s.plain.IdleTimeout = 10 * time.Second
		s.wg.Go(func() { _ = s.plain.Serve(netutil.LimitListener(ln, maxPlain)) })
	}
	s.visitors.arrived, s.visitors.ended = make(chan net.Conn), s.ctx.Done()
	serve := func() error { return s.server.ServeTLS(&s.visitors, "", "") }
	if origin != nil {
		config.NextProtos = []string{"h2", "http/1.1"}
		serve = func() error { return s.server.Serve(&s.visitors) }
	}
	s.wg.Go(func() { _ = serve() })
	s.wg.Go(func() { s.cert.run(s.ctx) })
	return s, nil
}

// newServer makes the web server. s may be nil in a test that wants to see the same server
// without anything behind it.
func newServer(s *Site, config *tls.Config) *http.Server {
	server := &http.Server{
		TLSConfig:         config,
		ReadHeaderTimeout: headTimeout,
		IdleTimeout:       idleTimeout,
		HTTP2:             &http.HTTP2Config{WriteByteTimeout: idleTimeout},
		ErrorLog:          log.New(io.Discard, "", 0), // its lines have addresses of visitors
	}
	if s == nil {
		return server
	}
	server.BaseContext = func(net.Listener) context.Context { return s.ctx }
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		t, ok := c.(*tls.Conn)
		if !ok {
			return ctx
		}
		v := t.NetConn().(*visitor)
		ctx, cancel := context.WithCancel(ctx)
		context.AfterFunc(v.ctx, cancel)
		return context.WithValue(ctx, visitorKey{}, v)
	}
	server.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.serving.Add(1)
		case http.StateIdle:
			if t, ok := c.(*tls.Conn); ok {
				t.NetConn().(*visitor).holdsNothing()
			}
		case http.StateClosed, http.StateHijacked:
			s.serving.Done()
		}
	}
	return server
}

// only lets the decoy answer all that asks for no tunnel.
func (s *Site) only(decoy http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.serving.Add(1)
		defer s.serving.Done()
		v, ok := r.Context().Value(visitorKey{}).(*visitor)
		if ok && r.ProtoMajor == 1 {
			if answer, ok := s.tunnel(v.Conn, r); ok {
				v.open(w, answer)
				return
			}
		}
		network := networkOf(r.RemoteAddr)
		if !s.requests.enter(network) {
			panic(http.ErrAbortHandler) // an answer might have to wait for the visitor
		}
		defer s.requests.leave(network)
		if ok {
			defer v.holdsLess(headLength(r))
			if r.Body != http.NoBody {
				// A copy: net/http looks for its own body in the request that it has made.
				r = r.WithContext(r.Context())
				r.Body = &body{r.Body, v}
			}
		}
		decoy.ServeHTTP(w, r)
	})
}

func networkOf(addr string) netip.Prefix {
	from, _ := netip.ParseAddrPort(addr)
	return subnet.Of(from.Addr())
}

// headLength is about the number of bytes that r's head takes.
func headLength(r *http.Request) int {
	n := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			n += len(name) + len(value)
		}
	}
	return n
}

// A body is that of a visitor's request. What is read of it is not held any more.
type body struct {
	io.ReadCloser
	from *visitor
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.from.holdsLess(n)
	if err != nil && err != io.EOF {
		err = &bodyError{err}
	}
	return n, err
}

// A bodyError says that a visitor has not sent its body as a whole.
type bodyError struct{ error }

// toTLS leads a visitor without TLS to the same page with TLS.
var toTLS = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if _, port, err := net.SplitHostPort(host); err == nil {
		host = strings.TrimSuffix(host, ":"+port) // an address of IPv6 keeps its brackets
	}
	if host == "" || !strings.HasPrefix(r.URL.Path, "/") {
		http.Error(w, http.StatusText(http.StatusBadRequest), http.StatusBadRequest)
		return
	}
	target := *r.URL
	target.Scheme, target.Host = "https", host
	http.Redirect(w, r, target.String(), http.StatusMovedPermanently)
})

// Handle serves one visitor's connection. If it asks for a tunnel, the tunnel is what Handle
// returns, after the answer; rest is what was read of it. Otherwise Handle returns an error
// when the connection has ended. When leave is closed, Handle waits for nobody any more: the
// caller has seen to it that reads and writes fail.
func (s *Site) Handle(conn net.Conn, leave <-chan struct{}) (tunnel net.Conn, rest []byte, err error) {
	v := &visitor{Conn: conn, site: s, network: networkOf(conn.RemoteAddr().String()), gone: make(chan struct{}), opened: make(chan struct{})}
	var cancel context.CancelFunc
	v.ctx, cancel = context.WithCancel(s.ctx)
	defer cancel()
	if s.origin != nil {
		s.serving.Go(func() { s.welcome(v) })
	} else {
		select {
		case s.visitors.arrived <- v:
		case <-s.ctx.Done():
			return nil, nil, net.ErrClosed
		}
	}
	for {
		select {
		case <-v.opened:
			return v.tunnel, v.rest, v.err
		case <-v.gone:
			return nil, nil, errVisitor
		case <-leave:
			cancel()
			leave = nil
		}
	}
}

var errVisitor = adapter.Constant("a visitor of the website")

// Close ends the Site, except tunnels. The caller has closed all connections that Handle
// has got.
func (s *Site) Close() {
	s.cancel()
	_ = s.server.Close()
	if s.plain != nil {
		_ = s.plain.Close()
	}
	s.wg.Wait()
	s.serving.Wait()
	if s.origin != nil {
		s.origin.web.CloseIdleConnections()
	}
}

// Cancel ends what the Site is waiting for, so that the connections end that it serves.
func (s *Site) Cancel() { s.cancel() }

// A visitor is a connection that net/http serves.
type visitor struct {
	net.Conn
	site    *Site
	network netip.Prefix    // a tunnel's connection may have another address
	ctx     context.Context // ends when nobody is to be waited for
	once    sync.Once
	gone    chan struct{} // closed with the connection

	mu    sync.Mutex
	held  int // bytes that were read, and belong to a request that is not done
	large bool
	left  bool // the visitor is none any more: nothing is counted

	opened chan struct{} // closed when the fields below are set
	tunnel net.Conn
	rest   []byte
	err    error
}

type visitorKey struct{}

// Read counts what the server holds of the visitor's bytes: nobody can see how far net/http
// is with them.
func (v *visitor) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	if !v.holds(n) {
		return 0, errCrowded
	}
	return n, err
}

var errCrowded = adapter.Constant("too many large requests at once")

// holds adds n bytes. It is false if that makes the visitor a large one, and there are
// enough of them.
func (v *visitor) holds(n int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held += n
	if v.held > manyBytes && !v.large && !v.left {
		v.large = v.site.large.enter(v.network)
		return v.large
	}
	return true
}

// holdsLess takes n bytes off. Over HTTP/2 a head is longer than what came of it: what is
// held is never less than nothing.
func (v *visitor) holdsLess(n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held = max(v.held-n, 0)
	if v.held <= manyBytes && v.large {
		v.large = false
		v.site.large.leave(v.network)
	}
}

// holdsNothing says that all requests are done.
func (v *visitor) holdsNothing() { v.holdsLess(math.MaxInt) }

// leave says that there are no more requests.
func (v *visitor) leave() {
	v.mu.Lock()
	v.left = true
	v.mu.Unlock()
	v.holdsNothing()
}

func (v *visitor) Close() error {
	err := v.Conn.Close()
	v.leave()
	v.once.Do(func() { close(v.gone) })
	return err
}

// CloseWrite is used by net/http after an error in a request, to let a visitor read it.
func (v *visitor) CloseWrite() error {
	if c, ok := v.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// open takes the connection from net/http and writes the answer.
func (v *visitor) open(w http.ResponseWriter, answer string) {
	defer close(v.opened)
	v.leave()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		v.err = err
		return
	}
	v.tunnel = conn
	v.rest, _ = buffered.Reader.Peek(buffered.Reader.Buffered())
	if _, v.err = io.WriteString(conn, answer); v.err == nil {
		v.err = conn.SetDeadline(time.Time{})
	}
	if v.err != nil {
		_ = conn.Close()
	}
}

// visitors is the listener from which net/http takes the connections.
type visitors struct {
	arrived chan net.Conn
	ended   <-chan struct{}
}

func (l *visitors) Accept() (net.Conn, error) {
	select {
	case c := <-l.arrived:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *visitors) Close() error   { return nil }
func (l *visitors) Addr() net.Addr { return &net.TCPAddr{} }

// places are those that there are for something, for all visitors and for each network.
type places struct {
	most, mostOf int // of all, and of one network

	mu  sync.Mutex
	all int
	of  map[netip.Prefix]int
}

func (p *places) enter(network netip.Prefix) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= p.most || p.of[network] >= p.mostOf {
		return false
	}
	if p.of == nil {
		p.of = make(map[netip.Prefix]int)
	}
	p.all++
	p.of[network]++
	return true
}

func (p *places) leave(network netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.of[network]--; p.of[network] == 0 {
		delete(p.of, network)
	}
}
