package builtin

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/webtunnel/common/certiChainHashCalc"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ptgate/adapter/builtin/website"
)

const (
	siteName   = "www.example.com"
	secretPath = "/secret-path"
)

// writeCert makes a certificate and its key in dir, and returns the pin that bridge lines
// have.
func writeCert(t testing.TB, dir string) (key, cert, pin string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: siteName}, DNSNames: []string{siteName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, kind string, der []byte) string {
		name = filepath.Join(dir, name)
		// As a careful operator does it: the whole file appears at once.
		if err := os.WriteFile(name+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	return put("key.pem", "PRIVATE KEY", pkcs), put("cert.pem", "CERTIFICATE", der), base64.StdEncoding.EncodeToString(certiChainHashCalc.GenerateCertChainHash([][]byte{der}))
}

// pages is a directory with a website.
func pages(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"index.html": "<!doctype html><title>Bees</title>", "style.css": "body {}", "sub/index.html": "<p>sub", "list/a.txt": strings.Repeat("a", 100_000),
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// siteFor is a listener with a website.
func siteFor(t testing.TB, site website.Config, change func(*ServerConfig)) *Listener {
	t.Helper()
	return serverFor(t, nameWebtunnel, func(c *ServerConfig) {
		c.Site, c.TrustedProxies = &site, []netip.Prefix{}
		c.Options = argsOf("url", "https://"+siteName+secretPath)
		if change != nil {
			change(c)
		}
	})
}

// alone serves the decoy with net/http, and nothing else: what a Listener with a website
// must look like.
func alone(t testing.TB, cert, key string, decoy http.Handler) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: decoy, ErrorLog: log.New(io.Discard, "", 0),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ServeTLS(ln, cert, key)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return ln.Addr().String()
}

// A siteProbe is what somebody does who wants to know what a server is.
type siteProbe struct {
	name string
	tls  *tls.Config // nil: no TLS
	send string      // over HTTP/1
	h2   [][2]string // the fields of a request over HTTP/2; nil: a usual one
}

var dates = regexp.MustCompile(`\r\nDate: [^\r]*\r\n`)

// do gives all that the server at addr lets the prober see.
func (p *siteProbe) do(addr string) (seen string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "dial: " + err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	var conn interface {
		net.Conn
		CloseWrite() error
	} = c.(*net.TCPConn)
	var b strings.Builder
	if p.tls != nil {
		cfg := p.tls.Clone()
		cfg.InsecureSkipVerify = true
		secure := tls.Client(c, cfg)
		err := secure.Handshake()
		s := secure.ConnectionState()
		fmt.Fprintf(&b, "tls: %v %x %x %q resumed %v\n", err, s.Version, s.CipherSuite, s.NegotiatedProtocol, s.DidResume)
		for _, cert := range s.PeerCertificates {
			fmt.Fprintf(&b, "certificate %s\n", cert.SerialNumber)
		}
		if err != nil {
			return b.String()
		}
		conn = secure
	}
	if secure, ok := conn.(*tls.Conn); ok && secure.ConnectionState().NegotiatedProtocol == "h2" {
		fields := p.h2
		if fields == nil {
			fields = [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", siteName}, {":path", "/"}}
		}
		b.WriteString(overHTTP2(conn, fields))
		return b.String()
	}
	if _, err := io.WriteString(conn, p.send); err != nil {
		fmt.Fprintf(&b, "write: %v\n", err)
	}
	var answer bytes.Buffer
	if !p.isHalf() {
		// The end of a client's direction may overtake an answer.
		method, _, _ := strings.Cut(p.send, " ")
		if r, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &answer)), &http.Request{Method: method}); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}
	_ = conn.CloseWrite()
	_, err = io.Copy(&answer, conn)
	fmt.Fprintf(&b, "%s\nend: %v", dates.ReplaceAll(answer.Bytes(), []byte("\r\n")), err)
	return b.String()
}

// isHalf tells whether the server may wait for more.
func (p *siteProbe) isHalf() bool {
	return p.tls == nil || !strings.Contains(p.send, "\r\n\r\n") && !strings.Contains(p.send, "\n\n") || p.isHalfBody()
}

// isHalfBody tells whether it waits for the rest of a body.
func (p *siteProbe) isHalfBody() bool {
	return strings.HasSuffix(p.send, "\r\n\r\nabc") || strings.HasSuffix(p.send, "\r\nzz\r\n") || strings.HasPrefix(p.send, "GET") && strings.Contains(p.send, "Expect:")
}

