package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/budget"
)

// namedBridges reads the [bridge.NAME] tables.
func (l *loading) namedBridges(top *table) []*Bridge {
	l.bridges, l.ways = map[string]*Bridge{}, map[string][]*Bridge{}
	var list []*Bridge
	for _, nt := range top.named("bridge", "[bridge.NAME]") {
		t := nt.t
		if nt.name == viaDirect || nt.name == viaBlock {
			t.fail(t.line(), "%q has a meaning of its own in via: give the bridge another name", nt.name)
		}
		b := &Bridge{Name: nt.name, Line: t.line()}
		if l.dotted(nt) && len(t.known) == len(t.m) {
			continue
		}
		l.bridges[nt.name] = b
		var more []item
		if t.has("line") {
			more = l.bridgeLine(t, b)
		} else {
			l.bridgeKeys(t, b, "address")
		}
		l.bridgeRest(t, b)
		list = append(list, b)
		for i, it := range more {
			x := *b
			x.Name = free(fmt.Sprintf("%s-%d", nt.name, i+2), top.m["bridge"])
			x.Of = nt.name
			x.Line, x.Transport, x.Address, x.Args, x.PT = it.line, "", "", nil, nil
			if l.bridgeText(t, &x, it); x.Transport != "" {
				x.PT = l.pts.find(t, x.Transport, false)
			}
			l.ways[nt.name] = append(l.ways[nt.name], &x)
			list = append(list, &x)
		}
		t.done()
	}
	return list
}

// free is name, or one like it that no table has.
func free(name string, tables any) string {
	for m, _ := tables.(map[string]any); m[name] != nil; {
		name += "-"
	}
	return name
}

// dotted reports tables inside a bridge's table. Most often somebody has written
// [bridge.a.c] for a bridge with the name "a.c", which needs quotes. A route that leads
// to "a.c" is no further error then.
func (l *loading) dotted(nt namedTable) (found bool) {
	for _, key := range slices.Sorted(maps.Keys(nt.t.m)) {
		if _, ok := nt.t.m[key].(map[string]any); !ok || slices.Contains(places["[bridge.…]"], key) || DidYouMean(key, []string{"args", "budget"}) != "" {
			continue
		}
		name := nt.name + "." + key
		nt.t.has(key)
		nt.t.fail(nt.t.lineOf(key), "unknown key %q, a table: if the bridge's name is %q, write it in quotes: [bridge.%[2]q]", key, name)
		if _, ok := l.bridges[name]; !ok {
			l.bridges[name] = nil
		}
		found = true
	}
	return found
}

// bridgeLine reads a bridge that was pasted as Tor users pass it around. A list of lines has
// several ways to one box: b is the first one, and more are the others.
func (l *loading) bridgeLine(t *table, b *Bridge) (more []item) {
	for _, key := range []string{"transport", "address", "args"} {
		if t.has(key) {
			t.fail(t.lineOf(key), "%s and line exclude each other: the line says it already, so take %[1]s out", key)
		}
	}
	if _, list := t.m["line"].([]any); !list {
		if text := t.pasted("line", TextLine); !t.isBad("line") {
			l.bridgeText(t, b, item{text, t.lineOf("line")})
		}
		return nil
	}
	written := t.list("line")
	lines := t.pastedList("line", TextLine)
	switch {
	case len(written) == 0:
		if t.isEmpty("line") {
			t.fail(t.lineOf("line"), "line is empty: write a bridge line, as in line = \"obfs4 192.0.2.10:443 cert=… iat-mode=0\"")
		}
		return nil
	case len(lines) < len(written):
		return nil // which was said
	}
	l.bridgeText(t, b, lines[0])
	return lines[1:]
}

// bridgeText reads one line.
func (l *loading) bridgeText(t *table, b *Bridge, it item) {
	text, line := it.text, it.line
	if says := Foreign(text); says != "" {
		t.fail(line, "line: %s", says)
		return
	}
	parsed, err := adapter.ParseBridgeLine(text)
	if err != nil {
		t.fail(line, "%v", err)
		return
	}
	b.Transport = parsed.Transport
	b.Args = parsed.Args
	if b.Address, err = bridgeAddress(parsed.Transport, parsed.Addr); err != nil {
		t.fail(line, "line: %v", err)
	}
	l.checkArgs(t, b, "line", line)
	if parsed.Fingerprint != "" && t.m["far"] != string(FarForward) {
		t.warn(line, "line: it has a relay's fingerprint (40 digits), so it leads into the Tor network, which does not work here: an exit of ptgate has none, so ask its operator for its line")
	}
}

