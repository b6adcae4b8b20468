package config

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"ptgate/adapter"
	"ptgate/gateway/budget"
	"ptgate/gateway/credentials"
	"ptgate/routes"
)

// A table is one TOML table under inspection. Each getter notes that its key is
// known, reports a value of the wrong type, and returns the default then and
// where the key is absent. Once all getters were called, done reports the keys
// that nobody asked for.
type table struct {
	l     *loading
	path  string
	title string // for messages, as in `bridge "tokyo"`; "" at the top
	m     map[string]any
	known []string
	bad   []string // string keys whose values were reported already
}

// An item is a string and the line where it stands.
type item struct {
	text string
	line int
}

// line is where the table begins.
func (t *table) line() int { return max(t.l.lines.of(t.path), 1) }

// lineOf is the line of a key; of one that is absent, where the table begins.
func (t *table) lineOf(key string) int {
	if n := t.l.lines.of(join(t.path, key)); n > 0 {
		return n
	}
	return t.line()
}

// fail reports an error at a line.
func (t *table) fail(line int, format string, args ...any) { t.report(line, false, format, args...) }

// warn reports a warning at a line.
func (t *table) warn(line int, format string, args ...any) { t.report(line, true, format, args...) }

func (t *table) report(line int, warning bool, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if t.title != "" {
		message = t.title + ": " + message
	}
	t.l.problems = append(t.l.problems, Problem{t.l.file, line, message, warning})
}

func (t *table) has(key string) bool {
	_, ok := t.get(key)
	return ok
}

// hasAny asks for all keys, so that all of them are known.
func (t *table) hasAny(keys ...string) bool {
	any := false
	for _, key := range keys {
		any = t.has(key) || any
	}
	return any
}

// isEmpty tells whether key has a list with nothing in it.
func (t *table) isEmpty(key string) bool {
	v, ok := t.m[key].([]any)
	return ok && len(v) == 0
}

func (t *table) get(key string) (any, bool) {
	if !slices.Contains(t.known, key) {
		t.known = append(t.known, key)
	}
	v, ok := t.m[key]
	return v, ok
}

// done reports unknown keys.
func (t *table) done() {
	for _, key := range slices.Sorted(maps.Keys(t.m)) {
		if !slices.Contains(t.known, key) {
			t.fail(t.lineOf(key), "unknown key %q%s", key, cmp.Or(DidYouMean(key, t.known), place(key), t.there()))
		}
	}
}

// there is the end of a message about a key that nobody knows: the keys that can stand there.
func (t *table) there() string {
	known := slices.Sorted(slices.Values(t.known))
	if len(known) == 0 {
		return ""
	}
	return ": it can be " + strings.Join(known, ", ")
}

// str reads a string in one line. A control character in it comes from a backslash, as in a path of
// Windows.
func (t *table) str(key, def string) string {
	s := t.text(key, def)
	if strings.ContainsFunc(s, unicode.IsControl) {
		t.fail(t.lineOf(key), "%s has a control character in it: %s", key, escapeHint)
		t.bad = append(t.bad, key)
		return def
	}
	return s
}

// text is str for a string that may have any character in it.
func (t *table) text(key, def string) string {
	v, ok := t.get(key)
	if !ok {
		return def
	}
	s, ok := v.(string)
	if !ok {
		t.fail(t.lineOf(key), "%s must be a string, as in %s = \"…\"", key, key)
		t.bad = append(t.bad, key)
		return def
	}
	return s
}

// isBad tells whether a key is there with a value that was reported already.
func (t *table) isBad(key string) bool { return slices.Contains(t.bad, key) }

// oneOf is str for a key with few values, the first of which is the default.
func oneOf[T ~string](t *table, key string, values ...T) T {
	s := T(t.str(key, string(values[0])))
	if slices.Contains(values, s) {
		return s
	}
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = string(v)
	}
	last := len(names) - 1
	t.fail(t.lineOf(key), "%s is %q: it can be %s or %s", key, s, strings.Join(names[:last], ", "), names[last])
	return values[0]
}

func (t *table) boolean(key string, def bool) bool {
	v, ok := t.get(key)
	if !ok {
		return def
	}
	b, ok := v.(bool)
	if !ok {
		t.fail(t.lineOf(key), "%s must be true or false, without quotes", key)
		return def
	}
	return b
}

func (t *table) integer(key string, def, least, most int) int {
	v, ok := t.get(key)
	if !ok {
		return def
	}
	n, ok := v.(int64)
	switch {
	case !ok:
		t.fail(t.lineOf(key), "%s must be a whole number, without quotes", key)
	case n < int64(least) || n > int64(most):
		t.fail(t.lineOf(key), "%s is %d: it can be from %d to %d", key, n, least, most)
	default:
		return int(n)
	}
	return def
}