// overHTTP2 does one request, and gives the frames of the answer: those of the connection
// first, in alphabetical order, because a server may send these at any time.
func overHTTP2(conn net.Conn, fields [][2]string) string {
	_, _ = io.WriteString(conn, http2.ClientPreface)
	f := http2.NewFramer(conn, conn)
	_ = f.WriteSettings()
	var block bytes.Buffer
	encode := hpack.NewEncoder(&block)
	for _, field := range fields {
		_ = encode.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	var common, stream []string
	var body []byte
	decode := hpack.NewDecoder(4096, nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			stream = append(stream, fmt.Sprintf("end: %v", err))
			break
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			text := fmt.Sprintf("settings ack=%v", frame.IsAck())
			_ = frame.ForeachSetting(func(s http2.Setting) error { text += " " + s.String(); return nil })
			common = append(common, text)
			continue
		case *http2.WindowUpdateFrame:
			common = append(common, fmt.Sprintf("window %d %d", frame.StreamID, frame.Increment))
			continue
		case *http2.HeadersFrame:
			list, err := decode.DecodeFull(frame.HeaderBlockFragment())
			text := []string{fmt.Sprintf("headers %v", err)}
			for _, h := range list {
				if h.Name != "date" {
					text = append(text, h.String())
				}
			}
			// net/http's server has an order of its own, in which some fields that a handler
			// gives stand elsewhere than its own.
			slices.Sort(text[1:])
			stream = append(stream, strings.Join(text, " "))
		case *http2.DataFrame:
			body = append(body, frame.Data()...) // how it is cut into frames is a matter of luck
		case *http2.RSTStreamFrame:
			stream = append(stream, "reset "+frame.ErrCode.String())
		case *http2.GoAwayFrame:
			if frame.ErrCode == http2.ErrCodeNo {
				common = append(common, goesAway(frame))
				continue
			}
			stream = append(stream, goesAway(frame))
		default:
			stream = append(stream, frame.Header().String())
		}
		if h := frame.Header(); h.StreamID == 1 && (h.Flags.Has(http2.FlagDataEndStream) && h.Type != http2.FrameRSTStream || h.Type == http2.FrameRSTStream) {
			common = append(common, afterStream(f)...)
			break
		}
	}
	slices.Sort(common)
	return strings.Join(append(slices.Compact(common), stream...), "\n") + "\n" + string(body)
}

func goesAway(frame *http2.GoAwayFrame) string {
	return fmt.Sprintf("go away %v %q", frame.ErrCode, frame.DebugData())
}

// afterStream gives what a server that wants to end the connection says of it after the
// answer. net/http says it before the answer or after it: its loop takes what is to be sent
// in an order of luck. So it is asked many times whether it is still there.
func afterStream(f *http2.Framer) (said []string) {
	for i := range byte(32) {
		if f.WritePing(false, [8]byte{i}) != nil {
			return said
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return said
			}
			if frame, ok := frame.(*http2.GoAwayFrame); ok {
				return append(said, goesAway(frame))
			}
			if frame, ok := frame.(*http2.PingFrame); ok && frame.IsAck() {
				break
			}
		}
	}
	return said
}

