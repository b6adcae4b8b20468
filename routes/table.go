package routes

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// A Match says which pattern matches a destination. Pattern is the index of the
// pattern within the rule.
type Match struct{ Rule, Pattern int }

// A Table finds the first pattern that matches a destination. A nil Table has no
// patterns.
//
// All patterns are in one array, in their order, and all names in one byte slice,
// so that each of a million patterns costs about 50 bytes. A hash table has the
// patterns of each name. A look-up tries the name and each of its parents; it
// hashes from the right, so one pass gives the hashes of all of them. Networks are
// sorted, and each has a link to the smallest network that contains it. A look-up
// finds the last network that begins at or before the address, and follows the
// links.
type Table struct {
	entries []entry // by pattern, over all rules
	names   []byte  // the entries' names
	slots   []slot  // of the names: open addressing, a power of two
	used    int     // of the slots
	nets    []net   // by address, then by length
	rules   []ruleStart

	depths [2]uint64 // numbers of labels that occur in names, as bits
}

// An entry is a Pattern, packed, and its place in the chain of its key.
type entry struct {
	key  uint32 // where the name begins in names, or the index in nets
	next uint32 // the next entry of the same name or network; of the last one, the first
	from uint16
	to   uint16
	size uint8 // bytes of the name
	kind kind
}

// A slot leads to the last entry of a name's chain; last is one more, 0 is free.
type slot struct {
	hash uint32
	last uint32
}

// A net is a network with the last entry of its chain. IPv4 is mapped into IPv6.
type net struct {
	hi, lo uint64 // the address
	bits   uint8  // of 128
	last   uint32
	outer  uint32 // the narrowest network around it, or none
}

type ruleStart struct {
	rule  int
	first uint32 // its first entry
}

// A Builder makes a Table. The zero Builder is ready to use.
type Builder struct{ t Table }

var (
	errOrder = errors.New("rules must be added in ascending order")
	errZero  = errors.New("a zero pattern can't be added")
	errFull  = errors.New("too many patterns for one table")
)

// Add appends a pattern to a rule and returns its index within the rule. Rules are
// numbered from 0 and added in ascending order: all patterns of one rule before
// those of the next. A number may be left out. It is an error to add them in
// another order, or to add the zero Pattern. It is also an error if the table has
// billions of bytes already.
func (b *Builder) Add(rule int, p Pattern) (int, error) {
	t := &b.t
	latest := -1
	if n := len(t.rules); n > 0 {
		latest = t.rules[n-1].rule
	}
	switch {
	case rule < 0 || rule < latest:
		return 0, fmt.Errorf("rule %d: %w", rule, errOrder)
	case p.kind == kindNone:
		return 0, errZero
	case len(t.entries) >= math.MaxInt32 || uint64(len(t.names)) >= math.MaxUint32-maxName:
		return 0, errFull
	case rule > latest:
		t.rules = append(t.rules, ruleStart{rule, uint32(len(t.entries))})
	}
	t.add(p)
	return len(t.entries) - 1 - int(t.rules[len(t.rules)-1].first), nil
}

// Table returns the table. After that the Builder is empty.
func (b *Builder) Table() *Table {
	t := b.t
	*b = Builder{}
	t.sortNets()
	return &t
}

func (t *Table) add(p Pattern) {
	e := entry{from: p.from, to: p.to, kind: p.kind}
	index := uint32(len(t.entries))
	if p.IsNet() {
		n := netOf(&p)
		n.last = index
		t.nets = append(t.nets, n)
		t.entries = append(t.entries, e)
		return
	}
	if 4*(t.used+1) > 3*len(t.slots) {
		t.grow()
	}
	n := labels(p.name)
	t.depths[n/64] |= 1 << (n % 64)
	e.size = uint8(len(p.name))
	hash := hashName(p.name)
	s := t.slot(hash, p.name)
	first := s.last == 0
	if first {
		t.used++
		s.hash = hash
		e.key = uint32(len(t.names))
		t.names = append(t.names, p.name...)
	} else {
		e.key = t.entries[s.last-1].key
	}
	t.entries = append(t.entries, e)
	if first {
		t.entries[index].next = index
		s.last = index + 1
	} else {
		s.last = t.link(s.last-1, index) + 1
	}
}

// link puts an entry behind the last one of a chain and returns the chain's last.
func (t *Table) link(last, index uint32) uint32 {
	e, l := &t.entries[index], &t.entries[last]
	// What one of the first entries covers is left out, so that a list with many
	// repetitions is as fast as one without. A few are enough to look at, as
	// nothing but time depends on it.
	i := l.next
	for range 16 {
		if o := &t.entries[i]; o.from <= e.from && e.to <= o.to && (o.kind == e.kind || o.kind == kindBoth) {
			return last
		}
		if i == last {
			break
		}
		i = t.entries[i].next
	}
	e.next, l.next = l.next, index
	return index
}