// bridgeKeys reads transport, address (under addressKey) and args.
func (l *loading) bridgeKeys(t *table, b *Bridge, addressKey string) {
	b.Transport = t.pasted("transport", TextPlain)
	if b.Transport == "" && !t.isBad("transport") {
		t.fail(t.line(), "transport is missing: write transport = \"obfs4\"")
	}
	address := t.pasted(addressKey, TextPlain)
	switch {
	case address != "":
		a, err := bridgeAddress(b.Transport, address)
		if err != nil {
			t.fail(t.lineOf(addressKey), "%s: %v", addressKey, err)
		}
		b.Address = a
	case !t.isBad(addressKey):
		t.fail(t.line(), "%s is missing: write %s = \"192.0.2.10:443\"", addressKey, addressKey)
	}
	b.Args = t.args("args")
	l.checkArgs(t, b, "args", t.lineOf("args"))
}

// bridgeAddress is hostPort for an address that the transport connects to, or that is a mere
// placeholder.
func bridgeAddress(transport, text string) (string, error) {
	addr, err := hostPort(text)
	if row, _ := builtin.Lookup(transport); err == nil && !row.Placeholder {
		err = ofOne(addr)
	}
	return addr, err
}

// ofOne returns an error if addr stands for all addresses of a machine. Nobody can connect to
// that from elsewhere.
func ofOne(addr string) error {
	if a, err := netip.ParseAddrPort(addr); err == nil && a.Addr().IsUnspecified() {
		return fmt.Errorf("%q stands for all addresses of a machine that listens: write the one that clients connect to, as in \"192.0.2.10:%d\"", addr, a.Port())
	}
	return nil
}

// bridgeRest reads the keys that do not depend on whether the bridge is written as a
// line, as a table or in a route, and finds its PT.
func (l *loading) bridgeRest(t *table, b *Bridge) {
	b.Far = oneOf(t, "far", FarExit, FarSOCKS5, FarForward)
	b.User, b.Password = t.pasted("user", TextSecret), t.pasted("password", TextSecret)
	line := t.lineOf("user")
	if !t.has("user") {
		line = t.lineOf("password")
	}
	switch {
	case b.User == "" && b.Password == "", t.isBad("user"), t.isBad("password"):
	case b.Far == FarForward:
		t.fail(line, "user and password go to an exit or a SOCKS5 server; with far = \"forward\" nobody asks for them")
	case !credential(b.User) || !credential(b.Password):
		t.fail(line, "user and password go together: write both, each with 1 to 255 bytes and no control characters")
	default:
		l.secret(t.lineOf("password"))
	}
	b.Optimistic = oneOf(t, "optimistic", OptimisticLearned, OptimisticNever, OptimisticAlways)
	b.Carriers = t.integer("carriers", 0, 0, 1024)
	if b.Carriers > 0 && b.Far != FarExit {
		t.fail(t.lineOf("carriers"), "carriers is for an exit: leave it out with far = %q", b.Far)
	}
	l.budget(t, b)
	if b.Transport != "" {
		b.PT = l.pts.find(t, b.Transport, false)
	}
}

// budgetRoom is what a carrier needs beside the handshake to be of any use, in bytes: to
// join the session, and to move something.
const budgetRoom = 2 << 10

// budget reads what a PT connection to an exit may use.
func (l *loading) budget(t *table, b *Bridge) {
	s := t.sub("budget")
	if len(s.m) > 0 && b.Far != FarExit {
		t.fail(t.lineOf("budget"), "budget is for an exit: leave it out with far = %q", b.Far)
	}
	bytes := s.size("bytes", -1, 0, 1<<40)
	b.Budget = budget.Limits{
		Bytes:  max(bytes, 0),
		Age:    s.between("age", 2*time.Second, 30*24*time.Hour),
		Idle:   s.between("idle", 2*time.Second, 24*time.Hour),
		New:    s.rate("new"),
		AtOnce: s.integer("number", 0, 1, 1024),
	}
	s.done()
	handshake := int64(builtin.HandshakeCost(b.Transport))
	if least := handshake + budgetRoom; b.Transport != "" && bytes >= 0 && bytes < least {
		s.fail(s.lineOf("bytes"), "bytes is %q: the handshake of %s alone can take %d, so it must be at least \"%dKiB\"",
			s.m["bytes"], b.Transport, handshake, (least+1023)>>10)
	}
	if b.Budget.AtOnce > 0 && b.Carriers > b.Budget.AtOnce {
		t.fail(t.lineOf("carriers"), "carriers is %d, and budget allows only %d at once: write the same number, or leave one out", b.Carriers, b.Budget.AtOnce)
	}
}