func probes() (all []siteProbe) {
	plain := &tls.Config{ServerName: siteName}
	add := func(name, send string) { all = append(all, siteProbe{name: name, tls: plain, send: send}) }
	upgrade := "Host: " + siteName + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
	key := "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
	for _, path := range []string{"/", "/index.html", "/missing", secretPath, "/list", "/list/", "/sub/../index.html"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "PROPFIND", "get", "X-Y"} {
			add(method+" "+path, method+" "+path+" HTTP/1.1\r\nHost: "+siteName+"\r\n\r\n")
		}
	}
	for _, version := range []string{"HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP/3.0", "HTTP/11", "http/1.1", "", "HTTP/1.1 "} {
		for _, path := range []string{"/", secretPath} {
			add(version+" "+path, "GET "+path+" "+version+"\r\n"+upgrade[:strings.Index(upgrade, "\n")+1]+"\r\n")
		}
	}
	// Upgrades that are no tunnel: to other paths, and to the secret one in a wrong way.
	for _, path := range []string{"/", "/missing", "/list/", secretPath + "/", secretPath[:len(secretPath)-1], secretPath + "2", "/SECRET-PATH",
		"/" + secretPath, "/." + secretPath, secretPath + "/..", "/x" + secretPath, "/?" + secretPath, "*"} {
		add("upgrade "+path, "GET "+path+" HTTP/1.1\r\n"+upgrade+"\r\n")
		add("upgrade with a key "+path, "GET "+path+" HTTP/1.1\r\n"+upgrade+key+"\r\n")
	}
	for _, head := range []string{
		"GET %s HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
		"GET %s HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n\r\n",
		"GET %s HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"GET %s HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n\r\n",
		"GET %s HTTP/1.0\r\n" + upgrade + "\r\n",
		"POST %s HTTP/1.1\r\n" + upgrade + "\r\n",
		"HEAD %s HTTP/1.1\r\n" + upgrade + "\r\n",
		"OPTIONS %s HTTP/1.1\r\n" + upgrade + "\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Content-Length: 3\r\n\r\nabc",
		"GET %s HTTP/1.1\r\n" + upgrade + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Sec-WebSocket-Version: 12\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Sec-WebSocket-Version: 13, 8\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Sec-WebSocket-Key: \r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Sec-WebSocket-Key: abc\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + key + key + "\r\n",
		"GET %s HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", // no Host
		"GET %s HTTP/1.1\r\n" + upgrade + "Host: h\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "A b: c\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Expect: something\r\nContent-Length: 1\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade, // never complete
		"GET %s HTTP/1.1\r\nHost: h\r\nLong: " + strings.Repeat("x", 60<<10) + "\r\n\r\n",
		"GET %s?" + strings.Repeat("x", 60<<10) + " HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET %s HTTP/1.1\r\n" + upgrade + "Long: " + strings.Repeat("x", 2<<20) + "\r\n\r\n",
		"GET %s HTTP/1.1\r\nHost: h\r\nLong: " + strings.Repeat("x", 900<<10) + "\r\n\r\n",
	} {
		for _, path := range []string{secretPath, "/missing"} {
			send := strings.ReplaceAll(head, "%s", path)
			add(send[:min(len(send), 150)], send)
		}
	}
	for _, send := range []string{
		"", "\r\n", "\r\n\r\n", "G", "GET", "GET /\r\n\r\n", "GET / HTTP/1.1\n\n", "GET / HTTP/1.1\nHost: h\n\n", "GET / HTTP/1.1\r\n\r\n",
		"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", " GET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\n folded: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nNo colon\r\n\r\n", "GET / HTTP/1.1\r\nHost: h h\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nA: b\x00c\r\n\r\n", "GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET http://other.example" + secretPath + " HTTP/1.1\r\nHost: h\r\n\r\n", "GET //x HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /missing HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET /style.css HTTP/1.1\r\nHost: h\r\nRange: bytes=0-3\r\n\r\n", "GET /style.css HTTP/1.1\r\nHost: h\r\nRange: bytes=900-\r\n\r\n",
		"GET /list/a.txt HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n", "GET /style.css HTTP/1.1\r\nHost: h\r\nIf-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "GET /?a;b=%zz HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET /abort HTTP/1.1\r\nHost: h\r\n\r\n", "GET /close HTTP/1.1\r\nHost: h\r\n\r\n", "GET /bare HTTP/1.1\r\nHost: h\r\n\r\n", "GET /half HTTP/1.1\r\nHost: h\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"\x05\x01\x00", "SSH-2.0-x\r\n", strings.Repeat("A", 70<<10), "\x16\x03\x01\x00\x05hello", "EHLO h\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
	} {
		add(fmt.Sprintf("%.80q", send), send)
		if len(send) < 1<<10 { // what is longer may meet a reset, which may overtake an answer
			all = append(all, siteProbe{name: fmt.Sprintf("without TLS %.80q", send), send: send})
		}
	}
	request := "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	for name, cfg := range map[string]*tls.Config{
		"no name": {}, "other name": {ServerName: "other.example"}, "address": {ServerName: "192.0.2.1"}, "localhost": {ServerName: "localhost"},
		"TLS 1.0": {ServerName: siteName, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
		"TLS 1.1": {ServerName: siteName, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"TLS 1.2": {ServerName: siteName, MaxVersion: tls.VersionTLS12}, "TLS 1.3": {ServerName: siteName, MinVersion: tls.VersionTLS13},
		"P-521":  {ServerName: siteName, CurvePreferences: []tls.CurveID{tls.CurveP521}},
		"suites": {ServerName: siteName, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
		"h2":     {ServerName: siteName, NextProtos: []string{"h2"}}, "http/1.1": {ServerName: siteName, NextProtos: []string{"http/1.1"}},
		"both": {ServerName: siteName, NextProtos: []string{"h2", "http/1.1"}}, "http/1.1 first": {ServerName: siteName, NextProtos: []string{"http/1.1", "h2"}},
		"http/1.0": {ServerName: siteName, NextProtos: []string{"http/1.0"}}, "acme": {ServerName: siteName, NextProtos: []string{"acme-tls/1"}},
		"spdy": {ServerName: siteName, NextProtos: []string{"spdy/3", "http/1.1"}}, "unknown": {ServerName: siteName, NextProtos: []string{"x"}},
		"h3": {ServerName: siteName, NextProtos: []string{"h3"}}, "many": {ServerName: siteName, NextProtos: []string{"a", "b", "c", "h2"}},
	} {
		all = append(all, siteProbe{name: name, tls: cfg, send: request})
	}
	over2 := &tls.Config{ServerName: siteName, NextProtos: []string{"h2"}}
	for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS", "DELETE", "CONNECT"} {
		for _, path := range []string{"/", "/missing", secretPath, "/list", "/list/", "*", "", "/?a;b=%zz", "/abort", "/close", "/bare", "/a\"b|\xe4?", "//x"} {
			all = append(all, siteProbe{name: "HTTP/2 " + method + " " + path, tls: over2,
				h2: [][2]string{{":method", method}, {":scheme", "https"}, {":authority", siteName}, {":path", path}}})
		}
	}
	for _, more := range [][2]string{{"connection", "upgrade"}, {"upgrade", "websocket"}, {":protocol", "websocket"}, {"te", "trailers"}, {"Upper", "case"},
		{"host", "other.example"}, {"sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="}, {"long", strings.Repeat("x", 8<<10)},
		{"x-forwarded-for", "192.0.2.9"}, {"x-forwarded-proto", "https"}, {"forwarded", "for=192.0.2.9"}, {"proxy-authorization", "Basic eDp5"}} {
		for _, path := range []string{secretPath, "/missing"} {
			fields := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", siteName}, {":path", path}}
			if strings.HasPrefix(more[0], ":") {
				fields[0][1] = "CONNECT"
			}
			all = append(all, siteProbe{name: "HTTP/2 with " + more[0] + " " + path, tls: over2, h2: append(fields, more)})
		}
	}
	return all
}

