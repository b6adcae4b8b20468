package builtin

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	cryptorand "crypto/rand"
	"crypto/sha1"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	utls "github.com/refraction-networking/utls"
	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/utlsutil"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"
	webtunnelproject "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/webtunnel"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/webtunnel/common/certiChainHashCalc"
	"golang.org/x/net/http/httpguts"

	"ptgate/adapter"
	"ptgate/adapter/durable"
)

// Both sides of webtunnel are written here, on top of the projects' own pieces for
// TLS. Their clients and servers are the same on the wire, but they read the HTTP
// head through a buffer that they drop, with all that came behind the head, send an
// IPv6 host without its brackets, and take the client's address from that part of
// X-Forwarded-For that the client itself may have written.

// webtunnelHello is the TLS client hello that clients imitate unless told otherwise.
const webtunnelHello = "hellorandomizednoalpn"

// switching is the server's answer to a request without a key, to the byte that of the
// project's server.
const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"

// switchingAnswer is the answer to a request. One that has a key, as browsers send it, gets
// what belongs to the key (RFC 6455 section 4.2.2): HAProxy passes no other answer on.
func switchingAnswer(request *http.Request) string {
	key := request.Header.Get("Sec-Websocket-Key")
	if key == "" {
		return switching
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return strings.TrimSuffix(switching, "\r\n") + "Sec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n\r\n"
}

// asksForTunnel tells whether a request is one of a client. The project's clients send no
// key and no version. If there is one, it must be right.
func asksForTunnel(r *http.Request) bool {
	keys, versions := r.Header["Sec-Websocket-Key"], r.Header["Sec-Websocket-Version"]
	if r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || r.ContentLength != 0 || len(keys) > 1 || len(versions) > 1 {
		return false
	}
	if len(keys) == 1 {
		if nonce, err := base64.StdEncoding.DecodeString(keys[0]); err != nil || len(nonce) != webSocketKey {
			return false
		}
	}
	return isUpgrade(r.Header) && (len(versions) == 0 || versions[0] == webSocketVersion)
}

// The length of a key in bytes, and the version that there is (RFC 6455 section 4.1).
const (
	webSocketKey     = 16
	webSocketVersion = "13"
)

// A webtunnelClient makes connections for any number of bridges.
type webtunnelClient struct {
	mu   sync.Mutex
	turn map[string]int // of a list of server names, the one in use
}

func newWebtunnelClient(string) (base.ClientFactory, error) {
	return &webtunnelClient{turn: make(map[string]int)}, nil
}

func (c *webtunnelClient) Transport() base.Transport         { return nil } // it belongs to none
func (c *webtunnelClient) OnEvent(func(base.TransportEvent)) {}

// A webtunnelBridge is a bridge line's args, read.
type webtunnelBridge struct {
	url   *url.URL
	addr  string // host:port to connect to
	list  string // server names for TLS, with commas; one of them is sent
	check string // the name that the certificate is for, where it is another; "*": any
	hash  []byte // of the certificate chain, instead of what authorities say; nil: none
	hello *utls.ClientHelloID
}

// ParseArgs gives a *webtunnelBridge.
func (c *webtunnelClient) ParseArgs(args *pt.Args) (any, error) {
	raw, ok := args.Get("url")
	if !ok {
		return nil, adapter.Constant("missing argument 'url'")
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return nil, adapter.Constant("malformed argument 'url'")
	}
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if port == "" {
		return nil, adapter.Constant("argument 'url' is neither http nor https")
	}
	if u.Port() != "" {
		port = u.Port()
	}
	b := &webtunnelBridge{url: u, addr: net.JoinHostPort(u.Hostname(), port), list: u.Hostname()}
	if addr, ok := args.Get("addr"); ok {
		b.addr = addr
	}
	if name, ok := args.Get("sni-imitation"); ok {
		b.list, b.check = name, u.Hostname()
	}
	if name, ok := args.Get("servername"); ok {
		b.list = name
	}
	if name, ok := args.Get("cert-domain"); ok {
		b.check = name
	}
	if len(serverNames(b.list)) == 0 {
		return nil, adapter.Constant("there is no server name for TLS")
	}
	if text, ok := args.Get("cert"); ok {
		if b.hash, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, adapter.Constant("malformed argument 'cert'")
		}
	}
	hello, _ := args.Get("utls")
	if hello == "" {
		hello = webtunnelHello
	}
	b.hello, err = utlsutil.ParseClientHelloID(hello) // nil for none
	return b, err
}

