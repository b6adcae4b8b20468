package admin

import (
	"cmp"
	_ "embed"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
	"ptgate/routes"
)

// maxPAC is how large a PAC file may be. Chromium reads no more than 1 MiB, and goes
// directly everywhere after that.
const maxPAC = 1_000_000

//go:embed pac.js
var pacCode string

// A pacFile is the PAC file of one configuration, but for the proxy's address.
type pacFile struct {
	mu   sync.Mutex
	cfg  *config.Config
	text string
}

func (f *pacFile) of(cfg *config.Config) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg != cfg {
		f.cfg, f.text = cfg, makePAC(cfg)
	}
	return f.text
}

// pac answers with the way that each destination takes. Nothing in it looks up a name,
// and whatever is not direct goes to the gateway, also if that does not answer.
func (s *Server) pac(w http.ResponseWriter, r *http.Request) {
	proxy := proxyFor(s.cfg.Status().Listeners, r)
	if proxy == "" {
		http.Error(w, "No port takes the requests of browsers: [listen] has Unix sockets only, or nothing.", http.StatusNotFound)
		return
	}
	text := fmt.Sprintf("var P = %q;\n", proxy) + s.pacFile.of(s.cfg.Running())
	w.Header().Set("Content-Type", "application/x-ns-proxy-autoconfig")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Write([]byte(text))
}

// proxyFor is the gateway as a PAC file names it: by HTTP where a port takes that. Some
// browsers look names up by themselves before they ask a SOCKS proxy.
func proxyFor(all []ListenerStatus, r *http.Request) string {
	for _, way := range []struct{ word, front string }{
		{"PROXY", inbound.HTTP.String()}, {"PROXY", inbound.Mixed.String()}, {"SOCKS5", inbound.SOCKS5.String()},
	} {
		for _, l := range all {
			a, err := netip.ParseAddrPort(l.Address)
			if l.Front != way.front || err != nil { // a Unix socket has no name that browsers know
				continue
			}
			if a.Addr().IsUnspecified() {
				a = netip.AddrPortFrom(hostOf(r), a.Port())
			}
			return way.word + " " + a.String()
		}
	}
	return ""
}

// hostOf is the address by which the page was asked for.
func hostOf(r *http.Request) netip.Addr {
	if a, err := netip.ParseAddr(hostName(r)); err == nil {
		return a
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// A section has the patterns that differ in their names only.
type section struct {
	kind     string // "=" a name, "*" what is below it, "." both; "4" or "6" and the length of a network
	from, to uint16
	group    int
}

// makePAC writes the routes for a browser. There are two ways only: directly, or to the
// gateway, which refuses what is blocked. Patterns that follow each other and lead the
// same way are a group.
func makePAC(cfg *config.Config) string {
	last := -1 // after the last route that says direct, all goes to the gateway anyway
	for i, r := range cfg.Routes {
		if r.Action == config.ActionDirect {
			last = i
		}
	}
	direct := directNames(cfg, last)
	groups := []byte{}
	sections := map[section][]string{}
	lengths := map[string]map[int]bool{"4": {}, "6": {}}
	for rule := range last + 1 {
		for i := range cfg.Table.Patterns(rule) {
			m := routes.Match{Rule: rule, Pattern: i}
			pattern := cfg.Table.Pattern(m)
			p := pattern.Parts()
			class := byte('P')
			if cfg.Routes[rule].Action == config.ActionDirect {
				class = 'D'
				// The gateway knows which addresses are private, and dials the others.
				if !cfg.ReachesPrivate(m) && (p.Net.IsValid() || p.Name == "") {
					class = 'W'
				}
			} else if !p.Net.IsValid() && !direct.overlaps(p) {
				continue
			}
			if n := len(groups); n == 0 || groups[n-1] != class {
				groups = append(groups, class)
			}
			key := section{from: p.From, to: p.To, group: len(groups) - 1}
			name := reversed(p.Name)
			switch {
			case p.Net.IsValid():
				family := "6"
				if p.Net.Addr().Is4() {
					family = "4"
				}
				lengths[family][p.Net.Bits()] = true
				key.kind = family + strconv.Itoa(p.Net.Bits()) + "/"
				name = hex.EncodeToString(p.Net.Addr().AsSlice())[:(p.Net.Bits()+3)/4]
			case p.Exact && p.Below:
				key.kind = "."
			case p.Exact:
				key.kind = "="
			default:
				key.kind = "*"
			}
			sections[key] = append(sections[key], name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "var G = %q, B4 = %s, B6 = %s;\nvar S = [", groups, list(lengths["4"]), list(lengths["6"]))
	for i, key := range slices.SortedFunc(maps.Keys(sections), func(x, y section) int {
		return cmp.Or(cmp.Compare(x.group, y.group), cmp.Compare(x.kind, y.kind), cmp.Compare(x.from, y.from), cmp.Compare(x.to, y.to))
	}) {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n[%q,%d,%d,%d,%q]", key.kind, key.from, key.to, key.group, shorten(sections[key]))
		if b.Len() > maxPAC {
			// What a browser can't read would lead it directly everywhere.
			return "// There are too many routes for a browser: ptgate gets all requests, and connects some directly.\n" +
				"function FindProxyForURL(url, host) {\n\treturn P;\n}\n"
		}
	}
	b.WriteString("\n];\n")
	b.WriteString(pacCode)
	return b.String()
}

func list(set map[int]bool) string {
	var all []string
	for _, n := range slices.Sorted(maps.Keys(set)) {
		all = append(all, strconv.Itoa(n))
	}
	return "[" + strings.Join(all, ",") + "]"
}

// reversed puts the labels of a name the other way round, so that names of one domain
// begin alike.
func reversed(name string) string {
	labels := strings.Split(name, ".")
	slices.Reverse(labels)
	return strings.Join(labels, ".")
}

// shorten writes names one after the other, as pac.js reads them.
func shorten(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	var b strings.Builder
	before := ""
	for _, name := range names {
		n := 0
		for n < min(25, len(before), len(name)) && before[n] == name[n] {
			n++
		}
		b.WriteByte('A' + byte(n))
		b.WriteString(name[n:])
		before = name
	}
	return b.String()
}

// A nameSet has the names of all routes that say direct. Other patterns before them matter
// only if they overlap: long lists of what is blocked most often do not.
type nameSet struct {
	exact, below map[string]bool
	above        map[string]bool // the domains that they are in
}

func directNames(cfg *config.Config, last int) nameSet {
	s := nameSet{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	for rule := range last + 1 {
		if cfg.Routes[rule].Action != config.ActionDirect {
			continue
		}
		for i := range cfg.Table.Patterns(rule) {
			p := cfg.Table.Pattern(routes.Match{Rule: rule, Pattern: i}).Parts()
			if p.Net.IsValid() {
				continue
			}
			if p.Exact {
				s.exact[p.Name] = true
			}
			if p.Below {
				s.below[p.Name] = true
			}
			for name := range parents(p.Name) {
				s.above[name] = true
			}
		}
	}
	return s
}

// overlaps tells whether a destination may match p and a route that says direct.
func (s nameSet) overlaps(p routes.Parts) bool {
	if p.Name == "" || s.below[p.Name] || p.Exact && s.exact[p.Name] || p.Below && s.above[p.Name] {
		return true
	}
	for name := range parents(p.Name) {
		if s.below[name] {
			return true
		}
	}
	return false
}

// parents yields the domains that a name is in, up to "", which is everything.
func parents(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for name != "" {
			_, name, _ = strings.Cut(name, ".")
			if !yield(name) {
				return
			}
		}
	}
}
