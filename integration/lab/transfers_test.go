//go:build integration

package lab

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptgate/routes"
)

// Beside downloads the origin takes uploads and holds polls. An upload begins as a
// download does, then that many bytes of the seed's stream come in, and their SHA-256
// goes out. A poll is eight bytes of nanoseconds; after that time the same eight
// bytes are the answer.
const (
	uploadPort = 7001
	pollPort   = 7002
)

// gaps measures the longest time between two marks, and when it began.
type gaps struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
	begun   time.Time
}

func (g *gaps) mark() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if d := now.Sub(g.last); !g.last.IsZero() && d > g.longest {
		g.longest, g.begun = d, g.last
	}
	g.last = now
}

func (g *gaps) max() (longest time.Duration, begun time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.longest, g.begun
}

// An upload is seen from both of its ends.
type upload struct {
	seed uint64
	got  atomic.Int64 // at the origin
	gaps gaps         // there
}

var uploads sync.Map // by seed

func serveUploads(t *testing.T, b *box) {
	t.Helper()
	serveTCP(t, b, uploadPort, func(ctx context.Context, c net.Conn) {
		var head [16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		x, ok := uploads.Load(binary.BigEndian.Uint64(head[8:]))
		if !ok {
			t.Error("an upload that nobody has begun")
			return
		}
		u := x.(*upload)
		left, want, hash := int64(binary.BigEndian.Uint64(head[:])), content(u.seed), sha256.New()
		buf, right := make([]byte, 32<<10), make([]byte, 32<<10)
		for left > 0 {
			n, err := c.Read(buf[:min(left, int64(len(buf)))])
			u.gaps.mark()
			io.ReadFull(want, right[:n])
			if !bytes.Equal(buf[:n], right[:n]) {
				t.Error("the origin got wrong bytes")
				return
			}
			hash.Write(buf[:n])
			left -= int64(n)
			u.got.Add(int64(n))
			if err != nil {
				return
			}
		}
		c.Write(hash.Sum(nil))
	})
}

func servePolls(t *testing.T, b *box) {
	t.Helper()
	serveTCP(t, b, pollPort, func(ctx context.Context, c net.Conn) {
		var wait [8]byte
		if _, err := io.ReadFull(c, wait[:]); err != nil {
			return
		}
		after(ctx, time.Duration(binary.BigEndian.Uint64(wait[:])))
		c.Write(wait[:])
	})
}

// upload sends size bytes, slowly as the origin does if size says so, and waits for
// the answer.
func (b *box) upload(ctx context.Context, u *upload, size uint64) error {
	u.gaps.mark()
	u.seed = seeds.Add(1)
	uploads.Store(u.seed, u)
	defer uploads.Delete(u.seed)
	c, err := b.openTarget(ctx, routes.Target{Addr: originAddr, Port: uploadPort})
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	left := int64(size &^ slowly)
	head := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(left)), u.seed)
	if _, err := c.Write(head); err != nil {
		return err
	}
	hash := sha256.New()
	r := io.TeeReader(content(u.seed), hash)
	if size&slowly == 0 {
		if _, err := io.CopyN(c, r, left); err != nil {
			return err
		}
	} else {
		every(ctx, 50*time.Millisecond, func() bool {
			var n int64
			n, err = io.CopyN(c, r, min(left, 16<<10))
			left -= n
			return err == nil && left > 0
		})
		if err != nil {
			return err
		}
	}
	answer, err := io.ReadAll(c)
	switch {
	case err != nil:
		return err
	case len(answer) < sha256.Size:
		return errShort
	case !bytes.Equal(answer, hash.Sum(nil)):
		return errWrong
	}
	return nil
}

// poll asks the origin for an answer after a time.
func (b *box) poll(ctx context.Context, wait time.Duration) error {
	c, err := b.openTarget(ctx, routes.Target{Addr: originAddr, Port: pollPort})
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	head := binary.BigEndian.AppendUint64(nil, uint64(wait))
	if _, err := c.Write(head); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	switch {
	case err != nil:
		return err
	case len(answer) < len(head):
		return errShort
	case !bytes.Equal(answer, head):
		return errWrong
	}
	return nil
}

// A batch is transfers that run at the same time.
type batch struct {
	size     int64
	wg       sync.WaitGroup
	begin    time.Time
	over     chan struct{}
	downs    []*download
	ups      []*upload
	mu       sync.Mutex
	took     time.Duration
	failures []error
}