func serverNames(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// serverName picks one of the names of list. They take turns: failed gives way to
// the next one.
func (c *webtunnelClient) serverName(list string) (name string, failed func()) {
	names := serverNames(list)
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ok := c.turn[list]
	if !ok && len(names) > 1 {
		now = rand.IntN(len(names))
		c.turn[list] = now
	}
	return names[now], func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(names) > 1 && c.turn[list] == now {
			c.turn[list] = (now + 1) % len(names)
		}
	}
}

// Dial connects, and leaves the connection open where that fails.
func (c *webtunnelClient) Dial(network, _ string, dial base.DialFunc, args any) (net.Conn, error) {
	b := args.(*webtunnelBridge)
	conn, err := dial(network, b.addr)
	if err != nil {
		return nil, err
	}
	if b.url.Scheme == "http" {
		return askUpgrade(conn, b.url)
	}
	name, failed := c.serverName(b.list)
	secure, err := b.startTLS(conn, name)
	if err == nil {
		conn, err = askUpgrade(secure, b.url)
	}
	if err != nil {
		failed()
	}
	return conn, err
}

// startTLS does the TLS handshake, with name as the server name.
func (b *webtunnelBridge) startTLS(conn net.Conn, name string) (net.Conn, error) {
	if b.hello != nil {
		cfg := &utls.Config{ServerName: name, InsecureServerNameToVerify: b.check}
		if b.hash != nil {
			cfg.InsecureSkipVerify = true
			cfg.VerifyPeerCertificate = func(chain [][]byte, _ [][]*x509.Certificate) error { return b.checkHash(chain) }
		}
		c := utls.UClient(conn, cfg, *b.hello)
		return c, c.Handshake()
	}
	cfg := &tls.Config{ServerName: name}
	switch {
	case b.hash != nil:
		cfg.InsecureSkipVerify = true
		cfg.VerifyPeerCertificate = func(chain [][]byte, _ [][]*x509.Certificate) error { return b.checkHash(chain) }
	case b.check != "":
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return checkChain(s.PeerCertificates, b.check) }
	}
	c := tls.Client(conn, cfg)
	return c, c.Handshake()
}

// checkHash compares with the hash in the bridge line.
func (b *webtunnelBridge) checkHash(chain [][]byte) error {
	if !hmac.Equal(certiChainHashCalc.GenerateCertChainHash(chain), b.hash) {
		return ErrOtherCertificate
	}
	return nil
}

// checkChain does what crypto/tls does itself where the server name that is sent is
// the one that the certificate is for. "*": any name.
func checkChain(chain []*x509.Certificate, name string) error {
	opts := x509.VerifyOptions{DNSName: name, Intermediates: x509.NewCertPool()}
	if name == "*" {
		opts.DNSName = ""
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(opts)
	return err
}

// askUpgrade asks the web server at the other end of conn for the tunnel.
func askUpgrade(conn net.Conn, u *url.URL) (net.Conn, error) {
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // RFC 9110 section 7.2: as in the URL
	}
	var key [webSocketKey]byte
	_, _ = cryptorand.Read(key[:]) // it never fails
	request := &http.Request{
		Method: http.MethodGet,
		URL:    &url.URL{Path: u.Path, RawPath: u.RawPath},
		Host:   host,
		// The project's clients send neither key nor version. Browsers do, and there are
		// web servers that pass nothing on without them, such as HAProxy.
		Header: http.Header{
			"Connection":            {"upgrade"},
			"Upgrade":               {"websocket"},
			"Sec-WebSocket-Key":     {base64.StdEncoding.EncodeToString(key[:])},
			"Sec-WebSocket-Version": {webSocketVersion},
		},
	}
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	bounded := &io.LimitedReader{R: conn, N: maxHead}
	in := bufio.NewReader(bounded)
	answer, err := http.ReadResponse(in, request)
	if bounded.N == 0 && err != nil {
		err = errHandshakeTooLong
	}
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols || !isUpgrade(answer.Header) {
		refused := &StatusError{Status: answer.StatusCode}
		refused.Date, _ = http.ParseTime(answer.Header.Get("Date"))
		return nil, refused
	}
	return behindHead(conn, in), nil
}

// A StatusError is the answer of a web server that opens no tunnel.
type StatusError struct {
	Status int
	Date   time.Time // by the server's clock; zero: it does not say
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("the web server answered %d, and opened no tunnel", e.Status)
}

// Class is the text: it has no address; see adapter.Class.
func (e *StatusError) Class() string { return e.Error() }

// ErrOtherCertificate says that a web server has shown another certificate than the one
// whose hash the bridge line has.
var ErrOtherCertificate = adapter.Constant("the certificate is not that of the bridge line")