// sortNets orders nets, which hold one entry each, and makes chains of equal ones.
func (t *Table) sortNets() {
	slices.SortFunc(t.nets, func(a, b net) int {
		return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo), cmp.Compare(a.bits, b.bits), cmp.Compare(a.last, b.last))
	})
	n := uint32(0)
	for _, net := range t.nets {
		index := net.last
		e := &t.entries[index]
		if n > 0 {
			if prev := &t.nets[n-1]; prev.hi == net.hi && prev.lo == net.lo && prev.bits == net.bits {
				e.key = n - 1
				prev.last = t.link(prev.last, index)
				continue
			}
		}
		e.key, e.next = n, index
		net.outer = none
		if n > 0 {
			for o := n - 1; o != none; o = t.nets[o].outer {
				if t.nets[o].contains(&net) {
					net.outer = o
					break
				}
			}
		}
		t.nets[n] = net
		n++
	}
	t.nets = t.nets[:n]
}

func netOf(p *Pattern) net {
	a, n := p.net.Addr().As16(), p.net.Bits()
	if p.kind == kindNet4 {
		n += 96
	}
	return net{hi: binary.BigEndian.Uint64(a[:8]), lo: binary.BigEndian.Uint64(a[8:]), bits: uint8(n)}
}

func (n *net) contains(m *net) bool {
	if n.bits <= 64 {
		return n.bits <= m.bits && (n.hi^m.hi)>>(64-n.bits) == 0
	}
	return n.bits <= m.bits && n.hi == m.hi && (n.lo^m.lo)>>(128-n.bits) == 0
}

// grow doubles the slots.
func (t *Table) grow() {
	old := t.slots
	t.slots = make([]slot, max(16, 2*len(old)))
	mask := uint32(len(t.slots) - 1)
	for _, s := range old {
		if s.last == 0 {
			continue
		}
		i := s.hash & mask
		for t.slots[i].last != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = s
	}
}

// holds tells whether an entry has a name.
func (t *Table) holds(i uint32, name string) bool {
	e := &t.entries[i]
	return string(t.names[e.key:][:e.size]) == name
}

// slot finds the slot of a name, or the free one where it belongs. That one gets
// the hash by whoever fills it.
func (t *Table) slot(hash uint32, name string) *slot {
	mask := uint32(len(t.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := &t.slots[i]
		if s.last == 0 || s.hash == hash && t.holds(s.last-1, name) {
			return s
		}
	}
}

// Lookup finds the first pattern that matches tg: the lowest rule, and in it the
// lowest pattern. It allocates no memory.
func (t *Table) Lookup(tg Target) (m Match, ok bool) {
	if t == nil {
		return Match{}, false
	}
	// A destination is the narrowest of patterns, and what covers that takes it.
	p := Pattern{kind: kindExact, name: tg.Name, from: tg.Port, to: tg.Port}
	if tg.Addr.IsValid() {
		p.setNet(netip.PrefixFrom(tg.Addr.WithZone(""), tg.Addr.BitLen()))
	}
	return t.match(t.first(&p, uint32(len(t.entries))))
}

// Covered finds the first pattern before that of m which matches everything that
// m's pattern matches, so that m's pattern is never used. (It does not find
// several patterns that do so only together.)
func (t *Table) Covered(m Match) (by Match, ok bool) {
	i, ok := t.index(m)
	if !ok {
		return Match{}, false
	}
	p := t.pattern(i)
	return t.match(t.first(&p, i))
}

// Dead tells whether a rule can never match, because each of its patterns is
// covered (see Covered). by is the match that covers the first one. A rule without
// patterns is not dead.
func (t *Table) Dead(rule int) (by Match, dead bool) {
	n := t.Patterns(rule)
	for i := range n {
		// A pattern covered by one of the same rule says nothing new: that one is
		// covered by an earlier rule or it is not.
		b, ok := t.Covered(Match{rule, i})
		if !ok {
			return Match{}, false
		}
		if i == 0 {
			by = b
		}
	}
	return by, n > 0
}

// Patterns returns the number of patterns of a rule.
func (t *Table) Patterns(rule int) int {
	if t == nil {
		return 0
	}
	i := sort.Search(len(t.rules), func(i int) bool { return t.rules[i].rule >= rule })
	if i == len(t.rules) || t.rules[i].rule != rule {
		return 0
	}
	end := len(t.entries)
	if i+1 < len(t.rules) {
		end = int(t.rules[i+1].first)
	}
	return end - int(t.rules[i].first)
}

// Pattern returns the pattern of m, or the zero Pattern if there is none.
func (t *Table) Pattern(m Match) Pattern {
	i, ok := t.index(m)
	if !ok {
		return Pattern{}
	}
	return t.pattern(i)
}

// Len returns the number of patterns of all rules.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return len(t.entries)
}

// HasNames tells whether a pattern is a name, or has one behind its star or dot.
func (t *Table) HasNames() bool { return t.depths[0]&^1|t.depths[1] != 0 }

