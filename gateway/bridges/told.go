package bridges

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/redact"
	"ptgate/gateway/session"
	"ptgate/gateway/ways"
	"ptgate/routes"
)

// A box tells its clients of the ways to it. They are kept, and each of them becomes a bridge
// in the routes of the bridges that lead to that box, behind those that the user wrote. Such
// a bridge is told of: it is used only if the box at its other end proves to be the same.
// So a box can add ways to itself and to nobody else. It may not lead its clients into
// their own network either: see mayTell.

// toldFile has the lists of ways in the state directory, by the box in hex.
const toldFile = "ways.json"

// maxTold is how many boxes may have a list in the file.
const maxTold = 256

// told keeps the lists of ways that boxes have given, over restarts.
type told struct {
	boxes *boxes // those that are known; a list of another one is not kept
	file  sync.Mutex

	mu    sync.Mutex
	dir   string            // where the file is; "": nowhere
	texts map[string]string // as they were signed, by the box; the map is never changed
}

// load reads the file of a state directory, once. A file that can't be read is as good as
// none: the boxes tell again.
func (t *told) load(dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == dir {
		return
	}
	t.dir, t.texts = dir, map[string]string{}
	text, err := os.ReadFile(filepath.Join(dir, toldFile))
	if err != nil {
		return
	}
	if err := json.Unmarshal(text, &t.texts); err != nil || t.texts == nil {
		t.texts = map[string]string{}
		t.boxes.log.Warn("the file of ways that servers told of can't be read: they tell again", "file", toldFile)
	}
}

// get returns the list of a box. It has no serial if there is none.
func (t *told) get(box session.Box) ways.List {
	t.mu.Lock()
	text := t.texts[hex.EncodeToString(box[:])]
	t.mu.Unlock()
	list, err := ways.Open(ed25519.PublicKey(box[:]), []byte(text))
	if err != nil {
		return ways.List{}
	}
	return list
}

// set keeps a text with the list of a box, and writes the file. changed: it is a newer list
// than the one before.
func (t *told) set(box session.Box, text []byte) (list ways.List, changed bool, err error) {
	if list, err = ways.Open(ed25519.PublicKey(box[:]), text); err != nil {
		return list, false, err
	}
	t.file.Lock()
	defer t.file.Unlock()
	if list.Serial <= t.get(box).Serial {
		return list, false, nil
	}
	t.mu.Lock()
	texts := maps.Clone(t.texts)
	t.mu.Unlock()
	if texts == nil {
		texts = map[string]string{}
	}
	maps.DeleteFunc(texts, func(box, _ string) bool { return !t.boxes.has(box) })
	if len(texts) >= maxTold {
		return list, false, errors.New("too many boxes have told of ways")
	}
	texts[hex.EncodeToString(box[:])] = string(text)
	t.mu.Lock()
	t.texts = texts
	dir := t.dir
	t.mu.Unlock()
	if dir == "" {
		return list, true, nil
	}
	file, err := json.MarshalIndent(texts, "", "  ")
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, toldFile), append(file, '\n'), 0o600)
	}
	if err != nil {
		t.boxes.log.Warn("the ways that a server told of can't be written down", "file", toldFile, "error", err)
	}
	return list, true, nil
}

// A said is what a box has said of its list.
type said struct {
	box    session.Box
	serial uint64
}

// An asking is what a bridge does to get the list of its box.
type asking struct {
	said atomic.Pointer[said] // the newest
	busy atomic.Bool

	// Only who has set busy uses these.
	pause time.Duration // since the last time
	last  time.Time
}

const (
	// A box that says something new all the time is not asked all the time: between two
	// times there is firstAsk at least, then twice as long each time, up to lastAsk. After
	// askQuiet without news it begins again.
	firstAsk = 500 * time.Millisecond
	lastAsk  = 10 * time.Minute
	askQuiet = time.Hour
	// askLimit is how long the box may take.
	askLimit = time.Minute
)

// news gets the list of a box that says it has one with this serial. It does not wait.
func (b *Bridge) news(box session.Box, serial uint64) {
	b.asks.said.Store(&said{box, serial})
	if !b.asks.busy.Swap(true) && !b.m.spawn(b.ask) {
		b.asks.busy.Store(false)
	}
}

// ask gets the newest list, and again if there are newer ones by then.
func (b *Bridge) ask() {
	a := &b.asks
	for {
		if time.Since(a.last) > askQuiet {
			a.pause = firstAsk
		}
		asked := a.said.Load()
		b.askWays(asked.box, asked.serial)
		t := time.NewTimer(a.pause)
		a.last, a.pause = time.Now(), min(2*a.pause, lastAsk)
		select {
		case <-t.C:
		case <-b.ctx.Done():
			t.Stop()
			return // and stays busy
		}
		if a.said.Load() == asked {
			a.busy.Store(false)
			if a.said.Load() == asked || a.busy.Swap(true) {
				return
			}
		}
	}
}

// askWays asks the box for its list, and keeps it.
func (b *Bridge) askWays(box session.Box, serial uint64) {
	if b.m.told.get(box).Serial >= serial {
		b.session.Has(box, serial)
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, askLimit)
	defer cancel()
	text, err := b.readWays(ctx)
	var list ways.List
	changed := false
	if err == nil {
		list, changed, err = b.m.told.set(box, text)
	}
	if err != nil {
		b.m.log.Debug("the ways to a server are not known", "bridge", b.Name(), "error", redact.Text(err, b.m.private.Load()))
		return
	}
	if changed {
		b.m.log.Info("the server has told of the ways to it", "bridge", b.Name(), "ways", len(list.Lines))
		if b.m.Told != nil {
			b.m.Told()
		}
	}
	b.session.Has(box, list.Serial)
}

