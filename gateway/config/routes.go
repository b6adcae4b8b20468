package config

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strings"
	"unicode"

	"ptgate/routes"
)

// The words in via that name no bridge.
const (
	viaDirect = "direct"
	viaBlock  = "block"
)

// routeTables reads the [[route]] tables and compiles their patterns.
func (l *loading) routeTables(cfg *Config, tables []*table) {
	var (
		b        routes.Builder
		complete = make([]bool, len(tables)) // all patterns of the route are in the table
		used     = map[*Bridge]bool{}
	)
	for i, t := range tables {
		r := &Route{Line: t.line()}
		cfg.Routes = append(cfg.Routes, r)
		before := len(l.problems)
		l.patterns(t, r, i, &b)
		complete[i] = !HasError(l.problems[before:])
		l.via(cfg, t, r, i)
		if r.Private = t.boolean("private", false); r.Private && r.Action != ActionDirect {
			t.fail(t.lineOf("private"), "private is for via = \"direct\": leave it out")
		}
		for _, bridge := range r.Via {
			used[bridge] = true
		}
		t.done()
	}
	cfg.Table = b.Table()
	for i, t := range tables {
		if complete[i] {
			l.reachable(cfg, t, i)
		}
	}
	for _, bridge := range cfg.Bridges {
		if !used[bridge] && len(tables) > 0 {
			l.problems = append(l.problems, Problem{l.file, bridge.Line,
				fmt.Sprintf("bridge %q: no route leads to it: name it in the via of one", bridge.Name), true})
		}
	}
}

// reachable reports a route that can never match, and single patterns of to that
// can't. Lists from elsewhere may repeat what stands before them.
func (l *loading) reachable(cfg *Config, t *table, rule int) {
	place := func(m routes.Match) string {
		file, line, pattern := cfg.Where(m)
		if file == l.file {
			return fmt.Sprintf("%q of route %d (line %d)", pattern, m.Rule+1, line)
		}
		return fmt.Sprintf("%q of route %d (%s:%d)", pattern, m.Rule+1, file, line)
	}
	if by, dead := cfg.Table.Dead(rule); dead {
		all := "all of its patterns are"
		if cfg.Table.Patterns(rule) == 1 {
			all = "its pattern is"
		}
		t.fail(t.line(), "it can never match: %s taken by earlier routes, %q by %s; write it above them, or take it out",
			all, cfg.Table.Pattern(routes.Match{Rule: rule}), place(by))
		return
	}
	for i := range cfg.Table.Patterns(rule) {
		m := routes.Match{Rule: rule, Pattern: i}
		source, line := cfg.Routes[rule].source(i)
		if source.PerLine {
			return // lists come last
		}
		if by, ok := cfg.Table.Covered(m); ok {
			t.warn(line, "%q can never match: taken by %s; write it above that, or take it out", cfg.Table.Pattern(m), place(by))
		}
	}
}

// patterns reads to and to_file.
func (l *loading) patterns(t *table, r *Route, rule int, b *routes.Builder) {
	add := func(text string, file string, line int, perLine bool) error {
		p, err := routes.ParsePattern(text, canonical)
		if err != nil {
			return err
		}
		n, err := b.Add(rule, p)
		if err != nil {
			return err
		}
		r.note(n, file, line, perLine)
		return nil
	}
	to, files := t.pastedList("to", TextName), t.list("to_file")
	switch {
	case t.m["to"] == nil && t.m["to_file"] == nil:
		t.fail(t.line(), "to is missing: write to = [\"example.com\"], to = \"*\" for everything, or to_file = \"list.txt\"")
	case t.isEmpty("to") && len(files) == 0:
		t.fail(t.lineOf("to"), "to names no destination: write to = \"*\" for everything")
	case t.isEmpty("to_file") && len(to) == 0:
		t.fail(t.lineOf("to_file"), "to_file names no file")
	}
	for _, it := range to {
		if r := mixedUp(it.text); r.At > 0 {
			t.warn(it.line, "to: %U at character %d of a pattern stands among plain letters, and may only look like one: if so, write it anew", r.Rune, r.At)
		}
		if it.text == private {
			t.fail(it.line, "to: %q is for deny of [exit] only: write the networks, as in \"10.0.0.0/8\"", it.text)
		} else if err := add(it.text, l.file, it.line, false); err != nil {
			t.fail(it.line, "to: %v", err)
		}
	}
	for _, it := range files {
		if it.text == "" {
			t.fail(it.line, "to_file is empty: write the name of a file")
			continue
		}
		if strings.ContainsFunc(it.text, unicode.IsControl) {
			t.fail(it.line, "to_file has a control character in it: %s", escapeHint)
			continue
		}
		name := l.shown(it.text)
		n := 0
		err := l.readList(l.path(it.text), name, func(line int, text string) error {
			n++
			return add(text, name, line, true)
		})
		if err != nil {
			t.fail(it.line, "to_file: %s: %v", name, err)
		} else if n == 0 {
			t.warn(it.line, "to_file: %s has no patterns in it, so that it takes nothing: write one a line", name)
		}
	}
}

