package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/BurntSushi/toml"

	"ptgate/adapter/builtin"
	"ptgate/gateway/destination"
	"ptgate/gateway/permissions"
	"ptgate/routes"
)

// A Loader reads configuration files. The zero Loader asks the process's
// environment.
type Loader struct {
	// LookPath finds a program; nil: exec.LookPath.
	LookPath func(file string) (string, error)
	// Getenv is asked for STATE_DIRECTORY, XDG_STATE_HOME, HOME and CREDENTIALS_DIRECTORY;
	// nil: os.Getenv.
	Getenv func(key string) string
	// Check returns an error if others can write a file; nil: permissions.Check.
	Check func(path string, info fs.FileInfo) error
}

// Load reads and checks the file at path with the zero Loader.
func Load(path string) (*Config, []Problem) { return Loader{}.Load(path) }

// maxFile bounds a configuration file, in bytes.
const maxFile = 16 << 20

// Load reads and checks the file at path, and the lists that its routes name. It
// returns all problems: those of path first, and those of each file by line. The
// Config is nil if one of them is an error.
func (ld Loader) Load(path string) (*Config, []Problem) {
	doc, info, err := readFile(path)
	if err != nil {
		return nil, []Problem{{File: path, Message: err.Error()}}
	}
	if err := ld.check(path, info); err != nil {
		return nil, []Problem{{File: path, Message: err.Error()}}
	}
	cfg, problems := ld.parse(path, doc, info.Mode())
	if cfg != nil {
		cfg.Written = info.ModTime()
	}
	return cfg, problems
}

// Check returns what Load would return if the file at path had the content doc and
// this mode.
func Check(path string, doc []byte, mode fs.FileMode) (*Config, []Problem) {
	if len(doc) > maxFile {
		return nil, []Problem{{File: path, Message: errTooLarge.Error()}}
	}
	return Loader{}.parse(path, doc, mode)
}

func (ld Loader) check(path string, info fs.FileInfo) error {
	if ld.Check != nil {
		return ld.Check(path, info)
	}
	return permissions.Check(path, info)
}

func (ld Loader) parse(path string, doc []byte, mode fs.FileMode) (*Config, []Problem) {
	l := &loading{Loader: ld, file: path}
	if l.LookPath == nil {
		l.LookPath = exec.LookPath
	}
	if l.Getenv == nil {
		l.Getenv = os.Getenv
	}
	var err error
	if l.abs, err = filepath.Abs(path); err != nil {
		return nil, []Problem{{File: path, Message: "its directory: " + err.Error()}}
	}
	m, problem := decode(doc)
	if problem != nil {
		problem.File = path
		return nil, []Problem{*problem}
	}
	l.lines = scanLines(string(doc))
	cfg := l.config(m)
	// Of the files of systemd's LoadCredential=, the directory says who can read them.
	credential := filepath.Dir(l.abs) == l.Getenv("CREDENTIALS_DIRECTORY")
	if l.secretLine > 0 && mode.IsRegular() && mode.Perm()&0o077 != 0 && !credential {
		l.problems = append(l.problems, Problem{path, l.secretLine,
			fmt.Sprintf("others can read the secrets in this file (mode %#o): chmod 600 %s", mode.Perm(), path), true})
	}
	seen := map[Problem]bool{} // a key that is read twice is reported twice
	l.problems = slices.DeleteFunc(l.problems, func(p Problem) bool {
		again := seen[p]
		seen[p] = true
		return again
	})
	Sort(l.problems, path)
	if HasError(l.problems) {
		return nil, l.problems
	}
	return cfg, l.problems
}

func readFile(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, shortError(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, shortError(err)
	}
	doc, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, nil, shortError(err)
	case len(doc) > maxFile:
		return nil, nil, errTooLarge
	}
	return doc, info, nil
}

var errTooLarge = fmt.Errorf("is larger than %d MiB: put long lists into files of their own (to_file)", maxFile>>20)

// shortError leaves the path out, which stands before the message already. If the file may
// not be read, it says who must own it.
func shortError(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		if errors.Is(err, syscall.EISDIR) {
			return errors.New("is a directory: name a file")
		}
		if errors.Is(err, fs.ErrPermission) {
			if why := permissions.Denied(pe.Path); why != "" {
				return fmt.Errorf("can't %s it: %w: %s", pe.Op, pe.Err, why)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("can't %s it: %w: correct its name, or make it", pe.Op, pe.Err)
		}
		return fmt.Errorf("can't %s it: %w", pe.Op, pe.Err)
	}
	return err
}

// maxNesting keeps the TOML library's recursion from running out of stack.
const maxNesting = 10_000