func (b *Bridge) readWays(ctx context.Context) ([]byte, error) {
	s, err := b.session.Open(ctx, routes.Target{Name: ways.Name, Port: ways.Port})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return ways.Read(ctx, s)
}

// withTold returns cfg with a bridge for each way that boxes have told of. Those come behind
// all others, in the list and in the routes.
func (m *Manager) withTold(cfg *config.Config) *config.Config {
	type group struct{ box, user, password string }
	type family struct {
		box     session.Box
		written []*config.Bridge // the bridges that lead there
	}
	var order []group
	families := map[group]*family{}
	for _, bc := range cfg.Bridges {
		box := m.boxes.get(markOf(bc))
		if bc.Far != config.FarExit || box == (session.Box{}) {
			continue
		}
		g := group{string(box[:]), bc.User, bc.Password}
		if families[g] == nil {
			families[g] = &family{box: box}
			order = append(order, g)
		}
		families[g].written = append(families[g].written, bc)
	}
	with := *cfg
	with.Bridges, with.Routes = slices.Clone(cfg.Bridges), slices.Clone(cfg.Routes)
	for _, g := range order {
		f := families[g]
		var more []*config.Bridge
		for _, line := range m.told.get(f.box).Lines {
			bc := m.toldBridge(cfg, f.written, f.box, line)
			if bc != nil && !slices.ContainsFunc(more, func(x *config.Bridge) bool { return markOf(x) == markOf(bc) }) {
				bc.Name = freeName(with.Bridges, bc.Name)
				more = append(more, bc)
				with.Bridges = append(with.Bridges, bc)
			}
		}
		if len(more) == 0 {
			continue
		}
		for i, r := range with.Routes {
			if slices.ContainsFunc(r.Via, func(bc *config.Bridge) bool { return slices.Contains(f.written, bc) }) {
				longer := *r
				longer.Via = append(slices.Clone(r.Via), more...)
				with.Routes[i] = &longer
			}
		}
	}
	return &with
}

// freeName is name, or with a number behind it if a bridge is called so.
func freeName(all []*config.Bridge, name string) string {
	free := name
	for n := 2; slices.ContainsFunc(all, func(b *config.Bridge) bool { return b.Name == free }); n++ {
		free = fmt.Sprintf("%s-%d", name, n)
	}
	return free
}

// toldBridge is the bridge of a line that a box has told of; nil: the user has written it, or
// it can't be used. It has the settings of the first bridge that leads to the box.
func (m *Manager) toldBridge(cfg *config.Config, written []*config.Bridge, box session.Box, line string) *config.Bridge {
	l, err := adapter.ParseBridgeLine(line)
	if err != nil {
		return nil
	}
	bc := *written[0]
	bc.Name += "+" + l.Transport
	bc.Transport, bc.Address, bc.Args = l.Transport, l.Addr, l.Args
	bc.Told = string(box[:])
	row, _ := builtin.Lookup(l.Transport)
	bc.PT = programFor(cfg, row, l.Transport)
	if bc.PT == nil || len(row.Args.Check(l.Args, true)) > 0 ||
		slices.ContainsFunc(cfg.Bridges, func(x *config.Bridge) bool { return markOf(x) == markOf(&bc) }) {
		return nil
	}
	for _, x := range written {
		bc.ToldHosts = append(bc.ToldHosts, hostOf(x))
	}
	if err := m.mayTell(&bc); err != nil {
		return nil
	}
	return &bc
}

// programFor is the program for a transport: one that the configuration has, or this one.
func programFor(cfg *config.Config, row *builtin.Transport, transport string) *config.PT {
	for _, p := range cfg.PTs {
		if slices.Contains(p.Transports, transport) {
			return p
		}
	}
	for _, b := range cfg.Bridges {
		if b.Transport == transport {
			return b.PT
		}
	}
	if row.Inside() && row.Client {
		return &config.PT{Name: transport, Transports: []string{transport}}
	}
	return nil
}

// target is the host:port that a bridge's connections go to; "": the args do not tell.
func target(b *config.Bridge) string {
	row, _ := builtin.Lookup(b.Transport)
	if !row.Placeholder {
		return b.Address
	}
	web, ok := builtin.WebOf(b.Transport, b.Args)
	if !ok || row.Polled {
		return "" // or there may be several
	}
	return web.Addr
}

// hostOf is the host of target.
func hostOf(b *config.Bridge) string {
	host, _, err := net.SplitHostPort(target(b))
	if err != nil {
		return ""
	}
	return strings.ToLower(host)
}

var errTold = adapter.Constant("the server has told of a way that leads elsewhere than to a public address")

// mayTell returns an error if a box may not have its clients use a way: to an address that
// is not public, or is one of this machine. The host that the user wrote for the same box
// may be anything but a listener of this process. A name is checked when it was looked up,
// which only a transport inside this process does.
func (m *Manager) mayTell(b *config.Bridge) error {
	to := target(b)
	host, _, err := net.SplitHostPort(to)
	if err != nil || m.Direct == nil {
		return errTold
	}
	if a, err := netip.ParseAddrPort(to); err == nil {
		return m.mayDial(b, a)
	}
	row, _ := builtin.Lookup(b.Transport)
	if _, err := netip.ParseAddr(host); err == nil || !row.Placeholder || !inside(b.PT, b.Transport) {
		return errTold
	}
	return nil
}

// mayDial returns an error if a bridge that was told of may not lead to an address.
func (m *Manager) mayDial(b *config.Bridge, a netip.AddrPort) error {
	if m.Direct(a, slices.Contains(b.ToldHosts, hostOf(b))) != nil {
		return errTold
	}
	return nil
}
