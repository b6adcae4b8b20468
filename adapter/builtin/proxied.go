package builtin

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/pires/go-proxyproto"

	"ptgate/adapter"
	"ptgate/adapter/subnet"
)

const (
	// proxyWait is the default of ServerConfig.ProxyWait.
	proxyWait = 10 * time.Second

	// maxProxyHeader bounds a header of the PROXY protocol and what is read behind it, in
	// bytes. A proxy adds to the addresses what it knows of TLS, for example.
	maxProxyHeader = 4 << 10
)

var (
	errNoProxyHeader = adapter.Constant("a proxy of proxy_from sent no header of the PROXY protocol")
	errNoTCPHeader   = adapter.Constant("a header of the PROXY protocol that is not of TCP")
)

// readProxy reads who the client is, if c comes from a proxy that says so in front of the
// connection.
func (l *Listener) readProxy(c *link) error {
	peer := addrPort(c.tcp.RemoteAddr()).Addr().WithZone("")
	if !slices.ContainsFunc(l.cfg.ProxyFrom, func(p netip.Prefix) bool { return p.Contains(peer) }) {
		return nil
	}
	if err := c.SetDeadline(time.Now().Add(cmp.Or(l.cfg.ProxyWait, proxyWait))); err != nil {
		return err
	}
	in := bufio.NewReaderSize(io.LimitReader(c, maxProxyHeader), 512)
	header, err := proxyproto.Read(in)
	if err != nil {
		l.strays.Log(l.log, slog.LevelWarn, errNoProxyHeader.Error(), "transport", l.cfg.Transport)
		return errNoProxyHeader
	}
	// A proxy that asks for itself, or does not know its client, tells no address.
	var from netip.AddrPort
	if header.Command.IsProxy() && !header.TransportProtocol.IsUnspec() {
		source, _, ok := header.TCPAddrs()
		if !ok {
			return errNoTCPHeader
		}
		from = addrPort(source)
	}
	c.from = &from
	rest, _ := in.Peek(in.Buffered())
	c.ahead, c.got = bytes.Clone(rest), 0
	// From now on the guest is counted with the client's network.
	l.handshakes.leave(c.guest)
	c.guest.from = subnet.Of(from.Addr())
	if out, _ := l.handshakes.enter(c.guest); out != nil {
		out.letGo(func() {})
	}
	return c.SetDeadline(time.Time{})
}
