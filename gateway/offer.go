package gateway

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/serve"
	"ptgate/gateway/ways"
)

// offerFile has the list of ways that this box gives to its clients, in the state directory.
// While the ways are the same, so is the list, and no client gets it twice.
const offerFile = "ways.txt"

// offer makes the list of ways, and has clients told of it. An error is in the log: the
// list is then a new one after each start.
func (g *Gateway) offer(cfg *config.Config, servers []*serve.Server) {
	sessions := g.sessions.Load()
	if sessions == nil {
		return
	}
	key, err := boxKey(cfg.StateDir)
	if err != nil {
		g.log.Warn("clients can't be told of the ways to this box", "error", err)
		return
	}
	all := make([]serve.Announced, len(servers))
	for i, s := range servers {
		all[i] = s.Announced()
	}
	list, text := g.list(cfg, key, offered(cfg, all))
	g.ways.Store(&text)
	sessions.Tell(list.Serial)
}

// offered are the bridge lines of the exit of which clients are told: what `ptgate bridges`
// prints. A line in which the operator has to fill in something is no line.
func offered(cfg *config.Config, all []serve.Announced) (lines []string) {
	for i, a := range all {
		if cfg.Serve[i].Forward != "" || !cfg.Serve[i].Tell {
			continue
		}
		if line, remark, err := BridgeLine(cfg.Serve[i], a); err == nil && remark == "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// list gives the signed list of these lines: the one that is noted, if it has them.
func (g *Gateway) list(cfg *config.Config, key ed25519.PrivateKey, lines []string) (ways.List, []byte) {
	name := filepath.Join(cfg.StateDir, offerFile)
	list := ways.List{Serial: uint64(time.Now().UnixMilli()), Lines: lines}
	if noted, err := durable.ReadFile(name); err == nil {
		if before, err := ways.Open(key.Public().(ed25519.PublicKey), noted); err == nil {
			list.Serial = before.Serial
			if slices.Equal(noted, list.Sign(key)) {
				return list, noted
			}
			list.Serial = max(uint64(time.Now().UnixMilli()), before.Serial+1)
		}
	}
	text := list.Sign(key)
	if err := durable.WriteFile(name, text, 0o600); err != nil {
		g.log.Warn("the ways to this box could not be noted", "error", err)
	}
	return list, text
}

// isLiteral tells whether addr has no name in it: tor takes no line that has one.
func isLiteral(addr string) bool {
	_, err := netip.ParseAddrPort(addr)
	return err == nil
}

// BridgeLine makes a line of what a transport announces. A remark tells the
// operator what is still missing.
func BridgeLine(s *config.Serve, a serve.Announced) (line, remark string, err error) {
	addr := s.Public
	row, _ := builtin.Lookup(s.Transport)
	switch {
	case row.Placeholder && (addr == "" || addr == s.Bind.String() || !isLiteral(addr)):
		addr = builtin.Placeholder
	case addr == "":
		addr = a.Address
		switch host, port, err := net.SplitHostPort(a.Address); {
		case err != nil:
			return "", "", fmt.Errorf("%s announces the address %q: %w", s.Transport, a.Address, err)
		case net.ParseIP(host).IsUnspecified():
			addr = config.YourAddress + ":" + port
			remark = fmt.Sprintf("%s listens on all addresses: which one do clients dial? Set it as  public = \"HOST:%s\"  in its [[serve]]", s.Transport, port)
		}
	}
	var b strings.Builder
	b.WriteString(s.Transport + " " + addr)
	for _, arg := range a.Args {
		fmt.Fprintf(&b, " %s=%s", arg.Key, arg.Value)
	}
	if remark != "" {
		return b.String(), remark, nil
	}
	l, err := adapter.ParseBridgeLine(b.String())
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", s.Transport, err)
	}
	return l.String(), "", nil
}