// Nobody who does not know the secret path can tell the server from its decoy alone, served
// by net/http.
func TestProber(t *testing.T) {
	key, cert, pin := writeCert(t, t.TempDir())
	dir := pages(t)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "nginx/1.22.1")
		switch {
		case r.URL.Path == "/list":
			http.Redirect(w, r, "/list/", http.StatusMovedPermanently)
		case r.Header.Get("Upgrade") != "" && r.URL.Path == "/":
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
		case r.URL.Path == "/missing":
			http.NotFound(w, r)
		case r.URL.Path == "/abort":
			panic(http.ErrAbortHandler)
		case r.URL.Path == "/half":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case r.URL.Path == "/close":
			w.Header().Set("Connection", "close")
		case r.URL.Path == "/bare":
			w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
			w.Header()["x-small"] = []string{"letters"}
			_, _ = io.WriteString(w, "<html>")
		default:
			// The upstream sees nothing of us, either, except that HTTP/2 is HTTP/1 here, where
			// a request says that it has no body, and has one host.
			if r.Header.Get("Content-Length") == "0" || r.Header.Get("Host") != "" {
				r.Header.Del("Content-Length")
				r.Header.Del("Host")
			}
			fmt.Fprintf(w, "%s %s %s %v", r.Method, r.Host, r.RequestURI, r.Header)
		}
	})
	upstream := httptest.NewServer(handler)
	defer upstream.Close()
	for _, decoy := range []struct {
		name, text string
		alone      http.Handler
	}{
		{"none", "", http.NotFoundHandler()},
		{"directory", dir, http.FileServer(http.Dir(dir))},
		{"upstream", upstream.URL, handler},
	} {
		t.Run(decoy.name, func(t *testing.T) {
			l := siteFor(t, website.Config{CertFile: cert, KeyFile: key, Decoy: decoy.text}, nil)
			addr := alone(t, cert, key, decoy.alone)
			all := probes()
			if len(all) < 300 {
				t.Errorf("only %d probes", len(all))
			}
			for _, p := range all {
				want, got := p.do(addr), p.do(l.Addr().String())
				if got != want {
					t.Errorf("%s:\nthe decoy alone:\n%.2000s\n\nwith the tunnel:\n%.2000s", p.name, want, got)
				}
				if strings.Contains(got, "101 Switching") && decoy.name != "upstream" {
					t.Errorf("%s: a tunnel", p.name)
				}
			}
			// The tunnel is there all the same.
			client, server := connectSite(t, l, pin)
			echoes(t, client, server)
		})
	}
}