// duration reads a length of time such as "10s". A bare number has no unit and is
// refused. Where zero means nothing, it is refused, too.
func (t *table) duration(key string, def time.Duration, zero bool) time.Duration {
	v, ok := t.get(key)
	if !ok {
		return def
	}
	s, ok := v.(string)
	d, err := time.ParseDuration(s)
	switch {
	case !ok || err != nil:
		t.fail(t.lineOf(key), "%s must be a time with its unit, as in \"10s\", \"1m30s\" or \"500ms\"%s", key, meantTime(v))
	case d < 0 && zero:
		t.fail(t.lineOf(key), "%s is %q: it can't be less than zero", key, s)
	case d < 0 || d == 0 && !zero:
		t.fail(t.lineOf(key), "%s is %q: it must be more than zero", key, s)
	default:
		return d
	}
	return def
}

// between is duration for a key that has no default and can't be zero.
func (t *table) between(key string, least, most time.Duration) time.Duration {
	d := t.duration(key, 0, false)
	if d != 0 && (d < least || d > most) {
		t.fail(t.lineOf(key), "%s is %q: it can be from \"%s\" to \"%s\"", key, t.m[key], formatTime(least), formatTime(most))
	}
	return d
}

// formatTime writes d without units that are zero: "24h", not "24h0m0s".
func formatTime(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"0s", "0m"} {
		if rest := strings.TrimSuffix(s, zero); rest != s && strings.HasSuffix(rest, map[string]string{"0s": "m", "0m": "h"}[zero]) {
			s = rest
		}
	}
	return s
}

// rate reads a number in a time such as "3/30s".
func (t *table) rate(key string) budget.Rate {
	v, ok := t.get(key)
	if !ok {
		return budget.Rate{}
	}
	text, _ := v.(string)
	number, per, _ := strings.Cut(text, "/")
	count, err := strconv.ParseUint(strings.TrimSpace(number), 10, 31)
	d, durationErr := time.ParseDuration(strings.TrimSpace(per))
	switch {
	case err != nil || durationErr != nil:
		t.fail(t.lineOf(key), "%s must be a number in a time, as in %s = \"3/30s\"", key, key)
	case count < 1 || count > mostPerTime:
		t.fail(t.lineOf(key), "%s is %q: the number can be from 1 to %d", key, text, mostPerTime)
	case d < leastTime || d > mostTime:
		t.fail(t.lineOf(key), "%s is %q: the time can be from \"%s\" to \"%s\"", key, text, formatTime(leastTime), formatTime(mostTime))
	default:
		return budget.Rate{Count: int(count), Per: d}
	}
	return budget.Rate{}
}

// Bounds of a rate.
const (
	mostPerTime = 1000
	leastTime   = 100 * time.Millisecond
	mostTime    = 24 * time.Hour
)

// size reads a number of bytes such as "4MiB".
func (t *table) size(key string, def, least, most int64) int64 {
	v, ok := t.get(key)
	if !ok {
		return def
	}
	s, _ := v.(string)
	n, ok := parseSize(s)
	if !ok {
		t.fail(t.lineOf(key), "%s must be a size in KiB, MiB or GiB, as in \"4MiB\" or \"512KiB\"%s", key, meantSize(v))
		return def
	}
	if n < least || n > most {
		t.fail(t.lineOf(key), "%s is %q: it can be from \"%s\" to \"%s\"", key, s, formatSize(least), formatSize(most))
		return def
	}
	return n
}

// measure splits a number from its unit, as people write them.
var measure = regexp.MustCompile(`^\s*(\d+)\s*([A-Za-z]*?)\s*$`)

// meant is the end of a message about a number with a unit: what to write instead, if that
// can be told. units is by the unit in small letters.
func meant(v any, units map[string]string) string {
	m := measure.FindStringSubmatch(fmt.Sprint(v))
	if m == nil {
		return ""
	}
	unit, ok := units[strings.ToLower(m[2])]
	switch {
	case !ok:
		return ""
	case m[1]+unit == fmt.Sprint(v):
		return fmt.Sprintf(": %q is too large", v)
	}
	return fmt.Sprintf(": write %q", m[1]+unit)
}

func meantTime(v any) string {
	if m := measure.FindStringSubmatch(fmt.Sprint(v)); m != nil && strings.HasPrefix(strings.ToLower(m[2]), "d") {
		if days, err := strconv.Atoi(m[1]); err == nil && days < 10000 {
			return fmt.Sprintf(": write %q", strconv.Itoa(24*days)+"h")
		}
	}
	return meant(v, map[string]string{"": "s", "s": "s", "sec": "s", "secs": "s", "second": "s", "seconds": "s",
		"m": "m", "min": "m", "mins": "m", "minute": "m", "minutes": "m", "h": "h", "hour": "h", "hours": "h", "ms": "ms", "msec": "ms"})
}

