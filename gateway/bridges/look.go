package bridges

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"ptgate/adapter/builtin"
	"ptgate/gateway/doctor"
)

// Times of the looks at the reason of a failure.
const (
	// holdTime is how long a connection on which nothing is sent is watched. A reset that
	// something on the way forges comes within a round trip.
	holdTime = 1500 * time.Millisecond
	// lookTime bounds each connection of a look. It is more than the 10 s after which a TCP
	// connection counts as filtered.
	lookTime = 11 * time.Second
)

// explain finds out why the first connection has failed. An error of the transport may say
// too little: then it looks at the bridge's address without the transport.
func (b *Bridge) explain(ctx context.Context, o ProbeOptions, p *Probe) doctor.Verdict {
	c := b.config()
	found := doctor.Case{Bridge: c, Err: p.Err, Now: time.Now(), Written: b.settings.Load().written}
	stage := p.Steps[len(p.Steps)-1].Stage
	if ctx.Err() != nil || stage == StageProgram {
		return doctor.Diagnose(found)
	}
	direct := c.PT.Proxy == "" && !c.PT.BindV4.IsValid() && !c.PT.BindV6.IsValid()
	row, _ := builtin.Lookup(c.Transport)
	web, hasWeb := builtin.WebOf(c.Transport, c.Args)
	_, told := errors.AsType[*builtin.DialError](p.Err)
	switch {
	case !direct: // there is a proxy on the way: what its connections meet can't be seen from here
	case hasWeb && !told && (row.Polled || stage == StageTransport) && !isFar(p.Err):
		o.Tell("looking at the web server without the transport")
		p.Connections++
		if err := lookAtWeb(ctx, web, row.Front); err != nil {
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

// lookError gives an error the type of those that a transport inside this process has.
func lookError(stage builtin.Stage, err error) error {
	if stage == builtin.StageConnect && errors.Is(err, context.DeadlineExceeded) {
		err = builtin.ErrFiltered
	}
	return &builtin.DialError{Transport: "tcp", Stage: stage, Err: err}
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
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, lookError(builtin.StageConnect, err)
	}
	return c, nil
}

// lookAtWeb asks the web server of a bridge for its page or, with upgrade, for a tunnel. Nil:
// it answers as it should.
func lookAtWeb(ctx context.Context, w builtin.Web, upgrade bool) error {
	c, err := connectTo(ctx, w.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	c.SetDeadline(time.Now().Add(lookTime))
	if w.Name != "" {
		secure := tls.Client(c, &tls.Config{ServerName: w.Name})
		if err := secure.HandshakeContext(ctx); err != nil {
			return lookError(builtin.StageHandshake, err)
		}
		c = secure
	}
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: w.Path}, Host: w.Host, Header: http.Header{"User-Agent": {""}}}
	if upgrade {
		r.Header["Connection"], r.Header["Upgrade"] = []string{"upgrade"}, []string{"websocket"}
	}
	if err := r.Write(c); err != nil {
		return lookError(builtin.StageHandshake, err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(io.LimitReader(c, 64<<10)), r)
	if err != nil {
		return lookError(builtin.StageHandshake, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 400 {
		return &builtin.StatusError{Status: answer.StatusCode}
	}
	return nil
}