const (
	maxList     = 512 << 20 // bytes of a list file
	maxListLine = 4096
	maxBadLines = 20 // that are reported of one list
)

// readList hands each pattern of a list file to add and reports each line that
// add refuses, the first maxBadLines of them.
func (l *loading) readList(path, shown string, add func(line int, text string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return shortError(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return shortError(err)
	}
	if err := l.check(path, info); err != nil {
		return err
	}
	limited := &io.LimitedReader{R: f, N: maxList + 1}
	in := bufio.NewReaderSize(limited, maxListLine)
	if head, _ := in.Peek(maxListLine); isUTF16(head) {
		return errors.New(utf16Hint)
	}
	bad := 0
	report := func(line int, message string) {
		if bad++; bad <= maxBadLines {
			l.problems = append(l.problems, Problem{File: shown, Line: line, Message: message})
		}
	}
	last := 0
	odd, oddLine := 0, 0 // lines with invisible characters, the first of them
	var first []Char
	for line := 1; ; line++ {
		text, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			report(line, fmt.Sprintf("the line is longer than %d bytes", maxListLine))
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = in.ReadSlice('\n')
			}
			text = nil
		}
		if limited.N == 0 {
			return fmt.Errorf("is larger than %d MiB", maxList>>20)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return shortError(err)
		}
		if line == 1 {
			text = bytes.TrimPrefix(text, []byte("\ufeff"))
		}
		text, _, _ = bytes.Cut(text, []byte("#"))
		if text = bytes.TrimSpace(text); len(text) > 0 {
			clean, removed, err := Pasted(string(text), TextName)
			if len(removed) > 0 {
				if odd++; odd == 1 {
					oddLine, first = line, removed
				}
			}
			if err == nil {
				err = add(line, clean)
			}
			if _, name, ok := strings.Cut(clean, " "); err != nil && ok && isHostsLine(clean) {
				err = fmt.Errorf("this is a line of a hosts file: write the name alone, as in %q", strings.TrimSpace(name))
			}
			if err != nil {
				report(line, err.Error())
			}
		}
		last = line
		if err != nil {
			break
		}
	}
	if odd > 0 {
		message := leftOut(first)
		if odd > 1 {
			message += fmt.Sprintf(", and so it is with %d more lines", odd-1)
		}
		l.problems = append(l.problems, Problem{File: shown, Line: oddLine, Message: message, Warning: true})
	}
	if bad > maxBadLines {
		l.problems = append(l.problems, Problem{File: shown, Line: last, Message: fmt.Sprintf("and %d more lines like these", bad-maxBadLines)})
	}
	return nil
}

// isHostsLine tells whether a line begins with an address, as in /etc/hosts.
func isHostsLine(s string) bool {
	_, err := netip.ParseAddr(strings.Fields(s)[0])
	return err == nil
}

// ofBridge are the keys that only a bridge written in place brings into a route.
var ofBridge = []string{"far", "user", "password", "optimistic", "carriers", "budget"}

