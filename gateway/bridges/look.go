package bridges

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"ptgate/adapter/builtin"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
)

// Times of the looks at the reason of a failure.
const (
	// holdTime is how long a connection on which nothing is sent is watched. A reset that
	// something on the way forges comes within a round trip.
	holdTime = 1500 * time.Millisecond
	// lookTime bounds each look but for the time that its TCP connection takes to come up,
	// which is connectTime at most: then it counts as filtered.
	lookTime    = 8 * time.Second
	connectTime = 10 * time.Second
	// lookAfter is how long a polled transport may give no sign before the web server is
	// looked at beside it.
	lookAfter = 3 * time.Second
)

// A webLook is a look at a bridge's web server while the first connection is under way. A
// polled transport says nothing of what its own connections meet, and waits long.
type webLook struct {
	wg   sync.WaitGroup
	skip context.CancelFunc // it is not begun
	stop context.CancelFunc
	done bool // it has come to its end
	err  error
}

// lookBeside begins the look when lookAfter is over. If the web server can't be reached, that
// ends the connection.
func (b *Bridge) lookBeside(ctx context.Context, o ProbeOptions, found context.CancelCauseFunc) *webLook {
	l := new(webLook)
	ctx, l.stop = context.WithCancel(ctx)
	waiting, skip := context.WithCancel(ctx)
	l.skip = skip
	c := b.config()
	row, _ := builtin.Lookup(c.Transport)
	web, hasWeb := builtin.WebOf(c.Transport, c.Args)
	if !row.Polled || !hasWeb || !isDirect(c.PT) {
		return l
	}
	l.wg.Go(func() {
		t := time.NewTimer(lookAfter)
		defer t.Stop()
		select {
		case <-t.C:
		case <-waiting.Done():
			return
		}
		o.Tell(lookingAtWeb)
		l.err = lookAtWeb(ctx, web, row.Front, rootsOf(c.PT))
		l.done = ctx.Err() == nil
		if _, answers := errors.AsType[*builtin.StatusError](l.err); l.done && l.err != nil && !answers {
			found(l.err)
		}
	})
	return l
}

// end ends the look and tells whether there was one. What has begun is waited for if the
// connection has failed.
func (l *webLook) end(failed bool) (looked bool) {
	l.skip()
	if !failed {
		l.stop()
	}
	l.wg.Wait()
	l.stop()
	return l.done
}

const lookingAtWeb = "looking at the web server without the transport"

// isDirect tells whether the program's connections leave this machine as any other ones.
func isDirect(p *config.PT) bool {
	return p.Proxy == "" && !p.BindV4.IsValid() && !p.BindV6.IsValid()
}

// explain finds out why the first connection has failed. An error of the transport may say
// too little: then it looks at the bridge's address without the transport.
// beside is what was seen of the web server meanwhile.
func (b *Bridge) explain(ctx context.Context, o ProbeOptions, p *Probe, beside *webLook) doctor.Verdict {
	c := b.config()
	found := doctor.Case{Bridge: c, Err: p.Err, Now: time.Now(), Written: b.settings.Load().written}
	stage := p.Steps[len(p.Steps)-1].Stage
	if ctx.Err() != nil || stage == StageProgram || doctor.OfProgram(p.Err) {
		return doctor.Diagnose(found)
	}
	direct := isDirect(c.PT)
	row, _ := builtin.Lookup(c.Transport)
	web, hasWeb := builtin.WebOf(c.Transport, c.Args)
	_, told := errors.AsType[*builtin.DialError](p.Err)
	switch {
	case !direct: // there is a proxy on the way: what its connections meet can't be seen from here
	case beside.done:
		if beside.err != nil {
			found.Err = beside.err
		}
	case hasWeb && !told && (row.Polled || stage == StageTransport) && !isFar(p.Err):
		o.Tell(lookingAtWeb)
		p.Connections++
		if err := lookAtWeb(ctx, web, row.Front, rootsOf(c.PT)); err != nil {
			found.Err = err
		}
	case !hasWeb && !row.Placeholder && !told && stage == StageTransport && b.literal() != "":
		o.Tell("looking at the address without the transport")
		p.Connections++
		held, err := hold(ctx, b.literal())
		if err != nil {
			found.Err = err
		} else {
			found.HeldOpen = &held
		}
	}
	if d, ok := errors.AsType[*builtin.DialError](found.Err); ok && direct && d.Stage == builtin.StageHandshake && d.Received == 0 && broken(d.Err) {
		o.Tell("looking whether a silent connection is cut, too")
		addr := b.literal()
		if hasWeb {
			addr = web.Addr
		}
		p.Connections++
		// It may be cut so soon that it does not even come up.
		if held, err := hold(ctx, addr); err == nil || broken(err) {
			found.HeldOpen = &held
		}
	}
	if host, _, err := net.SplitHostPort(web.Addr); hasWeb && direct && err == nil {
		if _, err := netip.ParseAddr(host); err != nil {
			o.Tell("looking the web server's name up")
			look, cancel := context.WithTimeout(ctx, lookTime)
			found.Led, _ = net.DefaultResolver.LookupNetIP(look, "ip", host)
			cancel()
		}
	}
	return doctor.Diagnose(found)
}

