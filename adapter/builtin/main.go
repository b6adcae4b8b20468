package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/socks5"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/webtunnel/common/syntheticIP"

	"ptgate/adapter"
)

const (
	// dialTimeout bounds what a SOCKS request waits for: TCP, proxy, handshake.
	// obfs4's server takes up to 90 s to close on a client with the wrong key.
	dialTimeout = 60 * time.Second

	// orTimeout bounds connecting to the parent's ORPort, which is on this box.
	orTimeout = 5 * time.Second

	// ballastSize is memory that is reserved and never touched, in bytes. obfs4
	// makes 5 bytes of garbage for each that it carries; beside the small heap of
	// a child the collector would run all the time. With the ballast it runs after
	// every 16 MiB, which is worth a factor of 1.6 in throughput and, unlike a
	// larger GOGC, costs nothing that grows with the number of connections.
	ballastSize = 16 << 20

	// stopTimeout is how long Main waits for what it has cut.
	stopTimeout = 2 * time.Second
)

// Main is the child side of pt-spec version 1: it reads the TOR_PT_ variables of
// the process's environment, answers on stdout and carries streams until it is
// told to stop. It is meant to be a whole program. It returns the program's exit
// code: 0 after an ordinary end, 1 if nothing could be started.
//
// It ends at once when ctx is cancelled, on SIGTERM, and, with
// TOR_PT_EXIT_ON_STDIN_CLOSE=1, when stdin ends. On SIGINT it closes its
// listeners and lets live streams finish; a second signal ends it. It must not be
// given a ctx that SIGINT cancels. A read of stdin that is still blocked when
// Main returns ends with the process.
func Main(ctx context.Context, stdin io.Reader, stdout io.Writer) int {
	out := takeStdout()
	out.set(stdout)
	defer out.set(nil)
	ballast := make([]byte, ballastSize)
	defer runtime.KeepAlive(ballast)

	// A parent that no longer reads must not kill the streams.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)

	gone := make(chan struct{})
	if os.Getenv("TOR_PT_EXIT_ON_STDIN_CLOSE") == "1" {
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			close(gone)
		}()
	}

	live, cut := context.WithCancel(ctx)
	defer cut()
	c := &child{live: live, log: slog.New(newPTLogHandler())}
	if err := c.start(); err != nil {
		c.closeListeners()
		return 1
	}

	streams := make(chan struct{})
	draining := false
	for {
		select {
		case <-ctx.Done():
		case <-gone:
		case <-streams:
		case s := <-signals:
			if s == os.Interrupt && !draining {
				draining = true
				go func() {
					defer close(streams)
					c.closeListeners()
					c.wg.Wait()
				}()
				continue
			}
		}
		break
	}
	cut()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if draining {
			<-streams
			return
		}
		c.closeListeners()
		c.wg.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(stopTimeout):
		// The parent has asked for the end; what hangs ends with the process.
	}
	return 0
}

// A child is a running pluggable transport.
type child struct {
	live      context.Context // ends when everything is to be cut
	log       *slog.Logger
	listeners []io.Closer
	wg        sync.WaitGroup // accept loops and streams

	// What programs and strangers can cause at will.
	dials, denials adapter.LogLimit
	panics         panicLog
}

func (c *child) closeListeners() {
	for _, ln := range c.listeners {
		_ = ln.Close()
	}
}

var (
	errReported = errors.New("configuration failed") // the parent has been told why
	errNoMethod = errors.New("no transport could be started")
)

// start is the configuration part of the protocol (pt-spec 3.2, 3.3).
func (c *child) start() error {
	client, server := os.Getenv("TOR_PT_CLIENT_TRANSPORTS") != "", os.Getenv("TOR_PT_SERVER_TRANSPORTS") != ""
	if client == server {
		say("ENV-ERROR exactly one of TOR_PT_CLIENT_TRANSPORTS and TOR_PT_SERVER_TRANSPORTS must be set")
		return errReported
	}
	if client {
		return c.startClient()
	}
	return c.startServer()
}

// say writes a protocol line that goptlib has no function for.
func say(line string) { fmt.Fprintln(pt.Stdout, line) }

// printable makes text safe for goptlib, which panics on what pt-spec 3.3 does
// not allow in a line.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
}

