package routes

// What a pattern means by itself: the tests hold the table against it.

// matches tells whether p takes tg.
func (p Pattern) matches(tg Target) bool {
	if tg.Port < p.from || tg.Port > p.to {
		return false
	}
	switch p.kind {
	case kindExact:
		return tg.Name == p.name
	case kindBelow:
		return isBelow(tg.Name, p.name)
	case kindBoth:
		return p.name == "" || tg.Name == p.name || isBelow(tg.Name, p.name)
	case kindNet4, kindNet6:
		return p.net.Contains(tg.Addr)
	}
	return false
}

// covers tells whether p takes everything that q takes.
func (p Pattern) covers(q Pattern) bool {
	if p.kind == kindNone || q.kind == kindNone || q.from < p.from || q.to > p.to {
		return false
	}
	switch p.kind {
	case kindExact:
		return q.kind == kindExact && q.name == p.name
	case kindBelow:
		return q.isName() && (isBelow(q.name, p.name) || q.kind == kindBelow && q.name == p.name)
	case kindBoth:
		return p.name == "" || q.isName() && (q.name == p.name || isBelow(q.name, p.name))
	default:
		return q.IsNet() && p.net.Bits() <= q.net.Bits() && p.net.Contains(q.net.Addr())
	}
}

func (p Pattern) isName() bool {
	return p.kind == kindExact || p.kind == kindBelow || p.kind == kindBoth
}

// isBelow tells whether name is a proper subdomain of base.
func isBelow(name, base string) bool {
	n := len(name) - len(base)
	return n > 1 && name[n-1] == '.' && name[n:] == base
}