// checkArgs checks args as far as that is possible without a connection. A mistake in
// them would otherwise show later, as a handshake that fails without a reason. key is
// where they are written: "args", or "line".
func (l *loading) checkArgs(t *table, b *Bridge, key string, line int) {
	if len(b.Args) > 0 {
		l.secret(line)
	}
	if err := b.Args.CheckClient(); err != nil {
		t.fail(line, "%s: %v", key, err)
	}
	if t.isBad(key) {
		return
	}
	row, _ := builtin.Lookup(b.Transport)
	for i, a := range b.Args {
		same := func(x adapter.Arg) bool { return x.Key == a.Key }
		if slices.Contains(row.Args.Known, a.Key) && slices.IndexFunc(b.Args, same) == i && slices.ContainsFunc(b.Args[i+1:], same) {
			t.warn(line, "%s: %s stands there twice, and only the first counts: take the other one out", key, a.Key)
		}
	}
	l.unknownArgs(t, line, key, b.Transport, row.Args.Known, b.Args)
	for _, err := range row.Args.Check(b.Args, key == "line") {
		t.fail(line, "%s: %v", key, err)
	}
	if pt := l.pts.declared[b.Transport]; pt == nil || pt.Builtin() {
		for _, doubt := range row.Args.Doubts(b.Args) {
			t.warn(line, "%s: %s", key, doubt)
		}
	}
}

// unknownArgs warns of args that the transport does not read: most often their names
// are misspelt. It is not known what args a program of a [pt.NAME] reads.
func (l *loading) unknownArgs(t *table, line int, key, transport string, known []string, args adapter.Args) {
	if pt := l.pts.declared[transport]; known == nil || pt != nil && !pt.Builtin() {
		return
	}
	for _, a := range args {
		if !slices.Contains(known, a.Key) {
			t.warn(line, "%s: %s knows no %q%s", key, transport, a.Key, DidYouMean(a.Key, known))
		}
	}
}

// A ptTable finds the PT of a transport.
type ptTable struct {
	l        *loading
	declared map[string]*PT // by transport
	builtin  []*PT          // of transports that no [pt.NAME] has
}

// declaredPTs reads the [pt.NAME] tables.
func (l *loading) declaredPTs(top *table) []*PT {
	l.pts = ptTable{l: l, declared: map[string]*PT{}}
	var list []*PT
	states := map[string]string{}
	for _, nt := range top.named("pt", "[pt.NAME]") {
		pt := l.ptTable(nt)
		for _, it := range nt.t.list("transports") {
			if !slices.Contains(pt.Transports, it.text) {
				continue
			}
			if other := l.pts.declared[it.text]; other == pt {
				nt.t.fail(it.line, "transports names %q twice", it.text)
			} else if other != nil {
				nt.t.fail(it.line, "transport %q belongs to [pt.%s] already (line %d)", it.text, other.Name, other.Line)
			} else {
				l.pts.declared[it.text] = pt
			}
		}
		if _, ok := builtin.Lookup(pt.Name); ok && !slices.Contains(pt.Transports, pt.Name) {
			nt.t.fail(pt.Line, "a PT that is called like the transport %q must offer it: give it another name", pt.Name)
		}
		if pt.State != "" {
			if other := states[pt.State]; other != "" {
				nt.t.fail(nt.t.lineOf("state"), "[pt.%s] has the same state directory: each PT needs one of its own", other)
			}
			states[pt.State] = pt.Name
		}
		list = append(list, pt)
	}
	return list
}

func (l *loading) ptTable(nt namedTable) *PT {
	t := nt.t
	pt := &PT{Name: nt.name, Line: t.line(), State: l.path(t.str("state", ""))}
	t.expandsNothing("state")
	for _, it := range t.list("exec") {
		pt.Exec = append(pt.Exec, it.text)
	}
	if len(pt.Exec) > 0 {
		l.program(t, pt)
	}
	transports := t.list("transports")
	if len(transports) == 0 && t.m["transports"] == nil {
		t.fail(t.line(), "transports is missing: write transports = [\"obfs4\"]")
	} else if len(transports) == 0 {
		t.fail(t.lineOf("transports"), "transports names none: write transports = [\"obfs4\"]")
	}
	for _, it := range transports {
		row, _ := builtin.Lookup(it.text)
		switch {
		case !validTransport(it.text):
			t.fail(it.line, "transports: %q is not a transport's name: letters, digits and \"_\" only, and no digit in front", it.text)
		case pt.Builtin() && !row.Inside():
			t.fail(it.line, "transports: ptgate has no %q inside: write exec = [\"/path/to/program\"]", it.text)
		default:
			pt.Transports = append(pt.Transports, it.text)
		}
	}
	if text := t.pasted("proxy", TextPlain); text != "" {
		line := t.lineOf("proxy")
		u, err := adapter.ParseProxy(text)
		if err != nil {
			t.fail(line, "proxy: %v", err)
		} else {
			pt.Proxy = u.String()
			if u.User != nil {
				l.secret(line)
			}
		}
	}
	pt.BindV4 = t.address("bind_v4", netip.Addr.Is4, "192.0.2.1")
	pt.BindV6 = t.address("bind_v6", netip.Addr.Is6, "2001:db8::1")
	pt.Isolate = t.boolean("isolate", false)
	if pt.Isolate && !pt.Builtin() {
		t.fail(t.lineOf("isolate"), "isolate is for the built-in transports: another program is a process of its own anyway")
	}
	pt.Env = t.env("env")
	pt.Isolate = pt.Isolate || pt.Builtin() && len(pt.Env) > 0
	t.done()
	return pt
}

