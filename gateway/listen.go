package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"ptgate/adapter"
	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
)

// A listener is an open port of a front, or of the status page. It serves from the moment when a view that has
// it is swapped in, until close is called.
type listener struct {
	admin bool          // of the status page
	front inbound.Front // if not
	addr  string        // as configured
	ln    net.Listener
	stop  context.Context
	close context.CancelFunc
}

// address is the one that it really has.
func (l *listener) address() string {
	if a := l.ln.Addr(); a.Network() != "unix" {
		return a.String()
	}
	return l.addr
}

// listen opens the addresses of cfg for which old has no listener. all has the listeners
// of cfg, old and new ones, in the configuration's order; opened has only the new ones.
// noPage says why there is no status page.
func (g *Gateway) listen(cfg *config.Config, old []*listener) (all, opened []*listener, noPage string, err error) {
	noPage = cfg.Admin.None
	for _, f := range []struct {
		key   string
		admin bool
		front inbound.Front
		addrs []string
		mode  fs.FileMode
	}{
		{"listen.socks5", false, inbound.SOCKS5, cfg.Listen.SOCKS5, cfg.Listen.SocketMode},
		{"listen.http", false, inbound.HTTP, cfg.Listen.HTTP, cfg.Listen.SocketMode},
		{"listen.mixed", false, inbound.Mixed, cfg.Listen.Mixed, cfg.Listen.SocketMode},
		{"admin.listen", true, 0, cfg.Admin.Listen, cfg.Admin.SocketMode},
	} {
		for _, addr := range f.addrs {
			i := slices.IndexFunc(old, func(l *listener) bool { return l.admin == f.admin && l.front == f.front && l.addr == addr })
			if i >= 0 {
				all = append(all, old[i])
				continue
			}
			ln, err := listen(g.stop, addr, f.mode)
			if err != nil && f.admin && cfg.Admin.Default {
				// Nobody has asked for it, and another ptgate on this machine may have it.
				g.log.Warn("there is no status page: say where it may be with listen in [admin], or turn it off with listen = \"\"", "error", err.Error())
				noPage = err.Error() + ": say where it may be with listen in [admin], or free the port and reload"
				continue
			}
			if err != nil {
				discard(opened)
				return nil, nil, "", fmt.Errorf("%s: %w", f.key, err)
			}
			l := &listener{admin: f.admin, front: f.front, addr: addr, ln: ln}
			l.stop, l.close = context.WithCancel(g.stop)
			all, opened = append(all, l), append(opened, l)
		}
	}
	return all, opened, noPage, nil
}

// discard closes listeners that were never served.
func discard(opened []*listener) {
	for _, l := range opened {
		l.close()
		l.ln.Close()
	}
}

// listen opens one listener. Only a peer on another machine can vanish without a
// trace, so loopback does without keep-alives: they cost four system calls for each
// connection.
func listen(ctx context.Context, addr string, mode fs.FileMode) (net.Listener, error) {
	if path, ok := strings.CutPrefix(addr, config.UnixPrefix); ok {
		return listenUnix(path, mode)
	}
	var c net.ListenConfig
	if a, err := netip.ParseAddrPort(addr); err == nil {
		addr = adapter.BindAddr(a).String()
		if a.Addr().IsLoopback() {
			c.KeepAlive = -1
		}
	}
	return c.Listen(ctx, "tcp", addr)
}

// setModes gives the Unix sockets among listeners the modes of cfg.
func (g *Gateway) setModes(listeners []*listener, cfg *config.Config) {
	for _, l := range listeners {
		mode := cfg.Listen.SocketMode
		if l.admin {
			mode = cfg.Admin.SocketMode
		}
		if s, ok := l.ln.(*socket); ok {
			if err := s.setMode(mode); err != nil {
				g.log.Error("the mode of a Unix socket could not be changed: restart ptgate", "address", l.address(), "error", err)
			}
		}
	}
}

// serve accepts what l gets, until l is closed or the gateway stops.
func (g *Gateway) serve(l *listener) {
	if l.admin {
		g.log.Info("status page", "address", l.address())
	} else {
		g.log.Info("listening", "front", l.front.String(), "address", l.address())
	}
	g.wg.Go(func() {
		var err error
		if l.admin {
			err = g.admin.Serve(l.stop, l.ln)
		} else {
			err = g.front.Serve(l.stop, g.cut, l.ln, l.front)
		}
		if err != nil {
			select {
			case g.failed <- err:
			default:
			}
		}
	})
}

// hint says what to do about errors that people meet when a port is opened.
func hint(err error, reload bool) string {
	switch {
	case failedWith(err, addrInUse):
		own := ""
		if reload {
			own = "; if it is this one itself, which a reload can't move to an address that overlaps, restart it"
		}
		return " (another program, or another ptgate, has this port: " + whoListens() + " tells which" + own + ")"
	case failedWith(err, noSuchAddr):
		return " (this machine has no such address: name one that it has, or leave the address out for all of them, as in \":443\")"
	case failedWith(err, noPermission) && runtime.GOOS == "linux":
		return " (ports below 1024 need CAP_NET_BIND_SERVICE: see systemd/ptgate.service)"
	}
	return ""
}

// failedWith tells whether a port could not be opened because of cause. A transport
// program gives only a text, which quotes the system's error.
func failedWith(err, cause error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return errors.Is(op.Err, cause)
	}
	if m, ok := errors.AsType[*adapter.MethodError](err); ok {
		return strings.Contains(m.Message, cause.Error())
	}
	return false
}

// whoListens is the command that lists the programs that listen.
func whoListens() string {
	switch runtime.GOOS {
	case "linux":
		return "`ss -ltnp` as root"
	case "windows":
		return "`netstat -abno` as administrator"
	}
	return "`lsof -nP -iTCP -sTCP:LISTEN` as root"
}