// index is the entry of m.
func (t *Table) index(m Match) (uint32, bool) {
	if m.Pattern < 0 || m.Pattern >= t.Patterns(m.Rule) {
		return 0, false
	}
	i := sort.Search(len(t.rules), func(i int) bool { return t.rules[i].rule >= m.Rule })
	return t.rules[i].first + uint32(m.Pattern), true
}

// match is the Match of an entry; ok is false for an index beyond the last one.
func (t *Table) match(index uint32) (m Match, ok bool) {
	if uint64(index) >= uint64(len(t.entries)) { // none is -1 as an int of 32 bits
		return Match{}, false
	}
	i := sort.Search(len(t.rules), func(i int) bool { return t.rules[i].first > index }) - 1
	return Match{t.rules[i].rule, int(index - t.rules[i].first)}, true
}

func (t *Table) pattern(i uint32) Pattern {
	e := &t.entries[i]
	p := Pattern{kind: e.kind, from: e.from, to: e.to}
	if !isNet(e.kind) {
		p.name = string(t.names[e.key:][:e.size])
		return p
	}
	n := &t.nets[e.key]
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], n.hi)
	binary.BigEndian.PutUint64(a[8:], n.lo)
	p.net = netip.PrefixFrom(netip.AddrFrom16(a), int(n.bits))
	if e.kind == kindNet4 {
		p.net = netip.PrefixFrom(netip.AddrFrom16(a).Unmap(), int(n.bits)-96)
	}
	return p
}

// none is the index that no entry has.
const none = math.MaxUint32

// first returns the index of the first entry below limit that covers p, else none.
func (t *Table) first(p *Pattern, limit uint32) uint32 {
	if len(t.entries) == 0 {
		return none
	}
	s := search{t: t, from: p.from, to: p.to, best: limit}
	if p.IsNet() {
		s.net(p)
	} else {
		s.name(p)
	}
	if s.best == limit {
		return none
	}
	return s.best
}

// A search is one look-up under way.
type search struct {
	t        *Table
	from, to uint16
	best     uint32 // the lowest entry found; at first the limit
}

// everything looks at the patterns that take names and addresses alike.
func (s *search) everything() {
	if s.t.depths[0]&1 != 0 {
		s.slot(finish(hashStart), "", kindBoth)
	}
}

// name looks at everything, then at each parent of p's name, then at the name.
func (s *search) name(p *Pattern) {
	s.everything()
	h, depth := uint64(hashStart), 1
	for i := len(p.name) - 1; i >= 0 && depth < 128; i-- {
		if p.name[i] == '.' {
			if s.t.depths[depth/64]>>(depth%64)&1 != 0 {
				s.slot(finish(h), p.name[i+1:], kindBelow)
			}
			depth++
		}
		h = step(h, p.name[i])
	}
	if p.name != "" && depth < 128 && s.t.depths[depth/64]>>(depth%64)&1 != 0 {
		s.slot(finish(h), p.name, p.kind)
	}
}

func (s *search) slot(hash uint32, name string, k kind) {
	if sl := s.t.slot(hash, name); sl.last != 0 {
		s.chain(sl.last-1, k, kindBoth)
	}
}

// net looks at everything, then at each network that p's may lie in. They are
// the last one that does not come after p's, or around that one.
func (s *search) net(p *Pattern) {
	s.everything()
	n, nets := netOf(p), s.t.nets
	i := sort.Search(len(nets), func(i int) bool {
		o := &nets[i]
		if o.hi != n.hi {
			return o.hi > n.hi
		}
		if o.lo != n.lo {
			return o.lo > n.lo
		}
		return o.bits > n.bits
	})
	for o := uint32(i) - 1; o != none; o = nets[o].outer {
		if nets[o].contains(&n) {
			s.chain(nets[o].last, p.kind, p.kind)
		}
	}
}

// chain takes the first entry of a chain that is of one of two kinds and has the
// ports.
func (s *search) chain(last uint32, k1, k2 kind) {
	for i := last; ; {
		i = s.t.entries[i].next // the last one leads to the first
		if i >= s.best {
			return
		}
		if e := &s.t.entries[i]; (e.kind == k1 || e.kind == k2) && e.from <= s.from && s.to <= e.to {
			s.best = i
			return
		}
		if i == last {
			return
		}
	}
}

// The hash is FNV-1a with a better end. It has no seed: who writes the list
// decides anyway what passes.
const hashStart = 0xcbf29ce484222325

func step(h uint64, c byte) uint64 { return (h ^ uint64(c)) * 0x100000001b3 }

func finish(h uint64) uint32 {
	h ^= h >> 29
	return uint32(h * 0xbf58476d1ce4e5b9 >> 32)
}

func hashName(name string) uint32 {
	h := uint64(hashStart)
	for i := len(name) - 1; i >= 0; i-- {
		h = step(h, name[i])
	}
	return finish(h)
}

// labels counts the labels of a name; everything ("") has none.
func labels(name string) int {
	if name == "" {
		return 0
	}
	return strings.Count(name, ".") + 1
}
