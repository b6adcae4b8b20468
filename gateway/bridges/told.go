package bridges

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
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

const (
	// maxTold is how many boxes may have a list.
	maxTold = 256
	// toldFor is how long a list is used that its box has not confirmed. All its ways are
	// bad then.
	toldFor = 90 * 24 * time.Hour
	// heardEvery is how often it is noted that a box has confirmed its list.
	heardEvery = 24 * time.Hour
)

// told keeps the lists of ways that boxes have given, over restarts.
type told struct {
	log  *slog.Logger
	file sync.Mutex // held while the file is written; taken before mu

	mu    sync.Mutex
	name  string                 // the file; "": there is none
	lists map[session.Box]toldBy // the map is never changed
}

// A toldBy is what one box has told.
type toldBy struct {
	Text  string    `json:"text"`  // the list as it was signed
	Heard time.Time `json:"heard"` // when the box has last said that it is its newest

	list ways.List
}

// toldPath is the file in the state directory with what boxes have told the ptgate that runs
// this configuration.
func toldPath(cfg *config.Config) string {
	return filepath.Join(cfg.StateDir, "ways-"+control.ID(cfg.Path)+".json")
}

// load reads the file of a configuration, once. What can't be read is as good as not there:
// the boxes tell again.
func (t *told) load(cfg *config.Config) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := toldPath(cfg)
	if t.name == name {
		return
	}
	t.name, t.lists = name, map[session.Box]toldBy{}
	text, err := durable.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // the start tells of the latter
		return
	}
	var all map[string]toldBy
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	for key, x := range all {
		var box session.Box
		if n, e := hex.Decode(box[:], []byte(key[:min(len(key), 2*len(box))])); e != nil || n != len(box) || len(key) != 2*n {
			err = errors.New("a name in it is no box")
			continue
		}
		list, e := ways.Open(box[:], []byte(x.Text))
		if e != nil {
			err = e
			continue
		}
		x.list = list
		t.lists[box] = x
	}
	if err != nil {
		t.log.Warn("what servers have told of the ways to them can't be read, all of it or a part: they tell again", "file", filepath.Base(name), "error", adapter.WithoutAddresses(err))
	}
}

// ToldWays is how many ways to the box of a bridge there are that the box has told of, and that
// cfg does not have itself, as a ptgate that runs cfg has noted it in the state directory. Which of
// them may be used, only that one knows.
func ToldWays(cfg *config.Config, c *config.Bridge) (n int) {
	quiet := slog.New(slog.DiscardHandler)
	known, t := boxes{log: quiet}, told{log: quiet}
	known.load(cfg.StateDir)
	t.load(cfg)
	x := t.lists[known.get(markOf(c))]
	if time.Since(x.Heard) >= toldFor {
		return 0
	}
	for _, line := range x.list.Lines {
		l, err := adapter.ParseBridgeLine(line)
		mark := markOf(&config.Bridge{Transport: l.Transport, Address: l.Addr, Args: l.Args})
		if err == nil && !slices.ContainsFunc(cfg.Bridges, func(b *config.Bridge) bool { return markOf(b) == mark }) {
			n++
		}
	}
	return n
}

// get returns the list of a box. It has no serial if there is none.
func (t *told) get(box session.Box) ways.List {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lists[box].list
}

// set keeps a text with the list of a box, and writes the file. changed: it is a newer list
// than the one before.
func (t *told) set(box session.Box, text []byte) (list ways.List, changed bool, err error) {
	if list, err = ways.Open(box[:], text); err != nil {
		return list, false, err
	}
	if changed, err = t.newer(box, toldBy{string(text), time.Now(), list}); changed {
		t.write()
	}
	return list, changed, err
}

// newer puts the list of a box in the place of an older one. Several bridges may lead to the
// box, and have asked it at the same time.
func (t *told) newer(box session.Box, x toldBy) (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, known := t.lists[box]
	switch {
	case x.list.Serial < before.list.Serial:
		return false, errors.New("the list of ways is older than the one that is known")
	case x.list.Serial == before.list.Serial:
		return false, nil
	case !known && len(t.lists) >= maxTold:
		return false, errors.New("too many boxes have told of ways")
	}
	t.put(box, x)
	return true, nil
}

// put changes the list of a box. The caller holds mu.
func (t *told) put(box session.Box, x toldBy) {
	lists := maps.Clone(t.lists)
	if lists == nil {
		lists = map[session.Box]toldBy{}
	}
	lists[box] = x
	t.lists = lists
}