// program finds the program of a declared PT. One that is missing is no error:
// it may be there when it is needed, and everything else works without it.
func (l *loading) program(t *table, pt *PT) {
	name := pt.Exec[0]
	line := max(l.lines.elem(join(t.path, "exec"), 0), t.line())
	if name == "" {
		t.fail(line, "exec begins with an empty string: write the program's path")
		return
	}
	if strings.ContainsFunc(name, unicode.IsControl) {
		t.fail(line, "exec has a control character in it: %s", escapeHint)
		return
	}
	if strings.Contains(name, "/") {
		name = l.path(name)
	}
	found, err := l.LookPath(name)
	switch {
	case err == nil:
		pt.Exec[0] = found
	case strings.Contains(pt.Exec[0], " ") && len(pt.Exec) == 1:
		t.warn(line, "exec: there is no program %q: write the program and its arguments as a list, exec = [\"…\", \"…\"]", pt.Exec[0])
	case errors.Is(err, fs.ErrPermission):
		t.warn(line, "exec: %q is not executable: chmod +x %[1]s, or its transports will not work", pt.Exec[0])
		pt.Exec[0] = name
	default:
		t.warn(line, "exec: there is no program %q: install it, or its transports will not work", pt.Exec[0])
		pt.Exec[0] = name
	}
}

// address reads one literal address of a family.
func (t *table) address(key string, family func(netip.Addr) bool, example string) netip.Addr {
	text := t.pasted(key, TextPlain)
	if text == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil || !family(a) || a.Zone() != "" || a.Is4In6() {
		t.fail(t.lineOf(key), "%s is %q: write an address as in %q", key, text, example)
		return netip.Addr{}
	}
	return a
}

func validTransport(s string) bool {
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// find returns the PT of a transport for the bridge or serve t, and reports where
// there is none.
func (p *ptTable) find(t *table, transport string, server bool) *PT {
	line := t.lineOf("transport")
	if !t.has("transport") {
		line = t.lineOf("line")
	}
	row, known := builtin.Lookup(transport)
	pt := p.declared[transport]
	switch {
	case pt != nil && !pt.Builtin():
		return pt
	case server && known && !row.Server && row.Inside():
		t.fail(line, "ptgate can't serve %q, only connect to it: name a program that can in [pt.NAME]", transport)
		return nil
	case server && known && !row.Server:
		t.fail(line, "no known program serves %q: name one in [pt.NAME], with transports = [%[1]q]", transport)
		return nil
	case pt != nil:
		return pt
	case !known:
		var names []string
		for _, r := range builtin.Transports() {
			names = append(names, r.Name)
		}
		names = append(names, slices.Sorted(maps.Keys(p.declared))...)
		t.fail(line, "no PT offers the transport %q%s", transport, noSuchTransport(transport, names))
		return nil
	}
	if i := slices.IndexFunc(p.builtin, func(b *PT) bool { return b.Name == transport }); i >= 0 {
		return p.builtin[i]
	}
	pt = &PT{Name: transport, Transports: []string{transport}}
	if !row.Inside() {
		pt.Exec = []string{p.l.programOf(t, line, row)}
	}
	p.builtin = append(p.builtin, pt)
	return pt
}

// programOf finds the first program of a row that is installed.
func (l *loading) programOf(t *table, line int, row *builtin.Transport) string {
	for _, name := range row.Programs {
		if found, err := l.LookPath(name); err == nil {
			return found
		}
	}
	t.warn(line, "transport %q needs the program %s, and PATH has none: install one, or it will not work",
		row.Name, strings.Join(row.Programs, " or "))
	return row.Programs[0]
}

// Install is a text for the user: what to do if p's program is missing.
func (p *PT) Install() string {
	if row, ok := builtin.Lookup(p.Name); ok && p.Line == 0 {
		return fmt.Sprintf("transport %q needs the program %s: install one, and have it in PATH when ptgate starts",
			p.Name, strings.Join(row.Programs, " or "))
	}
	return "install the program, or correct " + p.Setting("exec")
}

// Setting names a key of p's table, for texts of advice.
func (p *PT) Setting(key string) string {
	if p.Line == 0 {
		return fmt.Sprintf("%s in a [pt.NAME] with transports = [%q]", key, p.Name)
	}
	return fmt.Sprintf("%s of [pt.%s]", key, p.Name)
}