// decode parses TOML into maps. A panic of the library becomes an error: a reload must
// not end the process.
func decode(doc []byte) (m map[string]any, problem *Problem) {
	depth, line := 0, 1
	for _, c := range doc {
		switch c {
		case '\n':
			line++
		case '[', '{':
			if depth++; depth > maxNesting {
				return nil, &Problem{Line: line, Message: "brackets are nested too deeply"}
			}
		case ']', '}':
			depth = max(depth-1, 0)
		}
	}
	defer func() {
		if r := recover(); r != nil {
			m, problem = nil, &Problem{Line: 1, Message: fmt.Sprintf("this file breaks the TOML parser: %q", fmt.Sprint(r))}
		}
	}()
	_, err := toml.NewDecoder(bytes.NewReader(doc)).Decode(&m)
	if err == nil {
		return m, nil
	}
	message := strings.TrimPrefix(err.Error(), "toml: ")
	line = 1
	if pe, ok := errors.AsType[toml.ParseError](err); ok {
		message, line = pe.Message, max(pe.Position.Line, 1)
	}
	if strings.Contains(message, "end table name, but got '\\n'") || strings.Contains(message, "delimiter ']', but got '\\n'") {
		line = max(line-1, 1) // the line that lacks its end
	}
	if at := openList(doc, line); at > 0 {
		return nil, &Problem{Line: at, Message: "the list that begins here has no end: write \"]\" behind its last entry"}
	}
	if at := openText(doc, message); at > 0 {
		return nil, &Problem{Line: at, Message: "a text that begins here with three quotes has no end: write one quote at each end if it stands in one line"}
	}
	return nil, &Problem{Line: line, Message: cmp.Or(syntaxHint(doc, line, message), syntaxMessage(message))}
}

// syntaxMessage gives the library's message the form of ours.
func syntaxMessage(s string) string {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 1 && s[1] >= 'a' { // not TOML
		s = strings.ToLower(s[:1]) + s[1:]
	}
	if value, after, ok := strings.Cut(s, " is out of range "); ok {
		s = fmt.Sprintf("%q is out of range %s", value, after) // what is quoted can be kept out of a log
	}
	if strings.HasPrefix(s, "expected value") {
		s += " (text stands in quotes, and a list ends in \"]\")"
	}
	return s
}

// loading is one Load under way.
type loading struct {
	Loader
	file, abs  string
	lines      *keyLines
	problems   []Problem
	secretLine int // of the first secret; 0: none

	bridges map[string]*Bridge // by name; nil values failed
	// ways are what a list of lines has beside its first one, by the bridge's name.
	ways    map[string][]*Bridge
	pts     ptTable
	binds   []bind
	sockets map[string]int // path of a Unix socket → line
}

// path resolves a file that the configuration names: relative to its own place.
func (l *loading) path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(l.abs), name)
}

// expandsNothing warns of a path with words that only a shell knows. A directory with such a
// name would be made.
func (t *table) expandsNothing(key string) {
	if text, _ := t.m[key].(string); strings.HasPrefix(text, "~") || strings.HasPrefix(text, "$") {
		t.warn(t.lineOf(key), "%s: %q begins with what only a shell understands, and is taken as it stands: write the whole path", key, text)
	}
}

// shown is a file's name in problems. It is relative if the user has given the
// configuration's own name as a relative one.
func (l *loading) shown(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(l.file), name)
}

func (l *loading) secret(line int) {
	if l.secretLine == 0 || line < l.secretLine {
		l.secretLine = line
	}
}

func (l *loading) config(m map[string]any) *Config {
	top := &table{l: l, m: m}
	cfg := &Config{Path: l.abs, StateDir: l.stateDir(top)}
	if l.namedStateDir(top) != "" {
		cfg.StateLine = top.lineOf("state_dir")
		top.expandsNothing("state_dir")
	}
	serve, route := top.array("serve"), top.array("route")
	cfg.Log = logTable(top.sub("log"))
	cfg.PTs = l.declaredPTs(top)
	cfg.Bridges = l.namedBridges(top)
	l.routeTables(cfg, route)
	cfg.Listen = l.listenTable(top, len(route) > 0, len(serve) > 0)
	for _, t := range serve {
		cfg.Serve = append(cfg.Serve, l.serveTable(t))
	}
	cfg.Exit = exitTable(top.sub("exit"), cfg.Serve)
	cfg.Admin = l.adminTable(top.sub("admin"), len(route) > 0, cfg.Listen)
	cfg.Limits = limitsTable(top.sub("limits"), cfg.Serve)
	top.done()
	if m["route"] == nil && m["serve"] == nil || len(route)+len(serve) == 0 && !HasError(l.problems) {
		top.fail(1, "there is nothing to do: write a [[route]] (near end), a [[serve]] (far end) or both")
	}
	cfg.PTs = append(cfg.PTs, l.pts.builtin...)
	l.yieldAdmin(top, &cfg.Admin)
	l.checkBinds()
	return cfg
}