// heard notes that a box has confirmed its list.
func (t *told) heard(box session.Box) {
	t.mu.Lock()
	x, known := t.lists[box]
	news := known && time.Since(x.Heard).Abs() > heardEvery
	if news {
		x.Heard = time.Now()
		t.put(box, x)
	}
	t.mu.Unlock()
	if news {
		t.write()
	}
}

// keep forgets the lists of all boxes but those, and what is too old. It tells whether the
// file has to be written.
func (t *told) keep(boxes map[session.Box]bool) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	lists := maps.Clone(t.lists)
	maps.DeleteFunc(lists, func(box session.Box, x toldBy) bool { return !boxes[box] || time.Since(x.Heard) >= toldFor })
	changed = len(lists) != len(t.lists)
	t.lists = lists
	return changed
}

// write writes the file. It takes as long as the disk does.
func (t *told) write() {
	t.file.Lock()
	defer t.file.Unlock()
	t.mu.Lock()
	name, lists := t.name, t.lists // which is never changed
	t.mu.Unlock()
	if name == "" {
		return
	}
	all := map[string]toldBy{}
	for box, x := range lists {
		all[hex.EncodeToString(box[:])] = x
	}
	if err := writeJSON(name, all); err != nil {
		t.log.Warn("what servers have told of the ways to them can't be written down", "file", filepath.Base(name), "error", err)
	}
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
	// asks is how often the box is asked for one list if there is no answer, or a wrong one.
	asks = 5
)

// news gets the list of a box that says it has one with this serial. It does not wait.
func (b *Bridge) news(box session.Box, serial uint64) {
	if b.m.Told == nil {
		return // nobody would use it
	}
	b.asks.said.Store(&said{box, serial})
	if !b.asks.busy.Swap(true) && !b.m.spawn(b.ask) {
		b.asks.busy.Store(false)
	}
}

// ask gets the newest list, and again if there are newer ones by then.
func (b *Bridge) ask() {
	a := &b.asks
	for failed := 0; ; {
		if time.Since(a.last) > askQuiet {
			a.pause = firstAsk
		}
		asked := a.said.Load()
		if b.askWays(asked.box, asked.serial) {
			failed = 0
		} else {
			failed++
		}
		t := time.NewTimer(a.pause)
		a.last, a.pause = time.Now(), min(2*a.pause, lastAsk)
		select {
		case <-t.C:
		case <-b.ctx.Done():
			t.Stop()
			return // and stays busy
		}
		switch {
		case a.said.Load() != asked:
			failed = 0
		case failed == 0 || failed == asks:
			a.busy.Store(false)
			if a.said.Load() == asked || a.busy.Swap(true) {
				return
			}
			failed = 0
		}
	}
}