// transfer begins downloads and uploads of size bytes each. None goes on for longer
// than limit.
func (b *box) transfer(t *testing.T, downs, ups int, size uint64, limit time.Duration) *batch {
	t.Helper()
	x := &batch{size: int64(size &^ slowly), begin: time.Now(), over: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	report := func(name string, i int, err error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if err != nil {
			x.failures = append(x.failures, fmt.Errorf("%s %d after %.1f s: %w", name, i, time.Since(x.begin).Seconds(), err))
		}
		x.took = time.Since(x.begin)
	}
	for i := range downs {
		d, err := b.ask(ctx, size)
		if err != nil {
			report("download", i, err)
			continue
		}
		x.downs = append(x.downs, d)
		x.wg.Go(func() { report("download", i, d.finish(ctx)) })
	}
	for i := range ups {
		u := new(upload)
		x.ups = append(x.ups, u)
		x.wg.Go(func() { report("upload", i, b.upload(ctx, u, size)) })
	}
	var owner sync.WaitGroup
	owner.Go(func() {
		x.wg.Wait()
		cancel()
		close(x.over)
	})
	t.Cleanup(func() {
		cancel()
		owner.Wait()
	})
	return x
}

// got is how many bytes have arrived.
func (x *batch) got() (n int64) {
	for _, d := range x.downs {
		n += d.got.Load()
	}
	for _, u := range x.ups {
		n += u.got.Load()
	}
	return n
}

// reached waits until a share of all bytes has arrived, and tells whether the
// transfers still run.
func (x *batch) reached(t *testing.T, share float64) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for float64(x.got()) < share*float64(x.size)*float64(len(x.downs)+len(x.ups)) {
		select {
		case <-x.over:
			return false
		case <-t.Context().Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// whole waits for the end of all transfers, which ought to be whole and without a
// pause longer than most (0: any).
func (x *batch) whole(t *testing.T, most time.Duration) (bytesPerSecond float64) {
	t.Helper()
	<-x.over
	var pause time.Duration
	var where string
	longest := func(name string, i int, g *gaps) {
		if d, begun := g.max(); d > pause {
			pause, where = d, fmt.Sprintf("%s %d from %.1f s on", name, i, begun.Sub(x.begin).Seconds())
		}
	}
	for i, d := range x.downs {
		longest("download", i, &d.gaps)
	}
	for i, u := range x.ups {
		longest("upload", i, &u.gaps)
	}
	n := len(x.downs) + len(x.ups)
	bytesPerSecond = float64(x.got()) / x.took.Seconds()
	t.Logf("%d downloads and %d uploads of %.1f MiB: %d whole, %.1f s, %.0f KiB/s, longest pause %.2f s (%s)",
		len(x.downs), len(x.ups), float64(x.size)/(1<<20), n-len(x.failures), x.took.Seconds(), bytesPerSecond/1024, pause.Seconds(), where)
	if len(x.failures) > 0 {
		t.Errorf("%d of %d transfers failed, such as %v", len(x.failures), n, x.failures[0])
	} else if most > 0 && pause > most {
		t.Errorf("longest pause %v, want at most %v", pause, most)
	}
	return bytesPerSecond
}

// webtunnelPort is where nginx listens in a server's box.
const webtunnelPort = 8443

// webtunnel starts nginx in the box, which ends TLS as the file of `ptgate pair` says.
// It gives what pair does.
func (b *box) webtunnel(t testing.TB, addr netip.Addr, name string) (server, bridge string) {
	t.Helper()
	const host = "bridge.ptgate.test"
	dir, err := os.MkdirTemp(b.dir, "webtunnel-")
	if err != nil {
		t.Fatal(err)
	}
	must(t, ptgate, "pair", "--transport", "webtunnel", "--address", fmt.Sprintf("%s:%d", host, webtunnelPort), "--out", dir)
	text, err := os.ReadFile(filepath.Join(dir, "server.toml"))
	if err != nil {
		t.Fatal(err)
	}
	server = strings.Replace(string(text), `["private"]`, "[]", 1) + "[limits]\ndrain = \"10s\"\n"
	location := regexp.MustCompile(`(?ms)^#   (location = (\S+) .*?^#   })$`).FindStringSubmatch(server)
	if location == nil {
		t.Fatalf("no nginx location in\n%s", server)
	}
	pin := b.nginx(t, dir, host, strings.ReplaceAll(location[1], "\n#", "\n"))
	bridge = fmt.Sprintf("[bridge.%s]\ntransport = \"webtunnel\"\naddress = \"192.0.2.1:443\"\nargs = { url = \"https://%s:%d%s\", addr = \"%s:%d\", cert = \"%s\" }\n",
		name, host, webtunnelPort, location[2], addr, webtunnelPort, pin)
	return server, bridge
}

// certificate makes a certificate for a name.
func certificate(t testing.TB, host string) (der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour)}
	der, err = x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// nginx runs until the test's end. It returns the pin of its certificate.
func (b *box) nginx(t testing.TB, dir, host, location string) (pin string) {
	t.Helper()
	der, key := certificate(t, host)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	for name, content := range map[string]string{
		"cert.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"key.pem":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
		"nginx.conf": fmt.Sprintf(`daemon off;
user root;
worker_processes 1;
pid %[1]s/pid;
error_log stderr warn;
events {}
http {
access_log off;
%[2]s
server {
listen %[3]s:%[4]d ssl;
server_name %[5]s;
ssl_certificate %[1]s/cert.pem;
ssl_certificate_key %[1]s/key.pem;
%[6]s
}
}
`, dir, temp.String(), b.addr, webtunnelPort, host, location),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	argv := b.command("nginx", "-e", "stderr", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = b.log, b.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // its workers end with it
		cmd.Wait()
	})
	eventually(t, "nginx listens", func() bool {
		c, err := b.dial(t.Context(), fmt.Sprintf("%s:%d", b.addr, webtunnelPort))
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	hash := sha256.Sum256(der)
	return base64.StdEncoding.EncodeToString(hash[:])
}
