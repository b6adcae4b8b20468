package config

import (
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
)

// self is the word for the user who runs ptgate.
const self = "self"

// owners reads a list of users of this machine: names, numbers, and the word self.
func (t *table) owners(key string) (uids []uint32) {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	if n, ok := v.(int64); ok {
		v = []any{n}
	}
	var items []item
	if all, ok := v.([]any); ok {
		for i, v := range all {
			line := max(t.l.lines.elem(join(t.path, key), i), t.line())
			switch v := v.(type) {
			case string:
				items = append(items, item{v, line})
			case int64:
				items = append(items, item{strconv.FormatInt(v, 10), line})
			default:
				t.fail(line, "%s must be a list of users, as in %s = [\"self\", \"alice\", 1000]", key, key)
			}
		}
	} else {
		items = t.list(key)
	}
	if len(items) > 0 && runtime.GOOS != "linux" {
		t.fail(t.lineOf(key), "%s works on Linux only, whose kernel tells who connects: leave it out, and ask for a password with users", key)
		return nil
	}
	for _, it := range items {
		uid, ok := lookUpUser(it.text)
		switch {
		case !ok:
			t.fail(it.line, "%s: there is no user %q on this machine: write the name or the number of one, or \"self\"", key, it.text)
		case !slices.Contains(uids, uid):
			uids = append(uids, uid)
		}
	}
	return uids
}

// lookUpUser finds the number of a user. A number need not have a name.
func lookUpUser(s string) (uid uint32, ok bool) {
	if s == self {
		return uint32(os.Geteuid()), true
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		u, err := user.Lookup(s)
		if err != nil {
			return 0, false
		}
		if n, err = strconv.ParseUint(u.Uid, 10, 32); err != nil {
			return 0, false
		}
	}
	return uint32(n), true
}
