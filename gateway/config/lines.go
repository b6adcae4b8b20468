package config

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// keyLines says where the keys of a TOML document stand. The TOML library can't:
// inside an array of tables it names the line of the last one.
//
// A path is made by join and at: bridge.tokyo.args, route[2].to.
type keyLines struct {
	keys  map[string]keyLine
	elems map[string][]int32 // by an array's path, the line of each element
}

type keyLine struct {
	line  int
	order int // of appearance
}

// join is the path of key in the table at path.
func join(path, key string) string {
	if key == "" || strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// at is the path of element i of the array at path.
func at(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// of is the line of a key or table; of one that is not written, 0.
func (k *keyLines) of(path string) int { return k.keys[path].line }

// order tells which of two keys comes first in the file.
func (k *keyLines) order(path string) int { return k.keys[path].order }

// elem is the line of element i of an array, or of the array's key where the
// value is not an array.
func (k *keyLines) elem(path string, i int) int {
	if e := k.elems[path]; i < len(e) {
		return int(e[i])
	}
	return k.of(path)
}

// maxDepth bounds the recursion. What is deeper has no line, and no place in a
// configuration.
const maxDepth = 64

// A lineScanner walks through a document. It relies on the TOML library to
// refuse what is wrong: at anything unexpected it stops, and what it has found
// stays.
type lineScanner struct {
	s      string
	i      int
	line   int
	out    *keyLines
	arrays map[string]int // lengths of arrays of tables, by path
}

func scanLines(doc string) *keyLines {
	sc := lineScanner{
		s:      strings.TrimPrefix(doc, "\ufeff"),
		line:   1,
		out:    &keyLines{keys: map[string]keyLine{}, elems: map[string][]int32{}},
		arrays: map[string]int{},
	}
	path := ""
	for ok := true; ok; {
		sc.blank()
		if sc.i == len(sc.s) {
			break
		}
		if sc.s[sc.i] == '[' {
			path, ok = sc.header()
		} else {
			ok = sc.keyValue(path, 0)
		}
	}
	return sc.out
}

func (sc *lineScanner) note(path string, line int) {
	if _, ok := sc.out.keys[path]; !ok {
		sc.out.keys[path] = keyLine{line, len(sc.out.keys)}
	}
}

// blank skips white space, line ends and comments.
func (sc *lineScanner) blank() {
	for sc.i < len(sc.s) {
		switch sc.s[sc.i] {
		case '\n':
			sc.line++
		case ' ', '\t', '\r':
		case '#':
			if n := strings.IndexByte(sc.s[sc.i:], '\n'); n >= 0 {
				sc.i += n
			} else {
				sc.i = len(sc.s)
			}
			continue
		default:
			return
		}
		sc.i++
	}
}

func (sc *lineScanner) spaces() {
	for sc.i < len(sc.s) && (sc.s[sc.i] == ' ' || sc.s[sc.i] == '\t') {
		sc.i++
	}
}

// accept skips text if it comes next.
func (sc *lineScanner) accept(text string) bool {
	if !strings.HasPrefix(sc.s[sc.i:], text) {
		return false
	}
	sc.i += len(text)
	return true
}

// header reads [a.b] or [[a.b]] and returns the path of its table.
func (sc *lineScanner) header() (path string, ok bool) {
	line := sc.line
	sc.i++
	array := sc.accept("[")
	key, ok := sc.key()
	if !ok || !sc.accept("]") || array && !sc.accept("]") {
		return "", false
	}
	for i, part := range key {
		path = join(path, part)
		last := i == len(key)-1
		if last && array {
			sc.note(path, line)
			n := sc.arrays[path]
			sc.arrays[path]++
			path = at(path, n)
		} else if n := sc.arrays[path]; n > 0 {
			path = at(path, n-1)
		}
		sc.note(path, line)
	}
	return path, true
}

// keyValue reads a key, which may be dotted, and its value into the table at path.
func (sc *lineScanner) keyValue(path string, depth int) bool {
	line := sc.line
	key, ok := sc.key()
	if !ok || !sc.accept("=") {
		return false
	}
	for _, part := range key {
		path = join(path, part)
		sc.note(path, line)
	}
	sc.spaces()
	return sc.value(path, depth)
}

// key reads a dotted key and the white space around it.
func (sc *lineScanner) key() (parts []string, ok bool) {
	for {
		sc.spaces()
		if sc.i == len(sc.s) {
			return nil, false
		}
		var part string
		switch c := sc.s[sc.i]; c {
		case '"', '\'':
			start := sc.i
			if !sc.quoted() || strings.Contains(sc.s[start:sc.i], "\n") {
				return nil, false
			}
			part = sc.s[start+1 : sc.i-1]
			if c == '"' {
				part = unescape(part)
			}
		default:
			n := strings.IndexAny(sc.s[sc.i:], " \t\r\n.=[]{},#\"'")
			if n <= 0 {
				return nil, false
			}
			part = sc.s[sc.i : sc.i+n]
			sc.i += n
		}
		parts = append(parts, part)
		if len(parts) > maxDepth {
			return nil, false
		}
		sc.spaces()
		if !sc.accept(".") {
			return parts, true
		}
	}
}

// value skips a value and notes what is inside it.
func (sc *lineScanner) value(path string, depth int) bool {
	if sc.i == len(sc.s) || depth > maxDepth {
		return false
	}
	switch sc.s[sc.i] {
	case '"', '\'':
		return sc.quoted()
	case '[':
		sc.i++
		for n := 0; ; n++ {
			sc.blank()
			if sc.accept("]") {
				return true
			}
			sc.out.elems[path] = append(sc.out.elems[path], int32(min(sc.line, math.MaxInt32)))
			inner := path
			if sc.i < len(sc.s) && (sc.s[sc.i] == '{' || sc.s[sc.i] == '[') {
				inner = at(path, n)
				sc.note(inner, sc.line)
			}
			if !sc.value(inner, depth+1) {
				return false
			}
			sc.blank()
			if !sc.accept(",") && !strings.HasPrefix(sc.s[sc.i:], "]") {
				return false
			}
		}
	case '{':
		sc.i++
		for {
			sc.blank()
			if sc.accept("}") {
				return true
			}
			if !sc.keyValue(path, depth+1) {
				return false
			}
			sc.blank()
			if !sc.accept(",") && !strings.HasPrefix(sc.s[sc.i:], "}") {
				return false
			}
		}
	}
	n := strings.IndexAny(sc.s[sc.i:], ",]}#\n")
	if n < 0 {
		n = len(sc.s) - sc.i
	}
	sc.i += n
	return n > 0
}

// quoted skips a string of any of the four kinds.
func (sc *lineScanner) quoted() bool {
	quote := sc.s[sc.i]
	long := strings.Repeat(string(quote), 3)
	isLong := sc.accept(long)
	if !isLong {
		sc.i++
	}
	for sc.i < len(sc.s) {
		switch c := sc.s[sc.i]; {
		case c == '\n':
			if !isLong {
				return false
			}
			sc.line++
		case c == '\\' && quote == '"':
			sc.i++
			if sc.i < len(sc.s) && sc.s[sc.i] == '\n' {
				sc.line++
			}
		case c == quote && !isLong:
			sc.i++
			return true
		case c == quote && sc.accept(long):
			// One or two more quotes belong to the text.
			for range 2 {
				sc.accept(long[:1])
			}
			return true
		}
		sc.i++
	}
	sc.i = len(sc.s)
	return false
}

// unescape undoes the escapes of a basic string.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		digits := 0
		switch s[i] {
		case 'b':
			b.WriteByte('\b')
		case 't':
			b.WriteByte('\t')
		case 'n':
			b.WriteByte('\n')
		case 'f':
			b.WriteByte('\f')
		case 'r':
			b.WriteByte('\r')
		case 'e':
			b.WriteByte(0x1b)
		case 'x':
			digits = 2
		case 'u':
			digits = 4
		case 'U':
			digits = 8
		default:
			b.WriteByte(s[i])
		}
		if digits == 0 {
			continue
		}
		r, err := strconv.ParseUint(s[i+1:min(i+1+digits, len(s))], 16, 32)
		if err != nil {
			r = utf8.RuneError
		}
		b.WriteRune(rune(r))
		i = min(i+digits, len(s)-1)
	}
	return b.String()
}