// via reads where a route leads.
func (l *loading) via(cfg *Config, t *table, r *Route, rule int) {
	inline := t.hasAny("bridge", "transport", "args")
	hasPick := t.has("pick")
	r.Pick = oneOf(t, "pick", PickFirst, PickFastest, PickSpread)
	switch {
	case t.has("via") && inline:
		t.fail(t.lineOf("via"), "via and a bridge written in place exclude each other")
		t.hasAny(ofBridge...)
		return
	case inline:
		b := &Bridge{Name: fmt.Sprintf("route %d", rule+1), Line: t.line()}
		l.bridgeKeys(t, b, "bridge")
		l.bridgeRest(t, b)
		cfg.Bridges = append(cfg.Bridges, b)
		r.Via = []*Bridge{b}
		return
	case !t.has("via"):
		t.hasAny(ofBridge...)
		t.fail(t.line(), "via is missing: write via = \"NAME\" of a bridge, \"direct\" or \"block\"")
		return
	}
	for _, key := range ofBridge {
		if t.has(key) {
			t.fail(t.lineOf(key), "%s belongs to the bridge: write it in [bridge.NAME]", key)
		}
	}
	list := t.list("via")
	if t.isEmpty("via") {
		t.fail(t.lineOf("via"), "via is empty: write the name of a bridge, \"direct\" or \"block\"")
	}
	seen := map[string]bool{}
	for _, it := range list {
		if it.text == viaDirect || it.text == viaBlock {
			r.Action = ActionDirect
			if it.text == viaBlock {
				r.Action = ActionBlock
			}
			if len(list) > 1 {
				t.fail(it.line, "via: %q stands alone: write via = %[1]q, or bridges only", it.text)
			} else if hasPick {
				t.fail(t.lineOf("pick"), "pick is for bridges: leave it out with via = %q", it.text)
			}
			continue
		}
		b, ok := l.bridges[it.text]
		switch {
		case !ok && l.bridges[visible(it.text)] != nil:
			_, removed, _ := Pasted(it.text, TextName)
			t.fail(it.line, "via: %v of the bridge's name can't be seen: take it out", removed[0])
		case !ok:
			t.fail(it.line, "via: there is no bridge %q%s", it.text, l.meantBridge(it.text))
		case seen[it.text]:
			t.fail(it.line, "via names %q twice", it.text)
		default:
			r.Via = append(append(r.Via, b), l.ways[it.text]...)
		}
		seen[it.text] = true
	}
}

// meantBridge is the end of a message about a name in via that no bridge has.
func (l *loading) meantBridge(name string) string {
	known := slices.Sorted(maps.Keys(l.bridges))
	if r := lookalike(name); r.At > 0 {
		return fmt.Sprintf(": %U at character %d may only look like a plain letter: write it anew", r.Rune, r.At)
	}
	if hint := DidYouMean(name, append(known, viaDirect, viaBlock)); hint != "" {
		return hint
	}
	if list := strings.FieldsFunc(name, func(r rune) bool { return r == ',' || r == ';' || r == ' ' }); len(list) > 1 {
		return fmt.Sprintf(": several are a list: write via = [\"%s\"]", strings.Join(list, "\", \""))
	}
	if word := viaWords[strings.ToLower(name)]; word != "" {
		return fmt.Sprintf(": did you mean %q?", word)
	}
	if len(known) == 0 || len(known) > 5 {
		return ": write [bridge.NAME] with that name, or the name of one that is there"
	}
	return fmt.Sprintf(": there is %q", known)
}

// viaWords are the words of other programs for direct and block.
var viaWords = map[string]string{
	"deny": viaBlock, "reject": viaBlock, "drop": viaBlock, "ban": viaBlock, "blackhole": viaBlock, "refuse": viaBlock,
	"none": viaDirect, "bypass": viaDirect, "freedom": viaDirect, "noproxy": viaDirect,
}

// note keeps where pattern n is written, in as few runs as it takes.
func (r *Route) note(n int, file string, line int, perLine bool) {
	k := len(r.Sources) - 1
	if k < 0 || r.Sources[k].File != file || r.Sources[k].PerLine != perLine {
		r.Sources = append(r.Sources, Source{File: file, PerLine: perLine})
		k++
	}
	s := &r.Sources[k]
	if len(s.Runs) == 0 || s.line(s.Runs[len(s.Runs)-1], n) != line {
		s.Runs = append(s.Runs, Run{uint32(n), uint32(line)})
	}
}

// line is where pattern n of a run is written.
func (s *Source) line(r Run, n int) int {
	if s.PerLine {
		return int(r.Line) + n - int(r.First)
	}
	return int(r.Line)
}

// source is where pattern n is written.
func (r *Route) source(n int) (s *Source, line int) {
	k := sort.Search(len(r.Sources), func(k int) bool { return int(r.Sources[k].Runs[0].First) > n }) - 1
	if k < 0 {
		return &Source{}, 0
	}
	s = &r.Sources[k]
	i := sort.Search(len(s.Runs), func(i int) bool { return int(s.Runs[i].First) > n }) - 1
	return s, s.line(s.Runs[i], n)
}

// Where returns the place where the pattern of a match of c.Table is written,
// and the pattern in its normal form. file is named as in Problem.
func (c *Config) Where(m routes.Match) (file string, line int, pattern string) {
	if m.Rule < 0 || m.Rule >= len(c.Routes) {
		return "", 0, ""
	}
	s, line := c.Routes[m.Rule].source(m.Pattern)
	return s.File, line, c.Table.Pattern(m).String()
}