// isFar tells whether err is an answer of what stands behind the transport.
func isFar(err error) bool {
	k := doctor.Diagnose(doctor.Case{Err: err}).Kind
	return k == doctor.User || k == doctor.WrongFar || k == doctor.Full || k == doctor.OtherBox
}

func broken(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// hold opens a TCP connection and tells whether it stays while nothing is sent.
func hold(ctx context.Context, addr string) (open bool, err error) {
	c, err := connectTo(ctx, addr)
	if err != nil {
		return false, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	c.SetReadDeadline(time.Now().Add(holdTime))
	_, err = c.Read(make([]byte, 1))
	return err == nil || !broken(err), nil
}

func connectTo(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = builtin.ErrFiltered
		}
		return nil, &builtin.DialError{Transport: "tcp", Stage: builtin.StageConnect, Err: err}
	}
	return c, nil
}

// rootsOf has the authorities that the transport's program trusts, where its environment
// names a file of them; nil: those of this machine.
func rootsOf(p *config.PT) *x509.CertPool {
	for _, v := range p.Env {
		if path, ok := strings.CutPrefix(v, "SSL_CERT_FILE="); ok {
			pool := x509.NewCertPool()
			if text, err := os.ReadFile(path); err == nil {
				pool.AppendCertsFromPEM(text)
			}
			return pool
		}
	}
	return nil
}

// A counted connection counts what has come.
type counted struct {
	net.Conn
	received int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received += n
	return n, err
}

// lookAtWeb asks the web server of a bridge for its page or, with upgrade, for a tunnel. Nil:
// it answers as it should.
func lookAtWeb(ctx context.Context, w builtin.Web, upgrade bool, roots *x509.CertPool) error {
	tcp, err := connectTo(ctx, w.Addr)
	if err != nil {
		return err
	}
	defer tcp.Close()
	defer context.AfterFunc(ctx, func() { tcp.SetDeadline(time.Unix(1, 0)) })()
	tcp.SetDeadline(time.Now().Add(lookTime))
	under := &counted{Conn: tcp}
	failed := func(err error) error {
		return &builtin.DialError{Transport: "tcp", Stage: builtin.StageHandshake, Err: err, Received: under.received}
	}
	c := net.Conn(under)
	if w.Name != "" {
		secure := tls.Client(c, &tls.Config{ServerName: w.Name, RootCAs: roots})
		if err := secure.HandshakeContext(ctx); err != nil {
			return failed(err)
		}
		c = secure
	}
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: w.Path}, Host: w.Host, Header: http.Header{"User-Agent": {""}}}
	if upgrade {
		r.Header["Connection"], r.Header["Upgrade"] = []string{"upgrade"}, []string{"websocket"}
	}
	if err := r.Write(c); err != nil {
		return failed(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(io.LimitReader(c, 64<<10)), r)
	if err != nil {
		return failed(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 400 {
		return &builtin.StatusError{Status: answer.StatusCode}
	}
	return nil
}