// isUpgrade looks for the two header fields, which request and answer share (RFC 9110
// section 7.8). Both are lists.
func isUpgrade(h http.Header) bool {
	return httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade") &&
		httpguts.HeaderValuesContainsToken(h["Upgrade"], "websocket")
}

// behindHead is conn, from which in has read a head.
func behindHead(conn net.Conn, in *bufio.Reader) net.Conn {
	rest, _ := in.Peek(in.Buffered())
	if len(rest) == 0 {
		return conn
	}
	return &aheadConn{conn, bytes.Clone(rest)}
}

// An aheadConn is a connection that more was read of than its handshake. newConn
// takes it apart.
type aheadConn struct {
	net.Conn
	ahead []byte
}

func (l *Listener) setUpWebtunnel() error {
	options := toPT(l.cfg.Options)
	if _, err := configuredPath(l.cfg.StateDir, l.cfg.Options); errors.Is(err, fs.ErrNotExist) {
		if err := makePath(l.cfg.StateDir); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if _, ok := options.Get("ver"); !ok {
		options.Add("ver", webtunnelproject.Version)
	}
	l.cfg.Options = fromPT(options)
	l.accept = l.acceptWebtunnel
	return l.ReadKeys()
}

// webtunnelSecret is the path of its url, or of a file if the url has none. A web server in
// front may let a path through that has ended.
var webtunnelSecret = secretKind{
	configured: configuredPath,
	renew: func(adapter.Args, bool) (adapter.Args, error) {
		return adapter.Args{{Key: "path", Value: newPath()}}, nil
	},
	args: withPath,
	take: (*Listener).takePaths,
}

// pathFile is in the state directory, for a url without a path.
const pathFile = "webtunnel_path.txt"

func configuredPath(stateDir string, options adapter.Args) (adapter.Args, error) {
	raw, ok := options.Get("url")
	if !ok {
		return nil, adapter.Constant("missing option 'url'")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, adapter.Constant("malformed option 'url'") // the error would have the secret path
	}
	path := u.Path
	if hasNoPath(options) {
		if stateDir == "" {
			return nil, adapter.Constant("option 'url' has no path, and there is no state directory for one")
		}
		name := filepath.Join(stateDir, pathFile)
		text, err := durable.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("the secret path can't be read: %w", err)
		}
		path = strings.TrimSpace(string(text))
		if u, err := url.Parse(path); err != nil || len(path) < 2 || path[0] != '/' || u.Path != path {
			return nil, fmt.Errorf("the secret path in %s is damaged: put a copy of the file in its place; "+
				"if there is none, remove the file: then a new path is made, and all clients need the new bridge line", name)
		}
	}
	return adapter.Args{{Key: "path", Value: path}}, nil
}

// makePath makes a path that nobody can guess, and keeps it.
func makePath(stateDir string) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	err := durable.WriteNew(filepath.Join(stateDir, pathFile), []byte(newPath()+"\n"), 0o600)
	if err != nil && !errors.Is(err, fs.ErrExist) { // or another process was faster: its path counts
		return fmt.Errorf("the server's secret path can't be kept: %w", err)
	}
	return nil
}

func withPath(args, secret adapter.Args) (adapter.Args, error) {
	raw, _ := args.Get("url")
	u, err := url.Parse(raw)
	if err != nil {
		return nil, adapter.Constant("malformed option 'url'")
	}
	path, ok := secret.Get("path")
	if !ok {
		return nil, adapter.Constant("path is missing")
	}
	u.Path = path
	u.RawPath = ""
	return replaced(args, adapter.Args{{Key: "url", Value: u.String()}}), nil
}

// secretPaths are the paths of a Listener.
type secretPaths struct {
	newest string
	old    []oldSecret
}

func (l *Listener) takePaths(r rotation) error {
	args := l.cfg.Options
	if r.Of == "" {
		var err error
		if r.New, err = configuredPath(l.cfg.StateDir, args); err != nil {
			return err
		}
	}
	if r.Of != "" || hasNoPath(args) {
		var err error
		if args, err = withPath(args, r.New); err != nil {
			return err
		}
	}
	newest, _ := r.New.Get("path")
	l.paths.Store(&secretPaths{newest, r.Old})
	l.setArgs(args)
	return nil
}

// acceptVisitor lets the website answer, until it is asked for a tunnel.
func (l *Listener) acceptVisitor(c *link) (net.Conn, netip.AddrPort, error) {
	conn, rest, err := l.site.Handle(c, c.guest.gone)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	if len(rest) > 0 {
		conn = &aheadConn{conn, bytes.Clone(rest)}
	}
	return conn, addrPort(c.RemoteAddr()), nil
}