// stateDir is where the program keeps what it needs again after a restart.
func (l *loading) stateDir(top *table) string {
	if dir := l.namedStateDir(top); dir != "" {
		return dir
	}
	return DefaultStateDir(l.Getenv)
}

func (l *loading) namedStateDir(top *table) string { return l.path(top.str("state_dir", "")) }

// DefaultStateDir is the state directory of a configuration that names none. getenv is
// as in Loader.
func DefaultStateDir(getenv func(string) string) string {
	// systemd.exec(5): several directories are parted by colons.
	if dir, _, _ := strings.Cut(getenv("STATE_DIRECTORY"), ":"); filepath.IsAbs(dir) {
		return dir
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "ptgate")
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "ptgate")
	}
	return ServiceStateDir
}

func logTable(t *table) Log {
	level := oneOf(t, "level", "info", "debug", "warn", "error")
	log := Log{
		Format:  oneOf(t, "format", "text", "json"),
		Private: t.boolean("private", true),
	}
	switch level {
	case "debug":
		log.Level = slog.LevelDebug
	case "warn":
		log.Level = slog.LevelWarn
	case "error":
		log.Level = slog.LevelError
	}
	t.done()
	return log
}

// A bind is an address on which this box listens.
type bind struct {
	addr netip.AddrPort
	t    *table
	line int
	what string
}

// bindAddr reads the address of a listener; ":443" is one on all addresses.
func bindAddr(s string) (netip.AddrPort, error) {
	full := s
	if strings.HasPrefix(s, ":") && strings.Count(s, ":") == 1 {
		full = "[::]" + s
	}
	a, err := netip.ParseAddrPort(full)
	switch {
	case err == nil && a.Addr().Zone() == "":
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
	case s != "" && strings.Trim(s, "0123456789") == "":
		return netip.AddrPort{}, fmt.Errorf("%q is a port alone: write \"127.0.0.1:%[1]s\" for this machine, or \":%[1]s\" for all its addresses", s)
	case strings.HasPrefix(s, "*:"):
		return netip.AddrPort{}, fmt.Errorf("%q: all addresses of this machine are written %q", s, s[1:])
	case strings.Contains(s, "://"):
		return netip.AddrPort{}, fmt.Errorf("%q is a URL: write its address and port alone, as in \"127.0.0.1:1080\"", s)
	case strings.ContainsAny(strings.TrimSpace(s), " ,;"):
		return netip.AddrPort{}, fmt.Errorf("%q has %s in it: each address stands in quotes of its own, as in [\"127.0.0.1:1080\", \"[::1]:1080\"]", s, theSign(s, " ,;"))
	case err == nil:
		return netip.AddrPort{}, fmt.Errorf("%q has a zone: write an address without one, or \":%d\" for all of them", s, a.Port())
	case strings.HasPrefix(s, "localhost:"):
		return netip.AddrPort{}, fmt.Errorf("%q has a name: write \"127.0.0.1%s\" or \"[::1]%[2]s\"", s, s[len("localhost"):])
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil && a.Zone() == "" && (a.Is4() || strings.Count(s, ":") < 7 && strings.HasPrefix(s, "[")) {
		return netip.AddrPort{}, fmt.Errorf("%q has no port: write as in %q", s, netip.AddrPortFrom(a, 443))
	}
	if i := strings.LastIndexByte(s, ':'); i > 0 {
		host, port := s[:i], s[i+1:]
		a, err := netip.ParseAddr(host)
		switch n, portErr := strconv.ParseUint(port, 10, 64); {
		case err == nil && a.Is6() && portErr == nil:
			return netip.AddrPort{}, fmt.Errorf("%q: an IPv6 address stands in brackets before its port: write \"[%s]:%s\"", s, host, port)
		case portErr == nil && n > 65535:
			return netip.AddrPort{}, fmt.Errorf("%q has the port %q: ports go up to 65535", s, port)
		case portErr == nil && err != nil && dottedNumbers(host):
			return netip.AddrPort{}, fmt.Errorf("%q is not an address with a port: an IPv4 address has four numbers, each from 0 to 255 and without a zero in front, as in \"192.0.2.10:443\"", s)
		case err == nil && portErr != nil:
			return netip.AddrPort{}, fmt.Errorf("%q: %q is no port: write a number from 1 to 65535", s, port)
		case portErr == nil && err != nil && !strings.ContainsAny(host, "[]:") && strings.ContainsFunc(host, unicode.IsLetter):
			return netip.AddrPort{}, fmt.Errorf("%q has a name: write an address of this machine, or %q for all of them", s, ":"+port)
		}
	}
	if slices.Contains([]string{"off", "no", "none", "false", "disabled"}, strings.ToLower(s)) {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address with a port: write \"\" to turn it off", s)
	}
	return netip.AddrPort{}, fmt.Errorf("%q is not an address with a port: write as in \"127.0.0.1:1080\" or \"[::1]:1080\"", s)
}