// connectSite is connect for a listener with a website.
func connectSite(t testing.TB, l *Listener, pin string) (client, server Conn) {
	t.Helper()
	accepted := make(chan Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- c
	}()
	client = dialSite(t, l, pin, "hellorandomizednoalpn")
	if server = <-accepted; server == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = server.Close() })
	return client, server
}

func dialSite(t testing.TB, l *Listener, pin, hello string) Conn {
	t.Helper()
	c, err := clientFor(t, nameWebtunnel, nil).Dial(t.Context(), Placeholder,
		argsOf("url", "https://"+siteName+secretPath, "addr", l.Addr().String(), "cert", pin, "utls", hello))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echoes passes bytes in both directions, and the end.
func echoes(t testing.TB, a, b Conn) {
	t.Helper()
	for range 2 {
		want := randomBytes(t, 300_000)
		errs := make(chan error, 1)
		go func() {
			_, err := a.Write(want)
			errs <- err
		}()
		got := make([]byte, len(want))
		_ = b.SetReadDeadline(time.Now().Add(limit))
		if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%v, the same bytes: %v", err, bytes.Equal(got, want))
		}
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
		a, b = b, a
	}
	if err := a.CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%d bytes, %v after the end", n, err)
	}
}

// lines is what a log has got.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A client may say which name it likes in TLS, and say its first words with the request.
func TestSiteTunnel(t *testing.T) {
	key, cert, _ := writeCert(t, t.TempDir())
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key}, nil)
	for _, name := range []string{siteName, "other.example"} {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst", secretPath)
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		got := make([]byte, 5)
		if _, err := io.ReadFull(server, got); err != nil || string(got) != "first" {
			t.Errorf("%q, %v", got, err)
		}
		if from := addrPort(server.RemoteAddr()); from.String() != c.LocalAddr().String() {
			t.Errorf("from %s, not %s", from, c.LocalAddr())
		}
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
			t.Errorf("%v, %v", answer, err)
		}
	}
}

// A server makes the path that its url has not, once, and keeps it for itself.
func TestSiteOwnPath(t *testing.T) {
	key, cert, pin := writeCert(t, t.TempDir())
	options := OptionsOf(siteName)
	start := func(state string) *Listener {
		return siteFor(t, website.Config{CertFile: cert, KeyFile: key}, func(c *ServerConfig) {
			c.Options, c.StateDir = options, state
		})
	}
	state := filepath.Join(t.TempDir(), "state")
	l := start(state)
	link, _ := l.Args().Get("url")
	if !regexp.MustCompile(`^https://www\.example\.com/[A-Z2-7]{26}$`).MatchString(link) {
		t.Errorf("the url is %q", link)
	}
	name := filepath.Join(state, pathFile)
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	taken := make(chan Conn)
	go func() {
		c, _ := l.Accept()
		taken <- c
	}()
	c, err := clientFor(t, nameWebtunnel, nil).Dial(t.Context(), Placeholder, argsOf("url", link, "addr", l.Addr().String(), "cert", pin))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-taken
	defer s.Close()
	echoes(t, c, s)
	if again, _ := start(state).Args().Get("url"); again != link {
		t.Errorf("after a new start %q, before %q", again, link)
	}
	if other, _ := start(filepath.Join(t.TempDir(), "state")).Args().Get("url"); other == link {
		t.Error("two servers have the same path")
	}
	for text, want := range map[string]string{"": "damaged", "\n": "damaged", "/": "damaged", "path": "damaged", "/a?b": "damaged", "/a\n/b\n": "damaged"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{CheckKeys(nameWebtunnel, state, options), errOf(Listen(ServerConfig{Transport: nameWebtunnel, Bind: "127.0.0.1:0", StateDir: state, Options: options}))} {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%q: %v, want %s", text, err, want)
			}
		}
	}
	if err := errOf(Listen(ServerConfig{Transport: nameWebtunnel, Bind: "127.0.0.1:0", Options: options})); err == nil {
		t.Error("without a state directory there is a path")
	}
}

