//go:build integration

package integration

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"log"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/cgi"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/websocket"

	"ptgate/integration/harness"
)

// originName is what clients ask for. Only the far end's hosts file knows it.
const originName = "origin.ptgate.test"

const originHosts = plainHosts + "127.0.0.1 " + originName + " private.ptgate.test\n"

// An origin is a web server in this process, on http and on https.
type origin struct {
	ca           string // file with the certificate that clients trust
	plain, tls   string // addresses
	http, https  string // URLs by name, without a slash at the end
	repositories string // directory served by git's own CGI program

	mu    sync.Mutex
	files map[string][]byte // by path
}

// put adds a file, or replaces it.
func (o *origin) put(path string, content []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.files == nil {
		o.files = map[string][]byte{}
	}
	o.files[path] = content
}

// serveOrigin starts an origin on loopback.
func serveOrigin(t testing.TB) *origin {
	t.Helper()
	return serveOriginAt(t, "", "127.0.0.1:0", "127.0.0.1:0")
}

// serveOriginAt starts an origin on the addresses of a network namespace.
func serveOriginAt(t testing.TB, space, plainAddr, tlsAddr string) *origin {
	t.Helper()
	cert, certPEM, _ := harness.Certificate(t, originName)
	dir := scratch(t)
	o := &origin{ca: write(t, dir, "ca.pem", string(certPEM)), repositories: filepath.Join(dir, "git")}
	o.plain = serveHTTP(t, listenIn(t, space, plainAddr), o, nil)
	o.tls = serveHTTP(t, listenIn(t, space, tlsAddr), o, &tls.Config{Certificates: []tls.Certificate{cert}})
	o.http = "http://" + net.JoinHostPort(originName, portOf(t, o.plain))
	o.https = "https://" + net.JoinHostPort(originName, portOf(t, o.tls))
	return o
}

// serveHTTP runs a web server until the test's end.
func serveHTTP(t testing.TB, ln net.Listener, h http.Handler, conf *tls.Config) (addr string) {
	t.Helper()
	s := &http.Server{Handler: h, TLSConfig: conf, ErrorLog: log.New(io.Discard, "", 0)}
	var wg sync.WaitGroup
	wg.Go(func() {
		if conf != nil {
			s.ServeTLS(ln, "", "")
		} else {
			s.Serve(ln)
		}
	})
	t.Cleanup(func() {
		s.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

const helloText = "hello from the origin\n"

// ServeHTTP is the site: /hello, /bytes/SEED/COUNT, /sum (the checksum of what is
// sent), /headers (what arrived), /repo.git/….
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case part[0] == "hello":
		io.WriteString(w, helloText)
	case part[0] == "bytes" && len(part) == 3:
		n, _ := strconv.ParseInt(part[2], 10, 64)
		w.Header().Set("Content-Length", part[2])
		io.CopyN(w, noise(part[1]), n)
	case part[0] == "sum":
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d %x\n", n, h.Sum(nil))
	case part[0] == "page":
		io.WriteString(w, browserPage)
	case part[0] == "script" && len(part) == 2:
		w.Header().Set("Content-Type", "text/javascript")
		fmt.Fprintf(w, "loaded.add(%q);\n", part[1])
	case part[0] == "socket":
		websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }).ServeHTTP(w, r)
	case part[0] == "headers":
		r.Header.Write(w)
	case strings.HasSuffix(part[0], ".git"):
		r.TransferEncoding = nil // Go's CGI has no place for it; git reads to the end
		(&cgi.Handler{
			Path: "/usr/lib/git-core/git-http-backend",
			Env:  []string{"GIT_PROJECT_ROOT=" + o.repositories, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
		}).ServeHTTP(w, r)
	default:
		o.mu.Lock()
		content, ok := o.files[r.URL.Path]
		o.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(content)
	}
}

// noise is an endless stream that no compression shortens, the same for the same
// seed.
func noise(seed string) io.Reader { return mrand.NewChaCha8(sha256.Sum256([]byte(seed))) }

// noiseSum is the checksum of the first n bytes of noise.
func noiseSum(seed string, n int64) string {
	h := sha256.New()
	io.CopyN(h, noise(seed), n)
	return hex.EncodeToString(h.Sum(nil))
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// makeRepository makes a repository NAME.git with one commit of a few files, and
// returns the commit's hash.
func (o *origin) makeRepository(t testing.TB, name string) (head string) {
	t.Helper()
	work := scratch(t)
	for i := range 20 {
		b := make([]byte, 100<<10)
		io.ReadFull(noise(strconv.Itoa(i)), b)
		write(t, work, fmt.Sprintf("file%d", i), string(b))
	}
	git := []string{"git", "-C", work, "-c", "user.name=t", "-c", "user.email=t@example.org"}
	must(t, append(git, "init", "-q", "-b", "main")...)
	must(t, append(git, "add", ".")...)
	must(t, append(git, "commit", "-q", "-m", "all")...)
	must(t, "git", "clone", "-q", "--bare", work, filepath.Join(o.repositories, name+".git"))
	return strings.TrimSpace(must(t, append(git, "rev-parse", "HEAD")...))
}

// curl runs curl, which must succeed, and returns what it got.
func curl(t testing.TB, args ...string) string {
	t.Helper()
	return must(t, append([]string{"curl", "--fail", "--silent", "--show-error", "--max-time", "120"}, args...)...)
}

// refusedCurl runs curl without --fail and returns its exit code and the status
// and header of the answer.
func refusedCurl(t testing.TB, args ...string) (code int, answer, stderr string) {
	t.Helper()
	stdout, stderr, code := command(t, nil, append([]string{"curl", "--silent", "--show-error", "--include", "--max-time", "120"}, args...)...)
	return code, stdout, stderr
}