// yieldAdmin leaves the status page out if nobody has asked for it and the file gives its
// port to something else. All other binds are known.
func (l *loading) yieldAdmin(top *table, a *Admin) {
	if !a.Default {
		return
	}
	own := netip.MustParseAddrPort(adminDefault)
	for _, b := range l.binds {
		if b.addr.Port() == own.Port() && overlap(b.addr.Addr(), own.Addr()) {
			a.Listen, a.Default = nil, false
			a.None = fmt.Sprintf("%s %s takes its port %s: say where it may be with listen in [admin]", b.what, b.addr, adminDefault)
			top.warn(b.line, "there is no status page, since %s %s takes its port %s: say where it may be with listen in [admin], or turn it off with listen = \"\"", b.what, b.addr, adminDefault)
			return
		}
	}
}

// checkBinds reports ports given twice. Port 0 is any free one.
func (l *loading) checkBinds() {
	slices.SortStableFunc(l.binds, func(a, b bind) int { return a.line - b.line })
	for i, b := range l.binds {
		for _, a := range l.binds[:i] {
			if a.addr.Port() == 0 || a.addr.Port() != b.addr.Port() || !overlap(a.addr.Addr(), b.addr.Addr()) {
				continue
			}
			b.t.fail(b.line, "%s %s takes the port that %s %s of line %d has already: give one of them another port", b.what, b.addr, a.what, a.addr, a.line)
			break
		}
	}
}

// overlap tells whether two listeners of one port get into each other's way. One on all
// addresses takes those of the other family, too: package net listens on :: for 0.0.0.0.
func overlap(a, b netip.Addr) bool {
	return a == b || a.IsUnspecified() || b.IsUnspecified()
}