func bindAddr(variable string, is func(netip.Addr) bool) (netip.Addr, error) {
	text := os.Getenv(variable)
	if text == "" {
		return netip.Addr{}, nil
	}
	// pt-spec 3.2.1: IPv6 addresses are in brackets.
	if inner, ok := strings.CutPrefix(text, "["); ok {
		text = strings.TrimSuffix(inner, "]")
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !is(a) {
		say("ENV-ERROR " + variable + " is not an address of that family")
		return a, errReported
	}
	return a, nil
}

func (c *child) startClient() error {
	info, err := pt.ClientSetup(nil)
	if err != nil {
		// goptlib reports all but a malformed proxy.
		if text := err.Error(); !strings.HasPrefix(text, "ENV-ERROR") && !strings.HasPrefix(text, "VERSION-ERROR") {
			_ = pt.ProxyError("malformed proxy address")
		}
		return err
	}
	pt.ReportVersion("ptgate", "1")
	// Clients keep nothing: one whose state directory is no good works, too.
	base := ClientConfig{StateDir: os.Getenv("TOR_PT_STATE_LOCATION")}
	if base.BindV4, err = bindAddr("TOR_PT_OUTBOUND_BIND_ADDRESS_V4", netip.Addr.Is4); err != nil {
		return err
	}
	if base.BindV6, err = bindAddr("TOR_PT_OUTBOUND_BIND_ADDRESS_V6", netip.Addr.Is6); err != nil {
		return err
	}
	if base.Proxy, err = proxyFor(info.ProxyURL); err != nil {
		return err
	}
	for _, name := range info.MethodNames {
		if err := c.offer(name, base); err != nil {
			_ = pt.CmethodError(printable(name), printable(err.Error()))
		}
	}
	pt.CmethodsDone()
	if len(c.listeners) == 0 {
		return errNoMethod
	}
	return nil
}

// proxyFor answers for the proxy (pt-spec 3.3.2): PROXY DONE promises that nothing
// goes around it.
func proxyFor(u *url.URL) (*url.URL, error) {
	if u == nil {
		return nil, nil
	}
	if err := adapter.CheckProxy(u); err != nil {
		_ = pt.ProxyError(printable(err.Error()))
		return nil, err
	}
	pt.ProxyDone()
	return u, nil
}

// offer opens one client transport's SOCKS listener.
func (c *child) offer(name string, cfg ClientConfig) error {
	cfg.Transport = name
	client, err := NewClient(cfg)
	if err != nil {
		return err
	}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	c.listeners = append(c.listeners, ln)
	c.wg.Go(func() {
		acceptEach(c, ln.AcceptTCP, func(local *net.TCPConn) { c.carryClient(client, local) })
	})
	pt.Cmethod(name, "socks5", ln.Addr())
	return nil
}

// acceptEach hands each connection to handle in a goroutine of its own until the
// listener is closed.
func acceptEach[C any](c *child, accept func() (C, error), handle func(C)) {
	adapter.AcceptEach(c.live, c.log, accept, func(conn C) {
		c.wg.Go(func() { handle(conn) })
	})
}

// carryClient serves one SOCKS request (pt-spec 3.5) and carries its stream.
func (c *child) carryClient(client *Client, local *net.TCPConn) {
	defer local.Close()
	stop := context.AfterFunc(c.live, func() { _ = local.Close() })
	// Five seconds, and nothing may follow the request before its answer.
	request, err := socks5.Handshake(local)
	if err != nil {
		stop()
		c.log.Debug("socks handshake failed", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(c.live, dialTimeout)
	defer cancel()
	left := watch(local, cancel)
	remote, err := client.Dial(ctx, request.Target, fromPT(request.Args))
	if left() || !stop() {
		if err == nil {
			remote.Abort()
		}
		return
	}
	if err != nil {
		// Neither the bridge's address nor its arguments belong in a log.
		stage := StageArgs
		if derr, ok := errors.AsType[*DialError](err); ok {
			stage = derr.Stage
		}
		c.dials.Log(c.log, slog.LevelInfo, "dial failed", "transport", client.cfg.Transport, "stage", stage, "reply", byte(replyFor(err)))
		c.panics.tell(c.log, err)
		_ = request.Reply(replyFor(err))
		return
	}
	if err := request.Reply(socks5.ReplySucceeded); err != nil {
		remote.Abort()
		return
	}
	if err := relay(c.live, newLink(local, 0), remote); err != nil {
		c.log.Debug("stream ended with an error", "transport", client.cfg.Transport, "error", err)
	}
}

// watch calls gone when local's program leaves, or breaks the protocol by
// sending, before it has got its answer. The function it returns ends the watch
// and says whether that has happened.
func watch(local *net.TCPConn, gone func()) func() bool {
	result := make(chan bool, 1)
	go func() {
		var one [1]byte
		_, err := local.Read(one[:])
		left := !errors.Is(err, os.ErrDeadlineExceeded)
		if left {
			gone()
		}
		result <- left
	}()
	return func() bool {
		_ = local.SetReadDeadline(time.Unix(1, 0))
		left := <-result
		return left || local.SetReadDeadline(time.Time{}) != nil
	}
}

// replyFor is the SOCKS reply (RFC 1928 section 6) for a failed dial, as honest
// as the error allows.
func replyFor(err error) socks5.ReplyCode {
	timeout := func() bool {
		nerr, ok := errors.AsType[net.Error](err)
		return ok && nerr.Timeout()
	}
	notFound := func() bool {
		_, ok := errors.AsType[*net.DNSError](err)
		return ok
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return socks5.ReplyConnectionRefused
	case errors.Is(err, syscall.EHOSTUNREACH):
		return socks5.ReplyHostUnreachable
	case errors.Is(err, syscall.ENETUNREACH):
		return socks5.ReplyNetworkUnreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT), timeout():
		return socks5.ReplyTTLExpired
	case notFound():
		return socks5.ReplyHostUnreachable
	}
	return socks5.ReplyGeneralFailure
}

func (c *child) startServer() error {
	info, err := pt.ServerSetup(nil)
	if err != nil {
		return err
	}
	stateDir, err := pt.MakeStateDir()
	if err != nil {
		// goptlib reports that the variable is not set, and no more.
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			say("ENV-ERROR TOR_PT_STATE_LOCATION can't be used: " + printable(err.Error()))
		}
		return err
	}
	pt.ReportVersion("ptgate", "1")
	for name := range strings.SplitSeq(os.Getenv("TOR_PT_SERVER_TRANSPORTS"), ",") {
		// goptlib leaves these out without a word.
		if !slices.ContainsFunc(info.Bindaddrs, func(b pt.Bindaddr) bool { return b.MethodName == name }) {
			_ = pt.SmethodError(printable(name), "TOR_PT_SERVER_BINDADDR has no address for it")
		}
	}
	for _, b := range info.Bindaddrs {
		if err := c.listen(&info, b, stateDir); err != nil {
			_ = pt.SmethodError(printable(b.MethodName), printable(err.Error()))
		}
	}
	pt.SmethodsDone()
	if len(c.listeners) == 0 {
		return errNoMethod
	}
	return nil
}

// listen opens one server transport.
func (c *child) listen(info *pt.ServerInfo, b pt.Bindaddr, stateDir string) error {
	cfg := ServerConfig{
		Transport: b.MethodName,
		StateDir:  stateDir,
		Bind:      b.Addr.String(),
		Logger:    c.log,
	}
	if err := cutOptions(fromPT(b.Options), &cfg); err != nil {
		return err
	}
	ln, err := Listen(cfg)
	if err != nil {
		return err
	}
	announced, err := announce(ln)
	if err != nil {
		_ = ln.Close()
		return err
	}
	c.listeners = append(c.listeners, ln)
	c.wg.Go(func() {
		acceptEach(c, ln.Accept, func(remote Conn) { c.carryServer(info, b.MethodName, remote) })
	})
	pt.SmethodArgs(b.MethodName, announced, toPT(ln.Args()))
	return nil
}

// announce is the address for the SMETHOD line. Where nobody dials it, we announce
// a documentation address made from the url, like webtunnel's reference server.
func announce(ln *Listener) (net.Addr, error) {
	for _, a := range ln.Args() {
		if printable(a.Key+a.Value) != a.Key+a.Value {
			return nil, fmt.Errorf("argument %q can't be announced", a.Key)
		}
	}
	if !ln.row.Placeholder {
		return ln.Addr(), nil
	}
	_, documentation, err := net.ParseCIDR("2001:db8::/32")
	if err != nil {
		return nil, err
	}
	link, _ := toPT(ln.Args()).Get("url")
	ip, err := syntheticIP.GenerateSyntheticIPAddress("WEBTUNNEL+"+link, *documentation)
	if err != nil {
		return nil, err
	}
	return &net.TCPAddr{IP: ip, Port: 443}, nil
}

// userAddr is what the parent is told of a client; "" is nothing.
func userAddr(remote Conn) string {
	from := addrPort(remote.RemoteAddr())
	if !from.IsValid() {
		return ""
	}
	if from.Port() == 0 {
		// tor takes no address without a port. This one stands for "not known", as
		// with the project's webtunnel server.
		from = netip.AddrPortFrom(from.Addr(), 60000)
	}
	return from.String()
}

// carryServer leads one client to the parent's ORPort, or Extended ORPort
// (ext-orport-spec), and carries its stream.
func (c *child) carryServer(info *pt.ServerInfo, name string, remote Conn) {
	stop := context.AfterFunc(c.live, func() { remote.Abort() })
	or, err := pt.DialOrWithDialer(&net.Dialer{Timeout: orTimeout}, info, userAddr(remote), name)
	if err != nil {
		stop()
		remote.Abort()
		c.denials.Log(c.log, slog.LevelWarn, "parent did not take the connection", "transport", name, "error", err)
		return
	}
	local := or.(*net.TCPConn)
	if !stop() {
		newLink(local, 0).Abort()
		return
	}
	if err := relay(c.live, newLink(local, 0), remote); err != nil {
		c.log.Debug("stream ended with an error", "transport", name, "error", err)
	}
}

// A ptLogHandler writes records of level info and above as LOG lines to the
// parent (pt-spec 3.3.4).
type ptLogHandler struct{ attrs []slog.Attr }

func newPTLogHandler() slog.Handler { return ptLogHandler{} }

func (h ptLogHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h ptLogHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	add := func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	severity := pt.LogSeverityInfo
	switch {
	case r.Level >= slog.LevelError:
		severity = pt.LogSeverityError
	case r.Level >= slog.LevelWarn:
		severity = pt.LogSeverityWarning
	}
	pt.Log(severity, b.String())
	return nil
}

func (h ptLogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return ptLogHandler{attrs: append(append([]slog.Attr(nil), h.attrs...), attrs...)}
}

func (h ptLogHandler) WithGroup(string) slog.Handler { return h }