// tunnel is asked by the website for each request. For all that is not let in, the website
// answers as if nobody had asked.
func (l *Listener) tunnel(conn net.Conn, request *http.Request) (answer string, ok bool) {
	if !asksForTunnel(request) {
		return "", false
	}
	if !l.isSecret(request) {
		if l.hasEnded(request) {
			l.turnedAway()
		}
		return "", false
	}
	c := conn.(*link)
	from := addrPort(c.RemoteAddr())
	if l.cfg.TrustedHops > 0 && l.isProxy(from.Addr()) {
		from = forwardedFor(request.Header["X-Forwarded-For"], l.cfg.TrustedHops)
	}
	if !l.admitted(from) {
		return "", false // the next request on this connection may be another client's
	}
	c.from = &from
	return switchingAnswer(request), true
}

// isSecret tells whether a request has the secret path. The time that it takes says nothing
// about how much of the path is right.
func (l *Listener) isSecret(request *http.Request) bool {
	p := l.paths.Load()
	found := samePath(request, p.newest)
	now := time.Now()
	for _, o := range p.old {
		path, _ := o.Secret.Get("path")
		if same := samePath(request, path); o.good(now) {
			found |= same
		}
	}
	return found == 1
}

// hasEnded tells whether a request has a path that was secret, and is good no more.
func (l *Listener) hasEnded(request *http.Request) bool {
	found := 0
	for _, o := range l.paths.Load().old {
		path, _ := o.Secret.Get("path")
		found |= samePath(request, path)
	}
	return found == 1 && !l.isSecret(request)
}

func samePath(request *http.Request, path string) int {
	return subtle.ConstantTimeCompare([]byte(strings.TrimPrefix(request.URL.Path, "/")), []byte(strings.TrimPrefix(path, "/")))
}

// acceptWebtunnel reads the request that the web server in front passes on. What is
// no request for a tunnel gets no answer, as from the project's server: the web
// server then makes one in its own words, by which nobody can tell us from others.
func (l *Listener) acceptWebtunnel(c *link) (_ net.Conn, from netip.AddrPort, err error) {
	defer rescue(nameWebtunnel, &err)
	c.expect(maxHead)
	if err := c.SetDeadline(time.Now().Add(upgradeTimeout)); err != nil {
		return nil, from, err
	}
	in := bufio.NewReader(c)
	request, err := http.ReadRequest(in)
	if err != nil {
		return nil, from, err
	}
	if !asksForTunnel(request) {
		return nil, from, adapter.Constant("a request that asks for no tunnel")
	}
	from = addrPort(c.RemoteAddr())
	switch {
	case l.hasEnded(request):
		// The web server in front still passes the path on. It is to look like any other that
		// is not there: without an answer, the web server would say that something is. Past the
		// web server, no stranger gets an answer.
		if l.isProxy(from.Addr()) {
			_, _ = c.Write([]byte(notFound))
		}
		return nil, from, errEnded
	case !l.isProxy(from.Addr()):
		// No web server has looked at the path, and the header may be forged.
		if !l.isSecret(request) {
			return nil, from, adapter.Constant("a request past the web server, without the secret path")
		}
	case l.cfg.TrustedHops > 0:
		from = forwardedFor(request.Header["X-Forwarded-For"], l.cfg.TrustedHops)
	}
	if !l.admitted(from) {
		return nil, from, errDenied
	}
	if _, err := c.Write([]byte(switchingAnswer(request))); err != nil {
		return nil, from, err
	}
	return behindHead(c, in), from, c.SetDeadline(time.Time{})
}

const notFound = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// isProxy tells whether a is the address of a web server in front.
func (l *Listener) isProxy(a netip.Addr) bool {
	a = a.WithZone("") // no prefix contains an address with a zone
	return slices.ContainsFunc(l.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// forwardedFor gives the client's address: the entry of X-Forwarded-For that is hops
// from the end, where each proxy has put that of its own client. Several lines are
// one list (RFC 9110 section 5.3). What stands before that entry may come from the
// client itself. The result is invalid where there is no such entry, or it is no
// address.
func forwardedFor(lines []string, hops int) (client netip.AddrPort) {
	entries := strings.Split(strings.Join(lines, ","), ",")
	if len(entries) < hops {
		return client
	}
	entry := strings.TrimSpace(entries[len(entries)-hops])
	// Some proxies add the port.
	if client, err := netip.ParseAddrPort(entry); err == nil {
		return netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	}
	if inner, ok := strings.CutPrefix(entry, "["); ok {
		entry = strings.TrimSuffix(inner, "]")
	}
	addr, err := netip.ParseAddr(entry)
	if err != nil {
		return client
	}
	return netip.AddrPortFrom(addr.Unmap(), 0)
}