func errOf(_ *Listener, err error) error { return err }

// Who is not admitted sees the decoy.
func TestSiteDenied(t *testing.T) {
	key, cert, _ := writeCert(t, t.TempDir())
	var asked atomic.Int64
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key}, func(c *ServerConfig) {
		c.Admit = func(netip.AddrPort) bool { asked.Add(1); return false }
	})
	p := siteProbe{tls: &tls.Config{ServerName: siteName}, send: "GET " + secretPath + " HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"}
	addr := alone(t, cert, key, http.NotFoundHandler())
	if got, want := p.do(l.Addr().String()), p.do(addr); got != want || !strings.Contains(got, "404") || asked.Load() != 1 {
		t.Errorf("asked %d times, %q, want %q", asked.Load(), got, want)
	}
}

// A new certificate is shown as soon as both files are there, and the old one until then.
func TestSiteNewCertificate(t *testing.T) {
	dir := t.TempDir()
	key, cert, _ := writeCert(t, dir)
	said := &lines{}
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key}, func(c *ServerConfig) { c.Logger = slog.New(slog.NewTextHandler(said, nil)) })
	shown := func() string {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: siteName, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := shown()
	freshKey, freshCert, _ := writeCert(t, t.TempDir())
	// Files that were written in the same tick of a clock differ all the same.
	for _, name := range []string{freshKey, freshCert} {
		info, err := os.Stat(filepath.Join(dir, filepath.Base(name)))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	for i, move := range [][2]string{{freshKey, key}, {freshCert, cert}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
		if again := shown(); (again == first) != (i == 0) {
			t.Errorf("after %d files: the old one is shown: %v", i+1, again == first)
		}
	}
	if !strings.Contains(said.String(), "the new certificate can't be used") || !strings.Contains(said.String(), "has been read again") {
		t.Error(said)
	}
	second := shown()
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if shown() != second {
		t.Error("without its file the certificate is gone")
	}
}

// A website that waits for its decoy does not hold up the end.
func TestSiteClose(t *testing.T) {
	key, cert, _ := writeCert(t, t.TempDir())
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key, Decoy: "http://" + silent.Addr().String()}, nil)
	for _, p := range []string{"http/1.1", "h2"} {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: siteName, InsecureSkipVerify: true, NextProtos: []string{p}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if p == "h2" {
			go overHTTP2(c, [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", siteName}, {":path", "/"}})
		} else {
			fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
		}
		at, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer at.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// A visitor that has to leave for others does not wait for the decoy.
func TestSiteLeave(t *testing.T) {
	key, cert, _ := writeCert(t, t.TempDir())
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	left := make(chan struct{}, 2)
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key, Decoy: "http://" + silent.Addr().String()}, func(c *ServerConfig) {
		c.Handshakes, c.Left = 1, func() { left <- struct{}{} }
	})
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: siteName, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", int64(1<<40))
	at, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	// The decoy takes nothing: once all buffers between are full, the website reads nothing.
	for err == nil {
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = c.Write(make([]byte, 64<<10))
	}
	next, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	select {
	case <-left:
	case <-time.After(limit):
		t.Error("the first visitor is still there")
	}
}

// A visitor may send a head as long as net/http takes. Many visitors at once may not: what
// they send has to be kept somewhere.
func TestSiteLarge(t *testing.T) {
	key, cert, _ := writeCert(t, t.TempDir())
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key}, nil)
	type visitor struct {
		*tls.Conn
		in *bufio.Reader
	}
	dial := func() visitor {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(limit))
		return visitor{c, bufio.NewReader(c)}
	}
	status := func(v visitor) int {
		answer, err := http.ReadResponse(v.in, nil)
		if err != nil {
			return 0
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		return answer.StatusCode
	}
	head := "GET / HTTP/1.1\r\nHost: h\r\nLong: " + strings.Repeat("x", 200<<10)
	const many, places = 40, 16
	var large []visitor
	answered := make(chan struct{}, many)
	var waiting sync.WaitGroup
	for range many {
		v := dial()
		_, _ = io.WriteString(v, head)
		large = append(large, v)
		waiting.Go(func() {
			_, _ = v.in.Peek(1)
			answered <- struct{}{}
		})
	}
	// Only who is refused has an answer to half a head. When so many are, the places are taken.
	for range many - places {
		<-answered
	}
	small := dial()
	_, _ = io.WriteString(small, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if got := status(small); got != http.StatusNotFound {
		t.Errorf("an ordinary visitor gets %d", got)
	}
	for round, text := range []string{"", head} { // who has been served may have the place again
		for _, v := range large {
			_, _ = io.WriteString(v, text+"\r\n\r\n")
		}
		waiting.Wait()
		served := 0
		for _, v := range large {
			if status(v) == http.StatusNotFound {
				served++
			}
		}
		if served != places {
			t.Errorf("round %d: %d of %d visitors with a long head are served, want %d", round, served, many, places)
		}
	}
	body := func() int {
		v := dial()
		_, _ = fmt.Fprintf(v, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", 200<<10, strings.Repeat("x", 200<<10))
		return status(v)
	}
	// Who leaves has given the place back when the server has seen that.
	for _, v := range large {
		_, _ = io.WriteString(v, head)
	}
	for _, v := range large {
		_ = v.Close()
	}
	for end := time.Now().Add(limit); body() != http.StatusNotFound; {
		if time.Now().After(end) {
			t.Fatal("the places of those who have left are taken")
		}
	}
	// Bodies that nobody waits for take no place for longer than their request.
	for range many {
		if got := body(); got != http.StatusNotFound {
			t.Fatalf("a visitor with a body gets %d", got)
		}
	}
}

// Only a transport that is a website to the network can be one.
func TestSiteOfOthers(t *testing.T) {
	for _, cfg := range []ServerConfig{
		{Transport: nameObfs4, Site: &website.Config{CertFile: "c", KeyFile: "k"}},
		{Transport: nameWebtunnel, Site: &website.Config{CertFile: "c", KeyFile: "k"}},
		{Transport: nameWebtunnel, Site: &website.Config{}},
		{Transport: nameWebtunnel, Site: &website.Config{Name: siteName, CertFile: "c", KeyFile: "k"}},
	} {
		cfg.Bind, cfg.StateDir, cfg.Options = "127.0.0.1:0", t.TempDir(), argsOf("url", "https://"+siteName+secretPath)
		if l, err := Listen(cfg); err == nil {
			t.Errorf("%+v: no error", cfg)
			_ = l.Close()
		}
	}
}

// A CDN brings many clients over one connection. One that is kept out leaves nothing behind
// that is taken for the address of the next one.
func TestSiteForwarded(t *testing.T) {
	key, cert, _ := writeCert(t, t.TempDir())
	origin := httptest.NewServer(http.NotFoundHandler())
	defer origin.Close()
	for _, decoy := range []string{"", origin.URL} {
		l := siteFor(t, website.Config{CertFile: cert, KeyFile: key, Decoy: decoy}, func(c *ServerConfig) {
			c.TrustedProxies, c.TrustedHops = loopback, 1
			c.Admit = func(from netip.AddrPort) bool { return from.Addr() == netip.MustParseAddr("192.0.2.1") }
		})
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		in := bufio.NewReader(c)
		for _, from := range []string{"192.0.2.2", "unknown", "192.0.2.1"} {
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: %s\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", secretPath, from)
			answer, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := http.StatusNotFound
			if from == "192.0.2.1" {
				want = http.StatusSwitchingProtocols
			}
			if answer.StatusCode != want {
				t.Errorf("decoy %q, client %s: %s, want %d", decoy, from, answer.Status, want)
			}
			if answer.StatusCode == http.StatusNotFound {
				_, _ = io.Copy(io.Discard, answer.Body)
			}
		}
	}
}

// A tunnel gives the place of its long request back where it was taken: the CDN's, and not the
// client's.
func TestSiteLargeForwarded(t *testing.T) {
	key, cert, _ := writeCert(t, t.TempDir())
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key}, func(c *ServerConfig) { c.TrustedProxies, c.TrustedHops = loopback, 1 })
	for i := range 20 {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(limit))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\nLong: %s\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst", secretPath, strings.Repeat("x", 200<<10))
		if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("client %d: %v, %v", i, answer, err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = server.Close()
		_ = c.Close()
	}
}