// askWays asks the box for its list, and keeps it. ok: the list is here.
func (b *Bridge) askWays(box session.Box, serial uint64) (ok bool) {
	if b.m.told.get(box).Serial >= serial {
		b.m.told.heard(box)
		b.session.Has(box, serial)
		return true
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
		return false
	}
	if changed {
		b.m.log.Info("the server has told of the ways to it", "bridge", b.Name(), "ways", len(list.Lines))
		b.m.Told()
	}
	b.session.Has(box, list.Serial)
	return true
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
// all others, in the list and in the routes. What boxes have told to which no bridge of cfg
// leads is forgotten.
func (m *Manager) withTold(cfg *config.Config) *config.Config {
	type group struct {
		box            session.Box
		user, password string
	}
	var order []group
	families := map[group][]*config.Bridge{} // the bridges that lead there, as the user wrote them
	boxes := map[session.Box]bool{}
	for _, bc := range cfg.Bridges {
		box := m.boxes.get(markOf(bc))
		if bc.Far != config.FarExit || box == (session.Box{}) {
			continue
		}
		boxes[box] = true
		g := group{box, bc.User, bc.Password}
		if families[g] == nil {
			order = append(order, g)
		}
		families[g] = append(families[g], bc)
	}
	if m.told.keep(boxes) {
		m.spawn(m.told.write) // mu is held here
	}
	with := *cfg
	with.Bridges, with.Routes = slices.Clone(cfg.Bridges), slices.Clone(cfg.Routes)
	for _, g := range order {
		var more []*config.Bridge
		for _, line := range m.told.get(g.box).Lines {
			bc := m.toldBridge(cfg, families[g], g.box, line)
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
			if slices.ContainsFunc(r.Via, func(bc *config.Bridge) bool { return slices.Contains(families[g], bc) }) {
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
	bc.Told, bc.Written = string(box[:]), written
	row, known := builtin.Lookup(l.Transport)
	bc.PT = programFor(cfg, row, &bc)
	wrote := func(yes func(*config.Bridge) bool) bool { return slices.ContainsFunc(cfg.Bridges, yes) }
	switch {
	case bc.PT == nil, len(row.Args.Check(l.Args, true)) > 0,
		wrote(func(x *config.Bridge) bool { return markOf(x) == markOf(&bc) }),
		// Nobody knows where the args of such a program may lead.
		!known && !wrote(func(x *config.Bridge) bool { return x.Transport == bc.Transport && argsOf(x) == argsOf(&bc) }),
		m.mayTell(&bc) != nil:
		return nil
	}
	return &bc
}

// programFor is the program for a bridge that was told of: one that the configuration has,
// or this one.
func programFor(cfg *config.Config, row *builtin.Transport, bc *config.Bridge) *config.PT {
	for _, p := range cfg.PTs {
		if slices.Contains(p.Transports, bc.Transport) {
			return p
		}
	}
	for _, b := range cfg.Bridges {
		if b.Transport == bc.Transport {
			return b.PT
		}
	}
	if !row.Inside() || !row.Client {
		return nil
	}
	pt := &config.PT{Name: bc.Transport, Transports: []string{bc.Transport}}
	if from := bc.Written[0].PT; from != nil { // the same way out of this machine
		pt.Proxy, pt.BindV4, pt.BindV6 = from.Proxy, from.BindV4, from.BindV6
	}
	return pt
}

// target is the host:port that a bridge's connections go to; "": the args do not tell.
func target(b *config.Bridge) string {
	row, _ := builtin.Lookup(b.Transport)
	if !row.Placeholder {
		return strings.ToLower(b.Address)
	}
	web, ok := builtin.WebOf(b.Transport, b.Args)
	if !ok || row.Polled {
		return "" // or there may be several
	}
	return strings.ToLower(web.Addr)
}

// hostOf is the host of a target; "": there is none.
func hostOf(target string) string {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return ""
	}
	return host
}

var errTold = adapter.Constant("the server has told of a way that may not be used")

// mayTell returns an error if a box may not have its clients use a way. They would show
// their address to the box, or leave this machine by another way, where the user took care
// that they do not; or the way leads to an address that mayDial does not allow. A name that
// the user has not written for the same box is checked when a transport inside this process
// has looked it up. No other way leads to such a name.
func (m *Manager) mayTell(b *config.Bridge) error {
	to := target(b)
	host := hostOf(to)
	hidden := !slices.ContainsFunc(b.Written, func(x *config.Bridge) bool { return target(x) != "" })
	detour := slices.ContainsFunc(b.Written, func(x *config.Bridge) bool {
		return x.PT.Proxy != b.PT.Proxy || x.PT.BindV4 != b.PT.BindV4 || x.PT.BindV6 != b.PT.BindV6
	})
	if m.Direct == nil || host == "" || hidden || detour {
		return errTold
	}
	if a, err := netip.ParseAddrPort(to); err == nil {
		return m.mayDial(b, a)
	}
	_, err := netip.ParseAddr(host)
	row, _ := builtin.Lookup(b.Transport)
	checked := row.Placeholder && inside(b.PT, b.Transport) && b.PT.Proxy == ""
	if err == nil || !checked && (row.Placeholder || !wroteHost(b)) {
		return errTold
	}
	return nil
}

// wroteHost tells whether the user wrote the host of a way for the same box.
func wroteHost(b *config.Bridge) bool {
	return slices.ContainsFunc(b.Written, func(x *config.Bridge) bool { return hostOf(target(x)) == hostOf(target(b)) })
}

// mayDial returns an error if a bridge that was told of may not lead to an address: one that
// is not public, or that is of this machine. At the host that the user wrote for the same box
// it may be any, but for a listener of this process. What a web server gets is a request that
// makes sense to others, too: if it is not public, the user must have written its port as well.
func (m *Manager) mayDial(b *config.Bridge, a netip.AddrPort) error {
	row, _ := builtin.Lookup(b.Transport)
	private := wroteHost(b)
	if row.Placeholder {
		private = slices.ContainsFunc(b.Written, func(x *config.Bridge) bool { return target(x) == target(b) })
	}
	if m.Direct(a, private) != nil {
		return errTold
	}
	return nil
}