func (l *loading) listenTable(top *table, hasRoute, hasServe bool) Listen {
	t := top.sub("listen")
	listen := Listen{Line: t.line()}
	if !t.hasAny("socks5", "http", "mixed") && (hasRoute || !hasServe) {
		listen.Mixed = []string{"127.0.0.1:1080", "127.0.0.1:8118"}
		for _, addr := range listen.Mixed {
			l.binds = append(l.binds, bind{netip.MustParseAddrPort(addr), t, listen.Line, "the default mixed"})
		}
	}
	r := listeners{l: l, t: t}
	for _, key := range []struct {
		name string
		to   *[]string
	}{{"socks5", &listen.SOCKS5}, {"http", &listen.HTTP}, {"mixed", &listen.Mixed}} {
		if t.has(key.name) {
			*key.to = r.read(key.name)
		}
	}
	open := r.open
	listen.SocketMode = r.mode("mixed")
	listen.Owners = t.owners("owners")
	if len(listen.Owners) > 0 && open > 0 {
		t.fail(open, "owners is for loopback addresses and Unix sockets: whose program connects from another machine is not known")
	}
	listen.Users = t.users("users")
	listen.Allow = t.prefixes("allow")
	allowed := len(t.list("allow")) > 0
	switch {
	case !allowed && len(listen.Users) > 0:
		listen.Allow = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	case !allowed:
		listen.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	everyone := slices.ContainsFunc(listen.Allow, func(p netip.Prefix) bool { return p.Bits() == 0 })
	switch {
	case open == 0 || t.m["users"] != nil && len(listen.Users) > 0:
	case !allowed && t.m["users"] == nil:
		t.fail(open, "other machines can reach this listener: say who may with allow = [\"192.0.2.0/24\"], or ask for a password with users = { name = \"…\" }")
	case !allowed:
		t.fail(open, "other machines can reach this listener, and users names nobody: write users = { name = \"…\" }, or allow = [\"192.0.2.0/24\"]")
	case everyone:
		t.warn(open, "everybody may use this listener: allow covers all addresses, and there are no users")
	}
	if hasServe && !hasRoute && len(listen.SOCKS5)+len(listen.HTTP)+len(listen.Mixed) > 0 {
		t.warn(listen.Line, "there are listeners but no [[route]]: every request will be refused")
	}
	if hasRoute {
		t.needsListener(hasServe, "mixed", "socks5", "http")
	}
	t.done()
	return listen
}

// listeners reads lists of addresses to listen on.
type listeners struct {
	l       *loading
	t       *table
	open    int // line of the first one that others than this box can reach; 0: none
	sockets int
}

func (r *listeners) read(key string) (out []string) {
	l, t := r.l, r.t
	for _, it := range t.pastedList(key, TextPlain) {
		if name, ok := strings.CutPrefix(it.text, UnixPrefix); ok {
			path, err := socketPath(name)
			if err != nil {
				t.fail(it.line, "%s: %q %v", key, it.text, err)
				continue
			}
			if first := l.sockets[path]; first > 0 {
				t.fail(it.line, "%s: %s%s is a listener already (line %d)", key, UnixPrefix, path, first)
				continue
			}
			if l.sockets == nil {
				l.sockets = map[string]int{}
			}
			l.sockets[path] = it.line
			r.sockets++
			out = append(out, UnixPrefix+path)
			continue
		}
		a, err := bindAddr(it.text)
		if err != nil && strings.HasPrefix(it.text, "/") {
			err = fmt.Errorf("%q is a path: write %q for a Unix socket", it.text, UnixPrefix+it.text)
		}
		if err != nil {
			t.fail(it.line, "%s: %v", key, err)
			continue
		}
		l.binds = append(l.binds, bind{a, t, it.line, key})
		if !a.Addr().IsLoopback() && r.open == 0 {
			r.open = it.line
		}
		out = append(out, a.String())
	}
	return out
}

// mode reads who may use the Unix sockets.
func (r *listeners) mode(key string) fs.FileMode {
	mode := r.t.mode("socket_mode", 0o600)
	if r.t.has("socket_mode") && r.sockets == 0 {
		r.t.warn(r.t.lineOf("socket_mode"), "socket_mode is for Unix sockets, of which there are none: write one as in %s = \"unix:/run/ptgate/proxy.sock\"", key)
	}
	return mode
}

// needsListener reports keys that all name no listener: then no program can reach the
// gateway. A box that serves others may want that.
func (t *table) needsListener(hasServe bool, keys ...string) {
	line := 0
	for _, key := range keys {
		switch {
		case !t.has(key):
		case !t.isEmpty(key):
			return
		case line == 0 || t.lineOf(key) < line:
			line = t.lineOf(key)
		}
	}
	switch {
	case line == 0: // the default listeners
	case hasServe:
		t.warn(line, "there is no listener, so that no program can use a [[route]]: leave these lists out for the default ports")
	default:
		t.fail(line, "there is no listener, so that no program can use a [[route]]: write mixed = \"127.0.0.1:1080\", or leave these lists out for the default ports")
	}
}

func (l *loading) serveTable(t *table) *Serve {
	s := &Serve{Line: t.line()}
	s.Transport = t.pasted("transport", TextPlain)
	if s.Transport == "" && !t.isBad("transport") {
		t.fail(t.line(), "transport is missing: write transport = \"obfs4\"")
	}
	if s.Transport != "" {
		s.PT = l.pts.find(t, s.Transport, true)
	}
	if text := t.pasted("bind", TextPlain); text != "" {
		a, err := bindAddr(text)
		if err != nil {
			t.fail(t.lineOf("bind"), "bind: %v", err)
		} else {
			s.Bind = a
			l.binds = append(l.binds, bind{a, t, t.lineOf("bind"), "bind"})
		}
	} else if !t.isBad("bind") {
		t.fail(t.line(), "bind is missing: write bind = \"0.0.0.0:443\"")
	}
	l.public(t, s)
	s.Options = t.args("options")
	l.website(t, s)
	l.checkOptions(t, s)
	s.Allow, s.Deny = t.prefixes("allow"), t.prefixes("deny")
	l.trust(t, s)
	if text := t.pasted("forward", TextName); text != "" {
		target, err := destination.Parse(text)
		if err != nil {
			t.fail(t.lineOf("forward"), "forward: %q: %s", text, reason(err))
		} else {
			s.Forward = destination.Format(target)
			if leadsTo(target, s.Bind) || s.Forward == s.Public {
				t.fail(t.lineOf("forward"), "forward: %q is the port of this [[serve]] itself: write the address of the service", text)
			}
		}
	}
	s.Tell = t.boolean("tell", true)
	s.ProxyProtocol = t.integer("proxy_protocol", 0, 0, 2)
	if s.ProxyProtocol != 0 && !t.has("forward") {
		t.fail(t.lineOf("proxy_protocol"), "proxy_protocol tells a fixed service who the client is: it needs forward")
	}
	l.proxies(t, s)
	t.done()
	return s
}

// leadsTo tells whether t is plainly the listener at bind. Not all that leads there can be
// told from a file.
func leadsTo(t routes.Target, bind netip.AddrPort) bool {
	if t.Port == 0 || t.Port != bind.Port() {
		return false
	}
	here, addr := bind.Addr().Unmap(), t.Addr.Unmap()
	switch {
	case t.Name == "localhost":
		return here.IsLoopback() || here.IsUnspecified()
	case here.IsUnspecified():
		return addr.IsLoopback() || addr.IsUnspecified()
	}
	return addr == here
}

// public completes s.Public: as written, else from bind unless that is a wildcard.
func (l *loading) public(t *table, s *Serve) {
	text := t.pasted("public", TextName)
	if text == "" {
		if s.Bind.IsValid() && !s.Bind.Addr().IsUnspecified() && s.Bind.Port() != 0 {
			s.Public = s.Bind.String()
		}
		return
	}
	target, err := destination.Parse(text)
	if err != nil {
		t.fail(t.lineOf("public"), "public: %q: %s", text, reason(err))
		return
	}
	if target.Name != "" {
		if _, err := hostPort(text); err != nil {
			t.fail(t.lineOf("public"), "public: %v", err)
			return
		}
	}
	s.Public = destination.Format(target)
	if row, _ := builtin.Lookup(s.Transport); !row.Placeholder {
		if err := ofOne(s.Public); err != nil {
			t.fail(t.lineOf("public"), "public: %v", err)
		}
	}
}

// trust reads whom a transport behind a web server believes who the client is. The
// default is one web server on this machine.
func (l *loading) trust(t *table, s *Serve) {
	row, _ := builtin.Lookup(s.Transport)
	hops := t.integer("trusted_hops", 1, 0, 16)
	proxies := t.prefixes("trusted_proxies")
	if s.Site != nil {
		// Nobody stands in front, unless the file names whoever does.
		s.TrustedHops, s.TrustedProxies = 0, append([]netip.Prefix{}, proxies...)
		switch {
		case len(proxies) > 0:
			s.TrustedHops = hops
		case t.has("trusted_hops") && hops > 0:
			t.fail(t.lineOf("trusted_hops"), "trusted_hops with tls needs trusted_proxies: the addresses of those in front that say who the client is")
		}
		return
	}
	if row.Front && (s.PT == nil || s.PT.Builtin()) {
		s.TrustedHops = hops
		if t.has("trusted_proxies") {
			s.TrustedProxies = append([]netip.Prefix{}, proxies...)
		} else if hops > 0 && s.Bind.IsValid() && !s.Bind.Addr().IsLoopback() {
			t.warn(t.lineOf("bind"), "other machines can reach this port, and X-Forwarded-For counts from this machine only: bind to 127.0.0.1, or name the web server's address in trusted_proxies")
		}
		return
	}
	for _, key := range []string{"trusted_hops", "trusted_proxies"} {
		switch {
		case !t.has(key):
		case row.Front:
			t.fail(t.lineOf(key), "%s is for the transport inside ptgate: the program of [pt.%s] reads X-Forwarded-For in its own way", key, s.PT.Name)
		default:
			t.fail(t.lineOf(key), "%s is for a transport with a web server in front, which says in X-Forwarded-For who the client is: leave it out", key)
		}
	}
}

// checkOptions looks at what can be known of a server's options.
func (l *loading) checkOptions(t *table, s *Serve) {
	line := t.lineOf("options")
	for _, o := range s.Options {
		if o.Key == "" || strings.ContainsAny(o.Key+o.Value, "\x00\r\n") {
			t.fail(line, "options: %q is empty or has a control character in it", o.Key)
		}
	}
	if len(s.Options) > 0 {
		l.secret(line)
	}
	if t.isBad("options") {
		return
	}
	row, _ := builtin.Lookup(s.Transport)
	l.unknownArgs(t, line, "options", s.Transport, row.Options.Known, s.Options)
	for _, err := range row.Options.Check(s.Options, false) {
		t.fail(line, "options: %v", err)
	}
}

// exitTable reads [exit]: what the exit may open.
func exitTable(t *table, serve []*Serve) Exit {
	e := Exit{Users: t.users("users"), DenyPrivate: true}
	t.usersFile(&e)
	if t.has("allow") {
		if patterns, all, _ := exitPatterns(t, "allow"); !all {
			e.Allow = exitList(patterns)
		}
		if t.isEmpty("allow") {
			t.warn(t.lineOf("allow"), "allow names nothing: the exit refuses every destination")
		}
	}
	if t.has("deny") {
		before := len(t.l.problems)
		patterns, _, word := exitPatterns(t, "deny")
		e.DenyPrivate = word
		e.Deny = exitList(patterns)
		e.DenyNets = exitList(slices.DeleteFunc(patterns, func(p routes.Pattern) bool { return !p.IsNet() }))
		if e.Allow == nil && !e.DenyPrivate && len(patterns) > 0 && !HasError(t.l.problems[before:]) {
			t.warn(t.lineOf("deny"), "deny lacks %q: clients reach this box itself and its own network; add it, or say with allow what they may reach", private)
		}
	} else {
		e.Deny, e.DenyNets = exitList(nil), exitList(nil)
	}
	t.done()
	if t.m != nil && !slices.ContainsFunc(serve, func(s *Serve) bool { return s.Forward == "" }) {
		t.warn(t.line(), "no [[serve]] leads to the exit, so that this does nothing: write one, or take [exit] out")
	}
	return e
}

// private is the word for all addresses that are not global unicast.
const private = "private"

// exitPatterns reads a list of patterns. all tells whether one is a plain "*", word
// whether the word private is in deny.
func exitPatterns(t *table, key string) (patterns []routes.Pattern, all, word bool) {
	for _, it := range t.pastedList(key, TextName) {
		if it.text == private && key == "deny" {
			word = true
			continue
		}
		switch host, _, _ := strings.Cut(it.text, ":"); {
		case host == private:
			t.fail(it.line, "%s: %q stands in deny, alone and without ports", key, private)
			continue
		case key == "deny" && !strings.Contains(host, "."):
			// Taken for the name of a host, it would open this box's own network.
			if hint := DidYouMean(host, []string{private}); hint != "" {
				t.fail(it.line, "%s: %q%s", key, it.text, hint)
				continue
			}
		}
		p, err := routes.ParsePattern(it.text, canonical)
		if err != nil {
			t.fail(it.line, "%s: %v", key, err)
			continue
		}
		patterns = append(patterns, p)
		all = all || p.String() == "*"
	}
	return patterns, all, word
}

func exitList(patterns []routes.Pattern) *routes.Table {
	var b routes.Builder
	for _, p := range patterns {
		// It can't fail: one rule, no zero patterns, and a file of maxFile bytes
		// does not fill a table.
		_, _ = b.Add(0, p)
	}
	return b.Table()
}

// adminDefault is where a gateway has its status page.
const adminDefault = "127.0.0.1:9180"

// adminTable reads [admin]. A gateway has the page if the file does not say where; a box
// that only serves others has it if the file says so.
func (l *loading) adminTable(t *table, hasRoute bool, listen Listen) Admin {
	a := Admin{Line: t.line()}
	r := listeners{l: l, t: t}
	switch {
	case t.m["listen"] == "":
		t.has("listen")
		a.None = "listen = \"\" in [admin] turns it off"
	case t.has("listen"):
		a.Listen = r.read("listen")
	case hasRoute:
		a.Listen, a.Default = []string{adminDefault}, true
	default:
		a.None = "a box without routes has one only where listen in [admin] says so"
	}
	a.SocketMode = r.mode("listen")
	a.Users = t.users("users")
	a.Owners = listen.Owners
	if t.has("owners") {
		a.Owners = t.owners("owners")
		if len(a.Owners) > 0 && r.open > 0 {
			t.fail(r.open, "owners is for loopback addresses and Unix sockets: whose program connects from another machine is not known")
		}
	}
	if r.open > 0 && len(a.Users) == 0 {
		t.fail(r.open, "other machines can reach the status page: ask for a password with users = { name = \"…\" }, or write \"127.0.0.1:9180\" or a Unix socket")
	}
	t.done()
	return a
}

func limitsTable(t *table, serve []*Serve) Limits {
	limits := Limits{
		Connections:        t.integer("connections", 16384, 1, 10_000_000),
		DefaultConnections: !t.has("connections"),
		Handshake:          t.duration("handshake", 10*time.Second, false),
		Dial:               t.duration("dial", 75*time.Second, false),
		Stagger:            t.duration("stagger", 3*time.Second, false),
		Idle:               t.duration("idle", 0, true),
		HalfOpen:           t.duration("half_open", 2*time.Minute, false),
		Drain:              t.duration("drain", 30*time.Second, true),
		Resume:             t.duration("resume", 2*time.Minute, true),
		ResumeBuffer:       t.size("resume_buffer", 16<<20, 256<<10, 1<<30),
		Memory:             t.size("memory", 128<<20, 16<<20, 1<<40),
		ClientMemory:       t.size("client_memory", 64<<20, 4<<20, 1<<40),
		ClientStreams:      t.integer("client_streams", 0, 1, 10_000_000),
		ClientCarriers:     t.integer("client_carriers", 256, 1, 10_000_000),
		ClientNew:          t.integer("client_new", 5000, 1, 10_000_000),
		Shared:             t.prefixes("shared"),
	}
	for _, s := range serve {
		if len(s.ProxyFrom) > 0 {
			s.ProxyWait = limits.Handshake
		}
	}
	if limits.ClientStreams == 0 {
		limits.ClientStreams = max(1, limits.Connections/2)
	}
	if !t.has("shared") {
		limits.Shared = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}
	}
	if r := limits.Resume; r != 0 && (r < time.Second || r > 24*time.Hour) {
		t.fail(t.lineOf("resume"), "resume is %q: it can be from \"1s\" to \"24h\"; \"0s\" turns it off", t.m["resume"])
	}
	t.done()
	return limits
}