func meantSize(v any) string {
	none := "B"
	if n, err := strconv.ParseUint(fmt.Sprint(v), 10, 64); err == nil && n < 4096 {
		none = "MiB" // hardly anybody means so few bytes
	}
	return meant(v, map[string]string{"": none, "b": "B", "bytes": "B", "k": "KiB", "kb": "KiB", "kib": "KiB", "m": "MiB", "mb": "MiB", "mib": "MiB",
		"g": "GiB", "gb": "GiB", "gib": "GiB"})
}

// formatSize writes n as size reads it, in the largest unit that fits.
func formatSize(n int64) string {
	unit := "B"
	for _, u := range []string{"KiB", "MiB", "GiB"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatInt(n, 10) + unit
}

func parseSize(s string) (int64, bool) {
	digits := strings.TrimLeft(s, "0123456789")
	n, err := strconv.ParseInt(s[:len(s)-len(digits)], 10, 64)
	if err != nil {
		return 0, false
	}
	units := map[string]int64{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
	unit, ok := units[strings.TrimSpace(digits)]
	return n * unit, ok && n <= math.MaxInt64/unit
}

// list reads a string or a list of strings.
func (t *table) list(key string) []item {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	path := join(t.path, key)
	switch v := v.(type) {
	case string:
		return []item{{v, t.lineOf(key)}}
	case []any:
		items := make([]item, 0, len(v))
		for i, e := range v {
			line := max(t.l.lines.elem(path, i), t.line())
			if s, ok := e.(string); ok {
				items = append(items, item{s, line})
			} else {
				t.fail(line, "%s must be a list of strings, as in %s = [\"…\", \"…\"]", key, key)
			}
		}
		return items
	}
	if n, ok := v.(int64); ok {
		t.fail(t.lineOf(key), "%s must be a string or a list of strings: text stands in quotes, as in %s = \"%d\"", key, key, n)
		return nil
	}
	t.fail(t.lineOf(key), "%s must be a string or a list of strings", key)
	return nil
}

// sub returns the table under key; an empty one where there is none.
func (t *table) sub(key string) *table {
	s := &table{l: t.l, path: join(t.path, key), title: "[" + key + "]"}
	if t.path != "" {
		s.title = t.title + ": " + key
	}
	v, ok := t.get(key)
	if !ok {
		return s
	}
	if s.m, ok = v.(map[string]any); !ok {
		t.bad = append(t.bad, key)
		if example := inlineExamples[key]; example != "" {
			t.fail(t.lineOf(key), "%s must be a table: write %s = %s", key, key, example)
		} else {
			t.fail(t.lineOf(key), "%s must be a table: write [%s]", key, s.path)
		}
	}
	return s
}

// inlineExamples are of tables that are most often written in one line.
var inlineExamples = map[string]string{
	"args":    `{ cert = "…", iat-mode = "0" }`,
	"options": `{ iat-mode = "0" }`,
	"users":   `{ name = "password" }`,
	"env":     `{ NAME = "value" }`,
	"budget":  `{ bytes = "14KiB" }`,
}

// named returns the tables [key.NAME] in their order; form is how one is written.
func (t *table) named(key, form string) []namedTable {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		t.fail(t.lineOf(key), "%s has no name: write %s", key, form)
		return nil
	}
	var tables []namedTable
	for name, v := range m {
		s := &table{l: t.l, path: join(join(t.path, key), name), title: fmt.Sprintf("%s %q", key, name)}
		if s.m, ok = v.(map[string]any); !ok {
			if _, list := v.([]map[string]any); list {
				t.fail(s.line(), "%s has two brackets: write [%s], with one", join(key, name), join(key, name))
				continue
			}
			t.fail(s.line(), "%s = … stands where a table is meant: write %s", join(key, name), form)
			continue
		}
		if !validName(name) {
			s.fail(s.line(), "a name can have letters, digits, \"-\", \"_\" and inner dots, and 64 bytes at most")
		}
		tables = append(tables, namedTable{name, s})
	}
	slices.SortFunc(tables, func(a, b namedTable) int {
		return t.l.lines.order(a.t.path) - t.l.lines.order(b.t.path)
	})
	return tables
}

type namedTable struct {
	name string
	t    *table
}

// validName keeps names fit for logs, metrics and directories.
func validName(s string) bool {
	if len(s) > 64 || s == "" || s[0] == '.' || s[len(s)-1] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// array returns the tables [[key]].
func (t *table) array(key string) []*table {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	path := join(t.path, key)
	var tables []*table
	add := func(i int, m map[string]any) {
		tables = append(tables, &table{l: t.l, path: at(path, i), title: fmt.Sprintf("%s %d", key, i+1), m: m})
	}
	switch v := v.(type) {
	case []map[string]any:
		for i, m := range v {
			add(i, m)
		}
	case []any:
		for i, e := range v {
			if m, ok := e.(map[string]any); ok {
				add(i, m)
			} else {
				t.fail(max(t.l.lines.elem(path, i), 1), "%s must be a list of tables: write [[%s]]", key, key)
			}
		}
	default:
		t.fail(t.lineOf(key), "%s can be there several times: write [[%s]], with two brackets", key, key)
	}
	return tables
}

// args reads a table of args: each value a string, a whole number, or a list of
// them where the key repeats. The order is the file's.
func (t *table) args(key string) adapter.Args {
	s := t.sub(key)
	names := slices.Collect(maps.Keys(s.m))
	slices.SortFunc(names, func(a, b string) int {
		return t.l.lines.order(join(s.path, a)) - t.l.lines.order(join(s.path, b))
	})
	var args adapter.Args
	add := func(line int, name, value string) {
		plain, ok := s.look(line, "the key", name, TextPlain)
		value, fine := s.look(line, name, value, TextPlain)
		if !ok || !fine {
			t.bad = append(t.bad, key)
			return
		}
		args.Add(plain, value)
	}
	for _, name := range names {
		values, ok := s.m[name].([]any)
		if !ok {
			values = []any{s.m[name]}
		}
		for _, v := range values {
			switch v := v.(type) {
			case string:
				add(s.lineOf(name), name, v)
			case int64:
				add(s.lineOf(name), name, strconv.FormatInt(v, 10))
			default:
				s.fail(s.lineOf(name), "%s must be a string, as in %s = \"…\"", name, name)
			}
		}
	}
	return args
}

// env reads a table of variables for a program's environment, sorted.
func (t *table) env(key string) (env []string) {
	s := t.sub(key)
	for _, name := range slices.Sorted(maps.Keys(s.m)) {
		value, ok := s.m[name].(string)
		if !ok {
			s.fail(s.lineOf(name), "%s must be a string, as in %s = \"…\"", name, name)
		} else if err := adapter.CheckEnv(name, value); err != nil {
			s.fail(s.lineOf(name), "%q: %v", name, err)
		} else {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// users reads a table of names and passwords, or bcrypt hashes of these, as SOCKS5 (RFC 1929: 1 to 255
// bytes each) and HTTP Basic (RFC 7617: no colon in the name) can carry them.
func (t *table) users(key string) map[string]string {
	s := t.sub(key)
	users := make(map[string]string, len(s.m))
	for _, name := range slices.Sorted(maps.Keys(s.m)) {
		password, ok := s.m[name].(string)
		_, _, oddName := Pasted(name, TextSecret)
		_, _, oddPassword := Pasted(password, TextSecret)
		switch {
		case !ok:
			s.fail(s.lineOf(name), "the password of %q must be a string: put it in quotes", name)
		case oddName != nil:
			s.fail(s.lineOf(name), "the user name %q: %v", name, oddName)
		case oddPassword != nil:
			s.fail(s.lineOf(name), "the password of %q: %v", name, oddPassword)
		case !credential(name) || strings.Contains(name, ":"):
			s.fail(s.lineOf(name), "the user name %q must have 1 to 255 bytes, and neither control characters nor a colon", name)
		case !credential(password):
			s.fail(s.lineOf(name), "the password of %q must have 1 to 255 bytes, and no control characters", name)
		case credentials.Check(password) != nil:
			s.fail(s.lineOf(name), "the password of %q %v", name, credentials.Check(password))
		default:
			users[name] = password
			t.l.secret(s.lineOf(name))
		}
	}
	return users
}

func credential(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// prefixes reads a list of addresses and networks.
func (t *table) prefixes(key string) []netip.Prefix {
	var out []netip.Prefix
	for _, it := range t.pastedList(key, TextPlain) {
		p, err := parsePrefix(it.text)
		if err != nil {
			t.fail(it.line, "%s: %v", key, err)
			continue
		}
		out = append(out, p)
	}
	return out
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network: write %s", s,
			cmp.Or(routes.MeantNetwork(s), "as in \"192.0.2.7\" or \"2001:db8::/32\""))
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("%q has address bits outside its network: write %q", s, m)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}