// canonical is destination.Canonical for the patterns of a configuration.
func canonical(host string) (string, error) {
	name, err := destination.Canonical(host)
	if err != nil {
		return "", errors.New(reason(err))
	}
	return name, nil
}

// reason is an error of package destination without its general beginning.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), destination.ErrInvalid.Error()+": ")
}

// dottedNumbers tells whether a host is meant to be an IPv4 address.
func dottedNumbers(host string) bool {
	return strings.Count(host, ".") > 0 && strings.Trim(host, "0123456789.") == ""
}

// theSign names the first of some signs that a text has.
func theSign(s, signs string) string {
	switch i := strings.IndexAny(s, signs); {
	case i < 0:
		return "something"
	case s[i] == ' ':
		return "a space"
	default:
		return strconv.Quote(s[i : i+1])
	}
}

// YourAddress stands in a bridge line in the place of an address that only the operator knows.
const YourAddress = "YOUR-PUBLIC-ADDRESS"

// hostPort checks the address of a bridge: a literal address or a name, and a port.
func hostPort(s string) (string, error) {
	a, err := netip.ParseAddrPort(s)
	switch {
	case err == nil && a.Addr().Zone() != "":
		return "", fmt.Errorf("%q has a zone: write the address without \"%%%s\"", s, a.Addr().Zone())
	case err == nil && a.Port() == 0:
		return "", fmt.Errorf("%q has port 0: ports go from 1 to 65535", s)
	case err == nil:
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String(), nil
	}
	if i := strings.LastIndexByte(s, ':'); i > 0 && strings.Count(s[i:], "") > 4 && strings.Trim(s[i+1:], "0123456789") == "" {
		// The last group has the form of a port, such as 443, and a group of 0443 is rare.
		if a, err := netip.ParseAddr(s[:i]); err == nil && a.Is6() && !strings.HasPrefix(s, "[") {
			return "", fmt.Errorf("%q: an IPv6 address stands in brackets before its port: write \"[%s]:%s\"", s, s[:i], s[i+1:])
		}
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return "", fmt.Errorf("%q has no port: write as in %q", s, netip.AddrPortFrom(a, 443))
	}
	if host, port, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return "", fmt.Errorf("%q has no port from 1 to 65535", s)
		}
		switch _, err := netip.ParseAddr(host); {
		case err == nil && dottedNumbers(host):
			return "", fmt.Errorf("%q has brackets, which are for IPv6: write %q", s, host+":"+port)
		case dottedNumbers(host):
			return "", fmt.Errorf("%q is not an address with a port: an IPv4 address has four numbers, each from 0 to 255 and without a zero in front, as in \"192.0.2.10:443\"", s)
		}
		name, err := destination.Canonical(host)
		labels := strings.Split(name, ".")
		last := labels[len(labels)-1]
		switch {
		case err != nil:
		case strings.EqualFold(name, YourAddress):
			return "", fmt.Errorf("%q: write the address of the server in the place of %s", s, YourAddress)
		case last[0] >= '0' && last[0] <= '9', // there is no such top-level domain, and it would be asked for all the same
			len(labels) == 4 && strings.Trim(strings.Join(labels[:3], ""), "0123456789") == "":
			return "", fmt.Errorf("%q is neither an IP address with a port nor a name with one: a character of the address is wrong, so correct it, as in \"192.0.2.10:443\"", s)
		default:
			return net.JoinHostPort(name, strconv.FormatUint(n, 10)), nil
		}
	}
	return "", fmt.Errorf("%q is not an address with a port: write as in \"192.0.2.10:443\" or \"[2001:db8::10]:443\"", s)
}
